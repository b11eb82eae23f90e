"Generation: each record once, the same batches for both arms, and why each output ended."

import json
import random
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ROOT, chat, short_spoken, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig, Olmo3Config
from transformers.cache_utils import DynamicLayer

import kwanzaa_nb.model.local as local
from kwanzaa_nb.core.answer import parse_model_answer, record_schema
from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.jsonl import DataError
from kwanzaa_nb.core.prefix import PrefixCheck
from kwanzaa_nb.model.decision import DECISION, decision_tokens
from kwanzaa_nb.core.errors import KwanzaaError
from kwanzaa_nb.core.files import strict_json
from kwanzaa_nb.model.backend import (
    REFUSED, Decoding, LogError, Written, append, generate_pass, log_line, open_log, read_log)
from kwanzaa_nb.model.grammar import GrammarProcessor
from kwanzaa_nb.model.local import (
    GenerationError, LocalBackend, Prompt, batches, choose, encode_prompts, generate_batch,
    pad_left)
from kwanzaa_nb.model.load import load_tokenizer
from kwanzaa_nb.core.sentences import number_sentences
from kwanzaa_nb.core.record import read_records

RECORDS = [{"id": f"r{place}", "messages": chat(question="why " * (1 + 5 * place % 7))}
           for place in range(7)]
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
    calls, inner = [], local.generate_batch

    def counting(model, tokenizer, batch, decoding, matchers=None):
        calls.append([prompt.record_id for prompt in batch])
        return inner(model, tokenizer, batch, decoding, matchers)

    monkeypatch.setattr(local, "generate_batch", counting)
    return calls


def run(model, tokenizer, log, decoding=GREEDY, arm="base", records=RECORDS):
    return generate_pass(LocalBackend(model, tokenizer), records, decoding, log, arm,
                         report=lambda line: None)


def told(outputs):
    "Text, finish reason and tokens, as the log has them."
    return [(output.text, output.reason, len(output.tokens) + (output.reason == "stop"))
            for output in outputs]


def raws(outputs):
    return [(output["id"], output["raw"], output["finish_reason"], output["new_tokens"])
            for output in outputs]


def test_a_pass_gives_one_sample_a_record_in_order(model, tokenizer, tmp_path):
    log = tmp_path / "evaluation" / "outputs.jsonl"
    assert open_log(log, HEADER) == "new"
    outputs = run(model, tokenizer, log)
    header, logged = read_log(log)
    assert header == {"type": "header", "version": 1, **HEADER}
    assert [output["id"] for output in outputs] == [record["id"] for record in RECORDS]
    assert sorted(logged, key=lambda output: output["id"]) == outputs
    digests = {prompt.record_id: prompt.digest for prompt in encode_prompts(tokenizer, RECORDS)}
    assert all(
        output["prompt_sha256"] == digests[output["id"]] and output["pass"] == "base, greedy"
        for output in outputs
    )


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("whole_lines, rest", [(1, 0), (1, 20), (2, 5), (4, 40), (5, -1), (7, 10),
                                               (8, 0)])
def test_a_killed_run_goes_on(model, tokenizer, tmp_path, counted, decoding, whole_lines, rest):
    log = tmp_path / "outputs.jsonl"
    open_log(log, HEADER)
    wanted = raws(run(model, tokenizer, log, decoding))
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:whole_lines]) + (lines[whole_lines][:rest] if rest else b""))
    counted.clear()
    torch.manual_seed(99)
    assert open_log(log, HEADER) == "continued"
    assert log.read_bytes() == b"".join(lines[:whole_lines])
    assert raws(run(model, tokenizer, log, decoding)) == wanted
    logged = [output["id"] for output in read_log(log)[1]]
    assert sorted(logged) == sorted(record["id"] for record in RECORDS)
    there = {json.loads(line)["id"] for line in lines[1:whole_lines]}
    assert all(set(batch) - there for batch in counted), "a batch was generated again"
    assert bool(counted) is (len(there) < len(RECORDS))


def test_a_header_that_was_half_written_is_begun_again(tmp_path):
    log = tmp_path / "outputs.jsonl"
    open_log(log, HEADER)
    whole = log.read_bytes()
    log.write_bytes(whole[:30])
    assert open_log(log, HEADER) == "new" and log.read_bytes() == whole


def test_a_finished_pass_is_read_and_not_generated(model, tokenizer, tmp_path, counted):
    log = tmp_path / "outputs.jsonl"
    open_log(log, HEADER)
    first = run(model, tokenizer, log)
    counted.clear()
    before = log.read_bytes()
    assert run(model, tokenizer, log) == first and counted == [] and log.read_bytes() == before


@pytest.mark.parametrize("seed", range(3))
def test_a_log_that_two_runs_wrote_into_is_read_and_gone_on_with(model, tokenizer, tmp_path, counted, seed):
    "Rows twice and in any order, a second header, a line that two wrote across each other: the first complete row counts."
    log, chance = tmp_path / "outputs.jsonl", random.Random(seed)
    open_log(log, HEADER)
    wanted = raws(run(model, tokenizer, log))
    header, *rows = log.read_text().splitlines(keepends=True)
    chance.shuffle(rows)
    second = [json.dumps(json.loads(row) | {"raw": "later"}) + "\n" for row in rows]
    chance.shuffle(second)
    torn = rows[0][:40] + second[0]
    log.write_text("".join([header, *rows[1:], header, torn, "null\n", '{"loss": NaN}\n',
                            *(row for row in second
                              if json.loads(row)["id"] != json.loads(rows[0])["id"])]))
    counted.clear()
    assert open_log(log, HEADER) == "continued"
    assert raws(run(model, tokenizer, log)) == wanted
    assert sum(map(len, counted)) <= 3 and any(json.loads(rows[0])["id"] in batch for batch in counted), "more than the torn one's batch was asked"
    assert len(read_log(log)[1]) == len(RECORDS)
    assert raws(sorted(read_log(log)[1], key=lambda row: row["id"])) == wanted


