"The threshold behind a server: how likely its tokens are, and what is done where it decided otherwise."

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwanzaa_nb import load_answerer
from kwanzaa_nb.core.answer import AnswerError, record_schema
from kwanzaa_nb.core.manifest import MANIFEST
from kwanzaa_nb.core.results_file import save_results
from kwanzaa_nb.core.record import prompt_of, read_records
from kwanzaa_nb.evaluate.passes import (
    calibration_of, development_decisions, settle_threshold, threshold_fallbacks, untold_by)
from kwanzaa_nb.model.backend import Decoding, generate_pass, open_log, read_log
from kwanzaa_nb.model.served import Token, leaning, read_tokens, side, wanted_side
from kwanzaa_nb.model.server import ServerBackend, ServerError, read_completion
from kwanzaa_nb.use.ask import open_reader
from test_serving import CHUNK, QUESTION, RIGHT, UNKNOWNS, trained
from tiny import ROOT, tiny_config

REFUSAL = json.dumps({"evidence": [], "answer": {"completeness": "insufficient_data", "text": "It is not said."},
                      "unknowns": UNKNOWNS | {"missing_context": ["The time."]}}, separators=(",", ":"))
ANSWER = RIGHT.replace(": ", ":").replace(", ", ",")
RECORD = {"id": "r", "chunks": [CHUNK], "messages": [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "-"}]}


def token(text, ways):
    return {"token": text, "logprob": math.log(ways.get(text, 1.0)),
            "top_logprobs": [{"token": way, "logprob": math.log(chance)} for way, chance in ways.items()]}


def reply(text, ways=None, finish="stop", begin='{"evidence":['):
    "A completion whose token behind the bracket could have been other ones."
    found = {"finish_reason": finish, "message": {"role": "assistant", "content": text}}
    if ways:
        here = text[len(begin):][:1]
        found["logprobs"] = {"content": [token(begin, {begin: 0.9}), token(here, ways), token("x", {"x": 1.0})]}
    return {"choices": [found], "usage": {"completion_tokens": 7}}


def model(ways, first=REFUSAL, others=True, prefill=True, refuses=()):
    "A model's server: writes `first`, and the side that it is forced to, where it takes a hint."
    def answer(body, _):
        for name in refuses:
            if name in body:
                return 400, {"error": {"message": f"{name}: not supported"}}
        last, schema = body["messages"][-1], body.get("response_format", {}).get("json_schema", {}).get("schema")
        if last["role"] == "assistant" and prefill:
            whole = ANSWER if side(last["content"]) else REFUSAL
            return 200, reply(whole.removeprefix(last["content"]) if prefill == "rest" else whole)
        evidence = schema["properties"]["evidence"] if schema else {}
        if others and evidence.get("minItems"):
            return 200, reply(ANSWER)
        if others and schema and evidence.get("maxItems") == 0:
            return 200, reply(REFUSAL, {"]": 1.0} if body.get("logprobs") else None)
        return 200, reply(first, ways if body.get("logprobs") else None)
    return answer


LEANS = {"]": 0.4, "2": 0.35, "1": 0.25}  # it refuses, and answering is likelier: 0.6


@pytest.mark.parametrize("least, written, asked_for", [
    (None, REFUSAL, 1), (0.54, ANSWER, 2), (0.599, ANSWER, 2), (0.601, REFUSAL, 1), (0, ANSWER, 2), (math.inf, REFUSAL, 1)])
