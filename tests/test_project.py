"""Rules for the whole project: notebooks, package, settings."""

import ast
import configparser
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from kwanzaa_nb.core.config import Config, Section, known_keys

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
STAGES = sorted((ROOT / "nbs").glob("0[1-4]*_*.ipynb"))
MODULES = sorted(path for path in (ROOT / "kwanzaa_nb").rglob("*.py") if path.name not in ("__init__.py", "_modidx.py"))
LONGEST = 40  # lines of code in an exported cell
# /home/ada is the person of the examples that show how paths are made portable; everybody else's folders are a leak
ABSOLUTE = re.compile(r"(?<![\w.:/<~-])/(?!home/ada/)(?:work|root|home|tmp|Users|private/var)(?:/|\b(?=[\"'\s\\]))|[A-Za-z]:\\\\Users")
LIGHT = ("core.settings", "core.config", "core.errors", "core.answer", "core.prompt", "core.record", "data.corpus", "core.stage", "run.cli", "publish.card")


def cells_of(path, kind="code"):
    "Sources of a notebook's cells of a kind, with their cells."
    return [("".join(cell["source"]), cell) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == kind]


def is_exported(source):
    return bool(re.match(r"\s*#\s*\|\s*exporti?\b", source))


def code_lines(source):
    "Lines of a cell that are neither blank nor directives."
    return [line for line in source.splitlines() if line.strip() and not re.match(r"\s*#\s*\|", line)]


def named(path):
    return pytest.param(path, id=f"{path.parent.name}/{path.stem}")


def test_there_is_something_to_look_at():
    assert [path.stem for path in STAGES] == ["01_data", "02_train", "02b_improve", "03_evaluate", "04_publish"]
    assert len(NOTEBOOKS) > 10 and len(MODULES) > 10


# Notebooks


@pytest.mark.parametrize("path", map(named, sorted((ROOT / "nbs/guides").glob("*.ipynb"))))
def test_no_guide_shows_the_share_of_nothing_as_a_number(path):
    outputs = json.dumps([cell["outputs"] for _, cell in cells_of(path)])
    assert not re.search(r"\] n=0\b", outputs), "what was not counted is not measured"


