"The corpus: every problem by file, line and field, whatever the files hold."

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import ROOT

from kwanzaa_nb.core.jsonl import DataError, MissingFile, read_jsonl
from kwanzaa_nb.data.corpus import Chunk, Question, check_question, load_corpus, load_rows
from kwanzaa_nb.core.errors import KwanzaaError

CHUNK = {
    "chunk_id": "c-1",
    "doc_id": "c",
    "citation_label": "A label",
    "canonical_url": "https://example.org/a",
    "source_org": "An archive",
    "year": 1966,
    "content_type": "summary",
    "license": "CC0-1.0",
    "namespace": "kwanzaa_primary_sources",
    "tags": ["a"],
    "text": "It was first held in 1966. Seven candles burn.",
}
QUESTION = {
    "question_id": "q-1",
    "question": "When was it first held?",
    "answer": "1966",
    "aliases": [],
    "statement": "It was first held in 1966. [1]",
    "evidence": [{"chunk_id": "c-1", "quote": "first held in 1966"}],
}
MISS = {
    "question_id": "q-2",
    "question": "Who held it?",
    "answer": None,
    "kind": "near_miss",
    "about": ["c-1"],
    "missing": "the host",
}


def write(path, *rows):
    "Rows as lines; bytes stay as they are."
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def load(tmp_path, chunks=(CHUNK,), questions=(QUESTION, MISS)):
    return load_corpus(
        write(tmp_path / "corpus" / "a.jsonl", *chunks).parent,
        write(tmp_path / "questions" / "b.jsonl", *questions).parent,
    )


def codes(error):
    return [problem.code for problem in error.value.problems]


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
    "not_an_object": (b"[1, 2]", "found [1, 2], expected an object"),
}


def test_every_bad_line_at_once_in_order(tmp_path):
    path = write(tmp_path / "a.jsonl", *[line for line, _ in BAD_LINES.values()], {"a": 1}, b"\xef\xbb\xbf{}")
    with pytest.raises(DataError) as error:
        read_jsonl(path, shown="a.jsonl")
    assert codes(error) == [*BAD_LINES, "bom"]
    assert all(words in str(error.value) for _, words in BAD_LINES.values())
    assert [problem.where for problem in error.value.problems] == [f"a.jsonl, line {line}" for line in (1, 2, 3, 5)]


