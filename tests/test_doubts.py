"""What a reader is told to look at twice: right answers, moved marks, inventions, and anything else."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kwanzaa_nb.core.answer import LATER_OUTPUT
from kwanzaa_nb.core.sentences import number_sentences
from kwanzaa_nb.use.ask import Reply, print_reply
from kwanzaa_nb.use.doubts import find_doubts

TEXTS = {"Plots": "A plot measures thirty square meters. It costs forty dollars a year. Every member has a key.",
         "The shed": "Ada Hill gave the shed in 1998. In March the shed is painted green.",
         "": "Water is turned off from November until 5 April 2024."}
CHUNKS = [{"chunk_id": f"c-{place}", "doc_id": f"c-{place}", "citation_label": title, "source_org": "Garden club", "year": 2024,
           "canonical_url": "https://example.org/a", "text": text} for place, (title, text) in enumerate(TEXTS.items())]
SHOWN = number_sentences(CHUNKS)


def answered(text, *numbers, completeness="complete", **unknowns):
    "The answer_json of a model that cites these sentences."
    cited = [SHOWN[number - 1] for number in numbers]
    return {"answer": {"text": text, "completeness": completeness, "confidence": 0.7}, "unknowns": unknowns,
            "sources": [{"chunk_id": one.chunk_id, "quote": one.text, "quote_start": one.start, "quote_end": one.end} for one in cited]}


@pytest.mark.parametrize("number", range(1, len(SHOWN) + 1))
def test_a_sentence_that_is_copied_or_said_in_other_words_needs_no_second_look(number):
    assert find_doubts(answered(f"{SHOWN[number - 1].text} [1]", number), CHUNKS) == []


@pytest.mark.parametrize(("said", "right"), [("The shed came from Ada Hill in 1998. [1]", 4), ("Forty dollars are paid each year. [1]", 2),
                                             ("There is no water between November and 5 April. [1]", 6)])
def test_a_mark_on_any_other_sentence_is_told_with_the_right_one(said, right):
    assert find_doubts(answered(said, right), CHUNKS) == []
    for number in range(1, len(SHOWN) + 1):
        if number != right:
            (doubt,) = find_doubts(answered(said, number), CHUNKS)
            assert f"“{SHOWN[right - 1].text}”" in doubt and said.removesuffix(" [1]") in doubt and " [1] " in doubt
            assert doubt.endswith(f"({CHUNKS[SHOWN[right - 1].place]['citation_label']})") == (right != 6)  # that passage has no title


@pytest.mark.parametrize(("said", "number", "strange"), [
    ("A plot measures 30 square meters. [1]", 1, None),
    ("A plot measures 35 square meters. [1]", 1, "35"),
    ("Every member, Joan Baker too, has a key. [1]", 3, "Joan Baker"),
    ("In 1998, Ada Hill, who was 98, gave the shed. [1]", 4, "98"),  # and not as a part of 1998
    ("In 1999, Ada Hill gave the shed. [1]", 4, "1999"),
    ("Ada Hills's gift was the shed, in 1998. [1]", 4, None),
    ("Water is turned off until 5 April. [1]", 6, None),
    ("Water is turned off until 6:30 on 5 April. [1]", 6, "6:30")])
def test_numbers_and_names_that_stand_nowhere_are_named(said, number, strange):
    told = [doubt for doubt in find_doubts(answered(said, number), CHUNKS) if doubt.startswith("No passage has")]
    assert told == ([f"No passage has {strange}"] if strange else [])


def test_what_the_question_says_is_known():
    answer = answered("Joan Baker has a key like every member. [1]", 3)
    assert not any("Joan" in doubt for doubt in find_doubts(answer, CHUNKS, "Does Joan Baker have a key?"))


def test_a_claim_of_nothing_that_was_shown_is_told():
    (doubt, absent) = find_doubts(answered("The capital of France is Paris. [1]", 1), CHUNKS)
    assert doubt.endswith("[1] has few words in common with what it cites") and absent == "No passage has France, Paris"


def test_what_makes_no_claim_is_left_alone():
    assert find_doubts(answered("I cannot tell who painted it in 1950.", completeness="insufficient_data"), CHUNKS) == []
    partial = answered("Ada Hill gave the shed in 1998. [1] Nothing is said about what it cost.", 4, completeness="partial",
                       missing_context=["what it cost"])
    assert find_doubts(partial, CHUNKS) == []


@pytest.mark.parametrize(("said", "closest"), [("It costs forty dollars a year.", 2), ("Every member has a key.", 3)])
def test_a_refusal_that_says_what_a_passage_says_is_told(said, closest):
    (doubt,) = find_doubts(answered(said, completeness="insufficient_data", missing_context=["the price"]), CHUNKS)
    assert doubt == f"“{said}” is given as missing, and yet a passage says: “{SHOWN[closest - 1].text}”"
    assert find_doubts(answered(said, completeness="insufficient_data"), []) == []


@pytest.mark.parametrize("text", ["The passages do not say what a plot costs a year.", "What Ada Hill gave in March is not told.", "", "[1]"])
def test_a_refusal_that_says_what_is_missing_is_left_alone(text):
    assert find_doubts(answered(text, completeness="insufficient_data"), CHUNKS) == []


def test_a_claim_that_names_no_source_is_told():
    assert find_doubts(answered("Ada Hill gave the shed in 1998."), CHUNKS) == ["“Ada Hill gave the shed in 1998.” names no source"]


@given(st.text(max_size=200), st.lists(st.integers(1, len(SHOWN)), max_size=4, unique=True), st.text(max_size=60),
       st.sampled_from(["complete", "partial", "insufficient_data"]))
@settings(max_examples=300, deadline=None)
def test_whatever_is_written_is_looked_over(text, numbers, question, completeness):
    told = find_doubts(answered(text, *numbers, completeness=completeness), CHUNKS, question)
    assert all(isinstance(doubt, str) and doubt.strip() for doubt in told)
    assert completeness != "insufficient_data" or all("given as missing" in doubt for doubt in told)


@pytest.mark.parametrize("completeness", ["complete", "insufficient_data"])
def test_an_answer_that_its_model_had_to_write_again_is_told_first(completeness):
    answer = answered("Ada Hill gave the shed in 1998. [1]", completeness=completeness)
    for integrity, flagged in ((None, False), ({"safety_flags": ["other"]}, False), ({"safety_flags": [LATER_OUTPUT]}, True)):
        told = find_doubts(answer | {"integrity": integrity}, CHUNKS)
        assert len(told) == 1 + flagged and told[0].startswith("The model's first answer broke a rule") == flagged


def test_a_reply_shows_its_doubts_in_a_notebook_and_in_a_terminal():
    reply = Reply("Who gave the shed?", CHUNKS, answered("The shed came from Ada Hill in 1998. [1]", 1), 0.1)
    out = io.StringIO()
    print_reply(reply, Console(file=out, width=300))
    assert "Look twice: “The shed came from Ada Hill in 1998.” [1] has more words in common with another sentence" in out.getvalue()
    assert "<b>Look twice:</b>" in reply._repr_html_()
    sure = Reply("Who gave the shed?", CHUNKS, answered("The shed came from Ada Hill in 1998. [1]", 4), 0.1)
    out = io.StringIO()
    print_reply(sure, Console(file=out, width=300))
    assert "Look twice" not in out.getvalue() and "Look twice" not in sure._repr_html_()


@pytest.mark.parametrize("text", ["The context does not say who painted it. [1]", "These passages say nothing about that. [1]",
                                  "I cannot tell from these sources who painted it. [1]"])
def test_a_complete_answer_that_says_what_is_missing_is_told_so(text):
    (doubt,) = find_doubts(answered(text, 1), CHUNKS)
    assert doubt.endswith("says that something is missing, though the answer is called complete")
    assert find_doubts(answered(text, 1, completeness="partial"), CHUNKS) == []
