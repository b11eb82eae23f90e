"""What each metric counts and what it must fail, and the controls, on made-up records."""

import ast
import json
from itertools import permutations
from math import comb
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ROOT

import kwanzaa_nb.evaluate.answers as answers
import kwanzaa_nb.evaluate.expectations as expectations
import kwanzaa_nb.evaluate.metrics as metrics
import kwanzaa_nb.evaluate.support as support
from kwanzaa_nb.core import stats, text
from kwanzaa_nb.core.answer import ERROR_STAGES, RULE_ERRORS, find_marks
from kwanzaa_nb.core.results import EXPECTATIONS, HEADLINES, direction
from kwanzaa_nb.core.stats import balanced, clustered, holm, mcnemar, share, sign_flip, wilson
from kwanzaa_nb.evaluate.metrics import (
    FAILURE_CODES, REFUSAL, ScoreError, compare, controls, failure_table, failures, score, score_arms,
    scores_table)
from kwanzaa_nb.core.prompt import render_user
from kwanzaa_nb.core.record import read_records

FACTS = [
    ("press", "Freedom's Journal", "New York City", "in 1827", "Samuel Cornish"),
    ("defender", "the Chicago Defender", "Chicago", "in 1905", "Robert Abbott"),
    ("star", "the North Star", "Rochester", "in 1847", "Frederick Douglass"),
    ("crisis", "the Crisis magazine", "Manhattan", "in 1910", "William Du Bois"),
]


def chunk(slug, thing, place, year, person):
    text = f"A weekly issue of {thing} cost six cents and reached many homes. {person} founded {thing} in {place} {year}."
    return {"chunk_id": f"{slug}-01", "source_org": "x", "year": 1900, "text": text}


def output(completeness="complete", text="x", evidence=(), missing=()):
    unknowns = {"unsupported_claims": [], "missing_context": list(missing), "clarifying_questions": []}
    return json.dumps({"evidence": list(evidence), "answer": {"completeness": completeness, "text": text}, "unknowns": unknowns})


def cited(text):
    "An answer whose evidence is what its marks name."
    return output(text=text, evidence=dict.fromkeys(find_marks(text)))


def make_records():
    """A minimal pair for each fact, the gold chunk in each place. Each chunk has two sentences, so that in the first record [1] and [2] are
    of the gold chunk, [3] to [6] of others."""
    records = []
    for number, fact in enumerate(FACTS):
        slug, thing, place, year, person = fact
        others = [chunk(*other) for other in FACTS if other is not fact]
        for answerable in (True, False):
            shown = [{**other, "gold": False} for other in others[:2]]
            if answerable:
                shown.insert(number % 3, {**chunk(*fact), "gold": True})
            if answerable:
                target = cited(f"{person} founded {thing} in {place}. [{2 * (number % 3) + 2}]")
            else:
                target = output("insufficient_data", f"The context does not say where {thing} was founded.",
                                missing=["the place of founding"])
            messages = [{"role": role, "content": text} for role, text in (
                ("system", "s"), ("user", render_user(f"Where was {thing} founded?", shown)), ("assistant", target))]
            records.append({
                "id": f"{slug}-{answerable}", "category": "citation_required" if answerable else "refusal", "persona": "educator",
                "mode": "base_adapter_rag", "answerable": answerable, "pair_id": slug, "kind": "fact" if answerable else "near_miss", "chunks": shown, "messages": messages,
                "expected": {"answer": place if answerable else None, "aliases": [], "gold_chunk_ids": [f"{slug}-01"] if answerable else []}})
    return records


RECORDS = make_records()
FIRST = RECORDS[0]
REFUSABLE = RECORDS[1]


def one(raw, record=FIRST, finish_reason="stop"):
    "The outcome and the scores of one output."
    scores = score([{"id": record["id"], "arm": "a", "raw": raw, "finish_reason": finish_reason}], [record])
    return scores.outcomes[0], scores


GOOD = "Samuel Cornish founded Freedom's Journal in New York City. [2]"


@pytest.fixture(scope="module")
def by_control():
    return score_arms(controls(RECORDS), RECORDS)


def test_gold_reads_one(by_control):
    assert {name: by_control["gold"].rates[name].value for name in HEADLINES} == dict.fromkeys(HEADLINES, 1.0)
    assert by_control["gold"].codes == {}


