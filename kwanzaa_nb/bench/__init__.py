"""Benchmarks and forged answers, for developers; not installed. Imported by nothing."""
