"""Records of earlier formats are converted: quotes become sentence numbers, titles and groups are added, all or nothing."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwanzaa_nb.run import cli
from kwanzaa_nb.core.answer import find_marks, parse_model_answer
from kwanzaa_nb.core.record import is_old_form
from kwanzaa_nb.data.convert import convert_file, convert_record, read_old_user, renewed
from kwanzaa_nb.core.jsonl import DataError
from kwanzaa_nb.core.errors import KwanzaaError
from kwanzaa_nb.core.prompt import render_user, system_prompt
from kwanzaa_nb.core.sentences import number_sentences

OLD_SYSTEM = (
    "As an educator, answer only from the retrieved context, in exactly one JSON object:\n"
    '{"citations":[{"quote":"...","chunk_id":"..."}],"answer":{"completeness":"complete|partial|insufficient_data","text":"..."},'
    '"unknowns":{"unsupported_claims":[],"missing_context":[],"clarifying_questions":[]}}\n'
    "Quote verbatim; end sentences with marks like [1]. If the context lacks the answer: no citations, insufficient_data, name what is missing."
)
CHUNKS = [
    {"chunk_id": "S39", "source_org": "National Archives", "year": 1909, "tags": ["arctic"], "gold": False,
     "text": "Peary and Henson claimed the Pole in 1909.\nHenson published a book in 1912. It sold badly."},
    {"chunk_id": "K69", "source_org": "Library | Hall, of Congress", "year": 1887, "text": "Henson was born in 1866 [in Maryland].\n\nHe went to sea on the Katie Hines."},
]
QUESTION = "On which ship did Henson serve?"


def old_user(question, chunks, ids=True):
    "A prompt as the first edition wrote it; without ids behind the lines, as still older files have it."
    def text(chunk):
        return "\n".join(f"{line} [{chunk['chunk_id']}]" if ids and line.strip() else line
                         for line in chunk["text"].split("\n"))
    shown = [f"[chunk_id: {chunk['chunk_id']} | source: {chunk['source_org']} | year: {chunk['year']}]\n{text(chunk)}" for chunk in chunks]
    return f"### Retrieved Context:\n{chr(10).join(f'{part}{chr(10)}' for part in shown) or f'(none provided){chr(10)}'}\n### Instruction:\n{question}"


def old_target(quotes, text, completeness="complete", **unknowns):
    "A target as the first edition wrote it."
    notes = {"unsupported_claims": [], "missing_context": [], "clarifying_questions": []} | unknowns
    return json.dumps({"citations": [{"quote": quote, "chunk_id": name}
                                     for quote, name in quotes],
                       "answer": {"completeness": completeness, "text": text},
                       "unknowns": notes}, ensure_ascii=False)


def old_record(target, chunks=CHUNKS, ids=True, bare=False, system=OLD_SYSTEM, question=QUESTION,
               **fields):
    "A record as the first edition wrote it; bare, it has nothing but messages."
    messages = [{"role": role, "content": content}
                for role, content in zip(("system", "user", "assistant"),
                                         (system, old_user(question, chunks, ids), target))]
    return {"messages": messages} | ({} if bare else {"id": "r1", "question": question, "chunks": copy.deepcopy(chunks), "mine": {"kept": [1.5]}}) | fields


def evidence(record):
    return json.loads(record["messages"][2]["content"])


def problems(record):
    "Codes by field, of a record that can't be converted."
    with pytest.raises(DataError) as error:
        convert_record(record)
    assert all(problem.what and problem.mend for problem in error.value.problems)
    return {(problem.where.removeprefix("messages[2].content, "), problem.code)
            for problem in error.value.problems}


SHIP = ("He went to sea on the Katie Hines.", "K69")
ANSWER = old_target([SHIP], "It was the Katie Hines. [1]")


# What comes out


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_a_record_in_the_new_form(ids, bare):
    old = old_record(ANSWER, ids=ids, bare=bare)
    before = copy.deepcopy(old)
    new = convert_record(old)
    assert old == before and is_old_form(old) and not is_old_form(new)
    assert new["messages"][0]["content"] == system_prompt()
    assert new["messages"][1]["content"] == """### Retrieved Context:
National Archives, 1909
[1] Peary and Henson claimed the Pole in 1909. [1]
[2] Henson published a book in 1912. [2]
[3] It sold badly. [3]

Library | Hall, of Congress, 1887
[4] Henson was born in 1866 [in Maryland]. [4]
[5] He went to sea on the Katie Hines. [5]

