"Early stopping: an output goes on while it can become valid, and stops soon once it can't."

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwanzaa_nb.core.answer import AnswerError, ModelAnswer, parse_model_answer, record_schema
from kwanzaa_nb.core.strict_json import JsonError, parse_strict_json
from kwanzaa_nb.core.prefix import PrefixCheck

CHUNKS = [
    {"chunk_id": "a", "text": "One. Two. Three. Four. Five. Six."},
    {"chunk_id": "b", "text": "Seven. Eight. Nine. Ten. Eleven. Twelve."}]
SCHEMA = record_schema(CHUNKS)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NOTES = st.lists(TEXT, max_size=3)
UNKNOWNS = st.fixed_dictionaries({
    "unsupported_claims": NOTES, "missing_context": NOTES, "clarifying_questions": NOTES})
NUMBERS = st.lists(st.integers(1, 12), max_size=8, unique=True)
COMPLETENESS = st.sampled_from(["complete", "partial", "insufficient_data"])
ANSWER = st.fixed_dictionaries(
    {
        "evidence": NUMBERS,
        "answer": st.fixed_dictionaries({"completeness": COMPLETENESS, "text": TEXT}),
        "unknowns": UNKNOWNS})


def accepted(text, whole=False):
    "Tell whether an output fits the schema and names shown sentences once, or keeps the contract."
    try:
        if whole:
            return bool(parse_model_answer(text, CHUNKS))
        numbers = ModelAnswer.model_validate(parse_strict_json(text)).evidence
    except (AnswerError, JsonError, ValueError):
        return False
    return max(numbers, default=0) <= 12 and len(set(numbers)) == len(numbers)


def written(answer, chance):
    "JSON of an answer with its keys in any order, and white space wherever JSON may have some."
    def shuffled(node):
        if isinstance(node, dict):
            keys = list(node)
            chance.shuffle(keys)
            return {key: shuffled(node[key]) for key in keys}
        return [shuffled(part) for part in node] if isinstance(node, list) else node

    def spelled(node):
        def gap():
            return "".join(chance.choices(" \t\r\n", k=chance.choice([0, 0, 1, 3])))
        if isinstance(node, dict):
            parts = [f"{gap()}{json.dumps(key)}{gap()}:{gap()}{spelled(value)}{gap()}"
                     for key, value in node.items()]
            return "{" + ",".join(parts) + "}"
        if isinstance(node, list):
            return "[" + (",".join(f"{gap()}{spelled(part)}{gap()}" for part in node) or gap()) + "]"
        return json.dumps(node, ensure_ascii=chance.random() < 0.5)
    return f"{spelled(shuffled(answer))}"


@settings(deadline=None)
@given(ANSWER, st.randoms())
def test_whatever_the_parser_accepts_is_alive_to_its_end(answer, chance):
    text = written(answer, chance)
    assert accepted(text)
    for schema in (None, SCHEMA):
        check = PrefixCheck(schema)
        assert check.feed(" \n") and not check.complete
        for place, char in enumerate(text, 1):
            assert check.feed(char) and check.complete == (place == len(text)), text[:place]
        assert check.feed(" \n") and check.complete and check.read == len(text) + 4
        assert not check.feed("x") and not check.feed(text), "dead for good"


@settings(deadline=None)
@given(NUMBERS.filter(bool), st.sampled_from(["complete", "partial"]), UNKNOWNS, st.randoms())
def test_what_keeps_the_whole_contract_is_alive_to_its_end(numbers, completeness, unknowns, chance):
    missing = ["the year"] if completeness == "partial" else []
    text = "So " + " ".join(f"[{number}]" for number in numbers)
    answer = {"evidence": numbers, "answer": {"completeness": completeness, "text": text},
              "unknowns": unknowns | {"missing_context": missing}}
    text = written(answer, chance)
    assert accepted(text, whole=True) and PrefixCheck(SCHEMA).feed(text)


ENDS = [
    "", "}", '"', '"}', "]", "]}", '"]}}', '"}}', ']}}', "1]}", "0",
    ',"answer":{"completeness":"partial","text":"a"}}']


