"Citable units: for any text, spans with only white space between them, none too long."

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwanzaa_nb.core.sentences import (
    LONGEST, SpanError, blocks, chunk_spans, field_of, number_sentences,
    sentence_spans, span_problem)

ROOT = Path(__file__).resolve().parents[1]
HARD_CASES = (ROOT / "data" / "benchmarks" / "sentences.jsonl").read_text(encoding="utf-8")
CASES = [json.loads(line) for line in HARD_CASES.splitlines()]
HARD = "aB.? \n\t|#-1)(\"“”。\u2028\u00a0\x85`~,;—[]é\u0301अ।٠؟ቤ።"


def units(text, **options):
    return [text[start:end] for start, end in sentence_spans(text, **options)]


SIGNS = st.sampled_from(HARD) | st.characters(exclude_categories=["Cs"])


@given(st.text(SIGNS, max_size=200), st.integers(8, 60))
def test_units_are_spans_of_any_text(text, longest):
    place = 0
    spans = sentence_spans(text, longest=longest)
    for start, end in spans:
        assert place <= start < end <= len(text) and not text[place:start].strip()
        assert text[start:end] == text[start:end].strip()
        place = end
    assert not text[place:].strip()
    assert sentence_spans(text, longest=longest) == spans
    if any(map(str.isalnum, text)):
        found = units(text, longest=longest)
        assert all(any(map(str.isalnum, unit)) for unit in found), "signs alone can't be evidence"


@given(st.text(st.sampled_from(HARD), max_size=200))
def test_blocks_hold_the_whole_text(text):
    assert "".join(text[start:end] for start, end, _ in blocks(text)) == text


@given(st.lists(st.text(st.sampled_from("abc,; \n"), min_size=1, max_size=30), min_size=20,
                max_size=60))
def test_long_units_are_split(parts):
    found = units("".join(parts), longest=100)
    assert all(len(unit.strip(",; \n")) <= 100 for unit in found), "signs at its ends come on top"


def test_a_text_without_a_full_stop_is_split_between_words():
    text = "seven tools were lent and nobody wrote it down " * 600
    found = units(text)
    assert len(text.split()) > 5000 and max(map(len, found)) <= LONGEST
    assert len(found) < 1.2 * len(text) / LONGEST
    assert " ".join(found).split() == text.split()


def test_a_text_without_a_space_is_split_all_the_same():
    assert "".join(units("字" * 1000)) == "字" * 1000 and max(map(len, units("字" * 1000))) <= LONGEST


@pytest.mark.parametrize("text", [
    "W.\u00a0E.\u00a0B. Du Bois", "a.\u2028B. C", "“" * 2000 + "Yes.",
    "(" * 5000 + " a. B. " * 5000, "", " \n", "…", "\ufeff", "One\0. Two.",
    "Half \ud83d. Other \udc00 half.", "A.\x85B.\x0bC.\x0cD.\u2029E."])
def test_texts_that_stop_splitters(text):
    assert "".join("".join(unit.split()) for unit in units(text)) == "".join(text.split())


def test_half_a_character_is_no_reason_to_stop():
    assert units("Half \ud83d. Other \udc00 half.") == ["Half \ud83d.", "Other \udc00 half."]


def test_what_marks_of_ours_and_headings_hold_stays():
    text = "### Instruction:\nThe plots were sold. [3] The fence came later.\n[1] Not ours. [1]"
    found = number_sentences([{"chunk_id": "a", "text": text}])
    assert "".join("".join(one.whole for one in found).split()) == "".join(text.split())


def test_a_heading_is_shown_above_its_sentence_and_not_quoted():
    text = "# Tools\n\n## Saws\n\nA saw is lent. It is sharp.\n\n# Alone"
    first, second, last = number_sentences([{"chunk_id": "a", "text": text}])
    assert (first.text, first.lead) == ("A saw is lent.", "# Tools\n\n## Saws")
    assert (second.text, second.lead, last.text) == ("It is sharp.", "", "# Alone")
    assert text[first.start:first.end] == first.text


