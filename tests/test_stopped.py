"Stages that are interrupted, killed or out of disk leave whole files, and can be run again."

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
from stage_project import STRANGER, entry_of, kwanzaa, stage_notebook, until

from kwanzaa_nb.core import manifest
from kwanzaa_nb.run import launch

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
    "Write a notebook of that stage."
    path = stage_notebook(root, *cells, name=manifest.NOTEBOOKS[stage])
    text = path.read_text(encoding="utf-8")
    text = text.replace('start_stage(\\"data\\"', f'start_stage(\\"{stage}\\"')
    path.write_text(text, encoding="utf-8")


def check_whole(root):
    "Every file that is there can be read."
    manifest.read_manifest(root / "outputs/tiny")
    for path in (root / "outputs/tiny").glob("notebooks/*.ipynb"):
        json.loads(path.read_text(encoding="utf-8"))
    if (root / "data/train.jsonl").exists():
        lines = (root / "data/train.jsonl").read_text().splitlines()
        assert len(lines) == 2000 and len({json.loads(line)["step"] for line in lines}) == 1


def check_runs_again(root):
    working(root, quick=True)
    again = kwanzaa("data")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, out + err
    check_whole(root)
    assert entry_of(root)["status"] == "done"
    assert launch.unexecuted(root / "outputs/tiny/notebooks/01_data.ipynb") == []


@pytest.mark.parametrize("words, pause", [
    ((signal.SIGINT, signal.SIGINT), 0.1), ((signal.SIGINT, signal.SIGTERM), 0.05),
    ((signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGINT), 0.03)])
def test_stopped_more_than_once(project, words, pause):
    working(project)
    process = kwanzaa("data", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until(lambda: Path("outputs/tiny/progress.log").exists())
    for word in words:
        process.send_signal(word)
        time.sleep(pause)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGTERM) and "Traceback" not in err
    assert entry_of(project)["status"] == "interrupted"
    check_whole(project)
    check_runs_again(project)


# ---- a training is asked first


SAVING = """
import signal, time
from pathlib import Path
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
Path("began").touch()
deadline = time.monotonic() + 60
while time.monotonic() < deadline and not (asked and {saves}):
    time.sleep(0.02)
Path("saved").touch()
raise KeyboardInterrupt
"""
UNREADY = "import time; from pathlib import Path; Path('began').touch(); time.sleep(60)"


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["train", "improve"])
def test_a_training_may_save_its_step_before_it_stops(project, stage, word):
    named(project, stage, SAVING.format(saves=True), "stage.done()")
    process = kwanzaa(stage, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    until(lambda: Path("began").exists())
    process.send_signal(word)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err and Path("saved").exists()
    assert "asked to stop: the step that runs is saved first" in out and "run the same command to resume" in err
    assert entry_of(project, stage)["status"] == "interrupted"


@pytest.mark.parametrize("source, words", [(SAVING.format(saves=False), 2), (UNREADY, 1)])
def test_a_training_that_does_not_save_is_stopped_all_the_same(project, source, words):
    named(project, "train", source, "stage.done()")
    process = kwanzaa("train", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    until(lambda: Path("began").exists())
    for _ in range(words):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err and not Path("saved").exists()
    assert entry_of(project, "train")["status"] == "interrupted"


@pytest.mark.parametrize("seed", range(2))
def test_killed_anywhere(project, seed):
    working(project)
    process = kwanzaa("data")
    time.sleep(random.Random(seed).uniform(0.3, 5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    check_whole(project)
    assert entry_of(project)["status"] in ("not_run", "running")
    check_runs_again(project)


# ---- disks


@pytest.mark.parametrize("stage", manifest.STAGES)
def test_a_folder_that_can_t_be_written(project, stage):
    named(project, stage, "stage.done()")
    Path("outputs").mkdir()
    Path("outputs/tiny").write_text("a file")
    process = kwanzaa(stage)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == ""
    assert re.fullmatch(
        rf"The stage {stage} failed. outputs/tiny\S* can't be used \(a file stands where a folder "
        r"is to be\): mend that, or name another place \(run.output_dir for what a run writes\), "
        r"then run the same again.\n", err)
    Path("outputs/tiny").unlink()
    process = kwanzaa(stage)
    assert process.communicate(timeout=60) and process.returncode == 0


WRITE = """\
stage.progress('x' * 100)
from kwanzaa_nb.core.files import write_atomically
write_atomically('outputs/tiny/made.txt', 'x' * 30000)
"""


@pytest.mark.parametrize("stage, limit", [("data", 0), ("train", 400), ("evaluate", 1500),
                                          ("publish", 6000), ("data", 20000)])
def test_no_space_is_left(project, stage, limit):
    "A limit on the size of files acts as a full disk: the first write beyond it fails."
    named(project, stage, WRITE, "stage.done()")

    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-B", "-m", "kwanzaa_nb", "run", stage,
               "--config", "configs/tiny.yaml"]
    options = {"capture_output": True, "text": True, "timeout": 90}
    places = {"IPYTHONDIR": os.devnull, "JUPYTER_RUNTIME_DIR": str(project / "run")}
    done = subprocess.run(command, env=STRANGER | places, preexec_fn=small, **options)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"No space is left to write .*: free some, or set run.output_dir to a folder "
                     r"on another disk. What was done is kept; run the same again", done.stderr)
    check_whole(project)
    assert not Path("outputs/tiny/made.txt").exists()
    again = subprocess.run(command, env=STRANGER, **options)
    assert again.returncode == 0, again.stderr
    assert entry_of(project, stage)["status"] == "done"