@settings(max_examples=500, deadline=None)
@given(ANSWER, st.data())
def test_a_changed_output_is_alive_wherever_the_parser_still_accepts_it(answer, data):
    text = json.dumps(answer, ensure_ascii=False)
    evidence = slice(len('{"evidence": ['), text.index("]"))  # half of the changes are made where the numbers stand
    place = data.draw(st.integers(0, len(text) - 1) | st.integers(evidence.start, evidence.stop))
    piece = data.draw(st.sampled_from(list('{}[]",:\\ \n\tua0123458d9é-.e٣') + [
        "", "12", "13", "1,", ", 1", "4.0", '"4"', "null", "true", "04", "-1", "1e1", "[4]"]))
    cut = data.draw(st.integers(0, 3))
    changed = text[:place] + piece + text[place + cut:]
    check = PrefixCheck(SCHEMA)
    alive = check.feed(changed)
    if accepted(changed):
        assert alive and check.complete
    if check.alive and check.complete and check.read == len(changed) and not accepted(changed):
        with pytest.raises((
            JsonError, ValueError)) as caught:  # what is left to the parser are lengths alone
            ModelAnswer.model_validate(parse_strict_json(changed))
        assert "at least 1 character" in str(caught.value)
    if not alive:  # nothing that begins like this may be accepted, however it goes on
        start = changed[:check.read]
        for rest in (
            text[place:], text[place + 1:], text[place + cut:], changed[check.read:], text, *ENDS):
            assert not accepted(start + rest), start + rest


OPEN = '{"evidence":['


@pytest.mark.parametrize(("numbers", "read"), [
    ("13", 2), ("120", 3), ("0", 1), ("-", 1), ("+1", 1), ("04", 1), ("1.0", 2), ("1e0", 2),
    ('"4"', 1), ("null", 1), ("true", 1), ("[4]", 1), ("{", 1), (",", 1), ("4,,", 3), ("4,]", 3),
    ("4 5", 3), ("4, 4,", 5), ("4,4]", 4), ("4,4 ", 4), ("1,11,1]", 7), ("12,12,", 6),
    ("1,2,3,4,5,6,7,8,9", 17), ("1,2,3,4,5,6,7,8,", None), ("٣", 1), ("３", 1), ("²", 1), ("4x", 2),
    ("4}", 2), ("4\u00a0", 2), ("9" * 5000, 2), ("4,13", 4), ("4,1", None), ("1,1", None),
    ("1,12", None), ("4 \n, 5\t]", None), ("", None), ("]", None), (" ", None), ("12,1]", None),
    ("1,10,11,12", None)])
def test_numbers(numbers, read):
    check = PrefixCheck(SCHEMA)
    assert check.feed(OPEN + numbers) == (read is None)
    assert check.read == len(OPEN) + (len(numbers) if read is None else read)


def test_without_a_record_s_schema_any_number_that_json_holds_may_be_one():
    for numbers, alive in (
        ("13", True), ("0", False), ("4,4,", False), ("9" * 308, True), ("9" * 310, False),
        ("9" * 6000, False)):
        assert PrefixCheck().feed(OPEN + numbers) == alive
    assert not PrefixCheck(record_schema([])).feed(OPEN + "1")
    assert PrefixCheck(record_schema([])).feed(OPEN + "]")


@pytest.mark.parametrize(("text", "read"), [
    ("Sure", 1), ("  ```json", 3), ("\ufeff{", 1), ("{,", 2), ("[", 1), ('{"answers"', 9),
    ('{"citations"', 3), ('{"evidence":{', 13), ('{"evidence":null', 13), ('{"evidence":[],]', 16),
    ('{"evidence":[],"evidence', 17), ('{"evidence":[],}', 16), ('{"evidence":[]}', 15),
    ('{"\\u0065vidence":[],"ev', 22), ('{"answer":{"text":"\\ud83d"', 26),
    ('{"answer":{"text":"\\udc00', 25), ('{"answer":{"text":"\\x', 21),
    ('{"answer":{"text":"a\n', 21), ('{"answer":{"text":"a"}', 22),
    ('{"answer":{"completeness":"comb', 31), ('{"answer":{"completeness":"comp"', 32),
    ('{"answer":{"completeness":"complete","completeness', 39),
    ('{"unknowns":{"missing_context":[1', 33), ('{"unknowns":{"missing_context":["a",]', 37),
    ('{"unknowns":{"missing_context":[' + ",".join(['"b"'] * 8) + ',"', 32 + 8 * 4 + 1)])
def test_dead_at_the_first_wrong_character(text, read):
    check = PrefixCheck()
    assert check.feed(text[:read - 1]) and not check.feed(text[read - 1:]) and check.read == read
