"The rules without a model: what they copy, when they refuse, and the stored numbers."

import json
import math
from copy import deepcopy

import numpy as np
import pytest
from tiny import ROOT

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.core.results import RULES, hard_sentence, kinds_table, rules_sentence
from kwanzaa_nb.core.stats import paired_difference, sign_flip, weighted_interval
from kwanzaa_nb.data.questions import UNANSWERED
from kwanzaa_nb.evaluate.metrics import (
    HARD_KINDS, REFUSAL, ScoreError, compare_figure, controls, hard_negatives, read_cases,
    score_arms)
from kwanzaa_nb.evaluate.rules import (
    apply_rules, beside_rules, best_score, choose_threshold, count_rarity, fit_rules,
    overlap_features, rank_sentences, refused_by_kind, run_rules, summarise_rules)
from kwanzaa_nb.model.decision import fit_logistic

ARMS = [*RULES]
SHIPS = ("The ship was old. Henson sailed on the Katie Hines.",
         "Peary sailed on the Roosevelt. The ship was new.")


@pytest.fixture(scope="module")
def splits():
    return [read_records(ROOT / f"data/training/kwanzaa_{split}.jsonl")
            for split in ("train", "dev", "eval")]


@pytest.fixture(scope="module")
def rules(splits):
    return fit_rules(*splits[:2])


@pytest.fixture(scope="module")
def scores(rules, splits):
    return score_arms(apply_rules(rules, splits[2]), splits[2])


def record(question, *texts, name="r", **more):
    "A record as far as the rules look at it."
    chunks = [{"chunk_id": f"c{place}", "text": text} for place, text in enumerate(texts)]
    user = {"role": "user", "content": f"### Instruction:\n{question}"}
    return {"id": name, "messages": [user], "chunks": chunks, "answerable": True, **more}


def case_of(*parts, **more):
    return read_cases([record(*parts, **more)])[0]


@pytest.fixture(scope="module")
def rarity():
    return count_rarity([case_of("What?", *SHIPS)])


def test_a_rare_word_counts_more_than_a_common_one_and_an_unknown_one_most(rarity):
    assert 0 < rarity(["sail"]) < rarity(["henson"]) < rarity(["zanzibar"]) and rarity([]) == 0
    both = rarity(["sail"]) + rarity(["henson"])
    assert rarity(["sail", "henson"]) == pytest.approx(both)


def test_equal_sentences_count_once(rarity):
    twice = count_rarity([case_of("What?", *SHIPS), case_of("What?", *SHIPS)])
    assert twice == rarity and twice.total == 4


def test_the_sentence_with_most_rare_words_comes_first_and_of_equal_ones_the_earlier(rarity):
    ranked = rank_sentences(case_of("On what did Henson sail?", *SHIPS), rarity)
    assert [sentence.number for _, sentence in ranked] == [2, 3, 1, 4]
    assert ranked[2][0] == ranked[3][0] == 0


def test_inflected_words_and_the_case_of_letters_make_no_difference(rarity):
    asked = (case_of(text, *SHIPS) for text in ("henson SAILING", "Did Henson sail?"))
    first, second = (best_score(case, rarity) for case in asked)
    assert first == second > 0


def test_the_features_tell_where_the_question_is_not_met():
    case = case_of("When did Henson sail with Bartlett in 1909?", *SHIPS)
    rarity = count_rarity([case])
    found = overlap_features(case, rarity)
    assert found["best"] == rarity(["henson", "sail"]) and found["second"] == rarity(["sail"])
    assert found["nowhere"] == rarity(["bartlett", "#1909"])
    assert found["names not in the chunk"] == rarity(["bartlett"])
    names = ("numbers not in the chunk", "asks for a number", "no new number")
    assert [found[name] for name in names] == [1, 1, 1]
    dated = case_of("When did Henson sail?", "Henson sailed in 1909.")
    found = overlap_features(dated, rarity)
    assert found["share"] == 1 and [found[name] for name in names] == [0, 1, 0]


def test_a_logistic_regression_finds_the_weights_that_made_the_targets_and_a_ridge_holds_them():
    inputs = np.column_stack([np.random.default_rng(0).normal(size=(400, 2)), np.ones(400)])
    truth, start = np.array([1.5, -2.0, 0.5]), np.zeros(3)
    targets = 1 / (1 + np.exp(-inputs @ truth))
    assert fit_logistic(inputs, targets, start) == pytest.approx(truth, abs=1e-5)
    assert fit_logistic(inputs, targets, truth, 1e9) == pytest.approx(truth)
    held = fit_logistic(inputs, targets, start, 100.0)
    assert np.linalg.norm(held) < 0.8 * np.linalg.norm(truth)
    slope = inputs.T @ (targets - 1 / (1 + np.exp(-inputs @ held))) - 100.0 * (held - start)
    assert np.abs(slope).max() < 1e-6


