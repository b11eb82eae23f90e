"Edge cases of the contract: strict JSON against a list and random input, rules, both layers."
import copy
import hashlib
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kwanzaa_nb.core.answer import (
    COMPLETENESS,
    ERROR_STAGES,
    RULE_ERRORS,
    AnswerError,
    AnswerJson,
    ModelAnswer,
    answer_json_schema,
    complete_answer,
    contract_table,
    error_table,
    find_marks,
    model_answer_schema,
    parse_model_answer,
    record_schema,
    renumbered,
    rule_problems,
    shown_sentences,
    validate_answer_json,
    write_schemas,
)
from kwanzaa_nb.core.strict_json import (
    JSON_ERRORS, MAX_DEPTH, JsonError, parse_strict_json, read_json)

ROOT = Path(__file__).parents[1]

# ---------------------------------------------------------------- strict JSON

ACCEPTED = [
    "{}", "[]", '""', "0", "-0", "-0.0", "null", "true", "false", " \t\r\n[ ] \n", '{"":0}',
    '{"a":[]}', "[[],[[]],{}]", "[1E22]", "[1e-2]", "[1e+2]", "[123e65]", "[0e+1]", "[0.4e5]",
    "[-1]", "[-123]", "[1.7976931348623157e308]", "[1e-400]", "[9007199254740993]",
    "[" + "9" * 308 + "]", "[123456789.123456789e-10]", '{"a":1,"b":2}', '{"a":1,"A":2}',
    '["\\u0060\\u012a\\u12AB"]', '["\\ud801\\udc37"]', '["\\uD83D\\uDE39\\uD83D\\uDC8D"]',
    '["\\"\\\\\\/\\b\\f\\n\\r\\t"]', '["\\\\u0000"]', '["a/*b*/c//d#e"]', '["\\u0000"]', '["\x7f"]',
    '["\u2028\u2029\u00a0\ufeff"]', '["\U0010ffff\uffff"]', '["new\\u000Aline"]',
    '{"title":"\\u041f"}', '["NaN", "Infinity", "```", "\'"]', "[" * MAX_DEPTH + "]" * MAX_DEPTH,
    '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH, '[null, 1, "1", {}]', "[0.1,\n2 ,3\t]", "20",
    '"asd"']

REFUSED = {
    "empty": ["", " ", "\n\t\r ", b"", b"  "],
    "not_utf8": [
        b'["\xff"]', b'["\xed\xa0\x80"]', b'["\xc0\xaf"]', b'["\xe0\x80"]', b'["\xf4\x90\x80\x80"]',
        b"\xff\xfe[\x00]\x00", b"\xfe\xff\x00[\x00]", '["é"]'.encode("latin-1"),
    ],
    "bom": ["\ufeff{}", b"\xef\xbb\xbf{}", "\ufeff"],
    "text_before": [
        "Sure! {}", 'Answer: {"a":1}', "Here is it:\n```json\n{}\n```", "true story: {}", "1. {}",
        "- {}", "# Heading\n{}", "\u00a0{}", "*{}", "x[1]", "Nullable {}"],
    "text_after": [
        "{} x", "{}{}", "[]]", "{}}", "[] []", "{},", "1 2", '"a" "b"', "{}\x00", "{}\u00a0",
        "null x", "{}#", "{}\ufeff", '"x"y', "[1]1"],
    "markdown_fence": ["```json\n{}\n```", "```\n{}```", "{}\n```", "~~~\n{}\n~~~", "  ```{}"],
    "nan_or_infinity": [
        "NaN", "[NaN]", "[-NaN]", "[Infinity]", "[-Infinity]", "[+Infinity]", "[nan]", "[inf]",
        "-Infinity", '{"a":NaN}', "NaN {}"],
    "number_out_of_range": [
        "1e400", "[-1e400]", "[1e309]", "1" + "0" * 400, "-1" + "0" * 400, "[1.8e308]", "9" * 10000,
        "[0.1e99999999999]",
    ],
    "bad_number": [
        "01", "[-01]", "+1", "[+1]", ".5", "[.5]", "1.", "[1.]", "[0x1F]", "[1e]", "[1e+]",
        "[1_000]", "[1.e5]", "[-]", "-", "[--1]", "[1.2.3]", "[1ex]", "[-.5]", "[00]", "[1a]",
        "[0b1]", "[1-2]", "[1+2]", "[2.e+3]"],
    "duplicate_key": [
        '{"a":1,"a":1}', '{"a":1,"\\u0061":2}', '[{"b":{"a":1,"c":2,"a":3}}]', '{"":1,"":2}',
        '{"\U0001f600":1,"\\ud83d\\ude00":2}',
    ],
    "trailing_comma": ["[1,]", '{"a":1,}', "[1, ]", '{"a":1 , }', "[[],]", "[1,}", '{"a":[1,],}'],
    "comment": [
        "[1 /* a */]", "// a\n{}", "/* a */ {}", "{} // a", "{} /* a */", '{"a":1, // x\n"b":2}',
        "[# a\n1]", '{/**/"a":1}', '{"a"/**/:1}', "[1 # a\n]", "//"],
    "single_quotes": ["{'a':1}", "['a']", "'a'", '{"a":\'b\'}', "{'a'", "[''"],
    "control_character": [
        '["\n"]', '["\t"]', '["\x00"]', '["a\x1f"]', '{"a\nb":1}', '"\r"', '["\b"]'],
    "bad_escape": [
        '["\\x41"]', '["\\a"]', '["\\\'"]', '["\\u12G4"]', '["\\u12"]', '["\\U0001F600"]',
        '["\\ "]', '["\\0"]', '["\\u 123"]', '["\\u+123"]', '["\\u１２３４"]', '["\\ud83d\\u12"]',
        '["\\\n"]'],
    "lone_surrogate": [
        '["\\ud800"]', '["\\udc00"]', '["\\ud800\\ud800"]', '["\\udc00\\ud800"]', '["\\ud800x"]',
        '["\\ud800\\n"]', '["\\uD800\\u0041"]', '["\ud800"]', '["\ud83d\ude00"]', '{"\\udfff":1}',
        '["\\ud83d\\ude00\\ude00"]'],
    "too_deep": [
        "[" * 33, "[" * 100_000, '{"a":' * 100_000, "[" * 33 + "]" * 33,
        '[{"a":' * 17 + "1" + "}]" * 17],
    "unfinished": [
        "[", "{", "[1", "[1,", '{"a"', '{"a":', '{"a":1', '{"a":1,', '"', '"a', '["a', '["\\',
        '["\\u', '["\\u12', '["\\ud83d', '["\\ud83d\\', '["\\ud83d\\ude0', "[tru", "[n", "[1.",
        "[1e", "[1e-", "[-", "[[]", '[{"a":"b"}'],
    "bad_json": [
        "hello", "{a:1}", "[yes]", "[True]", "[None]", "[undefined]", "]", "}", ",", ":", "[,1]",
        "[1,,2]", "{,}", "[1 2]", '["a" "b"]', '{"a" 1}', '{"a":}', '{"a":1 "b":2}', '{"a"::1}',
        "{1:1}", '{"a":"b"]', "[1}", "[a", "nul", "truth", "[tru]", "[\u00a0]", "[\x0c]",
        '["he said "hi" twice"]', "\u201ca\u201d", "{null:1}", "<x/>", "[\u2060]", "{[1]:2}",
        "I do not know.", "[1;2]", "(1)", "\x00", "[１]", "\\n", '["a"\\n]', "[‘a’]", "{NaN:1}"],
}


