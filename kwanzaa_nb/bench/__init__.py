"""Benchmarks and forged answers, for developers; not part of an installed package. Imported by nothing."""
