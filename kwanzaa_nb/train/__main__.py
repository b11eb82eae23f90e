"""`python -m kwanzaa_nb.train` trains, by itself or under `accelerate launch`."""

from ..evaluate.development import score_development
from ..report.runs import refresh_reports
from .command import main

if __name__ == "__main__":
    raise SystemExit(main(pages=refresh_reports, score=score_development))
