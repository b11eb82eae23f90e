"""What a console can't show is shown by a substitute; files are UTF-8 whatever the console is."""

import ast
import functools
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import make_run

from kwanzaa_nb.core.console import steady_streams
from kwanzaa_nb.run.cli import main
from kwanzaa_nb.core.manifest import file_key

ROOT = Path(__file__).resolve().parents[1]
ODD = "Kwanzaa ⟦“日本”⟧ – naïve \u20ac 🎉 \x85"
NARROW = {  # how a console that can't show everything comes about
    "cp1252": {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    "cp932": {"PYTHONIOENCODING": "cp932", "PYTHONUTF8": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
ENCODINGS = ["ascii", "cp1252", "cp932", "cp437", "latin-1", "gbk", "utf-8", "utf-16"]


def told(words, folder, environment=None, module="kwanzaa_nb", **streams):
    "A command in a process of its own, its output as bytes."
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))} | {"PYTHONPATH": str(ROOT)}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run([sys.executable, "-m", module, *words], cwd=folder, env=env | (environment or {}), timeout=300, check=False, **given)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project in which everything that is printed has signs that few consoles have."
    root = tmp_path_factory.mktemp("日本")
    make_run(root, "ümläut–run")
    (root / "configs").mkdir()
    text = (ROOT / "configs" / "demo.cpu.yaml").read_text(encoding="utf-8")
    (root / "configs" / "demo.cpu.yaml").write_text(text.replace("system_prompt: null", f"system_prompt: {json.dumps(ODD + ' {persona}', ensure_ascii=False)}", 1),
                                                    encoding="utf-8")
    (root / "configs" / "grid.yaml").write_text("# «grid»\nname: grid\nconfig: configs/demo.cpu.yaml\ngrid: {training.epochs: [1]}\n", encoding="utf-8")
    (root / "broken.jsonl").write_text(json.dumps({"id": ODD, "messages": [{"role": ODD, "content": ODD}]}, ensure_ascii=False) + "\n", encoding="utf-8")
    (root / "wrong.yaml").write_text(f"run: {{{json.dumps(ODD, ensure_ascii=False)}: 1}}\n", encoding="utf-8")
    return root


COMMANDS = {
    "help": (["--help"], 0), "help of validate": (["validate", "--help"], 0), "show": (["config", "show", "configs/demo.cpu.yaml"], 0),
    "check": (["config", "check", "wrong.yaml"], 2), "validate": (["validate", "broken.jsonl"], 1), "runs": (["runs"], 0),
    "verdict": (["verdict", "outputs/ümläut–run"], 0), "report": (["report", "outputs"], 0), "no folder": (["verdict", "outputs/⟦none⟧"], 2),
    "sweep": (["sweep", "configs/grid.yaml", "--table"], 0), "misspelled": (["⟦vaildate⟧"], 2), "no file": (["validate", "⟦none⟧.jsonl"], 1),
}


@functools.cache
def of_utf8(project, *words):
    "What a console shows that has every sign."
    return told(words, project, {"PYTHONUTF8": "1"})


@pytest.mark.parametrize("console", NARROW)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_on_every_console(project, name, console):
    words, status = COMMANDS[name]
    usual = of_utf8(project, *words)
    done = told(words, project, NARROW[console])
    assert b"Traceback" not in done.stdout + done.stderr + usual.stdout + usual.stderr, done.stderr.decode("utf-8", "replace")
    assert done.returncode == usual.returncode == status, done.stderr
    plain = re.compile(rb"[A-Za-z ]{12,}")
    assert plain.findall(done.stdout)[:3] == plain.findall(usual.stdout)[:3] and bool(done.stdout) == bool(usual.stdout)


