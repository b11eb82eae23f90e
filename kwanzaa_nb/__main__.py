"""`python -m kwanzaa_nb` is the command `kwanzaa`."""

from .run.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
