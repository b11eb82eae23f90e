"One process holds a run folder: a second one is refused, and a killed one leaves no lock."

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stage_project import STRANGER, entry_of, kwanzaa, stage_notebook, stage_of, until

from kwanzaa_nb.core import lock, manifest
from kwanzaa_nb.core.lock import ABOVE, AT_WORK, FolderInUse
from kwanzaa_nb.run import cli, launch

HOLD = """\
import sys, time
from kwanzaa_nb.core import lock
lock.GRACE = float(sys.argv[3])
lock.hold(sys.argv[1], 'the stage train')
print('held', flush=True)
time.sleep(float(sys.argv[2]))"""
SENTENCE = (r"The stage (\w+) has been at work in (\S+) since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC "
            r"\(process (\d+) on \S+\): wait until it has ended, or name another")


def holder(folder, seconds=0, grace=5, **environment):
    "Start a process that holds a folder for some seconds."
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds), str(grace)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=STRANGER | environment)


@contextlib.contextmanager
def stranger(folder, **environment):
    "A process that nobody knows holds a folder inside the block."
    process = holder(folder, 60, **environment)
    assert process.stdout.readline() == "held\n", process.communicate()[1]
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "GRACE", 0.3)
    monkeypatch.delenv(ABOVE, raising=False)


