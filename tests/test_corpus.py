"Chunks from JSON Lines: every problem by file, line and field, whatever the files hold."

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kwanzaa_nb.core.errors import KwanzaaError
from kwanzaa_nb.core.jsonl import DataError, MissingFile, read_jsonl
from kwanzaa_nb.data.corpus import Chunk, load_rows
from kwanzaa_nb.data.questions import load_corpus

ROOT = Path(__file__).resolve().parents[1]
CHUNK = {
    "chunk_id": "c-1", "doc_id": "c", "citation_label": "A label",
    "canonical_url": "https://example.org/a", "source_org": "An archive", "year": 1966,
    "content_type": "summary", "license": "CC0-1.0", "namespace": "kwanzaa_primary_sources",
    "tags": ["a"], "text": "It was first held in 1966. Seven candles burn."}
QUESTION = {
    "question_id": "q-1", "question": "When was it first held?",
    "answer": "The first one took place in 1966 [1].", "groups": [["1966"]],
    "evidence": [{"chunk_id": "c-1", "quote": "first held in 1966"}]}
MISS = {"question_id": "q-2", "question": "Who held it?", "answer": None, "type": "near_miss",
        "about": ["c-1"], "missing": "the host"}


def write(path, *rows):
    "Write rows as lines; bytes stay as they are."
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def load(tmp_path, chunks=(CHUNK,), questions=(QUESTION, MISS)):
    return load_corpus(write(tmp_path / "corpus" / "a.jsonl", *chunks).parent,
                       write(tmp_path / "questions" / "b.jsonl", *questions).parent)


def faults(tmp_path, **rows):
    "Load rows that cannot be used; return code by place."
    with pytest.raises(DataError) as error:
        load(tmp_path, **rows)
    return {problem.where: problem.code for problem in error.value.problems}


def test_a_good_corpus_is_read(tmp_path):
    chunks, questions = load(tmp_path)
    assert list(chunks) == ["c-1"] and chunks["c-1"].tags == ("a",)
    assert [question.question_id for question in questions] == ["q-1", "q-2"]
    assert [question.chunk_ids for question in questions] == [("c-1",), ("c-1",)]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFile, match="gone.jsonl"):
        read_jsonl(tmp_path / "gone.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFile, match="holds no .jsonl"):
        list(load_rows(tmp_path / "empty", Chunk, []))


BAD_LINES = {
    "not_utf8": (b'{"a": "\xff"}', "not UTF-8 at byte 8"),
    "bad_json": (b'{"a": "half', "not JSON at column 7"),
    "not_an_object": (b"[1, 2]", "found [1, 2], expected an object")}


def test_every_bad_line_at_once_in_order(tmp_path):
    lines = [line for line, _ in BAD_LINES.values()]
    path = write(tmp_path / "a.jsonl", *lines, {"a": 1}, b"\xef\xbb\xbf{}")
    with pytest.raises(DataError) as error:
        read_jsonl(path, shown="a.jsonl")
    assert [(problem.where, problem.code) for problem in error.value.problems] == [
        (f"a.jsonl, line {line}", code) for line, code in zip((1, 2, 3, 5), [*BAD_LINES, "bom"])]
    assert all(words in str(error.value) for _, words in BAD_LINES.values())


def test_an_endless_number_is_not_called_deep_nesting(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"a": ' + b"9" * 5000 + b"}")
    with pytest.raises(DataError) as error:
        read_jsonl(path)
    assert [problem.code for problem in error.value.problems] == ["nan_or_infinity"]
    assert "nested" not in str(error.value)


def test_problems_of_every_file_come_at_once(tmp_path):
    write(tmp_path / "corpus" / "0.jsonl", b"{half")
    chunks = {**CHUNK, "chunk_id": "c-2", "year": "1966"}, CHUNK, CHUNK
    questions = QUESTION, {**QUESTION, "persona": "poet", "question_id": "q-3"}
    assert faults(tmp_path, chunks=chunks, questions=questions) == {
        "0.jsonl, line 1": "bad_json", "a.jsonl, line 1, year": "int_type",
        "a.jsonl, line 3": "duplicate_id", "b.jsonl, line 2, persona": "literal_error"}


def test_a_bad_line_does_not_make_the_good_chunks_of_its_file_unknown(tmp_path):
    assert faults(tmp_path, chunks=[CHUNK, b"{half"]) == {"a.jsonl, line 2": "bad_json"}


@pytest.mark.parametrize("change", [
    {"chunk_id": "a|b"}, {"chunk_id": "a b"}, {"chunk_id": ""}, {"canonical_url": "no url"},
    {"year": True}, {"year": 3000}, {"text": ""}, {"tags": "a"}, {"unknown": 1},
    {"text": "\ud800"}, {"text": "   "}, {"source_org": "two\nlines"}, {"source_org": " "}])
def test_a_bad_chunk_names_its_field(tmp_path, change):
    [field] = change
    assert f"a.jsonl, line 1, {field}" in faults(tmp_path, chunks=[{**CHUNK, **change}])


@pytest.mark.parametrize("name", [name for name in CHUNK if name != "tags"])
def test_a_missing_field_is_named(tmp_path, name):
    chunk = {key: value for key, value in CHUNK.items() if key != name}
    assert f"a.jsonl, line 1, {name}" in faults(tmp_path, chunks=[chunk], questions=[QUESTION])


def test_duplicate_ids_over_files_name_both_places(tmp_path):
    write(tmp_path / "corpus" / "b.jsonl", {**CHUNK, "text": "Something else."})
    with pytest.raises(DataError, match="b.jsonl, line 1: chunk_id 'c-1' was used at a.jsonl, "
                                        "line 1 .give it another, or delete one of the two"):
        load(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


def changed(row, *names):
    "A row with one field of any value."
    return st.tuples(st.sampled_from(names), JSON_VALUES).map(
        lambda pair: json.dumps({**row, pair[0]: pair[1]}).encode())


LINES = st.one_of(
    st.binary(max_size=60), JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    changed(CHUNK, *CHUNK, *QUESTION, "x"),
    changed(QUESTION, *QUESTION, *MISS, "aliases", "parts", "evidence_quote", "after"))


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(LINES, max_size=4), questions=st.lists(LINES, max_size=4))
def test_whatever_the_files_hold_rows_or_a_sentence(tmp_path, chunks, questions):
    (tmp_path / "c.jsonl").write_bytes(b"\n".join([json.dumps(CHUNK).encode(), *chunks]))
    (tmp_path / "q.jsonl").write_bytes(b"\n".join([json.dumps(QUESTION).encode(), *questions]))
    try:
        read, asked = load_corpus(tmp_path / "c.jsonl", tmp_path / "q.jsonl")
    except (DataError, MissingFile) as error:
        assert isinstance(error, KwanzaaError)
        assert "c.jsonl" in str(error) or "q.jsonl" in str(error)
    else:
        assert "c-1" in read and asked[0].question_id == "q-1"


@pytest.fixture(scope="module")
def project():
    "The chunks of the project's own corpus."
    return load_corpus(ROOT / "data" / "corpus", ROOT / "data" / "questions")[0].values()


def test_the_project_passages_are_as_many_and_as_long_as_the_specification_says(project):
    assert len(project) >= 300 and len({chunk.doc_id for chunk in project}) >= 120
    assert all(40 <= len(chunk.text.split()) <= 250 and chunk.checked for chunk in project)
