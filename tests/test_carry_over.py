"How rules and models carry over to passages that nobody here wrote."

import json
from itertools import islice
from types import SimpleNamespace

import pytest
from tiny import ROOT

from kwanzaa_nb.bench import carry_over as bench
from kwanzaa_nb.bench.carry_over import (
    _note_use, carried, carry_over, carry_over_table, main, model_outputs, rule_outputs)
from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.jsonl import DataError
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.data.passages import read_passages
from kwanzaa_nb.evaluate.metrics import REFUSAL
from kwanzaa_nb.evaluate.rules import apply_rules, fit_rules
from kwanzaa_nb.model.backend import Written
from kwanzaa_nb.model.decision import curve

RULES = ["best_sentence", "best_sentence_threshold", "overlap_regression"]
COPY = '{"evidence":[1],"answer":{"completeness":"complete","text":"It rained. [1]"},"unknowns":{"unsupported_claims":[],"missing_context":[],"clarifying_questions":[]}}'


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "The beginnings of our records, a few passages, and a config that names them."
    folder = tmp_path_factory.mktemp("carry")
    files = {"run.output_dir": str(folder / "run"), "evaluation.grammar": False}
    for split, count in (("train", 60), ("dev", 40), ("eval", 24)):
        with open(ROOT / f"data/training/kwanzaa_{split}.jsonl", encoding="utf-8") as file:
            (folder / f"{split}.jsonl").write_text("".join(islice(file, count)), encoding="utf-8")
        files[f"data.{split}_file"] = str(folder / f"{split}.jsonl")
    rows = [{"id": f"q{place}", "question": f"Did it rain on day {place}?", "answerable": place % 2 == 0,
             "chunks": [{"chunk_id": "c", "text": f"It rained. It was day {place + place % 2}.", "year": 2000}]} for place in range(8)]
    path = folder / "found.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SimpleNamespace(path=path, config=load_config(ROOT / "configs/demo.cpu.yaml",
                                                         files), folder=folder)


@pytest.fixture(scope="module")
def rules(project):
    return fit_rules(*(read_records(project.folder / f"{split}.jsonl")
                       for split in ("train", "dev")))


class Copier:
    "A backend that copies the first sentence, surer for records of even days, and counts what it is asked."
    asked = 0

    def prompts(self, records):
        return [SimpleNamespace(record_id=record["id"], digest="0") for record in records]

    def batches(self, prompts, decoding):
        yield from (prompts[place:place + 3] for place in range(0, len(prompts), 3))

    def write(self, batch, decoding):
        Copier.asked += len(batch)
        return [Written(COPY if self.sure(prompt) >= (decoding.answer_threshold or 0) else REFUSAL, "stop", 9, p_answer=self.sure(prompt))
                for prompt in batch]

    def sure(self, prompt):
        return 0.9 if prompt.record_id.split()[-1] in ("q0", "q2", "q4", "q6") else 0.2

    def p_answer(self, prompts):
        return [(prompt, 0.5) for prompt in prompts]


@pytest.fixture
def copier(monkeypatch):
    Copier.asked = 0
    monkeypatch.setattr(bench, "arms",
                        lambda config, effective, adapter: iter([("base", Copier())]))


def test_the_outputs_of_the_rules_are_those_of_the_reports(project, rules):
    records = read_passages(project.path)
    found = rule_outputs(rules, records)
    assert [{name: value for name, value in one.items() if name != "leaning"} for one in found] == apply_rules(rules, records)
    assert {one["arm"] for one in found if one["leaning"] is None} == {"best_sentence"}
    for one in found:
        least = {"best_sentence_threshold": rules.least_score, "overlap_regression": rules.least_chance}.get(one["arm"])
        assert least is None or (one["raw"] != REFUSAL) == (one["leaning"] >= least)


def test_the_best_threshold_is_at_least_as_good_as_the_one_in_use(project, rules):
    records = read_records(project.folder / "eval.jsonl")
    for one in carried(rule_outputs(rules, records), records, "own"):
        if one.auroc is None:
            assert one.arm == "best_sentence" and one.best is None
        else:
            assert 0 <= one.auroc <= 1
            assert one.best >= max(0.5, one.scores.rates["refusal_correctness_rate"].value - 1e-9)


