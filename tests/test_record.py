"Reading record files: bare messages, and every fault by line and field."

import json

import pytest

from kwanzaa_nb.core.jsonl import DataError, MissingFile
from kwanzaa_nb.core.record import read_records, target_problems

ASKED = "### Retrieved Context:\n(none provided)\n\n### Instruction:\nWhen?"
MESSAGES = [
    {"role": "system", "content": "Be exact."}, {"role": "user", "content": ASKED},
    {"role": "assistant", "content": "Then."}]


def lines(path, *rows):
    written = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in written))
    return path


def told(path):
    with pytest.raises(DataError) as error:
        read_records(path, shown="a.jsonl")
    return [(problem.where, problem.code) for problem in error.value.problems]


def test_bare_messages_are_records(tmp_path):
    named = {"messages": MESSAGES, "id": "mine"}
    found = read_records(lines(tmp_path / "a.jsonl", {"messages": MESSAGES}, named))
    assert [row["id"] for row in found] == ["line-1", "mine"]
    assert all(row["chunks"] == [] and row["answerable"] is None for row in found)
    assert all(row["messages"] == MESSAGES for row in found)
    assert len({row["group"] for row in found}) == 2


def content(place, text):
    return [{**message, "content": text} if index == place else message
            for index, message in enumerate(MESSAGES)]


@pytest.mark.parametrize("messages, field, code", [
    *((wrong, "messages", "messages_type") for wrong in (None, "text", [1, 2, 3])),
    *((wrong, "messages", "roles") for wrong in (
        [], MESSAGES[1:], MESSAGES + MESSAGES[1:2], [MESSAGES[1], MESSAGES[0], MESSAGES[2]])),
    *((content(place, wrong), f"messages[{place}].content", "content") for place, wrong in (
        (0, ""), (1, " \n"), (2, None), (2, ["a"]), (2, "\ud800")))])
def test_bad_messages_are_named_by_line_and_field(tmp_path, messages, field, code):
    path = lines(tmp_path / "a.jsonl", {"messages": MESSAGES}, {"messages": messages})
    assert told(path) == [(f"a.jsonl, line 2, {field}", code)]


@pytest.mark.parametrize("field, value", [
    ("id", ["a"]), ("id", None), ("id", 5), ("chunks", None), ("chunks", ["a"]), ("chunks", [{}]),
    ("answerable", "yes"), ("category", None), ("group", ["a"]), ("persona", 1),
    ("expected", None)])
def test_a_field_of_another_type_is_named(tmp_path, field, value):
    found = told(lines(tmp_path / "a.jsonl", {"messages": MESSAGES, field: value}))
    assert all(where.startswith(f"a.jsonl, line 1, {field}") for where, _ in found)


def test_all_problems_of_a_record_file_come_at_once(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"messages": []}, {"messages": content(0, "")},
                 {"messages": MESSAGES, "id": "x"}, {"messages": MESSAGES, "id": "x"})
    assert [code for _, code in told(path)] == ["roles", "content", "duplicate_id"]
    with pytest.raises(DataError, match="line 2: not JSON"):
        read_records(lines(path, {"messages": MESSAGES}, b"{half"))
    with pytest.raises(MissingFile):
        read_records(tmp_path / "gone.jsonl")


def test_a_creative_target_may_do_without_evidence():
    nothing = {"unsupported_claims": [], "missing_context": [], "clarifying_questions": []}
    target = {"evidence": [], "answer": {"completeness": "complete", "text": "A free verse."},
              "unknowns": nothing}
    said = {"role": "assistant", "content": json.dumps(target)}
    record = {"messages": [*MESSAGES[:2], said], "chunks": []}
    assert [code for *_, code in target_problems(record)] == ["answer_without_evidence"]
    assert target_problems({**record, "mode": "creative"}) == []
