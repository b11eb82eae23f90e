"""Partial answers, conflicts, corrections and questions back are scored for what they are, and not as refusals."""

import json

import pytest

from kwanzaa_nb.core.prompt import render_user
from kwanzaa_nb.core.results import EXPECTATIONS
from kwanzaa_nb.evaluate.expectations import Target, names_missing, names_premise, names_readings, read_target, shares
from kwanzaa_nb.evaluate.metrics import FAILURE_CODES, compare, controls, score, score_arms

TEXTS = {
    "reeves": "Bass Reeves was a deputy marshal. He died on January 12, 1910.",
    "americana": "The Encyclopedia Americana says that Edmonia Lewis was born on July 4, 1845.",
    "passport": "In her passport application of 1865 Edmonia Lewis gave July 4, 1844.",
    "transformer": "The Transformer of 2017 does without recurrence. It is built on attention alone.",
    "drew": "Charles Drew received the Spingarn Medal in 1944.", "just": "Ernest Everett Just received the Spingarn Medal in 1915."}


def output(completeness, text, evidence=(), claims=(), missing=(), questions=()):
    unknowns = {"unsupported_claims": list(claims), "missing_context": list(missing), "clarifying_questions": list(questions)}
    return json.dumps({"evidence": list(evidence), "answer": {"completeness": completeness, "text": text}, "unknowns": unknowns})


def make(kind, question, names, answerable, target, groups=(), gold=()):
    "A record that shows some texts; each text is a document of its own."
    shown = [{"chunk_id": name, "doc_id": f"doc-{name}", "source_org": "x", "year": 1900, "text": TEXTS[name], "gold": name in gold} for name in names]
    messages = [{"role": role, "content": text} for role, text in (("system", "s"), ("user", render_user(question, shown)), ("assistant", target))]
    return {"id": kind, "kind": kind, "category": kind, "persona": "educator", "mode": "base_adapter_rag", "answerable": answerable, "pair_id": None, "chunks": shown,
            "question": question, "messages": messages, "expected": {"groups": [list(group) for group in groups], "gold_chunk_ids": list(gold)}}


RECORDS = {record["id"]: record for record in (
    make("partial", "What did Reeves do after statehood, and when did he die?", ["drew", "reeves"], None,
         output("partial", "He died on January 12, 1910 [3]. The sources leave open what Reeves did after statehood.", [3], missing=["what Reeves did after statehood"]), (), ["reeves"]),
    make("conflict", "On what date was Edmonia Lewis born?", ["americana", "passport"], True,
         output("partial", "The Encyclopedia Americana has July 4, 1845 [1], while her passport application of 1865 has July 4, 1844 [2].", [1, 2], missing=["which of the two years is right"]),
         [["1845"], ["1844"]], ["americana", "passport"]),
    make("correction", "How many recurrent layers does the Transformer of 2017 have?", ["transformer"], True,
         output("complete", "None: the Transformer does without recurrence [1].", [1], claims=["The Transformer of 2017 has recurrent layers."]),
         [["without recurrence", "no recurrent"]], ["transformer"]),
    make("clarification", "In what year did the scientist get his Spingarn Medal?", ["drew", "just"], None,
         output("insufficient_data", "Two scientists with that medal are described here.", questions=["Do you mean Charles Drew or Ernest Everett Just?"])))}


def judged(kind, raw):
    "The outcome of one output, and whether the rate of its kind counts it."
    scores = score([{"id": kind, "arm": "a", "raw": raw}], [RECORDS[kind]])
    outcome, rate = scores.outcomes[0], scores.rates[f"{kind}_rate"]
    assert rate.total == 1 and rate.value == float(outcome.fulfilled)
    assert scores.rates["refusal_correctness_rate"].total == 0, "none of the four is a right or a wrong refusal"
    return outcome


def test_each_rate_has_its_records_and_controls_earn_nothing():
    records = list(RECORDS.values())
    by_arm = score_arms(controls(records), records)
    assert {name: by_arm["gold"].rates[name].value for name in EXPECTATIONS} == dict.fromkeys(EXPECTATIONS, 1.0) and by_arm["gold"].codes == {}
    for arm in set(by_arm) - {"gold"}:
        assert {name: (by_arm[arm].rates[name].value, by_arm[arm].rates[name].total) for name in EXPECTATIONS} == dict.fromkeys(EXPECTATIONS, (0.0, 1)), arm
    kept = {row["id"]: (row["expects"], row["fulfilled"], row["document"]) for row in by_arm["gold"].to_dict()["records"]}
    assert kept == {"partial": ("partial", True, "doc-reeves"), "conflict": ("conflict", True, "doc-americana"), "correction": ("correction", True, "doc-transformer"),
                    "clarification": ("clarification", True, "doc-drew")}
    row, = [row for row in compare(by_arm["always_refuse"], by_arm["gold"]) if row["metric"] == "refusal_correctness_rate"]
    assert row["only_first"] == row["only_second"] == 0


