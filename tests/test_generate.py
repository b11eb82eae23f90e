"Generation: nothing twice, nothing lost, the same batches for both arms, and how each answer ended."

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import chat, tiny_model, tiny_tokenizer

import kwanzaa_nb.generate as generate
from kwanzaa_nb.errors import KwanzaaError
from kwanzaa_nb.generate import (
    Decoding,
    Prompt,
    append,
    batches,
    encode_prompts,
    generate_batch,
    generate_pass,
    open_log,
    pad_left,
    read_log,
)

RECORDS = [{"id": f"r{place}", "messages": chat(question="why " * (1 + 5 * place % 7))} for place in range(7)]
GREEDY = Decoding(max_new_tokens=6, batch_size=3)
SAMPLED = Decoding(max_new_tokens=6, batch_size=3, temperature=1.0, top_p=0.95, seed=4)
HEADER = {"base_model_id": "tiny", "dtype": "fp32", "decodings": [vars(GREEDY)]}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model(attention="sdpa")


@pytest.fixture
def counted(monkeypatch):
    "The record ids of each batch that is generated."
    calls, inner = [], generate.generate_batch

    def counting(model, tokenizer, batch, decoding):
        calls.append([prompt.record_id for prompt in batch])
        return inner(model, tokenizer, batch, decoding)

    monkeypatch.setattr(generate, "generate_batch", counting)
    return calls


def run(model, tokenizer, log, decoding=GREEDY, arm="base", records=RECORDS):
    return generate_pass(model, tokenizer, records, decoding, log, arm, report=lambda line: None)


def raws(samples):
    return [(sample["id"], sample["raw"], sample["finish_reason"], sample["new_tokens"]) for sample in samples]


def test_a_pass_gives_one_sample_a_record_in_order(model, tokenizer, tmp_path):
    log = tmp_path / "evaluation" / "samples.jsonl"
    assert open_log(log, HEADER) == "new"
    samples = run(model, tokenizer, log)
    header, logged = read_log(log)
    assert header == {"type": "header", "version": 1, **HEADER}
    assert [sample["id"] for sample in samples] == [record["id"] for record in RECORDS]
    assert sorted(logged, key=lambda sample: sample["id"]) == samples
    digests = {prompt.record_id: prompt.digest for prompt in encode_prompts(tokenizer, RECORDS)}
    assert all(
        sample["prompt_sha256"] == digests[sample["id"]] and sample["pass"] == "base, greedy" for sample in samples
    )


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("whole_lines, rest", [(1, 0), (1, 20), (2, 5), (4, 40), (5, -1), (7, 10), (8, 0)])
def test_a_killed_run_goes_on(model, tokenizer, tmp_path, counted, decoding, whole_lines, rest):
    log = tmp_path / "samples.jsonl"
    open_log(log, HEADER)
    wanted = raws(run(model, tokenizer, log, decoding))
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:whole_lines]) + (lines[whole_lines][:rest] if rest else b""))
    counted.clear()
    torch.manual_seed(99)
    assert open_log(log, HEADER) == "continued"
    assert log.read_bytes() == b"".join(lines[:whole_lines])
    assert raws(run(model, tokenizer, log, decoding)) == wanted
    logged = [sample["id"] for sample in read_log(log)[1]]
    assert sorted(logged) == sorted(record["id"] for record in RECORDS)
    there = {json.loads(line)["id"] for line in lines[1:whole_lines]}
    assert all(set(batch) - there for batch in counted), "a batch was generated again"
    assert bool(counted) is (len(there) < len(RECORDS))


def test_a_header_that_was_half_written_is_begun_again(tmp_path):
    log = tmp_path / "samples.jsonl"
    open_log(log, HEADER)
    whole = log.read_bytes()
    log.write_bytes(whole[:30])
    assert open_log(log, HEADER) == "new" and log.read_bytes() == whole


def test_a_finished_pass_is_read_and_not_generated(model, tokenizer, tmp_path, counted):
    log = tmp_path / "samples.jsonl"
    open_log(log, HEADER)
    first = run(model, tokenizer, log)
    counted.clear()
    before = log.read_bytes()
    assert run(model, tokenizer, log) == first and counted == [] and log.read_bytes() == before


def test_both_arms_and_all_passes_share_a_log_and_batches(model, tokenizer, tmp_path, counted):
    log = tmp_path / "samples.jsonl"
    open_log(log, HEADER)
    run(model, tokenizer, log)
    base = list(counted)
    counted.clear()
    other = tiny_model(seed=5, attention="sdpa")
    adapter = run(other, tokenizer, log, arm="adapter", records=RECORDS[::-1])
    assert counted == base and all(len(batch) <= 3 for batch in base)
    sampled = run(model, tokenizer, log, SAMPLED)
    assert {sample["pass"] for sample in read_log(log)[1]} == {
        "base, greedy",
        "adapter, greedy",
        "base, sampled, seed 4",
    }
    assert len(read_log(log)[1]) == 3 * len(RECORDS) and len(adapter) == len(sampled) == len(RECORDS)
    lengths = {prompt.record_id: len(prompt.tokens) for prompt in encode_prompts(tokenizer, RECORDS)}
    flat = [lengths[name] for batch in base for name in batch]
    assert flat == sorted(flat)


def test_another_experiment_keeps_the_old_log_under_another_name(model, tokenizer, tmp_path):
    log = tmp_path / "samples.jsonl"
    open_log(log, HEADER)
    run(model, tokenizer, log)
    old = log.read_bytes()
    kept = open_log(log, {**HEADER, "dtype": "fp16"})
    assert kept not in ("new", "continued") and (tmp_path / kept).read_bytes() == old
    assert read_log(log) == ({"type": "header", "version": 1, **HEADER, "dtype": "fp16"}, [])


