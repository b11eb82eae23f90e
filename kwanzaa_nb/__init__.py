"""Turn an instruct model into one that cites its context, refuses without evidence, and writes valid answer_json."""

__version__ = "0.1.0"

import logging
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's; it would put a local path into reports
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)  # a rename in transformers
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at each import it recommends an optional package


def __getattr__(name: str) -> object:
    "`load_answerer`, loaded when it is asked for, since it brings torch along."
    if name == "load_answerer":
        from kwanzaa_nb.answerer import load_answerer

        return load_answerer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