@pytest.mark.parametrize("console", NARROW)
def test_what_is_written_is_utf8_whatever_the_console_is(project, tmp_path, console):
    make_run(tmp_path, "ümläut–run")
    assert told(["report", "outputs"], tmp_path, NARROW[console]).returncode == 0
    written = [path for path in (tmp_path / "outputs").rglob("*") if path.suffix in (".html", ".json", ".jsonl")]
    assert len(written) > 3
    for path in written:
        path.read_text(encoding="utf-8")
    assert "ümläut–run" in (tmp_path / "outputs" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("console", ["cp1252", "C"])
def test_the_preview_of_a_record_marks_what_is_trained_on(tmp_path, console):
    pytest.importorskip("transformers")
    lines = (ROOT / "data" / "training" / "kwanzaa_dev.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "short.jsonl").write_text(min(lines, key=len) + "\n", encoding="utf-8")
    done = told(["validate", str(tmp_path / "short.jsonl"), "--preview", "1", "--config", "configs/demo.cpu.yaml"], ROOT, NARROW[console])
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr[-500:]
    assert done.stdout.count(b"\\u27e6") == done.stdout.count(b"\\u27e7") == 1 and "⟦".encode() not in done.stdout


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("name", ["help", "show", "report", "misspelled"])
def test_streams_that_are_closed_are_no_error(project, closed, name):
    words, status = COMMANDS[name]
    ends = " ".join(f"{stream}>&-" if stream else "<&-" for stream in closed)
    done = subprocess.run(["sh", "-c", f'exec "$@" {ends}', "sh", sys.executable, "-m", "kwanzaa_nb", *words], cwd=project, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300, check=False)
    assert done.returncode == status and b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr


@pytest.mark.parametrize("module, words", [("kwanzaa_nb.train", ["--config", "⟦none⟧.yaml"]), ("kwanzaa_nb.train", ["--help"]),
                                           ("kwanzaa_nb.bench.benchmarks", ["⟦none⟧"]), ("kwanzaa_nb.bench.benchmarks", [])])
def test_other_programs_of_the_package_print_likewise(project, module, words):
    done = told(words, project, NARROW["C"], module)
    assert b"Traceback" not in done.stderr and b"UnicodeEncodeError" not in done.stderr and done.stdout + done.stderr
    assert (done.returncode == 0) == (words == ["--help"])


def test_every_program_of_the_package_makes_its_streams_steady():
    started = [path for path in (ROOT / "kwanzaa_nb").rglob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    programs = {path.parent / {"kwanzaa_nb": "run/cli.py", "train": "command.py"}[path.parent.name] if path.stem == "__main__" else path for path in started}
    assert {f"{path.parent.name}.{path.stem}" for path in programs} == {"run.cli", "train.command", "bench.benchmarks", "bench.training", "bench.layouts", "bench.trials", "bench.carry_over", "bench.gpu"}
    for path in programs:
        (start,) = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef) and node.name in ("main", "serve")][:1]
        calls = [node.func.id for node in ast.walk(start) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert "steady_streams" in calls, path.name


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40) | st.text(st.characters(categories=["Cs"]), max_size=4), encoding=st.sampled_from(ENCODINGS),
       errors=st.sampled_from(["strict", "surrogateescape", "replace", "ignore"]))