@pytest.mark.parametrize("split", ["dev", "eval", "sealed", "train"])
def test_the_targets_of_the_committed_records_read_one(split):
    records = read_records(ROOT / f"data/training/kwanzaa_{split}.jsonl")
    records = records[::5] if split == "train" else records  # the builder judges every target
    targets = [{"id": one["id"], "raw": one["messages"][-1]["content"]} for one in records]
    scores = score(targets, records)
    assert scores.codes == {}
    rates = scores.rates if split != "train" else scores.rates | {"minimal_pair_accuracy": None}
    assert {rate.value for rate in rates.values() if rate and rate.total} == {1.0}
    assert sum(scores.rates[name].total for name in EXPECTATIONS) == sum(not outcome.case.is_plain for outcome in scores.outcomes)
    refused = [outcome for outcome in scores.outcomes if outcome.case.answerable is False]
    assert len(refused) > 50 and {outcome.decision for outcome in refused} == {"refused"}


@pytest.mark.parametrize("arm, expected", [
    ("always_refuse", {"json_valid_rate": 1.0, "refusal_correctness_rate": 0.5, "coverage_and_refusal": 0.25, "hard_negative_accuracy": 0.5}),
    ("never_refuse", {"json_valid_rate": 1.0, "refusal_correctness_rate": 0.5, "coverage_and_refusal": 0.25, "hard_negative_accuracy": 0.5}),
    ("wrong_chunk", {"json_valid_rate": 1.0, "refusal_correctness_rate": 0.5, "coverage_and_refusal": 0.25, "hard_negative_accuracy": 0.5}),
    ("cite_everything", {"json_valid_rate": 1.0, "refusal_correctness_rate": 0.5, "citation_coverage_rate": 0.25, "grounded_answer_rate": 0.25,
                         "retrieval_groundedness_rate": 3 / 20, "coverage_and_refusal": 0.375,
                         "hard_negative_accuracy": 0.5}),  # the Chicago Defender tells its place in its name
    ("empty_object", {}), ("echo_prompt", {})])
def test_what_each_control_earns(by_control, arm, expected):
    assert {name: by_control[arm].rates[name].value for name in HEADLINES} == dict.fromkeys(HEADLINES, 0.0) | expected


def test_a_copied_chunk_earns_what_the_place_of_the_answer_gives(by_control):
    "The gold chunk stands first in two records of four, and holds a sentence beside the point."
    rates = by_control["copy_first_chunk"].rates
    assert (rates["citation_coverage_rate"].value, rates["refusal_correctness_rate"].value) == (0.5, 0.5)


def test_controls_copy_what_was_shown():
    "Without context, or with a bracketed number in a text."
    bare = {**REFUSABLE, "chunks": []}
    odd = {**FIRST, "id": "odd", "chunks": [{"chunk_id": "c", "text": "Row [7] names Ada Reed. It was printed in Boston."}]}
    codes = {(output["arm"], output["id"]): score([output], [record]).codes for record in (bare, odd) for output in controls([record])}
    assert codes["never_refuse", bare["id"]] == codes["cite_everything", bare["id"]] == {"answer_without_evidence": 1}
    assert codes["never_refuse", "odd"].keys() == {"answer_not_in_text", "gold_chunk_not_cited"}


def test_no_other_control_tops_a_headline(by_control):
    assert set(by_control) == {"gold", "always_refuse", "never_refuse", "cite_everything", "copy_first_chunk", "wrong_chunk",
                               "empty_object", "echo_prompt"}
    for arm, scores in by_control.items():
        if arm != "gold":  # a fixed valid object is valid: format is all that `json_valid_rate` measures
            assert all(scores.rates[name].value < 0.8 for name in HEADLINES if name != "json_valid_rate"), arm


def test_retrieval_score_rule():
    records = [{**record, "chunks": [{**shown, "score": 0.9 if record["answerable"] else 0.2} for shown in record["chunks"]]}
               for record in RECORDS]
    scores = score_arms(controls(records), records)["retrieval_score"]
    assert scores.rates["refusal_correctness_rate"].value == 1.0  # scores that give answerability away are found out
    assert scores.rates["grounded_answer_rate"].value < 1.0


