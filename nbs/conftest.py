"""`pytest --nbval nbs` runs every cell of the library's notebooks and compares its output with the one that is stored."""

import importlib.util
import os

from kwanzaa_nb.core.stage import QUIET

os.environ.update(QUIET)  # what libraries say at import would be an output, on some machines
collect_ignore_glob = ["0[1-4]*.ipynb"]  # stages belong to a run; the smoke run executes them
if not importlib.util.find_spec("inspect_ai"):  # of the extra [inspect], which [dev] leaves out
    collect_ignore_glob += ["evaluate/inspect_*.ipynb"]


def pytest_collection_modifyitems(items):
    """Number the cells, as nbval wants it of cells with outputs: nbdev_clean takes the numbers out, since they only make noise in a diff."""
    for item in items:
        if hasattr(item, "cell"):
            item.cell.execution_count = 1
