"""Sweeps: checks before the first run, completed runs that are skipped, runs that fail."""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from kwanzaa_nb.run import cli
from kwanzaa_nb.core.config import ConfigError, load_config
from kwanzaa_nb.core.manifest import StageError
from kwanzaa_nb.core.stage import Stage
from kwanzaa_nb.run.sweeps import Sweep, SweepError, choose, read_sweep, run_sweep, sweep_rows

ROOT = Path(__file__).resolve().parents[1]
GOOD = {"name": "s", "config": "configs/demo.cpu.yaml", "grid": {"adapter.r": [8, 16]}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "demo.cpu.yaml", tmp_path / "configs")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = kwanzaa_nb\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(project, values):
    with open(project / "sweep.yaml", "w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)
    return project / "sweep.yaml"


@pytest.mark.parametrize("change, words", [({"grids": {}}, "unknown key"), ({"grid": {}}, "empty"),
                                           ({"grid": {"adapter.r": 8}}, "expected a list"),
                                           ({"grid": {"run.seed": [1, 2, 1]}}, "value twice"),
                                           ({"stages": ["publish"]}, "publish"),
                                           ({"select": "luck"}, "no metric"),
                                           ({"overrides": {"data.eval_file": "x"}},
                                            "set by the sweep"), ({"name": "a/b"}, "folder"),
                                           ({"config": 3}, "int")])
def test_wrong_files_are_refused(project, change, words):
    with pytest.raises(SweepError, match=words):
        read_sweep(written(project, GOOD | change))


@pytest.mark.parametrize("content, words", [(b"", "configs/sweeps"),
                                            (b"3", "write name:, config: and grid:"),
                                            (b"a: [", "not YAML"), (b"\xff", "UTF-8"),
                                            (b"name: a\nname: b\n", "written twice"),
                                            (None, "no such file")])
def test_files_that_are_no_sweep_are_refused(project, content, words):
    if content is not None:
        (project / "sweep.yaml").write_bytes(content)
    with pytest.raises(SweepError, match=words):
        read_sweep(project / "sweep.yaml")


def test_every_combination_must_be_a_config(project):
    with pytest.raises(ConfigError, match="adapter.r"):
        read_sweep(written(project, GOOD | {"grid": {"adapter.r": [8, -1]}}))


class Runner:
    "Stands for `run_stage`: closes the stage in the manifest, or fails where it is told to."

    def __init__(self, fail=()):
        self.fail, self.calls = fail, []

    def __call__(self, stage, config, overrides, log):
        settings = load_config(config, overrides)
        self.calls.append((stage, settings.adapter.r, settings.data.eval_file))
        opened = Stage(stage, settings, config)
        if (stage, settings.adapter.r) in self.fail:
            opened.fail(StageError("out of <memory>"))
            raise StageError("out of <memory>")
        opened.done()


def test_failures_are_listed_and_done_runs_are_left_out(project):
    sweep, first = read_sweep(written(project, GOOD)), Runner(fail=[("train", 8)])
    rows = run_sweep(sweep, str, first)
    assert [call[:2] for call in first.calls] == [("train", 8), ("train", 16), ("evaluate", 16)]
    assert [row["status"] for row in rows] == ["failed",
                                               "done"] and rows[0]["problem"] == "out of <memory>"
    page = (project / "outputs/s/sweep.html").read_text(encoding="utf-8")
    assert "out of &lt;memory&gt;" in page and "out of <memory>" not in page and "r=16" in page
    table = (project / "outputs/s/results.csv").read_text(encoding="utf-8")
    assert "failed,out of <memory>" in table
    second = Runner()
    assert [row["status"] for row in run_sweep(sweep, str, second)] == ["done", "done"]
    assert [call[:2] for call in second.calls] == [("train", 8),
                                                   ("evaluate",
                                                    8)], "what was done is not run again"
    third = Runner()
    run_sweep(Sweep(**{**vars(sweep), "overrides": {"training.max_steps": 7}}), str, third)
    assert len(third.calls) == 4, "another config is another run"


def test_the_evaluation_set_is_never_judged(project):
    sweep, runner = read_sweep(written(project,
                                       GOOD | {"stages": ["evaluate", "data", "train"]})), Runner()
    run_sweep(sweep, str, runner)
    assert [call[0] for call in runner.calls[:3]] == ["data", "train", "evaluate"]
    assert {call[2] for call in runner.calls
            if call[0] == "evaluate"} == {"outputs/s/r=8/data/dev.jsonl",
                                          "outputs/s/r=16/data/dev.jsonl"}
    chosen = load_config(project / "outputs/s/r=8/config.yaml")
    assert chosen.data.eval_file == "outputs/s/r=8/data/eval.jsonl"
    assert chosen.data.dev_file, "the chosen run's own config has both sets"
    without = read_sweep(written(project, GOOD | {"name": "t",
                                                  "overrides": {"data.dev_file": None,
                                                                "data.corpus": None,
                                                                "data.questions": None}}))
    assert all("development set" in row["problem"] or row["status"] == "not run"
               for row in run_sweep(without, str, Runner()))


def test_the_choice_says_how_sure_it_is():
    def row(name, value, low, high):
        return {"run": name, "rates": {"grounded_answer_rate": {"value": value, "low": low,
                                                                "high": high, "total": 9}}}
    said = choose([row("a", 0.5, 0.4, 0.6), row("b", 0.9, 0.8, 1.0), {"run": "c", "rates": {}}],
                  "grounded_answer_rate")
    assert "b, 0.90" in said and "luck" not in said and "1 of 3" in said
    assert "1 other run overlaps" in choose([row("a", 0.85, 0.7, 0.9), row("b", 0.9, 0.8, 1.0)],
                                            "grounded_answer_rate")


def test_the_committed_sweeps_are_sound(monkeypatch):
    monkeypatch.chdir(ROOT)
    files = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
    assert files and all(len(read_sweep(path).runs()) > 1 for path in files)


def test_the_command(project, capsys):
    assert cli.main(["sweep", "--table", str(written(project, GOOD))]) == 0
    assert "not run" in capsys.readouterr().out and (project / "outputs/s/sweep.html").exists()
    assert cli.main(["sweep", str(written(project, GOOD | {"grid": 1}))]) == 2
    assert [row["status"] for row in sweep_rows(read_sweep(written(project,
                                                                   GOOD)))] == ["not run"] * 2