@pytest.mark.parametrize("raw, finish_reason, code", [
    (cited(GOOD), "length", "cut_off"), (cited(GOOD), "error", "crashed"), ("", "stop", "empty"), ("{}", "stop", "schema"),
    ("```json\n" + cited(GOOD) + "\n```", "stop", "markdown_fence"), (output(text=GOOD, evidence=["2"]), "stop", "schema")])
def test_invalid_output_fails_everything(raw, finish_reason, code):
    outcome, scores = one(raw, finish_reason=finish_reason)
    assert code in outcome.codes
    assert [scores.rates[name].value for name in HEADLINES] == [0.0] * 8
    assert scores.rates["retrieval_groundedness_rate"].total == 1


BROKEN = {
    "number_not_shown": cited(GOOD.replace("[2]", "[7]")),
    "number_twice": output(text=GOOD, evidence=[2, 2]),
    "blank_text": cited("[2]"),
    "bad_mark": output(text=GOOD + "[2, 3]", evidence=[2]),
    "mark_without_evidence": output(text=GOOD + "[1]", evidence=[2]),
    "evidence_without_mark": output(text=GOOD, evidence=[2, 1]),
    "answer_without_evidence": cited(GOOD.replace(" [2]", "")),
    "complete_with_missing": output(text=GOOD, evidence=[2], missing=["the year"]),
    "partial_without_missing": output("partial", GOOD, [2]),
    "refusal_with_evidence": output("insufficient_data", "It is not said.", [2], ["the place"]),
    "refusal_with_marks": output("insufficient_data", "It is not said. [2]", [], ["the place"]),
    "refusal_without_reason": output("insufficient_data", "It is not said."),
}


@pytest.mark.parametrize("code", RULE_ERRORS)
def test_each_broken_rule_is_an_invalid_output_that_is_counted(code):
    outcome, scores = one(BROKEN[code])
    assert outcome.codes == [code] and outcome.fits and not outcome.valid and outcome.decision == "invalid"
    assert [(scores.rates[name].value, scores.rates[name].total) for name in HEADLINES if name not in ("minimal_pair_accuracy", "hard_negative_accuracy")] == [(0.0, 1)] * 6


def test_no_sample_stays_in_every_denominator(by_control):
    outputs = [output for output in controls(RECORDS) if output["arm"] == "gold"]
    scores = score(outputs[1:], RECORDS)
    assert scores.codes == {"no_sample": 1}
    for name in HEADLINES:
        assert scores.rates[name].total == by_control["gold"].rates[name].total
        assert scores.rates[name].value < 1.0


def test_fence_is_a_diagnostic_only():
    _, scores = one("```json\n" + cited(GOOD) + "\n```")
    assert scores.rates["valid_without_fence_rate"].value == 1.0
    assert scores.rates["json_valid_rate"].value == 0.0


def test_stages_stand_apart():
    rates = [[one(raw)[1].rates[name].value for name in ("strict_json_rate", "schema_rate", "json_valid_rate")]
             for raw in ("{", "{}", BROKEN["number_not_shown"], cited(GOOD))]
    assert rates == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("marks, found, named", [
    ("[2]", 1, 1), ("[1][2]", 1, 1), ("[2][7]", 1, 2), ("[2][7][8]", 1, 3), ("[2][4]", 1, 2), ("[4]", 0, 1)])
def test_precision_counts_chunks_and_numbers_that_were_not_shown(marks, found, named):
    outcome, scores = one(cited(GOOD.replace("[2]", marks)))
    assert outcome.valid is ("7" not in marks)
    assert (scores.rates["citation_precision"].passed, scores.rates["citation_precision"].total) == (found, named)
    assert scores.rates["citation_recall"].value == found
    assert scores.rates["citation_f1"].value == pytest.approx(2 * found / (1 + named))


TWIN = FIRST | {"chunks": [*FIRST["chunks"], {**chunk(*FACTS[0]), "chunk_id": "twin-01", "gold": False}]}


