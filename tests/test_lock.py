"A run folder is one process's: whoever comes second is told so, and a lock that a kill left behind is none."

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_runs import CONFIG, REPOSITORY, entry_of, project, stage_notebook, stage_of  # noqa: F401

from kwanzaa_nb.run import launch
from kwanzaa_nb.core import manifest
from kwanzaa_nb.core import lock
from kwanzaa_nb.run import cli
from kwanzaa_nb.core.lock import ABOVE, AT_WORK, FolderInUse

STRANGER = {name: value for name, value in os.environ.items() if name != ABOVE} | {"PYTHONPATH": str(REPOSITORY)}
HOLD = "import sys, time\nfrom kwanzaa_nb.core import lock\nlock.hold(sys.argv[1], 'the stage train')\nprint('held', flush=True)\ntime.sleep(float(sys.argv[2]))"
SENTENCE = r"The stage (\w+) is at work in (\S+) since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(process (\d+) on \S+\): wait until it has ended, or name another"


def stranger(folder, seconds=60, **environment):
    "A process of nobody's that holds a folder."
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=STRANGER | environment)
    assert process.stdout.readline() == "held\n", process.communicate()[1]
    return process


def kwanzaa(*words, **more):
    return subprocess.Popen([sys.executable, "-m", "kwanzaa_nb", "run", *words, "--config", "configs/tiny.yaml"], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=STRANGER, **more)


def until(found, seconds=60):
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "GRACE", 0.3)
    monkeypatch.delenv(ABOVE, raising=False)


def test_the_second_process_is_told_who_is_at_work(tmp_path, quick, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = stranger("outputs/x")
    with pytest.raises(FolderInUse) as error:
        lock.hold("outputs/x", "the stage data")
    assert (found := re.match(SENTENCE, str(error.value))) and found.groups() == ("train", "outputs/x", str(other.pid))
    lock.hold("outputs/y", "the stage data")
    lock.leave("outputs/y")
    other.kill()
    other.wait()


@pytest.mark.parametrize("word", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_a_kill_left_is_stale(tmp_path, quick, word):
    other = stranger(tmp_path)
    other.send_signal(word)
    other.wait()
    assert list((tmp_path / AT_WORK).glob("*.json"))
    lock.hold(tmp_path, "the stage data")
    lock.leave(tmp_path)
    assert not list((tmp_path / AT_WORK).glob("*.json"))


def test_a_process_number_that_lives_again_is_no_holder(tmp_path, quick):
    "As after a restart of a container, where numbers begin anew."
    other = stranger(tmp_path)
    (text,) = (tmp_path / AT_WORK).glob("*.json")
    other.kill()
    other.wait()
    text.write_text(text.read_text().replace(f'"process": {other.pid}', f'"process": {os.getpid()}'))
    lock.hold(tmp_path, "the stage data")
    lock.leave(tmp_path)


@pytest.mark.parametrize("damage", ["", "{", "[]", None])
def test_a_holder_whose_text_is_damaged_still_holds(tmp_path, quick, damage):
    other = stranger(tmp_path)
    (text,) = (tmp_path / AT_WORK).glob("*.json")
    text.unlink() if damage is None else text.write_text(damage)
    with pytest.raises(FolderInUse, match="Another process is at work in .*: wait until it has ended"):
        lock.hold(tmp_path, "the stage data")
    other.kill()
    other.wait()


def test_one_process_goes_on_and_on_and_its_children_are_let_in(tmp_path, quick):
    with lock.at_work(tmp_path, "the stage data"):
        with lock.at_work(tmp_path, "the stage train"):
            lock.hold(tmp_path, "the stage train")
            lock.leave(tmp_path)
            child = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path), "0"], capture_output=True, text=True, env=STRANGER | {ABOVE: os.environ[ABOVE]})
            assert child.stdout == "held\n", child.stderr
        refused = subprocess.run([sys.executable, "-c", HOLD.replace("lock.hold", "lock.GRACE = 0; lock.hold"), str(tmp_path), "0"], capture_output=True, text=True, env=STRANGER)
        assert f"(process {os.getpid()} on " in refused.stderr
    assert not os.environ.get(ABOVE)
    stranger(tmp_path, 0).wait()


def test_many_at_once_and_one_gets_it(tmp_path):
    code = HOLD.replace("lock.hold", "lock.GRACE = 0.5; lock.hold")
    all_of_them = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "4"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=STRANGER)
                   for _ in range(6)]
    told = [process.communicate() for process in all_of_them]
    assert sum(out == "held\n" for out, _ in told) == 1
    assert sum("FolderInUse: The stage train is at work" in err for _, err in told) == 5