@pytest.mark.parametrize("grammar", [True, False])
@pytest.mark.parametrize("prefill", [True, "rest", False])
def test_the_threshold_decides(serve, least, written, asked_for, grammar, prefill):
    url, asked = serve(model(LEANS, prefill=prefill))
    backend = ServerBackend(url, "m")
    (found,) = backend.write(backend.prompts([RECORD]), Decoding(99, 1, grammar=grammar, answer_threshold=least))
    assert found.raw == written and found.p_answer == pytest.approx(0.6) and found.problem == ""
    first, *more = [one.body for one in asked]
    assert (first["logprobs"], first["top_logprobs"]) == (True, 20) and ("response_format" in first) is grammar
    assert len(more) == asked_for - 1 + (asked_for > 1 and not grammar and not prefill)
    if not more:
        return
    assert "logprobs" not in more[0] and more[0]["max_tokens"] == 99
    if grammar:
        schema = more[0]["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["evidence"]["minItems"] == 1
        assert schema["properties"]["answer"]["properties"]["completeness"]["enum"] == ["complete", "partial"]
        assert more[0]["messages"] == first["messages"]
    else:  # the likeliest beginning of an answer, to go on with
        assert more[0]["messages"][-1] == {"role": "assistant", "content": '{"evidence":[2'}
        assert more[0]["continue_final_message"] is True and more[0]["add_generation_prompt"] is False
        assert ("response_format" in more[-1]) is (not prefill)


@pytest.mark.parametrize("grammar", [True, False])
def test_an_answer_below_the_threshold_becomes_a_refusal(serve, grammar):
    url, asked = serve(model({"2": 0.7, "]": 0.3}, first=ANSWER))
    backend = ServerBackend(url, "m")
    (found,) = backend.write(backend.prompts([RECORD]), Decoding(99, 1, grammar=grammar, answer_threshold=0.8))
    assert found.raw == REFUSAL and found.p_answer == pytest.approx(0.7) and len(asked) == 2
    schema = asked[1].body.get("response_format", {}).get("json_schema", {}).get("schema")
    if grammar:
        assert schema["properties"]["evidence"] == record_schema([])["properties"]["evidence"]
        assert schema["properties"]["answer"]["properties"]["completeness"]["enum"] == ["insufficient_data"]
    else:
        assert asked[1].body["messages"][-1]["content"] == '{"evidence":[]'


def test_a_server_that_does_not_take_a_side_is_told_of(serve):
    url, _ = serve(model(LEANS, others=False, prefill=False))
    backend = ServerBackend(url, "m")
    (found,) = backend.write(backend.prompts([RECORD]), Decoding(99, 1, grammar=True, answer_threshold=0.5))
    assert found.raw == REFUSAL and "the threshold wants an answer, but it wrote the same again" in found.problem


def test_without_passages_nothing_can_be_answered(serve):
    url, asked = serve(model(LEANS))
    backend = ServerBackend(url, "m")
    (found,) = backend.write(backend.prompts([RECORD | {"chunks": []}]), Decoding(99, 1, grammar=True, answer_threshold=0))
    assert found.raw == REFUSAL and "nothing was shown" in found.problem and len(asked) == 1


@pytest.mark.parametrize("ways, refuses, why", [
    (None, (), "does not tell how likely"), (LEANS, ("logprobs",), "refuses to tell how likely")])
def test_a_server_without_probabilities_says_so_and_is_asked_once(serve, tmp_path, ways, refuses, why):
    url, asked = serve(model(ways, refuses=refuses))
    backend, told = ServerBackend(url, "m"), []
    open_log(tmp_path / "log.jsonl", {})
    records = [RECORD | {"id": name} for name in "abc"]
    outputs = generate_pass(backend, records, Decoding(99, 1, answer_threshold=0.5), tmp_path / "log.jsonl", "base", told.append)
    assert {one["raw"] for one in outputs} == {REFUSAL} and {one["p_answer"] for one in outputs} == {None}
    assert all(f"threshold 0.5 was not used: the server {why}" in one["problem"] for one in outputs)
    assert sum(why in line for line in told) == 1 and why in backend.untold()
    assert ["logprobs" in one.body for one in asked] == [True, *[False] * (len(asked) - 1)]
    assert len(asked) == 3 + bool(refuses)


def test_the_stage_leaves_the_threshold_out_where_no_probability_is_told(serve, tmp_path):
    config, log = tiny_config(**{"evaluation.answer_threshold": 0.3}), tmp_path / "log.jsonl"
    open_log(log, {})
    url, asked = serve(model(None))
    why = untold_by(ServerBackend(url, "m"), config, log, "base")
    assert len(asked) == 1 and settle_threshold(config, [], why).evaluation.answer_threshold is None
    (noted,) = threshold_fallbacks(config, why)
    assert (noted.requested, noted.used) == (0.3, None) and threshold_fallbacks(config, why, [noted]) == []
    gone = ServerBackend("http://127.0.0.1:9/v1", "m")
    gone.client.max_retries = 0
    with pytest.raises(ServerError):
        untold_by(gone, config, log, "base")
    backend = ServerBackend(url, "m")
    generate_pass(backend, [RECORD], Decoding(99, 1), log, "base", lambda line: None)
    assert "came without probabilities" in untold_by(gone, config, log, "base")


def test_development_decisions_come_from_a_server_too(serve, tmp_path):
    url, asked = serve(lambda body, _: (200, reply(REFUSAL[:40], {"]": 0.8, "1": 0.2}, "length") if "no" in body["messages"][-1]["content"]
                                        else reply(ANSWER[:40], {"2": 0.9, "]": 0.1}, "length")))
    config, log = tiny_config(**{"evaluation.answer_threshold": "dev"}), tmp_path / "log.jsonl"
    open_log(log, {})
    records = [RECORD | {"id": f"{place}", "answerable": place < 6,
                         "messages": [{"role": "user", "content": "yes" if place < 6 else "no"}]} for place in range(12)]
    backend = ServerBackend(url, "m")
    rows = development_decisions(backend, records, log, "base", lambda line: None)
    assert {row["id"]: round(row["p_answer"], 2) for row in rows} == {f"{place}": 0.9 if place < 6 else 0.2 for place in range(12)}
    assert {one.body["max_tokens"] for one in asked} == {32}
    settled = settle_threshold(config, rows, untold_by(backend, config, log, "base"))
    assert settled.evaluation.answer_threshold == pytest.approx(0.9)
    assert calibration_of(read_log(log)[1], "base").records == 12


# the answerer


def test_the_threshold_and_the_confidence_of_the_evaluation_hold_behind_a_server(serve, tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    from kwanzaa_nb.core.files import file_record

    save_results(tmp_path, {"format": 2, "arms": {}, "calibrations": {"adapter": {"slope": 0.5, "intercept": 0.0, "records": 40}},
                            "inputs": {"adapter_sha256": file_record(tmp_path / "adapter_model.safetensors")["sha256"]}})
    url, asked = serve(model(LEANS))
    answer = load_answerer(trained(tmp_path, **{"evaluation.answer_threshold": 0.54}), url=url, grammar=True)
    assert answer.fallbacks == () and len(asked) == 1
    found = answer(QUESTION, [CHUNK])
    assert found["answer"]["text"] == "Two minutes. [1]" and found["answer"]["confidence"] == round(1.5 ** 0.5 / (1 + 1.5 ** 0.5), 4)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"other weights")
    assert "confidence" not in load_answerer(tmp_path, url=url, grammar=True)(QUESTION, [CHUNK])["answer"]


@pytest.mark.parametrize("grammar, wrong, requests", [(True, 0, 1), (True, 1, 2), (True, 2, 3), (True, 3, 3), (False, 1, 1)])
def test_what_a_schema_can_t_say_is_asked_for_again_by_sampling(serve, grammar, wrong, requests):
    unmarked = ANSWER.replace('"evidence":[2]', '"evidence":[1,2]')  # 1 has no mark in the text
    url, asked = serve(lambda body, _: (200, reply(unmarked if len(asked) <= wrong else ANSWER)))
    answer = load_answerer(url=url, model="m", grammar=grammar)
    asked.clear()
    if wrong < requests:
        assert answer(QUESTION, [CHUNK])["answer"]["text"] == "Two minutes. [1]"
    else:
        with pytest.raises(AnswerError) as error:
            answer(QUESTION, [CHUNK])
        assert error.value.raw == unmarked
    assert [(one.body["temperature"], one.body.get("seed")) for one in asked] == [(0.0, None), (0.7, 1), (0.7, 2)][:requests]


def test_whoever_asks_a_server_hears_that_its_adapter_was_not_named(serve, tmp_path):
    (tmp_path / "tea").mkdir()
    (tmp_path / "tea/tea.md").write_text("Green tea: two minutes.", encoding="utf-8")
    run, told = tmp_path / "outputs/run", []
    (run / "publish").mkdir(parents=True)
    url, _ = serve(model(LEANS))
    for expected in ("by --adapter", f"by --adapter, such as {run / 'publish'}"):
        open_reader(tmp_path / "tea", url=url, report=told.append, outputs=tmp_path / "outputs")
        assert told[0].startswith(f"asking {url} without an adapter's threshold") and told[0].endswith(expected)
        told.clear()
        (run / MANIFEST).write_text("{}")
        trained(run / "publish")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (run / "publish" / name).write_text("{}")
    open_reader(tmp_path / "tea", str(run), url=url, report=told.append)
    assert told[0] == f"asking {run / 'publish'}"


# what tokens tell


@pytest.mark.parametrize("text, tokens, p_answer", [
    ('{"evidence":[4],', [('{"', {}), ('evidence', {}), ('":[', {}), ("4", {"4": 0.5, "3": 0.25, "]": 0.25})], 0.75),
    ('{ "evidence": [ ]', [("```json\n", {}), ('{ "evidence": [', {}), (" ]", {" ]": 0.6, " 1": 0.2, "\n": 0.2})], 0.25),
    ('{"evidence":[],', [('{"evidence', {}), ('":[],"', {'":[],"': 0.3, '":[': 0.6, '":': 0.1})], 2 / 3),  # "[" is no "[]"
    ('{"evidence":[4],', [('{"evidence', {}), ('":[', {'":[': 0.6, '":[]': 0.3}), ("4", {"4": 0.9, "]": 0.1})], 0.54 / 0.9),
    ('{"evidence":[4],', [("Hm: ", {}), ('{"evidence":[9', {}), (" no ", {}), ('{"evidence":[', {}), ("4", {"4": 0.5, "]": 0.5})], 0.5),
    ('{"evidence":[],', [(' {"evidence":[', {}), ("]", {"]": 0.5, "": 0.3, "1": 0.5})], 0.5),
    ('{"evidence":["', [('{"evidence":[', {}), ('"', {'"': 0.8, "1": 0.1, "]": 0.1})], 0.5),
    ('{"evidence":["', [('{"evidence":[', {}), ('"', {'"': 0.8})], None), ('{"evidence":[', [('{"evidence":[', {})], None),
    ("Two minutes.", [("Two minutes.", {})], None), ('{"evidence":[4', [("token_id:5", {}), ("token_id:6", {})], None)])
def test_the_token_that_decides_is_found_by_its_place(text, tokens, p_answer):
    read = [Token(one, {way: math.log(chance) for way, chance in (ways or {one: 1.0}).items()}) for one, ways in tokens]
    found = leaning(text, read)
    assert found is None if p_answer is None else found.p_answer == pytest.approx(p_answer, abs=0.02)


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(['{"evidence":[', "]", "1", 10 ** 400, -10 ** 400])


@settings(max_examples=300, deadline=None)
@given(st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["content", "token", "logprob", "top_logprobs"]), inner, max_size=4), max_leaves=12))
def test_whatever_is_told_is_a_probability_or_nothing(said):
    found = leaning('{"evidence":[1', read_tokens(said))
    assert found is None or 0 <= found.p_answer <= 1
    body = json.dumps({"choices": [{"message": {"content": '{"evidence":[1'}, "logprobs": said}]}).encode()
    assert read_completion(body).p_answer == (found and found.p_answer)


