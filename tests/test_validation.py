"The validator of record files: each problem by line, field and code; it never raises."

import json
import tracemalloc
from copy import deepcopy

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import ROOT, tiny_tokenizer

from kwanzaa_nb.run import cli
from kwanzaa_nb.core.answer import ERROR_STAGES
from kwanzaa_nb.core.jsonl import DataError, iter_jsonl
from kwanzaa_nb.core.prompt import render_user
from kwanzaa_nb.core.sentences import sentence_spans
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.data.validation import preview_record, validate_records

CONTEXT = "### Retrieved Context:\nAn archive, 1963\n[1] It was a Monday. [1]\n\n### Instruction:\n"
TWO = "### Retrieved Context:\nAn archive, 1963\n[1] It was a Monday. [1]\n[2] It rained. [2]\n\nA diary, 1964\n[3] - It (1)\n  was dry. [3]\n\n### Instruction:\n"
NOTHING = "### Retrieved Context:\n(none provided)\n\n### Instruction:\n"
TARGET = {
    "evidence": [1],
    "answer": {"completeness": "complete", "text": "A Monday. [1]"},
    "unknowns": {"unsupported_claims": [], "missing_context": [], "clarifying_questions": []},
}
REFUSAL = {
    "evidence": [], "answer": {"completeness": "insufficient_data",
                               "text": "The context does not say."},
    "unknowns": {"unsupported_claims": [], "missing_context": ["the month"],
                 "clarifying_questions": []},
}


def record(target=TARGET, question="Which day?", context=CONTEXT, **fields):
    content = target if isinstance(target, str) else json.dumps(target)
    texts = {"system": "Answer in JSON.", "user": context + question, "assistant": content}
    return {"messages": [{"role": role, "content": text} for role, text in texts.items()], **fields}


def changed(path, value, target=TARGET):
    "The target with another value at a path."
    copy = deepcopy(target)
    *sections, last = path
    part = copy
    for section in sections:
        part = part[section]
    part[last] = value
    return copy


@pytest.fixture
def report_of(tmp_path):
    def report(*rows, end=b"\n", **arguments):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / "a.jsonl").write_bytes(b"".join(line + end for line in lines))
        return validate_records(tmp_path / "a.jsonl", shown="a.jsonl", **arguments)
    return report


def told(report):
    return [(problem.where.removeprefix("a.jsonl, "), problem.code) for problem in report.problems]


def test_good_records(report_of):
    report = report_of(record(), record(REFUSAL, "Which month?"),
                       record(id="x", question="And the day?", answerable=True))
    assert report.records == 3 and told(report) == []
    assert str(report) == "a.jsonl: 3 records, no problems"


@pytest.mark.parametrize("split", ["train", "dev", "eval", "sealed"])
def test_the_committed_records_have_no_problem(split):
    assert validate_records(ROOT / "data" / "training" / f"kwanzaa_{split}.jsonl").problems == ()


@pytest.mark.parametrize("field, value, mend", [
    ("id", 17, 'write "17"'), ("group", 3.5, 'write "3.5"'),
    ("question_id", None, "leave it out"), ("answerable", "True", "write true"),
    ("answerable", 0, "write false"), ("persona", None, "leave it out"),
    ("chunks", 3, "leave it out"), ("expected", None, "leave it out"),
])
def test_a_field_of_another_type_has_its_mend(report_of, field, value, mend):
    problem, = report_of(record(**{field: value})).problems
    assert problem.where == f"a.jsonl, line 1, {field}" and problem.code == "field_type"
    assert problem.mend.startswith(mend)


@pytest.mark.parametrize("content, what, mend", [
    ([{"type": "text", "text": "Which day?"}], "found [{", "join its parts into one text"),
    (None, "found null", "write what was said"), (" \n", "found ' \\n'", "write what was said"),
    ("Which \ud83d day?",
     "half a surrogate pair, U+D83D at character 7", "write the whole character"),
])
def test_a_message_without_text_is_told_with_its_mend(report_of, content, what, mend):
    row = record()
    row["messages"][1]["content"] = content
    problem, = report_of(row).problems
    assert problem.where.endswith("messages[1].content") and problem.what.startswith(what)
    assert mend in problem.mend and problem.code == "content"