@pytest.mark.parametrize("raw", ACCEPTED)
def test_accepts_what_rfc_8259_has(raw):
    expected = json.loads(raw)
    for form in (raw, raw.encode(), bytearray(raw.encode())):
        value = parse_strict_json(form)
        assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize((
    "code", "raw"), [(code, raw) for code, group in REFUSED.items() for raw in group])
def test_names_what_it_refuses(code, raw):
    with pytest.raises(JsonError) as caught:
        parse_strict_json(raw)
    error = caught.value
    assert (error.code, len(error.problems)) == (code, 1)
    assert 0 <= error.position <= len(raw)
    assert len(str(error)) < 400 and str(error).encode("utf-8")


def test_an_answer_that_is_no_json_is_an_answer_error_of_that_stage():
    for read in (lambda raw: parse_model_answer(raw, []), validate_answer_json):
        with pytest.raises(AnswerError) as caught:
            read('[1,]')
        assert (caught.value.code, caught.value.stage, caught.value.position) == (
            "trailing_comma", "json", 2)


def test_the_first_mistake_of_several_is_told():
    for raw, code in (
        ('{"a":1,"a":}', "duplicate_key"), ('{"a":,"a":1}', "bad_json"),
        ("[1e400,]", "number_out_of_range"), ("[,1e400]", "bad_json"),
        ("[NaN//", "nan_or_infinity"), ('{"b":"b":', "bad_json"), ("[" * 32 + "1[", "bad_json"),
        ("[" * 32 + "[}", "too_deep"), ('["\\ud800', "unfinished"),
        ('["\\ud800x', "lone_surrogate")):
        assert outcome(raw) == ("error", code), raw


def test_lines_may_be_deeper_and_hold_halves():
    assert read_json('["\\ud800"]', 1, halves=True) == ["\ud800"]
    with pytest.raises(JsonError, match="at most 1 level[)]"):
        read_json("[[]]", 1)


def test_every_json_error_has_cases():
    assert list(REFUSED) == list(JSON_ERRORS)


def test_position_line_and_column():
    with pytest.raises(JsonError) as caught:
        parse_strict_json('{\n  "a": 1,\n  "a": 2\n}')
    assert caught.value.position == 14 and "line 3, column 3" in str(caught.value)


def test_integers_are_exact_and_signs_kept():
    assert parse_strict_json("[9007199254740993, -0, 1.0]") == [9007199254740993, 0, 1.0]
    assert [type(part) for part in parse_strict_json("[1, 1.0, 1e0]")] == [int, float, float]
    assert str(parse_strict_json("-0.0")) == "-0.0"


@pytest.mark.parametrize("raw", [None, 1, {}, []])
def test_only_text_and_bytes(raw):
    with pytest.raises(TypeError):
        parse_strict_json(raw)


def outcome(raw):
    try:
        return "value", parse_strict_json(raw)
    except JsonError as error:
        assert error.code in JSON_ERRORS
        return "error", error.code


def same_as_the_standard_library(raw):
    kind, value = outcome(raw)
    if kind == "value":
        assert repr(json.loads(raw)) == repr(value)
        return
    try:  # what json.loads accepts on top is known by name
        json.loads(raw.decode("utf-8") if isinstance(raw, bytes) else raw)
    except (ValueError, RecursionError):
        return
    assert value in {
        "nan_or_infinity", "number_out_of_range", "duplicate_key", "lone_surrogate", "too_deep"}


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2 ** 1000), 2 ** 1000) | FLOATS | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(
        st.text(max_size=5), inner, max_size=5), max_leaves=20)
PIECES = st.sampled_from(list('{}[],:"\'\\/#*`+-.0123456789eEuabfnrtNI \t\n') + [
    "NaN", "Infinity", "true", "false", "null", '"a"', '"b":', "\\u", "\\ud83d", "\\ude00", "1e999",
    "//", "```", "\ufeff", "\x00", "\ud800", "é"])


@settings(max_examples=300, deadline=None)
@given(JSON_VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_reads_back_what_json_writes(value, ascii_only, indent):
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert repr(parse_strict_json(raw)) == repr(value)
    assert repr(parse_strict_json(raw.encode())) == repr(value)


@settings(max_examples=1500, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_random_pieces_of_json(raw):
    same_as_the_standard_library(raw)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.binary())
def test_any_text_or_bytes_is_a_value_or_a_named_error(raw):
    same_as_the_standard_library(raw)


@settings(max_examples=500, deadline=None)
@given(JSON_VALUES, st.data())
def test_damaged_json(value, data):
    raw = json.dumps(value)
    place = data.draw(st.integers(0, len(raw)))
    cut = data.draw(st.integers(0, 3))
    same_as_the_standard_library(raw[:place] + data.draw(PIECES | st.just("")) + raw[place + cut:])


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON_VALUES, min_size=1, max_size=3), st.data())
def test_an_object_that_is_cut_off_is_unfinished(value, data):
    raw = json.dumps(value)
    assert outcome(raw[:data.draw(st.integers(1, len(raw) - 1))]) == ("error", "unfinished")


