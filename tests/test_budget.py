"The estimate of memory, time and money: it changes nothing, and stops a run over budget."

from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_packing import random_records
from tiny import tiny_config, tiny_model
from transformers import (AutoModelForCausalLM, LlamaConfig, MistralConfig, Olmo2Config,
                          Phi3Config, Qwen3Config)

from kwanzaa_nb.train import budget
from kwanzaa_nb.train.budget import (BudgetError, Estimate, activation_bytes, cache_bytes, check_budget,
                                     estimate_run, gpu_kind, measure_steps, predict_memory, predicted_and_measured,
                                     price_per_hour, read_gpus, weight_bytes)
from kwanzaa_nb.model.fused import fuse_adapter
from kwanzaa_nb.model.load import RuntimeSettings
from kwanzaa_nb.model.packing import SEGMENTED, flatten_rows, flatten_shared
from kwanzaa_nb.train.trainer import step_budget, supervised_loss

RECORDS = random_records(torch.Generator().manual_seed(0), 12)


def adapted(dropout=0.0, **options):
    torch.manual_seed(0)
    return get_peft_model(tiny_model(**options),
                          LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear",
                                     task_type="CAUSAL_LM"))


def an_estimate(seconds=3600.0, price=2.0):
    return Estimate(seconds, {"peak": 10**9}, price, "a test", "a test")


def test_the_table_of_gpus_can_be_read_and_says_where_prices_can_be_checked():
    table = read_gpus()
    assert len(table.gpus) >= 5
    for gpu in table.gpus.values():
        assert gpu.prices.startswith("https://")


@pytest.mark.parametrize("text", [
    "gpus: [", "gpus: {H100: {memory_gb: 80}}", "cards: {}",
    "gpus: {H100: {memory_gb: -1, tflops: 1, usd_per_hour: 1, prices: x}}"])
def test_a_table_that_is_wrong_is_one_sentence(tmp_path, text):
    (tmp_path / "gpus.yaml").write_text(text)
    with pytest.raises(BudgetError, match="gpus.yaml"):
        read_gpus(tmp_path / "gpus.yaml")
    with pytest.raises(BudgetError, match="gpus.yaml"):
        read_gpus(tmp_path / "missing" / "gpus.yaml")


def test_a_price_is_the_tables_or_unknown():
    table = read_gpus().gpus
    assert price_per_hour(tiny_config(budget__gpu="H100"))[0] == table["H100"].usd_per_hour
    assert price_per_hour(tiny_config(),
                          "NVIDIA A100-SXM4-80GB")[0] == table["A100-80GB"].usd_per_hour
    assert price_per_hour(tiny_config())[0] == 0
    price, why = price_per_hour(tiny_config(), "Some Other Card")
    assert price == 0 and "Some Other Card" in why
    with pytest.raises(BudgetError, match="B7"):
        price_per_hour(tiny_config(budget__gpu="B7"))


def test_over_the_limit_it_stops_and_says_what_to_do():
    check_budget(an_estimate(), tiny_config(budget__max_usd=2))
    with pytest.raises(BudgetError, match="max_usd 1.99") as caught:
        check_budget(an_estimate(), tiny_config(budget__max_usd=1.99))
    assert "training.max_steps" in str(caught.value)


