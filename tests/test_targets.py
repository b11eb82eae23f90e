"Targets: the right answer for every way to reply, with the numbers of the sentences shown."

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_questions import (
    CONFLICT, DIARY, ISSUE, MISS, PREMISE, PRINTED, REGISTER, STAR, VAGUE, WHOLE, chunk, half,
    question)

from kwanzaa_nb.core.answer import find_marks, parse_model_answer, shown_sentences
from kwanzaa_nb.core.prompt import target_json
from kwanzaa_nb.core.sentences import sentence_spans
from kwanzaa_nb.data.questions import load_corpus, reply_to
from kwanzaa_nb.data.targets import (
    NOT_GIVEN, NOTHING_SHOWN, REST_NOT_GIVEN, right_answer, worded)

ROOT = Path(__file__).resolve().parents[1]


def told(asked, shown):
    "Completeness, evidence and unknowns of a target that keeps the contract."
    answer = right_answer(asked, shown)
    assert parse_model_answer(target_json(answer), shown) == answer
    return (answer.answer.completeness, answer.evidence, answer.unknowns.unsupported_claims,
            answer.unknowns.missing_context, answer.unknowns.clarifying_questions)


@pytest.mark.parametrize("asked, shown, target", [
    (ISSUE, [STAR, WHOLE], ("complete", [2, 3], [], [], [])),
    (ISSUE, [STAR, half(PRINTED[1])], ("partial", [2], [], ["when it came out"], [])),
    (ISSUE, [STAR], ("insufficient_data", [], [], ["when and where it appeared"], [])),
    (ISSUE, [], ("insufficient_data", [], [], ["when and where it appeared"], [])),
    (CONFLICT, [REGISTER, DIARY], ("partial", [2, 1], [], ["which of the two is right"], [])),
    (CONFLICT, [STAR, DIARY], ("complete", [2], [], [], [])),
    (PREMISE, [WHOLE], ("complete", [2], ["It was printed in Boston."], [], [])),
    (MISS, [WHOLE, STAR], ("insufficient_data", [], [], ["the price"], [])),
    (VAGUE, [WHOLE, STAR], ("insufficient_data", [], [], [], ["Which of the papers do you mean?"])),
])
def test_each_way_to_reply_has_its_form(asked, shown, target):
    assert told(asked, shown) == target


def test_texts_of_targets():
    assert right_answer(ISSUE, [STAR, WHOLE]).answer.text == (
        "It appeared in March 1827 [2], in New York City [3].")
    part, rest = right_answer(ISSUE, [STAR, half(PRINTED[1])]).answer.text.split(" [2]. ")
    assert part == "It came out in New York City"
    assert rest in [one.format(missing="when it came out") for one in REST_NOT_GIVEN[True]]
    assert right_answer(CONFLICT, [DIARY]).answer.text == "In 1910, says the diary [1]."
    assert right_answer(VAGUE, [WHOLE, STAR]).answer.text == VAGUE.answer


def test_an_open_reply_has_no_target():
    with pytest.raises(ValueError, match="q: this context does not settle how to reply"):
        right_answer(MISS, [STAR])


def test_an_answer_points_at_every_sentence_that_its_quotes_lie_in():
    first = chunk("a", "Nothing here. It began in 1966. It went on. It ended in 1970.")
    second = chunk("b", "A list:\n\n- It began\n  in 1966 [4].\n- It ended.")
    asked = question([("a", "in 1966. It went on"), ("a", "It went on."), ("b", "ended")],
                     answer="It began in 1966. [1] [2] It ended. [3]")
    answer = right_answer(asked, [second, first])
    numbered = {one.number: one.text for one in shown_sentences([second, first])}
    assert [numbered[number] for number in answer.evidence] == [
        "It began in 1966.", "It went on.", "- It ended."]
    assert answer.answer.text == "It began in 1966. [5][6] It ended. [3]"
    assert find_marks(answer.answer.text) == answer.evidence


def test_a_quote_that_stands_twice_is_the_first_of_its_own_chunk():
    source = chunk("a", "Yes. It began. Yes. It began.")
    asked = question([("a", "It began.")], answer="It did [1].")
    shown = [chunk("b", "It began."), source]
    assert reply_to(asked, shown) == "complete"
    assert right_answer(asked, shown).evidence == [3]


SENTENCES = st.lists(st.sampled_from([
    "It rained.", "Dr. King spoke [4].", "- An item. It goes on.", "| a | b |", "# A heading",
    "A line\nbroken in two.", "No end", "“So,” he said.", "ማን ነበረች። እሷ ነበረች።"]),
    min_size=1, max_size=6).map("\n\n".join)