# ---------------------------------------------------------------- layer 1

CHUNKS = [
    {
        "chunk_id": "a13-1865-01", "doc_id": "a13-1865", "year": 1865, "content_type": "summary",
        "license": "Apache-2.0",
        "citation_label": "project summary of Thirteenth Amendment (National Archives)",
        "canonical_url": "https://www.archives.gov/milestone-documents/13th-amendment",
        "source_org": "National Archives", "namespace": "kwanzaa_primary_sources", "tags": ["law"],
        "text": "The Thirteenth Amendment was ratified on December 6, 1865. "
                "It abolished slavery in the United States."},
    {
        "chunk_id": "kz-1966-01", "doc_id": "kz-1966", "year": 1966, "content_type": "summary",
        "license": "Apache-2.0",
        "citation_label": "project summary of Kwanzaa (Library of Congress)",
        "canonical_url": "https://www.loc.gov/", "source_org": "Library of Congress",
        "namespace": "kwanzaa_teaching_kits", "tags": [],
        "text": "Maulana Karenga created Kwanzaa in 1966. "
                "The holiday runs from December 26 to January 1."},
]
SHOWN = [
    "The Thirteenth Amendment was ratified on December 6, 1865.",
    "It abolished slavery in the United States.", "Maulana Karenga created Kwanzaa in 1966.",
    "The holiday runs from December 26 to January 1."]


def answered(**changes):
    parts = {
        "evidence": [1], "completeness": "complete",
        "text": "It was ratified on December 6, 1865. [1]", "unsupported": [], "missing": [],
        "questions": []} | changes
    return {"evidence": parts["evidence"],
            "answer": {"completeness": parts["completeness"], "text": parts["text"]},
            "unknowns": {
                "unsupported_claims": parts["unsupported"], "missing_context": parts["missing"],
                "clarifying_questions": parts["questions"]}}


def partly(**changes):
    return answered(**({"completeness": "partial", "missing": ["the hour"]} | changes))


def refusing(**changes):
    return answered(**({
        "evidence": [], "completeness": "insufficient_data", "text": "The context does not say.",
        "missing": ["the price"]} | changes))


def codes_of(value, chunks=CHUNKS, creative=False):
    try:
        parse_model_answer(json.dumps(value), chunks, creative)
    except AnswerError as error:
        assert error.code == error.problems[0].code
        return [problem.code for problem in error.problems]
    return []


def test_the_chunks_of_these_tests_have_four_sentences():
    assert [sentence.text for sentence in shown_sentences(CHUNKS)] == SHOWN


RULE_CASES = [
    ([], answered()),
    ([], answered(evidence=[3, 1], text="One. [1] Two. [3]")),
    ([], answered(evidence=[1, 4], text="Both. [4][1] Again. [1]")),
    ([], answered(evidence=[4, 2, 1, 3], text="All four. [1][2][3][4]")),
    ([], answered(text="It is [sic] so. [1]")),
    ([], answered(text="It is [[1]] so, in [18th] of [A1].")),
    ([], answered(text="[1] It is so.")),
    ([], answered(text="It was ratified [1]", unsupported=["that it was in 1863"], questions=["Which one?"])),
    ([], partly()),
    ([], refusing()),
    ([], refusing(missing=[], questions=["Which amendment?"])),
    ([], refusing(text="Not said [sic].", missing=[" ", "the price"])),
    (["number_not_shown"], answered(evidence=[5], text="One. [5]")),
    (["number_not_shown"], answered(evidence=[1, 10 ** 8], text=f"One. [1][{10 ** 8}]")),
    (["number_twice"], answered(evidence=[1, 1])),
    (["number_twice", "number_twice"], answered(evidence=[2, 1, 1, 2, 1], text="One. [1][2]")),
    (["mark_without_evidence"], answered(text="One. [1] [2]")),
    (["mark_without_evidence"], answered(text="One. [1] [0]")),
    (["mark_without_evidence"], answered(text="In [1865] so. [1]")),
    (["evidence_without_mark"], answered(text="No mark.")),
    (["evidence_without_mark"], answered(evidence=[1, 4], text="One. [1]")),
    (["bad_mark"], answered(text="One. [1] [01]")),
    (["bad_mark"], answered(text="One. [1] [1,2]")),
    (["bad_mark"], answered(text="One. [1] [1, 2]")),
    (["bad_mark"], answered(text="One. [1] [1-2]")),
    (["bad_mark"], answered(text="One. [1] [1\u20132]")),
    (["bad_mark"], answered(text="One. [1] [ 1 ]")),
    (["bad_mark"], answered(text="One. [1] [1\n]")),
    (["bad_mark"], answered(text="One. [1] [\uff12]")),
    (["bad_mark"], answered(text="One. [1] [\u0661]")),
    (["bad_mark"], answered(text="One. [1] [" + "9" * 9000 + "]")),
    (["bad_mark"], answered(text="One. [1] [-1]")),
    (["blank_text"], answered(text="[1]")),
    (["blank_text"], answered(text=" \u2026 [1].")),
    (["answer_without_evidence"], answered(evidence=[], text="Plain.")),
    (["answer_without_evidence"], partly(evidence=[], text="Plain.")),
    (["complete_with_missing"], answered(missing=["the hour"])),
    (["complete_with_missing"], answered(missing=[" "])),
    (["partial_without_missing"], partly(missing=[])),
    (["partial_without_missing"], partly(missing=["?", " "], questions=["Which hour?"])),
    (["refusal_with_evidence"], refusing(evidence=[1])),
    (["refusal_with_marks"], refusing(text="Not said. [1]")),
    (["refusal_with_marks"], refusing(text="Not said. [1, 2]")),
    (["refusal_without_reason"], refusing(missing=[])),
    (["refusal_without_reason"], refusing(missing=[" "], questions=["?"])),
    (["refusal_without_reason"], refusing(missing=[], unsupported=["that it has a price"])),
    (["mark_without_evidence", "answer_without_evidence"], answered(evidence=[])),
    (
        ["bad_mark", "evidence_without_mark", "evidence_without_mark"],
        answered(evidence=[1, 2], text="One. [1, 2]")),
    (["bad_mark", "evidence_without_mark"], answered(evidence=[4], text="One. [04]")),
    (["bad_mark", "evidence_without_mark"], answered(evidence=[4], text="One. [4-6]")),
    (["refusal_with_marks", "refusal_with_evidence"], refusing(text="Not said. [1]", evidence=[1])),
    (["answer_without_evidence", "blank_text"], answered(evidence=[], text=" . ")),
]


