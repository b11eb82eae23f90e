"The state that is kept: by behaviour, through interruptions, with patience; what is measured for it."

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_training import CPU, ROWS, STEADY, adapter_weights
from tiny import ROOT, chat, short_spoken, tiny_config, tiny_model, tiny_tokenizer
from transformers import TrainerCallback, set_seed

from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.core.results import METRICS
from kwanzaa_nb.evaluate.development import evidence_f1, score_development
from kwanzaa_nb.evaluate.metrics import REFUSAL, score
from kwanzaa_nb.model.load import add_adapter
from kwanzaa_nb.model.local import LocalBackend
from kwanzaa_nb.model.packing import SEGMENTED
from kwanzaa_nb.train.resume import Checkpoints
from kwanzaa_nb.train.selection import (
    FIGURES, Behaviour, StopEarly, choose_figure, measured, step_kept)
from kwanzaa_nb.train.trainer import train_adapter

EVERY = {**STEADY, "training.per_device_train_batch_size": 1, "training.optim": "adamw_torch",
         "training.gradient_accumulation_steps": 1, "training.learning_rate": 0.01,
         "training.select_by": "decision", "run.eval_steps": 1, "run.save_steps": 100}
RISING = [0.1, 0.5, 0.9, 0.4, 0.3, 0.6, 0.2, 0.3]  # eight steps, the third is best


class Watcher(TrainerCallback):
    "Keeps the weights after each step, and stops a training like Ctrl-C after one of them."

    def __init__(self, stop_after=None):
        self.weights, self.stop_after = {}, stop_after

    def on_step_end(self, args, state, control, model, **_):
        self.weights[state.global_step] = adapter_weights(model)

    def on_evaluate(self, args, state, control, **_):
        if state.global_step == self.stop_after:
            raise KeyboardInterrupt


def train(folder, figures=RISING, callbacks=(), name="decision", **overrides):
    "Train eight steps; step N has the figure at N - 1, or none where that is None."
    config = tiny_config(**{**EVERY, **overrides})
    set_seed(config.run.seed)
    adapted = add_adapter(tiny_model(), config)

    def behaviour(model, share):
        value = figures[round(share * 8) - 1]
        return {"behaviour_seconds": 0.0} | ({} if value is None else {name: value})

    checkpoints = Checkpoints(folder)
    trainer, outcome = train_adapter(
        adapted, tiny_tokenizer(), list(ROWS), ROWS[:2], config, CPU, folder,
        [checkpoints, *callbacks], checkpoints.last, behaviour)
    return trainer, outcome, adapter_weights(adapted)


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first)


def steps_in(folder):
    return sorted(int(path.name[11:]) for path in Path(folder).glob("checkpoint-*"))


# what is kept


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_best_step_is_the_adapter_whatever_the_intervals(tmp_path, limit):
    watcher = Watcher()
    trainer, outcome, weights = train(tmp_path, callbacks=[watcher],
                                      **{"run.save_total_limit": limit})
    assert outcome["steps"] == 8 and trainer.state.best_global_step == 3
    assert same(weights, watcher.weights[3]) and not same(weights, watcher.weights[8])
    assert 3 in steps_in(tmp_path) and len(steps_in(tmp_path)) <= max(2, limit)


def test_without_a_figure_the_last_step_is_kept(tmp_path):
    watcher = Watcher()
    trainer, _, weights = train(tmp_path, callbacks=[watcher], **{"training.select_by": None})
    assert same(weights, watcher.weights[8])
    assert str(step_kept(trainer.state, None, 8)).startswith("Step 8 of 8, the last trained, was")


def test_the_lowest_loss_is_the_best_one(tmp_path):
    watcher = Watcher()
    trainer, _, weights = train(tmp_path, callbacks=[watcher], **{
        "training.select_by": "loss", "training.learning_rate": 0.3})
    losses = {row["step"]: row["eval_loss"] for row in trainer.state.log_history
              if "eval_loss" in row}
    best = min(losses, key=losses.get)
    assert trainer.state.best_global_step == best and same(weights, watcher.weights[best])


