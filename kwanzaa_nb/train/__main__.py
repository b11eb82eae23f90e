"""`python -m kwanzaa_nb.train` trains, by itself or under `accelerate launch`."""

from .command import main

if __name__ == "__main__":
    raise SystemExit(main())