@pytest.mark.parametrize(("codes", "value"), RULE_CASES)
def test_rules_beside_the_schema(codes, value):
    assert codes_of(value) == codes


def test_every_rule_is_broken_alone_by_some_case():
    assert {codes[0] for codes, _ in RULE_CASES if len(codes) == 1} == set(RULE_ERRORS)


def test_all_rules_at_once_and_stage():
    value = answered(evidence=[9, 2, 9], text="A. [3]", missing=["b"])
    with pytest.raises(AnswerError) as caught:
        parse_model_answer(json.dumps(value), CHUNKS)
    assert caught.value.stage == "rules" and caught.value.position is None
    assert [problem.code for problem in caught.value.problems] == [
        "number_not_shown", "number_twice", "mark_without_evidence", "evidence_without_mark",
        "evidence_without_mark", "complete_with_missing"]


def test_a_number_of_any_size_is_refused_with_a_short_message():
    with pytest.raises(AnswerError) as caught:
        parse_model_answer(json.dumps(answered(evidence=[10 ** 300], text="A.")), CHUNKS)
    assert caught.value.code == "number_not_shown" and len(str(caught.value)) < 700
    assert codes_of(answered(evidence=[10 ** 400])) == ["number_out_of_range"]


def test_only_a_creative_answer_may_do_without_evidence():
    for value in (answered(evidence=[], text="Plain."), partly(evidence=[], text="Plain.")):
        assert codes_of(value) == ["answer_without_evidence"]
        assert codes_of(value, creative=True) == []
    assert codes_of(answered(evidence=[]), creative=True) == ["mark_without_evidence"]
    assert codes_of(answered(text="A."), creative=True) == ["evidence_without_mark"]
    assert codes_of(refusing(missing=[]), creative=True) == ["refusal_without_reason"]


def test_with_nothing_shown_no_number_was_shown():
    assert codes_of(answered(), []) == ["number_not_shown"] and codes_of(refusing(), []) == []


def test_numbers_count_the_spans_that_a_chunk_stores():
    halves = [CHUNKS[0] | {"spans": [[0, 24], [25, 58], [59, 101]]}, CHUNKS[1]]
    assert codes_of(answered(evidence=[5], text="A. [5]")) == ["number_not_shown"]
    assert codes_of(answered(evidence=[5], text="A. [5]"), halves) == []
    assert [sentence.text for sentence in shown_sentences(halves)] == [
        SHOWN[0][:24], SHOWN[0][25:], *SHOWN[1:]]


def test_chunks_may_be_objects_and_bytes_may_come_in():
    chunks = [SimpleNamespace(**chunk) for chunk in CHUNKS]
    assert parse_model_answer(json.dumps(answered()).encode(), chunks).evidence == [1]
    assert parse_model_answer(json.dumps(answered()), iter(chunks)).evidence == [1]


@pytest.mark.parametrize("chunks", [
    [{"chunk_id": "a"}], [{"text": "a"}], [CHUNKS[0], CHUNKS[0]], [{}], ["text"]])
def test_unusable_chunks_are_no_fault_of_the_answer(chunks):
    with pytest.raises(AnswerError) as caught:
        rule_problems(ModelAnswer.model_validate(answered()), chunks)
    assert (caught.value.code, caught.value.stage) == ("bad_chunk", "completion")


BAD_SPANS = [
    "all", 3, {}, [1], [[1]], [[0, 1, 2]], [["0", "1"]], [[0, True]], [[0.0, 9.0]], [[0, 10 ** 6]],
    [[-1, 4]], [[4, 4]], [[9, 4]], [[0, 9], [8, 12]], [[9, 12], [0, 4]], [[3, 4]], []]


@pytest.mark.parametrize("spans", BAD_SPANS)
def test_spans_that_do_not_fit_their_text_are_named(spans):
    chunks = [CHUNKS[1], CHUNKS[0] | {"spans": spans}]
    for use in (
        lambda: rule_problems(ModelAnswer.model_validate(answered()), chunks),
        lambda: complete_answer(ModelAnswer.model_validate(answered()), chunks, query="When?")):
        with pytest.raises(AnswerError, match="a13-1865-01, spans") as caught:
            use()
        assert (caught.value.code, caught.value.stage) == ("bad_spans", "completion")


def changed(value, path, new):
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if new is KeyError:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return value


def at(dotted):
    "Return the path of a place such as sources.0.year."
    return tuple(int(part) if part.isdigit() else part for part in dotted.split("."))


SCHEMA_CASES = {  # a place, and what may not stand there; KeyError: the key is left out
    "evidence": [
        KeyError, None, {}, 1, "1", [[1]], [0], [-1], ["1"], ["[1]"], [1.5], [True], [None],
        [{"number": 1}], [*range(1, 10)], [1] * 9],
    "answer": [KeyError], "answer.extra": [1], "answer.completeness": ["Complete", True],
    "answer.text": [KeyError, "", "a" * 10001, 1],
    "unknowns": [KeyError], "unknowns.extra": [[]], "unknowns.clarifying_questions": [[1]],
    "unknowns.missing_context": [KeyError, [""], ["a"] * 9, ["a" * 501], "a"],
    "extra": [1], "citations": [[]],
}


@pytest.mark.parametrize(("path", "new"), [
    (at(place), new) for place, wrong in SCHEMA_CASES.items() for new in wrong])
def test_schema_of_layer_1(path, new):
    value = changed(answered(), path, new)
    assert set(codes_of(value)) == {"schema"}
    assert not Draft202012Validator(model_answer_schema()).is_valid(value)


