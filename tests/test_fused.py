"The fused adapter layer gives the same numbers as PEFT's, or falls back to it."

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import row, tiny_model

from kwanzaa_nb.model.fused import fuse_adapter, plain_adapter
from kwanzaa_nb.model.packing import SEGMENTED, flatten_shared
from kwanzaa_nb.train.trainer import supervised_loss

ROWS = [row(9, 5), row(9, 4, first=5), row(3, 6, first=40)]


def adapted(**options):
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear",
              "init_lora_weights": False, **options}
    return get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **wanted)).train()


def loss_and_gradients(model):
    model.zero_grad()
    loss, _ = supervised_loss(model, flatten_shared(ROWS))
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()
                         if weight.grad is not None}


def same(first, second, within):
    assert first[0] == pytest.approx(second[0], rel=within) and set(first[1]) == set(second[1])
    for name, gradient in first[1].items():
        assert (gradient - second[1][name]).norm() <= within * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_loss_and_gradients_are_those_of_peft(options, monkeypatch):
    torch.manual_seed(0)
    model = adapted(**options)
    expected = loss_and_gradients(model)
    assert fuse_adapter(model) == 14
    import kwanzaa_nb.model.fused as module

    taken, apply = [], module.LowRankSum.apply
    monkeypatch.setattr(module.LowRankSum, "apply", lambda *given: taken.append(1) or apply(*given))
    same(expected, loss_and_gradients(model), 1e-5)
    assert len(taken) == 14


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.3},
                                     {"lora_bias": True}])
def test_what_is_not_plain_is_left_to_peft(options):
    torch.manual_seed(0)
    model = adapted(**options)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert not plain_adapter(layer, torch.randn(1, 2, 32))
    torch.manual_seed(1)
    expected = loss_and_gradients(model)
    fuse_adapter(model)
    torch.manual_seed(1)
    same(expected, loss_and_gradients(model), 1e-7)


def test_the_short_way_minds_what_is_done_to_the_adapter():
    torch.manual_seed(0)
    model, inputs = adapted(), torch.randn(1, 3, 32)
    fuse_adapter(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        assert not torch.allclose(layer(inputs), layer.base_layer(inputs), atol=1e-3)
        with model.disable_adapter():
            assert torch.equal(layer(inputs), layer.base_layer(inputs))
        expected = layer(inputs)
        layer.merge()
        assert torch.allclose(layer(inputs), expected, atol=1e-5)
        assert not plain_adapter(layer, inputs)


@pytest.mark.parametrize(("compute", "within"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_four_bit_layers_too(compute, within, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from kwanzaa_nb.model.load import DTYPES, keep_unpacked

    tiny_model().save_pretrained(tmp_path)
    quantized = BitsAndBytesConfig(load_in_4bit=True,
                                   bnb_4bit_quant_type="nf4",
                                   bnb_4bit_compute_dtype=DTYPES[compute])
    base = keep_unpacked(AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantized, dtype=torch.float32,
        attn_implementation=SEGMENTED))
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8,
                                            target_modules="all-linear",
                                            init_lora_weights=False, task_type="CAUSAL_LM"))
    expected = loss_and_gradients(model)
    assert fuse_adapter(model) == 14
    same(expected, loss_and_gradients(model), within)
