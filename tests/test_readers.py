"Files that are not what their name says, values of wrong types, and prompts that are read back."

import csv
import importlib.util
import io
import json
import os
import threading
import zipfile
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_corpus import CHUNK, MISS, QUESTION

from kwanzaa_nb.run import cli
from kwanzaa_nb.core.answer import ModelAnswer, complete_answer, parse_model_answer
from kwanzaa_nb.core.jsonl import DataError, iter_jsonl, year_meant
from kwanzaa_nb.data.corpus import Chunk, CorpusOptions, load_rows
from kwanzaa_nb.data.questions import load_corpus
from kwanzaa_nb.core.errors import KwanzaaError, Problem, ProblemList
from kwanzaa_nb.core.files import no_file
from kwanzaa_nb.evaluate.passes import complete_answers, grammar_identity
from kwanzaa_nb.model.backend import read_log
from kwanzaa_nb.train.lengths import spare_chunks, without_chunk
from kwanzaa_nb.core.record import filled_in, question_of, read_records, shown_problems
from kwanzaa_nb.evaluate.metrics import score
from kwanzaa_nb.core.prompt import read_context, render_user, shown_text, split_user
from kwanzaa_nb.data.build import make_record
from kwanzaa_nb.data.checks import prompt_features
from kwanzaa_nb.data.write import count_by, count_rows
from kwanzaa_nb.evaluate.red_team import asked_as, probes
from kwanzaa_nb.report.evaluation import evaluation_page, page_rows
from kwanzaa_nb.core.sentences import number_sentences
from kwanzaa_nb.core.stats import LabelError
from kwanzaa_nb.evaluate.support import reliability
from kwanzaa_nb.data.tables import read_csv, read_parquet
from kwanzaa_nb.data.validation import validate_records

FUZZ = settings(max_examples=150, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


# ---- lists of problems

@pytest.mark.parametrize("count", [1, 2, 50, 51, 6403])
def test_the_first_fifty_problems_are_printed_and_all_are_kept(count):
    error = ProblemList("a.jsonl", [Problem(f"line {place}", "wrong") for place in range(count)])
    lines = str(error).split("\n")
    assert len(error.problems) == count
    assert lines[0] == f"a.jsonl: {count:,} problem{'s' if count > 1 else ''}"
    assert lines[1:51] == [f"  - line {place}: wrong" for place in range(min(50, count))]
    assert lines[51:] == ([f"  … and {count - 50:,} more"] if count > 50 else [])


# ---- files that are something else

ROWS = [{**CHUNK, "chunk_id": f"c-{place}"} for place in range(1, 300)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def zipped():
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    return held.getvalue()


def parquet_bytes():
    held = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS[:3]), held)
    return held.getvalue()


OTHERS = {
    "Git LFS": POINTER, "git-annex": b"/annex/objects/SHA256E-s12--ab.jsonl\n",
    "gzip": b"\x1f\x8b\x08\0" + bytes(range(256)) * 9, "zip": zipped(),
    "PDF": b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n<<>>\n",
    ".xls": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "HTML": b"\n<!DOCTYPE html>\n<html>\n<p>404\n" * 40, "HTML ": b"<HTML><body>\n" * 40,
    "XML": b"<?xml version='1.0'?>\n<Error>\n<Code>NoSuchKey</Code>\n</Error>\n",
    "Parquet": parquet_bytes(), "SQLite": b"SQLite format 3\0" + bytes(300),
    "UTF-16": TEXT.encode("utf-16"), "UTF-16 ": TEXT.encode("utf-16-le"),
    "UTF-16  ": TEXT.encode("utf-16-be"), "UTF-32": TEXT.encode("utf-32"),
    "UTF-32 ": TEXT.encode("utf-32-le"), "UTF-32  ": TEXT.encode("utf-32-be"),
    "Zstandard": b"\x28\xb5\x2f\xfd\x24\n\n\n" * 50,
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".md", ".txt", ".parquet", ".pdf", ".docx"])
def test_a_file_that_is_something_else_is_one_problem_with_its_cause(tmp_path, name, suffix):
    if (name, suffix) in (("Parquet", ".parquet"), ("PDF", ".pdf"), ("zip", ".docx"),
                          (".xls", ".docx")):
        return
    (tmp_path / "corpus").mkdir()
    path, content = tmp_path / "corpus" / f"a{suffix}", OTHERS[name]
    path.write_bytes(content)
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({**QUESTION, "question_id": f"q-{place}"}) + "\n"
                                 for place in range(99)), encoding="utf-8")
    with pytest.raises(DataError) as error:
        load_corpus(path, questions,
                    CorpusOptions(defaults={"year": 1966, "source_org": "A",
                                            "license": "CC0-1.0", "namespace": "n",
                                            "canonical_url": "https://example.org/",
                                            "content_type": "summary"}))
    [problem] = error.value.problems
    assert name.strip() in problem.what and problem.mend and "half written" not in str(problem)


@pytest.mark.parametrize("name", OTHERS)
def test_every_reader_of_lines_says_so(tmp_path, name):
    path = tmp_path / "a.jsonl"
    path.write_bytes(OTHERS[name])
    report = validate_records(path, shown="a.jsonl")
    assert len(report.problems) == 1 and name.strip() in report.problems[0].what
    for read in (read_records, read_log,
                 lambda path: list(load_rows(path, Chunk, [])) or read_records(path)):
        with pytest.raises(DataError, match=name.strip()) as error:
            read(path)
        assert len(error.value.problems) == 1