def test_auroc_and_threshold_are_those_of_the_decision(project):
    records = read_passages(project.path)
    leaning = [0.9, 0.8, 0.7, 0.7, 0.6, 0.1, 0.5, 0.2]
    outputs = [{"id": record["id"], "arm": "a", "raw": REFUSAL, "finish_reason": "stop", "p_answer": value}
               for record, value in zip(records, leaning)]
    one, = carried(outputs, records, "passages")
    truth = [record["answerable"] for record in records]
    pairs = [(high > low) + (high == low) / 2 for high, is_high in zip(leaning, truth) if is_high
             for low, is_low in zip(leaning, truth) if not is_low]
    assert one.auroc == sum(pairs) / len(pairs)
    assert one.best == max(point.balanced for point in curve(leaning, truth))
    lacking, = carried([{**output, "p_answer": None} for output in outputs], records, "passages")
    assert lacking.auroc is None and lacking.best is None


def test_rules_alone_stand_beside_our_own_evaluation(project):
    found = carry_over(project.path, project.config)
    assert [(one.arm, one.place) for one in found] == [(arm, place) for arm in RULES
                                                       for place in ("own", "passages")]
    assert [one.scores.rates["json_valid_rate"].total for one in found[:2]] == [24, 8]
    table = carry_over_table(found)
    assert table.rows[0][-2:] == ["", ""] and table.rows[3][2] == "1.00 [0.68, 1.00] n=8"
    assert len({len(row) for row in table.rows}) == 1
    assert not (project.folder / "run").exists()


def test_a_side_without_records_is_not_measured(project, rules):
    records = [record for record in read_passages(project.path) if record["answerable"]]
    row = carry_over_table(carried(rule_outputs(rules, records), records, "passages")).rows[1]
    assert row[4] == "not measured" and row[5].endswith("n=4") and row[-2:] == ["", ""]


def test_a_model_stands_beside_the_rules_and_goes_on_where_it_stopped(project, copier):
    found = carry_over(project.path, project.config, "none", most=6)
    assert [one.arm for one in found][-2:] == ["base", "base"] and Copier.asked == 12
    own, there = found[-2:]
    assert (own.scores.rates["json_valid_rate"].total, there.scores.rates["json_valid_rate"].total) == (6, 6)
    assert there.auroc == 1.0 and there.best == 1.0
    assert there.scores.rates["refusal_correctness_rate"].value == 1.0
    again = carry_over(project.path, project.config, "none", most=6)
    assert Copier.asked == 12 and carry_over_table(again).rows == carry_over_table(found).rows


def test_the_threshold_of_the_config_is_used(project, copier):
    config = load_config(ROOT / "configs/demo.cpu.yaml",
                         {"data.dev_file": None,
                          "evaluation.answer_threshold": 0.1, "evaluation.grammar": False})
    found = model_outputs(config, None, read_passages(project.path), project.folder / "low.jsonl")
    assert {one["raw"] for one in found} == {COPY} and len(found) == 8


def test_the_use_of_sealed_records_is_noted(project, tmp_path):
    sealed = tmp_path / "my_sealed.jsonl"
    sealed.write_bytes((project.folder / "eval.jsonl").read_bytes())
    data = project.config.data.model_copy(update={"eval_file": str(sealed)})
    config = project.config.model_copy(update={"data": data})
    carry_over(project.path, config)
    for place, adapter in enumerate((tmp_path / "one", tmp_path / "other", tmp_path / "one")):
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_model.safetensors").write_bytes(adapter.name.encode())
        assert len(_note_use(config, adapter)) == (2, 3, 2)[place]
    _note_use(config, "none")
    uses = [line.partition("carry-over, ")[2].split()[0] for line
            in sealed.with_suffix(".uses.txt").read_text(encoding="utf-8").splitlines()]
    assert uses == ["rules", "adapter", "adapter", "base"]


def test_the_command_tells_what_is_wrong_in_sentences(project, tmp_path, capsys):
    (tmp_path / "wrong.jsonl").write_text('{"question": "Who?"}\n', encoding="utf-8")
    with pytest.raises(DataError):
        carry_over(tmp_path / "wrong.jsonl", project.config)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "wrong.jsonl")])
    assert "wrong.jsonl, line 1, chunks: missing" in str(stop.value)