def test_the_second_process_is_told_who_is_at_work(tmp_path, quick, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with stranger("outputs/x") as other:
        with pytest.raises(FolderInUse) as error:
            lock.hold("outputs/x", "the stage data")
        lock.hold("outputs/y", "the stage data")
        lock.leave("outputs/y")
    found = re.match(SENTENCE, str(error.value))
    assert found and found.groups() == ("train", "outputs/x", str(other.pid))


@pytest.mark.parametrize("word", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_a_kill_left_is_stale(tmp_path, quick, word):
    with stranger(tmp_path) as other:
        other.send_signal(word)
        other.wait()
    (told,) = (tmp_path / AT_WORK).glob("*.json")
    # after a restart of a container another process may have its number
    text = told.read_text().replace(f'"process": {other.pid}', f'"process": {os.getpid()}')
    told.write_text(text)
    lock.hold(tmp_path, "the stage data")
    lock.leave(tmp_path)
    assert not list((tmp_path / AT_WORK).glob("*.json"))


@pytest.mark.parametrize("damage", ["", "{", "[]", None])
def test_a_holder_whose_text_is_damaged_still_holds(tmp_path, quick, damage):
    with stranger(tmp_path):
        (text,) = (tmp_path / AT_WORK).glob("*.json")
        text.unlink() if damage is None else text.write_text(damage)
        with pytest.raises(FolderInUse, match="Another process is at work in .*: wait until it"):
            lock.hold(tmp_path, "the stage data")


def test_one_process_goes_on_and_on_and_its_children_are_let_in(tmp_path, quick):
    with lock.at_work(tmp_path, "the stage data"):
        with lock.at_work(tmp_path, "the stage train"):
            lock.hold(tmp_path, "the stage train")
            lock.leave(tmp_path)
            assert holder(tmp_path, **{ABOVE: os.environ[ABOVE]}).communicate()[0] == "held\n"
        refused = holder(tmp_path, grace=0).communicate()[1]
        assert f"(process {os.getpid()} on " in refused
    assert not os.environ.get(ABOVE)
    assert holder(tmp_path).communicate()[0] == "held\n"


def test_many_at_once_and_one_gets_it(tmp_path):
    processes = [holder(tmp_path, 4, 0.5) for _ in range(6)]
    told = [process.communicate() for process in processes]
    assert sum(out == "held\n" for out, _ in told) == 1
    assert sum("FolderInUse: The stage train has been at work" in err for _, err in told) == 5


def test_processes_of_one_training_are_no_strangers(tmp_path, quick, monkeypatch):
    team = {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}
    with stranger(tmp_path, **team):
        for name, value in (team | {"RANK": "1"}).items():
            monkeypatch.setenv(name, value)
        lock.check_free(tmp_path)
        monkeypatch.setenv("MASTER_PORT", "29502")
        with pytest.raises(FolderInUse):
            lock.check_free(tmp_path)


def test_a_file_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch, capsys):
    def none(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", none)
    with lock.at_work(tmp_path, "the stage data"):
        pass
    told = "lies where files can't be locked (No locks available), so nobody is kept out"
    assert told in capsys.readouterr().err


# ---- stages


def test_stages_of_one_process_follow_each_other_and_again(project, quick):
    for name in ("data", "train", "train"):
        stage = stage_of(name)
        assert list((stage.folder / AT_WORK).glob("*.lock"))
    stage.fail(ValueError("x"))
    assert holder(stage.folder).communicate()[0] == "held\n"
    stage.progress("a cell that is run again takes it back")
    refused = holder(stage.folder, grace=0).communicate()[1]
    assert re.search(SENTENCE, refused)[3] == str(os.getpid())
    stage.done()
    assert holder(stage.folder).communicate()[0] == "held\n"


def contents(root):
    return {path: path.read_bytes() for path in (root / "outputs").rglob("*") if path.is_file()}


def test_a_stage_that_is_refused_writes_nothing(project, quick):
    stage_of("data").done(records=3)
    stage_notebook(project, "stage.done()")
    with stranger("outputs/tiny"):
        before = contents(project)
        for attempt in (lambda: stage_of("train"),
                        lambda: launch.run_stage("data", "configs/tiny.yaml", log=str),
                        lambda: launch.run_all("configs/tiny.yaml", ("data",), log=str)):
            with pytest.raises(FolderInUse):
                attempt()
        assert contents(project) == before
        for words in (["verdict", "outputs/tiny"], ["runs"], ["report", "outputs/tiny"]):
            assert cli.main(words) == 0, "looking needs no lock"


def test_two_commands_at_once(project):
    "Both start in the same moment: one works to its end, the other says so and touches nothing."
    stage_notebook(project, "import time; time.sleep(9)", "stage.progress('in the middle')",
                   "stage.done(records=1)")
    both = [kwanzaa("data") for _ in range(2)]
    told = [process.communicate(timeout=120) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    refused = next(err for process, (_, err) in zip(both, told) if process.returncode == 2)
    assert re.match(SENTENCE, refused) and len(refused.strip().splitlines()) == 1
    assert entry_of(project)["status"] == "done"
    assert launch.unexecuted(project / "outputs/tiny/notebooks/01_data.ipynb") == []
    progress = (project / "outputs/tiny" / manifest.PROGRESS).read_text()
    assert progress.count("in the middle") == 1


def test_papermill_beside_a_command(project):
    "A notebook that is run by something else than the command is kept out, and keeps out."
    notebook = stage_notebook(project, "import time; time.sleep(90)", "stage.done()")
    words = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb",
             "-p", "config", "configs/tiny.yaml"]
    options = {"capture_output": True, "text": True, "env": STRANGER, "timeout": 90}
    first = kwanzaa("data")
    until(lambda: Path("outputs/tiny/manifest.json").exists())
    second = subprocess.run(words, **options)
    assert second.returncode and re.search(f"FolderInUse: {SENTENCE}", second.stderr)
    assert entry_of(project)["status"] == "running"
    first.send_signal(signal.SIGKILL)  # its kernel sees that, and ends
    first.communicate()
    stage_notebook(project, "stage.done()")
    again = subprocess.run(words, **options)
    assert again.returncode == 0, again.stderr[-2000:]
    assert entry_of(project)["status"] == "done"


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_a_second_training_is_refused_in_all_its_processes(project, quick, monkeypatch, capsys,
                                                           rank):
    from kwanzaa_nb.train import command as train

    monkeypatch.setattr(train, "PATIENCE", 0)
    first = stage_of("train")
    first.progress("at work")
    lock.leave(first.folder)
    before = [Path("outputs/tiny", name).read_bytes() for name in ("manifest.json", "progress.log")]
    team = {} if rank is None else {"RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    with stranger("outputs/tiny", **team):
        for name, value in (team and team | {"RANK": rank, "MASTER_PORT": "2"}).items():
            monkeypatch.setenv(name, value)
        assert train.main(["--config", "configs/tiny.yaml"]) == 1
        err = capsys.readouterr().err
        assert err == "" if rank == "1" else re.match(SENTENCE, err) and len(err.splitlines()) == 1
        stage = object.__new__(train.SilentStage)
        stage.folder, stage.name, stage.entry = first.folder, "train", dict(first.entry)
        monkeypatch.setenv("RANK", "1")
        train.report_failure(stage, KeyboardInterrupt())
    assert before == [Path("outputs/tiny", name).read_bytes()
                      for name in ("manifest.json", "progress.log")]
