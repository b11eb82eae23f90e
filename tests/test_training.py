"Training: loss, order of rows, arguments of the trainer, errors, and what is saved."

import json
import math
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import LAST_TURN, ROOT, chat, row, tiny_config, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerState, set_seed

import kwanzaa_nb.train.trainer as training
from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.settings import RunSection, TrainingSection
from kwanzaa_nb.model.decision import DECISION, REFUSING, decision_tokens
from kwanzaa_nb.train.live import LiveReport, Moment
from kwanzaa_nb.model.local import encode_prompts, read_decisions
from kwanzaa_nb.model.masking import IGNORED, encode_chat
from kwanzaa_nb.model.load import (Hardware, RuntimeSettings, add_adapter, load_adapter,
                                   load_tokenizer, runtime_settings)
from kwanzaa_nb.model.packing import SEGMENTED, flatten_rows, pack_rows
from kwanzaa_nb.train.resume import (COMPLETE, Checkpoints, last_complete, remove_checkpoints,
                                     training_identity)
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.train.trainer import (GroupSampler, RecordsError, TrainingError, encode_records,
                                      every_answer, filler_row, joined_groups, keep_start,
                                      save_adapter, step_budget, supervised_loss, token_lengths,
                                      train_adapter, trainer_arguments)

CPU = RuntimeSettings("cpu", "fp32", "fp32", SEGMENTED, False, "sgd")
ROWS = [row(3 + place, 2 + place % 3, group=f"g{place // 2}", first=11 * place + 3)
        for place in range(8)]
STEADY = {"adapter.dropout": 0.0, "adapter.r": 2, "training.optim": "sgd",
          "training.learning_rate": 0.02, "training.lr_scheduler": "constant",
          "training.warmup_ratio": 0.0, "training.max_grad_norm": 0.0, "run.logging_steps": 1}
# plain gradient descent: adapters differ as their gradients do, times the learning rate


def adapter_weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()
            if parameter.requires_grad}


def train(folder, rows=ROWS, effective=CPU, model=None, dev_rows=(), callbacks=(), resume_from=None,
          **overrides):
    "Train an adapter on the tiny model; (trainer, outcome, adapter weights)."
    config = tiny_config(**{**STEADY, **overrides})
    set_seed(config.run.seed)
    adapted = add_adapter(model or tiny_model(), config)
    trainer, outcome = train_adapter(adapted, tiny_tokenizer(), list(rows), list(dev_rows), config,
                                     effective, folder, callbacks, resume_from)
    return trainer, outcome, adapter_weights(adapted)


def at_decision(tokenizer, messages):
    "Tokens up to the decision, ids that answer, id that refuses."
    (prompt,) = encode_prompts(tokenizer, [{"id": "a", "messages": messages}])
    start, answering, refusing = decision_tokens(tokenizer)
    return [*prompt.tokens, *start], answering, refusing


def largest_difference(first, second):
    assert first.keys() == second.keys() and first
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def smollm():
    return load_tokenizer(load_config(ROOT / "configs" / "demo.cpu.yaml"))


# the loss


def test_the_loss_is_that_of_the_definition():
    model, one = tiny_model(), ROWS[3]
    with torch.no_grad():
        chances = (model(**{name: value for name, value in flatten_rows([one]).items()
                            if name != "labels"}, use_cache=False).logits[0].log_softmax(-1))
        total, _ = supervised_loss(model, flatten_rows([one]))
    expected = -sum(chances[place - 1, label].item() for place, label in enumerate(one["labels"])
                    if label != IGNORED)
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_supervised_tokens_is_refused(tmp_path):
    bare = [{**one, "labels": [IGNORED] * len(one["labels"])} for one in ROWS]
    with pytest.raises(TrainingError, match="no supervised token"):
        supervised_loss(tiny_model(), flatten_rows(bare))
    with pytest.raises(TrainingError, match="no supervised token"):
        train(tmp_path, bare)


# the trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "Two steps on all rows at once."
    return train(tmp_path_factory.mktemp("whole"), training__per_device_train_batch_size=8,
                 training__gradient_accumulation_steps=1, training__epochs=2)


def test_training_changes_the_adapter(whole, tmp_path):
    trainer, outcome, weights = whole
    assert trainer.state.global_step == outcome["steps"] == trainer.state.max_steps == 2
    assert any(weight.abs().max() > 1e-4 for name, weight in weights.items() if "lora_B" in name)
    assert outcome["supervised_tokens"] == sum(label != IGNORED for one in ROWS
                                               for label in one["labels"])
    assert all(weight.dtype == torch.float32 for weight in weights.values())