def test_an_evaluation_without_the_figure_is_no_candidate(tmp_path):
    figures = [None, None, None, None, 0.1, 0.3, 0.2, 0.1]
    stop = StopEarly(2)
    trainer, outcome, _ = train(tmp_path, figures, [stop])
    assert trainer.state.best_global_step == 6 and outcome["steps"] == 8
    kept = step_kept(trainer.state, "decision", 8, patience=stop.early_stopping_patience)
    assert kept.evaluations == 4 and kept.value == 0.3 and kept.last_value == 0.1


def test_of_equal_steps_the_later_one_is_kept_and_is_no_progress(tmp_path):
    figures = [0.1, 0.9, 0.5, 0.9, 0.5, 0.5, 0.5, 0.5]
    trainer, outcome, _ = train(tmp_path, figures, [StopEarly(4)])
    assert trainer.state.best_global_step == 4 and outcome["steps"] == 6


@pytest.mark.parametrize("patience, ends", [(1, 4), (2, 5), (4, 7), (6, 8)])
def test_patience_ends_a_training(tmp_path, patience, ends):
    watcher = Watcher()
    trainer, outcome, weights = train(tmp_path, callbacks=[watcher, StopEarly(patience)])
    assert outcome["steps"] == ends and trainer.state.best_global_step == 3
    assert same(weights, watcher.weights[3])


# through interruptions


@pytest.mark.parametrize("stop_after", [2, 4, 7])
@pytest.mark.parametrize("moved", [False, True])
def test_a_resumed_training_keeps_the_best_so_far(tmp_path, stop_after, moved):
    whole, _, expected = train(tmp_path / "whole", **{"run.save_steps": 2})
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", callbacks=[Watcher(stop_after)],
              **{"run.save_steps": 2, "run.save_total_limit": 1})
    folder = tmp_path / "stopped"
    if moved:
        folder = shutil.move(folder, tmp_path / "elsewhere")
    before = steps_in(folder)[-1]
    trainer, _, found = train(folder, **{"run.save_steps": 2, "run.save_total_limit": 1})
    assert 1 <= before < 8 and trainer.state.best_global_step == 3
    assert trainer.state.best_metric == 0.9 and same(found, expected)
    figures = [row["decision"] for row in measured(trainer.state.log_history)]
    assert figures == [row["decision"] for row in measured(whole.state.log_history)] == RISING


def test_patience_is_counted_through_an_interruption(tmp_path):
    "Steps 4 and 5 are no better; the second of them comes after the interruption."
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=[StopEarly(2), Watcher(5)], **{"run.save_steps": 1})
    assert steps_in(tmp_path)[-1] == 4
    _, outcome, _ = train(tmp_path, callbacks=[StopEarly(2)], **{"run.save_steps": 1})
    assert outcome["steps"] == 5


def test_a_stopped_training_is_not_trained_on(tmp_path):
    "Killed after patience ran out and before the adapter was written."
    _, _, expected = train(tmp_path, callbacks=[StopEarly(1)], **{"run.save_steps": 1})
    assert steps_in(tmp_path)[-1] == 4
    trainer, outcome, found = train(tmp_path, callbacks=[StopEarly(1)], **{"run.save_steps": 1})
    assert outcome["steps"] == 5 and trainer.state.best_global_step == 3 and same(found, expected)


# what is measured


def some_records(count=2):
    "The shortest development records, so many of each side."
    records = read_records(ROOT / "data" / "training" / "kwanzaa_dev.jsonl")
    ordered = sorted(records, key=lambda one: len(one["messages"][-2]["content"]))
    return [one for side in (True, False)
            for one in [record for record in ordered if record["answerable"] is side][:count]]


@pytest.fixture(scope="module")
def records():
    return some_records()


def behaviour_of(records, score=score_development, tokenizer=None, **overrides):
    config = tiny_config(**{"data.max_seq_length": 8192, "evaluation.batch_size": 2,
                            "evaluation.generation_defaults.max_new_tokens": 60, **overrides})
    return Behaviour(tokenizer or tiny_tokenizer(), records, config, score)


