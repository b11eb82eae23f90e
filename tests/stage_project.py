"A small project with stage notebooks, and helpers that start commands in other processes."

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat

from kwanzaa_nb.core import manifest
from kwanzaa_nb.core.config import resolve_config
from kwanzaa_nb.core.lock import ABOVE
from kwanzaa_nb.core.stage import Stage

REPOSITORY = Path(__file__).resolve().parents[1]
STRANGER = {name: value for name, value in os.environ.items() if name != ABOVE}
STRANGER["PYTHONPATH"] = str(REPOSITORY)  # the environment of a process that no holder started
CONFIG = """\
run: {name: tiny, output_dir: outputs/tiny}
model: {base_model_id: owner/model}
adapter: {method: qlora}
data: {train_file: data/train.jsonl, eval_file: data/eval.jsonl}
"""
PARAMETERS = "config = ''\noverrides = {}\n" + "".join(
    f"{section} = {{}}\n" for section in ("run", "model", "adapter", "data", "training"))
START = """\
from kwanzaa_nb.core.stage import start_stage
stage = start_stage("data", globals(), In)
"""


def stage_notebook(root, *cells, name="01_data", tags=("parameters",)):
    "Write a stage notebook: parameters, start_stage, then the cells given."
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": list(tags)})
    book.cells = [nbformat.v4.new_markdown_cell("# A stage"), parameters,
                  *[nbformat.v4.new_code_cell(cell) for cell in (START, *cells)]]
    path = root / "nbs" / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


def entry_of(root, stage="data"):
    return manifest.read_manifest(root / "outputs/tiny")["stages"][stage]


def stage_of(name, **overrides):
    return Stage(name, resolve_config("configs/tiny.yaml", overrides), "configs/tiny.yaml")


def kwanzaa(*words, **more):
    "Start `kwanzaa run`."
    command = [sys.executable, "-m", "kwanzaa_nb", "run", *words, "--config", "configs/tiny.yaml"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=STRANGER, **more)


def until(found, seconds=60):
    "Wait until something is there."
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
