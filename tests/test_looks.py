"How the pages look and whether everybody can use them: contrast, keyboard, a phone's width, dark mode."

import re
from pathlib import Path

import pytest
from browser import axe, resize
from made_run import make_run

from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.core.results_file import load_results
from kwanzaa_nb.evaluate.metrics import score_arms
from kwanzaa_nb.report.evaluation import evaluation_page
from kwanzaa_nb.report.runs import write_overview, write_run_report

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("report.html", "evaluation.html", "outputs/index.html")
MODES = ((1280, "light"), (390, "dark"), (390, "light"), (1280, "dark"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "Addresses of the pages of a run whose outputs are hostile, by name."
    root = tmp_path_factory.mktemp("project")
    run = make_run(root, "rank-64", records=12)
    make_run(root, "half", evaluated=False)
    records = read_records(root / "data" / "eval.jsonl")
    outputs = [{"id": record["id"], "arm": arm, "raw": raw, "finish_reason": "stop", "p_answer": 0.5}
               for record in records for arm, raw in (("base", "Sure! {"), ("adapter", record["messages"][-1]["content"]))]
    scores = score_arms(outputs, records)
    (root / "evaluation.html").write_text(evaluation_page(
        "Evaluation", records, outputs, scores, scores, "A verdict.", [["what", "result", "over"], ["pairs", "1.00", "3"]]), encoding="utf-8")
    assert load_results(run)
    return {"report.html": write_run_report(run, root).as_uri(),
            "evaluation.html": (root / "evaluation.html").as_uri(),
            "outputs/index.html": write_overview(root / "outputs", root).as_uri()}


@pytest.mark.parametrize("width, scheme", MODES)
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(browser, pages, name, width, scheme):
    found = axe(browser, pages[name], width, scheme)
    assert not found, "\n".join(found)


def test_axe_would_find_something(browser, tmp_path):
    (tmp_path / "bad.html").write_text('<html lang="en"><title>t</title><main><h1>t</h1><p style="color:#aaa;background:#fff">faint</p><img src="data:,">'
                                       '<p style="width:3000px">wide</p></main>', encoding="utf-8")
    told = "\n".join(axe(browser, (tmp_path / "bad.html").as_uri(), 390))
    assert "color-contrast" in told and "image-alt" in told and "wider than the screen" in told


def test_the_table_of_an_evaluation_keeps_intervals_whole(browser, pages):
    "At 1100 pixels no interval is broken, and the table does not scroll."
    resize(browser, 1100)
    browser.get(pages["evaluation.html"])
    tall, wide = browser.execute_script("""
        const box = document.querySelector('.wide'), made = document.createRange(), found = [];
        const walk = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
        while (walk.nextNode()) for (const one of walk.currentNode.data.matchAll(/\\[[^\\]]*\\]/g)) {
          made.setStart(walk.currentNode, one.index); made.setEnd(walk.currentNode, one.index + one[0].length);
          found.push(made.getClientRects().length);
        }
        return [found, box.scrollWidth - box.clientWidth];""")
    assert len(tall) > 10 and set(tall) == {1} and wide <= 0


def colours(text):
    "Colours by name, of light and dark mode, in the order in which a style sheet sets them."
    return [dict(re.findall(r"(--(?:paper|ink|quiet|line|soft|link)): ([^;\s]+)", block))
            for block in re.findall(r"--paper: #[^}]*", text)[:2]]


def test_docs_and_reports_have_the_same_colours():
    shared, docs = (colours((ROOT / name).read_text(encoding="utf-8"))
                    for name in ("kwanzaa_nb/templates/style.css", "nbs/styles.css"))
    assert len(shared) == 2 and len(shared[0]) == len(shared[1]) == 6 and shared == docs
