"""What every other room stands on: errors, the answer contract, prompts, config, runs. Imports nothing but itself, and no torch."""