def test_both_arms_and_all_passes_share_a_log_and_batches(model, tokenizer, tmp_path, counted):
    log = tmp_path / "outputs.jsonl"
    open_log(log, HEADER)
    run(model, tokenizer, log)
    base = list(counted)
    counted.clear()
    other = tiny_model(seed=5, attention="sdpa")
    adapter = run(other, tokenizer, log, arm="adapter", records=RECORDS[::-1])
    assert counted == base and all(len(batch) <= 3 for batch in base)
    sampled = run(model, tokenizer, log, SAMPLED)
    assert {output["pass"] for output in read_log(log)[1]} == {
        "base, greedy", "adapter, greedy", "base, sampled, seed 4",
    }
    assert len(read_log(log)[1]) == 3 * len(RECORDS)
    assert len(adapter) == len(sampled) == len(RECORDS)
    lengths = {prompt.record_id: len(prompt.tokens)
               for prompt in encode_prompts(tokenizer, RECORDS)}
    flat = [lengths[name] for batch in base for name in batch]
    assert flat == sorted(flat)


def test_another_experiment_keeps_the_old_log_under_another_name(model, tokenizer, tmp_path):
    log = tmp_path / "outputs.jsonl"
    open_log(log, HEADER)
    run(model, tokenizer, log)
    old = log.read_bytes()
    kept = open_log(log, {**HEADER, "dtype": "fp16"})
    assert kept not in ("new", "continued") and (tmp_path / kept).read_bytes() == old
    assert read_log(log) == ({"type": "header", "version": 1, **HEADER, "dtype": "fp16"}, [])


def test_going_back_and_forth_between_experiments_loses_nothing(tmp_path):
    log, other = tmp_path / "outputs.jsonl", {**HEADER, "dtype": "fp16"}
    open_log(log, HEADER)
    append(log, {**SAMPLE, "id": "precious"})
    open_log(log, other)
    open_log(log, HEADER)  # begun anew, or taken up again
    append(log, {**SAMPLE, "id": "later"})
    open_log(log, other)
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"precious" in everything and b"later" in everything


@pytest.mark.parametrize("content", [b"notes of mine\n", b"[1]\n", b"\n",
                                     b"\xff\xfe\n", b'"text"\n{}\n'])
def test_a_file_that_is_no_log_is_kept_or_refused_in_a_sentence(tmp_path, content):
    log = tmp_path / "outputs.jsonl"
    log.write_bytes(content)
    try:
        kept = open_log(log, HEADER)
    except KwanzaaError:
        assert log.read_bytes() == content
    else:
        assert read_log(log)[1] == [] and (tmp_path / kept).read_bytes() == content


SAMPLE = {"id": "r0", "arm": "base", "pass": "base, greedy", "raw": "{}",
          "finish_reason": "stop", "new_tokens": 3}


@pytest.mark.parametrize("key, value", [("p_answer", float("nan")), ("new_tokens", float("inf")),
                                        ("seconds", -float("inf")), ("tokens", [1, float("nan")]),
                                        ("raw", "half \ud800"), ("raw", {1, 2}),
                                        ("raw", "x" * 1_000_001), ("id", "\udfff")])
def test_what_could_not_be_read_again_is_not_written(tmp_path, key, value):
    log = tmp_path / "outputs.jsonl"
    open_log(log, HEADER)
    append(log, SAMPLE)
    before = log.read_bytes()
    with pytest.raises(LogError, match="^The log can't hold the row of .*Nothing was written") as caught:
        append(log, {**SAMPLE, key: value})
    assert "\n" not in str(caught.value) and log.read_bytes() == before
    assert read_log(log)[1] == [SAMPLE]
    with pytest.raises(LogError):
        open_log(log, {**HEADER, "odd": value})
    assert log.read_bytes() == before


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(st.characters(), max_size=4), inner, max_size=3), max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_a_line_of_a_log_can_be_read_or_is_not_made(row):
    try:
        line = log_line(row)
    except LogError:
        return
    def no_word(word):
        raise ValueError(word)
    assert json.loads(line, parse_constant=no_word) == row and line.count("\n") == 1
    assert line.isascii()


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_strict_json_has_null_for_what_is_no_number(value):
    def no_word(word):
        raise ValueError(word)
    found = json.loads(strict_json(value), parse_constant=no_word)
    assert found == json.loads(json.dumps(value), parse_constant=lambda word: None)


@pytest.mark.parametrize("line, told", [(b'{"id": "r1", "arm": "base", "pass": "base, greedy", "p_answer": NaN}', "NaN"), (b'{"id": "r1", "arm": "ba', "not JSON"), (b"[1]", r"found \[1\], expected an object"),
                                        (b'{"id": "r1", "arm": "base"}', "pass is missing"), (b'{"id": "r1", "arm": "base", "pass": "p", "raw": [7]}', "raw is missing or not text"),
                                        (b"\xff", "UTF-8")])