def test_decisions_are_those_of_the_evaluation_and_the_model_is_left_as_it_was(records):
    model = tiny_model().train()
    found = behaviour_of(records)(model, 0.2)
    assert model.training and model.config._attn_implementation == SEGMENTED
    backend = LocalBackend(tiny_model(attention="sdpa"), tiny_tokenizer())
    chances = {prompt.record_id: chance
               for prompt, chance in backend.p_answer(backend.prompts(records))}
    for name, side in (("answerable", True), ("unanswerable", False)):
        own = [chances[record["id"]] for record in records if record["answerable"] is side]
        assert found[name] == pytest.approx(sum(own) / len(own), abs=1e-6)
    assert "evidence" not in found and found["behaviour_seconds"] > 0


def test_answers_are_written_in_the_second_half_and_never_refuse(records):
    seen = []

    def watching(outputs, asked):
        seen.extend(zip(outputs, asked))
        return score_development(outputs, asked)

    model = short_spoken(tiny_tokenizer())
    behaviour = behaviour_of(records, watching)
    assert "evidence" not in behaviour(model, 0.49) and not seen
    found = behaviour(model, 0.5)
    assert len(seen) == 2 and found["evidence"] == found["valid"] == 0.0
    assert found["decision_and_evidence"] == found["decision"] / 2
    assert all(json.loads(record["messages"][-1]["content"])["evidence"] for _, record in seen)
    assert not any('"evidence":[]' in output["raw"] for output, _ in seen)


def test_the_threshold_is_the_one_of_the_evaluation(records):
    model = tiny_model()
    by = {least: behaviour_of(records, None, **{"evaluation.answer_threshold": least})(model, 1)
          for least in (None, 0.5, 0.0, 1.0, "dev")}
    assert by[None]["decision"] == by[0.5]["decision"]
    assert by[0.0]["decision"] == by[1.0]["decision"] == 0.5  # all are answered, or none
    assert by["dev"]["decision"] >= max(by[0.5]["decision"], 0.5)


def test_what_cant_be_measured_is_said_and_replaced(records):
    answerable = [record for record in records if record["answerable"]]
    refused = [record for record in records if not record["answerable"]]
    pair = tiny_tokenizer(merges=[("[", "1")])
    plain = [{"id": str(place), "messages": chat("yes"), "answerable": side, "category": "none"}
             for place, side in enumerate((True, False))]
    for given, tokenizer, used in ((records, None, "decision_and_evidence"),
                                   (answerable, None, "evidence"), (plain, None, "decision"),
                                   (records, pair, "evidence"), (refused, None, "loss")):
        behaviour = behaviour_of(given, tokenizer=tokenizer)
        name, why = choose_figure("decision_and_evidence", behaviour.lacks)
        assert name == used and bool(why) is (used != "decision_and_evidence")
        assert used == "loss" or used in behaviour(tiny_model(attention="sdpa"), 1)
    assert "score" in choose_figure("evidence", behaviour_of(records, None).lacks)[1]
    assert all(choose_figure(name, {}) == (name, "") for name in FIGURES)


# scoring


@pytest.mark.parametrize("cited, wanted, expected", [
    ([1], [1], 1.0), ([1, 2], [1], 2 / 3), ([1], [1, 2], 2 / 3), ([3], [1], 0.0), ([], [1], 0.0),
    ([1, 1, 1], [1], 1.0)])
def test_evidence_f1(cited, wanted, expected):
    assert evidence_f1(cited, wanted) == pytest.approx(expected)


def test_scores_agree_with_the_metrics_and_faults_count():
    known = some_records(4)[:4]
    raws = [record["messages"][-1]["content"] for record in known]
    outputs = [{"id": record["id"], "raw": raw, "finish_reason": "stop", "arm": "adapter"}
               for record, raw in zip(known, raws)]
    assert score_development(outputs, known)["evidence"] == 1.0
    outputs[0]["raw"] = REFUSAL
    outputs[1] |= {"finish_reason": "length"}
    outputs[2]["raw"] = outputs[2]["raw"] + " "  # white space is valid, a fence is not
    outputs[3]["raw"] = f"```json\n{raws[3]}\n```"
    found = score_development(outputs, known)
    rates = score(outputs, known).rates
    assert found == {"valid": 0.5, "covered": 0.25, "evidence": 0.25}
    assert [rates[METRICS[0]].value, rates[METRICS[1]].value] == [0.5, 0.25]