def test_processes_of_one_training_are_no_strangers(tmp_path, quick, monkeypatch):
    other = stranger(tmp_path, RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29501")
    for name, value in {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}.items():
        monkeypatch.setenv(name, value)
    lock.check_free(tmp_path)
    monkeypatch.setenv("MASTER_PORT", "29502")
    with pytest.raises(FolderInUse):
        lock.check_free(tmp_path)
    other.kill()
    other.wait()


def test_a_file_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch, capsys):
    import errno

    def none(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", none)
    with lock.at_work(tmp_path, "the stage data"):
        pass
    assert "lies where files can't be locked (No locks available), so nobody is kept out" in capsys.readouterr().err


# ---- stages


def test_stages_of_one_process_follow_each_other_and_again(project, quick):  # noqa: F811
    for name in ("data", "train", "train"):
        stage = stage_of(name)
        assert list((stage.folder / AT_WORK).glob("*.lock"))
    stage.fail(ValueError("x"))
    stranger(project / "outputs/tiny", 0).wait()
    stage.progress("a cell that is run again takes it back")
    other = subprocess.run([sys.executable, "-c", HOLD.replace("lock.hold", "lock.GRACE = 0; lock.hold"), "outputs/tiny", "0"], capture_output=True, text=True, env=STRANGER)
    assert re.search(SENTENCE, other.stderr)[3] == str(os.getpid())
    stage.done()
    stranger(project / "outputs/tiny", 0).wait()


def test_a_stage_that_is_refused_writes_nothing(project, quick):  # noqa: F811
    stage_of("data").done(records=3)
    other = stranger("outputs/tiny")
    before = {path: path.read_bytes() for path in (project / "outputs").rglob("*") if path.is_file()}
    for attempt in (lambda: stage_of("train"), lambda: launch.run_stage("data", "configs/tiny.yaml", log=str),
                    lambda: launch.run_all("configs/tiny.yaml", ("data",), log=str)):
        stage_notebook(project, "stage.done()")
        with pytest.raises(FolderInUse):
            attempt()
    assert {path: path.read_bytes() for path in (project / "outputs").rglob("*") if path.is_file()} == before
    assert cli.main(["verdict", "outputs/tiny"]) == cli.main(["runs"]) == cli.main(["report", "outputs/tiny"]) == 0, "looking needs no lock"
    other.kill()
    other.wait()


def test_two_commands_at_once(project):  # noqa: F811
    "Both start in the same moment: one works to its end, the other says so and touches nothing."
    stage_notebook(project, "import time; time.sleep(9)", "stage.progress('in the middle')", "stage.done(records=1)")
    both = [kwanzaa("data") for _ in range(2)]
    told = [process.communicate(timeout=120) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    refused = next(err for process, (_, err) in zip(both, told) if process.returncode == 2)
    assert re.match(SENTENCE, refused) and "Traceback" not in refused and len(refused.strip().splitlines()) == 1
    assert entry_of(project)["status"] == "done" and launch.unexecuted(project / "outputs/tiny/notebooks/01_data.ipynb") == []
    assert (project / "outputs/tiny" / manifest.PROGRESS).read_text().count("in the middle") == 1


def test_papermill_beside_a_command(project):  # noqa: F811
    "A notebook that is run by something else than the command is kept out, and keeps out."
    notebook = stage_notebook(project, "import time; time.sleep(30)", "stage.done()")
    first = kwanzaa("data")
    until(lambda: Path("outputs/tiny/manifest.json").exists())
    words = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb", "-p", "config", "configs/tiny.yaml"]
    second = subprocess.run(words, capture_output=True, text=True, env=STRANGER, timeout=60)
    assert second.returncode and re.search(f"FolderInUse: {SENTENCE}", second.stderr)
    assert entry_of(project)["status"] == "running"
    first.send_signal(signal.SIGKILL)  # its kernel sees that, and ends
    first.wait()
    stage_notebook(project, "stage.done()")
    again = subprocess.run(words, capture_output=True, text=True, env=STRANGER, timeout=60)
    assert again.returncode == 0, again.stderr[-2000:]
    assert entry_of(project)["status"] == "done"


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_a_second_training_is_refused_in_all_its_processes(project, quick, monkeypatch, capsys, rank):  # noqa: F811
    from kwanzaa_nb.train import command as train

    monkeypatch.setattr(train, "PATIENCE", 0)
    first = stage_of("train")
    first.progress("at work")
    before, text = Path("outputs/tiny/manifest.json").read_bytes(), Path("outputs/tiny/progress.log").read_bytes()
    lock.leave(first.folder)
    other = stranger("outputs/tiny", **({} if rank is None else {"RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}))
    if rank is not None:
        for name, value in {"RANK": rank, "MASTER_ADDR": "a", "MASTER_PORT": "2"}.items():
            monkeypatch.setenv(name, value)
    assert train.main(["--config", "configs/tiny.yaml"]) == 1
    err = capsys.readouterr().err
    assert err == "" if rank == "1" else re.match(SENTENCE, err) and len(err.splitlines()) == 1
    stage = object.__new__(train.SilentStage)
    stage.folder, stage.name, stage.entry = first.folder, "train", dict(first.entry)
    monkeypatch.setenv("RANK", "1")
    train.report_failure(stage, KeyboardInterrupt())
    assert Path("outputs/tiny/manifest.json").read_bytes() == before and Path("outputs/tiny/progress.log").read_bytes() == text
    other.kill()
    other.wait()