def test_a_threshold_parts_what_can_be_parted_and_answers_all_where_one_kind_is_missing():
    assert choose_threshold([1.0, 2.0, 3.0, 4.0], [False, False, True, True]) == 3.0
    assert choose_threshold([1.0, 2.0], [True, True]) == choose_threshold([], []) == -math.inf


def test_every_output_is_valid_and_nothing_depends_on_labels(splits, rules, scores):
    assert [*scores] == ARMS
    assert all(found.rates["json_valid_rate"].value == 1 for found in scores.values())
    blind = deepcopy(splits[2])
    for one in blind:
        one["answerable"], one["expected"], one["kind"] = not one["answerable"], {}, "unknown"
        one["messages"][-1]["content"] = ""
        for chunk in one["chunks"]:
            chunk.pop("gold", None)
    assert apply_rules(rules, blind) == apply_rules(rules, splits[2])


def test_the_first_rule_answers_all_and_the_others_what_reaches_their_thresholds(splits, rules):
    answers = dict.fromkeys(ARMS, 0)
    for case in read_cases(splits[2]):
        found, score = rules(case), best_score(case, rules.rarity)
        chance = rules.regression(case, rules.rarity)
        reached = [True, score >= rules.least_score, chance >= rules.least_chance]
        for arm, answered in zip(ARMS, reached):
            assert (found[arm] != REFUSAL) == (answered and bool(case.sentences)), (case.id, arm)
            answers[arm] += found[arm] != REFUSAL
    always, *others = answers.values()
    assert all(0 < count < always for count in others)


def test_with_nothing_shown_all_refuse(rules):
    assert set(rules(case_of("Who sailed?")).values()) == {REFUSAL}


def test_brackets_and_several_claims_in_one_sentence_stay_valid(rules):
    text = "- Henson [3] sailed on the Katie Hines [12]. “He learnt to read. He was twelve.”"
    question, expected = "On what did Henson sail?", {"groups": [["Katie Hines"]]}
    case = case_of(question, text)
    assert len(case.sentences) < 3  # so that one of them holds more than a claim
    asked = record(question, text, expected={**expected, "gold_chunk_ids": ["c0"]})
    output = {"id": "r", "arm": "a", "raw": rules(case)["best_sentence"], "finish_reason": "stop"}
    scored = score_arms([output], [asked])["a"]
    assert scored.codes == {} and scored.outcomes[0].covered


def test_without_a_record_to_learn_from_there_are_no_rules(splits):
    unknown = record("Who sailed?", *SHIPS, answerable=None)
    for train in ([], [record("Who sailed?")], [unknown]):
        with pytest.raises(ScoreError) as caught:
            fit_rules(train, splits[1])
        assert [problem.code for problem in caught.value.problems] == ["no_records"]


def test_one_kind_alone_in_the_development_set_makes_rules_that_answer_all(splits):
    fitted = fit_rules(splits[0][:200], [one for one in splits[1] if one["answerable"]])
    assert fitted.least_score == fitted.least_chance == -math.inf
    assert REFUSAL not in fitted(case_of("Who?", *SHIPS)).values()


def test_kinds_are_counted_over_all_unanswerable_records(splits, scores):
    for found in scores.values():
        rates = refused_by_kind(found, splits[2]).values()
        side = found.rates["refusal_correctness_rate"].sides[0]
        assert sum(rate.passed for rate in rates) == side.passed
        assert sum(rate.total for rate in rates) == side.total


def test_rules_that_may_refuse_refuse_better_than_the_one_that_never_does(scores):
    always, *others = (scores[arm].rates["refusal_correctness_rate"] for arm in ARMS)
    assert all(always.high < other.low for other in others)
    assert all(found.rates["citation_coverage_rate"].value > 0.1 for found in scores.values())


def test_the_stored_numbers_are_those_of_the_committed_records(splits, scores):
    text = (ROOT / "data/benchmarks/rules.json").read_text(encoding="utf-8")
    stored, found = json.loads(text)["measured"], summarise_rules(scores, splits[2])
    mend = "run nbs/evaluate/rules.ipynb again"
    assert [*stored] == ARMS, mend
    for arm, rates in found.items():
        assert [*stored[arm]] == [*rates], mend
        for name, rate in rates.items():
            assert stored[arm][name] == pytest.approx(rate, abs=1e-3), f"{arm}, {name}: {mend}"


# beside an adapter


@pytest.fixture(scope="module")
def trivial(splits):
    return score_arms(controls(splits[2]), splits[2])


