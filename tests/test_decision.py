"The decision: thresholds, calibration and its error."

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ROOT, tiny_tokenizer
from tokenizers import Regex, pre_tokenizers

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.model.decision import (
    DECISION, NUMBERS, REFUSING, Calibration, calibrate, calibration_error, curve, decision_tokens,
    judge_decision, threshold,
)
from kwanzaa_nb.model.load import load_tokenizer

PAIRS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=40).filter(lambda rows: len({side for _, side in rows}) == 2)


def test_a_threshold_by_hand():
    found = threshold([0.9, 0.6, 0.4, 0.2], [True, False, True, False], 0.5)
    assert (found.answered, found.refused, found.coverage, found.risk, found.balanced) == (0.5, 0.5, 0.5, 0.5, 0.5)
    none = threshold([0.9, 0.6], [True, False], 2.0)
    assert (none.answered, none.refused, none.coverage, none.risk) == (0.0, 1.0, 0.0, 0.0)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_a_curve_goes_from_answering_all_to_answering_none(rows):
    chances, truth = [list(part) for part in zip(*rows)]
    points = curve(chances, truth)
    assert (points[0].coverage, points[-1].coverage) == (1.0, 0.0)
    coverages = [point.coverage for point in points]
    assert coverages == sorted(coverages, reverse=True) and len(points) == len(set(chances)) + 1
    assert all(0 <= point.risk <= 1 and 0 <= point.balanced <= 1 for point in points)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_whatever_is_calibrated_stays_a_probability(rows):
    chances, truth = [list(part) for part in zip(*rows)]
    fitted = calibrate(chances, truth)
    assert fitted.records == len(rows)
    assert all(0 <= fitted(chance) <= 1 and math.isfinite(fitted(chance)) for chance in chances)


def test_calibration_finds_the_line_it_was_drawn_from():
    generator = np.random.default_rng(1)
    odds = generator.normal(0, 2, 40_000)
    truth = generator.random(40_000) < 1 / (1 + np.exp(-(0.5 * odds - 1)))
    fitted = calibrate(1 / (1 + np.exp(-odds)), truth)
    assert fitted.slope == pytest.approx(0.5, abs=0.03)
    assert fitted.intercept == pytest.approx(-1, abs=0.05)
    after = [fitted(chance) for chance in 1 / (1 + np.exp(-odds))]
    assert calibration_error(after, truth) < 0.01 < calibration_error(1 / (1 + np.exp(-odds)), truth)


def test_one_kind_alone_calibrates_nothing():
    assert calibrate([0.2, 0.3], [True, True]) == Calibration()
    assert calibrate([], []) == Calibration()
    assert Calibration()(0.3) == pytest.approx(0.3) and Calibration().records == 0


def test_sides_that_do_not_overlap_give_a_finite_line():
    fitted = calibrate([0.0, 0.1, 0.9, 1.0], [False, False, True, True])
    assert math.isfinite(fitted.slope) and fitted(0.0) < 0.5 < fitted(1.0)


def test_the_error_by_hand():
    assert calibration_error([0.5, 0.5], [True, False]) == 0.5
    assert calibration_error([0.5, 0.5], [True, False], bins=1) == 0.0
    assert calibration_error([], []) == 0.0


def test_the_judgement_of_an_arm():
    pairs = [(0.9, True), (0.8, True), (0.7, False), (0.4, True), (0.3, False), (0.2, False)]
    found = judge_decision(pairs, Calibration(1.0, 0.0, 7))
    assert found["auroc"] == pytest.approx(8 / 9) and found["reached"] == 6
    assert found["calibrated_on"] == 7
    assert found["balanced_at_half"] == pytest.approx(2 / 3)
    assert found["balanced_at_best"] == pytest.approx(5 / 6)


# where it stands in tokens

DIGITS = "0123456789"
PAIRS_OF_DIGITS = [(left, right) for left in DIGITS for right in DIGITS]
THREES = [("".join(pair), right) for pair in PAIRS_OF_DIGITS for right in DIGITS]


def grouped():
    "A tokenizer that cuts numbers into groups of up to three digits, as that of Llama 3 does."
    made = tiny_tokenizer(merges=[*PAIRS_OF_DIGITS, *THREES])
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"[0-9]{1,3}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.backend_tokenizer.model.ignore_merges = True
    return made


TOKENIZERS = {
    "single digits": (lambda: tiny_tokenizer(), '{"evidence":[', list("123456789"), "]"),
    "groups of digits": (grouped, '{"evidence":[', [str(number) for number in range(1, NUMBERS + 1)], "]"),
    "SmolLM2": (lambda: load_tokenizer(load_config(ROOT / "configs" / "demo.cpu.yaml")), '{"evidence":[', list("123456789"), "]"),
    "[] is one token": (lambda: tiny_tokenizer(merges=[("[", "]")]), '{"evidence":', ["["], "[]"),
    "\":[ is one token": (lambda: tiny_tokenizer(merges=[('"', ":"), ('":', "[")]), '{"evidence":[', list("123456789"), "]"),
    "\":[] is one token": (lambda: tiny_tokenizer(merges=[('"', ":"), ('":', "["), ('":[', "]")]), '{"evidence', ['":['], '":[]'),
    "[] before \":[": (lambda: tiny_tokenizer(merges=[("[", "]"), ('"', ":"), ('":', "[")]), '{"evidence', ['":['], '":'),
    "], is one token": (lambda: tiny_tokenizer(merges=[("]", ",")]), '{"evidence":[', list("123456789"), "],"),
    "[] and 1, are tokens": (lambda: tiny_tokenizer(merges=[("[", "]"), ("1", ",")]), '{"evidence":', ["["], "[]"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_deciding_tokens_of_tokenizers_that_cut_differently(name):
    make, before, answers, refusal = TOKENIZERS[name]
    tokenizer = make()
    start, answering, refusing = decision_tokens(tokenizer)
    assert tokenizer.decode(start) == before and tokenizer.decode([refusing]) == refusal
    assert {tokenizer.decode([token]) for token in answering} == set(answers)
    assert len(answering) == len(set(answering)) == len(answers)
    for evidence in ([1], [7, 12], [10, 9], [99], [412, 3], [999]):
        target = DECISION + ",".join(map(str, evidence)) + '],"answer":{"completeness":"partial"'
        tokens = tokenizer(target, add_special_tokens=False)["input_ids"]
        assert tuple(tokens[:len(start)]) == start and tokens[len(start)] in answering
    tokens = tokenizer(REFUSING + '{"completeness":"insufficient_data"', add_special_tokens=False)["input_ids"]
    assert tuple(tokens[:len(start)]) == start and tokens[len(start)] == refusing


def test_a_decision_that_has_no_place_of_its_own_is_not_found():
    assert decision_tokens(tiny_tokenizer(merges=[("[", "1")])) is None
