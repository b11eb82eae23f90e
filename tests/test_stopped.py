"Stages that are stopped twice, killed or out of disk: a sentence, whole files, and the same command goes on."

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_lock import STRANGER, kwanzaa, until
from test_runs import entry_of, project, stage_notebook  # noqa: F401

from kwanzaa_nb.run import launch
from kwanzaa_nb.core import manifest


WORK = """\
import time
from kwanzaa_nb.core.files import write_atomically
for step in range(200):
    stage.progress(f"step {step}")
    write_atomically("data/train.jsonl", '{"step": %d}\\n' % step * 2000)
    stage.wrote("data/train.jsonl")
    if QUICK and step > 3:
        break
    time.sleep(0.02)
"""


def working(root, quick=False):
    stage_notebook(root, WORK.replace("QUICK", str(quick)), "stage.done(records=1)")


def named(root, stage, *cells):
    "A notebook of that stage."
    path = stage_notebook(root, *cells, name=manifest.NOTEBOOKS[stage])
    path.write_text(path.read_text(encoding="utf-8").replace('start_stage(\\"data\\"', f'start_stage(\\"{stage}\\"'), encoding="utf-8")


def whole(root):
    "What is there can be read."
    folder = root / "outputs/tiny"
    manifest.read_manifest(folder)
    for path in folder.glob("notebooks/*.ipynb"):
        json.loads(path.read_text(encoding="utf-8"))
    if (root / "data/train.jsonl").exists():
        rows = [json.loads(line) for line in (root / "data/train.jsonl").read_text().splitlines()]
        assert len(rows) == 2000 and len({row["step"] for row in rows}) == 1


def runs_again(root):
    working(root, quick=True)
    again = kwanzaa("data")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, out + err
    whole(root)
    assert entry_of(root)["status"] == "done" and launch.unexecuted(root / "outputs/tiny/notebooks/01_data.ipynb") == []


@pytest.mark.parametrize("words, pause", [((signal.SIGINT, signal.SIGINT), 0.1), ((signal.SIGINT, signal.SIGTERM), 0.05),
                                          ((signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGINT), 0.03)])
def test_stopped_more_than_once(project, words, pause):  # noqa: F811
    working(project)
    process = kwanzaa("data", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until(lambda: Path("outputs/tiny/progress.log").exists())
    for word in words:
        process.send_signal(word)
        time.sleep(pause)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGTERM) and "Traceback" not in err
    assert entry_of(project)["status"] == "interrupted"
    whole(project)
    runs_again(project)


@pytest.mark.parametrize("seed", range(2))
def test_killed_anywhere(project, seed):  # noqa: F811
    chance = random.Random(seed)
    working(project)
    process = kwanzaa("data")
    time.sleep(chance.uniform(0.3, 5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole(project)
    assert entry_of(project)["status"] in ("not_run", "running")
    runs_again(project)


# ---- disks


@pytest.mark.parametrize("stage", manifest.STAGES)
def test_a_folder_that_can_t_be_written(project, stage):  # noqa: F811
    named(project, stage, "stage.done()")
    Path("outputs").mkdir()
    Path("outputs/tiny").write_text("a file")
    process = kwanzaa(stage)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == ""
    assert re.fullmatch(rf"The stage {stage} failed. outputs/tiny\S* can't be used \(a file stands where a folder is to be\): mend that, or name another place "
                        r"\(run.output_dir for what a run writes\), then run the same again.\n", err)
    Path("outputs/tiny").unlink()
    process = kwanzaa(stage)
    assert process.communicate(timeout=60) and process.returncode == 0


@pytest.mark.parametrize("stage, limit", [("data", 0), ("train", 400), ("evaluate", 1500), ("publish", 6000), ("data", 20000)])
def test_no_space_is_left(project, stage, limit):  # noqa: F811
    "A limit on the size of files stands for a full disk: it is met by whatever is written first beyond it."
    named(project, stage, "stage.progress('x' * 100)\nfrom kwanzaa_nb.core.files import write_atomically\nwrite_atomically('outputs/tiny/made.txt', 'x' * 30000)",
          "stage.done()")

    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-B", "-m", "kwanzaa_nb", "run", stage, "--config", "configs/tiny.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env=STRANGER | {"IPYTHONDIR": os.devnull, "JUPYTER_RUNTIME_DIR": str(project / "run")}, preexec_fn=small, timeout=90)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"No space is left to write .*: free some, or set run.output_dir to a folder on another disk. What was done is kept; run the same again",
                     done.stderr), done.stderr
    whole(project)
    assert not Path("outputs/tiny/made.txt").exists()
    again = subprocess.run(command, capture_output=True, text=True, env=STRANGER, timeout=90)
    assert again.returncode == 0, again.stderr
    assert entry_of(project, stage)["status"] == "done"