@pytest.mark.parametrize("text, code, record", [
    (GOOD + " It was a weekly.", "claim_without_mark", FIRST), (GOOD.replace("[2]", "[2][1][3][4]"), "too_many_marks", FIRST),
    (GOOD + " Robert Abbott read Freedom's Journal. [2]", "claim_unsupported", FIRST),
    (GOOD.replace("[2]", "[1]"), "claim_beside_evidence", FIRST), (GOOD.replace("[2]", "[1][2][3]"), "idle_marks", FIRST),
    ("A weekly issue of Freedom's Journal cost six cents. [1]", "answer_not_in_text", FIRST),
    (GOOD.replace("[2]", "[8]"), "gold_chunk_not_cited", TWIN)])
def test_each_fault_of_an_answer_alone_costs_its_coverage(text, code, record):
    outcome, scores = one(cited(text), record)
    assert outcome.valid and outcome.codes == [code] and len(outcome.notes) == 1
    assert scores.rates["citation_coverage_rate"].value == 0.0
    pointing = code in ("too_many_marks", "claim_beside_evidence", "idle_marks")  # the claim is true, and its chunk the right one
    assert scores.rates["grounded_answer_rate"].value == float(pointing) and (scores.rates["retrieval_groundedness_rate"].value == 1.0) is pointing


@pytest.mark.parametrize("text, covered", [
    ("Ada Reed printed the almanacs of Lena Hill in Boston. [1][2]", True), ("Ada Reed printed the almanacs of Lena Hill in Boston. [2][1]", True),
    ("Ada Reed printed the almanacs in Boston. [2][4]", True), ("Ada Reed printed the almanacs in Boston. [2][4][5]", True),
    ("Ada Reed printed the almanacs in Boston. [2][3]", True), ("Ada Reed printed the almanacs in Boston. [1][2][3]", False),
    ("Ada Reed printed the almanacs in Boston. [3]", False), ("Ada Reed printed the almanacs in Boston. [1][3]", False)])
def test_most_of_the_sentences_named_for_a_claim_are_of_use(text, covered):
    "A sentence is that brings something, or holds half of the claim as another one does; one idle sentence beside a useful one is let pass."
    texts = ["Lena Hill wrote almanacs. Ada Reed printed the almanacs in Boston. The first one cost a dime.",
             "In Boston Ada Reed printed the almanacs. The almanacs were printed by Ada Reed in Boston."]
    record = FIRST | {"chunks": [{"chunk_id": f"c{place}", "text": one, "gold": True} for place, one in enumerate(texts)],
                      "expected": {"answer": "Boston", "gold_chunk_ids": ["c0", "c1"]}}
    outcome, _ = one(cited(text), record)
    assert outcome.valid and outcome.covered is covered, outcome.notes


def test_a_denied_answer_is_neither_supported_nor_right():
    outcome, _ = one(cited("Samuel Cornish never founded Freedom's Journal in New York City. [2]"))
    assert outcome.codes == ["claim_unsupported", "answer_not_in_text"] and not outcome.right


def test_marks_of_long_contexts_are_marks():
    text = " ".join(f"Line {number} is about nothing." for number in range(1100)) + " Ada Reed printed it in Boston."
    record = FIRST | {"chunks": [{"chunk_id": "c", "text": text}], "expected": {"answer": "Boston", "gold_chunk_ids": ["c"]}}
    outcome, _ = one(cited("Ada Reed printed it in Boston. [1101]"), record)
    assert outcome.covered, outcome.notes
    assert one(cited("Ada Reed printed it. [1101]"), record | {"expected": {"answer": "1101", "gold_chunk_ids": ["c"]}})[0].codes == ["answer_not_in_text"]


def test_a_claim_is_held_against_its_own_chunk_only():
    "The other chunk supports the second sentence, but the sentence doesn't cite it."
    right = cited(GOOD + " Robert Abbott founded the Chicago Defender in Chicago. [4]")
    crossed = cited(GOOD.replace("[2]", "[4]") + " Robert Abbott founded the Chicago Defender in Chicago. [2]")
    assert one(right)[0].supported == 2
    assert one(crossed)[0].supported == 0


def test_off_topic_truth_is_supported_but_not_grounded():
    outcome, scores = one(cited("A weekly issue of Freedom's Journal cost six cents. [1]"))
    assert (outcome.claims, outcome.supported, outcome.grounded) == (1, 1, 0)
    assert scores.rates["claim_support_rate"].value == 1.0


