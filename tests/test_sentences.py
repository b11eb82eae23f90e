"""Units that can be cited: whatever the text, each is a span of it, nothing but white space is left between them, none is too long."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwanzaa_nb.sentences import LONGEST, blocks, sentence_spans

ROOT = Path(__file__).resolve().parents[1]
CASES = [json.loads(line) for line in (ROOT / "data" / "benchmarks" / "sentences.jsonl").read_text(encoding="utf-8").splitlines()]
HARD = "aB.? \n\t|#-1)(\"“”。\u2028\u00a0\x85`~,;—[]é\u0301अ।٠؟ቤ።"


def units(text, **options):
    return [text[start:end] for start, end in sentence_spans(text, **options)]


@given(st.text(st.sampled_from(HARD) | st.characters(exclude_categories=["Cs"]), max_size=200), st.integers(8, 60))
def test_units_are_spans_of_any_text(text, longest):
    place = 0
    spans = sentence_spans(text, longest=longest)
    for start, end in spans:
        assert place <= start < end <= len(text) and not text[place:start].strip() and text[start:end] == text[start:end].strip()
        place = end
    assert not text[place:].strip()
    assert sentence_spans(text, longest=longest) == spans
    if any(map(str.isalnum, text)):
        assert all(any(map(str.isalnum, unit)) for unit in units(text, longest=longest)), "marks alone can't be evidence"


@given(st.text(st.sampled_from(HARD), max_size=200))
def test_blocks_hold_the_whole_text(text):
    assert "".join(text[start:end] for start, end, _ in blocks(text)) == text


@given(st.lists(st.text(st.sampled_from("abc,; \n"), min_size=1, max_size=30), min_size=20, max_size=60))
def test_long_units_are_split(parts):
    assert all(len(unit) <= 100 for unit in units("".join(parts), longest=100))


def test_a_text_without_a_full_stop_is_split_between_words():
    text = "seven tools were lent and nobody wrote it down " * 600
    found = units(text)
    assert len(text.split()) > 5000 and max(map(len, found)) <= LONGEST and len(found) < 1.2 * len(text) / LONGEST
    assert " ".join(found).split() == text.split()


def test_a_text_without_a_space_is_split_all_the_same():
    assert "".join(units("字" * 1000)) == "字" * 1000 and max(map(len, units("字" * 1000))) <= LONGEST


@pytest.mark.parametrize("text", ["W.\u00a0E.\u00a0B. Du Bois", "a.\u2028B. C", "“" * 2000 + "Yes.", "(" * 5000 + " a. B. " * 5000, "", " \n", "…", "\ufeff"])
def test_texts_that_stop_splitters(text):
    assert "".join("".join(unit.split()) for unit in units(text)) == "".join(text.split())


def test_what_marks_of_ours_and_headings_hold_stays():
    text = "### Instruction:\nThe plots were sold. [3] The fence came later.\n[1] Not ours. [1]"
    assert "".join("".join(units(text)).split()) == "".join(text.split())


def test_most_hard_cases_are_right():
    kinds = {case["kind"] for case in CASES}
    assert {"abbreviation", "initials", "quotes", "list", "table", "heading", "code", "chinese", "arabic", "nostop"} <= kinds
    wrong = [case["text"] for case in CASES
             if units(case["text"].replace("¦", "")) != [unit.strip() for unit in case["text"].split("¦")]]
    assert len(wrong) <= 4, "\n".join(wrong)
