"Commands in messages can be pasted into a shell, whatever characters a path has."

import ast
import re
import shlex
from pathlib import Path

import pytest
from stage_project import CONFIG

import kwanzaa_nb
from kwanzaa_nb.core.config import project_root
from kwanzaa_nb.run import cli
from kwanzaa_nb.core.config import resolve_config
from kwanzaa_nb.core.manifest import StageError
from kwanzaa_nb.core.stage import Stage
from kwanzaa_nb.report.runs import refresh_reports

MODULES = sorted(Path(kwanzaa_nb.__file__).parent.rglob("*.py"))
EVIL = ["my files", "it's", 'a "b"', "$HOME", "a & b", "x;rm", "(1)", "*", "a\\b", "#1", "`id`",
        "é ü", "a|b", "x~", "!1", "plain"]
COMMAND = re.compile(r"(?:\bkwanzaa (?:run|report|verdict|validate|init|sweep|config)|"
                     r"\bpapermill|\bcd|\bpip install|\bhf|\baccelerate launch) [^\n.;]*\Z")
# a stage, its notebook, an extra, a package, its version, extras
PLAIN = {"stage", "NOTEBOOKS[stage]", "made_by", "NOTEBOOKS[made_by]", "best", "name", "version",
         "','.join(needed)"}


def advised(source):
    "Values within a command that an f-string advises, as source."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            said = ""
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    if COMMAND.search(said):
                        yield part.value
                    said += "VALUE"
                else:
                    said += part.value


def quoted(value, source):
    "Whether a value goes through shlex.quote, at once or where its name was given."
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("quote", "shlex.quote"):
        return True
    named = isinstance(value, ast.Name) and re.search(rf"\b{value.id} = (?:shlex\.)?quote\(",
                                                      source)
    return bool(named) or ast.unparse(value) in PLAIN


def test_values_in_advised_commands_are_quoted():
    found = [(path.stem, value, path.read_text(encoding="utf-8")) for path in MODULES
             for value in advised(path.read_text(encoding="utf-8"))]
    assert len(found) >= 8
    assert [f"{stem}: {ast.unparse(value)}" for stem, value, source in found
            if not quoted(value, source)] == []


def test_what_is_not_quoted_is_found():
    source = ('print(f"kwanzaa run {what} --config {path}, and {this}")\n'
              'print(f"{count} files. Done: {path}")')
    assert [ast.unparse(value) for value in advised(source)] == ["what", "path", "this"]
    assert not any(quoted(value, source) for value in advised(source))


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("within", [True, False])
def test_the_stage_to_run_first_with_its_config(tmp_path, monkeypatch, name, within):
    root = tmp_path / "root" / name
    place = (root if within else tmp_path / "far") / name
    place.mkdir(parents=True)
    (root / "settings.ini").parent.mkdir(parents=True, exist_ok=True)
    (root / "settings.ini").write_text("[DEFAULT]\nlib_name = kwanzaa_nb\n", encoding="utf-8")
    path = place / f"{name}.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(root)
    with pytest.raises(StageError) as error:
        Stage("train", resolve_config(path), path).read("data/train.jsonl", made_by="data")
    pattern = (r"data/train.jsonl is missing: run the stage data first "
               r"\((kwanzaa .*), or (papermill .*)\)\.")
    first, second = re.fullmatch(pattern, str(error.value)).groups()
    shown = str(path.relative_to(root) if within else path)
    assert shlex.split(first) == ["kwanzaa", "run", "data", "--config", shown]
    assert shlex.split(second) == ["papermill", "nbs/01_data.ipynb", "OUT.ipynb", "-p", "config",
                                   shown]
    assert resolve_config(shlex.split(first)[-1])


@pytest.mark.parametrize("name", EVIL)
def test_where_to_go_after_init(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", name]) == 0
    after = capsys.readouterr().out.split("Next:\n")[1]
    assert shlex.split(after, comments=True)[:2] == ["cd", name]


@pytest.mark.parametrize("name", EVIL)
def test_how_to_write_reports_that_failed(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr("kwanzaa_nb.report.runs.write_reports", lambda *_: 1 / 0)
    refresh_reports(tmp_path / name, tmp_path)
    told = re.search(r"\): (kwanzaa report .*) writes them\.", capsys.readouterr().err)[1]
    assert shlex.split(told) == ["kwanzaa", "report", str(tmp_path / name)]


@pytest.mark.parametrize("name", EVIL)
def test_how_to_evaluate_the_run_that_a_sweep_found(tmp_path, monkeypatch, capsys, name):
    from kwanzaa_nb.run import sweeps

    written = tmp_path / name / "sweep one" / "sweep.html"
    for function, value in {"read_sweep": type("Sweep", (), {"select": "x"}), "sweep_rows": [],
                            "write_sweep": written, "sweep_table": "", "choose": ""}.items():
        monkeypatch.setattr(sweeps, function, lambda *_, value=value: value)
    assert cli.main(["sweep", "--table", "x.yaml"]) == 0
    told = re.search(r"choose: (.*)\n", capsys.readouterr().out)[1]
    assert shlex.split(told) == ["cd", str(project_root()), "&&", "kwanzaa", "run", "evaluate",
                                 "--config", f"{written.parent}/RUN/config.yaml"]
