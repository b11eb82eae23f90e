"The rules without a model: what they copy, when they refuse, and the stored numbers."

import json
import math
from copy import deepcopy

import numpy as np
import pytest
from tiny import ROOT

from kwanzaa_nb.model.decision import fit_logistic
from kwanzaa_nb.evaluate.metrics import REFUSAL, ScoreError, read_cases, score_arms
from kwanzaa_nb.evaluate.rules import (
    apply_rules, best_score, choose_threshold, count_rarity, fit_rules, overlap_features, rank_sentences, refused_by_kind, summarise_rules)
from kwanzaa_nb.core.record import read_records

ARMS = ["best_sentence", "best_sentence_threshold", "overlap_regression"]


@pytest.fixture(scope="module")
def splits():
    return [read_records(ROOT / f"data/training/kwanzaa_{split}.jsonl") for split in ("train", "dev", "eval")]


@pytest.fixture(scope="module")
def rules(splits):
    return fit_rules(*splits[:2])


@pytest.fixture(scope="module")
def scores(rules, splits):
    return score_arms(apply_rules(rules, splits[2]), splits[2])


def record(question, *texts, name="r", **more):
    "A record as far as the rules look at it."
    chunks = [{"chunk_id": f"c{place}", "text": text} for place, text in enumerate(texts)]
    user = {"role": "user", "content": f"### Retrieved Context:\n(none provided)\n\n### Instruction:\n{question}"}
    return {"id": name, "messages": [user], "chunks": chunks, "answerable": True, **more}


def case_of(*parts, **more):
    return read_cases([record(*parts, **more)])[0]


SHIPS = ("The ship was old. Henson sailed on the Katie Hines.", "Peary sailed on the Roosevelt. The ship was new.")


def test_a_rare_word_counts_more_than_a_common_one_and_an_unknown_one_most():
    rarity = count_rarity([case_of("What?", *SHIPS)])
    assert 0 < rarity(["sail"]) < rarity(["henson"]) < rarity(["zanzibar"])
    assert rarity(["sail", "henson"]) == pytest.approx(rarity(["sail"]) + rarity(["henson"])) and rarity([]) == 0


def test_equal_sentences_count_once():
    twice = count_rarity([case_of("What?", *SHIPS), case_of("What?", *SHIPS)])
    assert twice == count_rarity([case_of("What?", *SHIPS)]) and twice.total == 4


def test_the_sentence_with_most_rare_words_comes_first_and_of_equal_ones_the_earlier():
    case = case_of("On what did Henson sail?", *SHIPS)
    ranked = rank_sentences(case, count_rarity([case]))
    assert [sentence.number for _, sentence in ranked] == [2, 3, 1, 4] and ranked[2][0] == ranked[3][0] == 0


def test_inflected_words_and_the_case_of_letters_make_no_difference():
    rarity = count_rarity([case_of("What?", *SHIPS)])
    assert best_score(case_of("henson SAILING", *SHIPS), rarity) == best_score(case_of("Did Henson sail?", *SHIPS), rarity) > 0


def test_the_features_tell_where_the_question_is_not_met():
    case = case_of("When did Henson sail with Bartlett in 1909?", *SHIPS)
    rarity = count_rarity([case])
    found = overlap_features(case, rarity)
    assert found["best"] == rarity(["henson", "sail"]) and found["second"] == rarity(["sail"])
    assert found["nowhere"] == rarity(["bartlett", "#1909"]) and found["names not in the chunk"] == rarity(["bartlett"])
    assert found["numbers not in the chunk"] == found["asks for a number"] == found["no new number"] == 1
    dated = overlap_features(case_of("When did Henson sail?", "Henson sailed in 1909."), rarity)
    assert dated["share"] == 1 and dated["asks for a number"] == 1 and dated["no new number"] == dated["names not in the chunk"] == 0


def test_a_logistic_regression_finds_the_weights_that_made_the_targets_and_a_ridge_holds_them():
    inputs = np.column_stack([np.random.default_rng(0).normal(size=(400, 2)), np.ones(400)])
    truth, start = np.array([1.5, -2.0, 0.5]), np.zeros(3)
    targets = 1 / (1 + np.exp(-inputs @ truth))
    assert fit_logistic(inputs, targets, start) == pytest.approx(truth, abs=1e-5)
    held = fit_logistic(inputs, targets, start, 100.0)
    assert np.linalg.norm(held) < 0.8 * np.linalg.norm(truth) and fit_logistic(inputs, targets, truth, 1e9) == pytest.approx(truth)


def test_the_ridge_solution_has_no_slope():
    generator = np.random.default_rng(1)
    inputs, targets, towards = generator.normal(size=(50, 3)), generator.integers(0, 2, 50).astype(float), np.array([0.3, 0.0, -1.0])
    found = fit_logistic(inputs, targets, towards, 7.0)
    slope = inputs.T @ (targets - 1 / (1 + np.exp(-inputs @ found))) - 7.0 * (found - towards)
    assert np.abs(slope).max() < 1e-6


def test_a_threshold_parts_what_can_be_parted_and_answers_all_where_one_kind_is_missing():
    assert choose_threshold([1.0, 2.0, 3.0, 4.0], [False, False, True, True]) == 3.0
    assert choose_threshold([1.0, 2.0], [True, True]) == choose_threshold([], []) == -math.inf


