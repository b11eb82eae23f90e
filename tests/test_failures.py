"Failures by code: each record once, every code named, and all texts escaped."

import html
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ROOT

from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.core.sentences import number_sentences
from kwanzaa_nb.evaluate.metrics import REFUSAL, controls, score_arms
from kwanzaa_nb.report.answer import marked_output
from kwanzaa_nb.report.failures import failure_html, show_failures

RECORDS = read_records(ROOT / "data/training/kwanzaa_eval.jsonl")[:30]
CHUNKS = [{"chunk_id": "c1", "text": "It opened in 1966, they say. \"On time\", they say. "
                                     "It opened in 1966, they say."},
          {"chunk_id": "c2", "text": "It closed <early>."}]


def written(evidence, text="It did. [1]"):
    unknowns = {"unsupported_claims": [], "missing_context": [], "clarifying_questions": []}
    value = {"evidence": evidence, "answer": {"completeness": "complete", "text": text},
             "unknowns": unknowns}
    return json.dumps(value, ensure_ascii=False)


def shown_of(raw, records=RECORDS, **options):
    "The failures of an arm that writes the same for every record."
    outputs = [{"id": record["id"], "arm": "a", "raw": raw, "finish_reason": "stop"}
               for record in records]
    return show_failures(score_arms(outputs, records)["a"], records, outputs, **options)


def test_every_code_is_named_and_every_record_shown_once_under_its_commonest():
    outputs = controls(RECORDS)
    for arm, scores in score_arms(outputs, RECORDS).items():
        own = [output for output in outputs if output["arm"] == arm]
        shown = show_failures(scores, RECORDS, own, each=1000)
        counts = re.findall(r"<h4>(\w+): (\d+) of 30 records", shown.html)
        assert counts == [(code, str(count)) for code, count in scores.codes.items()]
        failed = [one.case.id for one in scores.outcomes if one.codes]
        assert sorted(re.findall(r"<small>([^:<]+): ", shown.html)) == sorted(failed)
        for group in shown.html.split("<h4>")[1:]:
            code, rank = group.split(":")[0], list(scores.codes)
            for told in re.findall(r"<small>[^:<]+: ([^<]*)</small>", group):
                assert min(told.split(", "), key=rank.index) == code
        assert all(code in repr(shown) for code in scores.codes)
        assert (repr(shown) == "none") == (not failed)
    few = show_failures(scores, RECORDS, own, each=2).html.split("<h4>")[1:]
    assert all(1 <= group.count("<details") <= 2 for group in few if "commoner code" not in group)


def test_the_prompt_the_output_and_the_target_are_there():
    shown = shown_of("Sure, <it> is.", each=1000).html
    assert "Sure, &lt;it&gt; is." in shown and "<it>" not in shown
    assert shown.count("<details open") == 1
    assert re.sub(r"<[^>]*>", "", shown).count("Written") >= len(RECORDS)
    for chunk in next(record for record in RECORDS if record["answerable"])["chunks"]:
        assert chunk["chunk_id"] in shown


def test_a_follow_up_stands_below_the_turns_before_it():
    turns = [("system", "s"), ("user", "### Instruction:\nWho?"), ("assistant", written([1])),
             ("user", "### Instruction:\n<When>?"), ("assistant", REFUSAL)]
    messages = [{"role": role, "content": content} for role, content in turns]
    record = {"id": "r", "chunks": CHUNKS, "answerable": False, "messages": messages}
    shown = shown_of("Sure!", [record]).html
    assert "Asked before: Who?<br>Answered: It did. [1]" in shown and "&lt;When&gt;?" in shown


@pytest.mark.parametrize("evidence, text, kinds", [
    ([1, 4], "It did. [4][1]", "1 there, 4 there, [4] there, [1] there"),
    ([5], "So. [5]", "5 astray, [5] astray"), (["x 3"], "a", "3 astray"),
    ([2], "In 1966. [3] [2] [2, 3]", "2 there, [3] astray, [2] there, [2, 3] astray"),
    ([], "No. [1]", "[1] astray")])
def test_numbers_and_marks_are_coloured_by_whether_they_lead_to_a_sentence(evidence, text, kinds):
    shown = marked_output(written(evidence, text), CHUNKS)
    found = re.findall('<b class="([a-z]+)">(.*?)</b>', shown)
    assert ", ".join(f"{piece} {kind}" for kind, piece in found) == kinds
    assert html.unescape(re.sub("<[^>]*>", "", shown)) == written(evidence, text)


def test_what_is_no_answer_is_shown_plainly_and_a_long_one_cut():
    assert marked_output("", CHUNKS) == "" and marked_output("x" * 2000, []).endswith("x …")
    assert marked_output("Sure. [1]", CHUNKS) == "Sure. [1]"
    assert "<" not in marked_output(REFUSAL, []) + marked_output('[{"evidence":[1]}]', CHUNKS)
    cut = marked_output(written([1], "In 1966. [1]"), CHUNKS, longest=15)
    assert cut == '{&#34;evidence&#34;: [<b class="there">1</b> …'


def test_every_sentence_stands_behind_its_number_and_the_named_ones_are_highlighted():
    failed = {"id": "r", "codes": ["c"], "notes": ["n"], "question": "When?", "expected": REFUSAL,
              "raw": written([3, 9], "In 1966. [3]")}
    shown = failure_html(failed, {"chunks": CHUNKS})
    numbers = [*map(int, re.findall(r'<small class="number">\[(\d+)\]</small> ', shown))]
    assert numbers == [one.number for one in number_sentences(CHUNKS)] == [1, 2, 3, 4]
    marked = "<mark>It opened in 1966, they say.</mark><sup>[3]</sup>"
    assert re.findall("<mark>.*?</sup>", shown) == [marked]
    assert f'<small class="number">[3]</small> {marked}' in shown
    assert "It closed &lt;early&gt;." in shown
    assert "<mark>" not in failure_html({**failed, "raw": "Sure! [3]"}, {"chunks": CHUNKS})
    assert "nothing was retrieved" in failure_html(failed, {})


ANYTHING = st.recursive(
    st.none() | st.integers() | st.text(max_size=20),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=8), one, max_size=3))


@settings(max_examples=150, deadline=None)
@given(st.one_of(
    st.text(max_size=80), ANYTHING.map(json.dumps),
    ANYTHING.map(lambda one: json.dumps({"evidence": one})),
    st.text(max_size=30).map(lambda text: written([1, text], text=text + "</pre><script>"))))
def test_nothing_that_was_written_breaks_out(raw):
    shown = marked_output(raw, CHUNKS)
    assert not re.search(r"<(?!b class=\"(?:there|astray)\">|/b>)", shown)
    shown_of(raw, RECORDS[:1])._repr_html_().encode()


@pytest.mark.parametrize("raw", [
    '{"evidence":["\\ud800"],"answer":{"text":"\ud800"}}', "[" * 100_000], ids=["half", "deep"])
def test_half_a_surrogate_pair_and_depth_are_shown_too(raw):
    assert shown_of(raw, RECORDS[:1])._repr_html_().encode()