def test_a_damaged_line_of_a_log_is_named_with_what_to_do_and_nothing_is_lost(tmp_path, line, told):
    log = tmp_path / "outputs.jsonl"
    open_log(log, HEADER)
    append(log, SAMPLE)
    good = log.read_bytes()
    log.write_bytes(good + line + b"\n" + json.dumps({**SAMPLE, "id": "r2"}).encode() + b"\n")
    whole = log.read_bytes()
    with pytest.raises(DataError, match=f"outputs.jsonl, line 3: .*{told}.*run the stage evaluate again: it leaves this line out") as caught:
        read_log(log)
    assert len(caught.value.problems) == 1 and log.read_bytes() == whole
    assert open_log(log, HEADER) == "continued"
    assert log.read_bytes() == whole.replace(line + b"\n", b"")
    assert [row["id"] for row in read_log(log)[1]] == ["r0", "r2"]


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from(["base, greedy", "adapter, greedy"]),
                               st.sampled_from(["r0", "r1", "r2"]), st.booleans()), max_size=12))
def test_of_several_lines_for_a_record_the_first_answer_counts(tmp_path_factory, rows):
    log = tmp_path_factory.mktemp("log") / "outputs.jsonl"
    open_log(log, HEADER)
    wanted = {}
    for place, (name, record, answered) in enumerate(rows):
        append(log, {**SAMPLE, "id": record, "pass": name, "new_tokens": place,
                     "finish_reason": "stop" if answered else REFUSED})
        if not wanted.get((name, record), (0, False))[1]:
            wanted[name, record] = (place, answered)
    found = read_log(log)[1]
    assert {(row["pass"], row["id"]): row["new_tokens"] for row in found} == {pair: place for pair, (place, _) in wanted.items()}
    assert len(found) == len(wanted)


class Choosy:
    "A backend that writes one by one and can't answer some."

    def __init__(self, *refused, stops=None):
        self.refused, self.stops, self.asked = refused, stops, []

    def prompts(self, records):
        return [Prompt(record["id"], (1,)) for record in records]

    def batches(self, prompts, decoding):
        yield from (prompts[start:start + decoding.batch_size]
                    for start in range(0, len(prompts), decoding.batch_size))

    def each(self, batch, decoding):
        for prompt in batch[::-1]:
            self.asked.append(prompt.record_id)
            if prompt.record_id == self.stops:
                raise KeyboardInterrupt
            yield prompt, KwanzaaError("too long") if prompt.record_id in self.refused else Written("{}", "stop", 1)


def test_ctrl_c_keeps_what_came_and_no_answer_is_asked_for_twice(tmp_path):
    log = tmp_path / "outputs.jsonl"
    open_log(log, HEADER)
    with pytest.raises(KeyboardInterrupt):
        generate_pass(Choosy(stops="r3"), RECORDS, Decoding(6, 7), log, "base",
                      report=lambda line: None)
    assert [row["id"] for row in read_log(log)[1]] == ["r6", "r5", "r4"]
    backend = Choosy("r1")
    first = generate_pass(backend, RECORDS, Decoding(6, 7), log, "base", report=lambda line: None)
    assert backend.asked == ["r3", "r2", "r1", "r0"]
    assert [row["finish_reason"] for row in first] == ["stop", REFUSED, *["stop"] * 5]
    again = Choosy("r1")
    assert generate_pass(again, RECORDS, Decoding(6, 7), log, "base", report=lambda line: None)[1]["problem"] == "too long"
    assert again.asked == ["r1"]
    lines = [json.loads(line)["id"] for line in log.read_bytes().splitlines()[1:]]
    assert sorted(lines) == sorted([*[record["id"] for record in RECORDS], "r1"])


# scores that are none


class Broken(torch.nn.Module):
    "A model whose scores become something else from a step on, in one row."

    def __init__(self, model, value, step, tokens=slice(None), row=0):
        super().__init__()
        self.model, self.value, self.left, self.tokens, self.row = model, value, step, tokens, row
        self.config, self.generation_config, self.device = model.config, model.generation_config, model.device

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, **given):
        found = self.model(**given)
        self.left -= 1
        if self.left < 0:
            found.logits[min(self.row, len(found.logits) - 1), -1, self.tokens] = self.value
        return found


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED,
                                      replace(GREEDY, grammar=True, max_new_tokens=200)],
                         ids=["greedy", "sampled", "grammar"])
@pytest.mark.parametrize("value, tokens, told", [(NAN, slice(None), "NaN"),
                                                 (NAN, slice(5, 6), "NaN"),
                                                 (INF, slice(7, 8), "infinity"),
                                                 (-INF, slice(None), "nothing but minus infinity")])
@pytest.mark.parametrize("step", [0, 4])
def test_scores_that_are_none_stop_at_the_first_with_a_sentence(model, tokenizer, tmp_path, decoding, value, tokens, told, step):
    log = tmp_path / "outputs.jsonl"
    open_log(log, HEADER)
    append(log, {**SAMPLE, "pass": f"base, {decoding.name}"})
    before = log.read_bytes()
    records = [{**record, "chunks": [{"chunk_id": "c", "text": "One. Two."}]}
               for record in RECORDS[:2]]
    with pytest.raises(GenerationError, match=rf"scores for the next token are {told} at the record r\d, token \d+, computed in float32.*run.mixed_precision.*bnb_4bit_compute_dtype"):
        run(Broken(model, value, step, tokens), tokenizer, log, decoding, records=records)
    assert log.read_bytes() == before


