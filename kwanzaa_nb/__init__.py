"""Turn an instruct model into one that cites its context, refuses, and writes answer_json."""

__version__ = "0.1.0"

import sys

if sys.version_info < (3, 11):  # this file alone can be read by any older Python, to say this
    raise SystemExit(
        "kwanzaa_nb needs Python 3.11 or newer, and this is Python %d.%d.%d (%s): install it into "
        "a newer one, as in python3.11 -m venv .venv, or in a checkout by make setup "
        "PYTHON=python3.11." % (sys.version_info[:3] + (sys.executable,)))

import importlib
import logging
import warnings

# tqdm's, which would put a local path into reports; a rename in transformers; and what bitsandbytes
# recommends at each import
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_FACE = {  # what others build on, and where it is written; loaded when it is asked for
    "load_config": "core.config", "ConfigError": "core.config",
    "parse_strict_json": "core.strict_json",
    "parse_model_answer": "core.answer", "validate_answer_json": "core.answer",
    "AnswerError": "core.answer",
    "render_prompt": "core.prompt",
    "support": "evaluate.support", "SUPPORTED_AT": "evaluate.support", "score": "evaluate.metrics",
    "load_answerer": "publish.answerer",
}
__all__ = list(_FACE)


def __getattr__(name):  # text -> the function, class or number
    "Load a name of the face from its module."
    if name not in _FACE:
        raise AttributeError("module %r has no attribute %r" % (__name__, name))
    module = importlib.import_module("%s.%s" % (__name__, _FACE[name]))
    found = globals()[name] = getattr(module, name)
    return found


def __dir__():  # names, for completion
    "List the face."
    return sorted(set(globals()) | set(_FACE))
