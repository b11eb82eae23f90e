"The page of an evaluation: it is complete, escapes every text, and loads nothing."

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwanzaa_nb.core.results import HEADLINES, METRICS, p_text
from kwanzaa_nb.evaluate.metrics import REFUSAL, compare, controls, score_arms
from kwanzaa_nb.report.evaluation import TABLE_HEAD, arms_table, evaluation_page, page_rows

CHUNK = {"chunk_id": "c1", "text": "It opened in 1966. It closed.", "gold": True,
         "citation_label": "a label"}


def records(question="When?", text=CHUNK["text"]):
    target = json.dumps({
        "evidence": [1], "answer": {"completeness": "complete", "text": "In 1966. [1]"},
        "unknowns": {"unsupported_claims": [], "missing_context": [], "clarifying_questions": []}})
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": f"c\n### Instruction:\n{question}"}, {"role": "assistant", "content": target}]
    answered = {"id": "r1", "category": "citation_required", "answerable": True,
                "chunks": [{**CHUNK, "text": text}], "messages": messages,
                "expected": {"answer": "1966", "gold_chunk_ids": ["c1"]}}
    return [answered, {**answered, "id": "r2", "answerable": False, "chunks": [],
                       "category": "refusal", "messages": [*messages[:2],
                                                           {"role": "assistant",
                                                            "content": REFUSAL}]}]


def page_of(raw, **more):
    asked = records(**more)
    outputs = [{"id": record["id"], "arm": arm, "raw": raw, "finish_reason": "stop", "p_answer": 0.25} for record in asked for arm in ("base", "adapter")]
    return evaluation_page("A <title>", asked, outputs, score_arms(outputs, asked),
                           score_arms(controls(asked), asked))


class Page(HTMLParser):
    "What a browser makes of a page: its tags and its text."

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""
        self.feed(str(page))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def rows_of(raw, **more):
    asked = records(**more)
    outputs = [{"id": record["id"], "arm": arm, "raw": raw, "finish_reason": "stop", "p_answer": 0.25} for record in asked for arm in ("base", "adapter")]
    return page_rows(asked, outputs, score_arms(outputs, asked))


def test_the_earlier_turns_of_a_conversation_are_in_the_page():
    record, _ = records()
    system, user, target = record["messages"]
    follow = {"role": "user", "content": "### Instruction:\nAnd <who> was it?"}
    record["messages"] = [system, user, target, follow, target]
    outputs = [{"id": "r1", "arm": "base", "raw": "", "finish_reason": "stop"}]
    page = Page(evaluation_page("t", [record], outputs, score_arms(outputs, [record])))
    assert "And <who> was it?" in page.text
    assert "Asked before: When?Answered: In 1966. [1]" in page.text


def test_every_record_and_arm_is_in_the_page():
    page, rows = page_of("Sure!"), rows_of("Sure!")
    assert [row["id"] for row in rows] == ["r1", "r2"]
    assert list(rows[0]["arms"]) == ["base", "adapter"]
    first = rows[0]
    assert first["question"] == "When?"
    assert [chunk["chunk_id"] for chunk in first["chunks"]] == ["c1"]
    assert first["facts"]["answerable"] == "yes"
    assert first["arms"]["base"]["raw"] == "Sure!" and first["arms"]["base"]["p_answer"] == 0.25
    assert first["facts"]["arms"]["base"]["code"]
    assert page.count("<details data-facts=") == 2 and page.count("<b>adapter</b>") == 2
    assert page.count("P(answers) 0.25") == 4
    assert "A &lt;title&gt;" in page and "always_<wbr>refuse" in page
    assert "a label · holds the answer" in page


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=60),
       st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=30))
def test_nothing_that_was_written_breaks_out(raw, question):
    tags = set(Page(page_of("Sure!")).tags)
    for odd in (raw, raw + "</script><script>alert(1)</script>", "<!--" + raw,
                "'\"><img src=x>" + raw):
        page = Page(page_of(odd, question=question or "?", text="A chunk. " + odd))
        assert set(page.tags) <= tags | {"mark", "sup", "b"}
        assert page.tags.count("script") == page.tags.count("style") == 1
        assert page.text.count(odd or "(nothing)") >= 4  # two arms of two records


def answer(evidence, text):
    return json.dumps({"evidence": evidence, "answer": {"completeness": "complete",
                                                        "text": text},
                       "unknowns": {"unsupported_claims": [],
                                    "missing_context": [],
                                    "clarifying_questions": []}}, ensure_ascii=False)


def test_the_page_tells_which_sentences_are_named():
    first, second = rows_of(answer([2, 9, "1"], "It closed. [2]"))
    assert first["chunks"][0]["shown"] == ('<small class="number">[1]</small> <mark>It opened in 1966.</mark><sup>expected</sup> '
                                           '<small class="number">[2]</small> <mark>It closed.</mark><sup>base, adapter</sup>')
    assert second["chunks"] == []
    assert "mark>" not in rows_of("Sure! [2]")[0]["chunks"][0]["shown"].split("[2]")[1]