PRETTY = {
    "json_array": [json.dumps(ROWS, indent=2), json.dumps(ROWS), "\ufeff" + json.dumps(ROWS, indent=4), "[]", "[1, 2]", "[\n]", "\n [\n",
                   "[" + ",\n".join(json.dumps(row) for row in ROWS) + "]", "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]",
                   json.dumps(ROWS * 40), "[" + json.dumps(ROWS[0]) + "\n," + json.dumps(ROWS[1]) + "\n]"],
    "pretty_printed": ["\n".join(json.dumps(row, indent=2) for row in ROWS), json.dumps({"data": ROWS}, indent=1), "{\n}\n{\n}",
                       '{"data": [\n' + ",\n".join(json.dumps(row) for row in ROWS) + "\n]}", '{"a": 1,\n "b": 2}'],
    "other_format": ["chunk_id,text\n" + "c-1,One.\n" * 300, "- chunk_id: a\n- chunk_id: b\n", "Not found\nat all", "404: Not Found\n\n" * 2],
}


@pytest.mark.parametrize("code, content", [(code, content) for code, contents in PRETTY.items()
                                           for content in contents])
def test_what_is_no_json_lines_is_one_problem(tmp_path, code, content):
    path, problems = tmp_path / "a.jsonl", []
    path.write_text(content, encoding="utf-8")
    assert list(iter_jsonl(path, "a.jsonl", problems)) == []
    assert [problem.code for problem in problems] == [code]
    assert problems[0].mend and "half written" not in str(problems[0])
    assert len(str(problems[0])) < 500


@pytest.mark.parametrize("content, codes", [
    (b'[1]\n{"a": 1}\n{"a": 2}', ["not_an_object"]), (b'{"a": 1}\n[\n{"a": 2}', ["bad_json"]),
    (b'{"a": [1,\n{"a": 2}', ["bad_json"]), (b'# words\n{"a": 1}\n', ["bad_json"]),
    (b"5", ["not_an_object"]), (b'{"a": 1}, \n{"a": 2}', ["bad_json"]), (b'{"a": 1}\n', [])])
def test_bad_lines_among_good_ones_stay_bad_lines(tmp_path, content, codes):
    problems = []
    (tmp_path / "a.jsonl").write_bytes(content)
    list(iter_jsonl(tmp_path / "a.jsonl", "a.jsonl", problems))
    assert [problem.code for problem in problems] == codes


def test_the_advised_command_makes_lines_of_an_array(tmp_path):
    import shlex
    import subprocess
    import sys

    path, problems = tmp_path / "my tea.jsonl", []
    path.write_text(json.dumps([{"a": "ü\n"}, {"a": 2}], indent=1), encoding="utf-8")
    list(iter_jsonl(path, "my tea.jsonl", problems))
    words = shlex.split(problems[0].mend.removeprefix("convert it: "))
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True)
    assert [row for _, row in iter_jsonl(tmp_path / words[-1], "x", [])] == [{"a": "ü\n"}, {"a": 2}]


def test_half_written_is_said_of_a_last_line_without_its_end_alone(tmp_path):
    path, good = tmp_path / "a.jsonl", json.dumps(CHUNK)
    for content, said in ((f"{good}\n{good[:40]}", True), (f"{good}\n{good[:40]}\n", False),
                          (f"{good[:40]}\n{good}\n{good}", False), (good[:40], True),
                          (f"{good}\n{{'a': 1}}\n", False)):
        path.write_text(content, encoding="utf-8")
        problems = []
        list(iter_jsonl(path, "a.jsonl", problems))
        assert len(problems) == 1 and ("half written" in problems[0].mend) is said, content


def test_a_great_array_is_not_read_whole(tmp_path):
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(b"[\n")
        for _ in range(200):
            file.write(b'{"a": "' + b"x" * 100_000 + b'"},\n')
    tracemalloc.start()
    report = validate_records(path, shown="a.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(report.codes) == ["json_array"] and peak < 2_000_000


@pytest.mark.parametrize("content", [b"[]", b'[{"claim": "a"}]', b'{"claim": null, "evidence": ["a"], "label": "supported"}', POINTER, b"\x1f\x8b\0\0", b"[\n1\n]",
                                     b'{"claim": "a", "evidence": [1], "label": "supported"}', b'{"claim": "a", "evidence": null, "label": "x"}', b"5", b""])
def test_human_labels_that_are_none(tmp_path, content):
    (tmp_path / "wice_claim_dev.jsonl").write_bytes(content)
    with pytest.raises(LabelError):
        reliability(tmp_path)


@pytest.mark.parametrize("content", [b"", POINTER, b"a\tb\n1\t2\n", b"response\tknowledge\tbegin_label\nonly one\n", b"\0\0", b"<!doctype html>\n<p>", b"\xff\xfea\0"])
def test_human_tables_that_are_none(tmp_path, content):
    (tmp_path / "begin_a_dev.tsv").write_bytes(content)
    with pytest.raises(LabelError):
        reliability(tmp_path)


# ---- spreadsheets

BLANK = st.text(" \t\u00a0", max_size=2)
NAMES = ["chunk_id", "text", "tags"]


@FUZZ
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=8),
       st.integers(0, 2), st.integers(0, 3), BLANK, st.booleans(),
       st.sampled_from(["", "\ufeff"]), st.sampled_from([",", ";", "\t"]), st.booleans())
