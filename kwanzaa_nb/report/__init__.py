"""Pages to read: an answer, an evaluation, a run, all runs. Imports the stages."""