def test_a_threshold_that_needs_no_probability():
    assert [wanted_side(None, least) for least in (None, 0.5, 0, math.inf)] == [None, None, True, False]


# llama.cpp's own server, and the same model in this process


def test_llama_cpp_tells_what_this_process_computes_and_takes_the_other_side(llama):
    from dataclasses import replace

    from kwanzaa_nb.core.config import load_config
    from kwanzaa_nb.model.load import detect_hardware, load_base, load_tokenizer, runtime_settings
    from kwanzaa_nb.model.local import LocalBackend

    records = sorted((one for one in read_records(ROOT / "data/training/kwanzaa_dev.jsonl") if one["chunks"]), key=lambda one: len(str(one["messages"])))
    shots = [next(one for one in records if one["answerable"] is truth) for truth in (True, False)]
    asked = next(one for one in records if one["id"] == "p-q061.format.p-q061.with")
    shown = [part for one in shots for part in one["messages"]] + prompt_of(asked)
    record = asked | {"messages": [*(part for part in shown if part["role"] != "system"), {"role": "assistant", "content": "-"}]}
    backend = ServerBackend(llama, None)
    assert backend.untold(grammar=True) == ""
    prompts = backend.prompts([record])
    ((_, served),) = backend.p_answer(prompts)
    config = load_config(ROOT / "configs/demo.cpu.yaml")
    whole = replace(runtime_settings(config, detect_hardware("cpu")), four_bit=False)
    local = LocalBackend(load_base(config, whole, attention="sdpa"), load_tokenizer(config))
    ((_, here),) = local.p_answer(local.prompts([record]))
    assert served == pytest.approx(here, abs=0.02)
    for grammar, least in ((True, served - 0.01), (True, served + 0.01), (False, served - 0.01)):
        (found,) = backend.write(prompts, Decoding(16, 1, grammar=grammar, answer_threshold=least))
        assert side(found.raw) is (least < served) and not found.problem
        assert found.p_answer == pytest.approx(served, abs=0.01)
