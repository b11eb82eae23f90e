"An adapter that learns from its own outputs: each method for two steps, resumed, stopped, and with nothing to learn."

import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_train_command import config_file, some_records
from tiny import ROOT, tiny_config, tiny_model, tiny_tokenizer

import kwanzaa_nb.train.improve as improve
from kwanzaa_nb.bench.forgeries import FORGERIES, REFUSALS, forged_cases
from kwanzaa_nb.core.config import resolve_config
from kwanzaa_nb.core.gates import Verdict, count_gates
from kwanzaa_nb.core.manifest import CHAIN, read_manifest, run_adapter, stages_of
from kwanzaa_nb.core.results_file import verdict
from kwanzaa_nb.core.stage import Stage
from kwanzaa_nb.evaluate.gates import gate_judge
from kwanzaa_nb.evaluate.improved import (forged_rate, gaming_signs, gaming_table,
                                          improvement_sentence, own_records, side_by_side)
from kwanzaa_nb.evaluate.metrics import controls, read_cases, score_arms
from kwanzaa_nb.model.load import add_adapter, load_adapter, load_base, load_tokenizer
from kwanzaa_nb.run.launch import run_all
from kwanzaa_nb.train.command import Training, TrainingStopped, settle_settings
from kwanzaa_nb.train.extra import ExtraError
from kwanzaa_nb.train.preferences import (ImproveError, best_of, choose_answers, keep_share,
                                          make_pairs, refused_share, target_refuses)
from kwanzaa_nb.train.rewards import GateRewards
from kwanzaa_nb.train.trainer import save_adapter

