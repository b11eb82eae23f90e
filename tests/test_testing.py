"""`assert_grounded`: messages that say which claim, what is missing, and in which passage."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kwanzaa_nb.core.answer import complete_answer, parse_model_answer
from kwanzaa_nb.core.errors import KwanzaaError
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.evaluate.testing import assert_grounded, check_answer

ROOT = Path(__file__).resolve().parents[1]
PASSAGES = ["Child edited the book. It came out in Boston in 1861.",
            "Jacobs wrote the book under the name of Linda Brent."]


def model(text, evidence=(), missing=()):
    return {"evidence": list(evidence), "answer": {"completeness": "complete" if evidence else
                                                   "insufficient_data", "text": text},
            "unknowns": {"unsupported_claims": [], "missing_context": list(missing),
                         "clarifying_questions": []}}


@pytest.mark.parametrize("answer", [
    "Child edited the book.", "Child edited the book [1].", "Jacobs wrote it as Linda Brent [2].",
    "Yes. The book came out in 1861 [1].", model("Child edited the book. [1]", [1]),
    json.dumps(model("Jacobs wrote the book as Linda Brent. [3]", [3])),
    model("The passages do not name the publisher.", missing=["the publisher"])])
def test_what_the_passages_say_is_grounded(answer):
    assert assert_grounded(answer, PASSAGES).grounded


@pytest.mark.parametrize("answer, told", [
    ("The book came out in Boston in 1834 [1].",
     ["1834", "passage 1", "a number differs", "It came out in Boston in 1861."]),
    ("Jacobs wrote it as Linda Brent [1].", ["held against passage 1", "Linda, Brent"]),
    ("Jacobs sold the farm.", ["passages 1, 2", "farm"]),
    ("Child edited the book [3].", ["invented source: [3]", "there are 2"]),
    ("Yes.", ["nothing that could be looked up"]), ("", ["nothing that could be looked up"]),
    (model("Jacobs edited the book. [1]", [1]), ["1 of 1 claims", "Jacobs"]),
    (model("Child edited the book. [9]", [9]), ["was not shown: 9"]),
    (model("Child edited the book.", [1]), ["no mark"]),
    (model("The passages do not say. Child was born in Medford.", missing=["x"]), ["Medford"]),
    ('{"evidence": [1], ', ["the text ends inside the JSON"]), ({"evidence": 1}, ["evidence"])])
def test_what_is_wrong_is_said(answer, told):
    with pytest.raises(AssertionError) as error:
        assert_grounded(answer, PASSAGES, "When did the book come out?")
    message = str(error.value)
    assert message.startswith("The answer is not grounded")
    assert "question: When did the book come out?" in message or isinstance(answer, str)
    assert [text for text in told if text not in message] == [], message


def test_a_refusal_is_told_from_an_answer():
    refusal = model("The passages do not name the publisher.", missing=["the publisher"])
    assert check_answer(refusal, PASSAGES).refused
    assert not check_answer("Child edited the book.", PASSAGES).refused


def test_what_an_application_gets_is_checked_against_its_quotes():
    record = next(one for one in read_records(ROOT / "data/training/kwanzaa_dev.jsonl")
                  if one["answerable"] and check_answer(one["messages"][-1]["content"],
                                                        one["chunks"]).grounded)
    answer = complete_answer(parse_model_answer(record["messages"][-1]["content"],
                                                record["chunks"]), record["chunks"], query="x")
    assert_grounded(answer, record["chunks"], record["question"])
    answer["sources"][0]["quote"] = "What nobody wrote."
    with pytest.raises(AssertionError, match="was not shown"):
        assert_grounded(answer, record["chunks"])


def test_passages_without_a_text_are_an_error_of_the_test():
    with pytest.raises(KwanzaaError, match="passage 2 has no text"):
        check_answer("Child edited the book.", [PASSAGES[0], {"page": 3}])


@pytest.mark.parametrize("answer, passages, told", [
    ("Child edited it.", "Child edited the book.", "give a list"), (None, PASSAGES, "NoneType")])
def test_wrong_arguments_are_a_sentence(answer, passages, told):
    with pytest.raises(KwanzaaError, match=told):
        check_answer(answer, passages)


def test_what_is_missing_and_a_yes_or_no_are_no_claims():
    partial = model("Child edited the book [1]. The passages do not name the printer.", [1],
                    missing=["the printer"])
    partial["answer"]["completeness"] = "partial"
    assert len(assert_grounded(partial, PASSAGES).claims) == 1
    partial["unknowns"]["missing_context"] = ["the price"]
    assert not check_answer(partial, PASSAGES).grounded
    assert check_answer("No: the book came out in 1861 [1].", PASSAGES).grounded
    assert not check_answer("No: the book came out in 1834 [1].", PASSAGES).grounded


def test_a_label_names_whom_a_passage_is_about_and_lends_nothing_else():
    text = "Thurgood Marshall led the fund. In 1950 she wrote the complaint."
    labelled = [{"citation_label": "Constance Baker Motley", "text": text}]
    assert check_answer("Constance Baker Motley wrote the complaint in 1950.", labelled).grounded
    assert not check_answer("Constance Baker Motley wrote the complaint in 1950.", [text]).grounded
    for forged in ("Motley led the fund.", "Constance Baker Motley wrote the complaint in 1951."):
        assert not check_answer(forged, labelled).grounded, forged


def test_pytest_shows_the_line_of_the_test_and_the_message(tmp_path):
    (tmp_path / "test_mine.py").write_text(textwrap.dedent(f"""
        from kwanzaa_nb.evaluate.testing import assert_grounded

        def test_mine():
            assert_grounded("The book came out in 1834.", {PASSAGES!r})
    """), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
                          cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
                          env={**__import__("os").environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert "1 of 1 claims" in done.stdout and "raise AssertionError" not in done.stdout


def test_the_wording_of_a_right_answer_passes_and_another_date_does_not():
    said = "A publisher in Massachusetts issued the volume in {}. [1]"
    expected = said.format(1861).removesuffix(" [1]")
    for form in (said, model(said, [1])):
        for year, good in ((1861, True), (1834, False)):
            answer = json.loads(json.dumps(form).replace("{}", str(year)))
            assert check_answer(answer, PASSAGES, expected=expected).grounded is good
            assert not check_answer(answer, PASSAGES).grounded
