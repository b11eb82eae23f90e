"""Documents and guides: README.md is nbs/index.ipynb, and everything that they mention exists."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
from repository import named  # noqa: E402

REPOSITORY, BRANCH = named()
HERE = f"https://github.com/{REPOSITORY}/blob/{BRANCH}/"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md",
             "outputs/README.md", "configs/README.md")
GUIDES = tuple(path.relative_to(ROOT).as_posix()
               for path in sorted((ROOT / "nbs" / "guides").glob("*.ipynb")))
MADE_LATER = ("kwanzaa_nb/cited_answers", "outputs/", "mine/", "configs/mine.yaml", ".venv", "draft.py",
              "OUT.ipynb")
TOP = {path.name for path in ROOT.iterdir()} | {"nbs", "configs", "data", "tests",
                                                "outputs", "kwanzaa_nb", ".ci", ".github"}


def read(name):
    "The text of a document, or what a notebook says in its Markdown."
    text = (ROOT / name).read_text(encoding="utf-8")
    if not name.endswith(".ipynb"):
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]
                       if cell["cell_type"] == "markdown")


def commands(name):
    "Lines of a document that call `kwanzaa`, each without that word."
    return re.findall(r"^kwanzaa (.+)$", read(name).replace("\\\n", " "), re.MULTILINE)


def mentioned(text):
    "Words in code that are paths of this project, and links into it."
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    words = {word.rstrip(".,;:") for word in re.split(r"[\s`'\"(){}=|]+", code)}
    paths = {word for word in words
             if "/" in word and word.split("/")[0] in TOP and not re.search(r"[*<>]", word)}
    return paths | {word for word in words if re.fullmatch(r"(?:[A-Z]{6,}(?:\.md)?|Makefile|[\w.]+\.ini)", word) and word in TOP}


def links(text, document):
    "Targets of links into this project, from the project's root."
    found = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    inside = [target.removeprefix(HERE) for target in found if target.startswith(HERE)]
    relative = [target for target in found if target and not re.match(r"[a-z]+:", target)]
    return inside + [str((document.parent / target).resolve().relative_to(ROOT))
                     for target in relative]


def test_readme_is_the_index_notebook():
    assert read("README.md") == read("nbs/index.ipynb") + "\n"


def test_readme_is_three_screens():
    assert len(read("README.md").splitlines()) <= 120, "move what is more into a guide of nbs/guides"


@pytest.mark.parametrize("name", [*DOCUMENTS, *GUIDES])
def test_what_is_pointed_to_exists(name):
    document, text = ROOT / name, read(name)
    wanted = {path for path in mentioned(text) | set(links(text, document))
              if not path.startswith(MADE_LATER)}
    missing = sorted(path for path in wanted
                     if not (ROOT / path).exists() and not list(ROOT.glob(path + "*")))
    assert not missing, f"{name} points to what is not there: {', '.join(missing)}"


def test_pointers_are_found():
    text = "See `configs/no-such.yaml` and [a notebook](" + HERE + "nbs/99_none.ipynb)."
    assert mentioned(text) == {"configs/no-such.yaml"}
    assert links(text, ROOT / "README.md") == ["nbs/99_none.ipynb"]


def test_targets_of_make_exist():
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"),
                          re.MULTILINE))
    for name in (*DOCUMENTS, *GUIDES):
        asked = set(re.findall(r"(?:^|`)make ([a-z-]+)", read(name), re.MULTILINE))
        assert asked <= made, f"{name} names unknown targets: {', '.join(sorted(asked - made))}"


def test_commands_are_understood():
    from kwanzaa_nb.run.cli import parser

    for name in (*DOCUMENTS, *GUIDES):
        for line in commands(name):
            parser().parse_args(shlex.split(line))  # SystemExit where a word is unknown


def test_overrides_that_guides_show_are_accepted():
    from kwanzaa_nb.run.cli import parser
    from kwanzaa_nb.core.config import load_config

    lines = [line for name in ("README.md", *GUIDES) for line in commands(name)
             if line.startswith("run ")]
    for line in lines:
        given = parser().parse_args(shlex.split(line))
        load_config(ROOT / given.config, dict(given.set))
    assert any("--set" in line for line in lines)


def test_torch_is_the_pinned_one():
    shown = re.findall(r"torch==([\d.]+\d)", "\n".join(map(read, ("README.md", *GUIDES))))
    pinned = re.findall(r"^torch==([\d.]+)",
                        (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8"),
                        re.MULTILINE)
    assert shown and set(shown) == set(pinned)


def test_demo_figures_have_a_place():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("<!-- demo-figures -->") == 1


def test_the_demo_table_and_its_first_sentence_are_those_of_the_stored_figures():
    from kwanzaa_nb.bench.benchmarks import readme_table
    from kwanzaa_nb.evaluate.instrument import stored

    measured, text = stored("demo")["measured"], read("README.md")
    told, *_, difference = measured["verdict"].split(". ")
    assert readme_table(measured) in text, "python -m kwanzaa_nb.bench.benchmarks demo prints the table to paste"
    assert f"**{told}.**" in text and difference.removeprefix("The difference is ").partition(",")[0] in " ".join(text.split())


def test_the_sentence_on_the_longer_training_is_of_the_stored_figures():
    from kwanzaa_nb.bench.benchmarks import quality_sentence
    from kwanzaa_nb.evaluate.instrument import stored

    assert quality_sentence(stored("quality")["measured"]) in " ".join(read("README.md").split())


def test_the_table_takes_the_best_rule_of_each_row():
    from kwanzaa_nb.bench.benchmarks import _ROWS, readme_table
    from kwanzaa_nb.core.results import RULES

    def rates(value):
        return {name: {"value": value, "low": 0, "high": 1} for name in _ROWS}

    arms = {"base": rates(0.1), "adapter": rates(0.2), **{rule: rates(0.3) for rule in RULES}}
    arms["best_sentence"] = {**rates(0.0), "citation_coverage_rate": {"value": 0.9, "low": 0.8, "high": 1}}
    last = [line.split(" | ")[-1] for line in readme_table({"arms": arms}).splitlines()[2:]]
    assert last == ["0.30 [0.00, 1.00] |", "0.90 [0.80, 1.00] |", *["0.30 [0.00, 1.00] |"] * 5]