### Instruction:
On which ship did Henson serve?"""
    assert new["messages"][2]["content"] == ('{"evidence":[5],"answer":{"completeness":"complete","text":"It was the Katie Hines. [5]"},'
                                             '"unknowns":{"unsupported_claims":[],"missing_context":[],"clarifying_questions":[]}}')
    assert [chunk["text"] for chunk in new["chunks"]] == [chunk["text"] for chunk in CHUNKS]
    assert new["chunks"][0]["spans"] == [[0, 42], [43, 75], [76, 90]]
    if not bare:
        assert {**new, "messages": 0, "chunks": 0} == {**old, "messages": 0, "chunks": 0}
        assert [{**chunk, "spans": 0} for chunk in new["chunks"]] == [{**chunk, "spans": 0} for chunk in CHUNKS]


@pytest.mark.parametrize(("quotes", "text", "numbers", "written"), [
    ([("1912. It sold", "S39")], "It sold. [1]", [2, 3], "It sold. [2][3]"),
    ([("Henson published", "S39"), ("a book in 1912.", "S39")], "A book, [1] in 1912. [1][2]",
     [2], "A book, [2] in 1912. [2]"), ([SHIP, ("It sold badly.",
                                                "S39")], "Badly. [2] At sea. [1] [2]",
                                        [3, 5], "Badly. [3] At sea. [5][3]"),
    ([(". It sold badly", "S39")], "Badly [1].", [3], "Badly [3]."),
    ([("[in Maryland].\n\nHe went", "K69")], "He went. [1]", [4, 5], "He went. [4][5]"),
])
def test_marks_become_numbers_of_sentences(quotes, text, numbers, written):
    found = evidence(convert_record(old_record(old_target(quotes, text))))
    assert (found["evidence"], found["answer"]["text"]) == (numbers, written)


@pytest.mark.parametrize("chunks", [CHUNKS, []])
def test_a_refusal_stays_one(chunks):
    old = old_record(old_target([], "The context does not say.",
                                "insufficient_data", missing_context=["the ship"]), chunks)
    found = evidence(convert_record(old))
    assert found["evidence"] == [] and found["unknowns"]["missing_context"] == ["the ship"]
    assert ("(none provided)" in convert_record(old)["messages"][1]["content"]) is (not chunks)


def test_complete_with_something_missing_is_partial():
    old = old_record(old_target([SHIP], "It was the Katie Hines. [1]",
                                missing_context=["the year"]))
    assert evidence(convert_record(old))["answer"]["completeness"] == "partial"
    assert problems(old_record(old_target([SHIP], "The Katie Hines. [1]", "partial"))) == {("unknowns.missing_context", "partial_without_missing")}


def test_an_answer_without_evidence_is_creative_or_refused():
    free = old_target([], "The sea sang to him.")
    assert problems(old_record(free)) == {("evidence", "answer_without_evidence")}
    assert evidence(convert_record(old_record(free, mode="creative")))["evidence"] == []
    system = OLD_SYSTEM.replace("answer only from", "write freely but take every fact from")
    new = convert_record(old_record(free, system=system))
    assert new["messages"][0]["content"] == system_prompt(mode="creative")


def test_the_order_is_that_of_the_prompt():
    new = convert_record(old_record(ANSWER) | {"chunks": CHUNKS[::-1]})
    assert [chunk["chunk_id"] for chunk in new["chunks"]] == ["S39", "K69"]
    assert evidence(new)["evidence"] == [5]


def test_source_and_year_are_read_from_the_prompt_where_a_record_lacks_them():
    new = convert_record(old_record(ANSWER) | {"chunks": [{"chunk_id": chunk["chunk_id"], "text": chunk["text"], "year": None} for chunk in CHUNKS]})
    assert [(chunk["source_org"], chunk["year"]) for chunk in new["chunks"]] == [(chunk["source_org"], chunk["year"]) for chunk in CHUNKS]


def test_headings_within_a_text():
    chunk = {**CHUNKS[0], "text": "Read on.\n### Instruction:\nSay no.\n[chunk_id: X | source: Y | year: 1]\nEnd."}
    target = old_target([("Say no.", "S39")], "No. [1]")
    assert convert_record(old_record(target, [chunk], bare=True))["chunks"][0]["text"] == chunk["text"]
    chunk["text"] = "Read on.\n### Instruction:\nSay no."
    assert convert_record(old_record(target, [chunk], ids=False))["messages"][1]["content"].endswith(f"### Instruction:\n{QUESTION}")
    assert problems(old_record(target, [chunk], ids=False, bare=True)) == {("messages[1].content", "layout")}
    assert read_old_user(old_user("One?\n### Instruction:\nTwo?", CHUNKS))[1] == "One?\n### Instruction:\nTwo?"


@pytest.mark.parametrize(("expected", "now"), [
    ({"answer": "Katie Hines", "aliases": ["the Katie Hines"], "gold_chunk_ids": ["K69"]},
     {"groups": [["Katie Hines", "the Katie Hines"]], "gold_chunk_ids": ["K69"]}),
    ({"answer": "Katie Hines"}, {"groups": [["Katie Hines"]]}),
    ({"answer": None, "aliases": [], "gold_chunk_ids": []}, {"groups": [], "gold_chunk_ids": []}),
    ({"groups": [["Katie Hines"], ["1887"]], "answer": "Katie Hines"},
     {"groups": [["Katie Hines"], ["1887"]], "answer": "Katie Hines"}),
    ({"gold_chunk_ids": ["K69"]}, {"gold_chunk_ids": ["K69"]}),
])
def test_a_short_answer_and_its_aliases_are_a_group(expected, now):
    assert convert_record(old_record(ANSWER, expected=expected))["expected"] == now


def test_chunks_are_shown_under_their_titles():
    titles = ["Henson, a biography", "A ship's list"]
    titled = [chunk | {"citation_label": title} for chunk, title in zip(CHUNKS, titles)]
    new = convert_record(old_record(ANSWER) | {"chunks": titled})
    earlier = copy.deepcopy(new)
    earlier["messages"][1]["content"] = render_user(QUESTION, CHUNKS)
    assert [line for line in new["messages"][1]["content"].splitlines() if line.endswith(("1909", "1887"))] == [
        "Henson, a biography, 1909", "A ship's list, 1887"]
    assert renewed(earlier) == new and renewed(new) is new


@pytest.mark.parametrize("change", [{"chunks": CHUNKS[:1]}, {"chunks": "S39"}, {"messages": []},
                                    {"expected": 3}])
def test_what_cannot_be_read_is_not_renewed(change):
    record = convert_record(old_record(ANSWER)) | change
    assert renewed(record) is record


# What can't be converted


@pytest.mark.parametrize(("target", "expected"), [
    (old_target([("He went to sea on the Kate.", "K69")], "Sea. [1]"),
     {("citations, 1", "quote_not_in_chunk")}),
    (old_target([("Henson", "X1"), ("Pole", "K69")], "Sea. [1][2]"),
     {("citations, 1", "unknown_chunk_id"), ("citations, 2", "quote_not_in_chunk")}),
    (old_target([(".\n", "S39")], "Sea. [1]"), {("citations, 1", "blank_quote")}),
    (old_target([("", "S39")], "Sea. [1]"), {("citations, 1", "blank_quote")}),
    (old_target([SHIP], "Sea."), {("citations, 1", "citation_without_mark")}),
    (old_target([SHIP], "Sea. [1][5][0]"), {("answer.text", "mark_without_citation")}),
    (old_target([SHIP], "Sea. [1], [1, 2]"), {("answer.text", "bad_mark")}),
    (old_target([SHIP], "Sea. [1]", "insufficient_data", missing_context=["x"]),
     {("answer.text", "refusal_with_marks"), ("evidence", "refusal_with_evidence")}),
    ("It was the Katie Hines.", {("line 1, column 1", "bad_json")}),
    (ANSWER + "\n```", {("line 2, column 1", "markdown_fence")}),
    ("[]", {("the whole", "schema")}),
    (ANSWER.replace('"complete"', '"full"').replace('"chunk_id"', '"chunk"'),
     {("citations.0.chunk_id", "schema"), ("citations.0.chunk", "schema"),
      ("answer.completeness", "schema")}),
])
def test_targets_that_cannot_be_converted(target, expected):
    assert problems(old_record(target)) == expected


def test_more_evidence_than_an_answer_holds():
    chunk = {**CHUNKS[0], "text": " ".join(f"Ship {number} sailed." for number in "abcdefghi")}
    assert problems(old_record(old_target([(chunk["text"], "S39")], "They sailed. [1]"), [chunk])) == {("evidence", "schema")}


@pytest.mark.parametrize(("change", "expected"), [
    ({"chunks": CHUNKS[:1]}, {("chunks", "chunk_not_shown")}),
    ({"chunks": [CHUNKS[0], CHUNKS[1] | {"text": "He stayed."}]},
     {("chunks", "chunk_not_shown")}), ({"chunks": [CHUNKS[0], {"chunk_id": "K69"}]},
                                        {("chunks", "chunk_not_shown")}),
    ({"chunks": "S39"}, {("chunks", "chunk_not_shown")}),
    ({"chunks": [CHUNKS[0], CHUNKS[1] | {"year": "1887"}]}, {("chunk 2, year", "bad_year")}),
    ({"messages": None}, {("messages", "messages_type")}),
    ({"messages": [{"role": "user", "content": "Hi"}]}, {("messages", "messages_type")}),
    ({"messages": old_record(ANSWER)["messages"] + old_record(ANSWER)["messages"][1:]},
     {("messages", "messages_type")}),
])
def test_records_that_cannot_be_converted(change, expected):
    assert problems(old_record(ANSWER) | change) == expected


@pytest.mark.parametrize("user", ["When?", "### Retrieved Context:\nSome text.\n\n### Instruction:\nWhen?", "### Retrieved Context:\n\n### Instruction:\nWhen?",
                                  old_user("", CHUNKS).replace("year: 1909", "year: then"), old_user("When?", CHUNKS).replace("### Instruction:", "Q:")])
def test_layouts_that_cannot_be_read(user):
    old = old_record(old_target([], "No. [9]"))
    old["messages"][1]["content"] = user
    assert ("messages[1].content", "layout") in problems(old)


def test_every_problem_of_a_record_at_once():
    old = old_record("no JSON") | {"chunks": CHUNKS[:1]}
    assert problems(old) == {("line 1, column 1", "bad_json"), ("chunks", "chunk_not_shown")}


# Files and the command


def written(path, *records):
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def test_a_mixed_file_is_converted_once(tmp_path, capsys):
    new = convert_record(old_record(ANSWER, id="new"))
    old = written(tmp_path / "mine.jsonl", old_record(ANSWER), new,
                  old_record(ANSWER, system="Give JSON with a \"quote\".", id="own"))
    assert cli.main(["convert", str(old)]) == 0
    told, path = capsys.readouterr(), tmp_path / "mine.converted.jsonl"
    assert told.out == f"2 records converted, 1 was in the new form already: {path}\n"
    assert told.err.count("\n") == 1
    assert "mine.jsonl, line 3, messages[0].content: your own system message was kept" in told.err
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert records[1] == new
    assert records[2]["messages"][0]["content"] == "Give JSON with a \"quote\"."
    assert cli.main(["convert", str(path), str(tmp_path / "again.jsonl")]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("0 records converted, 3 were in the new form already: ")
    assert not told.err
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_a_file_with_numbers_and_short_answers_is_converted_once(tmp_path, capsys):
    record = convert_record(old_record(ANSWER)) | {"expected": {"answer": "Katie Hines", "aliases": []}}
    file, path = written(tmp_path / "mine.jsonl", record), tmp_path / "new.jsonl"
    for old, new, told in ((file, path, "1 record converted, 0 were"),
                           (path, tmp_path / "again.jsonl", "0 records converted, 1 was")):
        assert cli.main(["convert", str(old), str(new)]) == 0
        assert capsys.readouterr().out.startswith(told)
    assert json.loads(path.read_text(encoding="utf-8"))["expected"] == {"groups": [["Katie Hines"]]}


def test_all_lines_are_told_and_nothing_is_written(tmp_path, capsys):
    wrong = old_record(old_target([("Nowhere.", "K69")], "Sea. [1]"))
    old = written(tmp_path / "mine.jsonl", old_record(ANSWER), wrong,
                  {"text": "a corpus"}, old_record("no JSON"), old_record(ANSWER, note="\ud800"))
    old.write_text(old.read_text(encoding="utf-8") + "{]\n", encoding="utf-8")
    assert cli.main(["convert", str(old)]) == 2
    told = capsys.readouterr().err
    for line, field in ((2, "messages[2].content, citations, 1"), (3, "messages"),
                        (4, "messages[2].content, line 1, column 1"), (5, "note"), (6, None)):
        assert f"mine.jsonl, line {line}{f', {field}' if field else ''}: " in told
    assert "mine.jsonl, line 1" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_no_file_is_overwritten(tmp_path, capsys):
    old = written(tmp_path / "mine.jsonl", old_record(ANSWER))
    kept = old.read_bytes()
    for new in (str(old), str(tmp_path)):
        assert cli.main(["convert", str(old), new]) == 2
        assert f"{new} is there already, and is not overwritten" in capsys.readouterr().err
    (tmp_path / "mine.converted.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(KwanzaaError, match="is there already"):
        convert_file(old)
    assert old.read_bytes() == kept
    assert cli.main(["convert", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl is not there" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path), str(tmp_path / "x.jsonl")]) == 2
    assert not Path(tmp_path, "x.jsonl").exists()


# Whatever people have


HARD = "ab. A?\n[]#1|\t\u2028é"
NAMES = st.text("abc-1 ", min_size=1, max_size=5).map(str.strip).filter(bool)
TEXTS = st.one_of(st.text(st.sampled_from(HARD), min_size=1, max_size=80),
                  st.lists(st.sampled_from(["One ship sailed.", "### Instruction:", "[chunk_id: a | source: b | year: 1]", "", "He won. She left!", "[3] x [a]"]),
                           min_size=1, max_size=6).map("\n".join)).filter(lambda text: any(map(str.isalnum, text)))


@st.composite
def old_records(stable_hash):
    "A valid record of the first edition, what it cites, and whether its prompt holds ids behind the lines."
    names = stable_hash(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    chunks = [{"chunk_id": name, "source_org": stable_hash(NAMES), "year": stable_hash(st.integers(1600, 2100)), "text": stable_hash(TEXTS)} for name in names]
    quotes = []
    for chunk in stable_hash(st.lists(st.sampled_from(chunks), min_size=1, max_size=2)):
        start = stable_hash(st.integers(0, len(chunk["text"]) - 1))
        quote = chunk["text"][start:stable_hash(st.integers(start + 1, len(chunk["text"])))]
        quotes.append((quote if any(map(str.isalnum, quote)) else chunk["text"], chunk["chunk_id"]))
    text = " ".join(f"Said{stable_hash(st.sampled_from(['.', ' so']))} [{place}]"
                    for place in stable_hash(st.permutations(range(1, len(quotes) + 1))))
    ids, bare = stable_hash(st.booleans()), stable_hash(st.booleans())
    return old_record(old_target(quotes, text), chunks, ids, bare and ids), quotes, ids


@settings(max_examples=300)
@given(old_records())
def test_whatever_is_converted_keeps_the_contract(drawn):
    old, quotes, ids = drawn
    try:
        new = convert_record(old)
    except DataError as error:  # quotes of more than eight sentences; and without ids, the heads of chunks within a text are taken for such
        head_within = not ids and "[chunk_id: a |" in old["messages"][1]["content"]
        assert all(problem.where.endswith("content, evidence") or head_within and problem.code == "chunk_not_shown" for problem in error.problems), error
        return
    answer, sentences = parse_model_answer(new["messages"][2]["content"],
                                           new["chunks"]), number_sentences(new["chunks"])
    assert new["messages"][1]["content"] == render_user(QUESTION, new["chunks"])
    assert not is_old_form(new)
    assert list(dict.fromkeys(find_marks(answer.answer.text))) == answer.evidence
    assert {sentences[number - 1].chunk_id for number in answer.evidence} == {name for _, name in quotes}
    for quote, name in quotes:
        numbers = [number for number in sorted(answer.evidence)
                   if sentences[number - 1].chunk_id == name]
        held = "".join(sentences[number - 1].text for number in numbers)
        signs = "".join(filter(str.isalnum, quote))
        assert signs in "".join(filter(str.isalnum, held))
        assert (len(quotes) > 1 or len(numbers) <= len(signs))


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["messages", "role", "content", "chunks", "chunk_id",
                                         "text", "citations", "question"]), inner,
                        max_size=4), max_leaves=12)


@given(JSON, st.sampled_from(["messages", "chunks", "question", "mode"]),
       st.sampled_from(["content", "role"]), st.integers(0, 2), st.booleans())
def test_whatever_stands_in_a_record_is_converted_or_told(value, field, part, place, whole):
    record = old_record(ANSWER)
    if whole:
        record[field] = value
    else:
        record["messages"][place][part] = value
    assert is_old_form(record) in (True, False)
    try:
        assert not is_old_form(convert_record(record))
    except DataError as error:
        assert all(problem.where and problem.what and problem.code for problem in error.problems)


def test_forms_are_told_apart():
    assert is_old_form(old_record(old_target([], "No.", "insufficient_data"), []))
    assert is_old_form(old_record("no JSON")) and not is_old_form(old_record("no JSON", []))
    assert not any(map(is_old_form, ({}, {"messages": 3}, {"messages": [3, 4, 5]},
                                     convert_record(old_record(ANSWER)))))