def test_an_endless_number_is_not_called_deep_nesting(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"a": ' + b"9" * 5000 + b"}")
    with pytest.raises(DataError) as error:
        read_jsonl(path)
    assert codes(error) == ["nan_or_infinity"] and "nested" not in str(error.value)


def test_problems_of_every_file_come_at_once(tmp_path):
    write(tmp_path / "corpus" / "a.jsonl", b"{half")
    write(tmp_path / "corpus" / "b.jsonl", {**CHUNK, "chunk_id": "c-2", "year": "1966"}, CHUNK, CHUNK)
    write(tmp_path / "questions" / "q.jsonl", QUESTION, {**QUESTION, "persona": "poet", "question_id": "q-3"})
    with pytest.raises(DataError) as error:
        load_corpus(tmp_path / "corpus", tmp_path / "questions")
    found = {problem.where: problem.code for problem in error.value.problems}
    assert found == {
        "a.jsonl, line 1": "bad_json",
        "b.jsonl, line 1, year": "int_type",
        "b.jsonl, line 3": "duplicate_id",
        "q.jsonl, line 2, persona": "literal_error",
    }


def test_a_bad_line_does_not_make_the_good_chunks_of_its_file_unknown(tmp_path):
    with pytest.raises(DataError) as error:
        load(tmp_path, chunks=[CHUNK, b"{half"])
    assert codes(error) == ["bad_json"]


@pytest.mark.parametrize(
    "change, field",
    [
        ({"chunk_id": "a|b"}, "chunk_id"),
        ({"chunk_id": "a b"}, "chunk_id"),
        ({"chunk_id": ""}, "chunk_id"),
        ({"canonical_url": "no url"}, "canonical_url"),
        ({"year": True}, "year"),
        ({"year": 3000}, "year"),
        ({"text": ""}, "text"),
        ({"tags": "a"}, "tags"),
        ({"unknown": 1}, "unknown"),
        ({"text": "\ud800"}, "text"),
        ({"text": "   "}, "text"),
        ({"source_org": "two\nlines"}, "source_org"),
        ({"source_org": " "}, "source_org"),
    ],
)
def test_a_bad_chunk_names_its_field(tmp_path, change, field):
    with pytest.raises(DataError) as error:
        load(tmp_path, chunks=[{**CHUNK, **change}])
    assert f"a.jsonl, line 1, {field}" in [problem.where for problem in error.value.problems]


@pytest.mark.parametrize("name", [name for name in CHUNK if name != "tags"])
def test_a_missing_field_is_named(tmp_path, name):
    with pytest.raises(DataError) as error:
        load(tmp_path, chunks=[{key: value for key, value in CHUNK.items() if key != name}], questions=[QUESTION])
    assert f"a.jsonl, line 1, {name}" in [problem.where for problem in error.value.problems]


@pytest.mark.parametrize(
    "change, code",
    [
        ({"evidence": [{"chunk_id": "c-1", "quote": "First held in 1966"}]}, "quote_not_in_chunk"),
        ({"evidence": [{"chunk_id": "c-9", "quote": "first held in 1966"}]}, "unknown_chunk_id"),
        ({"statement": "It was first held in 1966."}, "evidence_without_mark"),
        ({"statement": "It was first held then. [1]"}, "answer_not_in_statement"),
        ({"statement": "It was first held in 1966. [1] [2]"}, "mark_without_evidence"),
        ({"evidence": []}, "shape"),
        ({"question": " "}, "string_pattern_mismatch"),
    ],
)
def test_a_question_that_is_no_gold_record(tmp_path, change, code):
    with pytest.raises(DataError) as error:
        load(tmp_path, questions=[{**QUESTION, **change}])
    assert codes(error) == [code] and error.value.problems[0].where.startswith("b.jsonl, line 1, ")


def test_an_alias_in_the_statement_is_enough():
    question = Question.model_validate({**QUESTION, "answer": "nineteen sixty-six", "aliases": ["In 1966"]})
    assert check_question(question, {"c-1": Chunk.model_validate(CHUNK)}) == []


@pytest.mark.parametrize(
    "change, code",
    [
        ({"kind": None}, "shape"),
        ({"evidence": QUESTION["evidence"]}, "shape"),
        ({"statement": "It. [1]"}, "shape"),
        ({"about": ["c-9"]}, "unknown_chunk_id"),
        ({"about": []}, "shape"),
    ],
)
def test_a_question_without_answer_has_its_own_shape(tmp_path, change, code):
    with pytest.raises(DataError) as error:
        load(tmp_path, questions=[{**MISS, **change}])
    assert code in codes(error)


def test_duplicate_ids_over_files_name_both_places(tmp_path):
    write(tmp_path / "corpus" / "a.jsonl", CHUNK)
    write(tmp_path / "corpus" / "b.jsonl", {**CHUNK, "text": "Something else."})
    with pytest.raises(DataError, match=r"b.jsonl, line 1: chunk_id 'c-1' was used at a.jsonl, line 1"):
        load_corpus(tmp_path / "corpus", write(tmp_path / "q.jsonl", QUESTION))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
LINES = st.one_of(
    st.binary(max_size=60),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from([*CHUNK, *QUESTION, "x"]), JSON_VALUES).map(
        lambda pair: json.dumps({**CHUNK, pair[0]: pair[1]}).encode()
    ),
    st.tuples(st.sampled_from([*QUESTION, *MISS]), JSON_VALUES).map(
        lambda pair: json.dumps({**QUESTION, pair[0]: pair[1]}).encode()
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(LINES, max_size=4), questions=st.lists(LINES, max_size=4))
def test_whatever_the_files_hold_rows_or_a_sentence(tmp_path, chunks, questions):
    (tmp_path / "c.jsonl").write_bytes(b"\n".join([json.dumps(CHUNK).encode(), *chunks]))
    (tmp_path / "q.jsonl").write_bytes(b"\n".join([json.dumps(QUESTION).encode(), *questions]))
    try:
        read, asked = load_corpus(tmp_path / "c.jsonl", tmp_path / "q.jsonl")
    except (DataError, MissingFile) as error:
        assert isinstance(error, KwanzaaError) and ("c.jsonl" in str(error) or "q.jsonl" in str(error))
    else:
        assert "c-1" in read and asked[0].question_id == "q-1"


def test_the_committed_passages_are_as_many_and_as_long_as_the_card_says():
    chunks, questions = load_corpus(ROOT / "data" / "corpus", ROOT / "data" / "questions")
    assert len(chunks) >= 240 and len({chunk.doc_id for chunk in chunks.values()}) >= 60 and len(questions) >= 400
    assert len({chunk.namespace for chunk in chunks.values()}) == 6
    assert all(40 <= len(chunk.text.split()) <= 90 and chunk.checked for chunk in chunks.values())
    stated = re.findall(r"\| `(\w+)` \| (\d+) \| (\d+) \|", (ROOT / "data" / "README.md").read_text(encoding="utf-8"))
    counted = {name: ({c.doc_id for c in chunks.values() if c.namespace == name}, [c for c in chunks.values() if c.namespace == name])
               for name in {chunk.namespace for chunk in chunks.values()}}
    assert {name: (int(documents), int(size)) for name, documents, size in stated} == {
        name: (len(documents), len(held)) for name, (documents, held) in counted.items()}