def test_groundedness_counts_claims():
    outcome, scores = one(cited(GOOD + " Robert Abbott read Freedom's Journal. [2]"))
    assert (outcome.claims, outcome.grounded) == (2, 1)
    assert scores.rates["retrieval_groundedness_rate"].value == 0.5
    assert scores.rates["grounded_answer_rate"].value == 0.0


def test_refusal():
    clean, _ = one(REFUSAL, REFUSABLE)
    assert clean.decision == "refused" and clean.codes == []
    wrong, scores = one(REFUSAL)
    assert wrong.codes == ["refused_answerable"] and scores.rates["citation_coverage_rate"].value == 0.0


@pytest.mark.parametrize("text, code", [
    ("The context does not say where. It may be Boston.", "refusal_with_claim"),
    ("The context does not say where. The price was 6 cents.", "refusal_with_claim"),
    ("The context does not say where Freedom's Journal of New York City was founded.", "answer_leaked"),
    ("Nothing is known. Robert Abbott founded the Chicago Defender in Chicago in 1905.", "refusal_with_claim")])
def test_a_mixture_is_wrong_on_both_sides(text, code):
    raw = output("insufficient_data", text, missing=["where"])
    scores = score([{"id": record["id"], "arm": "a", "raw": raw} for record in RECORDS[:2]], RECORDS[:2])
    for outcome in scores.outcomes:
        assert outcome.valid and outcome.decision == "mixed" and code in outcome.codes
    assert scores.rates["refusal_correctness_rate"].value == 0.0


def test_a_leak_in_the_unknowns_counts():
    "The answer is that of the minimal pair: the record that asks the same with its gold chunk."
    raw = output("insufficient_data", "The context does not say.", missing=["why it was in new york city"])
    scores = score([{"id": REFUSABLE["id"], "arm": "a", "raw": raw}], RECORDS[:2])
    assert scores.outcomes[1].codes == ["answer_leaked"]


def test_a_refusal_that_claims_has_that_fault_alone():
    raw = output("insufficient_data", "The context does not say where. It may be Boston.", missing=["where"])
    assert one(raw, REFUSABLE)[0].codes == ["refusal_with_claim"]


def test_an_answer_without_evidence_is_none_unless_the_mode_is_creative():
    raw = output(text="It was founded in New York City.")
    assert one(raw)[0].codes == ["answer_without_evidence"]
    outcome, scores = one(raw, FIRST | {"mode": "creative"})
    assert outcome.valid and outcome.decision == "answered" and scores.rates["citation_coverage_rate"].total == 0
    assert scores.rates["retrieval_groundedness_rate"].value == 0.0


def test_answering_the_unanswerable_earns_nothing():
    outcome, scores = one(cited("Robert Abbott founded the Chicago Defender in Chicago. [2]"), REFUSABLE)
    assert outcome.codes == ["answered_unanswerable"]
    assert scores.rates["retrieval_groundedness_rate"].value == scores.rates["citation_precision"].value == 0.0


def test_unknown_answerability_is_left_out_of_refusing_only():
    record = {key: value for key, value in FIRST.items() if key not in ("answerable", "expected", "pair_id")}
    _, scores = one(cited(GOOD), record)
    assert [scores.rates[name].total for name in HEADLINES] == [1, 0, 0, 1, 0, 0, 0, 0]


def test_groups_add_up(by_control):
    scores = by_control["never_refuse"]
    for by, group in scores.groups.items():
        assert sum(rates["json_valid_rate"].total for rates in group.values()) == len(RECORDS), by
    assert scores.groups["answerable"]["False"]["refusal_correctness_rate"].value == 0.0


def test_samples_must_fit_records():
    output = {"id": FIRST["id"], "arm": "a", "raw": "{}", "finish_reason": "stop"}
    with pytest.raises(ScoreError) as caught:
        score([output, output, {**output, "id": "other", "arm": "b"}], RECORDS + [FIRST])
    codes = [problem.code for problem in caught.value.problems]
    assert codes == ["duplicate_record", "unknown_record", "duplicate_sample", "several_arms"]


def test_scores_are_json_and_pure(by_control):
    again = score([output for output in controls(RECORDS) if output["arm"] == "wrong_chunk"], RECORDS)
    assert json.dumps(again.to_dict(), allow_nan=False) == json.dumps(by_control["wrong_chunk"].to_dict(), allow_nan=False)


