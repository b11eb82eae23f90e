"Failures by code: each record once, every code named, and all texts escaped."

import html
import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from kwanzaa_nb.report.answer import marked_output
from kwanzaa_nb.report.failures import failure_html, show_failures
from kwanzaa_nb.evaluate.metrics import REFUSAL, controls, score_arms
from kwanzaa_nb.core.sentences import number_sentences
from kwanzaa_nb.core.record import read_records
from tiny import ROOT

RECORDS = read_records(ROOT / "data/training/kwanzaa_eval.jsonl")[:30]
CHUNKS = [{"chunk_id": "c1", "text": "It opened in 1966, they say. \"On time\", they say. It opened in 1966, they say."}, {"chunk_id": "c2", "text": "It closed <early>."}]


def written(evidence, text="It did. [1]"):
    return json.dumps({"evidence": evidence, "answer": {"completeness": "complete", "text": text},
                       "unknowns": {"unsupported_claims": [], "missing_context": [], "clarifying_questions": []}}, ensure_ascii=False)


def test_every_code_is_named_and_every_record_shown_once_under_its_commonest():
    outputs = controls(RECORDS)
    for arm, scores in score_arms(outputs, RECORDS).items():
        shown = show_failures(scores, RECORDS, [output for output in outputs if output["arm"] == arm], each=1000)
        assert re.findall(r"<h4>(\w+): (\d+) of 30 records", shown.html) == [(code, str(count)) for code, count in scores.codes.items()]
        failed = [one.case.id for one in scores.outcomes if one.codes]
        assert sorted(re.findall(r"<small>([^:<]+): ", shown.html)) == sorted(failed)
        for group in shown.html.split("<h4>")[1:]:
            code, rank = group.split(":")[0], list(scores.codes)
            for told in re.findall(r"<small>[^:<]+: ([^<]*)</small>", group):
                assert min(told.split(", "), key=rank.index) == code
        assert all(code in repr(shown) for code in scores.codes) and (repr(shown) == "none") == (not failed)
    few = show_failures(scores, RECORDS, [output for output in outputs if output["arm"] == arm], each=2)
    assert all(1 <= group.count("<details") <= 2 for group in few.html.split("<h4>")[1:] if "commoner code" not in group)


def test_the_prompt_the_output_and_the_target_are_there():
    record = next(record for record in RECORDS if record["answerable"])
    outputs = [{"id": one["id"], "arm": "a", "raw": "Sure, <it> is.", "finish_reason": "stop"} for one in RECORDS]
    shown = show_failures(score_arms(outputs, RECORDS)["a"], RECORDS, outputs, each=1000).html
    assert "Sure, &lt;it&gt; is." in shown and "<it>" not in shown and shown.count("<details open") == 1
    assert re.sub(r"<[^>]*>", "", shown).count("Written") >= len(RECORDS)
    for chunk in record["chunks"]:
        assert chunk["chunk_id"] in shown


def test_numbers_and_marks_are_coloured_by_whether_they_lead_to_a_sentence():
    for evidence, text, kinds in (([1, 4], "It did. [4][1]", "1 there, 4 there, [4] there, [1] there"), ([5], "So. [5]", "5 astray, [5] astray"),
                                  ([2], "In 1966. [3] [2] [2, 3]", "2 there, [3] astray, [2] there, [2, 3] astray"), ([], "No. [1]", "[1] astray"), (["x 3"], "a", "3 astray")):
        shown = marked_output(written(evidence, text), CHUNKS)
        assert ", ".join(f"{piece} {kind}" for kind, piece in re.findall('<b class="([a-z]+)">(.*?)</b>', shown)) == kinds
        assert html.unescape(re.sub("<[^>]*>", "", shown)) == written(evidence, text)
    assert marked_output("", CHUNKS) == "" and marked_output("x" * 2000, []).endswith("x …") and marked_output(REFUSAL, []).count("<") == 0
    assert marked_output("Sure. [1]", CHUNKS) == "Sure. [1]" and marked_output('[{"evidence":[1]}]', CHUNKS).count("<") == 0
    cut = marked_output(written([1], "In 1966. [1]"), CHUNKS, longest=15)
    assert cut == '{&#34;evidence&#34;: [<b class="there">1</b> …'


def test_every_sentence_stands_behind_its_number_and_the_named_ones_are_highlighted():
    failed = {"id": "r", "codes": ["c"], "notes": ["n"], "question": "When?", "expected": REFUSAL, "raw": written([3, 9], "In 1966. [3]")}
    shown = failure_html(failed, {"chunks": CHUNKS})
    numbers = [int(number) for number in re.findall(r'<small class="number">\[(\d+)\]</small> ', shown)]
    assert numbers == [sentence.number for sentence in number_sentences(CHUNKS)] == [1, 2, 3, 4]
    assert re.findall("<mark>.*?</sup>", shown) == ["<mark>It opened in 1966, they say.</mark><sup>[3]</sup>"]
    assert '<small class="number">[3]</small> <mark>' in shown and "It closed &lt;early&gt;." in shown
    assert "<mark>" not in failure_html({**failed, "raw": "Sure! [3]"}, {"chunks": CHUNKS}) and "nothing was retrieved" in failure_html(failed, {})


ANYTHING = st.recursive(st.none() | st.integers() | st.text(max_size=20), lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=8), one, max_size=3))


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=80), ANYTHING.map(json.dumps), ANYTHING.map(lambda one: json.dumps({"evidence": one})),
                 st.text(max_size=30).map(lambda text: written([1, text], text=text + "</pre><script>"))))
def test_nothing_that_was_written_breaks_out(raw):
    shown = marked_output(raw, CHUNKS)
    assert not re.search(r"<(?!b class=\"(?:there|astray)\">|/b>)", shown)
    outputs = [{"id": RECORDS[0]["id"], "arm": "a", "raw": raw, "finish_reason": "stop"}]
    show_failures(score_arms(outputs, RECORDS[:1])["a"], RECORDS[:1], outputs)._repr_html_().encode()


def test_half_a_surrogate_pair_and_depth_are_shown_too():
    for raw in ('{"evidence":["\\ud800"],"answer":{"text":"\ud800"}}', "[" * 100_000):
        outputs = [{"id": RECORDS[0]["id"], "arm": "a", "raw": raw, "finish_reason": "stop"}]
        assert show_failures(score_arms(outputs, RECORDS[:1])["a"], RECORDS[:1], outputs)._repr_html_().encode()
