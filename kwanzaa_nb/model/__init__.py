"""The model: loading, templates, attention, backends, grammar, the decision. Imports core."""