def test_blank_rows_and_columns_of_a_spreadsheet_are_passed_over(tmp_path, rows, before, behind, blank, quoted, mark, separator, trailing):
    held, expected, number = io.StringIO(newline=""), [], 1
    if separator != "," or trailing:
        held.write(f"sep={separator}\r\n")
        number += 1
    writer = csv.writer(held, delimiter=separator,
                        quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerow([blank] * before + NAMES + [""] * behind)
    for filled, more in rows:
        number += 1
        values = [f"c-{number}", "One, two; \"three\".", ""] if filled else [blank] * 3
        writer.writerow([blank] * before + values + [blank] * (behind + more if trailing else behind))
        expected += [(number, dict(zip(NAMES[:2], values)))] if filled else []
    (tmp_path / "a.csv").write_bytes((mark + held.getvalue()).encode())
    problems = []
    found = [(at, {name: row[name] for name in NAMES[:2]})
             for at, row in read_csv(tmp_path / "a.csv", "a.csv", problems)]
    assert found == expected
    assert [problem.code for problem in problems] == ([] if expected else ["empty_file"])


@pytest.mark.parametrize("content, code", [
    ("a;b\n1;2\n" * 300, "bad_separator"), ('"a";"b"\n"1";"2, 3"\n', "bad_separator"),
    ("a\tb\n1\t2\n", "bad_separator"), ("a|b\n1|2\n", "bad_separator"),
    ('{"a": 1, "b": 2}\n' * 300, "other_format"), ("[\n 1,\n 2]\n", "other_format"),
    (",,\n , ,\n", "empty_file"), ("a,b\n,\n\n", "empty_file"), ("a,\n1,2\n", "bad_column"),
    (",a\n1,2\n", "bad_column")])
def test_a_csv_that_is_none_is_one_problem(tmp_path, content, code):
    problems = []
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    assert read_csv(tmp_path / "a.csv", "a.csv", problems) == []
    assert [problem.code for problem in problems] == [code] and problems[0].mend


def test_columns_keep_the_numbers_of_the_sheet(tmp_path):
    problems = []
    (tmp_path / "a.csv").write_text(",a,,b\n,1,x,2\n", encoding="utf-8")
    assert read_csv(tmp_path / "a.csv", "a.csv", problems) == []
    assert [(problem.where, problem.what) for problem in problems] == [("a.csv, row 1", "column 3 has no name")]


# ---- Parquet

def corpus_of(tmp_path, table, **options):
    (tmp_path / "q.jsonl").write_text(json.dumps(QUESTION) + "\n", encoding="utf-8")
    pq.write_table(table, tmp_path / "a.parquet")
    return load_corpus(tmp_path / "a.parquet", tmp_path / "q.jsonl", CorpusOptions(**options))[0]


def columns(**changes):
    return pa.table({name: pa.array([value]) for name, value in CHUNK.items()} | {name: value for name, value in changes.items()})


@pytest.mark.parametrize("year", [
    pa.array([1966.0]), pa.array([1966.0], pa.float32()), pa.array([1966], pa.uint16()),
    pa.array(["1966"]), pa.array(["1966.0"]), pa.array([Decimal("1966.00")]),
    pa.array(["1966"]).dictionary_encode(), pa.array([1966]).dictionary_encode(),
    pa.array(["1966"], pa.large_string())])
def test_a_year_of_any_column_is_a_year(tmp_path, year):
    assert corpus_of(tmp_path, columns(year=year))["c-1"].year == 1966


@pytest.mark.parametrize("year", [
    pa.array([float("nan")]), pa.array([None], pa.float64()), pa.array([None]),
    pa.array([None], pa.timestamp("ns")), pa.array(["NaN"]), pa.array(["nan"]), pa.array(["NA"]),
    pa.array(["<NA>"]), pa.array([""]), pa.array([" "]), pa.array(["None"]), pa.array(["NaT"])])
def test_no_year_is_missing(tmp_path, year):
    assert corpus_of(tmp_path, columns(year=year), defaults={"year": 1999})["c-1"].year == 1999
    with pytest.raises(DataError) as error:
        corpus_of(tmp_path, columns(year=year))
    assert [(problem.where, problem.code) for problem in error.value.problems] == [("a.parquet, row 1, year", "missing")]


@pytest.mark.parametrize("name, value", [
    ("year", pa.array([1966.5])), ("year", pa.array([float("inf")])),
    ("year", pa.array([datetime(1966, 1, 1)])), ("year", pa.array([date(1966, 1, 1)])),
    ("year", pa.array([b"1966"])), ("year", pa.array([True])),
    ("year", pa.array([{"year": 1966}])), ("text", pa.array([b"It was first held in 1966."])),
    ("text", pa.array([7])), ("text", pa.array([["a"]])),
    ("tags", pa.array([[None]], pa.list_(pa.string()))), ("tags", pa.array([7])),
    ("doc_id", pa.array([7.0])), ("source_org", pa.array([{"name": "A"}])),
    ("canonical_url", pa.array([b"https://example.org/"])),
    ("license", pa.array([Decimal("4.0")])), ("license", pa.array([float("nan")])),
    ("source_org", pa.array([None], pa.string()))])
def test_what_a_column_cannot_be_is_named(tmp_path, name, value):
    with pytest.raises(DataError) as error:
        corpus_of(tmp_path, columns(**{name: value}))
    assert {problem.where.removeprefix("a.parquet, row 1, ").split(".")[0] for problem in error.value.problems} == {name}


def test_missing_texts_lists_and_answers_of_a_table(tmp_path):
    none = pa.array([None, float("nan")], pa.float64())
    pq.write_table(pa.Table.from_pylist([CHUNK, {**CHUNK, "chunk_id": "c-2"}]).set_column(9, "tags", none).append_column("checked", none),
                   tmp_path / "a.parquet")
    rows = [{**MISS, "answer": None, "aliases": None, "typed": None},
            {**MISS, "question_id": "q-9"}]
    table = pa.Table.from_pylist(rows)
    place = table.column_names.index("answer")
    pq.write_table(table.set_column(place, "answer", none), tmp_path / "q.parquet")
    chunks, asked = load_corpus(tmp_path / "a.parquet", tmp_path / "q.parquet")
    assert [chunk.tags for chunk in chunks.values()] == [(), ()]
    assert [question.answer for question in asked] == [None, None]


@pytest.mark.parametrize("table", [
    pa.table({}), pa.table({"chunk_id": pa.array([], pa.string())}),
    pa.Table.from_pylist([CHUNK]).slice(0, 0),
    pa.table({"chunk_id": pa.array([None, None], pa.string()),
              "year": pa.array([float("nan"), None])})])
def test_an_empty_parquet_holds_no_records(tmp_path, table):
    pq.write_table(table, tmp_path / "a.parquet")
    problems = []
    assert read_parquet(tmp_path / "a.parquet", "a.parquet", problems) == []
    assert [str(problem) for problem in problems] == ["a.parquet: holds no records (it has no rows with a value; export it again)"]


def test_null_rows_are_passed_over_and_numbers_stay(tmp_path):
    pq.write_table(pa.table({"a": [None, "x", None, "y"],
                             "b": [None, None, float("nan"), 1.0]}), tmp_path / "a.parquet")
    problems = []
    assert [number for number, _ in read_parquet(tmp_path / "a.parquet", "a", problems)] == [2, 4]
    assert not problems


def test_a_column_that_is_there_twice_is_named(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])],
                                        names=["text", "text"]), tmp_path / "a.parquet")
    problems = []
    assert read_parquet(tmp_path / "a.parquet", "a", problems) == []
    assert problems[0].code == "bad_column"