@settings(max_examples=100, deadline=None)
@given(SENTENCES, st.integers(0, 80), st.integers(1, 40), st.booleans())
def test_any_quote_of_any_text_is_pointed_at_and_keeps_the_contract(text, start, size, behind):
    quote = text[start:start + size].strip()
    if not quote:
        return
    source, asked = chunk("c", text), question([("c", quote)], answer="That is so [1].")
    shown = [STAR, source] if behind else [source, STAR]
    answer = right_answer(asked, shown)
    assert parse_model_answer(target_json(answer), shown) == answer
    numbered = {one.number: one for one in shown_sentences(shown)}
    cited = [numbered[number] for number in answer.evidence]
    assert cited and {one.chunk_id for one in cited} == {"c"}
    assert "".join(quote.split()) in "".join("".join(one.whole.split()) for one in cited)


# ---- refusals

@pytest.mark.parametrize("asked, missing, phrase", [
    ("Who was she?", "her name", "her name"),
    (" Who\nwas she?", None, "the answer to “Who was she?”"),
    ("ማን ነበረች?", None, "the answer to “ማን ነበረች?”"),
    ("What does note [3] say, and [1, 2]?", None, "the answer to “What does note say, and?”"),
    ("{} {missing}?", "{missing} {0}", "{missing} {0}")])
@pytest.mark.parametrize("shown", [[WHOLE, STAR], []])
def test_a_refusal_says_what_is_missing_or_repeats_the_question(asked, missing, phrase, shown):
    row = MISS.model_copy(update={"question": asked, "missing": missing, "about": ()})
    answer = right_answer(row, shown)
    assert answer.unknowns.missing_context == [phrase] and answer.answer.text.endswith(".")
    wordings = (NOT_GIVEN if shown else NOTHING_SHOWN).values()
    assert answer.answer.text in {one.replace("{missing}", phrase) for part in wordings
                                  for one in part}
    assert parse_model_answer(target_json(answer), shown) == answer


def test_an_authors_refusal_is_used_where_what_it_speaks_of_is_shown():
    row = ISSUE.model_copy(update={"refusal": "The label names no city.", "about": ("ns",)})
    assert right_answer(row, [STAR]).answer.text == "The label names no city."
    assert "label" not in right_answer(row, []).answer.text


@pytest.mark.parametrize("missing, is_clause", [
    ("when the paper closed", True), ("in which city it closed", True), ("Whether it closed", True),
    ("how", True), ("the price", False), ("whereabouts of the press", False),
    ("in the end, the price", False), ("whatever was paid", False)])
def test_a_wording_fits_a_clause_or_a_noun_phrase(missing, is_clause):
    for wordings in (NOT_GIVEN, NOTHING_SHOWN, REST_NOT_GIVEN):
        said = {worded(wordings, missing, turn) for turn in range(60)}
        assert said == {one.format(missing=missing) for one in wordings[is_clause]}
        assert worded(wordings, missing, 1) == worded(wordings, missing, 1)


@pytest.fixture(scope="module")
def project():
    return load_corpus(ROOT / "data" / "corpus", ROOT / "data" / "questions")


def test_every_phrase_of_the_project_makes_one_sentence(project):
    starts = Counter()
    for one in project[1]:
        for missing in (one.missing, *(part.missing for part in one.parts)):
            for wordings in (NOT_GIVEN, NOTHING_SHOWN, REST_NOT_GIVEN):
                said = worded(wordings, missing, one.question_id)
                starts[said.split(missing)[0]] += 1
                assert missing in said and "{" not in said and said.endswith("."), said
                assert not said.endswith("..") and len(sentence_spans(said)) == 1, said
    everything = [one for wordings in (NOT_GIVEN, NOTHING_SHOWN, REST_NOT_GIVEN)
                  for part in wordings.values() for one in part]
    assert len(starts) == len({one.split("{missing}")[0] for one in everything})


def test_every_question_of_the_project_has_a_target_that_keeps_the_contract(project):
    chunks, questions = project
    for one in questions:
        shown = [chunks[name] for name in one.chunk_ids]
        answer = right_answer(one, shown)
        assert parse_model_answer(target_json(answer), shown) == answer, one.question_id
        for part in one.parts:
            names = dict.fromkeys(one.evidence[place].chunk_id for place in part.evidence)
            own = [chunks[name] for name in names]
            if reply_to(one, own) in ("half", "one_side"):
                answer = right_answer(one, own)
                assert parse_model_answer(target_json(answer), own) == answer, one.question_id
