"""The stage publish: gate, card, staging, the Hub; and the answerer that a published folder becomes. Imports core and model."""