@pytest.mark.parametrize("raw", [
    output("partial", "Bass Reeves died on 12 January 1910. [3]", [3], missing=["his work after statehood, as Reeves had it"]),
    output("partial", "Jan. 12, 1910 is the day on which Bass Reeves died. [3]", [3], missing=["Reeves's life after statehood"])])
def test_a_partial_answer_in_other_words_passes(raw):
    assert judged("partial", raw).codes == []


@pytest.mark.parametrize("kind, raw, codes", [
    ("partial", output("complete", "He died on January 12, 1910. [3]", [3]), ["partial_expected"]),
    ("partial", output("insufficient_data", "The context does not say.", missing=["what Reeves did after statehood"]), ["partial_expected"]),
    ("partial", output("partial", "He died on January 12, 1910. [3]", [3], missing=["the rest"]), ["missing_not_named"]),
    ("partial", output("partial", "He died on January 12, 1910. [3]", [3], missing=["What did Reeves do after statehood, and when did he die?"]), ["missing_not_named"]),
    ("partial", output("partial", "Bass Reeves was a deputy marshal. [2]", [2], missing=["what Reeves did after statehood"]), ["part_not_told"]),
    ("conflict", output("complete", "Edmonia Lewis was born on July 4, 1845. [1]", [1]), ["answer_not_in_text", "partial_expected"]),
    ("conflict", output("complete", "The Encyclopedia Americana has July 4, 1845 [1], her passport July 4, 1844 [2].", [1, 2]), ["partial_expected"]),
    ("conflict", output("partial", "The Encyclopedia Americana has July 4, 1845, her passport application July 4, 1844 [2].", [2], missing=["which is right"]), ["value_without_source"]),
    ("conflict", output("partial", "Edmonia Lewis was born on July 4, 1845 [2] or on July 4, 1844 [1].", [2, 1], missing=["which is right"]), ["value_without_source"]),
    ("correction", output("complete", "None: the Transformer does without recurrence [1].", [1]), ["premise_not_named"]),
    ("correction", output("complete", "None: the Transformer does without recurrence [1].", [1], claims=["The Transformer has no recurrent layers."]), ["premise_not_named"]),
    ("correction", output("complete", "It has recurrent layers. [2]", [2], claims=["The Transformer of 2017 has recurrent layers."]),
     ["claim_unsupported", "answer_not_in_text", "premise_not_corrected"]),
    ("correction", output("insufficient_data", "The context does not say.", missing=["how many layers"]), ["refused_answerable", "premise_not_corrected", "premise_not_named"]),
    ("clarification", output("complete", "Charles Drew received the Spingarn Medal in 1944. [1]", [1]), ["clarification_expected"]),
    ("clarification", output("insufficient_data", "The context does not say.", missing=["the year"]), ["clarification_expected"]),
    ("clarification", output("insufficient_data", "It is not clear who is meant.", questions=["Which scientist do you mean?"]), ["readings_not_named"]),
    ("clarification", output("insufficient_data", "It is not clear who is meant.", questions=["Do you mean Charles Drew?", "Or Just?"]), ["readings_not_named"])])
def test_what_is_lacking_has_a_code_of_its_own(kind, raw, codes):
    outcome = judged(kind, raw)
    assert outcome.codes == codes and not outcome.fulfilled and set(codes) <= set(FAILURE_CODES)


def test_one_side_of_a_conflict_is_not_enough_and_the_order_is_free():
    right = output("partial", "Her passport gives July 4, 1844 [2]; the Encyclopedia Americana gives July 4, 1845 [1].", [2, 1], missing=["which is right"])
    assert judged("conflict", right).fulfilled
    assert judged("conflict", right.replace("1844 [2]", "1844 [1]").replace("1845 [1]", "1845 [2]")).codes == ["value_without_source"]


@pytest.mark.parametrize("said, expected", [
    ("Drew or Just?", True), ("Is it the medal of Charles Drew that you mean, or that of Ernest Just?", True), ("The medal of Just?", False), ("Charles or somebody else?", False)])
def test_a_question_back_names_both_readings(said, expected):
    assert names_readings([said], read_target(RECORDS["clarification"])) is expected


def test_words_that_every_such_phrase_has_name_nothing():
    assert shares("his birth", "a passage that mentions his birth") and not shares("no source mentions it", "a source that mentions his birth")


def test_a_record_that_says_less_expects_a_plain_answer():
    for record in ({"messages": []}, {"messages": [{"role": "assistant", "content": "{}"}]}, {"messages": [{"role": "assistant", "content": "[1]"}]}, {}):
        assert read_target(record) == Target()
    assert not names_premise(["anything"], Target()) and names_missing([], Target(), "Who?")
    outcome = score([{"id": "x", "raw": output("insufficient_data", "It is not there.", missing=["it"])}], [{"id": "x", "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": ""}]}]).outcomes[0]
    assert outcome.case.is_plain and not outcome.fulfilled