# ---- records

SHOWN = [{**CHUNK, "gold": True, "score": 7.5, "shelf": {"row": [1, None]}},
         {**CHUNK, "chunk_id": "c-2", "text": "Seven candles\n\nburn.", "gold": False,
          "tags": [], "score": None, "spans": [[0, 13], [15, 20]]}]
TARGET = {"evidence": [1], "answer": {"completeness": "complete", "text": "In 1966. [1]"},
          "unknowns": {"unsupported_claims": [], "missing_context": [], "clarifying_questions": []}}


REFUSED = {"evidence": [], "answer": {"completeness": "insufficient_data",
                                      "text": "It is not there."},
           "unknowns": {"unsupported_claims": [],
                        "missing_context": ["the day"], "clarifying_questions": []}}


def good_record(question="When was it first held?", **fields):
    texts = {"system": "Answer in JSON.", "user": render_user(question, SHOWN),
             "assistant": json.dumps(TARGET)}
    return {"id": "r-1", "category": "citation_required", "kind": "answered",
            "persona": "educator", "mode": "base_adapter_rag", "answerable": True,
            "group": "g", "pair_id": "p", "question_id": "q", "question": question,
            "messages": [{"role": role, "content": text} for role, text in texts.items()],
            "chunks": json.loads(json.dumps(SHOWN)),
            "expected": {"answer": "1966", "aliases": ["in 1966"],
                         "gold_chunk_ids": ["c-1"]}, "note": {"deep": ["a", {"b": "c"}]}, **fields}


def places_in(value, path=()):
    "Every path inside a value."
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, part in inner for found in [(*path, name),
                                                        *places_in(part, (*path, name))]]


def put_at(record, path, value):
    "A copy of a record with another value at a path."
    changed = json.loads(json.dumps(record))
    part = changed
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return changed


def named(path):
    "A path as problems name it."
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def written(tmp_path, *rows):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def named_parts(user):
    "What a user message shows, as chunks to render."
    return [{"chunk_id": str(place), **part} for place, part in enumerate(read_context(user))]


def use(records, checked=True):
    "What every later stage does with records; where targets were checked, they count as right answers."
    rows = [{"id": record["id"], "arm": "adapter", "raw": record["messages"][2]["content"], "finish_reason": "stop"} for record in records]
    scores = score(rows, records)
    assert all(outcome.valid for outcome in scores.outcomes) or not checked
    lines, _ = complete_answers(rows, records, CONFIG)
    page = evaluation_page("t", records, rows, {"adapter": scores})
    assert page_rows(records, rows, {"adapter": scores})[0]["question"] == question_of(records[0])
    count_rows({"eval": records}), count_by({"eval": records}, "namespace"), count_by({"eval": records}, "persona"), grammar_identity(records)
    for record in records:
        prompt_features(record), asked_as(record, "x", "Why?"), probes([record]), render_user(question_of(record) or "x", named_parts(record["messages"][1]["content"]))
        for chunk_id in spare_chunks(record):
            without_chunk(record, chunk_id)
    for text in (json.dumps([records, lines], ensure_ascii=False, allow_nan=False), page):
        text.encode()