def test_measuring_changes_nothing():
    model = adapted(dropout=0.5)
    before, state = {name: value.clone() for name,
                     value in model.state_dict().items()}, torch.get_rng_state()
    model.eval()
    rate, seconds = measure_steps(model, [flatten_rows(RECORDS[:3]), flatten_rows(RECORDS[3:6])])
    assert rate > 0 and len(seconds) == 2 and not model.training
    assert torch.equal(torch.get_rng_state(), state) and all(weight.grad is None
                                                             for weight in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_steps_are_measured_as_training_takes_them(monkeypatch):
    model, seen = adapted(), []

    def noted(model, batch):
        seen.append((torch.is_autocast_enabled("cpu"), model.is_gradient_checkpointing))
        return supervised_loss(model, batch)

    monkeypatch.setattr(budget, "supervised_loss", noted)
    for dtype, checkpointing in (("fp32", False), ("bf16", True)):
        measure_steps(model, [flatten_rows(RECORDS[:3])], dtype, checkpointing)
    assert seen == [(False, False), (True, True)]
    assert not model.is_gradient_checkpointing and not torch.is_autocast_enabled("cpu")


def kept_bytes(model, batch):
    "What autograd keeps for the backward pass, each memory once, without the model's own."
    own, kept = {weight.untyped_storage().data_ptr() for weight in model.parameters()}, {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        supervised_loss(model, batch)
    return sum(size for size, _ in kept.values())


SHAPES = {"Llama as SmolLM2-135M, two layers": (LlamaConfig,
                                                {"hidden_size": 576, "intermediate_size": 1536,
                                                 "num_attention_heads": 9,
                                                 "num_key_value_heads": 3}),
          "Llama": (LlamaConfig, {"num_hidden_layers": 5}), "Mistral": (MistralConfig, {}),
          "Qwen 3": (Qwen3Config, {"head_dim": 16}), "OLMo 2": (Olmo2Config, {"eos_token_id": 1}),
          "Phi 3": (Phi3Config, {"pad_token_id": 0, "eos_token_id": 1})}


@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_what_autograd_keeps(shape, dropout):
    "The formula counts a Llama; within a fifth it holds for others, which were not fitted to."
    kind, sizes = SHAPES[shape]
    small = {"vocab_size": 272, "hidden_size": 48, "intermediate_size": 160, "num_hidden_layers": 2,
             "num_attention_heads": 6, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(kind(**{**small, **sizes}))
    model.set_attn_implementation(SEGMENTED)
    model = get_peft_model(model, LoraConfig(r=8, lora_dropout=dropout, target_modules="all-linear",
                                             task_type="CAUSAL_LM"))
    fuse_adapter(model)
    model.train()
    tokens = [place % 250 for place in range(180)]
    found = kept_bytes(model, flatten_shared([{"input_ids": tokens,
                                               "labels": [-100] * 150 + tokens[150:]}]))
    logits = 4 * 272 * 30
    assert activation_bytes(model, 180, dropout=dropout) == pytest.approx(found - logits, rel=0.2)
    assert activation_bytes(model, 180, checkpointing=True) < activation_bytes(model, 180)


def estimated(model, steps=10, optim="adamw_torch", watched=(), device_name="", processes=1,
              **settings):
    rows = [{**record, "group": "g"} for record in RECORDS]
    effective = RuntimeSettings("cpu", "fp32", "fp32", SEGMENTED, False, optim)
    config = tiny_config(**settings)
    planned = {**step_budget(config, len(rows), processes)[0], "steps": steps, "eval_steps": 5}
    return estimate_run(model, rows, watched, config, effective, planned, device_name, processes)


def test_an_estimate_of_a_run_here_and_of_one_on_a_gpu_that_is_not_here():
    model = adapted()
    here, longer = estimated(model), estimated(model, 10_000)
    assert here.seconds > 0 and here.usd == 0 and longer.seconds > 10 * here.seconds
    assert here.memory_gb == float("inf")
    assert here.memory["gradients"] == weight_bytes(model)["adapter"]
    assert here.memory["optimiser"] == 2 * here.memory["gradients"]
    there = estimated(model, optim="adamw_8bit", budget__gpu="H100")
    assert "guess" in there.seconds_by and there.usd > 0
    assert there.memory["optimiser"] == here.memory["optimiser"] // 4
    assert there.memory["held before training"] == sum(weight.nbytes
                                                       for weight in model.parameters())
    assert there.memory_gb == 80
    assert any("$" in line[1] for line in there.rows())
    assert here.memory["kept free"] == 0
    grown = [estimated(model, steps).memory["kept free"] for steps in (100, 1_000, 10_000)]
    assert grown[0] < grown[1] < grown[2] < 2 * grown[1], "ever more slowly"
    assert there.memory["kept free"] == 0
    parts = sum(here.memory[name] for name in ("held before training", "gradients", "optimiser",
                                               "activations", "logits", "kept free"))
    assert here.memory["peak"] >= parts


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101, 164, 199, 200, 5000])
@pytest.mark.parametrize("most", [3, 100])
def test_batches_are_taken_from_the_whole_run(count, most):
    taken = list(budget._spread(range(count), most))
    assert len(taken) == min(count, most) and taken[0] == 0
    gaps = {later - sooner for sooner, later in zip([*taken, count], [*taken[1:], count]) if later > sooner}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_development_records_and_processes_count():
    model = adapted()
    alone = estimated(model, budget__gpu="H100")
    assert estimated(model, budget__gpu="H100", watched=RECORDS).seconds > alone.seconds
    single = {"budget__gpu": "H100", "training__gradient_accumulation_steps": 1, "training__per_device_train_batch_size": 1}
    assert estimated(model, processes=3, **single).usd == pytest.approx(3 * estimated(model, **single).usd)


def test_a_step_that_is_not_full_takes_less():
    "Twelve records in steps of eight are two steps, of which the second has four."
    model, full = adapted(), {"budget__gpu": "H100", "training__per_device_train_batch_size": 1}
    uneven = estimated(model, steps=2, **full, training__gradient_accumulation_steps=8)
    even = estimated(model, steps=2, **full, training__gradient_accumulation_steps=6)
    assert uneven.seconds == pytest.approx(even.seconds)


def test_a_gpu_without_a_price_says_so():
    plan = estimated(adapted(), device_name="NVIDIA H999")
    assert plan.usd == 0 and plan.cost == "an unknown price" and ["cost", "an unknown price", ""] in plan.rows()
    note, = budget.unchecked_budget(plan, tiny_config(budget__max_usd=5))
    assert (note.key, note.requested, note.used) == ("budget.max_usd", 5, None) and "NVIDIA H999" in note.reason
    assert budget.unchecked_budget(estimated(adapted()), tiny_config()) == ()


def test_a_gpu_that_is_here_is_measured():
    model = adapted()
    assert "measured" in estimated(model, budget__gpu="H100",
                                   device_name="NVIDIA H100 80GB HBM3").seconds_by


@pytest.mark.parametrize(("idle", "told"), [(0, True), (1000, False)])
def test_an_estimate_tells_that_others_used_the_processors(monkeypatch, idle, told):
    Times = namedtuple("Times", "user system idle")
    times = iter([Times(0, 0, 0), Times(900, 100, idle)])
    monkeypatch.setattr("psutil.cpu_times", lambda: next(times))
    assert ("other programs" in estimated(adapted()).seconds_by) is told


def test_a_gpu_that_is_too_small_stops_it():
    estimate = estimated(adapted(), budget__gpu="T4")
    config = tiny_config(budget__gpu="T4")
    check_budget(estimate, config)
    with pytest.raises(BudgetError, match="T4 has 16: .*gradient_checkpointing"):
        check_budget(replace(estimate, memory={"held before training": 17 * 10**9, "peak": 17 * 10**9}), config)
    answers = {"held before training": 5 * 10**9, "answers": 12 * 10**9, "peak": 17 * 10**9}
    check_budget(replace(estimate, memory=answers), config)  # they are written in smaller batches there


@pytest.mark.parametrize(("name", "kind"), [("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"),
                                            ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
                                            ("NVIDIA T400", None), ("", None)])
def test_a_gpus_kind_is_told_by_whole_words(name, kind):
    assert gpu_kind(name, read_gpus().gpus) == kind


def test_a_gpu_that_is_here_is_warned_of_and_not_refused():
    plan = Estimate(3600.0, {"held before training": 17 * 10**9, "peak": 17 * 10**9}, 0.0, "", "")
    assert budget.memory_warning(plan, None) == budget.memory_warning(plan, 18 * 10**9) == ""
    assert "17.0 GB are predicted, and this GPU has 15.8" in budget.memory_warning(plan, int(15.8e9))


def test_predicted_against_measured_is_a_ratio():
    lines = predicted_and_measured(an_estimate(seconds=100), 150)
    assert lines[1][1:] == ["1.7 min", "2.5 min", "1.50"]


def test_keys_and_values_are_counted_as_a_model_holds_them():
    model = tiny_model()
    model.set_attn_implementation("sdpa")
    held = model(input_ids=torch.arange(3, 15)[None], use_cache=True).past_key_values
    size = sum(part.numel() * part.itemsize for layer in held.layers
               for part in (layer.keys, layer.values))
    assert cache_bytes(model, 12) == size > 0


@pytest.mark.parametrize("elsewhere", [False, True], ids=["on a CPU", "on a GPU"])
def test_answers_take_the_place_of_a_step(elsewhere):
    model = tiny_model()
    none, few, many = (predict_memory(model, tiny_config(), "sgd", 10 ** 6, 10, elsewhere, 1, count)
                       for count in (0, 10, 10 ** 9))
    assert none["peak"] == few["peak"] and few["answers"] > 0
    assert many["peak"] == many["held before training"] + many["answers"] + many["optimiser"] > few["peak"]
