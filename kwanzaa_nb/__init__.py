"""Turn an instruct model into one that cites its context, refuses without evidence, and writes valid answer_json."""

__version__ = "0.1.0"

import sys

if sys.version_info < (3, 11):  # this file alone is kept readable to any older Python, so that it can say this
    raise SystemExit("kwanzaa_nb needs Python 3.11 or newer, and this is Python %d.%d.%d (%s): install it into a newer one, "
                     "as in python3.11 -m venv .venv, or in a checkout by make setup PYTHON=python3.11." % (sys.version_info[:3] + (sys.executable,)))

import logging
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's; it would put a local path into reports
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)  # a rename in transformers
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at each import it recommends an optional package


def __getattr__(name):  # text -> the function
    "`load_answerer`, loaded when it is asked for, since it brings torch along."
    if name == "load_answerer":
        from kwanzaa_nb.answerer import load_answerer

        return load_answerer
    raise AttributeError("module %r has no attribute %r" % (__name__, name))