def test_the_figure_is_the_mean_of_coverage_and_refusal_and_no_skill_wins_it(scores, trivial):
    for arm, found in {**scores, **trivial}.items():
        rates = found.rates
        sides = rates["citation_coverage_rate"].value, rates["refusal_correctness_rate"].value
        figure = rates["coverage_and_refusal"]
        assert figure.value == pytest.approx(sum(sides) / 2)
        assert figure.low <= figure.value <= figure.high and 0 <= figure.low and figure.high <= 1
        assert arm == "gold" or figure.value < 0.55
    assert trivial["gold"].rates["coverage_and_refusal"].value == 1
    assert trivial["always_refuse"].rates["coverage_and_refusal"].value == 0.25
    refused = trivial["always_refuse"].rates["hard_negative_accuracy"]
    assert (refused.value, refused.sides[0].value) == (0.5, 1.0)
    assert all(trivial[arm].rates["hard_negative_accuracy"].value <= 0.5
               for arm in trivial if arm != "gold")


def test_where_refusing_all_would_win_nothing_is_compared(splits, rules):
    asked = [one for one in splits[2] if one["answerable"] is False]
    found = score_arms(apply_rules(rules, asked), asked)
    assert {one.rates["coverage_and_refusal"].total for one in found.values()} == {0}
    told = beside_rules({"adapter": found["best_sentence"]}, found, asked)
    assert "refusing all" in told["rules_not_run"] and "rules" not in told


def test_the_best_rule_is_the_one_with_the_best_figure_and_each_side_is_told(scores, trivial, splits):
    best = max(scores, key=lambda arm: scores[arm].rates["coverage_and_refusal"].value)
    for judged, told in (("gold", "The adapter beats the best rule without a model. "),
                         ("always_refuse", "The adapter is worse than the best rule without")):
        arms = {"base": trivial["empty_object"], "adapter": trivial[judged]}
        found = beside_rules(arms, scores, splits[2])
        assert found["rules"]["rule"] == best and found["rules"]["records"] == arms["adapter"].rates["coverage_and_refusal"].total
        assert rules_sentence({"arms": {}, **found}).startswith(told)
    same = beside_rules({"base": scores[best]}, scores, splits[2])
    assert same["rules"]["difference"] == 0 and same["rules"]["p"] == 1
    assert same["rules"]["low"] < 0 < same["rules"]["high"]
    sentence = rules_sentence({"arms": {}, **same})
    assert sentence.startswith("It is not clear whether the base model beats the best rule")


def test_arms_that_met_other_records_are_not_compared(scores, trivial, splits):
    few = score_arms([one for one in controls(splits[2][:9]) if one["arm"] == "gold"], splits[2][:9])
    with pytest.raises(ScoreError, match="met different records"):
        compare_figure(scores[ARMS[0]], few["gold"])


@pytest.mark.parametrize("changes, told", [
    ({"data.dev_file": None}, "data.dev_file names no file"),
    ({"data.train_file": "data/none.jsonl"}, "data.train_file names none.jsonl, which is not there"),
    ({"data.dev_file": "README.md"}, "README.md")])
def test_rules_that_can_not_be_run_say_why(splits, changes, told):
    files = {f"data.{split}_file": f"data/training/kwanzaa_{split}.jsonl" for split in ("train", "dev")}
    found, why = run_rules(load_config(ROOT / "configs/demo.cpu.yaml", files | changes), splits[2])
    assert found == {} and told in why and "\n" not in why
    beside = beside_rules({}, found, splits[2], why)
    assert beside == {"rules_not_run": why, "refused_by_kind": {}}
    sentence = rules_sentence({"arms": {"adapter": {}}, **beside})
    assert sentence == f"Whether the adapter beats a rule without a model was not measured: {why}."


def test_a_run_fits_the_rules_on_its_own_files_and_tells_its_progress(splits, scores, monkeypatch):
    files = {f"data.{split}_file": f"data/training/kwanzaa_{split}.jsonl" for split in ("train", "dev")}
    clock, lines = iter(range(0, 100, 6)), []
    monkeypatch.setattr("kwanzaa_nb.evaluate.rules.time.monotonic", lambda: next(clock))
    found, why = run_rules(load_config(ROOT / "configs/demo.cpu.yaml", files), splits[2], lines.append)
    assert why == "" and {arm: one.rates for arm, one in found.items()} == {arm: one.rates for arm, one in scores.items()}
    assert [line.rpartition(", ")[2] for line in lines] == ["6 s", "12 s", "18 s"]


# hard negatives


def test_hard_kinds_are_those_that_the_data_calls_unanswered():
    assert HARD_KINDS == UNANSWERED