def test_minus_infinity_on_some_tokens_is_a_mask(model, tokenizer):
    masked = Broken(model, -INF, 0, slice(0, 40))
    for decoding in (GREEDY, SAMPLED):
        for written in LocalBackend(masked, tokenizer).write(encode_prompts(tokenizer, RECORDS[:1]), decoding):
            assert written.tokens and min(written.tokens) >= 40


def test_a_grammar_and_a_mask_that_leave_nothing_are_a_sentence(ending, tokenizer):
    first = tokenizer(DECISION, add_special_tokens=False)["input_ids"][0]
    allowed = [token for text, token in tokenizer.get_vocab().items() if text.startswith("{")]
    assert first in allowed
    backend = LocalBackend(Broken(ending, -INF, 0, allowed), tokenizer)
    with pytest.raises(GenerationError,
                       match="nothing but minus infinity .*the record s1, token 1"):
        backend.write(backend.prompts(SHOWN[1:2]), Decoding(20, 1, grammar=True))


def test_the_decision_is_read_from_numbers_alone(ending, tokenizer):
    prompts = LocalBackend(ending, tokenizer).prompts(SHOWN[1:2])
    with pytest.raises(GenerationError, match="NaN .*the record s1, where it decides"):
        list(LocalBackend(Broken(ending, NAN, 0), tokenizer).p_answer(prompts))
    _, answering, refusing = prompts[0].decides
    for ruled_out, chances in (([*answering, refusing], []), (answering, [0.0]),
                               ([refusing], [1.0])):
        found = LocalBackend(Broken(ending, -INF, 0, list(ruled_out)), tokenizer).p_answer(prompts)
        assert [chance for _, chance in found] == chances
    (_, some), = LocalBackend(Broken(ending, -INF, 0, answering[1:]), tokenizer).p_answer(prompts)
    (_, every), = LocalBackend(ending, tokenizer).p_answer(prompts)
    assert 0 < some < every < 1


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-6, 1.0, 1e6])
def test_no_temperature_makes_infinity_of_scores(temperature):
    assert choose(torch.tensor([[60.0, -60.0, 59.0]]), replace(SAMPLED, temperature=temperature)).item() in (0, 1, 2)


# one batch


def test_padding_is_on_the_left():
    ids, mask = pad_left([Prompt("a", (5, 6, 7)), Prompt("b", (8,)), Prompt("c", (1, 2))], pad=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, 1, 2]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]


def test_company_does_not_change_what_is_written(model, tokenizer):
    prompts = encode_prompts(tokenizer, RECORDS)
    assert len({len(prompt.tokens) for prompt in prompts}) > 3
    together = told(generate_batch(model, tokenizer, prompts, GREEDY))
    apart = [told(generate_batch(model, tokenizer, [prompt], GREEDY))[0] for prompt in prompts]
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
    found = told(generate_batch(model, tokenizer, prompts, GREEDY))
    for tokens, (text, reason, count) in zip(written, found):
        place = tokens.index(end) if end in tokens else None
        assert reason == ("length" if place is None else "stop")
        assert count == (6 if place is None else place + 1)
        assert text == tokenizer.decode(tokens[:place], skip_special_tokens=False)
    assert found[0][1] == "stop"


def test_an_end_on_the_last_token_is_a_stop(tokenizer):
    model, prompt = tiny_model(seed=3, attention="sdpa"), encode_prompts(tokenizer, RECORDS[:1])
    tokens = greedy_tokens(model, prompt[0], 4)
    place = next(place for place, token in enumerate(tokens)
                 if token not in tokens[:place] and place)
    model.generation_config.eos_token_id = tokens[place]
    assert told(generate_batch(model, tokenizer, prompt, Decoding(place + 1, 1)))[0][1:] == ("stop", place + 1)
    assert told(generate_batch(model, tokenizer, prompt, Decoding(place, 1)))[0][1:] == ("length", place)


def test_rows_that_leave_the_batch_change_nothing_for_the_others(tokenizer, monkeypatch):
    model = tiny_model(seed=3, attention="sdpa")
    prompts = encode_prompts(tokenizer, RECORDS)
    long = Decoding(max_new_tokens=150, batch_size=7)
    written = [greedy_tokens(model, prompt, 150) for prompt in prompts]
    eos_token_ids = {tokens[20 + 15 * place] for place, tokens in enumerate(written)}
    model.generation_config.eos_token_id = sorted(eos_token_ids)
    sizes, kept = [], local.RoomyLayer.batch_select_indices
    monkeypatch.setattr(
        local.RoomyLayer, "batch_select_indices",
        lambda self, rows: (sizes.append(len(rows)), kept(self, rows))
    )
    for tokens, output in zip(written, generate_batch(model, tokenizer, prompts, long)):
        stop = next((place for place, token in enumerate(tokens) if token in eos_token_ids), None)
        assert output.tokens == tokens[:stop]
    assert len(set(sizes)) > 1, "no row left before the last"


def test_the_tokens_are_those_of_transformers_own_generation(model, tokenizer):
    prompts = encode_prompts(tokenizer, RECORDS)
    ids, mask = pad_left(prompts, tokenizer.pad_token_id)
    theirs = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=140,
                            do_sample=False, eos_token_id=None)
    ours = generate_batch(model, tokenizer, prompts, Decoding(140, 7))
    eos_token_ids = local.stop_ids(tokenizer, model.generation_config)
    for row, output in zip(theirs[:, ids.shape[1] :].tolist(), ours):
        assert row[: len(output.tokens)] == output.tokens
        assert len(output.tokens) == 140 or row[len(output.tokens)] in eos_token_ids