def test_wilson_against_known_values():
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, method 3
    assert wilson(0, 0) == (0.0, 1.0)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda pair: (min(pair), max(pair))), max_size=25))
def test_intervals_hold_their_value(counts):
    rates = [clustered("c", counts), share("s", [passed == total for passed, total in counts])]
    rates.append(balanced("b", *rates))
    for rate in rates:
        assert 0.0 <= rate.low <= 1.0 and 0.0 <= rate.high <= 1.0
        if rate.total:
            assert rate.low - 1e-9 <= rate.value <= rate.high + 1e-9
            assert rate.high > rate.low or len({passed / total for passed, total in counts if total}) == 1


def test_records_of_one_document_widen_the_interval():
    "Against the textbook: with equal clusters the variance is that of their means."
    passes, documents = [True] * 30 + [False] * 10 + [True] * 10 + [False] * 30, [place // 10 for place in range(80)]
    alone, together = share("s", passes), share("s", passes, documents)
    assert together.value == alone.value == 0.5 and together.low < alone.low < alone.high < together.high
    assert (together.clusters, together.design_effect) == (8, pytest.approx(8 / 7 * 8 * 25 / (80 / 79 * 80 * 0.25)))
    ratio = clustered("c", [(int(one), 1) for one in passes], documents)
    assert ratio.design_effect == pytest.approx(together.design_effect) and ratio.low == pytest.approx(together.low, abs=0.06)
    spread = share("s", passes, list(range(80)))
    assert (spread.low, spread.high, spread.design_effect) == (alone.low, alone.high, 1.0)
    mixed = share("s", passes, [place % 10 for place in range(80)])
    assert mixed.design_effect < 1 and mixed.low <= alone.low and mixed.high >= alone.high


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=25))
def test_intervals_by_document_hold_their_value_and_are_never_narrower(rows):
    passes, documents = [one for one, _ in rows], [document for _, document in rows]
    alone, rate = share("s", passes), share("s", passes, documents)
    assert 0 <= rate.low <= rate.value + 1e-9 <= rate.high + 2e-9 <= 1 + 3e-9 or not rows
    assert rate.low <= alone.low + 1e-9 and rate.high >= alone.high - 1e-9
    ratio = clustered("c", [(int(one), 1) for one in passes], documents)
    assert ratio.clusters == rate.clusters == len(set(documents)) and 0 <= ratio.low <= ratio.high <= 1


def test_arms_are_compared_by_document():
    assert sign_flip([1] * 8) == mcnemar(0, 8) == pytest.approx(2 / 2**8)
    assert sign_flip([4, 4]) == 0.5 and sign_flip([]) == sign_flip([0, 0]) == 1.0 and sign_flip([3, -3]) == 1.0
    assert sign_flip([2, 1]) == 0.5 and sign_flip([5] * 400) == pytest.approx(2 / 2**400)


def test_records_know_their_document():
    "That of the gold chunk, of the pair's, or the first shown; a record without documents stands alone."
    named = [record | {"chunks": [one | {"doc_id": f"of {one['chunk_id']}"} for one in record["chunks"]]} for record in RECORDS]
    assert [case.document for case in metrics.read_cases(named)] == [f"of {fact[0]}-01" for fact in FACTS for _ in range(2)]
    apart = [record | {"pair_id": None} for record in named]
    assert metrics.read_cases(apart)[1].document == named[1]["chunks"][0]["doc_id"]
    assert metrics.read_cases(RECORDS)[0].document == f"record {FIRST['id']}"
    by_document = score([], named).rates["json_valid_rate"]
    assert (by_document.clusters, score([], RECORDS).rates["json_valid_rate"].clusters) == (4, 8)


def test_balanced_is_a_mean_of_sides_not_of_records():
    rate = balanced("b", share("x", [True] * 90), share("y", [False] * 10))
    assert rate.value == 0.5 and rate.total == 100
    assert balanced("b", share("x", []), share("y", [True] * 3)).value == 1.0