def test_hard_negatives_have_passages_about_the_subject():
    def of(name, answerable, *docs, **more):
        chunks = [{"chunk_id": f"{doc}-{place}", "doc_id": doc, "text": "It sailed."}
                  for place, doc in enumerate(docs)]
        return {**record("Who?", name=name, answerable=answerable, **more), "chunks": chunks}

    with_gold = of("with", True, "a", "b", pair_id="p", expected={"gold_chunk_ids": ["a-0"]})
    follow = of("follow", False, "a")
    first = [{"role": "user", "content": "### Instruction:\nWhen?"}, {"role": "assistant", "content": REFUSAL}]
    follow["messages"] = [*first, *follow["messages"], first[1]]
    asked = [with_gold, of("near", False, "x", kind="near_miss"), follow,
             of("same document", False, "c", "a", pair_id="p"),
             of("other documents", False, "c", "b", pair_id="p"), of("alone", False, "a"),
             of("nothing shown", False, kind="near_miss"), of("answerable", True, "a", kind="near_miss"),
             of("unknown", None, "a", kind="near_miss")]
    assert hard_negatives(asked) == {"near", "follow", "same document"}


def test_hard_negatives_are_harder_than_the_rest_and_stand_first(splits, scores, trivial):
    for split in splits[1:]:
        assert 0.3 < len(hard_negatives(split)) / sum(one["answerable"] is False for one in split) < 0.8
    hard = hard_negatives(splits[2])
    for arm in ARMS[1:]:
        asked = [one for one in scores[arm].outcomes if one.case.answerable is False]
        sides = [[one.refusal_right for one in asked if (one.case.id in hard) is is_hard] for is_hard in (True, False)]
        near, rest = (sum(side) / len(side) for side in sides)
        assert near < rest - 0.2 and scores[arm].rates["hard_negative_accuracy"].sides[0].value == near
    told = beside_rules({"adapter": scores[ARMS[0]]}, scores, splits[2])
    results = {"arms": {"adapter": scores[ARMS[0]].to_dict()}, "controls": {arm: one.to_dict()["rates"] for arm, one in scores.items()}, **told}
    results["refused_by_kind"] = {"adapter": told["refused_by_kind"][ARMS[0]], **told["refused_by_kind"]}
    table = kinds_table(results)
    assert table.columns == ["kind", "records", "adapter", *ARMS] and table.rows[0][0].startswith("hard negatives")
    assert sum(int(row[1]) for row in table.rows[1:]) == sum(one["answerable"] is False for one in splits[2])
    assert hard_sentence(results).startswith(f"{len(hard)} records are hard negatives") and "the rule 0." in hard_sentence(results)
    assert kinds_table({"arms": {}}) is None and hard_sentence({"arms": {"base": {"rates": {}}}}) == ""


# the difference of a figure


def test_the_interval_of_a_difference_covers_it_and_widens_with_documents():
    random, covered, wide = np.random.default_rng(3), 0, 0
    for _ in range(300):
        documents = np.repeat(np.arange(40), random.integers(2, 9, 40))
        ease = random.beta(2, 2, 40)[documents] * 0.6 + 0.1
        moves = (random.random(len(documents)) < ease + 0.15).astype(int) - (random.random(len(documents)) < ease)
        first = random.random(len(documents)) < 0.5
        parts = [(weight, moves[of].tolist(), documents[of].tolist()) for weight, of in ((0.75, first), (0.25, ~first))]
        _, low, high = weighted_interval(parts)
        covered += low <= 0.15 <= high
        wide += high - low
    assert 0.92 <= covered / 300 <= 0.98 and 0.1 < wide / 300 < 0.4


def test_a_handful_of_records_or_one_document_decides_nothing():
    assert weighted_interval([(1.0, [1] * 3, "abc")])[1] < 0 < weighted_interval([(1.0, [1] * 30, range(30))])[1]
    assert weighted_interval([(1.0, [1] * 30, [0] * 30)]) == (1.0, -1.0, 1.0)
    value, low, high = weighted_interval([(1.0, [0] * 30, range(30))])
    assert value == 0 and low == -high < 0


def test_the_test_by_document_is_the_exact_one_where_a_single_share_counts():
    for moves in ([1] * 8, [1, 1, 1, -1], [0, 0], [1, -1], [1] * 5 + [-1] * 2):
        found = paired_difference([(1.0, moves, range(len(moves)))])
        assert found.p == pytest.approx(sign_flip(moves)) and found.value == pytest.approx(sum(moves) / len(moves))
    by_document = paired_difference([(1.0, [1] * 8, [0] * 4 + [1] * 4)])
    assert by_document.p == pytest.approx(0.5) and by_document.clusters == 2
    swapped = paired_difference([(0.5, [1, 1, 0], "abc"), (0.5, [-1, 0, 0], "abd")])
    assert swapped.p == pytest.approx(sign_flip([0, 1]))


def test_sums_that_are_equal_tie():
    moves, documents = [1, 1, -1, -1, 1, 1, 1], [0, 0, 1, 1, 2, 3, 4]
    assert paired_difference([(1.0, moves, documents)]).p == pytest.approx(sign_flip([2, -2, 1, 1, 1]))