class Letters:
    "A tokenizer of single characters."

    def decode(self, tokens, **options):
        return bytes(tokens).decode("utf-8", errors="replace")


@pytest.mark.parametrize("grace", [0, 5])
def test_an_output_that_cannot_become_valid_gets_a_few_more_tokens(grace):
    output = local.GrowingOutput(Letters(), {0}, Decoding(200, 1, stop_invalid_after=grace))
    taken = [output.take(token)
             for token in b'{"evidence":[] and so on and on and on'[: 16 + grace]]
    assert taken == [True] * (15 + grace) + [False]
    assert (output.reason, output.died_at) == ("invalid", 16)


@pytest.mark.parametrize("evidence, died_at", [(b"[3]", 14), (b"[1,2]", None), (b"[2,2]", 17),
                                               (b"[0]", 14), (b"[1,3", 16), (b"[11]", 15)])
def test_a_number_that_was_not_shown_or_stands_twice_ends_an_output(evidence, died_at):
    output = local.GrowingOutput(Letters(), {0}, Decoding(200, 1, stop_invalid_after=3),
                                 PrefixCheck(record_schema(CHUNKS)))
    for token in b'{"evidence":' + evidence + b',"answer":{"completeness"':
        if not output.take(token):
            break
    assert output.died_at == died_at
    assert (output.reason, len(output.tokens)) == (("invalid", died_at + 3) if died_at else ("", len(evidence) + 37))


def test_a_valid_output_is_never_stopped_even_between_the_bytes_of_a_character():
    text = (
        '{"evidence":[1],"answer":{"completeness":"complete","text":"Ọ̀ṣun “🎉”, é [1]"},'
        '"unknowns":{"unsupported_claims":[],"missing_context":[],"clarifying_questions":[]}}'
    )
    output = local.GrowingOutput(Letters(), {0}, Decoding(2000, 1, stop_invalid_after=0))
    assert all(output.take(token) for token in text.encode()) and not output.take(0)
    assert (output.text, output.reason, output.died_at) == (text, "stop", None)

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


def test_names_and_choices_of_decodings():
    assert GREEDY.name == "greedy" and SAMPLED.name == "sampled, seed 4"
    logits = torch.tensor([[0.0, 9.0, 8.9], [7.0, 1.0, 1.0]])
    assert choose(logits, GREEDY).tolist() == [1, 0]
    torch.manual_seed(0)
    cold = Decoding(6, 3, temperature=0.01, top_p=1.0, seed=4)
    assert {tuple(choose(logits, cold).tolist()) for _ in range(20)} == {(1, 0)}
    narrow, wide = Decoding(6, 3, 1.0, 0.4, 4), Decoding(6, 3, 1.0, 0.99, 4)
    assert {choose(logits, narrow)[0].item() for _ in range(60)} == {1}
    assert {choose(logits, wide)[0].item() for _ in range(60)} == {1, 2}


# prompts


def test_the_answer_is_not_shown(tokenizer):
    with_answer, without = chat("the secret"), chat("the secret")[:2]
    first, second = encode_prompts(tokenizer, [{"id": "a", "messages": with_answer},
                                               {"id": "a", "messages": without}])
    assert first == second and "secret" not in tokenizer.decode(first.tokens)
    assert first.digest == second.digest
    other = encode_prompts(tokenizer, [{"id": "a", "messages": chat(question="Else?")}])[0]
    assert other.digest != first.digest
    assert tokenizer.decode(first.tokens).endswith("<|im_start|>assistant\n")


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), size=st.integers(1, 6),
       order=st.randoms())
def test_batches_depend_on_the_prompts_alone(lengths, size, order):
    prompts = [Prompt(f"r{place:02}", tuple(range(length))) for place, length in enumerate(lengths)]
    found = list(batches(prompts, size))
    mixed = list(prompts)
    order.shuffle(mixed)
    assert list(batches(mixed, size)) == found
    assert sorted((prompt.record_id for batch in found for prompt in batch)) == [prompt.record_id for prompt in prompts]
    assert all(len(batch) == size for batch in found[:-1]) and 1 <= len(found[-1]) <= size


# under a grammar, and at the decision


@pytest.fixture(scope="module")
def ending():
    "A model that ends where the tokenizer does, and not at a letter."
    model = tiny_model(seed=3, attention="sdpa")
    model.generation_config.eos_token_id = None
    return model


CHUNKS = [{"chunk_id": "a", "text": "She left. He stayed."}]
SHOWN = [{"id": f"s{place}", "messages": chat(question="who " * (place + 1)), "chunks": CHUNKS if place else []} for place in range(4)]


def test_under_a_grammar_nonsense_keeps_the_contract(ending, tokenizer):
    backend = LocalBackend(ending, tokenizer)
    settings = Decoding(1200, 4, temperature=1.0, seed=6, grammar=True)
    for record, written in zip(SHOWN, backend.write(backend.prompts(SHOWN), settings)):
        assert written.reason in ("stop", "length")
        if written.reason == "stop":
            answer = parse_model_answer(written.raw, record["chunks"])
            assert bool(answer.evidence) == (answer.answer.completeness != "insufficient_data")
            assert (record["chunks"] or not answer.evidence)


