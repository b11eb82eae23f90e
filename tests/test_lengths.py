"Records that are too long: refused, shown with fewer chunks, or left out; never cut."

import re
from itertools import islice

import pytest
from tiny import ROOT, tiny_config, tiny_tokenizer

from kwanzaa_nb.core.answer import parse_model_answer, shown_sentences
from kwanzaa_nb.train.lengths import fit_records, record_tokens, spare_chunks, without_chunk
from kwanzaa_nb.model.masking import encode_chat
from kwanzaa_nb.core.prompt import read_context, render_user, split_user
from kwanzaa_nb.core.record import checked_records, filled_in, shown_problems, target_problems
from kwanzaa_nb.train.trainer import RecordsError, encode_records


@pytest.fixture(scope="module")
def records():
    "Committed training records with three chunks or more, a conversation in four among them."
    rows = checked_records(ROOT / "data" / "training" / "kwanzaa_train.jsonl", "train", [])
    found = [row for _, row in islice(rows, 200) if len(row["chunks"]) >= 3]
    turns = [row for row in found if len(row["messages"]) > 3]
    return [*turns[:4], *[row for row in found if row not in turns][:12]]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def pointed_at(record):
    "For each answer: the sentences that it points at, its text without marks, and its unknowns."
    shown, found = shown_sentences(record["chunks"]), []
    for message in record["messages"][2::2]:
        target = parse_model_answer(message["content"], record["chunks"])
        named = [(shown[number - 1].chunk_id, shown[number - 1].text)
                 for number in target.evidence]
        found.append((named, re.sub(r"\[\d+\]", "", target.answer.text), target.unknowns))
    return found


def test_error_changes_nothing_and_the_trainer_lists_ids_and_lengths(records, tokenizer):
    assert fit_records(tokenizer, records, 10, "error") == (records, [])
    config = tiny_config(**{"data.max_seq_length": 10,
                            "evaluation.generation_defaults.max_new_tokens": 5})
    with pytest.raises(RecordsError) as error:
        encode_records(tokenizer, records, config, {tokenizer.eos_token_id})
    told = {problem.where for problem in error.value.problems if problem.code == "too_long"}
    assert told == {row["id"] for row in records}
    assert str(record_tokens(tokenizer, records[0])) in str(error.value)


def test_drop_chunks_takes_whole_uncited_chunks_and_says_so(records, tokenizer):
    changed = renumbered = 0
    for record in records:
        limit = record_tokens(tokenizer, record) - 1
        (fitted,), told = fit_records(tokenizer, [record], limit, "drop_chunks")
        if not spare_chunks(record):
            assert fitted == record and told == []
            continue
        changed += 1
        gone = next(chunk for chunk in record["chunks"] if chunk not in fitted["chunks"])
        before, after = (read_context(row["messages"][1]["content"]) for row in (record, fitted))
        assert after == [part for part, chunk in zip(before, record["chunks"])
                         if chunk is not gone] and record_tokens(tokenizer, fitted) <= limit
        assert pointed_at(fitted) == pointed_at(record)
        assert fitted["messages"][0] == record["messages"][0]
        renumbered += fitted["messages"][-1] != record["messages"][-1]
        assert target_problems(fitted) == shown_problems(fitted) == []
        assert len(told) == 1 and record["id"] in told[0]
    assert changed > 8 and renumbered


def test_what_is_cited_stays_even_where_the_record_stays_too_long(records, tokenizer):
    fitted, _ = fit_records(tokenizer, records, 1, "drop_chunks")
    for record, row in zip(records, fitted, strict=True):
        needed = {chunk_id for named, *_ in pointed_at(record) for chunk_id, _ in named}
        assert {chunk["chunk_id"] for chunk in row["chunks"]} == needed