def test_a_mean_of_means_would_be_seen(whole, tmp_path):
    "A loss that weighs micro batches alike gives another adapter, which the tests below would see."
    means, inner = [], training.supervised_loss

    def averaged(model, batch, **more):
        loss, count = inner(model, batch, **more)
        means.append(count)
        return loss / count * sum(label != IGNORED for one in ROWS
                                  for label in one["labels"]) / 8, count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "supervised_loss", averaged)
        _, _, weights = train(tmp_path, training__per_device_train_batch_size=1,
                              training__gradient_accumulation_steps=8, training__epochs=2)
    assert len(means) == 16 and largest_difference(weights, whole[2]) > 1e-4


@pytest.mark.parametrize("batch, accumulation, checkpointing",
                         [(4, 2, False), (2, 4, False), (1, 8, False), (8, 1, True)])
def test_accumulation_and_checkpointing_equal_one_big_batch(whole, tmp_path, batch, accumulation,
                                                            checkpointing):
    "Answers have different lengths, so a mean of means would differ."
    trainer, _, weights = train(tmp_path, training__per_device_train_batch_size=batch,
                                training__gradient_accumulation_steps=accumulation,
                                training__gradient_checkpointing=checkpointing, training__epochs=2)
    assert trainer.state.global_step == 2
    assert largest_difference(weights, whole[2]) < 1e-6


def test_packed_rows_train_the_same_adapter(whole, tmp_path):
    packed = pack_rows(ROWS, 32)
    assert 1 < len(packed) < len(ROWS)
    _, outcome, weights = train(tmp_path, packed, data__packing=True, training__epochs=2,
                                training__per_device_train_batch_size=1,
                                training__gradient_accumulation_steps=len(packed))
    assert outcome["steps"] == 2 and largest_difference(weights, whole[2]) < 1e-6


