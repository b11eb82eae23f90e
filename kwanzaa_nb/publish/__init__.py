"""The stage publish: gate, card, staging, the Hub, the answerer. Imports core and model."""
