"Hundreds of forged answers: few may pass, and true paraphrases must."

import json
import random
from itertools import islice

import pytest
from tiny import ROOT

from kwanzaa_nb.core.answer import find_marks
from kwanzaa_nb.bench.forgeries import (
    FORGERIES, PARAPHRASES, PROBES, REFUSALS, forge, forgeable, negation_inserted, padded_quote, passes, target)
from kwanzaa_nb.evaluate.instrument import stored
from kwanzaa_nb.evaluate.metrics import judge, read_cases
from kwanzaa_nb.core.sentences import number_sentences
from kwanzaa_nb.core.text import split_claims


OPEN = {"subject exchanged", "nearly"}  # not yet under one in twenty
MANY = 20  # sorts of which the records give two hundred cases


@pytest.fixture(scope="module")
def records():
    return forgeable(ROOT / "data/training")


@pytest.fixture(scope="module")
def rates(records):
    return forge(records)


def test_gold_passes(records):
    assert sum(record["answerable"] for record in records) >= 500 and sum(not record["answerable"] for record in records) >= 500
    assert all(passes(record, record["messages"][-1]["content"]) for record in records)


@pytest.mark.parametrize("sort", [*FORGERIES, *REFUSALS])
def test_a_forgery_passes_in_less_than_one_case_of_twenty_but_for_what_is_open(rates, sort):
    assert rates[sort].total >= (1 if sort in OPEN else 10), str(rates[sort])
    assert rates[sort].value < (0.3 if sort in OPEN else 0.05), str(rates[sort])


def test_most_sorts_have_two_hundred_cases(rates):
    many = [sort for sort in (*FORGERIES, *REFUSALS) if rates[sort].total >= 200 and sort not in OPEN]
    assert len(many) >= MANY, {sort: rates[sort].total for sort in (*FORGERIES, *REFUSALS)}


def test_the_stored_figures_are_those_of_the_committed_records(rates):
    "If not, `python -m kwanzaa_nb.bench.benchmarks gaming` renews them."
    measured = {row["sort"]: (row["passed"], row["total"]) for row in stored("gaming")["measured"]}
    assert measured == {sort: (rate.passed, rate.total) for sort, rate in rates.items()}


@pytest.mark.parametrize("sort", PROBES)
def test_the_false_claim_of_a_probe_fails_and_the_true_one_passes(rates, sort):
    false, true = rates[f"probe: {sort}"], rates[f"true probe: {sort}"]
    assert false.total >= 100 and false.value < 0.05 and true.value > 0.9, f"{false}, {true}"


@pytest.mark.parametrize("sort", PARAPHRASES)
def test_each_sort_of_paraphrase_passes_in_most_cases(rates, sort):
    assert rates[sort].value > 0.9, str(rates[sort])


def test_paraphrases_pass_in_most_cases(rates):
    passed, total = (sum(getattr(rates[sort], name) for sort in PARAPHRASES) for name in ("passed", "total"))
    assert total >= 200 and passed / total > 0.9, f"{passed} of {total}"


def test_a_name_keeps_its_capital_inside_a_sentence():
    chunks = [{"chunk_id": "c1", "gold": True, "text": "The school of Ada Reed opened in 1912. Later Wells printed it."}]
    text = json.dumps({"evidence": [1], "answer": {"text": "Ada Reed came in 1912. [1]"}})
    record = {"chunks": chunks, "messages": [{"content": text}]}
    for said, inside in (("Ada Reed left.", "that Ada Reed"), ("Wells printed it.", "that Wells"), ("NAACP members met.", "that NAACP"),
                         ("The school opened.", "that the school")):
        assert inside in negation_inserted(said, record, random.Random(0))
    assert ", and Ada Reed came in 19" in padded_quote("Ada Reed came in 1912. [1]", record, random.Random(0))


def test_forgeries_are_whole_outputs_that_the_rest_of_the_scoring_reads(records):
    "What fails shall fail by what it says, not by being broken."
    chance, readable = random.Random(1), set()
    answered = [record for record in records if record["answerable"]]
    for sort, change in FORGERIES.items():
        made = ((record, change(record, chance)) for record in answered)
        for record, raw in islice(((record, raw) for record, raw in made if raw), 40):
            outcome = judge(read_cases([record])[0], {"id": record["id"], "raw": raw, "finish_reason": "stop"})
            assert outcome.parsed and outcome.fits, (sort, outcome.notes)
            if outcome.valid:
                readable.add(sort)
    assert readable == set(FORGERIES) - {"marks without evidence", "number that was not shown"}


@pytest.mark.parametrize("sort, code", [
    ("wrong chunk", "gold_chunk_not_cited"), ("neighbouring sentence", "claim_beside_evidence"), ("off-topic true quote", "answer_not_in_text"),
    ("marks without evidence", "answer_without_evidence"), ("number that was not shown", "number_not_shown"),
    ("every sentence of the chunk named", "too_many_marks"), ("a claim without a mark", "claim_without_mark")])
def test_a_forgery_of_the_evidence_fails_by_what_it_forges(records, sort, code):
    chance, codes = random.Random(2), []
    for record in records[:200]:
        raw = FORGERIES[sort](record, chance) if record["answerable"] else None
        if raw:
            codes.append(judge(read_cases([record])[0], {"id": record["id"], "raw": raw, "finish_reason": "stop"}).codes)
    assert sum(code in found for found in codes) > len(codes) / 10 > 1


def test_moved_evidence_and_marks_agree(records):
    "A neighbour is of the same chunk, a wrong chunk is another one, and in both the text stays but for its marks."
    chance, met = random.Random(3), set()
    for record in [one for one in records if one["answerable"]][:100]:
        shown, right = number_sentences(record["chunks"]), target(record)
        for sort in ("neighbouring sentence", "wrong chunk"):
            raw = FORGERIES[sort](record, chance)
            if raw:
                forged = json.loads(raw)
                assert set(find_marks(forged["answer"]["text"])) == set(forged["evidence"]) and not set(forged["evidence"]) & set(right["evidence"])
                said, meant = ([claim.text for claim in split_claims(one["answer"]["text"])] for one in (forged, right))
                assert said == meant
                places = [[shown[number - 1].place for number in one["evidence"]] for one in (forged, right)]
                assert places[0] == places[1] if sort == "neighbouring sentence" else not set(places[0]) & set(places[1])
                met.add(sort)
    assert len(met) == 2
