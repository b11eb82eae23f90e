"Many architectures, small and with random weights: load, train, save, and get the same outputs."

import math

import pytest
import torch
from tiny import chat, tiny_config, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM, DeepseekV2Config, DeepseekV3Config, Gemma2Config, Gemma3TextConfig,
    GptOssConfig, LlamaConfig, MistralConfig, Olmo2Config, Olmo3Config, OlmoeConfig, Phi3Config,
    Qwen3Config, Qwen3MoeConfig,
)

from kwanzaa_nb.model.load import (
    RuntimeSettings, ModelError, add_adapter, expert_fallbacks, linear_layers, load_adapter,
    load_base, load_tokenizer)
from kwanzaa_nb.model.packing import SEGMENTED, flatten_rows, flatten_shared
from kwanzaa_nb.train.trainer import (
    encode_records, keep_start, save_adapter, supervised_loss, train_adapter)

COMMON = {"vocab_size": 272, "hidden_size": 64, "intermediate_size": 128,
          "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 512,
          "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LOCAL = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
          "qk_nope_head_dim": 16, "v_head_dim": 12, "n_group": 1,
          "topk_group": 1, "moe_intermediate_size": 32, "n_routed_experts": 4,
          "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
KINDS = {
    "Llama": lambda: LlamaConfig(**COMMON),
    "Qwen 3": lambda: Qwen3Config(**COMMON, head_dim=16),
    "OLMo 2": lambda: Olmo2Config(**COMMON),
    "Olmo 3": lambda: Olmo3Config(**COMMON, **LOCAL),
    "Gemma 3": lambda: Gemma3TextConfig(**COMMON, **LOCAL, head_dim=16),
    "Mistral": lambda: MistralConfig(**COMMON, sliding_window=16),
    "Phi 3": lambda: Phi3Config(**COMMON),
    "DeepSeek V2": lambda: DeepseekV2Config(**{**COMMON, **LATENT}, q_lora_rank=None),
    "DeepSeek V3": lambda: DeepseekV3Config(**{**COMMON, **LATENT}, q_lora_rank=16),
    "OLMoE": lambda: OlmoeConfig(**COMMON, **EXPERTS),
    "Qwen 3 MoE": lambda: Qwen3MoeConfig(**COMMON, **EXPERTS, head_dim=16,
                                         moe_intermediate_size=32),
    "Gemma 2": lambda: Gemma2Config(**COMMON, head_dim=16, sliding_window=16),
    "gpt-oss": lambda: GptOssConfig(**COMMON, **LOCAL, head_dim=16,
                                    num_local_experts=4, num_experts_per_tok=2),
}
REFUSED = {"Gemma 2": "soft cap", "gpt-oss": "attention sinks"}
OF_EXPERTS = {"DeepSeek V2", "DeepSeek V3", "OLMoE", "Qwen 3 MoE"}
USED = [kind for kind in KINDS if kind not in REFUSED]
USUAL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
LAYERS = {
    **dict.fromkeys(USED, USUAL), "Phi 3": {"qkv_proj", "o_proj", "gate_up_proj",
                                            "down_proj"},
    "DeepSeek V2": {"q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj",
                    "up_proj", "down_proj"},
    "DeepSeek V3": {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj",
                    "gate_proj", "up_proj", "down_proj"},
    "OLMoE": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "Qwen 3 MoE": {"q_proj", "k_proj", "v_proj", "o_proj"},
}
RECORDS = [{"id": question, "messages": chat(answer, question), "group": question[:2]}
           for answer, question in (
               ("yes", "Is it? " * 4), ("no", "Is it not?"), ("maybe", "Who was it?"),
               ("seven", "Who else?"))]
QLORA = {"adapter.method": "qlora", "adapter.quantization.load_in_4bit": True}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "Where a kind of model lies, made on first use."
    made = {}

    def folder(kind):
        if kind not in made:
            torch.manual_seed(0)
            made[kind] = tmp_path_factory.mktemp("model")
            AutoModelForCausalLM.from_config(KINDS[kind]()).save_pretrained(made[kind])
            tiny_tokenizer().save_pretrained(made[kind])
        return str(made[kind])

    return folder


def settings(folder, four_bit=False, **changes):
    config = tiny_config(**{
        "model.base_model_id": folder, "adapter.r": 4,
        "adapter.target_modules": "all-linear", "training.max_steps": 1,
        "training.warmup_ratio": 0.0, "training.learning_rate": 0.01,
        **(QLORA if four_bit else {}), **changes})
    return config, RuntimeSettings("cpu", "fp32", "fp32", SEGMENTED, four_bit, "adamw_torch")


def inputs(rows, flatten=flatten_rows):
    return {name: value for name, value in flatten([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]).items()
            if name != "labels"}


def one_step(config, effective, tmp_path):
    "Outputs of a trained adapter, of the same loaded again, and of the base model; and the mean loss."
    tokenizer, base = load_tokenizer(config), load_base(config, effective)
    rows = encode_records(tokenizer, RECORDS, config, {tokenizer.eos_token_id})
    model = add_adapter(base, config)
    start = keep_start(model, tmp_path / "start")
    _, outcome = train_adapter(model, tokenizer, rows, [], config, effective,
                               tmp_path / "checkpoints")
    folder = save_adapter(model, tokenizer, tmp_path / "adapter", start=start)
    loaded = load_adapter(load_base(config, effective), folder)
    with torch.no_grad():
        trained, again = (one.eval()(**inputs(rows), use_cache=False).logits
                          for one in (model, loaded))
        with loaded.disable_adapter():
            before = loaded(**inputs(rows), use_cache=False).logits
    return trained, again, before, outcome["loss"]


@pytest.mark.parametrize("four_bit", [False, True], ids=["lora", "NF4"])
@pytest.mark.parametrize("kind", USED)
def test_a_model_is_trained_saved_and_loaded_with_equal_outputs(saved, tmp_path, kind, four_bit):
    trained, again, before, loss = one_step(*settings(saved(kind), four_bit,
                                                      **{"adapter.dropout": 0.0}), tmp_path)
    assert torch.equal(trained, again), "the saved adapter gives other outputs"
    assert (trained - before).abs().max() > 0.01, "the step changed nothing"
    assert loss == pytest.approx(math.log(COMMON["vocab_size"]),
                                 abs=0.5), "random weights know nothing"


@pytest.mark.parametrize("kind", USED)
def test_a_flat_row_gives_the_outputs_and_the_loss_of_the_models_own_attention(saved, kind):
    config, effective = settings(saved(kind))
    tokenizer, model = load_tokenizer(config), load_base(config, effective)
    rows = encode_records(tokenizer, RECORDS, config, {tokenizer.eos_token_id})
    with torch.no_grad():
        flat = model(**inputs(rows), use_cache=False).logits[0]
        total, count = supervised_loss(model, flatten_shared(rows))
        model.set_attn_implementation("eager")
        alone = [model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0]
                 for row in rows]
    assert (flat - torch.cat(alone)).abs().max() < 1e-5
    expected = sum(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(row["labels"][1:]), reduction="sum")
                   for logits, row in zip(alone, rows))
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert count == sum(label != -100 for row in rows for label in row["labels"])


