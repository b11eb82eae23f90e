"""The model: loading, chat templates, attention, who generates, grammar, the deciding token. Imports core."""