def test_forced_tokens_change_nothing_but_the_number_of_steps(ending, tokenizer, monkeypatch):
    model, backend_of = deepcopy(ending).double(), lambda model: LocalBackend(model, tokenizer)
    settings, widths, read = Decoding(300, 4, grammar=True), [], local.Rows.read
    monkeypatch.setattr(local.Rows, "read",
                        lambda self, tokens: (widths.append(tokens.shape[1]), read(self, tokens)))
    with_forced = backend_of(model).write(backend_of(model).prompts(SHOWN), settings)
    assert max(widths) > 5
    monkeypatch.setattr(local, "forced", lambda matchers: [[] for _ in matchers])
    widths.clear()
    assert backend_of(model).write(backend_of(model).prompts(SHOWN), settings) == with_forced
    assert set(widths) == {1}


def test_outputs_that_a_grammar_lets_through_are_taken_over(ending, tokenizer, tmp_path, counted):
    log, refusal = tmp_path / "outputs.jsonl", (
        '{"evidence":[],"answer":{"completeness":"insufficient_data","text":"No."},"unknowns":{"unsupported_claims":[],'
        '"missing_context":["who"],"clarifying_questions":[]}}')
    backend = LocalBackend(ending, tokenizer)
    open_log(log, HEADER)
    prompts = backend.prompts(SHOWN)
    texts = [refusal, "Sure!", refusal, refusal]
    for prompt, text, reason in zip(prompts, texts, ("stop", "stop", "length", "stop")):
        append(log, {"id": prompt.record_id, "arm": "base", "pass": "base, greedy",
                     "prompt_sha256": prompt.digest, "raw": text,
                     "finish_reason": reason, "new_tokens": 5, "seconds": 0.1,
                     "p_answer": None,
                     "tokens": tokenizer(text, add_special_tokens=False)["input_ids"]})
    settings = Decoding(40, 4, grammar=True)
    outputs = generate_pass(backend, SHOWN, settings, log, "base+grammar",
                            report=lambda line: None, same_as="base")
    assert [output.get("same_as") for output in outputs] == ["base, greedy", None, None, "base, greedy"]
    assert counted == [["s1", "s2"]] and {output["arm"] for output in outputs} == {"base+grammar"}
    assert outputs[0]["raw"] == refusal
    again = generate_pass(backend, SHOWN, settings, log, "base+grammar",
                          report=lambda line: None, same_as="base")
    assert again == outputs and len(counted) == 1


def test_a_record_without_chunks_has_no_grammar(ending, tokenizer):
    backend = LocalBackend(ending, tokenizer)
    with pytest.raises(KwanzaaError,
                       match="no chunks to point at: set evaluation.grammar to false"):
        backend.write(backend.prompts([{"id": "x", "messages": chat()}]),
                      Decoding(4, 1, grammar=True))


def test_the_decision_is_noted_and_can_be_moved(ending, tokenizer):
    backend = LocalBackend(ending, tokenizer)
    prompts = backend.prompts(SHOWN[1:])
    known = {prompt.record_id: answering for prompt, answering in backend.p_answer(prompts)}
    assert set(known) == {"s1", "s2", "s3"}
    assert all(0 < answering < 1 for answering in known.values())
    for least, beginning in ((0.0, "12"), (1.0, "]"), (INF, "]")):
        for prompt, written in zip(prompts, backend.write(prompts, Decoding(40, 3, grammar=True, answer_threshold=least))):
            assert written.raw.startswith(DECISION) and written.raw[len(DECISION)] in beginning
            assert written.p_answer == pytest.approx(known[prompt.record_id], abs=1e-5)
    whole = backend.prompts(SHOWN)  # the first was shown nothing: a grammar leaves it no answer, whatever the threshold
    begun = [written.raw[len(DECISION)]
             for written in backend.write(whole, Decoding(40, 4, grammar=True,
                                                          answer_threshold=0.0))]
    assert begun[0] == "]" and set(begun[1:]) <= set("12")
    free = backend.write(prompts, Decoding(5, 3))
    assert all(written.p_answer is None for written in free)


def test_a_stopped_output_says_where_it_died(tokenizer, tmp_path):
    log = tmp_path / "outputs.jsonl"
    open_log(log, HEADER)
    outputs = run(tiny_model(seed=3, attention="sdpa"), tokenizer, log,
                  Decoding(60, 7, stop_invalid_after=2))
    assert {output["finish_reason"] for output in outputs} == {"invalid"}
    assert all(output["new_tokens"] == output["died_at"] + 2 == len(output["tokens"])
               for output in outputs)


# decisions, grammars and finished rows that are removed from a batch, with a model that says what it is told


class Says(Broken):
    "A model that writes given tokens first; then it likes some more than all others, the first most."

    def __init__(self, model, first, likes=()):
        super().__init__(model, None, 0)
        self.first, self.likes = list(first), list(likes)

    def forward(self, **given):
        found = self.model(**given)
        scores = found.logits[:, -1]
        if self.first:
            scores[:, self.first.pop(0)] = 1000.0
        else:
            for place, token in enumerate(self.likes):
                scores[:, token] = 100.0 - place
            self.likes = []
        return found