@pytest.mark.parametrize("number", [
    "1.0", "1e0", "10e-1", "-0", "0", "-1", "-0.0", "true", "null", '"1"', "[1]"])
def test_evidence_is_written_as_a_plain_integer(number):
    raw = json.dumps(answered()).replace('"evidence": [1]', f'"evidence": [{number}]')
    mend = "write the number of a sentence, such as 4"
    with pytest.raises(AnswerError, match=rf"evidence\.0.*{mend}") as caught:
        parse_model_answer(raw, CHUNKS)
    assert (caught.value.code, caught.value.stage) == ("schema", "schema")


def test_eight_numbers_are_the_most():
    chunks = [{
        "chunk_id": "a", "text": "word. " * 9,
        "spans": [[6 * place, 6 * place + 5] for place in range(9)]}]
    for numbers, codes in (([*range(1, 9)], []), ([*range(1, 10)], ["schema"])):
        text = "So " + "".join(f"[{number}]" for number in numbers)
        assert codes_of(answered(evidence=numbers, text=text), chunks) == codes


@pytest.mark.parametrize("raw", ["{}", "[]", "null", '"text"', "1", "[{}]"])
def test_degenerate_outputs_do_not_fit(raw):
    with pytest.raises(AnswerError) as caught:
        parse_model_answer(raw, CHUNKS)
    assert (caught.value.code, caught.value.stage) == ("schema", "schema")


def test_all_schema_problems_at_once():
    value = changed(changed(answered(), ("answer", "completeness"), "maybe"), ("extra",), 1)
    assert codes_of(value) == ["schema", "schema"]
    with pytest.raises(AnswerError, match=r"answer\.completeness.*(\n.*)*extra"):
        parse_model_answer(json.dumps(value), CHUNKS)


def bounded(node):
    if node.get("type") == "integer":
        return node["minimum"] == 1  # a record's own schema says how many there are
    if node.get("type") == "string":
        return "enum" in node or "maxLength" in node
    if node.get("type") == "array":
        return "maxItems" in node and bounded(node["items"])
    return node["additionalProperties"] is False and node["required"] == list(node["properties"]) and all(
        map(bounded, node["properties"].values()))


def test_schema_for_the_grammar_is_closed_bounded_and_in_order():
    schema = model_answer_schema()
    assert bounded(schema) and "$ref" not in json.dumps(schema)
    assert [list(schema["properties"]), list(schema["properties"]["answer"]["properties"]),
            list(schema["properties"]["unknowns"]["properties"])] == [
        ["evidence", "answer", "unknowns"], ["completeness", "text"],
        ["unsupported_claims", "missing_context", "clarifying_questions"]]
    assert schema["properties"]["answer"]["properties"]["completeness"]["enum"] == list(COMPLETENESS)


def test_the_schema_of_a_record_has_its_own_numbers():
    evidence = record_schema(CHUNKS)["properties"]["evidence"]
    assert evidence["items"] == {
        "type": "integer", "minimum": 1, "maximum": 4} and evidence["maxItems"] == 8
    for chunks, numbers, good in (
        (CHUNKS, [4, 1], True), (CHUNKS, [5], False), (CHUNKS, [0], False), ([], [], True),
        ([], [1], False)):
        assert Draft202012Validator(record_schema(chunks)).is_valid(answered(evidence=numbers)) is good
    shared = model_answer_schema()["properties"]["evidence"]["items"]
    assert "maximum" not in shared, "the schema of all is left alone"


def test_find_marks():
    assert find_marks("A [1][12], [0] [01] [a] [1,2] [ 3 ] [1000] [[7]] [\u0663] [1234567890]") == [
        1, 12, 0, 1000, 7]


# ---------------------------------------------------------------- layer 2

WHEN = "2026-11-22T13:00:00Z"
UUID = "123e4567-e89b-12d3-a456-426614174000"


def whole(value=None, **more):
    model_answer = ModelAnswer.model_validate(value or answered(evidence=[
        1, 3], text="One. [1] Two. [3]"))
    return complete_answer(model_answer, CHUNKS, **({
        "query": "When?", "generated_at": WHEN} | more))


FULL = dict(
    top_k=5, namespaces=["kwanzaa_primary_sources"], scores=[
        0.9, 0.5], persona="educator", confidence=0.75, tone="educational",
    out_of_scope=["prices"], filters={"year": {"from": 1800}}, execution_time_ms=3,
    embedding_model="words", retrieval_confidence="high", safety_flags=["none"],
    retrieval_run_id=UUID, assistant_message_id=UUID, session_id=UUID,
    model_version="base", adapter_version="adapter")


def test_complete_answer_fills_every_key():
    value = whole(**FULL)
    assert list(value) == list(AnswerJson.model_fields)
    for name, part in AnswerJson.model_fields.items():
        if hasattr(part.annotation, "model_fields"):
            assert set(value[name]) == set(part.annotation.model_fields)
    assert validate_answer_json(json.dumps(value)).model_dump(exclude_unset=True) == value
    assert Draft202012Validator(answer_json_schema()).is_valid(value)
    for place, source in enumerate(value["sources"]):
        text = CHUNKS[place]["text"]
        assert text[source["quote_start"]:source["quote_end"]] == source["quote"] == SHOWN[2 * place]
    assert [source["relevance_score"] for source in value["sources"]] == [0.9, 0.5]
    results = value["retrieval_summary"]["results"]
    assert [(result["rank"], result["score"]) for result in results] == [(1, 0.9), (2, 0.5)]


def test_defaults_claim_nothing_that_is_not_known():
    value = whole()
    assert all("relevance_score" not in source for source in value["sources"])
    assert [result["score"] for result in value["retrieval_summary"]["results"]] == [0.0, 0.0]
    assert value["integrity"] == {"citation_required": True, "citations_provided": True,
                                  "fallback_behavior": "not_needed"}
    assert "confidence" not in value["answer"] and "persona" not in value
    assert list(value["provenance"]) == ["generated_at"]
    assert value["retrieval_summary"]["top_k"] == 2
    assert value["retrieval_summary"]["namespaces"] == [
        "kwanzaa_primary_sources", "kwanzaa_teaching_kits"]