CHUNK = {"chunk_id": "c1", "text": "It was a Monday."}
BAD = {
    "number_not_shown": (record({**TARGET, "evidence": [2],
                                 "answer": {"completeness": "complete",
                                            "text": "A Monday. [2]"}}),
                         "messages[2].content"),
    "number_twice": (record(changed(("evidence",), [1, 1])),
                     "messages[2].content"),
    "evidence_without_mark": (record(changed(("answer", "text"),
                                             "A Monday.")),
                              "messages[2].content"),
    "refusal_with_evidence": (record(changed(("evidence",), [1], REFUSAL)),
                              "messages[2].content"),
    "schema": (record({**TARGET, "extra": 1}), "messages[2].content"),
    "text_before": (record("Sure: " + json.dumps(TARGET)),
                    "messages[2].content"),
    "mark_without_evidence": (record(changed(("answer", "text"),
                                             "A Monday. [1] [2]")),
                              "messages[2].content"),
    "refusal_without_reason": (record(changed(("unknowns", "missing_context"), [],
                                              REFUSAL)), "messages[2].content"),
    "answerable": (record(answerable=False), "answerable"),
    "unknown_gold": (record(chunks=[CHUNK],
                            expected={"gold_chunk_ids": ["c1", "c9"]}),
                     "expected.gold_chunk_ids"),
    "chunk_not_shown": (record(chunks=[{**CHUNK, "text": "It was a Sunday."}]),
                        "chunks[0]"),
    "bad_spans": (record(chunks=[{**CHUNK, "spans": [[0, 99]]}]), "chunks[0].spans"),
    "old_form": (record({"citations": [{"quote": "It was a Monday.", "chunk_id": "c1"}],
                         **{name: TARGET[name] for name in ("answer", "unknowns")}}),
                 "messages"),
    "duplicate_chunk_id": (record(chunks=[CHUNK, CHUNK]), "chunks[1].chunk_id"),
    "layout": (record(REFUSAL, context="It was a Monday.\n\n"),
               "messages[1].content"),
    "control_character": (record(question="Which\0 day?"), "messages[1].content"),
    "content": (record(question="Which \ud800 day?"), "messages[1].content"),
    "field_type": (record(expected={"gold_chunk_ids": "c1"}), "expected"),
    "messages_type": ({"messages": "none"}, "messages"),
    "roles": ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
}


@pytest.mark.parametrize("code", BAD)
def test_a_breach_is_told_by_line_field_and_code(report_of, code):
    bad, field = BAD[code]
    assert told(report_of(record(question="A good one?"), bad)) == [(f"line 2, {field}", code)]


def listed(*texts, spans=()):
    spans = {**dict.fromkeys(range(len(texts))), **dict(enumerate(spans))}
    return [{"chunk_id": f"c{place}", "text": text, **({"spans": spans[place]} if spans[place] is not None else {})} for place, text in enumerate(texts)]


FIRST, SECOND = "It was a Monday. It rained.", "- It [1]\nwas dry."