class CONFIG:
    "As much of a config as complete answers read."
    class model:
        base_model_id = "m"

    class run:
        name = "r"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(1500, 2200) | st.floats() | st.floats(1500, 2200).map(round).map(float)
    | st.sampled_from(["", " ", "a\nb", "1966", "c. 1966", "c-1", "c-2", "true", "educator", "a\0", "x" * 600, "https://example.org/ü", 10 ** 30, -0.0, 1966.0])
    | st.text(st.characters(), max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=4), inner, max_size=3), max_leaves=6)


CROSS = {"unknown_gold", "duplicate_chunk_id", "answerable", "number_not_shown"}  # told where they show


def test_a_good_record_is_used_by_every_stage(tmp_path):
    path = written(tmp_path, good_record())
    assert validate_records(path).problems == ()
    use(read_records(path, targets=True))


@settings(FUZZ, max_examples=600)
@given(st.sampled_from(places_in(good_record())), VALUES, st.booleans())
def test_any_value_at_any_place_is_named_or_used(tmp_path, path, value, targets):
    file = written(tmp_path, put_at(good_record(), path, value))
    try:
        records = read_records(file, shown="a.jsonl", targets=targets)
    except DataError as error:
        str(error).encode()
        wheres = [problem.where.partition(", line 1")[2].removeprefix(", ")
                  for problem in error.problems]
        ours = named(path)
        about = [where for where in wheres if where.startswith(ours) or ours.startswith(where)]
        assert about or {problem.code for problem in error.problems} <= CROSS or path[0] == "messages", (ours, str(error))
    else:
        use(records, targets)


@settings(FUZZ, max_examples=150)
@given(st.sampled_from([("",), *places_in(good_record())]), st.characters(categories=["Cs"]),
       st.booleans(), st.booleans())
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(tmp_path, path, sign, as_key, targets):
    record, part = good_record(), None
    for name in path if path != ("",) else ():
        part = (part or record)[name] if part is not None else record[name]
    if as_key and isinstance(part, dict):
        record = put_at(record, path, {**part, f"a{sign}": 1})
    elif path == ("",):
        record[f"a{sign}b" if as_key else "more"] = {"x": [f"a{sign}"]}
    else:
        record = put_at(record, path, f"It {sign}")
    with pytest.raises(DataError) as error:
        read_records(written(tmp_path, record), shown="a.jsonl", targets=targets)
    str(error.value).encode()
    start = named(path[:1]) if path != ("",) else ""
    assert any(problem.where.startswith(f"a.jsonl, line 1, {start}")
               for problem in error.value.problems)


@pytest.mark.parametrize("name, value, mend", [
    ("year", "1966", "write 1966"), ("year", 1966.0, "write 1966"),
    ("year", "1966-05-01", "write 1966"), ("year", " 1966 ", "write 1966"),
    ("year", "c. 1966", "write 1966"), ("year", "1966 or 1967", "leave it out"),
    ("year", None, "leave it out"), ("doc_id", None, "leave it out"), ("doc_id", 7, 'write "7"'),
    ("namespace", ["a"], "leave it out"), ("tags", "a|b, c", 'write ["a", "b", "c"]'),
    ("gold", "True", "write true"), ("gold", 0, "write false"),
    ("canonical_url", "example.org/a", "write https://example.org/a"),
    ("canonical_url", "", "leave it out"), ("score", "0.5", "write 0.5"),
    ("chunk_id", 7, 'write "7"'), ("license", 4.0, 'write "4.0"')])
def test_a_value_that_is_nearly_right_has_its_mend(tmp_path, name, value, mend):
    report = validate_records(written(tmp_path, put_at(good_record(), ("chunks", 0, name),
                                                       value)), shown="a.jsonl")
    [problem] = [problem for problem in report.problems if problem.code == "field_type"]
    assert problem.where == f"a.jsonl, line 1, chunks[0].{name}" and mend in problem.mend
    assert "found" in problem.what


@pytest.mark.parametrize("name", [name for name in SHOWN[0] if name not in ("chunk_id", "text")])
def test_optional_fields_of_a_chunk_may_be_missing(tmp_path, name):
    record = good_record()
    del record["chunks"][0][name]
    use(read_records(written(tmp_path, record), targets=True))


def problems_of(tmp_path, record, targets):
    with pytest.raises(DataError) as error:
        read_records(written(tmp_path, record), shown="a", targets=targets)
    return {(problem.where, problem.code) for problem in error.value.problems}


@pytest.mark.parametrize("targets", [True, False])
def test_what_makes_a_right_answer_count_as_wrong_is_refused_in_evaluation_too(tmp_path, targets):
    record = good_record()
    twice = {**record, "chunks": [*record["chunks"], record["chunks"][0]]}
    assert problems_of(tmp_path, twice, targets) == {("a, line 1, chunks[2].chunk_id", "duplicate_chunk_id")}
    fewer = put_at(record, ("chunks",), record["chunks"][:1])
    assert problems_of(tmp_path, fewer, targets) == {("a, line 1, chunks", "chunk_not_shown")}
    other = put_at(record, ("chunks", 1, "spans"), [[0, 20]])
    assert problems_of(tmp_path, other, targets) == {("a, line 1, chunks[1]", "chunk_not_shown")}
    for gold, code in ((["c-9"], "unknown_gold"), (["c-1", "c-1"], "duplicate_gold")):
        assert problems_of(tmp_path, put_at(record, ("expected", "gold_chunk_ids"), gold), targets) == {("a, line 1, expected.gold_chunk_ids", code)}
    empty = good_record(expected={}, chunks=[])
    empty["messages"][1]["content"] = render_user("When?", [])
    assert ("a, line 1, answerable", "answerable") in problems_of(tmp_path, empty, targets)


