"The Dockerfile and the development container, as far as they can be tried without Docker."

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CONTAINER = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))


def test_the_dockerfile_runs_what_the_makefile_has():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"\bmake ([a-z]+)", DOCKERFILE + CONTAINER["postCreateCommand"]) + json.loads(re.search(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[1])[1:]
    assert {"setup", "demo", "test", "dev"} <= set(named)
    assert not [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_python_is_one_that_the_project_allows():
    least = re.search(r"^min_python = ([\d.]+)$", (ROOT / "settings.ini").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert re.search(r"^FROM python:([\d.]+)-", DOCKERFILE, re.MULTILINE)[1] == least


def test_the_development_container_takes_the_dockerfile_and_its_user():
    build = CONTAINER["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert f"AS {build['target']}\n" in DOCKERFILE
    assert re.search(rf"useradd .*--uid (\d+).* {CONTAINER['remoteUser']}$", DOCKERFILE, re.MULTILINE)[1] == re.search(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[1]


def test_what_is_made_here_stays_out_of_the_image():
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "outputs/*"} <= set(left_out)