def test_any_text_is_printed_on_any_console(text, encoding, errors):
    raw = io.BytesIO()
    console = io.TextIOWrapper(raw, encoding=encoding, errors=errors, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", console)
        steady_streams()
        print(text, end="", flush=True)
    assert console.errors == (errors if errors in ("replace", "ignore") else "backslashreplace"), "what somebody asked for stays"
    if console.errors == "backslashreplace":
        shown = raw.getvalue().decode(encoding)
        assert shown == text.encode(encoding, "backslashreplace").decode(encoding)
        try:
            assert text.encode(encoding) == raw.getvalue(), "what can be shown stays as it is"
        except UnicodeEncodeError:
            assert "\\" in shown


@settings(max_examples=40, deadline=None)
@given(field=st.sampled_from(["id", "role", "content"]), text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
       encoding=st.sampled_from(["ascii", "cp1252", "cp932"]))
def test_any_record_is_checked_on_any_console(tmp_path_factory, field, text, encoding):
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    record = {"id": "one", "role": "user", "content": "two"} | {field: text}
    row = {"id": record["id"], "messages": [{"role": record["role"], "content": record["content"]}]}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        assert main(["validate", str(path)]) in (0, 1, 2)
    err.flush()
    assert out.buffer.getvalue() + err.buffer.getvalue()


def test_streams_that_are_not_there_become_the_null_device(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    steady_streams()
    print(ODD, flush=True)
    print(ODD, file=sys.stderr)
    assert sys.stdin.read() == "" and sys.stdout.fileno() > 2
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()
    assert main(["runs", str(ROOT / "configs")]) == 0 and not sys.stdout.closed
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def test_streams_of_a_notebook_are_left_as_they_are(monkeypatch):
    class Shown(io.StringIO):
        "Like ipykernel's, which takes everything."

    monkeypatch.setattr(sys, "stdout", Shown())
    steady_streams()
    print(ODD)
    assert sys.stdout.getvalue() == f"{ODD}\n"


def test_no_file_is_opened_as_text_without_an_encoding():
    "Of the package, the stages and setup: what a platform takes for granted is not UTF-8 everywhere."
    sources = {path: path.read_text(encoding="utf-8") for path in [*(ROOT / "kwanzaa_nb").rglob("*.py"), *(ROOT / ".ci").glob("*.py"), ROOT / "setup.py"]}
    for path in (ROOT / "nbs").glob("0[1-4]_*.ipynb"):
        cells = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        sources[path] = "\n".join(cell for cell in cells if not re.search(r"^\s*[%!]", cell, re.MULTILINE))
    assert len(sources) > 40
    found = [f"{path.name}: {ast.unparse(node)[:80]}" for path, source in sources.items() for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Call) and opens_text(node)]
    assert found == ["budget.py: Path('/proc/self/statm').read_text()"], "which is ASCII"


def opens_text(call):
    "Whether a call reads or writes text in an encoding that it does not name."
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {word.arg for word in call.keywords}
    if "encoding" in named or any(word.arg is None for word in call.keywords):
        return False
    if name in ("read_text", "write_text"):  # our own read_text, of data/corpus, is given a path
        return isinstance(call.func, ast.Attribute) and not (name == "read_text" and call.args)
    if name in ("open", "fdopen") and ast.unparse(call.func) not in ("os.open", "Image.open", "zipfile.ZipFile.open"):
        modes = [node.value for node in [*call.args, *(word.value for word in call.keywords)] if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        return not any(re.fullmatch("[rwax]?b[+]?|[rwax][+]?b", mode) for mode in modes)
    return name in ("run", "Popen", "check_output") and bool(named & {"text", "universal_newlines"})


def test_text_without_an_encoding_is_found():
    calls = ['open("x")', 'Path("x").open("a")', "p.read_text()", "p.write_text('x')", "subprocess.run(x, text=True)", "os.fdopen(x, 'w')"]
    fine = ['open("x", "rb")', 'open("x", encoding="utf-8")', 'p.read_text(encoding="utf-8")', "read_text(x)", "subprocess.run(x, encoding='utf-8')"]
    assert all(opens_text(ast.parse(call).body[0].value) for call in calls)
    assert not any(opens_text(ast.parse(call).body[0].value) for call in fine)


def test_a_checkout_with_an_odd_name_has_its_commit_on_every_console(tmp_path):
    root = tmp_path / "häuser–日本"
    root.mkdir()
    for words in (["init", "-q"], ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    code = "from kwanzaa_nb.core.manifest import commit\nprint(len(commit('.')['id']))"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env | NARROW["C"] | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60, check=False)
    assert done.stdout.strip() == b"40", done.stderr


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are Unicode there")
def test_names_that_are_no_utf8_are_shown_by_a_substitute_in_texts_that_are(tmp_path):
    make_run(tmp_path, "plain")
    os.rename(os.fsencode(tmp_path / "outputs" / "plain"), os.fsencode(tmp_path / "outputs") + b"/\xff\xfe")
    manifest = Path(os.fsdecode(os.fsencode(tmp_path / "outputs") + b"/\xff\xfe/manifest.json"))
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"plain"', '""'), encoding="utf-8")
    for words in (["report", "outputs"], ["runs"], ["verdict", b"outputs/\xff\xfe"], ["report", b"outputs/\xff\xfe"]):
        done = told(words, tmp_path, {"PYTHONUTF8": "1"})
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert "\ufffd\ufffd" in (tmp_path / "outputs" / "index.html").read_text(encoding="utf-8")
    assert file_key(manifest, tmp_path, tmp_path) == "outputs/\ufffd\ufffd/manifest.json"
    assert file_key(manifest, tmp_path / "x", tmp_path / "y").encode()


def test_a_pipe_that_is_closed_early_is_no_error(project):
    done = subprocess.run(["sh", "-c", '"$@" | true', "sh", sys.executable, "-m", "kwanzaa_nb", "config", "show", "configs/demo.cpu.yaml"], cwd=project,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300, check=False)
    assert done.stderr == b""