def test_mcnemar_and_holm():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(2, 8) == mcnemar(8, 2) == pytest.approx(2 * sum(comb(10, count) for count in range(3)) / 1024)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_rate_of_nothing_is_no_nought():
    assert str(share("a", [])) == str(clustered("a", [])) == str(balanced("a", share("b", []))) == "not measured"
    assert str(share("a", [False])).startswith("0.00 [0.00, ")


def test_compare(by_control):
    rows = {row["metric"]: row for row in compare(by_control["always_refuse"], by_control["gold"])}
    assert (rows["citation_coverage_rate"]["only_first"], rows["citation_coverage_rate"]["only_second"]) == (0, 4)
    assert rows["refusal_correctness_rate"]["p"] == pytest.approx(0.125)
    assert all(row["p_holm"] >= row["p"] for row in rows.values())
    with pytest.raises(ScoreError):
        compare(by_control["gold"], score([], RECORDS[:1]))


def test_what_is_tested_is_the_difference_of_the_rate_itself(by_control):
    "Refusing is the mean of two sides: with unequal sides, counts of records may point the other way."
    for first, second in permutations(by_control.values(), 2):
        for row in compare(first, second):
            if row["metric"] != "retrieval_groundedness_rate":
                assert row["difference"] == pytest.approx(row["second"] - row["first"]), (first.arm, second.arm)


def test_more_records_do_not_win_against_the_smaller_side():
    "Always refusing gets ten more of forty refusals right and loses all four answers: by records it wins, by the rate it loses."
    answerable, refusable = (next(one for one in RECORDS if one["answerable"] is there) for there in (True, False))
    records = [{**one, "id": f"{one['id']}-{place}", "chunks": [{**shown, "doc_id": f"{one['id']}-{place}"} for shown in one["chunks"]]}
               for one, count in ((answerable, 4), (refusable, 40)) for place in range(count)]
    right = score([{"id": one["id"], "raw": one["messages"][-1]["content"] if place < 34 else cited("It cost six cents. [1]")}
                   for place, one in enumerate(records)], records)
    refusing = score([{"id": one["id"], "raw": REFUSAL} for one in records], records)
    row = next(one for one in compare(right, refusing) if one["metric"] == "refusal_correctness_rate")
    assert (row["only_first"], row["only_second"], row["difference"]) == (4, 10, pytest.approx(-0.375))
    assert direction({**row, "p_holm": 0.01}) == -1


@pytest.mark.parametrize("first, second, only_first, only_second, p, way", [
    (0.6, 0.7, 3, 20, 0.001, 1), (0.7, 0.6, 20, 3, 0.001, -1), (0.7, 0.6, 20, 3, 0.2, 0), (0.6, 0.6, 3, 20, 0.001, 0),
    (0.700, 0.675, 12, 45, 0.0001, 0), (0.675, 0.700, 45, 12, 0.0001, 0)])
def test_a_metric_has_moved_only_where_its_rate_and_its_records_agree(first, second, only_first, only_second, p, way):
    row = {"metric": "m", "first": first, "second": second, "only_first": only_first, "only_second": only_second, "p_holm": p}
    assert direction(row) == way
    assert direction({**row, "difference": second - first}) == (way or (p < 0.05) * ((second > first) - (second < first)))


def test_tables_for_readers(by_control):
    table = scores_table(by_control)
    assert [row["arm"] for row in table] == list(by_control) and table[0]["grounded_answer_rate"].startswith("1.00 [0.51, 1.00] n=4")
    failed = failures(by_control["never_refuse"], RECORDS, controls(RECORDS))
    assert len(failed) == len([outcome for outcome in by_control["never_refuse"].outcomes if outcome.codes])
    assert failed[0]["question"].startswith("Where was") and failed[0]["raw"].startswith("{")
    assert failures(by_control["gold"], RECORDS, controls(RECORDS)) == []


def test_scoring_can_be_measured_as_if_it_were_new():
    metrics.forget_scores()
    score_arms(controls(RECORDS), RECORDS)
    stats.clustered("c", [(1, 2), (1, 1)])
    remembered = {name: one for module in (answers, metrics, support, stats, text) for name, one in vars(module).items() if hasattr(one, "cache_info")}
    assert sum(one.cache_info().currsize > 0 for one in remembered.values()) > 8 and "_few_resamples" in vars(stats)
    metrics.forget_scores()
    assert {name: one.cache_info().currsize for name, one in remembered.items()} == dict.fromkeys(remembered, 0)