def test_every_output_is_valid_and_nothing_depends_on_the_labels_of_what_is_answered(splits, rules, scores):
    assert [*scores] == ARMS and all(found.rates["json_valid_rate"].value == 1 for found in scores.values())
    blind = deepcopy(splits[2])
    for one in blind:
        one["answerable"], one["expected"], one["kind"] = not one["answerable"], {}, "unknown"
        one["messages"][-1]["content"] = ""
        for chunk in one["chunks"]:
            chunk.pop("gold", None)
    assert apply_rules(rules, blind) == apply_rules(rules, splits[2])


def test_the_first_rule_answers_all_and_the_others_what_reaches_their_thresholds(splits, rules):
    answers = {arm: 0 for arm in ARMS}
    for case in read_cases(splits[2]):
        found = rules(case)
        reached = [True, best_score(case, rules.rarity) >= rules.least_score, rules.regression(case, rules.rarity) >= rules.least_chance]
        for arm, answered in zip(ARMS, reached):
            assert (found[arm] != REFUSAL) == (answered and bool(case.sentences)), (case.id, arm)
            answers[arm] += found[arm] != REFUSAL
    assert answers[ARMS[0]] > answers[ARMS[1]] > 0 and answers[ARMS[0]] > answers[ARMS[2]] > 0


def test_with_nothing_shown_all_refuse(rules):
    assert set(rules(case_of("Who sailed?")).values()) == {REFUSAL}


def test_brackets_and_several_claims_in_one_sentence_stay_valid(rules):
    text = "- Henson [3] sailed on the Katie Hines [12]. “He learnt to read. He was twelve.”"
    case = case_of("On what did Henson sail?", text)
    asked = record("On what did Henson sail?", text, expected={"answer": "Katie Hines", "gold_chunk_ids": ["c0"]})
    assert len(case.sentences) < 3  # so that one of them holds more than a claim
    scored = score_arms([{"id": "r", "arm": "a", "raw": rules(case)["best_sentence"], "finish_reason": "stop"}], [asked])["a"]
    assert scored.codes == {} and scored.outcomes[0].covered


def test_samples_are_the_same_each_time(splits, rules):
    assert apply_rules(fit_rules(*splits[:2]), splits[2]) == apply_rules(rules, splits[2])


def test_without_a_record_to_learn_from_there_are_no_rules(splits):
    for train in ([], [record("Who sailed?")], [record("Who sailed?", *SHIPS, answerable=None)]):
        with pytest.raises(ScoreError) as caught:
            fit_rules(train, splits[1])
        assert [problem.code for problem in caught.value.problems] == ["no_records"]


def test_one_kind_alone_in_the_development_set_makes_rules_that_answer_all(splits):
    fitted = fit_rules(splits[0][:200], [one for one in splits[1] if one["answerable"]])
    assert fitted.least_score == fitted.least_chance == -math.inf
    assert REFUSAL not in fitted(case_of("Who?", *SHIPS)).values()


def test_kinds_are_counted_over_all_unanswerable_records(splits, scores):
    for found in scores.values():
        rates = refused_by_kind(found, splits[2])
        side = found.rates["refusal_correctness_rate"].sides[0]
        assert (sum(rate.passed for rate in rates.values()), sum(rate.total for rate in rates.values())) == (side.passed, side.total)


def test_rules_that_may_refuse_refuse_better_and_pay_with_coverage(scores):
    refusing, covering = ({arm: found.rates[name] for arm, found in scores.items()} for name in ("refusal_correctness_rate", "citation_coverage_rate"))
    assert refusing[ARMS[0]].high < refusing[ARMS[1]].low and refusing[ARMS[0]].high < refusing[ARMS[2]].low
    assert covering[ARMS[0]].passed >= max(covering[ARMS[1]].passed, covering[ARMS[2]].passed) > 0


def test_what_was_taken_away_is_noticed_more_often_than_what_was_written_to_be_hard(splits, scores):
    "Over the two rules that may refuse; the hard kinds are those of questions that have no evidence."
    kinds = [refused_by_kind(scores[arm], splits[2]) for arm in ARMS[1:]]
    shares = [sum(rates[kind].passed for rates in kinds for kind in group) / sum(rates[kind].total for rates in kinds for kind in group)
              for group in (["removed"], ["near_miss", "wrong_person", "wrong_year", "no_quote", "too_far"])]
    assert shares[0] > shares[1] + 0.1


def test_the_stored_numbers_are_those_of_the_committed_records(splits, scores):
    stored = json.loads((ROOT / "data/benchmarks/rules.json").read_text(encoding="utf-8"))["measured"]
    found = summarise_rules(scores, splits[2])
    assert [*stored] == ARMS and {arm: [*rates] for arm, rates in stored.items()} == {arm: [*rates] for arm, rates in found.items()}
    for arm, rates in found.items():
        for name, rate in rates.items():
            assert stored[arm][name] == pytest.approx(rate, abs=1e-3), f"{arm}, {name}: run nbs/evaluate/rules.ipynb again"