def test_two_sentences_of_a_chunk_are_two_sources_in_the_order_of_the_evidence():
    value = whole(answered(evidence=[4, 2, 1], text="One. [1] Two. [2][4] Three. [1]"))
    assert value["answer"]["text"] == "One. [3] Two. [2][1] Three. [3]"
    assert [source["quote"] for source in value["sources"]] == [SHOWN[3], SHOWN[1], SHOWN[0]]
    assert [source["chunk_id"] for source in value["sources"]] == [
        "kz-1966-01", "a13-1865-01", "a13-1865-01"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_mark_leads_to_the_sentence_that_the_model_meant(data):
    text = st.text(st.sampled_from("aé🙂. \n[3]?!"), min_size=1, max_size=60).filter(str.strip)
    texts = data.draw(st.lists(text, min_size=1, max_size=12))
    chunks = [CHUNKS[0] | {
        "chunk_id": f"c{place}", "text": text} for place, text in enumerate(texts)]
    shown = shown_sentences(chunks)
    evidence = data.draw(st.lists(st.integers(1, len(shown)), min_size=1, max_size=8, unique=True))
    marks = data.draw(st.permutations(evidence)) + data.draw(st.lists(st.sampled_from(evidence), max_size=5))
    said = "So " + " ".join(f"[{mark}]" for mark in marks)
    answer = ModelAnswer.model_validate(answered(evidence=evidence, text=said))
    value = complete_answer(answer, chunks, query="When?")
    assert len(value["sources"]) == len(evidence)
    for mark, place in zip(marks, find_marks(value["answer"]["text"]), strict=True):
        source, text = value["sources"][place - 1], chunks[shown[mark - 1].place]["text"]
        assert source["quote"] == text[source["quote_start"]:source["quote_end"]] == shown[mark - 1].text
        assert source["chunk_id"] == shown[mark - 1].chunk_id


def test_numbers_of_two_digits_become_positions():
    chunks = [CHUNKS[0] | {
        "text": "word. " * 30, "spans": [[6 * place, 6 * place + 5] for place in range(30)]}]
    value = complete_answer(ModelAnswer.model_validate(answered(evidence=[
        12, 2, 1], text="A [1][2] and [12], [12].")), chunks, query="When?")
    assert value["answer"]["text"] == "A [3][2] and [1], [1]."
    assert [source["quote_start"] for source in value["sources"]] == [66, 6, 0]
    assert renumbered("[2][12][1] [3] [02]", [1, 12, 2]) == "[3][2][1] [3] [02]"


def test_stored_spans_give_the_quote():
    chunks = [CHUNKS[0] | {"spans": [[0, 24], [29, 37], [59, 101]]}]
    value = complete_answer(ModelAnswer.model_validate(answered(evidence=[2], text="So. [2]")), chunks, query="When?")
    source, = value["sources"]
    assert (source["quote"], source["quote_start"], source["quote_end"]) == ("ratified", 29, 37)


def test_refusals():
    value = whole(refusing())
    assert value["sources"] == [] and value["integrity"]["fallback_behavior"] == "refusal"
    value = whole(refusing(missing=[], questions=["Which?"]))
    assert value["integrity"]["fallback_behavior"] == "clarification_requested"
    nothing = complete_answer(ModelAnswer.model_validate(refusing()), [], query="When?",
                              namespaces=["all"], generated_at=WHEN)
    assert nothing["integrity"]["retrieval_confidence"] == "none"
    assert nothing["retrieval_summary"]["results"] == []


def completion_codes(*arguments, **more):
    with pytest.raises(AnswerError) as caught:
        complete_answer(*arguments, **({"query": "When?", "generated_at": WHEN} | more))
    return [problem.code for problem in caught.value.problems]


def test_completion_errors():
    good, refusal = ModelAnswer.model_validate(answered()), ModelAnswer.model_validate(refusing())
    bare = [{"chunk_id": "a13-1865-01", "text": CHUNKS[0]["text"]}, {"chunk_id": "b", "text": "b"}]
    assert completion_codes(good, bare) == ["missing_provenance"] * (8 + 4)
    assert completion_codes(refusal, []) == ["missing_namespaces"]
    assert completion_codes(good, []) == ["number_not_shown", "missing_namespaces"]
    plain = ModelAnswer.model_validate(answered(evidence=[], text="A."))
    assert completion_codes(plain, CHUNKS) == ["answer_without_evidence"]
    required = {"require_citations": True, "primary_sources_only": False, "creative_mode": True}
    assert completion_codes(plain, CHUNKS, model_mode="creative", toggles=required) == ["sources_required"]
    for scores in ([
        7.3, 0.1], [True, 0.1], ["1", 0], [float("nan"), 0], [0.5], {"a13-1865-01": -2}, [None, 1]):
        assert set(completion_codes(good, CHUNKS, scores=scores)) == {"bad_score"}
    for more in (
        dict(query=""), dict(query="a" * 1001), dict(persona="nobody"), dict(top_k=0),
        dict(top_k=101), dict(confidence=1.1), dict(confidence=True), dict(namespaces=[]),
        dict(namespaces=["a"] * 21), dict(execution_time_ms=-1), dict(session_id="1"),
        dict(toggles={"require_citations": True}), dict(generated_at="yesterday"),
        dict(generated_at=datetime(2026, 1, 1)), dict(tone="warm")):
        assert set(completion_codes(good, CHUNKS, **more)) == {"schema"}, more
    assert set(completion_codes(good, CHUNKS, filters={"x": float("nan")})) == {"not_json_value"}
    bad_url = [CHUNKS[0] | {"canonical_url": "www.archives.gov"}]
    assert completion_codes(good, bad_url) == ["schema", "schema"]


def test_scores_may_round_and_modes_set_toggles():
    good = ModelAnswer.model_validate(answered())
    value = complete_answer(good, CHUNKS, query="When?", scores={
        "a13-1865-01": 1.0000001, "kz-1966-01": -0.2})
    assert [result["score"] for result in value["retrieval_summary"]["results"]] == [1.0, 0.0]
    plain = ModelAnswer.model_validate(answered(evidence=[], text="A."))
    creative = complete_answer(plain, CHUNKS, query="When?", model_mode="creative")
    assert creative["toggles"] == {
        "require_citations": False, "primary_sources_only": False, "creative_mode": True}


def test_time_is_now_in_utc_or_what_is_given():
    good = ModelAnswer.model_validate(answered())
    before = datetime.now(timezone.utc).replace(microsecond=0)
    stamp = complete_answer(good, CHUNKS, query="When?")["provenance"]["generated_at"]
    assert before <= datetime.fromisoformat(stamp) <= datetime.now(timezone.utc)
    local = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=3)))
    assert whole(generated_at=local)["provenance"]["generated_at"] == "2025-12-31T23:00:00Z"
    assert json.dumps(whole(**FULL)) == json.dumps(whole(**FULL))


