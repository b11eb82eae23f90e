"""The data card says what the files hold."""

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CARD = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
_SPEC = importlib.util.spec_from_file_location("data_card", ROOT / ".ci" / "data_card.py")
counts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(counts)


def rows(folder):
    return counts.rows((ROOT / "data" / folder).glob("*.jsonl"))


@pytest.fixture(scope="module")
def tables():
    return counts.tables()


@pytest.mark.parametrize("name", ["namespaces", "sizes", "forms", "types", "splits", "kinds"])
def test_tables_are_those_of_the_files(tables, name):
    said = {block["name"]: block["table"].strip() for block in counts.BLOCK.finditer(CARD)}
    assert said[name] == tables[name].strip(), "run .ci/data_card.py, which writes the tables anew"
    assert said.keys() == tables.keys()


def test_counts_add_up(tables):
    cells = {name: [[cell.strip(" `").replace(",", "") for cell in line.strip("|").split("|")] for line in text.splitlines()]
             for name, text in tables.items()}
    chunks, questions = rows("corpus"), rows("questions")
    assert sum(int(line[1]) for line in cells["forms"][2:]) == len(chunks) == int(cells["namespaces"][-1][2])
    assert sum(int(line[-1]) for line in cells["types"][2:]) == len(questions) == int(cells["namespaces"][-1][3])
    said = {line[0]: list(map(int, line[1:])) for line in cells["splits"][2:]}
    kinds = [list(map(int, line[1:])) for line in cells["kinds"][2:]]
    assert [sum(column) for column in zip(*kinds)] == said["records"]
    lines = [len((ROOT / "data" / "training" / f"kwanzaa_{split}.jsonl").read_bytes().splitlines()) for split in counts.SPLITS]
    assert said["records"] == lines and all(lines)


@pytest.mark.parametrize(("folder", "heading"), [("corpus", "Fields of a chunk:"),
                                                 ("questions", "Fields of a question:")])
def test_fields_of_the_card(folder, heading):
    named = set(re.findall(r"`(\w+)`", CARD.split(heading)[1].split("\n\n")[0]))
    assert named == {field for row in rows(folder) for field in row}


def test_hard_types_are_those_that_nothing_answers():
    from kwanzaa_nb.data.questions import UNANSWERED

    assert set(counts.HARD) == set(UNANSWERED)
    assert {row["type"] for row in rows("questions") if not row.get("answer")} == set(UNANSWERED)


def test_shares_of_the_splits():
    from kwanzaa_nb.data.build import _PATTERN as SPLIT_PATTERN

    of, train, held, dev, sealed = map(int, re.search(
        r"Of (\d+) documents, (\d+) are trained on, (\d+) are for evaluation, (\d+) for\s+development and (\d+) are sealed", CARD).groups())
    assert Counter(SPLIT_PATTERN) == {"train": train, "eval": held, "dev": dev, "sealed": sealed}
    assert len(SPLIT_PATTERN) == of


def test_a_reading_adds_up():
    read = [tuple(map(int, found)) for found in re.findall(r"\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", CARD, re.MULTILINE) if "," not in found]
    assert all(right + poor + wrong == total for total, right, poor, wrong in read[:9])
    assert len(read) >= 9