@pytest.mark.parametrize("chunks, field, what", [
    (listed(FIRST, SECOND), None, ""), (listed(FIRST, SECOND,
                                               spans=[[[0, 16], [17, 27]], None]), None, ""),
    (listed("It was a Monday.   It rained.", SECOND), None, ""),
    (listed(FIRST), "chunks", "1 listed, and the prompt shows 2"),
    (listed(FIRST, SECOND, "More."), "chunks", "3 listed, and the prompt shows 2"),
    ([], "chunks", "0 listed, and the prompt shows 2"),
    (listed("A note.", SECOND), "chunks[0]", "from sentence 1 of"),
    (listed(f"{FIRST} It snowed.", SECOND), "chunks[0]", "from sentence 3 of"),
    (listed("It was a Monday.", SECOND), "chunks[0]", "from sentence 2 of"),
    (listed(FIRST, "- It [2]\nwas dry."), "chunks[1]", "from sentence 1 of"),
    (listed(FIRST, SECOND, spans=[[[0, 27]], None]), "chunks[0]", "from sentence 1 of"),
    (listed(FIRST, SECOND, spans=[[[0, 16]], None]), "chunks[0]", "from sentence 2 of"),
])
@pytest.mark.parametrize("targets", [True, False])
def test_a_prompt_shows_the_sentences_of_its_chunks(tmp_path, chunks, field, what, targets):
    "In records to train on and in records to evaluate: the numbers of an answer mean nothing otherwise."
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record(REFUSAL, context=TWO, chunks=chunks)), encoding="utf-8")
    if field is None:
        assert read_records(path, targets=targets)[0]["chunks"][0]["spans"] == [list(span) for span in sentence_spans(chunks[0]["text"])]
        return
    with pytest.raises(DataError) as error:
        read_records(path, shown="a.jsonl", targets=targets)
    assert [(problem.where, problem.code) for problem in error.value.problems] == [
        (f"a.jsonl, line 1, {field}", "chunk_not_shown")]
    assert what in error.value.problems[0].what


@pytest.mark.parametrize("chunks", [{}, {"chunks": listed(FIRST, SECOND)}])
def test_a_prompt_written_by_hand_that_shows_a_number_in_brackets_is_told(report_of, chunks):
    assert told(report_of(record(REFUSAL, context=TWO.replace("(1)", "[1]"), **chunks))) == [("line 1, messages[1].content", "layout")]


def test_a_bare_record_is_judged_by_the_sentences_that_its_prompt_shows(tmp_path):
    path = tmp_path / "a.jsonl"
    target = {**TARGET, "evidence": [3], "answer": {"completeness": "complete", "text": "Dry. [3]"}}
    rows = [record(target, context=TWO), record(REFUSAL, context=TWO),
            record(REFUSAL, context=NOTHING), record("Monday.", "Else?", context=TWO)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    dry, refused, nothing, unreadable = read_records(path)
    assert [chunk["text"] for chunk in dry["chunks"]] == ["It was a Monday.\nIt rained.", "- It (1)\nwas dry."]
    assert [chunk["spans"] for chunk in dry["chunks"]] == [[[0, 16], [17, 27]], [[0, 17]]]
    assert dry["chunks"][1]["source_org"] == "A diary"
    assert dry["expected"]["gold_chunk_ids"] == [dry["chunks"][1]["chunk_id"]]
    assert dry["answerable"] is True and dry["category"] == "citation_required"
    assert refused["answerable"] is False and refused["category"] == "refusal"
    assert refused["question"] == "Which day?"
    assert nothing["chunks"] == [] and nothing["answerable"] is False
    assert unreadable["answerable"] is None and unreadable["category"] == "uncategorised"


@pytest.mark.parametrize("context", ["", "Monday.\n\n", "### Instruction:\n", "### Retrieved Context:\n\n### Instruction:\n", CONTEXT.replace("[1]\n", "\n"), CONTEXT.replace("[1]", "[2]"),
                                     CONTEXT.replace(", 1963", ""), CONTEXT.replace("An archive, 1963", "[chunk: c1, An archive, 1963]\n")])
@pytest.mark.parametrize("targets", [True, False])
def test_another_layout_is_refused_with_its_mend(tmp_path, context, targets):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record(REFUSAL, context=context)), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_records(path, targets=targets)
    problem, = error.value.problems
    assert problem.code == "layout" and "render_user" in problem.mend
    assert "(none provided)" in problem.mend


@pytest.mark.parametrize("spans", [[], [[0]], [[0, 0]], [[0, 17]], [[5, 2]], [[0, 4], [3, 16]],
                                   [[2, 3]], [["0", 4]], [[True, 4]], [[0, 4.0]], [None],
                                   [[-1, 4]]])
