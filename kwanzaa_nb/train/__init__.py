"""The stage train: trainer, memory and cost, resuming. Imports core and model."""
