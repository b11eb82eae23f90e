"""Turn an instruct model into one that cites its context, refuses without evidence, and writes valid answer_json."""

__version__ = "0.1.0"

import logging
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's; it would put a local path into reports
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)  # a rename in transformers
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at each import it recommends an optional package