def test_spans_that_do_not_fit_their_text(report_of, spans):
    problem, = report_of(record(chunks=[{**CHUNK, "text": "It  was a Monday.", "spans": spans}] if spans == [[2, 3]] else [{**CHUNK, "spans": spans}])).problems
    assert (problem.where, problem.code) == ("a.jsonl, line 1, chunks[0].spans", "bad_spans")
    assert problem.mend == "leave them out, and they are made anew"


@pytest.mark.parametrize("spans", ["[[0, 16]]", 7, {"0": 16}])
def test_spans_of_another_type(report_of, spans):
    assert told(report_of(record(chunks=[{**CHUNK, "spans": spans}]))) == [("line 1, chunks[0].spans", "field_type")]


@pytest.mark.parametrize("texts", [
    ("Which day?", '{"citations": [{"quote": "A Monday.", "chunk_id": "c1"}]}'),
    ("### Retrieved Context:\n[chunk_id: c1 | source: A diary | year: 1963]\nA Monday. [c1]\n\n"
     "### Instruction:\nWhich day?", json.dumps(TARGET))])
def test_an_earlier_form_is_told_with_what_to_do(report_of, texts):
    messages = [{"role": role, "content": text} for role, text
                in zip(("system", "user", "assistant"), ("Answer in JSON.", *texts))]
    problem, = report_of({"messages": messages}).problems
    assert problem.code == "old_form" and "kwanzaa run data" in problem.mend
    assert "nbs/guides/own_data.ipynb" in problem.mend


def test_every_breach_of_a_file_at_once_and_in_order(report_of):
    report = report_of(*[row for row, _ in BAD.values()])
    places = [int(problem.where.split("line ")[1].split(",")[0]) for problem in report.problems]
    assert places == sorted(places) and set(places) == set(range(1, len(BAD) + 1))
    assert set(report.codes) >= set(BAD)
    assert str(report).count("\n  - ") == min(50, len(report.problems))


def test_what_repeats_an_earlier_line(report_of):
    report = report_of(record(id="x"), record(question="Other?", id="x"), record(), record(REFUSAL))
    assert told(report) == [("line 2, id", "duplicate_id"),
                            ("line 3, messages", "duplicate_record"),
                            ("line 4, messages[2].content", "contradiction")]


LINES = {
    "duplicate_key": b'{"messages": [], "messages": []}',
    "nan_or_infinity": b'{"messages": [], "score": NaN}',
    "bad_json": b'{"messages": [',
    "not_an_object": b"[]",
    "not_utf8": b'{"messages": "\xff"}',
}