def test_deep_nesting_is_named_and_long_names_are_cut(tmp_path):
    for depth, codes in ((80, []), (200, ["bad_json"]), (900, ["bad_json"])):
        text = json.dumps(good_record())[:-1] + ', "more": ' + "[" * depth + "]" * depth + "}\n"
        (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
        assert [problem.code for problem in validate_records(tmp_path / "a.jsonl").problems] == codes
    report = validate_records(written(tmp_path, {"x" * 100_000: 1, "\ud800": "\udfff"}))
    assert len(str(report)) < 1000
    str(report).encode()


@settings(FUZZ, max_examples=200)
@given(st.sampled_from([("c", path) for path in places_in(CHUNK)] + [("q", path) for path in places_in(QUESTION)]), VALUES)
def test_any_value_in_a_corpus_is_named_or_builds_records_that_are_read(tmp_path, place, value):
    kind, path = place
    chunk, question = (put_at(row, path, value) if kind == one else row
                       for one, row in (("c", CHUNK), ("q", QUESTION)))
    for name, row in (("c", chunk), ("q", question)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    try:
        chunks, questions = load_corpus(tmp_path / "c.jsonl", tmp_path / "q.jsonl")
    except KwanzaaError as error:
        str(error).encode()
        assert any(str(path[0]) in str(problem) for problem in error.problems) or path[0] in ("text", "chunk_id", "quote", "evidence", "answer", "groups")
        return
    shown = [chunks[name] for name in questions[0].chunk_ids]
    records = [make_record(questions[0], shown, "g")]
    use(read_records(written(tmp_path, *records), targets=True))


# ---- prompts

NASTY = st.lists(st.sampled_from([
    "### Instruction:", "### Retrieved Context:", "(none provided)", "S, 1900", "[1] One. [1]", "[2] ", " [2]", "\n", "\n\n", "\n  ", "\n\n### Instruction:\n", "```\n", "# ",
    "- ", "text", " ", "\r", "\u2028", "\t", "A. B", "[", "]", "[3, 4]"]) | st.text(max_size=5), min_size=1, max_size=8).map("".join)
IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.sampled_from(["c-1", "[1]", "### Instruction:"])
ORGS = st.sampled_from(["S", "A, 1900", "[1] So. [1]", "### Instruction:", "(none provided)"]) | st.text(min_size=1, max_size=6)
SHOWN_CHUNKS = st.lists(st.fixed_dictionaries({"chunk_id": IDS, "source_org": ORGS,
                                               "year": st.integers(-10 ** 9, 10 ** 10),
                                               "text": NASTY}), max_size=3)


@settings(FUZZ, max_examples=500)
@given(NASTY, SHOWN_CHUNKS)
def test_a_prompt_is_read_back_whatever_it_holds(question, chunks):
    try:
        user = render_user(question, chunks)
    except KwanzaaError:
        return
    before, asked = split_user(user)
    assert asked == question.strip() and f"{before}\n{asked}" == user
    assert [(part["source_org"], part["year"]) for part in read_context(user)] == [(shown_text(chunk["source_org"]), chunk["year"]) for chunk in chunks]
    assert [shown_text(one.whole) for one in number_sentences(named_parts(user))] == [
        shown_text(one.whole) for one in number_sentences(chunks)]
    assert render_user(question, named_parts(user)) == user


@settings(FUZZ, max_examples=100)
@given(NASTY, NASTY.filter(str.strip), st.sampled_from(["c-1", "c-2"]))
def test_every_reader_of_a_question_agrees(question, text, gone):
    chunks = [{**SHOWN[0], "text": text}, SHOWN[1]]
    assume(question.strip())
    texts = {"system": "x", "user": render_user(question, chunks), "assistant": json.dumps(REFUSED)}
    record = {**good_record(), "chunks": chunks,
              "messages": [{"role": role, "content": content} for role, content in texts.items()]}
    bare = filled_in({"messages": record["messages"]}, 1)
    assert question_of(record) == bare["question"] == question.strip()
    assert shown_problems(bare) == shown_problems(filled_in(record, 1)) == []
    fewer = without_chunk(record, gone)
    assert fewer["messages"][1]["content"] == render_user(question,
                                                          [chunk for chunk in chunks
                                                           if chunk["chunk_id"] != gone])
    assert asked_as(record, "x", "Why?")["messages"][1]["content"] == render_user("Why?", chunks)


def test_a_message_written_by_hand_is_read_as_far_as_it_tells():
    head = "### Retrieved Context:\nS, 1900\n[1] One. [1]\n"
    assert split_user(f"{head}\n### Instruction:\nWhat is\n### Instruction:\nfor?")[1] == "What is\n### Instruction:\nfor?"
    two = f"{head}[2] Two\n  lines. [2]\n\nT, 1901\n[3] Three. [3]\n\n### Instruction:\nWhen?"
    assert [chunk["text"] for chunk in read_context(two)] == ["One.\nTwo\nlines.", "Three."]
    assert split_user(two)[1] == "When?"
    assert split_user("What does '### Instruction:' mean?") == ("", "What does '### Instruction:' mean?")
    assert split_user("### Instruction: When?")[1] == "### Instruction: When?"
    assert split_user("") == ("", "")
    assert read_context("### Retrieved Context:\n(none provided)\n\n### Instruction:\nWhen?") == []
    year = f"### Retrieved Context:\nS, {'9' * 5000}\n[1] One. [1]\n\n### Instruction:\nWhen?"
    for other in (year, head, "", "When?", two.replace("[2]", "[4]"),
                  two.replace("T, 1901", "T"), two.replace("  lines", "lines"),
                  two.replace(" [3]", "")):
        assert read_context(other) is None, other


@pytest.mark.parametrize("question", ["What does '### Instruction:' mean?", "One.\n\n### Instruction:\nTwo?", "### Retrieved Context:\nS, 1900\n[1] So. [1]\n?",
                                      "[1] One. [1]", "### Instruction:"])
def test_a_question_that_looks_like_the_layout_is_a_question(tmp_path, question):
    for fields in ({}, {"chunks": None}):
        record = good_record(question)
        record = {name: value for name, value in record.items() if name in ("messages", "id")} if fields else record
        path = written(tmp_path, record)
        assert validate_records(path).problems == ()
        assert question_of(read_records(path, targets=True)[0]) == question


def test_a_complete_answer_of_odd_provenance_is_a_sentence():
    answer = parse_model_answer(json.dumps(TARGET), SHOWN)
    assert isinstance(answer, ModelAnswer)
    with pytest.raises(KwanzaaError):
        complete_answer(answer, [{**SHOWN[0], "year": "1966"}, SHOWN[1]], query="When?")


# ---- paths that are no files, and files of other programs


def odd_path(tmp_path, kind, suffix):
    path = tmp_path / f"a{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    return path


def answered(call):
    "What a call in a thread of its own returns; it must not wait for ever."
    found = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(20)
    assert found, "it waits for ever"
    return found[0]


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/null", "folder"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".md", ".txt"])
def test_what_is_no_file_is_told_and_not_read(tmp_path, kind, suffix):
    path, problems = odd_path(tmp_path, kind, suffix), []
    if suffix == ".jsonl":
        assert answered(lambda: list(iter_jsonl(path, "a", problems))) == []
        assert answered(lambda: validate_records(path).codes) == {"unreadable": 1}
    elif kind == "folder":
        return  # of files that are read one by one
    else:
        assert answered(lambda: list(load_rows(path, Chunk, problems))) == []
    [problem] = problems
    assert problem.code == "unreadable" and problem.mend
    assert ("folder" if kind == "folder" else "pipe") in problem.what


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder", "nowhere"])
@pytest.mark.parametrize("words", [["validate", "{}"], ["config", "check", "{}"],
                                   ["run", "data", "--config", "{}"], ["sweep", "{}"]])
def test_commands_say_what_is_no_file(tmp_path, monkeypatch, capsys, kind, words):
    monkeypatch.chdir(tmp_path)
    path = odd_path(tmp_path, kind, ".yaml")
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)  # which only the main thread may call
    assert answered(lambda: cli.main([word.format(path.name) for word in words])) == (1 if words[0] == "validate" else 2)
    told = "".join(capsys.readouterr())
    assert "a.yaml" in told and "Errno" not in told and "Traceback" not in told
    assert ("not there" in told or "no such file" in told) if kind == "nowhere" else ("expected a file" in told)


def test_a_file_and_what_is_not_there_are_not_odd(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert [no_file(path) for path in (tmp_path / "a", tmp_path / "b", "a\0b", "a" * 5000, tmp_path / "a" / "b")] == [None] * 5


HALF = "the line may be half written"


@pytest.mark.parametrize("last, mend", [
    (b'{"a": "b', HALF), (b'{"a":', HALF), (b'{"a": 1', HALF), (b"{", HALF),
    (b"Entry not found", "one line of JSON"), (b"404: Not Found", "JSON alone"),
    (b'cb({"a": 1})', "one line of JSON"), (b'{"a": 1}{"a": 2}', "JSON alone"),
    (b'{"a": 1} // note', "leave it out"), (b"{'a': 1}", "double quotes"),
    (b'{"a": 1,}', "comma"), (b"\0\0\0", "restore"), (b'{"a": 1}\0\0', "restore"),
    (b"\x1a", "one line of JSON"), (b"null", "{...}"), (b"3", "{...}"), (b'"a"', "{...}")])
def test_the_mend_of_a_line_is_that_of_its_cause(tmp_path, last, mend):
    problems = []
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + last)
    list(iter_jsonl(tmp_path / "a.jsonl", "a.jsonl", problems))
    assert [mend in problem.mend for problem in problems] == [True]
    assert (HALF in problems[0].mend) is (mend == HALF)
    assert "NoneType" not in problems[0].what and "a str," not in problems[0].what


def test_byte_order_marks_of_joined_files_are_named_and_their_lines_read(tmp_path):
    problems = []
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    assert [row for _, row in iter_jsonl(tmp_path / "a.jsonl", "a.jsonl", problems)] == [{"a": 1}, {"a": 2}]
    assert [(problem.where, problem.code) for problem in problems] == [("a.jsonl, line 1", "bom"), ("a.jsonl, line 2", "bom")]


def test_records_inside_of_an_object_are_found(tmp_path):
    [problem] = validate_records(written(tmp_path, {"data": [good_record()]})).problems
    assert "each object of data on a line of its own" in problem.mend


def table_of(tmp_path, text):
    problems = []
    (tmp_path / "a.csv").write_bytes(text.encode())
    return read_csv(tmp_path / "a.csv", "a.csv",
                    problems), [(problem.where, problem.what, problem.mend) for problem in problems]


@pytest.mark.parametrize("text, where, word", [
    ("\ufeffa,b\n1,2\n\ufeffa,b\n", "row 3", "headings once more"),
    ("a,b\n1,2\n\0\0\0", "row 3", "U+0000"), ("a,b\n1,2\n\x1a", "row 3", "U+001A"),
    ("\0\0a,b\n1,2\n", "row 1", "U+0000"), ("\0\0", "row 1", "U+0000"),
    ("# exported\na,b\n1,2\n", "row 1", "above"), ("Mine,,,\na,b,c,d\n1,2,3,4\n",
                                                   "row 1", "3 columns have no name"),
    ("a,b\n1,2\nTotal\n", "row 3", "1 cell, expected 2"), ("a\tb\n1\t2\n", "row 1", "a tab")])
def test_what_other_programs_leave_in_a_csv_is_one_problem(tmp_path, text, where, word):
    _, [(place, what, mend)] = table_of(tmp_path, text)
    assert place == f"a.csv, {where}" and word in what and mend and "\t" not in mend


@pytest.mark.parametrize("text", ["\ufeff\ufeffa,b\n1,2\n", "a,b\n1,2\n", "a,b\r\n1,2\r\n,\r\n"])
def test_marks_and_blank_ends_are_passed_over(tmp_path, text):
    assert table_of(tmp_path, text) == ([(2, {"a": "1", "b": "2"})], [])


def test_a_great_cell_is_read_and_its_field_says_how_long_it_may_be(tmp_path):
    limit = csv.field_size_limit()
    assert table_of(tmp_path, "a,b\n1," + "x" * 1_000_000 + "\n")[0] == [(2, {"a": "1", "b": "x" * 1_000_000})]
    assert table_of(tmp_path, 'a,b\n1,"' + "x\n" * 100_000)[1][0][1] == "not CSV: unexpected end of data"
    assert csv.field_size_limit() == limit


def csv_of(chunk):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(chunk))
    writer.writeheader()
    writer.writerow(chunk)
    return file.getvalue()