WEIGHTS = "adapter_model.safetensors"
SIZES = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with a base model, six records of both kinds, and an adapter that is not zero."
    folder = tmp_path_factory.mktemp("improve")
    tiny_model(attention="sdpa").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    for name, count in (("train", 6), ("dev", 4), ("eval", 2)):
        lines = [json.dumps(one) for one in some_records("dev" if name == "train" else name, count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def work_of(home, name, method, judge=None, **changes):
    "The work of a run whose adapter is there."
    file = config_file(
        home, name, evaluation={"generation_defaults": SIZES, "batch_size": 4},
        training={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
                  "select_by": None}, run={"save_steps": 1})
    given = {"improve.method": method, **changes}
    given["improve.extra"] = {"samples": 2, **changes.get("improve.extra", {})}
    config = resolve_config(file, given)
    stage = Stage("improve", config, file)
    if not (stage.folder / "adapter").exists():
        work = improve.Improvement(stage, judge or halves)
        improve.settle(work)
        model = add_adapter(load_base(config, work.effective, attention="sdpa"), config)
        torch.manual_seed(5)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = torch.randn_like(weight) * 0.05
        save_adapter(model, load_tokenizer(config), stage.folder / "adapter")
    return improve.Improvement(stage, judge or halves)


def halves(records):
    "A judge that lets every second output of a record pass, whatever it says."
    def judged(outputs):
        seen, verdicts = {}, []
        for one in outputs:
            place = seen[one["id"]] = seen.get(one["id"], -1) + 1
            verdicts.append(Verdict(one["id"], one["raw"], "support" if place % 2 else None,
                                    tokens=tuple(one.get("tokens", ())),
                                    ended=one["finish_reason"] == "stop"))
        return verdicts
    return judged


def prepared(work):
    for step in (improve.settle, improve.read, improve.load, improve.sample, improve.choose):
        step(work)
    return improve.learning_rows(work)


def weights_of(folder):
    return load_file(folder / WEIGHTS)


def changed(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method, extra", [
    ("rejection", {}), ("dpo", {}), ("grpo", {}), ("grpo", {"grammar": True})])
def test_two_steps_write_an_adapter_that_loads(home, method, extra):
    name = f"{method}{len(extra)}"
    work = work_of(home, name, method, **{"improve.extra": {"max_steps": 2, **extra}})
    rows = prepared(work)
    improve.estimate(work, rows)
    improve.train(work, rows)
    folder = work.stage.folder
    assert work.outcome["steps"] == 2
    before, after = weights_of(folder / "adapter"), weights_of(folder / improve.IMPROVED)
    assert before.keys() == after.keys() and changed(before, after)
    loaded = load_adapter(load_base(work.config, work.effective, attention="sdpa"),
                          folder / improve.IMPROVED)
    assert list(loaded.peft_config) == ["default"]
    assert not list((folder / "checkpoints").glob("improve-*"))
    told = json.loads((folder / improve.IMPROVED / "improve.json").read_text())
    assert told["method"] == method and told["steps"] == 2
    work.stage.done()
    entry = read_manifest(folder)["stages"]["improve"]
    assert f"{improve.IMPROVED}/{WEIGHTS}" in entry["wrote"]
    assert any(one["key"] == "improve.extra" for one in entry["fallbacks"])


@pytest.mark.parametrize("method", ["rejection", "dpo"])
def test_a_single_step_learns(home, method):
    work = work_of(home, f"single-{method}", method, **{"improve.extra": {"max_steps": 1}})
    improve.train(work, prepared(work))
    folder = work.stage.folder
    assert changed(weights_of(folder / "adapter"), weights_of(folder / improve.IMPROVED))


@pytest.mark.parametrize("method", ["rejection", "dpo", "grpo"])
def test_a_stopped_training_resumes_to_the_same_adapter(home, method, monkeypatch):
    limits = {"improve.extra": {"max_steps": 3}}
    whole = work_of(home, f"whole-{method}", method, **limits)
    improve.train(whole, prepared(whole))
    stopped = work_of(home, f"stopped-{method}", method, **limits)
    rows = prepared(stopped)

    class Stop(improve.Checkpoints):
        def on_save(self, args, state, control, **more):
            super().on_save(args, state, control, **more)
            if state.global_step == 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(improve, "Checkpoints", Stop)
        with pytest.raises(TrainingStopped, match="it resumes from step 1"):
            improve.train(stopped, rows)
    folder = stopped.stage.folder
    assert not (folder / improve.IMPROVED).exists() and (folder / "adapter" / WEIGHTS).exists()
    again = work_of(home, f"stopped-{method}", method, **limits)
    improve.train(again, prepared(again))
    assert again.outcome["steps"] == 3
    assert again.outcome["loss"] == pytest.approx(whole.outcome["loss"], abs=1e-4), "of all steps"
    one, other = (weights_of(work.stage.folder / improve.IMPROVED) for work in (whole, again))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.mark.parametrize("method", ["rejection", "dpo"])
def test_a_training_that_ended_before_its_first_checkpoint_begins_anew_where_it_began(home, method, monkeypatch):
    "The cell is run again, with the model that has learned a step already."
    limits = {"improve.extra": {"max_steps": 2}}
    whole = work_of(home, f"at-once-{method}", method, **limits)
    improve.train(whole, prepared(whole))
    broken = work_of(home, f"broken-{method}", method, **limits)
    rows = prepared(broken)

    class Stop(improve.LiveReport):
        def on_step_end(self, *_, **__):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(improve, "LiveReport", Stop)
        with pytest.raises(TrainingStopped, match="it starts anew"):
            improve.train(broken, rows)
    assert list(broken.model.peft_config) == ["default"]
    improve.train(broken, rows)
    one, other = (weights_of(work.stage.folder / improve.IMPROVED) for work in (whole, broken))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_settings_that_a_method_leaves_out_are_named():
    changes = {"training__max_steps": 9, "training__extra": {"adam_beta2": 0.9}}
    for method, left_out in (("dpo", {"training.max_steps", "training.extra"}), ("rejection", {"training.max_steps"})):
        _, notes = improve.settle_improve(tiny_config(improve__method=method, **changes))
        assert left_out == {one.key for one in notes} & {"training.max_steps", "training.extra"}
    _, notes = improve.settle_improve(tiny_config(improve__method="dpo", improve__extra={"max_steps": 3}, **changes))
    assert "training.max_steps" not in {one.key for one in notes}


def test_samples_are_not_drawn_twice_and_follow_the_adapter(home):
    work = work_of(home, "sampled", "dpo")
    prepared(work)
    log = work.stage.folder / "improve" / "samples.jsonl"
    lines = log.read_text().splitlines()
    assert len(lines) == 1 + 2 * len(work.records)
    log.write_text("\n".join(lines[:6]) + "\n")  # as after an interruption
    again = work_of(home, "sampled", "dpo")
    prepared(again)
    assert log.read_text().splitlines()[:6] == lines[:6]
    assert [one.raw for one in again.verdicts] == [one.raw for one in work.verdicts]
    other = weights_of(work.start)
    from safetensors.torch import save_file
    save_file({name: value * 2 for name, value in other.items()}, work.start / WEIGHTS)
    prepared(work_of(home, "sampled", "dpo"))
    assert len(list(log.parent.glob("samples*.jsonl"))) == 2, "the old log is kept beside"


def test_a_policy_of_zero_steps_is_its_reference(home):
    work = work_of(home, "zero", "dpo", **{"improve.extra": {"max_steps": 1}})
    rows = prepared(work)
    kept = improve.make_trainable(work.model)
    trainer = improve._trl_trainer(work, rows, home / "unused", [])
    improve._undo_rounding(work.model, kept, True)
    batch = trainer.data_collator(rows[:2])
    loss = trainer.compute_loss(work.model, batch)
    assert loss.item() == pytest.approx(0.6931, abs=1e-4)  # log 2: both are equally likely


def test_pairs_are_the_sampled_tokens(home):
    work = work_of(home, "tokens", "dpo")
    rows, end = prepared(work), improve.end_token(load_tokenizer(work.config))
    assert len(rows) == len(work.pairs)
    for row, pair in zip(rows, work.pairs):
        for ids, one in ((row["chosen_ids"], pair.chosen), (row["rejected_ids"], pair.rejected)):
            assert tuple(ids) == one.tokens + ((end,) if one.ended else ())
    assert any(not pair.chosen.ended for pair in work.pairs), "cut off, so without an end"


@pytest.mark.parametrize("method, judge, message", [
    ("rejection", "support", "none of 12 samples passes all gates"),
    ("dpo", "support", "12 samples make no pair"), ("dpo", None, "12 samples make no pair")])
def test_nothing_to_learn_is_one_sentence(home, method, judge, message):
    def judged(outputs):
        return [Verdict(one["id"], one["raw"], judge) for one in outputs]

    work = work_of(home, f"nothing-{method}-{judge}", method, judge=lambda records: judged)
    with pytest.raises(ImproveError, match=message) as caught:
        prepared(work)
    assert "\n" not in str(caught.value)
    assert not (work.stage.folder / improve.IMPROVED).exists()


def test_targets_are_chosen_only_where_asked(home):
    def judge(records):
        return lambda outputs: [Verdict(one["id"], one["raw"] or "x", "json") for one in outputs]

    work = work_of(home, "targets", "dpo", judge=judge, **{"improve.extra": {"targets": True}})
    rows = prepared(work)
    assert rows and all(pair.from_target for pair in work.pairs)


@pytest.mark.parametrize("changes, message", [
    ({"improve.method": None}, "improve.method is null"),
    ({"improve.extra": {"betta": 1}}, "did you mean beta"),
    ({"improve.extra": {"seed": 1}}, "improve.extra.seed can't be set"),
    ({"improve.method": "grpo", "improve.extra": {"temperature": 0}}, "above 0"),
    ({"improve.extra": {"samples": 1}}, "a whole number from 2 on"),
    ({"improve.extra": {"records": 1}}, "records is 1: write a whole number from 2 on, or null"),
    ({"improve.extra": {"samples": True, "grammar": 1, "betta": 2}}, "samples is True.*grammar is 1.*did you mean beta"),
    ({"improve.method": "rejection", "improve.extra": {"beta": 1}}, "no argument of TRL's SFTConfig")])
def test_wrong_settings_are_one_sentence(home, changes, message):
    work = work_of(home, "wrong", "dpo")
    config = resolve_config(home / "wrong.yaml", {"improve.method": "dpo", **changes})
    with pytest.raises(ImproveError, match=message):
        improve.settle_improve(config)
    assert work.method == "dpo"


@pytest.mark.parametrize("method, extra, message", [
    ("rejection", {"lr_scheduler_type": "cosine"}, "improve.extra.lr_scheduler_type"),
    ("rejection", {"weight_decay": "much"}, "improve.extra.weight_decay"),
    ("dpo", {"loss_type": ["sigmoid"], "loss_weights": [1, 2]}, "TRL refuses"),
    ("grpo", {"loss_type": "grpo", "epsilon": "wide"}, "TRL refuses|epsilon"),
    ("dpo", {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps can't be set")])
def test_values_are_refused_before_anything_is_sampled(home, method, extra, message):
    work_of(home, "values", "dpo")
    config = resolve_config(home / "values.yaml", {"improve.method": method, "improve.extra": extra})
    work = improve.Improvement(Stage("improve", config, home / "values.yaml"), halves)
    with pytest.raises((ImproveError, ExtraError), match=message):
        improve.settle(work)
        improve.check_arguments(work)


def test_rejection_keeps_what_training_was_asked_for_without_practice_and_pushing(home):
    asked = {"practice": 3, "evidence_weight": 6, "adam_beta1": 0.8, "adam_beta2": 0.9,
             "push_to_hub": True, "hub_model_id": "ada/shed"}
    work = work_of(home, "kept", "rejection", **{
        "training.extra": asked, "improve.extra": {"adam_beta2": 0.95}})
    improve.settle(work)
    assert dict(improve.rejection_config(work).training.extra) == {
        "evidence_weight": 6, "adam_beta1": 0.8, "adam_beta2": 0.95}


def test_answers_that_are_all_too_long_are_one_sentence(home):
    work = work_of(home, "long", "rejection", **{"data.max_seq_length": 40})
    with pytest.raises(ImproveError, match="answers have with their prompts over 40 tokens"):
        prepared(work)


def test_an_estimate_knows_the_price_of_the_gpu_that_is_here_and_counts_both_of_a_pair(home):
    work = work_of(home, "priced", "dpo", **{"improve.extra": {"max_steps": 2}})
    rows = prepared(work)
    assert improve.estimate(work, rows).usd_per_hour == 0
    assert improve.counted_config(work).training.per_device_train_batch_size == 2
    work.hardware = replace(work.hardware, device="cuda", name="NVIDIA H100 80GB HBM3")
    assert improve.estimate(work, rows).usd_per_hour > 0


def test_refusals_keep_their_share():
    rng = random.Random(1)
    for _ in range(50):
        items = [rng.random() < 0.7 for _ in range(rng.randint(8, 60))]
        share = rng.choice([0.2, 1 / 3, 0.5, 0.8])
        if len(set(items)) < 2:
            continue
        kept = keep_share([[one] for one in items], lambda one: one[0], share)
        refused = sum(one[0] for one in kept)
        wanted = refused + (len(kept) - refused)
        assert abs(refused - share * wanted) <= 1, (items.count(True), len(items), share)
    with pytest.raises(ImproveError, match="want answers can be learned from"):
        keep_share([1, 1], bool, 0.5)


def test_what_no_sample_passed_keeps_its_target_where_that_is_asked_for():
    records = some_records("dev", 8)
    passing = {record["id"] for record in records[::3]}
    verdicts = [Verdict(one["id"], f"said {turn}", None if turn and one["id"] in passing else "support") for one in records for turn in range(3)]
    targets = {record["id"]: record["messages"][-1]["content"] for record in records}
    learned = {one["id"]: one["messages"][-1]["content"] for one in choose_answers(records, verdicts, targets=True)}
    assert learned == {name: "said 1" if name in passing else target for name, target in targets.items()}
    assert {record["id"]: record["messages"][-1]["content"] for record in records} == targets  # theirs are left alone
    assert choose_answers(records, [], targets=True) == records


def test_share_is_kept_of_what_passed_unevenly():
    records = some_records("dev", 8)
    verdicts = [Verdict(one["id"], f"{one['id']} {turn}", None if turn and target_refuses(one) or turn == 3 else "answer")
                for one in records for turn in range(4)]
    pairs = make_pairs(records, verdicts)
    share = sum(target_refuses(pair.record) for pair in pairs) / len(pairs)
    assert abs(share - refused_share(records)) <= 1 / len(pairs)


def test_the_best_is_the_commonest_and_then_the_shortest():
    made = [Verdict("a", raw, failed) for raw, failed in (
        ("long one", None), ("short", None), ("long one", None), ("bad", "json"), ("bad", "json"), ("bad", "json"))]
    assert best_of(made).raw == "long one"
    assert best_of(made[:2]).raw == "short"
    assert best_of(made[3:]) is None


def test_rewards_count_gates_in_order_and_judge_once():
    calls = []

    def judge(outputs):
        calls.append(outputs)
        return [Verdict(one["id"], one["raw"], one["raw"] or None) for one in outputs]

    given = {"prompts": ["a"] * 3, "raw": ["evidence", "answer", ""], "reason": ["stop"] * 3}
    columns = [reward(**given) for reward in GateRewards(judge).functions()]
    assert [sum(row) for row in zip(*columns)] == [1, 4, 5]
    assert len(calls) == 1


def outputs_of(records, change):
    return [{"id": one["id"], "arm": "x", "raw": change(one["messages"][-1]["content"]),
             "finish_reason": "stop"} for one in records]


@pytest.mark.parametrize("change, gate", [
    (lambda raw: raw[:-1], "json"), (lambda raw: "{}", "json"),
    (lambda raw: raw.replace('"evidence":[', '"evidence":[999,'), "evidence"),
    (lambda raw: next(one["raw"] for one in REFUSED), "decision")])
def test_first_gate_that_fails(change, gate):
    records = [one for one in some_records("dev", 8) if one["answerable"]]
    verdicts = gate_judge(records)(outputs_of(records, change))
    assert {one.failed for one in verdicts} == {gate}


REFUSED = [one for one in controls(some_records("dev", 2)) if one["arm"] == "always_refuse"]


def test_a_cut_off_answer_fails_the_first_gate():
    records = some_records("dev", 4)
    outputs = [one | {"finish_reason": "length"} for one in outputs_of(records, str)]
    assert count_gates(gate_judge(records)(outputs))["json"] == 4


def test_only_a_paired_test_calls_it_better():
    records = some_records("dev", 40)
    scored = score_arms(controls(records), records)
    gold, refusing = scored["gold"], scored["always_refuse"]
    assert improvement_sentence(refusing, gold).startswith("Better than")
    assert improvement_sentence(gold, refusing).startswith("Not better: ")
    assert improvement_sentence(gold, gold).startswith("Not shown to be better")
    few = some_records("dev", 2)
    scored = score_arms(controls(few), few)
    assert not improvement_sentence(scored["always_refuse"], scored["gold"]).startswith("Better")


def test_signs_of_gaming_rise_where_a_model_games():
    records = some_records("dev", 20)
    by_arm = {}
    for one in controls(records):
        by_arm.setdefault(one["arm"], []).append(one)
    signs = {arm: gaming_signs(by_arm[arm], records) for arm in ("gold", "always_refuse", "copy_first_chunk", "cite_everything")}
    assert signs["cite_everything"]["cites everything"] > 0.4 > signs["gold"]["cites everything"]
    assert signs["always_refuse"]["refuses an answerable"] == 1 > signs["gold"]["refuses an answerable"]
    assert signs["copy_first_chunk"]["copies a whole passage"] > signs["gold"]["copies a whole passage"]
    assert "rose" in str(gaming_table(signs))
    assert "rose" not in str(gaming_table({"a": signs["gold"], "b": signs["gold"]}))


def test_adapters_are_compared_on_the_same_records(home):
    work = work_of(home, "sides", "dpo")
    improve.settle(work)
    folder, records = work.stage.folder, some_records("dev", 3)
    arms = {"adapter": folder / "adapter", "improved": folder / "adapter"}
    outputs = side_by_side(work.config, work.effective, records, arms, folder / "log.jsonl")
    assert [one["arm"] for one in outputs] == ["adapter"] * 3 + ["improved"] * 3
    assert [one["raw"] for one in outputs[:3]] == [one["raw"] for one in outputs[3:]]


def test_improve_is_listed_where_it_ran():
    assert "improve" not in stages_of({"data"})
    assert stages_of({"improve"}) == ("data", "train", "improve", "evaluate", "publish")


def test_refusing_what_can_be_answered_earns_less_than_any_answer():
    "Else a model whose answers still fail would learn to refuse everything."
    records = some_records("dev", 8)
    refusal = REFUSED[0]["raw"]
    for record in records:
        target = record["messages"][-1]["content"]
        raws = [target, refusal, '{"evidence":[1],"answer":{"text":"No such thing. [1]"']
        given = {"prompts": [record["id"]] * 3, "raw": raws, "reason": ["stop"] * 3}
        rewards = GateRewards(gate_judge(records)).functions()
        right, refused, broken = map(sum, zip(*(reward(**given) for reward in rewards)))
        assert right == 5 and broken == 0 and refused == (0 if record["answerable"] else 5)


def test_a_policy_that_refuses_everything_is_rewarded_for_its_right_refusals_alone():
    records = some_records("dev", 12)
    outputs = [one for one in controls(records) if one["arm"] == "always_refuse"]
    given = {"prompts": [one["id"] for one in outputs], "raw": [one["raw"] for one in outputs],
             "reason": ["stop"] * len(outputs)}
    rewards = GateRewards(gate_judge(records)).functions()
    assert sum(map(sum, (reward(**given) for reward in rewards))) == 5 * sum(not one["answerable"] for one in records)


def test_forgeries_are_made_of_an_adapters_own_answers():
    records = [one for one in some_records("dev", 60) if one["category"] != "red_team"]
    by_arm = {}
    for one in controls(records):
        by_arm.setdefault(one["arm"], []).append(one)
    assert not any(one["answerable"] for one in own_records(by_arm["always_refuse"], records))
    own = own_records(by_arm["gold"], records)
    rate = forged_rate(own, forged_cases, [*FORGERIES, *REFUSALS])
    assert len(own) > 20 and rate.total > 50 and rate.value < 0.05
    assert rate.clusters == len({case.document for case in read_cases(own) if case.answerable})
    told = {"number changed": [(True, "a"), (False, "b")], "introduced": [(True, "a")] * 9, "nearly": [(True, "a"), (False, "b")] * 9}
    assert forged_rate(own, lambda given, count: told, ["number changed"]).value == 0.5
    together = forged_rate(own, lambda given, count: told, ["number changed", "nearly"])
    assert (together.value, together.total, together.clusters) == (0.5, 20, 2) and together.high - together.low > 0.9
    assert forged_rate([], lambda given, count: {"nearly": []}, ["nearly"]).total == 0
    changed = [{**one, "raw": one["raw"].replace('"text":"', '"text":"Well, ')} for one in by_arm["gold"]]
    assert all("Well, " in one["messages"][-1]["content"] for one in own_records(changed, records))


# ---- the stage by its notebook


class Shown:
    "What `display` returns, and what it was told last."

    def __init__(self, value, display_id=True):
        self.update(value)

    def update(self, value):
        self.value = value


def run_cells(**given):
    "Run the cells of the stage's notebook in this process, with values for its parameters."
    found = {"display": Shown, "In": [], "__name__": "__main__"}
    cells = json.loads((ROOT / "nbs/02b_improve.ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "google.colab" not in source:
            exec(compile(source, cell["id"], "exec"), found)
            found.update(given if "parameters" in cell["metadata"].get("tags", []) else {})
    return found


@pytest.mark.parametrize("method, extra", [
    ("rejection", {"num_train_epochs": 1}), ("dpo", {"targets": True}), ("grpo", {"grammar": True, "max_steps": 1})])
def test_the_whole_stage_ends_in_a_comparison(home, method, extra, monkeypatch):
    "From the samples to the verdict; only what passes is made up, where the tiny model's outputs never would."
    work = work_of(home, f"stage-{method}", method)
    folder = work.stage.folder
    if method == "rejection":
        monkeypatch.setattr("kwanzaa_nb.evaluate.gates.gate_judge", halves)
    overrides = {"improve.method": method, "improve.extra": {"samples": 2, **extra}}
    found = run_cells(config=str(home / f"stage-{method}.yaml"), overrides=overrides)
    entry = read_manifest(folder)["stages"]["improve"]
    assert entry["status"] == "done" and (folder / improve.IMPROVED / WEIGHTS).exists()
    assert changed(weights_of(folder / "adapter"), weights_of(folder / improve.IMPROVED))
    assert [one["arm"] for one in found["outputs"]] == ["adapter"] * 4 + ["improved"] * 4
    assert set(found["signs"]) == set(found["forged"]) == {"adapter", "improved"}
    assert entry["summary"]["verdict"] == found["verdict"] and entry["summary"]["better"] is False
    chosen, told = run_adapter(found["stage"].config, folder)
    assert chosen == folder / "adapter" and f"One improved by {method} is not taken" in told
    assert ("are not estimated" in (folder / "progress.log").read_text()) is (method == "grpo")


@pytest.mark.end_to_end
def test_run_all_improves_where_a_method_is_set(home):
    "Five stages in kernels of their own; what is published is the run's adapter, and the card says which."
    file = config_file(home, "all", run={"save_steps": 1, "eval_steps": 2}, evaluation={
        "generation_defaults": {"max_new_tokens": 400}, "batch_size": 4, "red_team": None}, training={
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "select_by": "loss", "max_steps": 2})
    changes = {"improve.method": "dpo", "improve.extra": {"samples": 2, "targets": True, "max_steps": 2}}
    folder = run_all(file, overrides=changes)
    stages = read_manifest(folder)["stages"]
    assert {name: entry["status"] for name, entry in stages.items()} == dict.fromkeys(CHAIN, "done")
    chosen, told = run_adapter(resolve_config(file, changes), folder)
    assert told and told in verdict(folder)
    assert (folder / "publish" / WEIGHTS).read_bytes() == (chosen / WEIGHTS).read_bytes()
    card = (folder / "publish" / "README.md").read_text(encoding="utf-8")
    assert told.partition(".")[0] in card and "| improve | done |" in card


def test_a_mistake_in_its_settings_shows_before_training(home):
    file = config_file(home, "early")
    stage = Stage("train", resolve_config(file, {"improve.method": "dpo", "improve.extra": {"betta": 1}}), file)
    with pytest.raises(ImproveError, match="did you mean beta"):
        settle_settings(Training(stage))
    stage.fail(KeyboardInterrupt())