def test_drop_records_lists_what_it_leaves_out(records, tokenizer):
    lengths = sorted(record_tokens(tokenizer, row) for row in records)
    limit = lengths[len(lengths) // 2]
    kept, told = fit_records(tokenizer, records, limit, "drop_records")
    assert [row["id"] for row in kept] == [row["id"] for row in records
                                           if record_tokens(tokenizer, row) <= limit]
    assert len(kept) + len(told) == len(records) and 0 < len(told)


def test_a_record_of_another_layout_loses_nothing(tokenizer):
    texts = {"system": "Be exact.", "user": "When? " * 50, "assistant": "Then."}
    messages = [{"role": role, "content": text} for role, text in texts.items()]
    record = {"id": "bare", "messages": messages, "chunks": []}
    assert spare_chunks(record) == []
    assert fit_records(tokenizer, [record], 10, "drop_chunks") == ([record], [])


@pytest.mark.parametrize("policy", ["error", "drop_chunks", "drop_records"])
def test_a_target_that_generation_could_not_write_is_an_error(records, tokenizer, policy):
    config = tiny_config(**{"data.max_seq_length": 100_000,
                            "evaluation.generation_defaults.max_new_tokens": 5})
    kept, told = fit_records(tokenizer, records[:3], config.data.max_seq_length, policy)
    assert told == []
    with pytest.raises(RecordsError) as error:
        encode_records(tokenizer, kept, config, {tokenizer.eos_token_id})
    found = [(problem.where, problem.code) for problem in error.value.problems]
    assert found == [(row["id"], "answer_too_long") for row in records[:3]]
    target = records[0]["messages"][-1]["content"]
    length = len(tokenizer(target, add_special_tokens=False)["input_ids"]) + 1
    assert f"its answer has {length} tokens, over max_new_tokens 5" in str(error.value)


def test_a_length_is_that_of_the_row_that_is_trained_on(records):
    "Also where a template shows a finished turn otherwise than it asks for one."
    hides = "{% if messages[-1]['role'] == 'user' %}Write JSON.{% endif %}"
    hides += tiny_tokenizer().chat_template
    for tokenizer in (tiny_tokenizer(), tiny_tokenizer(hides)):
        for record in records[:5]:
            row = encode_chat(tokenizer, record["messages"])
            assert record_tokens(tokenizer, record) == len(row["input_ids"])


@pytest.mark.parametrize("policy", ["drop_chunks", "drop_records"])
def test_a_record_that_no_mask_is_right_for_is_left_for_the_trainer_to_refuse(records, policy):
    template = tiny_tokenizer().chat_template.replace("m['content']", "m['content'] | upper")
    tokenizer = tiny_tokenizer(template)
    assert fit_records(tokenizer, records[:3], 10, policy) == (records[:3], [])
    with pytest.raises(RecordsError) as error:
        encode_records(tokenizer, records[:3], tiny_config(), {tokenizer.eos_token_id})
    found = [(problem.where, problem.code) for problem in error.value.problems]
    assert found == [(row["id"], "mask") for row in records[:3]]


def test_without_chunk_is_what_the_renderer_gives(records):
    for record in [row for row in records if spare_chunks(row)][:20]:
        question = split_user(record["messages"][1]["content"])[1]
        for gone in spare_chunks(record):
            kept = [chunk for chunk in record["chunks"] if chunk["chunk_id"] != gone]
            fewer = without_chunk(record, gone)
            assert fewer["messages"][1]["content"] == render_user(question, kept)
            assert fewer["messages"][3::2] == record["messages"][3::2]
            assert pointed_at(fewer) == pointed_at(record)


def test_a_record_of_which_only_the_prompt_tells_its_sources_loses_a_chunk_too(records, tokenizer):
    "The chunks of one's own records may hold an id and a text alone, or not be listed."
    for record in [row for row in records if spare_chunks(row)][:5]:
        bare = filled_in({"messages": record["messages"]}, 1)
        fields = ("chunk_id", "text", "spans")
        plain = {**record, "chunks": [{name: chunk[name] for name in fields}
                                      for chunk in record["chunks"]]}
        limit = record_tokens(tokenizer, record) - 1
        whole, *others = (fit_records(tokenizer, [row], limit, "drop_chunks")[0][0]["messages"]
                          for row in (record, bare, plain))
        assert others == [whole, whole]
