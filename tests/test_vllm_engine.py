"What is handed to vLLM, with a stand-in for the library: it needs a GPU, and nothing here has one."

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tiny import ROOT, chat, tiny_config, tiny_tokenizer

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.errors import KwanzaaError
from kwanzaa_nb.model.backend import Decoding, generate_pass, open_log
from kwanzaa_nb.model.grammar import record_grammar
from kwanzaa_nb.model.load import Effective
from kwanzaa_nb.model.vllm_engine import EngineError, VllmBackend, engine_arguments, sampling_arguments, start_engine

RECORDS = [{"id": f"r{place}", "messages": chat(question="why " * (place + 1)), "chunks": [{"chunk_id": "c", "text": "One. Two."}]}
           for place in range(3)]
GPU = Effective("cuda", "bf16", "bf16", "sdpa", True, "x")


class Given(SimpleNamespace):
    "Arguments, kept."


@pytest.fixture
def library(monkeypatch):
    "A module named vllm that keeps what it is given."
    vllm, lora, sampling = ModuleType("vllm"), ModuleType("vllm.lora.request"), ModuleType("vllm.sampling_params")
    vllm.LLM = vllm.SamplingParams = sampling.StructuredOutputsParams = Given
    lora.LoRARequest = lambda *given: given
    for name, module in (("vllm", vllm), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", lora), ("vllm.sampling_params", sampling)):
        monkeypatch.setitem(sys.modules, name, module)


class Engine:
    "Writes `ok`, an end, and remembers."

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, []

    def generate(self, prompts, settings, lora_request=None, use_tqdm=True):
        self.calls.append((prompts, settings, lora_request))
        ids = self.tokenizer("ok", add_special_tokens=False)["input_ids"]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[*ids, self.tokenizer.eos_token_id], finish_reason="stop")]) for _ in prompts]


def test_a_pass_hands_over_prompts_settings_and_adapter(library, tmp_path):
    tokenizer = tiny_tokenizer()
    engine, log = Engine(tokenizer), tmp_path / "samples.jsonl"
    open_log(log, {"engine": "vllm"})
    backend = VllmBackend(engine, tokenizer, [tokenizer.eos_token_id], Path("outputs/adapter"))
    samples = generate_pass(backend, RECORDS, Decoding(9, 2, grammar=True), log, "adapter+grammar", report=lambda line: None, same_as="adapter")
    assert [(sample["raw"], sample["finish_reason"], sample["new_tokens"]) for sample in samples] == [("ok", "stop", 3)] * 3
    assert [len(prompts) for prompts, _, _ in engine.calls] == [2, 1]
    prompts, settings, lora = engine.calls[0]
    assert lora == ("adapter", 1, "outputs/adapter")
    assert prompts[0]["prompt_token_ids"] == list(backend.prompts(RECORDS)[0].tokens)
    assert settings[0].structured_outputs.grammar == record_grammar(2) and settings[0].max_tokens == 9
    assert settings[0].temperature == 0.0 and settings[0].stop_token_ids == [tokenizer.eos_token_id]


def test_without_a_grammar_or_an_adapter_nothing_is_asked_of_them(library):
    tokenizer = tiny_tokenizer()
    backend = VllmBackend(Engine(tokenizer), tokenizer, [tokenizer.eos_token_id])
    backend.write(backend.prompts(RECORDS), Decoding(9, 4, temperature=0.2, top_p=0.9, seed=5))
    _, settings, lora = backend.engine.calls[0]
    assert lora is None and not hasattr(settings[0], "structured_outputs")
    assert (settings[0].temperature, settings[0].top_p, settings[0].seed) == (0.2, 0.9, 5)


def test_a_cut_off_output_keeps_its_last_token(library):
    tokenizer = tiny_tokenizer()
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    written = VllmBackend(None, tokenizer, [tokenizer.eos_token_id])._written(SimpleNamespace(token_ids=ids, finish_reason="length"))
    assert (written.raw, written.reason, written.new_tokens) == ("abc", "length", 3)


def test_the_engine_is_started_as_the_config_says(library):
    config = load_config(ROOT / "configs/train.adapter.qlora.yaml")
    engine = start_engine(config, GPU, Path("outputs/adapter"))
    assert (engine.model, engine.dtype, engine.quantization, engine.enable_lora) == (config.model.base_model_id, "bfloat16", "bitsandbytes", True)
    assert engine.max_lora_rank >= config.adapter.r and engine.structured_outputs_config == {"backend": "guidance"}
    plain = engine_arguments(config, Effective("cuda", "fp16", "fp16", "sdpa", False, "x"), None)
    assert plain["dtype"] == "float16" and not {"quantization", "enable_lora"} & set(plain)
    assert sampling_arguments(Decoding(5, 1), [7, 3])["stop_token_ids"] == [3, 7]


def test_what_vllm_cannot_do_is_a_sentence(monkeypatch):
    with pytest.raises(EngineError, match="from the Hub or a folder"):
        start_engine(tiny_config(), GPU, None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match="pip install vllm"):
        start_engine(tiny_config(**{"model.base_model_id": "owner/name"}), GPU, None)


def test_a_prompt_that_the_engine_would_refuse_loses_no_other(library, tmp_path):
    tokenizer = tiny_tokenizer()
    engine, log, told = Engine(tokenizer), tmp_path / "samples.jsonl", []
    open_log(log, {"engine": "vllm"})
    backend = VllmBackend(engine, tokenizer, [tokenizer.eos_token_id])
    lengths = [len(prompt.tokens) for prompt in backend.prompts(RECORDS)]
    backend.longest = lengths[2]
    samples = generate_pass(backend, RECORDS, Decoding(9, 3), log, "base", report=told.append)
    assert [sample["finish_reason"] for sample in samples] == ["stop", "stop", "refused"] and len(engine.calls[0][0]) == 2
    assert f"its prompt has {lengths[2]} tokens" in samples[2]["problem"] and "r2" in told[-1]
    with pytest.raises(KwanzaaError, match="raise data.max_seq_length.*Not one was answered"):
        generate_pass(VllmBackend(engine, tokenizer, [], longest=3), RECORDS, Decoding(9, 3), log, "adapter", report=told.append)


@pytest.mark.parametrize("reason, kept, odd", [("abort", "abort", True), (None, "unknown", False)])
def test_how_vllm_ended_an_output_is_kept(library, reason, kept, odd):
    tokenizer = tiny_tokenizer()
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    written = VllmBackend(None, tokenizer, [tokenizer.eos_token_id])._written(SimpleNamespace(token_ids=ids, finish_reason=reason))
    assert (written.raw, written.reason, bool(written.problem)) == ("abc", kept, odd)