def in_browser(tmp_path, page, script):
    "What a browser makes of a page in which a script runs at the end."
    whole = str(page).replace("</body>", f"<script>{script}</script></body>")
    (tmp_path / "page.html").write_text(whole, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
               "--enable-logging=stderr", "--virtual-time-budget=3000"]
    done = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True,
                          text=True, encoding="utf-8", timeout=300, check=True)
    assert "CONSOLE" not in done.stderr
    return done.stdout


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_the_page_in_a_browser_draws_what_was_told(tmp_path):
    "Characters beyond two bytes count once, marks are coloured, hostile text stays text."
    page = page_of(answer([1, 7], "It \N{GRINNING FACE} opened. [1] <img src=x> [7] [2]"),
                   text="\N{GRINNING FACE} It opened in 1966. It <b>closed</b>.")
    opening = "document.querySelectorAll('details').forEach(one => { one.open = true; })"
    drawn = in_browser(tmp_path, page, opening)
    assert ('<small class="number">[1]</small> <mark>\N{GRINNING FACE} It opened in 1966.</mark><sup>expected, base, adapter</sup> '
            '<small class="number">[2]</small> It &lt;b&gt;closed&lt;/b&gt;.</p></div>') in drawn
    evidence = '{"evidence": [<b class="there">1</b>, <b class="astray">7</b>], '
    assert drawn.count(evidence) == 2
    assert drawn.count('<b class="there">[1]</b> &lt;img src=x&gt; <b class="astray">[7]</b> <b class="astray">[2]</b>') >= 2


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("chosen, shown", [({}, ["r1", "r2"]), ({"answerable": "yes"}, ["r1"]),
                                           ({"outcome": "passed"}, []),
                                           ({"search": "a LABEL"}, ["r1"]),
                                           ({"outcome": "failed", "category": "refusal"}, ["r2"]),
                                           ({"search": "</b"}, [])])
def test_the_filter_in_a_browser(tmp_path, chosen, shown):
    choose = "".join(f"form.{name}.value = {json.dumps(value)};" for name, value in chosen.items())
    script = (f"{{ const form = document.forms[0]; {choose} "
              "form.dispatchEvent(new Event('input')); }")
    page = in_browser(tmp_path, page_of("Sure!"), script)
    assert f"<output>{len(shown)} of 2 records</output>" in page
    drawn = [part for part in page.split("<details ")[1:]
             if "hidden" not in part.split("<summary>")[0]]
    assert [part.split("<small>")[1].split(" ")[0] for part in drawn] == shown


def test_the_page_loads_nothing():
    page = page_of("Sure!")
    assert not re.search(r"https?://|src=|@import|url\(", page)


def test_a_record_that_nobody_answered_is_a_row_of_failures():
    asked = records()
    scores = score_arms([{"id": "r1", "arm": "base", "raw": "x", "finish_reason": "stop"}], asked)
    rows = page_rows(asked, [], scores)
    assert rows[1]["arms"]["base"]["raw"] == ""
    assert rows[1]["arms"]["base"]["codes"] == ["no_sample"]


def test_arms_and_controls_stand_in_one_table_with_intervals_and_paired_tests():
    asked = [{**record, "id": f"{record['id']}-{place}"} for place in range(12)
             for record in records()]
    gold = {record["id"]: record["messages"][-1]["content"] for record in asked}
    outputs = [{"id": name, "arm": arm, "raw": raw if arm != "base" else "Sure!", "finish_reason": "stop"}
               for arm in ("base", "adapter", "adapter+grammar") for name, raw in gold.items()]
    scores, beside = score_arms(outputs, asked), score_arms(controls(asked), asked)
    rows = {row[0]: dict(zip(TABLE_HEAD[1:], row[1:], strict=True))
            for row in arms_table(scores, beside)}
    assert list(rows) == [*scores, *(f"control: {name}" for name in beside)] and len(rows) >= 11
    assert len(TABLE_HEAD) == 1 + len(HEADLINES)
    assert not any("p " in cell for cell in rows["adapter"].values())
    for arm, part in {**scores, **{f"control: {name}": part for name, part in beside.items()}}.items():
        tests = {row["metric"]: row["p_holm"] for row in compare(scores["adapter"], part)}
        for name, (head, cell) in zip(HEADLINES, rows[arm].items(), strict=True):
            rate = part.rates[name]
            p = f", {p_text(tests[name])}" if name in METRICS and arm != "adapter" else ""
            assert cell == (f"{rate}{p}" if rate.total else "not measured"), (arm, head)
    assert rows["base"]["json valid"].endswith(", p < 0.001")
    assert "p = 1.000" in rows["adapter+grammar"]["json valid"]
    only = arms_table({"base": scores["base"]}, beside)
    assert "p " not in only[0][1] and "p = " in " ".join(only[2])


def test_the_verdict_comes_first_and_the_instrument_is_told():
    asked = records()
    outputs = [{"id": record["id"], "arm": "base", "raw": "x", "finish_reason": "stop"}
               for record in asked]
    page = evaluation_page("t", asked, outputs, score_arms(outputs, asked),
                           None, "Better <b>.\n\nToo low.",
                           [["what", "result", "over"], ["people", "AUROC <1", "9"]])
    first, second, table = (page.index(text) for text in ("Better &lt;b&gt;.", "Too low.",
                                                          "<table>"))
    assert first < second < table < page.index("AUROC &lt;1") < page.index("<form")