def told_of(tmp_path, content, suffix=".csv"):
    problems, path = [], tmp_path / f"a{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [chunk for _, chunk in load_rows(path, Chunk, problems)], problems


@pytest.mark.parametrize("mark", ["~", ":", "^", " "])
def test_a_table_whose_first_row_names_no_field_is_one_problem(tmp_path, mark):
    for text in (f"chunk{mark}text\n1{mark}2\n", "c-1,d-1,Title\nc-2,d-2,Title\n"):
        rows, [problem] = told_of(tmp_path, text)
        assert not rows and problem.code == "no_heading" and "data.fields" in problem.mend


@pytest.mark.parametrize("cell, tags", [
    ('["a", "b"]', ("a", "b")), ("[]", ()), ("a|b", ("a", "b")), ("[draft]", ("[draft]",)),
    ("['a' 'b']", None), ("['a', 'b']", None), ('["a", 1]', None), ('["a"', None)])
def test_a_list_as_an_export_writes_it_is_a_list_or_named(tmp_path, cell, tags):
    rows, problems = told_of(tmp_path, csv_of(CHUNK | {"tags": cell}))
    assert [row.tags for row in rows] == ([] if tags is None else [tags])
    assert [("tags" in problem.where, "a|b" in problem.mend) for problem in problems] == ([(True, True)] if tags is None else [])


