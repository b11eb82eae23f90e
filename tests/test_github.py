"""Workflows, git hooks, and notebooks that stay clean in git."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BIN = Path(sys.executable).parent


def read(path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_are_workflows():
    assert {path.stem for path in WORKFLOWS} >= {"test", "newest", "docs", "demo", "release"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_may_little_and_ends(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    allowed = {"pages": "write", "id-token": "write"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 180, name
        assert job.get("permissions", {}).items() <= allowed.items(), name
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@(v\d+|release/v\d+)",
                                step["uses"]), f"{step['uses']} is not pinned to a major version"
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
        assert not re.search(r"\$\{\{\s*github\.event",
                             step.get("run",
                                      "")), "text from outside may not reach a shell's source"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_calls_what_exists(path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)",
                             "\n".join(step.get("run", "") for step in steps(read(path))),
                             re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for script in re.findall(r"kwanzaa (.+)",
                             "\n".join(step.get("run", "") for step in steps(read(path)))):
        from kwanzaa_nb.run.cli import parser

        if "--help" not in script:
            parser().parse_args(script.split())


def git(folder, *words, **options):
    "Run git in a folder, with an author, and without anybody's settings."
    names = {f"GIT_{who}_{what}": "ada@example.org" for who in ("AUTHOR", "COMMITTER")
             for what in ("NAME", "EMAIL")}
    env = {**os.environ, **names, "GIT_CONFIG_GLOBAL": os.devnull, "HOME": str(folder)}
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        env.pop(name, None)
    return subprocess.run(["git", *words], cwd=folder, env=env, capture_output=True,
                          text=True, check=False, **options)


@pytest.fixture
def checkout(tmp_path):
    "A small repository with one stage, one library notebook and the hook."
    for name in ("settings.ini", ".gitattributes", ".ci/hooks/pre-commit",
                 "nbs/01_data.ipynb", "nbs/core/errors.ipynb", "kwanzaa_nb/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(BIN)
    git(tmp_path, "init", "-q", "-b", "main")
    subprocess.run([BIN / "nbdev_export"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text(".venv\n", encoding="utf-8")
    git(tmp_path, "add", "-A")
    assert git(tmp_path, "commit", "-qm", "first").returncode == 0
    shutil.copy(tmp_path / ".ci" / "hooks" / "pre-commit",
                tmp_path / ".git" / "hooks" / "pre-commit")
    return tmp_path


def dirty(path):
    "Leave in a notebook what Jupyter leaves."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number, cell in enumerate(cell for cell in notebook["cells"]
                                  if cell["cell_type"] == "code"):
        cell["execution_count"] = number + 1
        cell["metadata"] |= {"execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"}, "scrolled": True}
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.11.7"}
    path.write_text(json.dumps(notebook), encoding="utf-8")


def test_hook_cleans_and_keeps_tags(checkout):
    path = checkout / "nbs" / "01_data.ipynb"
    clean = path.read_text(encoding="utf-8")
    dirty(path)
    git(checkout, "add", "-A")
    stopped = git(checkout, "commit", "-qm", "dirty")
    assert stopped.returncode == 1 and "nbs/01_data.ipynb" in stopped.stderr, stopped.stderr
    assert path.read_text(encoding="utf-8") == clean
    tags = [cell["metadata"]["tags"] for cell in json.loads(clean)["cells"]
            if "tags" in cell["metadata"]]
    assert tags == [["parameters"]]


def test_hook_exports_the_package(checkout):
    path = checkout / "nbs" / "core" / "errors.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("#| export\\n\",", "#| export\\n\",\n    \"# changed here\\n\",", 1), encoding="utf-8")
    git(checkout, "add", "-A")
    stopped = git(checkout, "commit", "-qm", "changed")
    assert stopped.returncode == 1 and "kwanzaa_nb/core/errors.py" in stopped.stderr, stopped.stderr
    git(checkout, "add", "-A")
    assert git(checkout, "commit", "-qm", "with its export").returncode == 0
    assert "# changed here" in git(checkout, "show", "HEAD:kwanzaa_nb/core/errors.py").stdout


def test_what_changes_in_a_notebook_is_few_lines(checkout):
    path = checkout / "nbs" / "01_data.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("## Parameters", "## The parameters"), encoding="utf-8")
    shown = git(checkout, "diff", "--numstat").stdout.split()
    assert shown[:2] == ["1", "1"]
    assert "nbdev-merge" in git(checkout, "check-attr", "merge", "nbs/01_data.ipynb").stdout