def test_a_model_that_names_a_sentence_too_many_is_stopped_early(ending, tokenizer):
    tokens = tokenizer(f'{DECISION}3],"answer":{{"completeness":"complete"', add_special_tokens=False)["input_ids"]
    for chunks, died_at in ((CHUNKS, 14), ([{"chunk_id": "a",
                                             "text": "She left. He stayed. They met."}], None)):
        backend = LocalBackend(Says(ending, tokens), tokenizer)
        (written,) = backend.write(backend.prompts([{**SHOWN[1], "chunks": chunks}]),
                                   Decoding(30, 1, stop_invalid_after=3))
        assert (written.died_at, written.reason, written.new_tokens) == (died_at, *(("invalid", 17) if died_at else ("length", 30)))


@pytest.mark.parametrize("least, likes, chosen", [
    (None, "]23", "]"), (None, "23]", "2"), (0.0, "]23", "2"), (0.0, "]32", "3"),
    (0.5, "2]3", "2"), (1.0, "23456789]", "]"), (INF, "23456789]", "]"), (INF, "1]", "]")])
def test_a_threshold_bars_every_number_or_the_refusal(ending, tokenizer, least, likes, chosen):
    start, likes = decision_tokens(tokenizer)[0], tokenizer.convert_tokens_to_ids(list(likes))
    backend = LocalBackend(Says(ending, start, likes), tokenizer)
    (written,) = backend.write(backend.prompts(SHOWN[1:2]),
                               Decoding(len(start) + 1, 1, answer_threshold=least))
    assert written.raw == DECISION + chosen


def test_the_probability_of_answering_is_that_of_all_its_tokens_together(ending, tokenizer):
    backend = LocalBackend(ending, tokenizer)
    prompts = backend.prompts(SHOWN)
    start, answering, refusing = decision_tokens(tokenizer)
    assert sorted(tokenizer.decode([token]) for token in answering) == list("123456789")
    assert tokenizer.decode([refusing]) == "]"
    found = {prompt.record_id: chance for prompt, chance in backend.p_answer(prompts)}
    for prompt in prompts:
        with torch.no_grad():
            chances = ending(torch.tensor([[*prompt.tokens, *start]])).logits[0, -1].softmax(dim=-1)
        both = chances[list(answering)].sum() + chances[refusing]
        assert found[prompt.record_id] == pytest.approx((chances[list(answering)].sum() / both).item(), abs=1e-5)


def test_a_tokenizer_in_which_the_decision_has_no_place_is_asked_without_it(ending):
    merged = tiny_tokenizer(merges=[("[", "1")])
    backend = LocalBackend(ending, merged)
    prompts = backend.prompts(SHOWN)
    assert {prompt.decides for prompt in prompts} == {None}
    assert list(backend.p_answer(prompts)) == []
    assert [written.p_answer for written in backend.write(prompts, Decoding(60, 4, grammar=True, answer_threshold=0.5))] == [None] * 4


@pytest.mark.parametrize("record", [0, 1], ids=["nothing shown", "two sentences shown"])
@pytest.mark.parametrize("company", [0, 2])
def test_where_no_probability_is_enough_the_grammar_gives_a_valid_refusal(tokenizer, record, company):
    backend = LocalBackend(short_spoken(tokenizer, attention="sdpa", seed=5), tokenizer)
    asked = [SHOWN[record], *SHOWN[2:2 + company]]
    first, *_ = found = backend.write(backend.prompts(asked),
                                      Decoding(1200, 3, grammar=True, answer_threshold=INF))
    for row, written in zip(asked, found):
        answer = parse_model_answer(written.raw, row["chunks"])
        assert written.reason == "stop" and answer.answer.completeness == "insufficient_data"
        assert not answer.evidence
    assert 0 < first.p_answer < 1, "the decision was passed over"


MANY = [{"id": f"m{place}", "messages": chat(question=f"who {'abcdef'[place] * 5 * place} {place}?"),
         "chunks": [{"chunk_id": "a", "text": " ".join(["She left."] * place)}] if place else []} for place in range(6)]


@pytest.mark.parametrize("seed, evidence, leave", [(7, 5, False), (13, 2, True)])
def test_under_a_grammar_the_tokens_are_those_of_transformers_own_generation(tokenizer, monkeypatch, seed, evidence, leave):
    "Rows with different evidence, which go over to grammars of their own; with forced tokens, and in one case finished rows that are removed."
    model = short_spoken(tokenizer, (('"', 5.0), ("]", 0.5), (",", 0.3)), attention="sdpa", seed=seed).double()
    model.generation_config.eos_token_id = None
    backend, kept, widths, keep, read = LocalBackend(model, tokenizer), [], [], local.Rows.keep, local.Rows.read
    monkeypatch.setattr(local.Rows, "keep",
                        lambda self, places: (kept.append(len(places)), keep(self, places)))
    monkeypatch.setattr(local.Rows, "read",
                        lambda self, tokens: (widths.append(tokens.shape[1]), read(self, tokens)))
    prompts = backend.prompts(MANY)
    ours = backend.write(prompts, Decoding(500, 6, grammar=True))
    assert bool(kept) is leave and max(widths) > 5
    assert len({written.raw.partition("]")[0] for written in ours}) >= evidence
    assert {"stop", "length"} >= {written.reason for written in ours}
    for prompt, written in zip(prompts, ours):
        ids = torch.tensor([prompt.tokens])
        (theirs,) = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=500,
            do_sample=False, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=[GrammarProcessor([backend.matcher(prompt)], ids.shape[1])])
        wanted = theirs[ids.shape[1]:].tolist()
        assert list(written.tokens) == [token for token in wanted
                                        if token != tokenizer.eos_token_id]
        assert (written.reason == "stop") == (wanted[-1] == tokenizer.eos_token_id)


