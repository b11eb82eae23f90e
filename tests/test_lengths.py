"Records that are too long: refused, shown with fewer chunks, or left out; never cut."

import pytest
from tiny import ROOT, tiny_config, tiny_tokenizer

from kwanzaa_nb.lengths import fit_records, record_tokens, spare_chunks, without_chunk
from kwanzaa_nb.masking import encode_chat
from kwanzaa_nb.prompt import read_context
from kwanzaa_nb.training import RecordsError, encode_records
from kwanzaa_nb.validation import read_records


@pytest.fixture(scope="module")
def records():
    "Committed training records with three chunks or more."
    found = [row for row in read_records(ROOT / "data" / "training" / "kwanzaa_train.jsonl") if len(row["chunks"]) >= 3]
    return found[:40]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_error_changes_nothing_and_the_trainer_lists_ids_and_lengths(records, tokenizer):
    assert fit_records(tokenizer, records, 10, "error") == (records, [])
    config = tiny_config(**{"data.max_seq_length": 10, "evaluation.generation_defaults.max_new_tokens": 5})
    with pytest.raises(RecordsError) as error:
        encode_records(tokenizer, records, config, {tokenizer.eos_token_id})
    told = {problem.where for problem in error.value.problems if problem.code == "too_long"}
    assert told == {row["id"] for row in records}
    assert str(record_tokens(tokenizer, records[0])) in str(error.value)


def test_drop_chunks_takes_whole_uncited_chunks_and_says_so(records, tokenizer):
    changed = 0
    for record in records:
        limit = record_tokens(tokenizer, record) - 1
        (fitted,), told = fit_records(tokenizer, [record], limit, "drop_chunks")
        if not spare_chunks(record):
            assert fitted == record and told == []
            continue
        changed += 1
        before, after = (read_context(row["messages"][1]["content"]) for row in (record, fitted))
        assert [chunk for chunk in before if chunk["chunk_id"] in {kept["chunk_id"] for kept in after}] == after
        assert len(after) == len(before) - 1 == len(fitted["chunks"]) and record_tokens(tokenizer, fitted) <= limit
        assert fitted["messages"][2] == record["messages"][2] and fitted["messages"][0] == record["messages"][0]
        assert len(told) == 1 and record["id"] in told[0]
    assert changed > 20


def test_what_is_cited_stays_even_where_the_record_stays_too_long(records, tokenizer):
    answered = [row for row in records if row["answerable"]]
    fitted, told = fit_records(tokenizer, answered, 1, "drop_chunks")
    assert len(fitted) == len(answered)
    for record, row in zip(answered, fitted):
        assert {chunk["chunk_id"] for chunk in row["chunks"]} == set(record["expected"]["gold_chunk_ids"])


def test_drop_records_lists_what_it_leaves_out(records, tokenizer):
    lengths = sorted(record_tokens(tokenizer, row) for row in records)
    limit = lengths[len(lengths) // 2]
    kept, told = fit_records(tokenizer, records, limit, "drop_records")
    assert [row["id"] for row in kept] == [row["id"] for row in records if record_tokens(tokenizer, row) <= limit]
    assert len(kept) + len(told) == len(records) and 0 < len(told)


def test_a_record_of_another_layout_loses_nothing(tokenizer):
    messages = [{"role": role, "content": text} for role, text in (("system", "Be exact."), ("user", "When? " * 50), ("assistant", "Then."))]
    record = {"id": "bare", "messages": messages}
    assert spare_chunks(record) == [] and fit_records(tokenizer, [record], 10, "drop_chunks") == ([record], [])


@pytest.mark.parametrize("policy", ["error", "drop_chunks", "drop_records"])
def test_a_target_that_generation_could_not_write_is_an_error_under_every_policy(records, tokenizer, policy):
    config = tiny_config(**{"data.max_seq_length": 100_000, "evaluation.generation_defaults.max_new_tokens": 5})
    kept, told = fit_records(tokenizer, records[:3], config.data.max_seq_length, policy)
    assert told == []
    with pytest.raises(RecordsError) as error:
        encode_records(tokenizer, kept, config, {tokenizer.eos_token_id})
    assert [(problem.where, problem.code) for problem in error.value.problems] == [(row["id"], "answer_too_long") for row in records[:3]]
    length = len(tokenizer(records[0]["messages"][2]["content"], add_special_tokens=False)["input_ids"]) + 1
    assert f"its answer has {length} tokens, over max_new_tokens 5" in str(error.value)


def test_a_length_is_that_of_the_row_that_is_trained_on(records):
    "Also where a template shows a finished turn otherwise than it asks for one."
    hides = "{% if messages[-1]['role'] == 'user' %}Write JSON.{% endif %}" + tiny_tokenizer().chat_template
    for tokenizer in (tiny_tokenizer(), tiny_tokenizer(hides)):
        for record in records[:5]:
            assert record_tokens(tokenizer, record) == len(encode_chat(tokenizer, record["messages"])["input_ids"])


@pytest.mark.parametrize("policy", ["drop_chunks", "drop_records"])
def test_a_record_that_no_mask_is_right_for_is_left_for_the_trainer_to_refuse(records, policy):
    tokenizer = tiny_tokenizer(tiny_tokenizer().chat_template.replace("m['content']", "m['content'] | upper"))
    assert fit_records(tokenizer, records[:3], 10, policy) == (records[:3], [])
    with pytest.raises(RecordsError) as error:
        encode_records(tokenizer, records[:3], tiny_config(), {tokenizer.eos_token_id})
    assert [(problem.where, problem.code) for problem in error.value.problems] == [(row["id"], "mask") for row in records[:3]]


def test_without_chunk_is_what_the_renderer_gives(records):
    for record in records[:10]:
        gone = record["chunks"][0]["chunk_id"]
        shown = read_context(without_chunk(record, gone)["messages"][1]["content"])
        assert shown == read_context(record["messages"][1]["content"])[1:]