def is_valid(value):
    try:
        validate_answer_json(value)
    except AnswerError as error:
        assert error.stage in ("schema", "completion")
        return False
    return True


VALUE = whole(**FULL)
TEXTS = {  # how long a text may be
    "answer.text": 10000, "retrieval_summary.query": 1000,
    "retrieval_summary.results.0.snippet": 2000, "sources.0.citation_label": 500,
    "sources.0.source_org": 200, "sources.0.content_type": 100, "sources.0.license": 200,
    "sources.0.namespace": 100, "sources.0.doc_id": 200, "sources.0.chunk_id": 200,
}
LISTS = {  # how long each text of a list may be
    "sources.0.tags": 100, "unknowns.unsupported_claims": 1000, "unknowns.missing_context": 1000,
    "unknowns.clarifying_questions": 500, "unknowns.out_of_scope": 1000,
}
LIMITS = [  # a place, a value that is allowed, one that is not
    *((place, "a" * most, "a" * (most + 1)) for place, most in TEXTS.items()),
    *((place, ["a" * most], ["a" * (most + 1)]) for place, most in LISTS.items()),
    ("version", "kwanzaa.answer.v12", "kwanzaa.answer.v"),
    ("version", "kwanzaa.answer.v1", "kwanzaa.answer.v1\n"),
    ("answer.confidence", 1, 1.01), ("answer.confidence", 0, -0.01),
    ("sources.0.year", 1600, 1599), ("sources.0.year", 2100, 2101),
    ("sources.0.year", 1865, 1865.5), ("sources.0.year", 1865.0, "1865"),
    ("sources.0.year", 1700, True), ("sources.0.license", "a", ""),
    ("sources.0.tags", ["a"] * 50, ["a"] * 51), ("sources.0.relevance_score", 1.0, 1.5),
    ("sources.0.relevance_score", 0, False),
    ("sources.0.anything", {"more": [1]}, float("inf")),
    ("sources", VALUE["sources"] * 50, VALUE["sources"] * 51),
    ("retrieval_summary.top_k", 100, 101), ("retrieval_summary.top_k", 1, 0),
    ("retrieval_summary.top_k", 5, True),
    ("retrieval_summary.namespaces", ["a"] * 20, ["a"] * 21),
    ("retrieval_summary.namespaces", ["a"], []), ("retrieval_summary.results", [], None),
    ("retrieval_summary.results.0.rank", 1, 0), ("retrieval_summary.results.0.rank", 100000, "1"),
    ("retrieval_summary.results.0.score", 1, 1.1),
    ("retrieval_summary.results.0.score", 0, float("nan")),
    ("retrieval_summary.execution_time_ms", 0, -1), ("retrieval_summary.filters", {}, []),
    ("integrity.citation_required", True, 1), ("integrity.retrieval_confidence", "none", None),
    ("integrity.fallback_behavior", "creative_generation", "other"),
    ("persona", "builder", None), ("model_mode", "adapter_only", "rag"),
    ("toggles.creative_mode", True, "true"), ("provenance.session_id", UUID.upper(), UUID[:-1]),
    ("provenance.session_id", UUID, UUID + "\n"),
    ("provenance.session_id", UUID, "{" + UUID + "}"),
]


@pytest.mark.parametrize(("path", "good", "bad"), [(at(place), *both) for place, *both in LIMITS])
def test_limits_of_layer_2(path, good, bad):
    schema = Draft202012Validator(answer_json_schema())
    assert is_valid(changed(VALUE, path, good)) and schema.is_valid(changed(VALUE, path, good))
    assert not is_valid(changed(VALUE, path, bad))


REQUIRED = {  # of each object, the keys that must be there
    "": "version answer sources retrieval_summary unknowns", "answer": "text",
    "sources.0": "citation_label canonical_url source_org year content_type license namespace "
                 "doc_id chunk_id",
    "retrieval_summary": "query top_k namespaces results",
    "retrieval_summary.results.0": "rank score citation_label canonical_url doc_id chunk_id "
                                   "namespace",
    "unknowns": "unsupported_claims missing_context clarifying_questions",
    "toggles": "require_citations primary_sources_only creative_mode",
    "provenance": "generated_at",
}
REQUIRED = {at(f"{place}.{key}".lstrip(".")) for place, keys in REQUIRED.items()
            for key in keys.split()}


def leaves(node, path=()):
    if isinstance(node, (dict, list)) and path[-1:] != ("filters",):
        for key, child in (node.items() if isinstance(node, dict) else enumerate(node)):
            yield path + (key,)
            yield from leaves(child, path + (key,))


@pytest.mark.parametrize("path", [path for path in leaves(VALUE) if isinstance(path[-1], str)])
def test_required_keys_are_required_and_all_others_are_not(path):
    value = changed(VALUE, path, KeyError)
    must = tuple(0 if isinstance(key, int) else key for key in path) in REQUIRED
    assert is_valid(value) is not must
    assert Draft202012Validator(answer_json_schema()).is_valid(value) is not must


@pytest.mark.parametrize("path", [
    (), ("answer",), ("toggles",), ("retrieval_summary",), ("retrieval_summary", "results", 0),
    ("unknowns",), ("integrity",), ("provenance",)])
def test_no_other_keys_outside_sources(path):
    assert not is_valid(changed(VALUE, path + ("other",), 1))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([path for path in leaves(VALUE)]), st.none() | st.booleans() | st.integers() | FLOATS | st.text()
       | st.just([]) | st.just({}) | st.lists(st.text(max_size=3), max_size=3))