@pytest.mark.parametrize("code", LINES)
def test_a_line_that_is_no_strict_json(report_of, code):
    assert told(report_of(record(), LINES[code])) == [("line 2", code)]
    assert told(report_of(b'{"a": 1e999}', b'{"a": -Infinity}')) == [("line 1", "nan_or_infinity"), ("line 2", "nan_or_infinity")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\n\n", b" \t\n"])
def test_line_ends(report_of, end):
    assert told(report_of(record(), record(question="Other?"), b'{"a', end=end))[0][1] == "bad_json"
    assert report_of(record(), record(question="Other?"), end=end).records == 2


def test_mixed_line_ends_count_as_an_editor_does(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(record()).encode() + b"\r\n\r\n\r" + json.dumps(record()).encode() + b"\n{")
    report = validate_records(path, shown="a.jsonl")
    assert told(report) == [("line 4, messages", "duplicate_record"), ("line 5", "bad_json")]


def test_encodings(tmp_path):
    path, text = tmp_path / "a.jsonl", json.dumps(record()) + "\n" + "{\n"
    for encoding, expected in (("utf-8-sig", [("line 1", "bom"), ("line 2", "bad_json")]),
                               ("utf-16", [("line 1", "utf16")])):
        path.write_bytes(text.encode(encoding))
        assert told(validate_records(path, shown="a.jsonl")) == expected


def test_what_is_no_file(tmp_path):
    assert told(validate_records(tmp_path / "gone.jsonl", shown="a.jsonl")) == [("a.jsonl", "missing_file")]
    assert told(validate_records(tmp_path, shown="a.jsonl")) == [("a.jsonl", "unreadable")]
    assert told(validate_records("a\0b", shown="a.jsonl")) == [("a.jsonl", "missing_file")]
    for content in (b"", b"\n \r\n"):
        (tmp_path / "a.jsonl").write_bytes(content)
        assert told(validate_records(tmp_path / "a.jsonl", shown="a.jsonl")) == [("a.jsonl", "empty_file")]


def test_a_line_of_a_hundred_megabytes_is_told_and_never_held(tmp_path):
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(json.dumps(record()).encode() + b'\n{"messages": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + json.dumps(record()).encode())
    tracemalloc.start()
    report = validate_records(path, shown="a.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert told(report) == [("line 2", "huge_line"), ("line 3, messages", "duplicate_record")]
    assert "100,000,016 bytes" in str(report) and peak < 10_000_000


def test_reading_stops_at_targets_only_where_it_is_asked_to(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record("Monday.")) + "\n", encoding="utf-8")
    assert read_records(path)[0]["answerable"] is None
    with pytest.raises(DataError, match="line 1, messages"):
        read_records(path, targets=True)


# Tokens


def test_lengths_masks_and_templates(report_of):
    tokenizer = tiny_tokenizer()
    report = report_of(record(), record(REFUSAL, "Which month?"), tokenizer=tokenizer)
    assert told(report) == [] and len(report.tokens) == 2 and "tokens, half of them" in str(report)
    longest = max(report.tokens)
    assert told(report_of(record(), record(REFUSAL, "Which month?"), tokenizer=tokenizer, max_seq_length=longest)) == []
    short = report_of(record(), record(REFUSAL, "Which month?"), tokenizer=tokenizer,
                      max_seq_length=longest - 1)
    assert set(short.codes) == {"over_length"}
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    assert told(report_of(record(), tokenizer=tokenizer)) == [("line 1, messages", "template")]
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}"
    assert told(report_of(record(), tokenizer=tokenizer)) == [("line 1, messages", "template")]
    tokenizer.chat_template = None
    assert told(report_of(record(), tokenizer=tokenizer)) == [("tokenizer", "template")]


def test_of_a_conversation_the_last_answer_is_trained_on(report_of):
    turn = [{"role": "user", "content": "### Instruction:\nWhich day?"}, record()["messages"][-1]]
    messages = [*record(REFUSAL, "Which month?")["messages"], *turn]
    found = preview_record(tiny_tokenizer(), {"messages": messages})
    trained = [text for text, is_trained in found.pieces if is_trained]
    assert trained == [f"{json.dumps(TARGET)}<|im_end|>"]
    assert report_of({"messages": messages}).problems == ()


def test_a_preview_shows_what_is_trained_on():
    found = preview_record(tiny_tokenizer(), record())
    trained = "".join(text for text, supervised in found.pieces if supervised)
    assert json.loads(trained[:trained.rindex("}") + 1]) == TARGET
    assert f"⟦{trained}⟧" in str(found) and "supervised" in found._repr_html_()
    assert 0 < found.trained < found.tokens


def test_the_command(report_of, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    report_of(record())
    assert cli.main(["validate", str(tmp_path / "a.jsonl"), "--preview", "3"]) == 0
    shown = capsys.readouterr().out
    assert "1 record, no problems" in shown and '⟦{"evidence"' in shown
    report_of(record(), record("Monday."))
    assert cli.main(["validate", str(tmp_path / "a.jsonl")]) == 1
    assert "contradiction" in capsys.readouterr().out


# Whatever there is, it is a report

SPANS = st.lists(st.lists(st.integers(-2, 30) | st.none() | st.floats() | st.booleans() | st.text(max_size=2), max_size=3), max_size=4) | st.lists(
    st.tuples(st.integers(0, 18), st.integers(0, 18)).map(list), max_size=3)

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12)
NAMES = st.sampled_from(["id", "group", "question", "question_id", "category", "kind",
                         "persona", "answerable", "chunks", "expected", "pair_id", "messages"])
MANY = settings(max_examples=300, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])
KNOWN = {code for errors in ERROR_STAGES.values() for code in errors} | set(BAD) | set(LINES) | {
    "bom", "utf16", "empty_file", "huge_line", "duplicate_id", "duplicate_record",
    "contradiction", "lone_surrogate", "duplicate_gold", "json_array",
    "pretty_printed", "other_format"}