@pytest.mark.parametrize("path", map(named, STAGES))
def test_stage_has_one_cell_of_parameters(path):
    tagged = [source for source, cell in cells_of(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1 and not is_exported(tagged[0])
    names = {target.id for statement in ast.parse(tagged[0]).body for target in statement.targets}
    assert names == {"config", "overrides", *Config.model_fields}
    values = [ast.literal_eval(statement.value) for statement in ast.parse(tagged[0]).body]
    assert not any(values), "a parameter's default must be empty, so that what was injected can be told from it"


@pytest.mark.parametrize("path", map(named, STAGES))
def test_stage_exports_nothing(path):
    assert not [source for source, _ in cells_of(path) if is_exported(source) or "default_exp" in source]


@pytest.mark.parametrize("path", map(named, NOTEBOOKS))
def test_notebook_has_no_absolute_path(path):
    found = {match[0] + line[match.end():match.end() + 40] for line in path.read_text(encoding="utf-8").splitlines()
             for match in ABSOLUTE.finditer(line) if '"image/png"' not in line}
    assert not found


def test_absolute_paths_are_found():
    assert all(ABSOLUTE.search(text) for text in ("see /home/grace/x", '"/tmp/x"', "in (/root/.cache", "/Users/ada/x"))
    assert not any(ABSOLUTE.search(text) for text in ("nbs/work/x", "https://x.org/home/y", "~/tmp/x", "at home/work", "/home/ada/x"))


@pytest.mark.parametrize("path", map(named, NOTEBOOKS))
def test_notebook_does_not_export_by_itself(path):
    assert not [source for source, _ in cells_of(path) if "nbdev_export(" in source]


@pytest.mark.parametrize("path", map(named, NOTEBOOKS))
def test_notebook_opens_with_title_and_purpose(path):
    first = cells_of(path, "markdown")[0][0]
    assert re.fullmatch(r"# \S.*\n\n> \S.*", first), "nbdev drops what stands behind the first line of purpose: move it into the next cell"


@pytest.mark.parametrize("path", map(named, NOTEBOOKS))
def test_cell_ids_are_unique(path):
    ids = [cell["id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert sorted(set(ids)) == sorted(ids), "merges and the package's remarks go by these ids"


@pytest.mark.parametrize("path", map(named, NOTEBOOKS))
def test_exported_cells_are_short(path):
    long = []
    for source, cell in cells_of(path):
        names = re.findall(r"^(?:def|class) (\w+)", source, re.MULTILINE)
        size = len(code_lines(source))
        if is_exported(source) and size > LONGEST:
            long.append(f"{cell['id']}: {size} lines ({', '.join(names)})")
    assert not long, "; ".join(long)


# Package


ROOMS = {  # a room, and what it may import beside itself
    "core": set(), "model": {"core"}, **{stage: {"core", "model"} for stage in ("data", "train", "evaluate", "publish")},
    "report": {"core", "model", "data", "train", "evaluate", "publish"},
    "use": {"core", "model", "data", "evaluate", "publish", "report"},
    "run": {"core", "model", "data", "train", "evaluate", "publish", "report", "use"},
    "bench": {"core", "model", "data", "train", "evaluate", "publish", "report", "use", "run"},
}


def rooms_imported(path):
    "The rooms from which a module imports, at its head or inside of functions."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            yield from [node.module.split(".")[0]] if node.module else [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kwanzaa_nb."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from [name.name.split(".")[1] for name in node.names if name.name.startswith("kwanzaa_nb.")]


@pytest.mark.parametrize("path", [named(path) for path in MODULES if path.name != "__main__.py"])  # a program may put rooms together
def test_a_room_imports_only_what_lies_below_it(path):
    room = path.parent.name
    assert not set(rooms_imported(path)) - {room} - ROOMS[room]


def test_every_room_says_what_it_holds():
    assert {path.name for path in (ROOT / "kwanzaa_nb").iterdir() if path.is_dir() and path.name not in ("__pycache__", "project", "templates")} == set(ROOMS)
    assert all(ast.get_docstring(ast.parse((ROOT / "kwanzaa_nb" / room / "__init__.py").read_text(encoding="utf-8"))) for room in ROOMS)
    assert {path.name for path in (ROOT / "nbs").iterdir() if path.is_dir() and not path.name.startswith((".", "_"))} == {*ROOMS, "guides", "images"}


def test_the_sidebar_has_every_notebook_once():
    listed = re.findall(r"[\w/]+\.ipynb", (ROOT / "nbs" / "_quarto.yml").read_text(encoding="utf-8").split("sidebar:")[1])
    assert sorted(listed) == sorted(path.relative_to(ROOT / "nbs").as_posix() for path in NOTEBOOKS)


@pytest.mark.parametrize("path", map(named, MODULES))
def test_module_has_no_star_import(path):
    found = [node.lineno for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.ImportFrom) and any(name.name == "*" for name in node.names)]
    assert not found


def test_light_modules_do_not_load_torch():
    code = f"""if True:
        import importlib, sys
        for name in {LIGHT!r}:
            importlib.import_module("kwanzaa_nb." + name)
            loaded = [heavy for heavy in ("torch", "transformers", "peft", "trl", "datasets") if heavy in sys.modules]
            if loaded:
                sys.exit(f"kwanzaa_nb.{{name}} loads {{', '.join(loaded)}}")"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", map(named, MODULES))
def test_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


# Settings of a run: each must be read by somebody


def section_of(node, aliases):
    "The section that an expression stands for, by its last name: `config.training`, or a variable that holds it."
    if isinstance(node, ast.Attribute):
        return {node.attr}
    return aliases.get(node.id, set()) | {node.id} if isinstance(node, ast.Name) else set()


def reads(source):
    "Pairs of section and key that some code reads, such as (training, epochs)."
    tree, aliases, found = ast.parse(source), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                for left, right in zip(target.elts, node.value.elts) if both else [(target, node.value)]:
                    if isinstance(left, ast.Name) and isinstance(right, ast.Attribute):
                        aliases.setdefault(left.id, set()).add(right.attr)
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found |= {(section, node.attr) for section in section_of(node.value, aliases)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            found |= {(section, text) for section in section_of(node.args[0], aliases) for text in texts}
    return found


def has_a_choice(field):
    "Whether a key can have more than one value."
    return get_origin(field.annotation) is not Literal or len(get_args(field.annotation)) > 1


def all_reads():
    "What modules and stage notebooks read; magics of notebooks are no Python and left out."
    sources = [path.read_text(encoding="utf-8") for path in MODULES if path.stem not in ("config", "settings")]
    for path in STAGES:
        cells = ["" if re.search(r"^\s*[%!]", source, re.MULTILINE) else source for source, _ in cells_of(path)]
        sources.append("\n".join(cells))
    return {pair for source in sources for pair in reads(source)}


KEYS = {path: field for path, field in known_keys().items() if not (isinstance(field, type) and issubclass(field, Section))}


def test_every_setting_is_read():
    found = all_reads()
    ignored = [".".join(path) for path, field in KEYS.items() if path[-2:] not in found and has_a_choice(field)]
    assert not ignored, f"nothing reads {', '.join(ignored)}"


def test_there_are_at_most_eighty_settings():
    assert len(KEYS) <= 80


def test_unread_settings_are_found():
    code = "wanted, run = config.training, config.run\nprint(wanted.epochs, outcome.metrics, getattr(config.data, 'packing'))"
    found = reads(code)
    assert {("training", "epochs"), ("data", "packing")} <= found
    assert ("evaluation", "metrics") not in found and ("training", "optim") not in found


# settings.ini


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements():
    parser = configparser.ConfigParser(interpolation=None, delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return sorted({word for key, value in parser["DEFAULT"].items() if key.endswith("requirements") for word in value.split()})


def test_every_requirement_is_pinned_within_its_range():
    from packaging.requirements import Requirement

    lines = [line for name in ("constraints.inspect.txt", "constraints.txt")
             for line in (ROOT / ".ci" / name).read_text(encoding="utf-8").splitlines()]
    pins = dict(line.split("==") for line in lines if line.strip() and not line.startswith("#"))
    pins = {normal(name): version.split(";")[0].strip() for name, version in pins.items()}
    wanted = [Requirement(text) for text in requirements()]
    assert len(wanted) > 20
    wrong = [f"{one.name} {pins.get(normal(one.name), 'is not pinned')}, wanted {one.specifier or 'any'}" for one in wanted
             if normal(one.name) not in pins or not one.specifier.contains(pins[normal(one.name)], prereleases=True)]
    assert not wrong


@pytest.mark.parametrize("name", ["constraints.txt", "constraints.inspect.txt"])
def test_constraints_are_exact_and_sorted_out(name):
    lines = [line for line in (ROOT / ".ci" / name).read_text(encoding="utf-8").splitlines()
             if line.strip() and not line.startswith("#")]
    assert not [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)], "exact versions only, without local parts"
    names = [normal(line.split("==")[0]) for line in lines]
    assert len(names) == len(set(names))


def test_version_is_that_of_the_package():
    import kwanzaa_nb

    parser = configparser.ConfigParser(interpolation=None, delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    assert kwanzaa_nb.__version__ == parser["DEFAULT"]["version"]
