"""The stage data: tables, documents, corpus, retrieval, records, validation. Imports core and model."""
