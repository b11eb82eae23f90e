"""The pages of a run and of all runs: content, damaged files, and escaped texts."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwanzaa_nb.run import cli
from kwanzaa_nb.report.runs import find_runs, refresh_reports, write_overview, write_reports
from kwanzaa_nb.core.record import question_of, read_records
from kwanzaa_nb.core.results import HEADLINES
from kwanzaa_nb.report.run import (
    RunFacts, chosen_samples, evaluation_verdict, read_run, run_costs, run_page, verdict_sentence)
from kwanzaa_nb.core.sentences import Sentence, number_sentences
from kwanzaa_nb.report.answer import (
    answer_html, follow_evidence, follow_sources, highlighted, named_sentences, readable_chunks,
    show_answer)
from made_run import EVIL, make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Three runs: two evaluated, one half done."
    root = tmp_path_factory.mktemp("project")
    made = [make_run(root, "rank-64"), make_run(root, "rank-8", 0.4, **{"adapter.r": 8}),
            make_run(root, "half", evaluated=False)]
    return root, made


def test_both_pages_are_written_when_a_stage_ends(runs):
    root, (first, *_) = runs
    refresh_reports(first, root)
    assert (first / "report.html").is_file()
    assert [path.name for path in write_reports(first, root)] == ["report.html", "index.html"]


def test_the_page_has_verdict_rates_samples_and_config(runs):
    root, (first, *_) = runs
    page = run_page(read_run(first, root))
    assert page.index("The adapter beats the best rule") < page.index("better in json valid") and re.search(r"best rule</t[dh]>", page) and "near_miss" in page.replace("<wbr>", "")
    assert "0.80 [" in page and "<mark>" in page and "kwanzaa run all --config again.yaml" in page
    assert "what it cost in money is not known" in page and page.count("Passed by the arm adapter") == 1 and "Failed by the arm adapter" in page


def test_nothing_breaks_out_and_nothing_is_loaded(runs):
    root, (first, *_) = runs
    for page in (run_page(read_run(first, root)),
                 write_overview(root / "outputs", root).read_text(encoding="utf-8")):
        assert EVIL not in page and "<img" not in page and "<script>window" not in page
        assert not re.search(r"(?:src|href)=.?(?:https?:)?//|@import|url\(", page)
    assert "&lt;img src=x" in run_page(read_run(first, root))


@pytest.mark.parametrize("break_it", [
    lambda folder: (folder / "manifest.json").write_text("{"), lambda folder: (folder / "evaluation/metrics.json").write_text('{"arms": 3}'),
    lambda folder: (folder / "evaluation/outputs.jsonl").unlink(), lambda folder: shutil.rmtree(folder / "evaluation"),
    lambda folder: (folder / "manifest.json").unlink(),
    lambda folder: (folder / "manifest.json").write_text('{"stages": {"train": {"status": "running", "config": {"run": null}}}}'),
])
def test_damaged_runs_have_a_page(runs, tmp_path, break_it):
    root, (first, *_) = runs
    shutil.copytree(first, tmp_path / "outputs" / "broken")
    break_it(tmp_path / "outputs" / "broken")
    assert "<h2>What it cost</h2>" in run_page(read_run(tmp_path / "outputs" / "broken", root))
    write_overview(tmp_path / "outputs", root)


def test_records_that_changed_since_the_evaluation_are_not_shown_beside_its_outputs(tmp_path):
    folder = make_run(tmp_path)
    page, records = run_page(read_run(folder, tmp_path)), tmp_path / "data/eval.jsonl"
    question = question_of(read_records(records)[0])
    assert "no longer those" not in page and "Samples" in page
    records.write_text(records.read_text(encoding="utf-8").replace("When ", "Where "), encoding="utf-8")
    facts = read_run(folder, tmp_path)
    assert not facts.records and "are no longer those that were judged" in run_page(facts) and question not in run_page(facts)
    records.unlink()
    assert "are not where the config says" in run_page(read_run(folder, tmp_path))


def test_runs_are_found_below_a_folder(runs):
    root, _ = runs
    assert find_runs(root / "outputs") == sorted(runs[1])


def test_an_older_result_is_said_to_be_older():
    metrics = {"arms": {"base": {}, "adapter": {}},
               "comparison": [{"metric": "m", "first": 1, "second": 0, "p_holm": 0.001}],
               "records": 5}
    assert "worse in m" in verdict_sentence(metrics) and "older" not in verdict_sentence(metrics)
    assert "older" in verdict_sentence(metrics, "failed")
    assert "no pair" in verdict_sentence({"arms": {"base": {}}})


def test_the_verdict_tells_what_is_had_without_skill_and_what_the_gates_ask():
    def rates(value, low=0.0):
        return {"rates": {name: {"value": value, "low": low, "high": 1.0, "total": 9}
                          for name in HEADLINES}}

    better = {"metric": "json_valid_rate", "first": 0, "second": 1, "p_holm": 0.001}
    controls = {"gold": rates(1.0)["rates"], "always_refuse": {**rates(0.4)["rates"], "refusal_correctness_rate": {"value": 0.6, "total": 9}}}
    metrics = {"arms": {"base": rates(0.1), "adapter": rates(0.5, 0.3)}, "comparison": [better], "records": 9, "controls": controls}
    zeroth, first, second, third = evaluation_verdict(metrics, {"json_valid_rate": 0.4, "citation_coverage_rate": 0.2}).split("\n\n")
    assert zeroth == "Whether the adapter beats a rule without a model was not measured: no rule was run."
    assert "better in json valid" in first and second == "Answerers without skill do better than the adapter in refusal correctness: always_refuse."
    assert third.startswith("Too low to publish: json_valid_rate") and "citation" not in third
    assert third.endswith("; it is not shown to beat the best rule.")
    beside = {"arm": "adapter", "rule": "best_sentence", "arm_value": 0.5, "rule_value": 0.4, "difference": 0.1, "low": 0.05, "high": 0.2, "p": 0.01,
              "records": 9, "documents": 3}
    assert "Good enough" in evaluation_verdict(metrics | {"rules": beside}, {"json_valid_rate": 0.2})
    assert "Too low" in evaluation_verdict(metrics | {"rules": beside | {"low": 0.0}}, {})
    alone = evaluation_verdict({"arms": {"base": rates(0.1)}, "comparison": [], "controls": controls}, {"json_valid_rate": 0.4})
    assert "base model in" in alone and "grounded answer: always_refuse" in alone and "publish" not in alone
    assert evaluation_verdict({"arms": {"base": rates(0.7)}, "controls": controls}, {}).endswith("in any headline but valid JSON.")


def test_samples_are_the_commonest_failures():
    rows = [{"id": str(place), "codes": ["b"] if place < 3 else ["a"] if place == 3 else [], "answerable": place % 2} for place in range(9)]
    passed, failed = chosen_samples({"records": rows, "codes": {"b": 3, "a": 1}})
    assert [row["id"] for row in failed] == ["0", "3", "1"] and len(passed) == 3
    assert {row["answerable"] for row in passed} == {0, 1}


TWICE = {"chunk_id": "x", "text": "It rained. They sang. It rained. Then <they> left.",
         "spans": [[0, 10], [11, 21], [22, 32], [33, 50]]}


def said(text, evidence):
    return {"evidence": evidence, "answer": {"completeness": "complete", "text": text},
            "unknowns": {}}


def test_the_sentence_that_was_named_is_highlighted_and_not_one_that_reads_the_same():
    shown = answer_html(said("It did. [3]", [3]), [TWICE])
    assert "It rained. They sang. <mark>It rained.</mark><sup>[3]</sup> Then &lt;they&gt; left." in shown
    assert '<b class="there">[3]</b>' in shown
    source = {"chunk_id": "x", "quote": "It rained.", "quote_start": 22, "quote_end": 32}
    complete = answer_html({"answer": {"text": "It did. [1]"}, "sources": [source]}, [TWICE])
    assert "<mark>It rained.</mark><sup>[1]</sup> Then" in complete
    assert complete.count("<mark>") == 1 and "wrong" not in complete
    other = {"chunk_id": "y", "text": "One. Two."}
    assert follow_evidence([5, 6], [TWICE, other])["[6]"] == Sentence(6, 1, "y", 5, 9, "Two.")


def test_overlapping_spans_are_joined_and_every_sentence_can_have_its_number():
    first, second, third = (Sentence(number, 0, "x", start, end, "…")
                            for number, start, end in ((1, 11, 32), (2, 0, 21), (3, 33, 50)))
    assert highlighted(TWICE["text"], [first, second, third]) == (
        "<mark>It rained. They sang. It rained.</mark><sup>[2][1]</sup> <mark>Then &lt;they&gt; left.</mark><sup>[3]</sup>")
    numbered = highlighted(TWICE["text"], [], number_sentences([TWICE]))
    assert re.sub("<[^>]*>", "", numbered) == "[1] It rained. [2] They sang. [3] It rained. [4] Then &lt;they&gt; left."
    assert "<mark>" not in numbered


def test_what_leads_nowhere_is_told():
    shown = answer_html(said(f"{EVIL} [1] [9] [2, 3]", [1, 7, "4", True, 0]), [TWICE])
    assert re.findall('<b class="([a-z]+)">([^<]*)</b>', shown) == [("there", "[1]"), ("astray", "[9]"), ("astray", "[2, 3]")]
    wrong = re.findall('<p class="wrong">([^<]*)</p>', shown)
    assert wrong == ["[9] leads nowhere", "[2, 3] leads nowhere", "[7] was not shown", "[&#39;4&#39;] is not the number of a sentence",
                     "[True] is not the number of a sentence", "[0] was not shown"]
    assert "<img" not in shown and "evidence is not a list" in answer_html(said("a", 4), [])


@pytest.mark.parametrize("source, wrong", [
    ({"chunk_id": "y", "quote_start": 0,
      "quote_end": 10}, "leads to no chunk that was shown, but to 'y'"),
    ({}, "leads to no chunk that was shown, but to NoneType"),
    ({"chunk_id": "x", "quote_start": 0, "quote_end": 51}, "does not stand at 0 to 51 of x"),
    ({"chunk_id": "x", "quote_start": 5}, "does not stand at 5 to NoneType of x"),
    ({"chunk_id": "x", "quote_start": 0, "quote_end": 10,
      "quote": "It snowed."}, "does not stand at 0 to 10 of x"), ({"chunk_id": "x"}, ""),
    ({"chunk_id": "x", "quote_start": 0, "quote_end": 10, "quote": "It rained."}, "")])
def test_a_source_stands_where_it_says_or_is_told_to_be_wrong(source, wrong):
    found = follow_sources([source], [TWICE])["[1]"]
    assert found == wrong if wrong else isinstance(found, Sentence)
    assert ('class="wrong"' in answer_html({"sources": [source], "answer": {"text": "a [1]"}}, [TWICE])) == bool(wrong)


ODD = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["\ud800", EVIL, "[1]", 10 ** 400]),
                   lambda one: st.lists(one, max_size=4) | st.dictionaries(st.sampled_from(["chunk_id", "text", "spans", "quote_start", "quote_end", "quote", "year"]), one), max_leaves=9)
ODD_ANSWERS = ODD | st.fixed_dictionaries({}, optional={name: ODD for name in ("evidence", "sources")} | {
    "answer": ODD | st.fixed_dictionaries({}, optional={name: ODD for name in ("text", "completeness", "confidence")}),
    "unknowns": ODD | st.fixed_dictionaries({}, optional={name: ODD for name in ("missing_context", "out_of_scope")})})


@settings(max_examples=200, deadline=None)
@given(ODD_ANSWERS, st.lists(ODD, max_size=3))
def test_whatever_is_odd_is_shown_and_escaped(answer, chunks):
    shown = show_answer(answer, chunks)._repr_html_()
    assert shown.encode()
    assert set(re.findall("<[^>]*>", shown.split("</style>")[1])) <= { '<div class="kz">', '<div class="answer">', "</div>", '<p class="said">', '<p class="facts">', '<p class="wrong">', "<p>", "</p>", "<b>", '<b class="there">', '<b class="astray">', "</b>", '<div class="chunk">', '<div class="chunk used">', "<small>", "</small>", "<mark>", "</mark>", "<sup>", "</sup>"}
    assert readable_chunks(readable_chunks(chunks)) == [{**chunk, "source": "", "spans": chunk["spans"]} for chunk in readable_chunks(chunks)]


def test_an_output_as_deep_as_a_parser_reads_is_shown():
    for depth in (900, 100_000):
        raw = '{"evidence":' + "[" * depth + "]" * depth + ',"answer":{"text":"a"},"unknowns":{"missing_context":' + "[" * depth + "]" * depth + "}}"
        assert not named_sentences(raw, [TWICE])
    nested = []
    for _ in range(5000):
        nested = [nested]
    assert "[list] is not the number" in answer_html(said("a", nested) | {"unknowns": {"missing_context": nested}}, [])


def test_the_commands(runs, monkeypatch, capsys):
    root, (first, *_) = runs
    monkeypatch.chdir(root)
    assert cli.main(["runs"]) == 0 and "rank-64" in capsys.readouterr().out
    assert cli.main(["report", "outputs"]) == 0
    assert capsys.readouterr().out.count("report.html") == 3
    assert cli.main(["report", "nowhere"]) == 2
    assert "There is no folder nowhere" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_the_overview_in_a_browser(runs):
    "The script runs, and hostile text stays text."
    root, (first, *_) = runs
    write_overview(root / "outputs", root)
    for page, wanted in ((root / "outputs/index.html", "Settings that differ"),
                         (first / "report.html", "What it cost")):
        done = subprocess.run(["chromium", "--headless", "--no-sandbox",
                               "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
                               page.as_uri()], capture_output=True, text=True, timeout=300,
                              check=True)
        assert wanted in done.stdout and "CONSOLE" not in done.stderr
        assert "window.evil" not in re.sub(r"&lt;.*?&gt;|<script type=.*?</script>", "", done.stdout, flags=re.DOTALL) or "<img" not in done.stdout


@pytest.mark.parametrize("costs, told", [
    ({"new_tokens_total": 90, "new_tokens_known": 2, "seconds_total": 3}, "base: 90 tokens in"),
    ({"new_tokens_total": 90, "seconds_total": 3}, "base: 90 tokens in"),
    ({"new_tokens_total": 90,
      "new_tokens_known": 1}, r"base: 90 tokens \(of 1 outputs; of the others it is not known\)"),
    *[({"new_tokens_total": odd, "new_tokens_known": 0}, "base: an unknown number of tokens")
      for odd in (None, float("nan"), float("inf"), "9")]])
def test_tokens_that_nobody_counted_are_unknown(tmp_path, costs, told):
    facts = RunFacts(tmp_path, {"stages": {}},
                     {"arms": {"base": {"rates": {}, "costs": costs,
                                        "records": [{"id": "a"}, {"id": "b"}]}}}, {}, {}, ())
    assert re.match(told, run_costs(facts)["tokens"][0]) and "nan" not in run_page(facts)
