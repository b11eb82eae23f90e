"Failures by code: each record once, every code named, and nothing that was written breaks out."

import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from kwanzaa_nb.failures import marked_output, show_failures
from kwanzaa_nb.metrics import REFUSAL, controls, score_arms
from kwanzaa_nb.validation import read_records
from tiny import ROOT

RECORDS = read_records(ROOT / "data/training/kwanzaa_eval.jsonl")[:30]
TEXTS = {"c1": "It opened in 1966, they say: \"on time\"."}


def written(*citations, text="It did. [1]"):
    return json.dumps({"citations": [{"quote": quote, "chunk_id": chunk_id} for quote, chunk_id in citations], "answer": {"completeness": "complete", "text": text},
                       "unknowns": {"unsupported_claims": [], "missing_context": [], "clarifying_questions": []}}, ensure_ascii=False)


def test_every_code_is_named_and_every_record_shown_once_under_its_commonest():
    samples = controls(RECORDS)
    for arm, scores in score_arms(samples, RECORDS).items():
        shown = show_failures(scores, RECORDS, [sample for sample in samples if sample["arm"] == arm], each=1000)
        assert re.findall(r"<h4>(\w+): (\d+) of 30 records", shown.html) == [(code, str(count)) for code, count in scores.codes.items()]
        failed = [one.case.id for one in scores.outcomes if one.codes]
        assert sorted(re.findall(r"<small>([^:<]+): ", shown.html)) == sorted(failed)
        for group in shown.html.split("<h4>")[1:]:
            code, rank = group.split(":")[0], list(scores.codes)
            for told in re.findall(r"<small>[^:<]+: ([^<]*)</small>", group):
                assert min(told.split(", "), key=rank.index) == code
        assert all(code in repr(shown) for code in scores.codes) and (repr(shown) == "none") == (not failed)
    few = show_failures(scores, RECORDS, [sample for sample in samples if sample["arm"] == arm], each=2)
    assert all(1 <= group.count("<details") <= 2 for group in few.html.split("<h4>")[1:] if "commoner code" not in group)


def test_the_prompt_the_output_and_the_target_are_there():
    record = next(record for record in RECORDS if record["answerable"])
    samples = [{"id": one["id"], "arm": "a", "raw": "Sure, <it> is.", "finish_reason": "stop"} for one in RECORDS]
    shown = show_failures(score_arms(samples, RECORDS)["a"], RECORDS, samples, each=1000).html
    assert "Sure, &lt;it&gt; is." in shown and "<it>" not in shown and shown.count("<details open") == 1
    assert re.sub(r"<[^>]*>", "", shown).count("written") >= len(RECORDS)
    for chunk in record["chunks"]:
        assert chunk["chunk_id"] in shown


def test_quotes_are_green_where_they_stand_and_red_elsewhere():
    for quote, chunk_id, kind in (("in 1966", "c1", "there"), ('say: "on time"', "c1", "there"), ("in 1967", "c1", "not-there"), ("in 1966", "c2", "not-there")):
        shown = marked_output(written((quote, chunk_id)), TEXTS)
        assert re.findall('class="([a-z-]+)"', shown) == [kind]
    assert "<mark" not in marked_output(written(("", "c1")), TEXTS) and marked_output("", TEXTS) == ""
    assert marked_output("x" * 2000, {}).endswith("x …") and marked_output(REFUSAL, {}).count("<") == 0


ANYTHING = st.recursive(st.none() | st.integers() | st.text(max_size=20), lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=8), one, max_size=3))


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=80), ANYTHING.map(json.dumps), ANYTHING.map(lambda one: json.dumps({"citations": one})),
                 st.text(max_size=30).map(lambda text: written((text, "c1"), text=text + "</pre><script>"))))
def test_nothing_that_was_written_breaks_out(raw):
    shown = marked_output(raw, TEXTS)
    assert not re.search(r"<(?!mark class=\"(?:not-)?there\">|/mark>)", shown)
    samples = [{"id": RECORDS[0]["id"], "arm": "a", "raw": raw, "finish_reason": "stop"}]
    show_failures(score_arms(samples, RECORDS[:1])["a"], RECORDS[:1], samples)._repr_html_().encode()


def test_half_a_surrogate_pair_and_depth_are_shown_too():
    for raw in ('{"citations":[{"quote":"\\ud800","chunk_id":"c1"}]}', "[" * 100_000):
        samples = [{"id": RECORDS[0]["id"], "arm": "a", "raw": raw, "finish_reason": "stop"}]
        assert show_failures(score_arms(samples, RECORDS[:1])["a"], RECORDS[:1], samples)._repr_html_().encode()