@pytest.mark.parametrize("kind", USED)
def test_targets_that_match_nothing_list_the_layers_there_are(saved, kind):
    config, effective = settings(saved(kind), **{"adapter.target_modules": ["nothing_proj"]})
    base = load_base(config, effective)
    assert set(linear_layers(base)) == LAYERS[kind]
    with pytest.raises(ModelError, match="nothing_proj match no linear layer") as error:
        add_adapter(base, config)
    assert all(name in str(error.value) for name in LAYERS[kind])
    assert "all-linear" in str(error.value)


@pytest.mark.parametrize("kind", USED)
def test_all_linear_adapts_every_layer_but_the_head(saved, kind):
    config, effective = settings(saved(kind), **{"adapter.dropout": 0.05})
    model = add_adapter(load_base(config, effective), config)
    adapted = {name for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    assert not any("lm_head" in name or "embed" in name for name in adapted)
    adapted_layers = {name.removesuffix(".base_layer").rsplit(".", 1)[-1] for name in adapted}
    assert adapted_layers >= LAYERS[kind] - {"gate_proj", "up_proj", "down_proj"}
    assert ("experts" in adapted_layers) is (kind in OF_EXPERTS)
    assert kind in OF_EXPERTS or adapted_layers == LAYERS[kind]


@pytest.mark.parametrize("kind", USED)
def test_what_experts_can_not_have_is_said(saved, kind):
    asked = {"adapter.dropout": 0.05}
    config, effective = settings(saved(kind), four_bit=True, **asked)
    base = load_base(config, effective)
    found = [one.key for one in expert_fallbacks(base, config)]
    assert found == (["adapter.dropout", "adapter.quantization.load_in_4bit"] if kind in OF_EXPERTS else [])
    assert add_adapter(base, config).peft_config["default"].lora_dropout == (0.0 if kind in OF_EXPERTS else 0.05)
    narrow, _ = settings(saved(kind), four_bit=False, **asked,
                         **{"adapter.target_modules": ["o_proj"]})
    assert expert_fallbacks(load_base(narrow, effective), narrow) == ()


@pytest.mark.parametrize("kind", REFUSED)
def test_attention_that_can_not_be_computed_is_refused_on_loading(saved, kind):
    config, effective = settings(saved(kind))
    with pytest.raises(ModelError, match=REFUSED[kind]) as error:
        load_base(config, effective)
    assert "model.base_model_id" in str(error.value) and "\n" not in str(error.value)


# Kinds of LoRA, by one key each


@pytest.mark.parametrize("kind", ["Llama", "Phi 3"])
@pytest.mark.parametrize("changes, four_bit", [
    ({"adapter.method": "rslora"}, True), ({"adapter.method": "dora"}, True),
    ({"adapter.method": "rslora"}, False), ({"adapter.method": "dora"}, False),
    ({"adapter.method": "pissa"}, False),
], ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else ("NF4" if value else "lora"))
def test_each_kind_of_lora_takes_a_step_and_is_saved(saved, tmp_path, kind, changes, four_bit):
    trained, again, before, _ = one_step(*settings(saved(kind), four_bit,
                                                   **{"adapter.dropout": 0.0, **changes}), tmp_path)
    assert (trained - again).abs().max() < (1e-4 if "pissa" in changes.values() else 1e-6) < (trained - before).abs().max()


def test_a_kind_of_lora_that_experts_can_not_have_is_refused(saved):
    config, effective = settings(saved("OLMoE"), **{"adapter.method": "dora"})
    with pytest.raises(ModelError, match="adapter.method to lora"):
        add_adapter(load_base(config, effective), config)
