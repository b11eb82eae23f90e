"The sealed records: kept apart when data is built, and each use of them counted and told."

import json

import pytest
from tiny import ROOT

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.manifest import read_manifest
from kwanzaa_nb.core.record import count_use, is_sealed, sealed_beside
from kwanzaa_nb.core.results import sealed_sentence
from kwanzaa_nb.core.results_file import load_results, save_results, verdict
from kwanzaa_nb.data.write import record_files
from kwanzaa_nb.evaluate.passes import sealed_uses
from kwanzaa_nb.publish.card import render_card
from kwanzaa_nb.report.run import evaluation_verdict, read_run, run_page

ONE, TWO = "a1" * 32, "b2" * 32  # hashes of two adapters
DEMO = ROOT / "configs" / "demo.cpu.yaml"
USES = ["2026-01-08  first", "2026-02-19  second"]


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "my_sealed.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name, expected, beside", [
    ("kwanzaa_eval.jsonl", False, "kwanzaa_sealed.jsonl"), ("held-out.jsonl", False, "held-out_sealed.jsonl"),
    ("eval.jsonl", False, "sealed.jsonl"), ("kwanzaa_sealed.jsonl", True, None), ("unsealed_eval.jsonl", False, "unsealed_sealed.jsonl"),
    ("unsealed.jsonl", False, "unsealed_sealed.jsonl"), ("medieval.jsonl", False, "medieval_sealed.jsonl"), ("my-sealed.jsonl", True, None)])
def test_sealed_records_are_known_by_their_name(tmp_path, name, expected, beside):
    assert is_sealed(tmp_path / name) is expected
    if beside:
        assert sealed_beside(tmp_path / name) == str(tmp_path / beside) and is_sealed(tmp_path / beside)


@pytest.mark.parametrize("eval_file, expected", [
    ("data/eval.jsonl", {"train": "t.jsonl", "dev": "d.jsonl", "eval": "data/eval.jsonl", "sealed": "data/sealed.jsonl"}),
    ("data/x_sealed.jsonl", {"train": "t.jsonl", "dev": "d.jsonl", "sealed": "data/x_sealed.jsonl"})])
def test_where_the_sealed_records_are_evaluated_nothing_else_is_built_over_them(eval_file, expected):
    config = load_config(DEMO, {"data.train_file": "t.jsonl", "data.dev_file": "d.jsonl", "data.eval_file": eval_file})
    assert record_files(config.data) == expected


def test_each_adapter_is_one_use_however_often_its_evaluation_is_continued(sealed):
    first = sealed_uses(sealed, "demo", ONE)
    assert len(first) == 1 and first[0].endswith(f"  demo, adapter {ONE[:12]}")
    assert len(sealed_uses(sealed, "demo", TWO)) == 2 and len(sealed_uses(sealed, "demo", None)) == 3
    assert sealed_uses(sealed, "demo", ONE) == first
    assert len(sealed.with_suffix(".uses.txt").read_text(encoding="utf-8").splitlines()) == 3


def test_other_records_are_not_counted(tmp_path):
    assert sealed_uses(tmp_path / "eval.jsonl", "demo", ONE) == [] and not list(tmp_path.iterdir())


def test_a_line_that_somebody_wrote_by_hand_stays(sealed):
    sealed.with_suffix(".uses.txt").write_text("2025-12-24  by hand\n", encoding="utf-8")
    assert [line.partition("  ")[2] for line in count_use(sealed, "demo")] == ["by hand", "demo"]


@pytest.mark.parametrize("uses, told", [
    (None, ""), ([], ""), (USES[:1], "Measured on the sealed records, which had not been used before."),
    (USES, "Measured on the sealed records, which had been used once before: 2026-01-08 first."),
    ([*USES, "2026-03-01  third"], "Measured on the sealed records, which had been used 2 times before: 2026-01-08 first; 2026-02-19 second.")])
def test_reports_and_card_say_how_often_they_were_used(tmp_path, uses, told):
    rates = {"json_valid_rate": {"value": 0.9, "low": 0.8, "high": 1.0, "total": 60}}
    results = {"format": 2, "arms": {"base": {"rates": rates}, "adapter": {"rates": rates}}} | ({} if uses is None else {"sealed_uses": uses})
    assert sealed_sentence(results) == told
    save_results(tmp_path, results)
    assert load_results(tmp_path) == results
    card = render_card(load_config(DEMO), read_manifest(tmp_path), results)
    page = str(run_page(read_run(tmp_path, tmp_path)))
    shown = [evaluation_verdict(results, {}), verdict(tmp_path), card, page]
    assert all((told in text) if told else ("sealed" not in text) for text in shown)


def test_the_stage_notes_the_use_before_it_generates_and_keeps_it():
    cells = ["".join(cell["source"]) for cell in json.loads((ROOT / "nbs/03_evaluate.ipynb").read_text(encoding="utf-8"))["cells"]
             if cell["cell_type"] == "code"]
    generating = next(cell for cell in cells if "generate_pass(" in cell and "import" not in cell)
    assert 0 < generating.index("sealed_uses(eval_file") < generating.index("for arm, backend")
    assert any('results["sealed_uses"] = uses' in cell for cell in cells)
