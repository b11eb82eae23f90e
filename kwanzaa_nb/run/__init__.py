"""What starts runs: the command line, sweeps, a new project. Imports everything but bench."""
