"""The examples for SkyPilot and Airflow, checked without either."""

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from ruamel.yaml import YAML

from kwanzaa_nb.run.cli import parser
from kwanzaa_nb.core.config import resolve_config

ROOT = Path(__file__).resolve().parents[1]


def test_skypilot_commands_are_commands_of_ours():
    task = YAML(typ="safe", pure=True).load((ROOT / "examples" / "skypilot.yaml").read_text(encoding="utf-8"))
    assert {"name", "resources", "envs", "setup", "run"} <= set(task)
    text = re.sub(r"\$(\w+)", lambda found: task["envs"][found[1]], task["run"])
    commands = [shlex.split(line) for line in text.splitlines()
                if line.strip() and not line.startswith("#")]
    assert [words[:2] for words in commands] == [["kwanzaa", "run"], ["kwanzaa", "run"],
                                                 ["kwanzaa", "verdict"]]
    for words in commands:
        given = parser().parse_args(words[1:])
        if words[1] == "run":
            config = resolve_config(ROOT / given.config, dict(given.set))
            assert config.adapter.r == 16 and config.run.output_dir == "outputs/sweep/r=16"
    assert config.data.dev_file is None and config.data.eval_file.endswith("_dev.jsonl"), "a choice is made by the development set"


def test_airflow_dag_runs_the_stages_in_order(monkeypatch):
    made, order = [], []

    class Operator:
        def __init__(self, task_id, input_nb, output_nb, parameters):
            self.task_id, self.input_nb, self.parameters = task_id, input_nb, parameters
            made.append(self)

        def __rshift__(self, other):
            order.append((self.task_id, other.task_id))

    class Dag:
        def __init__(self, dag_id, schedule, catchup):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    names = ("airflow", "airflow.providers", "airflow.providers.papermill", "airflow.providers.papermill.operators",
             "airflow.providers.papermill.operators.papermill")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["airflow"].DAG = Dag
    sys.modules[names[-1]].PapermillOperator = Operator
    source = (ROOT / "examples" / "airflow_dag.py").read_text(encoding="utf-8")
    exec(compile(source, "airflow_dag.py", "exec"), {})
    assert order == [("01_data", "02_train"), ("02_train", "03_evaluate"),
                     ("03_evaluate", "04_publish")]
    for task in made:
        assert (ROOT / task.input_nb).is_file()
        assert resolve_config(ROOT / task.parameters["config"], task.parameters["overrides"]).run.output_dir == "outputs/airflow"


@pytest.mark.parametrize("name", ["skypilot.yaml", "airflow_dag.py"])
def test_examples_say_that_they_were_not_run(name):
    assert "Not run" in (ROOT / "examples" / name).read_text(encoding="utf-8")