@pytest.mark.parametrize("value, year", [
    ("1,961", 1961), ("1 961", 1961), ("1.961", 1961), ("1\u202f961", 1961), ("01/02/1961", 1961),
    ("1961-02-03 04:05:06", 1961), ("'1961", 1961), ("c. 1961", 1961), ("1961年", 1961),
    (1961.0, 1961), (date(1961, 2, 3), 1961), (datetime(1961, 2, 3), 1961), (["1961"], 1961),
    ("1961-1965", None), ("-1961", None), ("1.961E3", None), (True, None), (None, None),
    ("19610", None), ({"a": 1961}, None), ("x" * 10**6, None)])
def test_the_year_that_is_meant(value, year):
    assert year_meant(value) == year


def test_a_date_in_a_column_of_years_has_its_mend(tmp_path):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([CHUNK | {"year": date(1961, 2, 3)}]), file)
    _, [problem] = told_of(tmp_path, file.getvalue(), ".parquet")
    assert "found 1961-02-03" in problem.what and problem.mend == "write 1961"


def test_parquet_that_is_empty_locked_or_no_text(tmp_path, monkeypatch):
    file, text = io.BytesIO(), pa.Array.from_buffers(pa.string(), 1,
                                                     [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"),
                                                      pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"text": text}), file)
    content = file.getvalue()
    for held, what in ((b"", "holds no records"), (content[:-4] + b"PARE", "encrypted"),
                       (content, "holds what can not be read"), (content[:-9], "not Parquet")):
        _, [problem] = told_of(tmp_path, held, ".parquet")
        assert what in problem.what and problem.mend, what
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _, [problem] = told_of(tmp_path, content, ".parquet")
    assert "pyarrow is not installed" in problem.what
    assert "pip install 'kwanzaa_nb[train]'" in problem.mend
