"""The stage data: corpus, retrieval, records, validation. Imports core and model."""