def never_raises(path, content):
    path.write_bytes(content)
    report = validate_records(path, shown="a.jsonl")
    assert set(report.codes) <= KNOWN
    assert all(problem.what and "a.jsonl" in problem.where for problem in report.problems)
    str(report).encode("utf-8", "surrogatepass")
    kept, problems = [], []
    kept = [row for _, row in iter_jsonl(path, "a.jsonl", problems)]
    for row in kept:  # what is read can be written as strict JSON
        json.dumps(row, allow_nan=False)
    if not report.problems:
        assert len(read_records(path, targets=True)) == report.records


@MANY
@given(st.binary(max_size=400))
@example(b"\r\r\n\n\r")
@example(b"\xef\xbb\xbf")
@example(b"\xff\xfe\n\x00")
def test_any_bytes_are_a_report(tmp_path, content):
    never_raises(tmp_path / "a.jsonl", content)


@MANY
@given(st.lists(st.dictionaries(NAMES, JSON, max_size=6), max_size=3), st.booleans())
def test_any_objects_are_a_report(tmp_path, rows, good_messages):
    rows = [{**row, **({"messages": record()["messages"]} if good_messages else {})}
            for row in rows]
    never_raises(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows).encode())


@MANY
@given(st.lists(st.tuples(st.text("ab. \n[1]#|-`", max_size=18), SPANS | JSON), max_size=3),
       st.sampled_from([CONTEXT, TWO, NOTHING, ""]), st.lists(st.integers(0, 5), max_size=3),
       st.booleans())
def test_any_chunks_spans_and_numbers_are_a_report(tmp_path, parts, context, evidence, spanned):
    chunks = [{"chunk_id": f"c{place}", "text": text, **({"spans": spans} if spanned else {})}
              for place, (text, spans) in enumerate(parts)]
    target = {**TARGET, "evidence": evidence, "answer": {"completeness": "complete", "text": "So. " + "".join(f"[{number}]" for number in evidence)}}
    never_raises(tmp_path / "a.jsonl",
                 json.dumps(record(target, context=context, chunks=chunks)).encode())


@MANY
@given(st.lists(st.text(max_size=40).filter(lambda text: text.strip() and "\x00" not in text), min_size=1, max_size=3))
def test_what_the_renderer_writes_has_no_problem(tmp_path, texts):
    chunks = [{"chunk_id": f"c{place}", "source_org": "An archive", "year": 1963, "text": text}
              for place, text in enumerate(texts)]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record(REFUSAL, context=render_user("X", chunks)[:-1],
                                      chunks=chunks)), encoding="utf-8")
    assert set(validate_records(path).codes) <= {"control_character", "lone_surrogate"}


@MANY
@given(st.data())
def test_any_damage_to_a_good_line_is_a_report(tmp_path, data):
    line = json.dumps(record(id="x", chunks=[{**CHUNK, "spans": [[0, 16]]}], answerable=True), ensure_ascii=data.draw(st.booleans())).encode()
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, min(len(line), start + 30)))
    piece = data.draw(st.sampled_from([b"", b'"', b"\\", b"{", b"]", b"\\ud800", b"\x00", b"null", b"[1]", b"\r"]) | st.binary(max_size=6))
    never_raises(tmp_path / "a.jsonl", line[:start] + piece + line[end:])