def test_schema_and_validator_agree(path, new):
    value = changed(VALUE, path, new)
    try:
        validate_answer_json(value)
        assert Draft202012Validator(answer_json_schema()).is_valid(value)
    except AnswerError as error:
        has_format = path[-1] in ("canonical_url", "generated_at")
        is_beside = error.stage == "completion"
        assert has_format or is_beside or not Draft202012Validator(answer_json_schema()).is_valid(value)


URIS = [
    "https://www.archives.gov/", "http://a.b", "https://a.b:80/c?d=e&f#g", "urn:isbn:0451450523",
    "mailto:a@b.c", "https://[::1]/a", "https://user@a.b/%C3%A9", "doi:10.1000/182", "HTTPS://A.B",
    "file:///a/b", "https://a.b/(c)'"]
NOT_URIS = [
    "", "www.archives.gov", "/path", "//a.b/c", "https://", "https:/a.b", "https:a", "http://a b",
    "https://a.b/é", "https://a.b/%zz", "1http://a", ":a", "https://a.b/\n", " https://a.b",
    "https://a.b/<c>", "https://?q", "https://a.b/\"c\"", "https://a.b/{c}", "https://:80/",
    "https://a.b:x/", "https://a.b#c#d", "http://[a/"]


@pytest.mark.parametrize((
    "url", "good"), [(url, True) for url in URIS] + [(url, False) for url in NOT_URIS])
def test_uris(url, good):
    assert is_valid(changed(VALUE, ("sources", 0, "canonical_url"), url)) is good


TIMES = [
    WHEN, "2026-11-22t13:00:00z", "2026-11-22T13:00:00.123456789+05:30",
    "2024-02-29T00:00:00-00:00", "2016-12-31T23:59:60Z", "2017-01-01T05:29:60+05:30",
    "2026-01-01T23:59:59-23:59"]
NOT_TIMES = [
    "", "2026-11-22", "2026-11-22T13:00:00", "2026-11-22 13:00:00Z", "2026-13-01T00:00:00Z",
    "2026-02-30T00:00:00Z", "2026-11-22T24:00:00Z", "2026-11-22T13:60:00Z", "2026-11-22T13:00:60Z",
    "2026-11-22T13:00Z", "13:00:00Z", "2026-11-22T13:00:00+0530", "2026-11-22T13:00:00+24:00",
    "2026-11-22T13:00:00.Z", WHEN + "\n", " " + WHEN, "２０２６-11-22T13:00:00Z", "20261122T130000Z",
    "2026-11-22T13:00:00,5Z"]


@pytest.mark.parametrize(
    ("moment", "good"), [(
        moment, True) for moment in TIMES] + [(moment, False) for moment in NOT_TIMES])
def test_times(moment, good):
    assert is_valid(changed(VALUE, ("provenance", "generated_at"), moment)) is good


def rule_codes(value):
    with pytest.raises(AnswerError) as caught:
        validate_answer_json(value)
    return [problem.code for problem in caught.value.problems]


def test_rules_beside_the_schema_of_layer_2():
    bare = changed(VALUE, ("sources",), [])
    assert rule_codes(bare) == ["sources_required", "citations_provided_mismatch"]
    honest = changed(bare, ("integrity", "citations_provided"), False)
    assert rule_codes(honest) == ["sources_required"]
    assert rule_codes(changed(honest, (
        "toggles", "require_citations"), False)) == ["sources_required"]
    assert rule_codes(changed(honest, (
        "integrity", "citation_required"), False)) == ["sources_required"]
    assert rule_codes(changed(honest, ("answer", "completeness"), KeyError)) == ["sources_required"]
    assert is_valid(changed(honest, ("answer", "completeness"), "insufficient_data"))
    free = changed(changed(honest, ("toggles", "require_citations"), False),
                   ("integrity", "citation_required"), False)
    assert is_valid(free)
    assert is_valid(changed(changed(free, ("toggles",), KeyError), ("integrity",), KeyError))
    assert rule_codes(changed(VALUE, (
        "integrity", "citations_provided"), False)) == ["citations_provided_mismatch"]


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def test_values_that_json_cannot_hold():
    circular = []
    circular += [circular, circular]
    for bad in (
        float("nan"), float("inf"), "\ud800", 10 ** 400, (1, 2), {1}, b"a", {1: 2}, {"\ud800": 1},
        nested(100_000), circular, datetime(2026, 1, 1)):
        assert set(rule_codes(changed(VALUE, ("sources", 0, "more"), bad))) == {"not_json_value"}
    for bad in (None, 1, [], ["a"], {}):
        assert set(rule_codes(bad)) == {"schema"}
    assert rule_codes("```json\n{}\n```") == ["markdown_fence"]


# ---------------------------------------------------------------- what is generated

def test_schema_files_are_those_of_the_models(tmp_path):
    for path in write_schemas(tmp_path):
        committed = ROOT / "configs" / "schemas" / path.name
        assert path.read_bytes() == committed.read_bytes(), f"run write_schemas('configs/schemas') for {path.name}"
        Draft202012Validator.check_schema(json.loads(committed.read_text(encoding="utf-8")))


def test_layer_2_has_not_changed():
    committed = (ROOT / "configs" / "schemas" / "answer_json.schema.json").read_bytes()
    known = "48eb07993a284b04a33e61bf9891a9385a83abc3542c1795b21fd31aec42cd8c"
    assert hashlib.sha256(committed).hexdigest() == known, "consumers validate by these bytes"


def test_tables_name_every_key_and_code():
    table = contract_table()
    keys = [".".join(map(str, path)).replace(".0.", "[].") for path in leaves(VALUE)
            if isinstance(path[-1], str)]
    for key in keys:
        if "quote" not in key and ".1." not in key and "filters." not in key:
            assert f"| `{key}` |" in table, key
    assert all(f"`{code}`" in error_table() for errors in ERROR_STAGES.values() for code in errors)
    assert len({code for errors in ERROR_STAGES.values() for code in errors}) == sum(map(len, ERROR_STAGES.values()))
