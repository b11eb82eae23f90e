"""Logs of inspect_ai and the task, by its own classes; skipped without the extra [inspect]."""

import json
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")
from inspect_ai import eval as run_task
from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from kwanzaa_nb.core.record import prompt_of, read_records
from kwanzaa_nb.evaluate.inspect_log import SCORER, rate_values, write_inspect_logs
from kwanzaa_nb.evaluate.inspect_task import cited_answers
from kwanzaa_nb.evaluate.metrics import score, score_arms
from kwanzaa_nb.run.cli import main

RECORDS = read_records(Path(__file__).resolve().parents[1] / "data/training/kwanzaa_dev.jsonl")[:6]
RAWS = [record["messages"][-1]["content"] for record in RECORDS]
WRITTEN = [*RAWS[:3], "Not sure.", RAWS[4].replace("[", "[9"), '{"evidence": ']


def outputs(arm="mine", raws=WRITTEN):
    return [{"id": record["id"], "arm": arm, "raw": raw} for record, raw in zip(RECORDS, raws)]


def test_a_log_is_read_back_by_inspect(tmp_path):
    rows = [*outputs("a+b"), *outputs("a b", RAWS[:5])]
    rows[3]["raw"] = "half a pair: \ud800"
    scores = score_arms(rows, RECORDS)
    paths = write_inspect_logs(tmp_path / "logs", scores, rows, RECORDS)
    assert [path.name for path in paths] == ["a-b.eval", "a-b-1.eval"]
    assert len(list_eval_logs(str(tmp_path / "logs"))) == 2
    log = read_eval_log(str(paths[0]))
    assert log.status == "success" and log.eval.model == "a+b" and len(log.samples) == 6
    found = {sample.id: sample for sample in log.samples}
    for record, outcome in zip(RECORDS, scores["a+b"].outcomes):
        sample = found[record["id"]]
        assert [(one.role, one.text) for one in sample.input] == [
            (one["role"], one["content"]) for one in prompt_of(record)]
        assert sample.target == record["messages"][-1]["content"]
        judged = sample.scores[SCORER]
        assert judged.value["json_valid_rate"] == outcome.valid
        assert all(code in judged.explanation for code in outcome.codes)
        assert all(note in judged.explanation for note in outcome.notes if note.isascii())
    assert found[RECORDS[3]["id"]].output.completion == "half a pair: \\ud800"
    rates = {name: one.value for name, one in log.results.scores[0].metrics.items()}
    assert rates == rate_values(scores["a+b"])
    missing = {one.id: one for one in read_eval_log(str(paths[1])).samples}[RECORDS[5]["id"]]
    assert missing.output.completion == "" and "no_sample" in missing.scores[SCORER].explanation


def test_the_command_writes_the_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("records", RECORDS), ("mine", outputs())):
        Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["score", "mine.jsonl", "--records", "records.jsonl", "--inspect", "logs"]
    assert main(words) == 0 and "logs/mine.eval" in capsys.readouterr().out
    assert read_eval_log("logs/mine.eval").eval.model == "mine"


def model_of(*answers):
    "A model that gives these answers; each a text and why it ended."
    given = [ModelOutput.from_content("mockllm/model", text, stop_reason=reason)
             for text, reason in answers]
    for one in given:  # or it is counted, with a tokenizer from the network
        one.usage = ModelUsage()
    return get_model("mockllm/model", custom_outputs=given)


def test_the_task_scores_as_the_scorer_does(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in RECORDS), encoding="utf-8")
    answers = [(raw, "max_tokens" if place == 1 else "stop") for place, raw in enumerate(WRITTEN)]
    log, = run_task(cited_answers(str(path)), model=model_of(*answers), display="none",
                    max_connections=1, log_dir=str(tmp_path / "logs"))
    assert log.status == "success"
    rows = outputs()
    rows[1]["finish_reason"] = "length"
    rates = {name: one.value for name, one in log.results.scores[0].metrics.items()}
    assert rates == pytest.approx(rate_values(score(rows, RECORDS)))
    cut = {one.id: one for one in log.samples}[RECORDS[1]["id"]]
    assert "cut_off" in cut.scores[SCORER].explanation


def test_with_a_limit_only_what_was_asked_counts(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in RECORDS), encoding="utf-8")
    log, = run_task(cited_answers(str(path)), model=model_of((RAWS[0], "stop"), (RAWS[1], "stop")),
                    limit=2, display="none", max_connections=1, log_dir=str(tmp_path / "logs"))
    assert log.results.scores[0].metrics["json_valid_rate"].value == 1


@pytest.mark.parametrize("fails, status", [(False, "success"), (None, "error")])
def test_a_record_that_got_no_answer_counts_as_failed(tmp_path, fails, status):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in RECORDS), encoding="utf-8")
    answers = model_of(*((raw, "stop") for raw in RAWS[:4]))  # then it has none left
    log, = run_task(cited_answers(str(path)), model=answers, display="none", max_connections=1,
                    log_dir=str(tmp_path / "logs"), fail_on_error=fails)
    assert log.status == status
    rows = [{**row, "finish_reason": "stop" if place < 4 else "refused"} for place, row
            in enumerate(outputs(raws=[*RAWS[:4], "", ""]))]
    rates = {name: one.value for name, one in log.results.scores[0].metrics.items()}
    assert rates == pytest.approx(rate_values(score(rows, RECORDS)))
    assert rates["json_valid_rate"] == pytest.approx(4 / 6)
    last = {one.id: one for one in log.samples}[RECORDS[5]["id"]]
    assert last.error and "not_answered" in last.scores[SCORER].explanation


def test_each_model_that_is_asked_sealed_records_is_noted(tmp_path):
    path = tmp_path / "my_sealed.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in RECORDS), encoding="utf-8")
    task = cited_answers(str(path))
    assert not path.with_suffix(".uses.txt").exists(), "nothing is asked yet"
    for _ in range(2):
        run_task(task, model=model_of(*((raw, "stop") for raw in RAWS)), display="none",
                 max_connections=1, log_dir=str(tmp_path / "logs"))
    uses = path.with_suffix(".uses.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition("  ")[2] for line in uses] == ["inspect eval mockllm/model"]
