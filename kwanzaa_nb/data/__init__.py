"""The stage data: corpus, questions, retrieval, records, validation. Imports core and model."""
