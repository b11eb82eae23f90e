"""What every other room stands on: errors, contract, prompts, config, runs. Imports no torch."""
