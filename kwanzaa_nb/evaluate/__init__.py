"""The stage evaluate: support, metrics, passes, figures. Imports core and model."""