COMMON = {"vocab_size": 272, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
          "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
LOCAL = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize("kind", [lambda: Olmo3Config(**COMMON, **LOCAL), lambda: MistralConfig(**COMMON, sliding_window=16),
                                  lambda: Gemma3TextConfig(**COMMON, **LOCAL, head_dim=16)], ids=["Olmo 3", "Mistral", "Gemma 3"])
def test_a_sliding_window_shorter_than_what_prompts_share_changes_nothing(tokenizer, kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind()).eval()
    model.set_attn_implementation("sdpa")
    model.generation_config.eos_token_id = None
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 272, (count,), generator=draw).tolist() for count in (30, 5, 20, 40, 3)]
    prompts = [Prompt(str(place), (*ids[0], *rest)) for place, rest in enumerate(ids[1:])]
    outputs = generate_batch(model, tokenizer, prompts, Decoding(24, 4))
    for prompt, output in zip(prompts, outputs):
        (theirs,) = model.generate(torch.tensor([prompt.tokens]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert len(output.tokens) == 24 and theirs[len(prompt.tokens):].tolist() == output.tokens
    read = local.Prefill()
    for prompt in prompts:
        read, shared = local.prefill(model, prompt.tokens, read)
        _, alone = local.prefill(model, prompt.tokens, local.Prefill())
        assert torch.allclose(shared, alone, atol=1e-4)


def test_a_batch_that_memory_does_not_hold_is_written_in_parts(model, tokenizer, monkeypatch):
    prompts, sizes, real = encode_prompts(tokenizer, RECORDS), [], generate_batch
    whole = [one.raw for one in LocalBackend(model, tokenizer).write(prompts, GREEDY)]

    def small(model, tokenizer, batch, *more):
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, tokenizer, batch, *more)

    monkeypatch.setattr(local, "generate_batch", small)
    backend, most = LocalBackend(model, tokenizer), 2
    with pytest.warns(UserWarning, match="at most 3 are written at once"), pytest.warns(UserWarning, match="at most 1 "):
        assert [one.raw for one in backend.write(prompts, GREEDY)] == whole
    assert sizes[:2] == [7, 3] and sizes[2:] == [1] * 7
    backend.write(prompts, GREEDY)
    assert sizes[9:] == [1] * 7, "what did not fit is not tried again"
    most = 0
    with pytest.raises(GenerationError, match="does not hold one prompt of"):
        backend.write(prompts[:1], GREEDY)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cache_with_room_holds_what_transformers_own_holds(data):
    rows = data.draw(st.integers(1, 5))
    ours, theirs = local.RoomyLayer(), DynamicLayer()
    for _ in range(data.draw(st.integers(1, 5))):
        states = [torch.randn(rows, 2, data.draw(st.sampled_from([1, 3, 70])), 4) for _ in range(2)]
        states[1] = torch.randn(*states[0].shape)
        assert all(torch.equal(mine, other)
                   for mine, other in zip(ours.update(*states), theirs.update(*states)))
        left = sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1)))
        ours.batch_select_indices(torch.tensor(left))
        theirs.batch_select_indices(torch.tensor(left))
        rows = len(left)
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


@pytest.fixture(scope="module")
def committed():
    "Committed records, their targets in tokens of the demo's model, and a backend that knows its grammar."
    smollm = load_tokenizer(load_config(ROOT / "configs" / "demo.cpu.yaml"))
    width = SimpleNamespace(weight=torch.empty(len(smollm), 1))
    backend = LocalBackend(SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=smollm.eos_token_id), get_output_embeddings=lambda: width), smollm)
    records = read_records(ROOT / "data" / "training" / "kwanzaa_eval.jsonl")[::4]
    return smollm, backend, records, backend.prompts(records)


def test_the_grammar_lets_every_committed_target_through(committed):
    smollm, backend, records, prompts = committed
    assert {record["answerable"] for record in records} >= {True, False}
    for record, prompt in zip(records, prompts):
        tokens = smollm(record["messages"][-1]["content"], add_special_tokens=False)["input_ids"]
        assert backend.lets_through(prompt, tokens), record["id"]
        assert not backend.lets_through(prompt, tokens[:-1])
        assert not backend.lets_through(prompt, [*tokens, tokens[-1]])


def test_the_grammar_lets_no_wrong_number_through(committed):
    smollm, backend, records, prompts = committed
    changed = 0
    for record, prompt in zip(records, prompts):
        target = json.loads(record["messages"][-1]["content"])
        if not target["evidence"]:
            continue
        first, count = target["evidence"][0], len(number_sentences(record["chunks"]))
        other = next(number for number in range(1, count + 2) if number not in target["evidence"])
        for evidence, mark in (([count + 1, *target["evidence"][1:]], count + 1),
                               (target["evidence"], other), (target["evidence"] * 2, first)):
            text = target["answer"]["text"].replace(f"[{first}]", f"[{mark}]")
            wrong = target | {"evidence": evidence, "answer": target["answer"] | {"text": text}}
            tokens = smollm(json.dumps(wrong, ensure_ascii=False, separators=(",", ":")), add_special_tokens=False)["input_ids"]
            assert not backend.lets_through(prompt, tokens), (record["id"], evidence, mark)
            changed += 1
    assert changed > 30
