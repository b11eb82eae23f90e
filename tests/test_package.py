"""The core without torch, each extra alone, and an installed package outside of a checkout."""

import ast
import configparser
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kwanzaa_nb.run import cli
from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.manifest import STAGES, StageError
from kwanzaa_nb.run.launch import (check_installed, extra_of, install_hint, run_all, run_stage,
                                   shipped)
from kwanzaa_nb.run.start import StartError, start_project

ROOT = Path(__file__).resolve().parents[1]
# Modules outside of the core, and the extras that bring what each is for.
EXTRAS = {
    "model.server": {"server", "eval"},  # asks
    "evaluate.inspect_task": {"inspect"},  # asks through inspect_ai
    "use.chat": {"chat", "server", "eval", "train"},  # tornado; kernels of notebooks bring it
    **dict.fromkeys(("core.plots", "evaluate.figures"), {"server", "eval", "train"}),  # plots
    **dict.fromkeys(("model.load", "model.packing"), {"eval", "train"}),  # a model in this process
    **dict.fromkeys(("model.grammar", "model.local"), {"eval", "train"}),  # it answers as it is trained
    "publish.export": {"eval"},  # a model that writes
    **dict.fromkeys(("model.fused", "bench.training", *(f"train.{name}" for name in (
        "__main__", "budget", "command", "extra", "improve", "live", "resume", "rewards", "selection",
        "token_cache", "trainer", "weights"))),
                    {"train"}),  # a model that is trained
    # these train, and ask what was trained: no single extra will do
    **dict.fromkeys(("bench.layouts", "bench.gpu"), set()),
}
PACKAGE = ROOT / "kwanzaa_nb"
MODULES = sorted(".".join(path.relative_to(PACKAGE).with_suffix("").parts)
                 for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
CORE = tuple(name for name in MODULES if name not in EXTRAS)
BLOCK = """
import sys, resource
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in (
                "torch", "transformers", "trl", "peft", "datasets", "matplotlib", "IPython",
                "papermill", "openai", "llguidance"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code, folder=ROOT):
    return subprocess.run([sys.executable, "-c", BLOCK + code], cwd=folder, capture_output=True,
                          text=True, timeout=300, check=False)


@pytest.mark.parametrize("words", [["--help"], ["config", "check", "configs/demo.cpu.yaml"],
                                   ["config", "show", "configs/demo.cpu.yaml"], ["runs"],
                                   ["validate", "data/training/kwanzaa_dev.jsonl"],
                                   ["sweep", "--help"]])
def test_commands_of_the_core_work_without_torch(words):
    done = run(f"from kwanzaa_nb.run.cli import main\nsys.exit(main({words!r}))")
    assert done.returncode == 0, done.stderr


SCORER = """import json, kwanzaa_nb
kwanzaa_nb.score
print(json.dumps(sorted(sys.modules)))"""


def test_to_import_the_scorer_loads_nothing_heavy():
    "It takes under 0.3 s so long as it needs neither arrays, nor a config, nor a run's folder."
    done = run(SCORER)
    assert done.returncode == 0, done.stderr
    heavy = {"numpy", "ruamel.yaml", "filelock", "papermill", "torch", "kwanzaa_nb.core.settings",
             "kwanzaa_nb.core.manifest", "kwanzaa_nb.core.stage"}
    loaded = set(json.loads(done.stdout))
    assert "kwanzaa_nb.evaluate.support" in loaded and not heavy & loaded


def listed(extra):
    "Requirements of the core and of an extra, from the place that setup.py reads."
    parser = configparser.ConfigParser(interpolation=None, delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return [word for key in ("requirements", *([f"{extra}_requirements"] if extra else []))
            for word in parser["DEFAULT"][key].split()]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(texts):
    "The distributions that requirements bring, with what those require."
    seen, left = set(), [Requirement(text) for text in texts]
    while left:
        one = left.pop()
        key = (normal(one.name), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            needs = importlib.metadata.requires(one.name) or []
        except importlib.metadata.PackageNotFoundError:  # of another system
            continue
        left += [need for need in map(Requirement, needs) if need.marker is None
                 or any(need.marker.evaluate({"extra": extra}) for extra in {"", *one.extras})]
    return {name for name, _ in seen}


TRY = """
import importlib, json, sys
from importlib.machinery import PathFinder
hidden, modules = json.loads(sys.argv[1])
real = PathFinder.find_spec
def find(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else real(name, path, target)
PathFinder.find_spec = staticmethod(find)
found = {}
for name in modules:
    try:
        importlib.import_module("kwanzaa_nb." + name)
    except ModuleNotFoundError as error:
        found[name] = error.name
print(json.dumps(found))
"""


@pytest.mark.parametrize("extra", ["", "chat", "server", "eval", "train"])
def test_a_module_imports_with_its_extra_alone_and_every_other_module_is_of_the_core(extra):
    brought, light = closure(listed(extra)), ("", "chat", "server")
    hidden = [top for top, owners in importlib.metadata.packages_distributions().items()
              if not {normal(owner) for owner in owners} & brought]
    assert "numpy" not in hidden and ("torch" in hidden) == (extra in light)
    given = json.dumps([[name for name in hidden if name != "kwanzaa_nb"], MODULES])
    done = subprocess.run([sys.executable, "-c", TRY, given], cwd=ROOT, capture_output=True,
                          text=True, timeout=300, check=True)
    missing = json.loads(done.stdout.splitlines()[-1])
    others = {name for name, extras in EXTRAS.items() if extra not in extras}
    assert set(missing) == others if extra in light else set(missing) <= others, missing


def test_each_extra_of_the_settings_is_one_of_setup():
    "Also the smaller one is part of the larger, so that a hint can name the smallest."
    names = re.findall(r'^        "(\w+)": listed', (ROOT / "setup.py").read_text(encoding="utf-8"),
                       re.MULTILINE)
    assert set(names) == {"train", "eval", "server", "score", "inspect", "gguf", "documents", "chat",
                          "embeddings", "docs", "dev"}
    assert set(listed("server")) < set(listed("eval"))
    assert not closure(listed("server")) & {"torch", "transformers", "peft", "huggingface-hub"}


def settings(**changes):
    return load_config(ROOT / "configs" / "demo.cpu.yaml",
                       {key.replace("__", "."): value for key, value in changes.items()})


SERVED = {"evaluation__server": "http://127.0.0.1:9/v1"}


def test_each_stage_names_the_smallest_extra_that_it_can_do_with():
    assert [extra_of(stage, settings()) for stage in STAGES] == ["train", "train", "eval", "eval"]
    assert [extra_of(stage, settings(**SERVED)) for stage in STAGES] == ["train", "train", "server",
                                                                         "eval"]


ABSENT = ['no-such-trainer>=1; extra == "train"', 'no_such.judge>=1,<2 ; extra == "eval"',
          "no-such-client; extra == 'server'", 'bitsandbytes; extra == "train"',
          'numpy; extra == "eval"', "no-such-core>=1"]


@pytest.mark.parametrize("stages, changes, names, extras", [
    (["train"], {}, "no-such-trainer is", "train"),
    (["data", "evaluate", "publish"], {}, "no-such-trainer, no_such.judge are", "train,eval"),
    (["evaluate"], SERVED, "no-such-client is", "server"),
    (["publish"], {"publishing__exports": ["merged"]}, "no_such.judge is", "eval"),
])
def test_what_stages_lack_is_said_before_anything_runs(monkeypatch, stages, changes, names, extras):
    sentence = (f"{names} not installed: pip install 'kwanzaa_nb[{extras}]' brings what these "
                "stages need.")
    with pytest.raises(StageError, match=f"^{re.escape(sentence)}$"):
        check_installed(stages, settings(**changes), ABSENT)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ABSENT)
    wanted = {key.replace("__", "."): value for key, value in changes.items()}
    for run in (lambda: run_all(ROOT / "configs" / "demo.cpu.yaml", stages, wanted,
                                log=pytest.fail),
                lambda: run_stage(stages[0], ROOT / "configs" / "demo.cpu.yaml", wanted,
                                  log=pytest.fail)):
        with pytest.raises(StageError, match="not installed: pip install"):
            run()


def test_what_is_installed_or_can_be_done_without_is_not_asked_for():
    check_installed(STAGES, settings(), ['bitsandbytes-of-no-one; extra == "docs"',
                                         'gguf>=0.17; extra == "train"', 'numpy; extra == "eval"',
                                         'Pydantic; extra == "eval"'])
    check_installed(["publish"], settings(), ABSENT)


def test_cards_and_uploads_need_the_hubs_client_alone(monkeypatch):
    monkeypatch.setattr("kwanzaa_nb.run.launch._is_installed", lambda package: False)
    wanted = ['torch; extra == "eval"', 'huggingface_hub>=1; extra == "eval"']
    with pytest.raises(StageError, match="^huggingface_hub is not installed"):
        check_installed(["publish"], settings(), wanted)


def test_ranges_end_before_what_is_announced_to_break():
    ends = {Requirement(word).name: str(Requirement(word).specifier)
            for extra in ("train", "eval", "server") for word in listed(extra)}
    assert "<2" in ends["trl"].split(",") and "<4" in ends["openai"].split(",")
    for extra in ("eval", "server"):
        assert "openai>=1.60,<4" in listed(extra)


# Pythons that are too old


INIT = (ROOT / "kwanzaa_nb" / "__init__.py").read_text(encoding="utf-8")
OLD = re.compile(r"kwanzaa_nb needs Python 3\.11 or newer, and this is Python "
                 r"(\d+\.\d+\.\d+) \(.*\): install it into a newer one, .*python3\.11 -m venv.*\.")


@pytest.mark.parametrize("minor", range(3, 12))
def test_the_packages_own_file_can_be_read_by_an_older_python(minor):
    ast.parse(INIT, feature_version=(3, minor))
    assert INIT.isascii() and not [node for node in ast.walk(ast.parse(INIT))
                                   if isinstance(node,
                                                 (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr))
                                   or isinstance(node, ast.FunctionDef) and node.returns]
    named = [line for line in (ROOT / "settings.ini").read_text(encoding="utf-8").splitlines()
             if line.startswith("min_python")]
    assert named == ["min_python = 3.11"], "__init__.py and the Makefile name it too"


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 8, 1), (3, 9, 18), (3, 10, 13), (3, 11, 0),
                                     (3, 14, 2)])
def test_an_older_python_is_refused_before_anything_else_is_imported(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", (*version, "final", 0))
    names = {"__name__": "kwanzaa_nb"}
    if version >= (3, 11):
        exec(compile(INIT, "__init__.py", "exec"), names)
        assert "logging" in names
        return
    with pytest.raises(SystemExit) as caught:
        exec(compile(INIT, "__init__.py", "exec"), names)
    assert OLD.fullmatch(str(caught.value))[1] == ".".join(map(str,
                                                               version)) and "logging" not in names


def test_a_missing_extra_is_one_sentence(tmp_path):
    words = ["run", "data", "--config", str(ROOT / "configs" / "demo.cpu.yaml")]
    done = run(f"from kwanzaa_nb.run.cli import main\nsys.exit(main({words!r}))", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "papermill" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_hint_names_the_extra_of_the_stage():
    wanted = ['torch>=2.6; extra == "train"', 'torch>=2.6; extra == "eval"',
              "huggingface_hub>=1 ; extra == 'eval'"]
    assert "[eval]" in install_hint("torch.nn", "", wanted) and "[train]" in install_hint("torch",
                                                                                          "train",
                                                                                          wanted)
    assert "[eval]" in install_hint("huggingface_hub", "train", wanted)
    assert install_hint("flask", "", wanted) == ""


def test_a_project_is_started_and_nothing_is_written_over(tmp_path, capsys, monkeypatch):
    assert cli.main(["init",
                     str(tmp_path / "mine")]) == 0 and "kwanzaa run all" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "mine")
    assert cli.main(["config", "check", "configs/demo.cpu.yaml"]) == 0
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "all"]) == 2 and "kwanzaa init" in capsys.readouterr().err


def test_a_second_start_adds_what_is_missing_and_keeps_what_is_there(tmp_path):
    start_project(tmp_path)
    (tmp_path / "configs" / "smoke.yaml").write_text("mine", encoding="utf-8")
    (tmp_path / "data" / "corpus" / "kwanzaa.jsonl").unlink()
    assert start_project(tmp_path) == ["data/corpus/kwanzaa.jsonl"]
    assert (tmp_path / "configs" / "smoke.yaml").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "configs" / "accelerate" / "ddp.yaml").exists()


@pytest.mark.parametrize("settings", [None, "[DEFAULT]\nlib_name = something_else\n",
                                      "no settings at all"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, settings):
    (tmp_path / "data" / "corpus").mkdir(parents=True)
    (tmp_path / "data" / "corpus" / "kwanzaa.jsonl").write_text("theirs", encoding="utf-8")
    if settings:
        (tmp_path / "settings.ini").write_text(settings, encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StartError, match="nothing is written over"):
        start_project(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["file", "file/in it", "with a file", "with a file/deep",
                                   "dangling", "/dev/null", "/proc/nowhere"])
def test_where_no_project_can_be_written_nothing_is_left(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine", encoding="utf-8")
    Path("with a file").mkdir()
    Path("with a file/configs").write_text("mine", encoding="utf-8")
    Path("with a file/deep").mkdir()
    Path("with a file/deep/data").write_text("mine", encoding="utf-8")
    Path("dangling").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["init", place]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"No project can be written to {place} (") and told.count("\n") == 1
    assert "name a new folder" in told
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["", " "])
def test_a_folder_without_a_name_is_not_this_one(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init",
                     place]) == 2 and "a dot stands for this folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_without_runs_keeps_its_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("index.html").write_text("mine", encoding="utf-8")
    assert cli.main(["report", "."]) == 2 and "There are no runs in ." in capsys.readouterr().err
    assert Path("index.html").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("error, told", [
    (OSError(28, "No space left on device"),
     "No space is left to write a file: free some, or set run.output_dir to a folder on another "
     "disk. What was done is kept; run the same again.\n"),
    (OSError(5, "Input/output error"),
     "The system refused to read or write: Input/output error.\n"),
    (PermissionError(13, "Permission denied", b"a.txt"),
     "a.txt can't be used (permission denied): mend that, or name another place (run.output_dir "
     "for what a run writes), then run the same again.\n"),
    (FileNotFoundError(2, "No such file or directory", "a b"),
     "a b can't be read or written: No such file or directory.\n")])
def test_what_the_system_refuses_is_a_sentence(monkeypatch, capsys, error, told):
    def fails(_):
        raise error

    monkeypatch.setattr(cli, "_runs", fails)
    assert cli.main(["runs"]) == 2 and capsys.readouterr().err == told


@pytest.mark.parametrize("count", ["-1", "x", "1.5", "9" * 5000, "٣"])
def test_a_preview_of_no_number_is_wrong_usage(capsys, count):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["validate", "--preview", count, "a.jsonl"])
    assert "no number of records" in capsys.readouterr().err


def test_the_wheel_brings_what_stages_need():
    "setup.py and MANIFEST.in list the same, and the lists find files."
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    patterns = source.partition("SHIPPED = (")[2].partition(")\n")[0].replace('"', "").split(", ")
    found = {pattern: list(ROOT.glob(pattern)) for pattern in patterns}
    assert len(found["nbs/0[1-4]*_*.ipynb"]) == 5 and all(found.values())
    assert shipped("nbs/01_data.ipynb").is_file()