def test_what_was_not_answered_is_a_failure_with_its_reason():
    gold = [output for output in controls(RECORDS) if output["arm"] == "gold"]
    refused = gold[0] | {"raw": "", "finish_reason": "refused", "new_tokens": None, "problem": "The server refused it: too long"}
    scores = score([refused, *gold[1:]], RECORDS)
    assert scores.codes == {"not_answered": 1} and scores.rates["json_valid_rate"].total == len(RECORDS) > scores.rates["json_valid_rate"].passed
    (row,) = failures(scores, RECORDS, [refused])
    assert row["codes"] == ["not_answered"] and row["notes"] == ["The server refused it: too long"] and row["raw"] == ""


@pytest.mark.parametrize("reason, problem, valid, note", [
    ("unknown", "", True, None), ("content_filter", "", False, "it ended with the reason content_filter"), ("tool_calls", "it called", False, "it called"), ("length", "", False, None)])
def test_how_an_output_ended_is_told(reason, problem, valid, note):
    gold = [output for output in controls(RECORDS) if output["arm"] == "gold"]
    outcome = score([gold[0] | {"finish_reason": reason, "problem": problem}, *gold[1:]], RECORDS).outcomes[0]
    assert outcome.valid is valid and outcome.notes == ([note] if note else [])


@pytest.mark.parametrize("odd", [None, float("nan"), float("inf"), -1, "3", [3], True, 10**30])
def test_an_unknown_number_of_tokens_poisons_nothing(odd):
    gold = [output | {"new_tokens": 4, "seconds": 2.0} for output in controls(RECORDS) if output["arm"] == "gold"]
    some = score([gold[0] | {"new_tokens": odd, "seconds": odd}, *gold[1:]], RECORDS)
    assert some.costs == {"seconds_total": 2.0 * (len(gold) - 1), "seconds_median": 2.0, "new_tokens_total": 4 * (len(gold) - 1), "new_tokens_median": 4,
                          "new_tokens_known": len(gold) - 1}
    none = score([output | {"new_tokens": odd} for output in gold], RECORDS)
    assert (none.costs["new_tokens_total"], none.costs["new_tokens_median"], none.costs["new_tokens_known"]) == (None, None, 0)
    assert json.dumps(some.to_dict(), allow_nan=False)


def test_every_failure_code_is_explained():
    "Codes are the first word of `fail`, or of a pair of code and note that goes to it."
    found = set()
    trees = [ast.parse(Path(module.__file__).read_text(encoding="utf-8")) for module in (metrics, expectations)]
    for node in [node for tree in trees for node in ast.walk(tree)]:
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "fail":
            words = node.args[:1]
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[1], (ast.JoinedStr, ast.Constant)) and "_" in str(getattr(node.elts[0], "value", "")):
            words = node.elts[:1]
        else:
            continue
        found |= {word.value for word in words if isinstance(word, ast.Constant)}
    assert found == set(FAILURE_CODES)
    contract = {code for codes in ERROR_STAGES.values() for code in codes}
    assert not contract & set(FAILURE_CODES) and all(f"| `{code}` |" in failure_table() for code in FAILURE_CODES)


@pytest.mark.parametrize("name", HEADLINES)
def test_the_card_says_what_each_headline_means(name):
    assert f"- `{name}`: " in (ROOT / "kwanzaa_nb/templates/card.md").read_text(encoding="utf-8")


def test_a_refusal_may_name_what_an_earlier_turn_has_told():
    "In a conversation the follow-up says 'he', and the refusal says who."
    *asked, target = REFUSABLE["messages"]
    earlier = {"role": "assistant", "content": cited("Lena Hill wrote it. [1]")}
    follow = {"role": "user", "content": "### Instruction:\nWhere was she born?"}
    raw = output("insufficient_data", "The context does not say where Lena Hill was born.",
                 missing=["the birthplace"])
    for messages, decision in (([*asked, earlier, follow, target], "refused"),
                               ([*asked, target], "mixed")):
        outcome, _ = one(raw, {**REFUSABLE, "messages": messages})
        assert outcome.decision == decision, outcome.notes