def test_going_back_and_forth_between_experiments_loses_nothing(tmp_path):
    log, other = tmp_path / "samples.jsonl", {**HEADER, "dtype": "fp16"}
    open_log(log, HEADER)
    append(log, {"id": "precious"})
    open_log(log, other)
    open_log(log, HEADER)  # begun anew, or taken up again
    append(log, {"id": "later"})
    open_log(log, other)
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"precious" in everything and b"later" in everything


@pytest.mark.parametrize("content", [b"notes of mine\n", b"[1]\n", b"\n", b"\xff\xfe\n", b'"text"\n{}\n'])
def test_a_file_that_is_no_log_is_kept_or_refused_in_a_sentence(tmp_path, content):
    log = tmp_path / "samples.jsonl"
    log.write_bytes(content)
    try:
        kept = open_log(log, HEADER)
    except KwanzaaError:
        assert log.read_bytes() == content
    else:
        assert read_log(log)[1] == [] and (tmp_path / kept).read_bytes() == content


# one batch


def test_padding_is_on_the_left():
    ids, mask = pad_left([Prompt("a", (5, 6, 7)), Prompt("b", (8,)), Prompt("c", (1, 2))], pad=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, 1, 2]] and mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]


def test_company_does_not_change_what_is_written(model, tokenizer):
    prompts = encode_prompts(tokenizer, RECORDS)
    assert len({len(prompt.tokens) for prompt in prompts}) > 3
    together = generate_batch(model, tokenizer, prompts, GREEDY)
    apart = [generate_batch(model, tokenizer, [prompt], GREEDY)[0] for prompt in prompts]
    assert together == apart and len(set(together)) > 1


def greedy_tokens(model, prompt, count):
    tokens = list(prompt.tokens)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(model(torch.tensor([tokens])).logits[0, -1].argmax().item())
    return tokens[len(prompt.tokens) :]


def test_the_finish_reason_is_read_from_the_tokens(tokenizer):
    model = tiny_model(seed=3, attention="sdpa")
    prompts = encode_prompts(tokenizer, RECORDS[:3])
    written = [greedy_tokens(model, prompt, 6) for prompt in prompts]
    end = written[0][3]
    model.generation_config.eos_token_id = [end]
    found = generate_batch(model, tokenizer, prompts, GREEDY)
    for tokens, (text, reason, count) in zip(written, found):
        place = tokens.index(end) if end in tokens else None
        assert reason == ("length" if place is None else "stop")
        assert count == (6 if place is None else place + 1)
        assert text == tokenizer.decode(tokens[:place], skip_special_tokens=False)
    assert found[0][1] == "stop"


def test_an_end_on_the_last_token_is_a_stop(tokenizer):
    model, prompt = tiny_model(seed=3, attention="sdpa"), encode_prompts(tokenizer, RECORDS[:1])
    tokens = greedy_tokens(model, prompt[0], 4)
    place = next(place for place, token in enumerate(tokens) if token not in tokens[:place] and place)
    model.generation_config.eos_token_id = tokens[place]
    assert generate_batch(model, tokenizer, prompt, Decoding(place + 1, 1))[0][1:] == ("stop", place + 1)
    assert generate_batch(model, tokenizer, prompt, Decoding(place, 1))[0][1:] == ("length", place)


# sampling


def test_a_sampled_pass_can_be_repeated(model, tokenizer, tmp_path):
    found = []
    for place, seed in enumerate((4, 4, 5)):
        torch.manual_seed(1000 + place)
        log = tmp_path / f"{place}.jsonl"
        open_log(log, HEADER)
        found.append(raws(run(model, tokenizer, log, Decoding(6, 3, 1.0, 0.95, seed))))
    assert found[0] == found[1] != found[2]


def test_greedy_does_not_hang_on_the_state_of_chance(model, tokenizer, tmp_path):
    found = []
    for place in range(2):
        torch.manual_seed(place)
        log = tmp_path / f"{place}.jsonl"
        open_log(log, HEADER)
        found.append(raws(run(model, tokenizer, log)))
    assert found[0] == found[1]


def test_names_and_options_of_decodings():
    assert GREEDY.name == "greedy" and SAMPLED.name == "sampled, seed 4"
    assert GREEDY.options() == {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "repetition_penalty": 1.0}
    assert (
        SAMPLED.options()["do_sample"]
        and SAMPLED.options()["temperature"] == 1.0
        and SAMPLED.options()["top_p"] == 0.95
    )


# prompts


def test_the_answer_is_not_shown(tokenizer):
    with_answer, without = chat("the secret"), chat("the secret")[:2]
    first, second = encode_prompts(tokenizer, [{"id": "a", "messages": with_answer}, {"id": "a", "messages": without}])
    assert first == second and "secret" not in tokenizer.decode(first.tokens) and first.digest == second.digest
    other = encode_prompts(tokenizer, [{"id": "a", "messages": chat(question="Else?")}])[0]
    assert other.digest != first.digest and tokenizer.decode(first.tokens).endswith("<|im_start|>assistant\n")


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), size=st.integers(1, 6), order=st.randoms())
def test_batches_depend_on_the_prompts_alone(lengths, size, order):
    prompts = [Prompt(f"r{place:02}", tuple(range(length))) for place, length in enumerate(lengths)]
    found = list(batches(prompts, size))
    mixed = list(prompts)
    order.shuffle(mixed)
    assert list(batches(mixed, size)) == found
    assert sorted((prompt.record_id for batch in found for prompt in batch)) == [prompt.record_id for prompt in prompts]
    assert all(len(batch) == size for batch in found[:-1]) and 1 <= len(found[-1]) <= size