def test_a_short_last_step_counts_its_own_tokens(tmp_path):
    "Six rows: a step of four and one of two, in two and in four micro batches."
    first, second = (train(tmp_path / str(batch), ROWS[:6],
                           training__per_device_train_batch_size=batch,
                           training__gradient_accumulation_steps=4 // batch) for batch in (4, 1))
    assert first[1]["steps"] == second[1]["steps"] == first[0].state.global_step == 2
    assert largest_difference(first[2], second[2]) < 1e-6


def test_a_seed_gives_the_same_adapter_bit_for_bit(tmp_path):
    settings = {"adapter.dropout": 0.2, "training.per_device_train_batch_size": 2,
                "training.optim": "adamw_torch", "training.learning_rate": 0.01}
    adamw = RuntimeSettings("cpu", "fp32", "fp32", SEGMENTED, False, "adamw_torch")
    first, second, other = (train(tmp_path / str(place), effective=adamw, **settings,
                                  run__seed=seed)[2] for place, seed in enumerate((1, 1, 2)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert largest_difference(first, other) > 1e-4


def test_a_loss_that_is_no_number_stops_training(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError,
                       match="the loss is nan at step 0: lower training.learning_rate"):
        train(tmp_path, model=model)


def test_epochs_have_their_own_order_and_groups_stay_together(tmp_path, monkeypatch):
    seen, inner = [], training.supervised_loss

    def watching(model, batch, **more):
        seen.append(batch["input_ids"][0].tolist())
        return inner(model, batch, **more)

    monkeypatch.setattr(training, "supervised_loss", watching)
    train(tmp_path, training__per_device_train_batch_size=2,
          training__gradient_accumulation_steps=1, training__epochs=3)
    pairs = [ROWS[place]["input_ids"] + ROWS[place + 1]["input_ids"] for place in range(0, 8, 2)]
    orders = [tuple(pairs.index(batch) for batch in seen[start : start + 4]) for start in (0, 4, 8)]
    assert len(seen) == 12 and all(sorted(order) == [0, 1, 2, 3]
                                   for order in orders) and len(set(orders)) > 1


def test_development_records_are_evaluated(tmp_path):
    said, shown = [], []
    trainer, _, _ = train(tmp_path, dev_rows=ROWS[:2],
                          callbacks=[LiveReport(said.append, shown.append, tokens=16.0, price=3.0,
                                                before=3600.0)],
                          training__per_device_train_batch_size=2,
                          training__gradient_accumulation_steps=1)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    assert len(said) == 4 and said[0].startswith("step 1 of 4: loss ") and "$3.0" in said[0]
    last = shown[-1]
    assert (last.step, last.steps, last.seconds_left) == (4, 4, 0.0) and last.tokens_per_second > 0
    assert 3.0 < last.dollars < 3.5
    assert last.last("eval_loss") == losses[-1] and last.last("grad_norm") > 0
    assert Moment(**json.loads(json.dumps(vars(last)))) == last


def test_the_evaluation_loss_is_the_mean_over_tokens(tmp_path):
    trainer, _, _ = train(tmp_path, dev_rows=ROWS[:3], training__per_device_train_batch_size=8,
                          training__gradient_accumulation_steps=1)
    with torch.no_grad():
        total, count = supervised_loss(trainer.model.eval(), flatten_rows(ROWS[:3]))
    assert [entry["eval_loss"] for entry in trainer.state.log_history
            if "eval_loss" in entry][-1] == pytest.approx(total.item() / count, rel=1e-5)


@pytest.mark.parametrize("error", [
    OSError(28, "No space left on device"),
    RuntimeError("PytorchStreamWriter failed: No space left on device")])
def test_a_full_disk_leaves_the_last_complete_checkpoint(error, tmp_path, monkeypatch):
    "The second checkpoint finds no room; run again with room, training resumes from the first."
    inner, saves = torch.save, []

    def full(value, place, *more, **options):
        saves.append(str(place))
        if "checkpoint-6" in str(place):
            raise error
        return inner(value, place, *more, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(TrainingError,
                           match="disk is full, so the checkpoint of step 6 could not be written"):
            train(tmp_path, callbacks=[Checkpoints(tmp_path)], **RESUMED)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert last_complete(tmp_path).name == "checkpoint-3"
    checkpoints = Checkpoints(tmp_path)
    trainer, _, _ = train(tmp_path, callbacks=[checkpoints], resume_from=checkpoints.last,
                          **RESUMED)
    assert trainer.state.global_step == 24


def test_an_older_checkpoint_goes_only_when_the_new_one_is_complete(tmp_path):
    seen = []

    class Looker(TrainerCallback):
        def on_save(self, args, state, control, **_):
            seen.append(sorted(int(path.name[11:]) for path in tmp_path.glob("checkpoint-*")))

    settings = {**RESUMED, "run.save_total_limit": 1, "training.epochs": 1.0}
    train(tmp_path, callbacks=[Looker(), Checkpoints(tmp_path), Looker()], **settings)
    assert seen == [[3], [3], [3, 6], [6], [6, 8], [8]]


def test_a_resumed_training_saves_as_often_as_is_asked_now(tmp_path):
    saved = []

    class Looker(TrainerCallback):
        def on_save(self, args, state, control, **_):
            saved.append(state.global_step)

    train(tmp_path, callbacks=[Checkpoints(tmp_path)], **{**RESUMED, "training.max_steps": 24, "run.save_steps": 10})
    for step in (20, 24):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    checkpoints = Checkpoints(tmp_path)
    train(tmp_path, callbacks=[checkpoints, Looker()], resume_from=checkpoints.last, **{**RESUMED, "training.max_steps": 24, "run.save_steps": 4})
    assert saved == [12, 16, 20, 24]


def test_what_was_judged_otherwise_is_no_best_step(tmp_path):
    train(tmp_path, callbacks=[Checkpoints(tmp_path, "four answers")], **{**RESUMED, "training.epochs": 1.0})
    for judged_by, kept in (("four answers", 6), ("eight answers", None)):
        state = TrainerState(best_metric=0.9, best_global_step=6)
        checkpoints = Checkpoints(tmp_path, judged_by)
        checkpoints.on_train_begin(SimpleNamespace(logging_steps=1, eval_steps=1, save_steps=1), state, None)
        assert state.best_global_step == kept and (state.best_metric is None) == (kept is None)
        assert bool(state.best_model_checkpoint) == bool(kept)


def test_a_checkpoint_that_misses_a_file_is_not_complete(tmp_path):
    train(tmp_path, callbacks=[Checkpoints(tmp_path)], **{**RESUMED, "training.epochs": 1.0})
    checkpoint = last_complete(tmp_path)
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != COMPLETE)
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
            "trainer_state.json"} <= set(names)
    for name in names:
        content = (checkpoint / name).read_bytes()
        for damaged in (None, content[:-1]):
            (checkpoint / name).unlink()
            if damaged is not None and content:
                (checkpoint / name).write_bytes(damaged)
            assert last_complete(tmp_path) != checkpoint, name
            (checkpoint / name).write_bytes(content)
    assert last_complete(tmp_path) == checkpoint
    (checkpoint / COMPLETE).write_text("{", encoding="utf-8")
    (tmp_path / "checkpoint-99").mkdir()
    assert last_complete(tmp_path).name == "checkpoint-6"
    remove_checkpoints(tmp_path)
    assert last_complete(tmp_path) is None and Checkpoints(tmp_path).step_before == 0


def test_filler_rows_fill_up_a_step_and_train_nothing():
    order = list(GroupSampler([one["group"] for one in ROWS[:6]], 1, multiple=4))
    assert sorted(order) == [0, 1, 2, 3, 4, 5, 6, 6] and order[-2:] == [6, 6]
    model, filler = tiny_model().train(), filler_row(ROWS)
    total, count = supervised_loss(model, flatten_rows([filler]), allow_empty=True)
    total.backward()
    assert (total.item(), count) == (0.0, 0) and all(not value.grad.any()
                                                     for value in model.parameters()
                                                     if value.grad is not None)
    together, alone = (supervised_loss(model, flatten_rows(part))
                       for part in ([ROWS[0], filler], [ROWS[0]]))
    assert together[0].item() == pytest.approx(alone[0].item(),
                                               rel=1e-6) and together[1] == alone[1]


# order


@pytest.mark.parametrize("groups", [["a"], ["a", "b", "a", "c", "b", "d"],
                                    [str(place // 3) for place in range(30)]])
def test_sampler_keeps_groups_and_covers_all(groups):
    sampler = GroupSampler(groups, seed=3)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(len(groups))) and len(sampler) == len(groups)
        assert order == list(sampler)
        named = [groups[place] for place in order]
        assert 1 + sum(before != after for before,
                       after in zip(named, named[1:])) == len(set(groups))
        orders.append(tuple(order))
    assert len(set(orders)) > 1 or len(set(groups)) == 1
    assert list(GroupSampler(groups, seed=3)) == list(orders[0])


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 7, 50])
@pytest.mark.parametrize("seed", range(4))
def test_joined_groups_lose_nothing_and_fill_whole_batches(batch, seed):
    chance, rows = random.Random(seed), iter(range(10 ** 6))
    groups = [[next(rows) for _ in range(chance.randint(1, 8))] for _ in range(40)]
    whole, left = joined_groups(groups, batch)
    assert sorted(sum(whole, []) + left) == sorted(sum(groups, []))
    assert all(len(one) % batch == 0 and one for one in whole)
    placed = sum(whole, []) + left
    for group in groups:
        start = placed.index(group[0])
        assert placed[start:start + len(group)] == group


def naively_joined(groups, batch):
    "What `joined_groups` finds, by looking at all that wait."
    whole, waiting = [], []
    for rows in groups:
        other = next((one for one in waiting if (len(one) + len(rows)) % batch == 0), None)
        if len(rows) % batch == 0:
            whole.append(rows)
        elif other is not None:
            waiting.remove(other)
            whole.append(other + rows)
        else:
            waiting.append(rows)
    left = []
    for rows in waiting:
        left = left + rows
        if len(left) % batch == 0:
            whole.append(left)
            left = []
    return whole, left


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_joined_in_the_same_way_without_looking_at_all_that_wait(seed):
    chance, rows = random.Random(seed), iter(range(10 ** 6))
    groups = [[next(rows) for _ in range(chance.randint(1, 9))] for _ in range(chance.randint(0, 60))]
    for batch in range(1, 12):
        assert joined_groups(groups, batch) == naively_joined(groups, batch)


def test_many_groups_are_joined_soon():
    started = time.process_time()
    joined_groups([[place] for place in range(50_000)], 8)
    assert time.process_time() - started < 5  # seconds; looking at all that wait takes a time that grows with the square


def test_a_group_of_another_size_does_not_split_all_that_come_after():
    groups = [name for place in range(60) for name in [str(place)] * (5 if place % 20 == 1 else 6)]
    order = list(GroupSampler(groups, seed=1, batch=6))
    contexts = [len({groups[place] for place in order[start:start + 6]})
                for start in range(0, len(order), 6)]
    assert sum(count > 1 for count in contexts) <= 3
    assert [len({groups[place] for place in list(GroupSampler(groups, seed=1))[start:start + 6]})
            for start in range(0, len(groups), 6)].count(1) < len(contexts) - 10


# records to rows


def test_all_records_that_do_not_fit_come_at_once():
    config = tiny_config(data__max_seq_length=200,
                         evaluation__generation_defaults__max_new_tokens=20)
    records = [{"id": "fine", "messages": chat("yes")},
               {"id": "long", "messages": chat("yes", question="why " * 60)},
               {"id": "wordy", "messages": chat("no " * 9)},
               {"id": "both", "messages": chat("no " * 9, question="why " * 60)},
               {"id": "blank", "messages": chat(" ")}]
    tokenizer = tiny_tokenizer()
    with pytest.raises(RecordsError) as error:
        encode_records(tokenizer, records, config, {tokenizer.eos_token_id})
    found = [(problem.where, problem.code) for problem in error.value.problems]
    assert found == [("long", "too_long"), ("wordy", "answer_too_long"), ("both", "too_long"),
                     ("both", "answer_too_long"), ("blank", "mask")]
    length = len(encode_chat(tokenizer, records[1]["messages"])["input_ids"])
    assert f"long: {length} tokens, over data.max_seq_length 200" in str(error.value)
    assert "wordy: its answer has 27 tokens, over max_new_tokens 20" in str(error.value)


def test_all_answers_of_a_conversation_are_learned_each_behind_its_own_prompt():
    tokenizer, config = tiny_tokenizer(LAST_TURN, eos="<|end|>"), tiny_config()
    record = {"id": "talk", "answerable": True, "messages": [
        *chat("first", "One?"), *chat("second", "Two?")[1:]]}
    single = {"id": "single", "messages": chat("only")}
    rows = encode_records(tokenizer, every_answer([record, single]), config,
                          {tokenizer.eos_token_id})
    learned = [tokenizer.decode([label for label in one["labels"] if label != IGNORED])
               for one in rows]
    assert learned == ["first<|end|>", "second<|end|>", "only<|end|>"]
    assert [one["group"] for one in rows] == ["talk", "talk", "single"]
    prompt = encode_chat(tokenizer, record["messages"][:3])
    assert rows[0]["input_ids"] == prompt["input_ids"]


def test_limits_are_inclusive_and_lengths_are_counted():
    tokenizer, records = (tiny_tokenizer(), [{"id": "a", "messages": chat("yes"), "group": "g"},
                                             {"id": "b", "messages": chat("no")}])
    lengths = token_lengths(tokenizer, records)
    assert lengths["answer"] == [4, 3] and lengths["record"][0] == lengths["record"][1] + 1
    config = tiny_config(data__max_seq_length=lengths["record"][0],
                         evaluation__generation_defaults__max_new_tokens=4)
    rows = encode_records(tokenizer, records, config, {tokenizer.eos_token_id})
    assert [one["group"] for one in rows] == ["g", "b"] and [len(one["input_ids"])
                                                             for one in rows] == lengths["record"]


@pytest.mark.parametrize("split", ["train", "dev", "eval", "sealed"])
def test_the_longest_committed_records_fit_the_config_of_the_seed(smollm, split):
    config = load_config(ROOT / "configs" / "train.adapter.qlora.yaml")
    records = read_records(ROOT / "data" / "training" / f"kwanzaa_{split}.jsonl")
    longest = sorted(records, key=lambda record: len(json.dumps(record["messages"])))[-40:]
    rows = encode_records(smollm, longest, config, {smollm.eos_token_id})
    assert len(rows) == len(longest)


# steps and arguments


@pytest.mark.parametrize("rows, batch, accumulation, epochs, most, steps",
                         [(120, 1, 16, 2, None, 16), (8, 4, 2, 1, None, 1), (9, 4, 2, 1, None, 2),
                          (9, 4, 2, 1.5, None, 3), (1, 4, 2, 3, None, 3), (100, 4, 2, 1, 7, 7)])
def test_steps(rows, batch, accumulation, epochs, most, steps):
    config = tiny_config(training__per_device_train_batch_size=batch,
                         training__gradient_accumulation_steps=accumulation,
                         training__epochs=epochs, training__max_steps=most)
    assert step_budget(config, rows)[0]["steps"] == steps


@pytest.mark.parametrize("steps, ratio, warmup", [(1, 0.03, 0), (17, 0.03, 0), (33, 0.03, 0), (34, 0.03, 2), (164, 0.05, 9), (10, 0.0, 0)])
def test_a_warm_up_of_less_than_a_step_is_none(steps, ratio, warmup):
    "Its first step learns nothing, and would be the only one of the shortest trainings."
    assert step_budget(tiny_config(training__max_steps=steps, training__warmup_ratio=ratio), 1000)[0]["warmup_steps"] == warmup


def test_a_training_of_one_step_learns(tmp_path):
    before = adapter_weights(add_adapter(tiny_model(), tiny_config(**STEADY)))
    _, _, after = train(tmp_path, **{"training.max_steps": 1, "training.warmup_ratio": 0.03, "training.lr_scheduler": "cosine"})
    assert any(not torch.equal(before[name], after[name]) for name in before if "lora_B" in name)


def test_intervals_are_lowered_and_that_is_said():
    config = tiny_config(run__logging_steps=50, run__eval_steps=200, run__save_steps=3,
                         training__max_steps=40, training__warmup_ratio=0.03)
    budget, fallbacks = step_budget(config, 1000)
    assert (budget["logging_steps"], budget["eval_steps"], budget["save_steps"],
            budget["warmup_steps"]) == (4, 20, 3, 2)
    assert [(item.key, item.requested, item.used)
            for item in fallbacks] == [("run.logging_steps", 50, 4), ("run.eval_steps", 200, 20)]
    assert all("40 steps" in item.reason for item in fallbacks)
    single, _ = step_budget(tiny_config(training__max_steps=1), 1000)
    assert min({**single, "warmup_steps": 1}.values()) >= 1
    unchanged = tiny_config(run__logging_steps=4, run__eval_steps=20, run__save_steps=20,
                            training__max_steps=40)
    assert step_budget(unchanged, 1000)[1] == ()


def test_more_processes_take_fewer_steps():
    config = tiny_config(training__per_device_train_batch_size=2,
                         training__gradient_accumulation_steps=2)
    assert [step_budget(config, 64, processes)[0]["steps"] for processes in (1, 2, 4)] == [16, 8, 4]


OTHER = {"run.seed": 7, "run.mixed_precision": "fp16", "run.device": None, "run.name": None,
         "run.output_dir": None, "run.logging_steps": 3, "run.save_steps": 4, "run.eval_steps": 5,
         "run.save_total_limit": 9, "run.report_to": ("tensorboard",), "training.epochs": 3,
         "training.max_steps": 77, "training.learning_rate": 0.5, "training.lr_scheduler": "linear",
         "training.warmup_ratio": 0.5, "training.weight_decay": 0.25,
         "training.per_device_train_batch_size": 3, "training.per_device_eval_batch_size": 5,
         "training.gradient_accumulation_steps": 9, "training.max_grad_norm": 0.1,
         "training.optim": "adafactor", "training.gradient_checkpointing": True,
         "training.select_by": "loss", "training.extra": {"adam_beta2": 0.5},
         "training.turns": "all", "training.early_stopping_patience": 2}
ELSEWHERE = {"run.device", "run.name", "run.output_dir", "training.turns",
             "training.early_stopping_patience"}  # hardware, stages, records, a callback
GPU = Hardware("cuda", "A100", True, True, True)


def test_every_key_is_in_the_list():
    keys = {f"run.{name}" for name in RunSection.model_fields} | {
        f"training.{name}" for name in TrainingSection.model_fields
    }
    assert set(OTHER) == keys


@pytest.mark.parametrize("key", sorted(set(OTHER) - ELSEWHERE))
def test_every_key_reaches_the_trainer(monkeypatch, key):
    monkeypatch.setattr(training, "SFTConfig", lambda **given: SimpleNamespace(**given))
    base = {"training.max_steps": 100} if key.startswith("run.") else {}

    def arguments(changes):
        config = tiny_config(**{"run.mixed_precision": "bf16", **base, **changes})
        budget, _ = step_budget(config, 1000)
        return vars(trainer_arguments(
            config, runtime_settings(config, GPU), budget, "folder", True))

    plain, changed = arguments({}), arguments({key: OTHER[key]})
    different = {name for name in plain | changed if plain.get(name) != changed.get(name)}
    assert different
    name = {
        "training.epochs": "num_train_epochs",
        "training.lr_scheduler": "lr_scheduler_type",
        "run.mixed_precision": "fp16",
        "training.warmup_ratio": "warmup_steps",
        "training.select_by": "metric_for_best_model",
        "training.extra": "adam_beta2",
    }.get(key, key.split(".")[1])
    assert name in different
    if key == "training.extra":
        assert changed[name] == 0.5
    elif key not in ("run.mixed_precision", "training.warmup_ratio", "training.select_by"):
        assert changed[name] == (list(OTHER[key]) if isinstance(OTHER[key], tuple) else OTHER[key])


def test_arguments_are_ones_that_trl_takes(tmp_path):
    config = tiny_config(**STEADY)
    arguments = trainer_arguments(config, CPU, step_budget(config, 100)[0], tmp_path, False)
    assert arguments.use_cpu and not arguments.bf16 and not arguments.fp16
    assert arguments.max_steps == -1
    assert arguments.eval_strategy == "no" and arguments.report_to == [] and not arguments.packing
    assert trainer_arguments(config, CPU, step_budget(config, 100)[0], tmp_path,
                             True).eval_strategy == "steps"


# the decision


@pytest.mark.parametrize("split", ["train", "eval"])
def test_the_decision_of_every_committed_target_is_at_the_measured_token(smollm, split):
    sides = set()
    for record in read_records(ROOT / "data" / "training" / f"kwanzaa_{split}.jsonl")[::12]:
        refused = record["expected"]["completeness"] == "insufficient_data"
        target = record["messages"][-1]["content"]
        assert target.startswith(REFUSING if refused else DECISION)
        assert refused is not target[len(DECISION)].isdigit()
        before, answering, refusing = at_decision(smollm, record["messages"])
        tokens = encode_chat(smollm, record["messages"])["input_ids"]
        assert refusing not in answering and tokens[:len(before)] == before
        assert tokens[len(before)] in ([refusing] if refused else answering), record["id"]
        sides.add(refused)
    assert sides == {True, False}


def test_the_probability_is_that_of_every_number_against_the_refusal():
    model, tokenizer = tiny_model(attention="sdpa"), tiny_tokenizer()
    before, answering, refusing = at_decision(tokenizer, chat())
    assert tokenizer.decode(before).endswith(DECISION)
    assert tokenizer.decode([*answering, refusing]) == "123456789]"
    eager = tiny_model(attention="eager")
    with torch.no_grad():
        chances = eager(torch.tensor([before])).logits[0, -1].softmax(-1)
    answers = chances[list(answering)].sum()
    expected = (answers / (answers + chances[refusing])).item()
    prompts = encode_prompts(tokenizer, [{"id": "a", "messages": chat()}])
    (_, found), = read_decisions(model, prompts)
    assert found == pytest.approx(expected, abs=1e-5)


# what is kept


def test_an_adapter_replaces_the_folder_whole(tmp_path):
    config = tiny_config(**STEADY)
    adapted, folder = add_adapter(tiny_model(), config), tmp_path / "run" / "adapter"
    folder.mkdir(parents=True)
    (folder / "old.txt").write_text("old", encoding="utf-8")
    assert save_adapter(adapted, tiny_tokenizer(), folder,
                        {"training_config.yaml": "a: 1\n"}) == folder
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "training_config.yaml",
            "tokenizer.json"} <= names
    assert not names & {"old.txt", "README.md"}
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved and all(".lora_" in name for name in saved)
    assert sum(weight.numel()
               for weight in saved.values()) == adapted.get_nb_trainable_parameters()[0]


def test_a_failure_leaves_the_old_adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "old.txt").write_text("old", encoding="utf-8")

    class Broken:
        def save_pretrained(self, *_, **__):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_adapter(add_adapter(tiny_model(), tiny_config(**STEADY)), Broken(), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (folder / "old.txt").read_text() == "old"


@pytest.mark.parametrize("published, named", [
    ("owner/base", ("owner/base", None)), ("owner/base@v1", ("owner/base", "v1")),
    (None, (None, None))])
def test_what_is_kept_names_no_local_folder(tmp_path, published, named):
    local = tmp_path / "home-of-ada" / "model"
    tiny_model().save_pretrained(local)
    tiny_tokenizer().save_pretrained(local)
    config = tiny_config(**{**STEADY, "model.base_model_id": str(local),
                            "publishing.metadata.base_model_id": published})
    adapted = add_adapter(AutoModelForCausalLM.from_pretrained(local), config)
    folder = save_adapter(adapted, load_tokenizer(config), tmp_path / "adapter",
                          base_model=published)
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            assert "home-of-ada" not in path.read_text(encoding="utf-8"), path.name
    described = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (described["base_model_name_or_path"], described["revision"]) == named


def test_a_saved_adapter_gives_the_trained_models_outputs(tmp_path, whole):
    trainer = whole[0]
    folder = save_adapter(trainer.model, tiny_tokenizer(), tmp_path / "adapter")
    again = load_adapter(tiny_model(), folder)
    inputs = {name: value for name, value in flatten_rows(ROWS).items() if name != "labels"}
    with torch.no_grad():
        trained, loaded, base = (model.eval()(**inputs, use_cache=False).logits
                                 for model in (trainer.model, again, tiny_model()))
    assert torch.allclose(trained, loaded, atol=1e-6) and not torch.allclose(trained, base,
                                                                             atol=1e-3)


# Killed and run again
DYING = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_training as shared
from transformers import TrainerCallback
from kwanzaa_nb.train.resume import Checkpoints

class Killer(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == {step}:
            os.kill(os.getpid(), signal.SIGKILL)

checkpoints = Checkpoints({folder!r})
shared.train({folder!r}, callbacks=[checkpoints, Killer()], **shared.RESUMED)
"""
RESUMED = {"adapter.dropout": 0.1, "training.optim": "adamw_torch", "training.learning_rate": 0.01,
           "training.lr_scheduler": "cosine", "training.epochs": 3.0,
           "training.per_device_train_batch_size": 1, "training.gradient_accumulation_steps": 1,
           "run.save_steps": 3}


def test_a_killed_training_ends_with_the_same_bytes(tmp_path):
    "Every third of 24 steps is saved, and SIGKILL comes between two of those."
    whole_trainer, told, expected = train(tmp_path / "whole", **RESUMED)
    script = DYING.format(tests=str(ROOT / "tests"), step=10, folder=str(tmp_path / "killed"))
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    checkpoints = Checkpoints(tmp_path / "killed")
    assert checkpoints.step_before == 9 and checkpoints.seconds_before > 0
    trainer, outcome, found = train(
        tmp_path / "killed", callbacks=[checkpoints], resume_from=checkpoints.last, **RESUMED)
    assert trainer.state.global_step == whole_trainer.state.global_step == 24
    assert all(torch.equal(found[name], expected[name])
               for name in expected) and found.keys() == expected.keys()
    assert outcome["loss"] == pytest.approx(told["loss"], abs=1e-9)


@pytest.mark.parametrize("change", [{"training.learning_rate": 0.5}, {"adapter.r": 3},
                                    {"run.seed": 1}, {"training.epochs": 2.0}, {}, None])
def test_checkpoints_of_other_settings_or_rows_are_others(change):
    first = training_identity(tiny_config(**STEADY), CPU, ROWS)
    rows = ROWS if change is not None else [*ROWS[1:], ROWS[0]]
    same = training_identity(tiny_config(**{**STEADY, **(change or {}), "run.logging_steps": 7}),
                             CPU, rows) == first
    assert same is (change == {})


# Kinds of LoRA, by one key each
@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "pissa"])
def test_a_saved_adapter_of_each_kind_fits_the_untouched_base(method, tmp_path):
    config = tiny_config(**{**STEADY, "adapter.method": method, "adapter.r": 3,
                            "training.learning_rate": 0.3})
    before = tiny_model().state_dict()
    model = add_adapter(tiny_model(), config)
    start = keep_start(model, tmp_path / "start")
    assert (start is None) is (method != "pissa")
    train_adapter(model, tiny_tokenizer(), list(ROWS), [], config, CPU, tmp_path / "checkpoints")
    model.eval()
    tokens = torch.tensor([[5, 9, 11, 13]])
    inputs = {"input_ids": tokens, "position_ids": torch.arange(4)[None]}
    model.set_attn_implementation("sdpa")
    expected = model(**inputs).logits
    folder = save_adapter(model, tiny_tokenizer(), tmp_path / "adapter", start=start)
    base = tiny_model()
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    loaded = load_adapter(base, folder)
    loaded.set_attn_implementation("sdpa")
    found = loaded(**inputs).logits
    base.set_attn_implementation("sdpa")
    with loaded.disable_adapter():
        untouched = loaded(**inputs).logits
    assert (found - expected).abs().max() < 1e-4 < (untouched - expected).abs().max()


def test_the_kinds_learn_differently(tmp_path):
    weights = {}
    for name, changes in {"plain": {}, "rslora": {"adapter.method": "rslora"},
                          "dora": {"adapter.method": "dora"}}.items():
        _, _, weights[name] = train(tmp_path / name, **changes)
    assert set(weights["dora"]) > set(weights["plain"])
    assert largest_difference(weights["plain"], weights["rslora"]) > 1e-6


@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
def test_one_process_keeps_to_one_gpu(gpus):
    arguments = SimpleNamespace(n_gpu=gpus, _n_gpu=gpus)
    assert training.on_one_gpu(arguments)._n_gpu == min(gpus, 1)


def test_what_trl_does_to_trained_weights_is_undone(monkeypatch, tmp_path):
    "Over a base in four bits TRL rounds them to bf16; an adapter that is trained further must start as it was."
    _, _, whole = train(tmp_path / "whole")
    made = training.SFTTrainer.__init__

    def rounding(self, *args, **options):
        for one in options["model"].parameters():
            one.data = one.data.to(torch.bfloat16) if one.requires_grad else one.data
        made(self, *args, **options)

    monkeypatch.setattr(training.SFTTrainer, "__init__", rounding)
    _, _, rounded = train(tmp_path / "rounded")
    assert largest_difference(whole, rounded) == 0


def test_states_that_were_paged_are_ordinary_once_they_are_read(monkeypatch):
    monkeypatch.setattr("transformers.Trainer._load_optimizer_and_scheduler", lambda self, checkpoint: None)
    state, trainer = torch.zeros(3), object.__new__(training.CheckpointTrainer)
    state.is_paged = True
    trainer.optimizer = SimpleNamespace(state={"weight": {"state1": state, "step": 3}})
    trainer._load_optimizer_and_scheduler("checkpoint")
    assert state.is_paged is False


def test_freed_memory_is_kept_and_given_back_on_request():
    "In a process of its own, since nothing undoes it."
    script = """
import resource, torch
from kwanzaa_nb.train.trainer import give_memory_back, keep_freed_memory
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
assert keep_freed_memory()
before = held()
torch.ones(30_000_000).sum()
kept = held() - before
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(30_000_000).sum()
again = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
give_memory_back()
print(kept > 110_000_000, again < 5_000, held() - before < 20_000_000)
"""
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc can be told")
    for _ in range(3):  # a system that is short of memory takes pages back in between
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        if found.stdout.split() == ["True", "True", "True"]:
            return
    raise AssertionError(found.stdout + found.stderr)
