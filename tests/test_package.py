"""The core without torch, and the package outside of a checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

from kwanzaa_nb import cli
from kwanzaa_nb.runs import install_hint, shipped
from kwanzaa_nb.start import StartError, start_project

ROOT = Path(__file__).resolve().parents[1]
CORE = ("config", "errors", "answer", "prompt", "validation", "corpus", "records", "retrieval", "runs", "cli", "show_answer", "run_report", "overview",
        "sweeps", "start")
BLOCK = """
import sys, resource
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "trl", "peft", "datasets", "matplotlib", "IPython", "papermill", "openai", "llguidance"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code, folder=ROOT):
    return subprocess.run([sys.executable, "-c", BLOCK + code], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def cpu_seconds(lines):
    """Of a fresh process that runs `lines`, the interpreter's start among it: the least of three, for other jobs make any one longer."""
    code = f"{lines}\nimport resource\nused = resource.getrusage(resource.RUSAGE_SELF)\nprint(used.ru_utime + used.ru_stime)"
    done = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True) for _ in range(3)]
    return min(float(one.stdout.splitlines()[-1]) for one in done)


def test_the_core_imports_without_torch_in_less_cpu_than_torch_alone():
    core = "\n".join(f"import kwanzaa_nb.{name}" for name in CORE)
    done = run(core)
    assert done.returncode == 0, done.stderr
    assert cpu_seconds(core) < 0.75 * cpu_seconds("import torch"), "of the same machine in the same minute"


@pytest.mark.parametrize("words", [["--help"], ["config", "check", "configs/demo.cpu.yaml"], ["config", "show", "configs/demo.cpu.yaml"], ["runs"],
                                   ["validate", "data/training/kwanzaa_dev.jsonl"], ["sweep", "--help"]])
def test_commands_of_the_core_work_without_torch(words):
    done = run(f"from kwanzaa_nb.cli import main\nsys.exit(main({words!r}))")
    assert done.returncode == 0, done.stderr


def test_a_missing_extra_is_one_sentence(tmp_path):
    words = ["run", "data", "--config", str(ROOT / "configs" / "demo.cpu.yaml")]
    done = run(f"from kwanzaa_nb.cli import main\nsys.exit(main({words!r}))", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "papermill" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_hint_names_the_extra_of_the_stage():
    wanted = ['torch>=2.6; extra == "train"', 'torch>=2.6; extra == "eval"', "huggingface_hub>=1 ; extra == 'eval'"]
    assert "[eval]" in install_hint("torch.nn", "", wanted) and "[train]" in install_hint("torch", "train", wanted)
    assert "[eval]" in install_hint("huggingface_hub", "train", wanted) and install_hint("flask", "", wanted) == ""


def test_a_project_is_started_and_nothing_is_written_over(tmp_path, capsys, monkeypatch):
    assert cli.main(["init", str(tmp_path / "mine")]) == 0 and "kwanzaa run all" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "mine")
    assert cli.main(["config", "check", "configs/demo.cpu.yaml"]) == 0
    with pytest.raises(StartError, match="nothing is written over"):
        start_project(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "all"]) == 2 and "kwanzaa init" in capsys.readouterr().err


def test_the_wheel_brings_what_stages_need():
    "setup.py and MANIFEST.in list the same, and the lists find files."
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    patterns = source.partition("SHIPPED = (")[2].partition(")\n")[0].replace('"', "").split(", ")
    found = {pattern: list(ROOT.glob(pattern)) for pattern in patterns}
    assert len(found["nbs/0[1-4]_*.ipynb"]) == 4 and all(found.values())
    assert shipped("nbs/01_data.ipynb").is_file()