def test_most_hard_cases_are_right():
    kinds = {case["kind"] for case in CASES}
    assert {
        "abbreviation", "initials", "quotes", "list", "table", "heading", "code", "chinese",
        "arabic", "nostop"} <= kinds
    wrong = [case["text"] for case in CASES if units(case["text"].replace("¦", "")) != [
        part.strip() for part in case["text"].split("¦") if not part.startswith("#")]]
    assert len(wrong) <= 4, "\n".join(wrong)


# ---------------------------------------------------------------- numbers and spans

CHUNKS = [
    {"chunk_id": "a", "text": "One. Two."},
    {"chunk_id": "b", "text": "Three four five.", "spans": [[0, 5], [6, 16]]}]


def test_sentences_are_counted_through():
    found = number_sentences(CHUNKS)
    assert [(part.number, part.place, part.chunk_id, part.text) for part in found] == [
        (1, 0, "a", "One."), (2, 0, "a", "Two."), (3, 1, "b", "Three"), (4, 1, "b", "four five.")]
    assert number_sentences(SimpleNamespace(**chunk) for chunk in CHUNKS) == found
    assert number_sentences([]) == []


@given(st.lists(st.text(st.sampled_from(HARD), max_size=60), max_size=5))
def test_a_number_leads_to_its_sentence(texts):
    chunks = [{"chunk_id": str(place), "text": text} for place, text in enumerate(texts)]
    for place, found in enumerate(number_sentences(chunks)):
        assert found.number == place + 1 and found.chunk_id == str(found.place)
        assert found.text == texts[found.place][found.start:found.end] != ""
    stored = [chunk | {"spans": [[*span] for span in chunk_spans(chunk)]} for chunk in chunks]
    assert number_sentences(stored) == number_sentences(chunks)


def test_stored_spans_are_taken_as_they_are():
    cut = {"chunk_id": "a", "text": "See [3] there.", "spans": [(0, 6), (6, 14)]}
    assert [part.text for part in number_sentences([cut])] == [
        "See [3", "] there."] and chunk_spans(cut) == ((0, 6), (6, 14))
    assert chunk_spans({"text": " ", "spans": []}) == () == chunk_spans({"text": ""})


@pytest.mark.parametrize("spans, words", [
    ("0-4", "pairs"), (3, "pairs"), ({0: 4}, "pairs"), ([4], "pairs"), ([[4]], "pairs"),
    ([[0, 1, 2]], "pairs"), ([["0", "4"]], "pairs"), ([[0, True]], "pairs"),
    ([[0.0, 4.0]], "pairs"), ([None], "pairs"), ([[-1, 4]], "0 <= start"),
    ([[4, 4]], "start < end"), ([[5, 4]], "start < end"), ([[0, 10]], "end <= 9"),
    ([[0, 4], [3, 9]], "4 <= start"), ([[5, 9], [0, 4]], "9 <= start"), ([[4, 5]], "white space"),
    ([], "empty")])
def test_spans_that_do_not_fit_are_described(spans, words):
    assert words in span_problem("One. Two.", spans)
    with pytest.raises(SpanError, match="chunk a, spans") as caught:
        number_sentences([{"chunk_id": "a", "text": "One. Two.", "spans": spans}])
    assert caught.value.problems[0].code == "bad_spans"


@given(st.text(st.sampled_from(HARD), max_size=80))
def test_spans_of_ours_fit(text):
    assert span_problem(text, sentence_spans(text)) == ""


def test_a_field_of_a_mapping_or_an_object():
    assert field_of({"text": "a"}, "text") == field_of(SimpleNamespace(text="a"), "text") == "a"
    assert field_of({}, "text") is field_of(SimpleNamespace(), "text") is field_of("a", "text") is None
