"Practice records: right numbers, right refusals, first in the order, and only where asked."
import json
import random
import re
from types import SimpleNamespace

import pytest

from kwanzaa_nb.core.answer import parse_model_answer, shown_sentences
from kwanzaa_nb.core.config import load_config, project_root
from kwanzaa_nb.core.prompt import split_user
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.model.load import load_tokenizer
from kwanzaa_nb.model.masking import IGNORED, stop_ids
from kwanzaa_nb.train import command
from kwanzaa_nb.train.extra import ExtraError, check_extra, settle_extra
from kwanzaa_nb.train.lengths import record_tokens
from kwanzaa_nb.train.practice import (
    PRACTICE, PRACTICE_GROUP, holding, practice_records, practice_turns, words_in_a_row)
from kwanzaa_nb.train.trainer import GroupSampler, encode_records


@pytest.fixture(scope="module")
def records():
    return list(read_records(project_root() / "data/training/kwanzaa_train.jsonl"))


@pytest.fixture(scope="module")
def practice(records):
    return list(practice_records(records, 60, seed=7))


def asked_words(question):
    "Return what a practice question asks for: words, or two times words."
    return question.removeprefix("Where does it say “").removesuffix("”?").split("”, and where “")


def test_each_answer_points_at_the_only_sentence_that_has_the_words(practice):
    for record in practice:
        sentences = [one.text for one in shown_sentences(record["chunks"])]
        answer = parse_model_answer(record["messages"][2]["content"], record["chunks"])
        question = split_user(record["messages"][1]["content"])[1]
        places = [place for words in asked_words(question) for place in holding(sentences, words)]
        assert answer.evidence == [place + 1 for place in places]
        assert bool(places) == (answer.answer.completeness == "complete")
        assert len(places) in (0, len(asked_words(question)))
        assert bool(answer.unknowns.missing_context) == (not places)


def test_there_are_as_many_contexts_as_asked_with_both_sides_in_each(practice):
    groups = {}
    for record in practice:
        groups.setdefault(record["group"], []).append(json.loads(record["messages"][2]["content"]))
    assert len(groups) == 60
    for answers in groups.values():
        assert sorted(len(answer["evidence"]) for answer in answers) == [0, 0, 1, 1, 2, 2]


def test_ids_differ_and_contexts_are_those_of_the_records(records, practice):
    assert len({record["id"] for record in practice}) == len(practice)
    known = {json.dumps(record["chunks"]) for record in records}
    assert {json.dumps(record["chunks"]) for record in practice} <= known


def test_practice_records_are_records(practice, tmp_path):
    file = tmp_path / "practice.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in practice), encoding="utf-8")
    read = list(read_records(file, targets=True))
    assert [record["id"] for record in read] == [record["id"] for record in practice]


def test_the_seed_decides(records):
    assert list(practice_records(records, 3, 1)) == list(practice_records(records, 3, 1))
    assert list(practice_records(records, 3, 1)) != list(practice_records(records, 3, 2))


@pytest.mark.parametrize("contexts", [0, 1, 10 ** 6])
def test_at_most_so_many(records, contexts):
    found = {record["group"] for record in practice_records(records, contexts)}
    assert len(found) <= min(contexts, len({record["group"] for record in records}))
    assert bool(found) == bool(contexts)


def test_no_records_give_no_practice():
    assert list(practice_records([], 5)) == []


@pytest.mark.parametrize("source", [
    "She wrote “come at once” to her brother that very night.",
    "See the third note [3] on the opposite page of the book."])
def test_words_with_quotes_or_brackets_are_not_asked_for(source):
    found = [practice_turns([source], [source], random.Random(seed)) for seed in range(60)]
    assert None in found and any(found)
    for question, _ in filter(None, found):
        assert question.count("“") == question.count("”") == 1 and "[" not in question


def test_words_that_stand_in_two_sentences_are_not_asked_for():
    sentences = ["Two mills stood by the river.", "Two mills stood by the river then."]
    for seed in range(30):
        assert practice_turns(sentences, sentences[:1], random.Random(seed)) is None


def test_contexts_with_a_question_that_is_too_long_are_left_out_and_that_is_told(records):
    tokenizer, told = load_tokenizer(load_config("configs/demo.cpu.yaml")), []
    sizes = {}
    for one in practice_records(records, 8, load_config("configs/demo.cpu.yaml").run.seed):
        sizes[one["group"]] = max(sizes.get(one["group"], 0), record_tokens(tokenizer, one))
    for limit in (max(sizes.values()), sorted(sizes.values())[3], min(sizes.values()) - 1):
        config = load_config("configs/demo.cpu.yaml", {"data.max_seq_length": limit})
        stage = SimpleNamespace(config=config, progress=told.append)
        found = command._practice(stage, records, tokenizer, 8)
        fitting = [name for name, size in sizes.items() if size <= limit]
        assert [one["group"] for one in found] == [name for name in fitting for _ in range(6)]
        assert told[-1].startswith(f"{6 * len(fitting)} of the records are practice in {len(fitting)} contexts")
        assert ("8 were asked" in told[-1]) == (len(fitting) < 8)


def test_a_context_alone_gives_no_practice(records):
    first = [record for record in records if record["group"] == records[0]["group"]]
    assert list(practice_records(first, 5)) == []


def test_the_users_own_group_named_practice_is_an_ordinary_one(records):
    config = load_config("configs/demo.cpu.yaml", {"data.max_seq_length": 2048})
    tokenizer = load_tokenizer(config)
    own = {**records[0], "group": "practice 1"}
    row, = encode_records(tokenizer, [own], config, stop_ids(tokenizer))
    assert "answer" in tokenizer.decode([one for one in row["labels"] if one != IGNORED])
    orders = {tuple(GroupSampler(["a", "b", "practice 1"], seed)) for seed in range(20)}
    assert any(order[0] != 2 for order in orders)


@pytest.mark.parametrize(
    "text", ["a b c d e f", "one two", "", "Die Mühle stand seit 1865 leer, sagt man."])
def test_taking_words_never_fails(text):
    for seed in range(20):
        assert words_in_a_row(text, random.Random(seed)) in text


def test_practice_comes_first_in_every_epoch():
    one, two = f"{PRACTICE_GROUP}1", f"{PRACTICE_GROUP}2"
    groups = ["a", "a", one, one, "b", two, "c"]
    sampler = GroupSampler(groups, seed=1)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert order[:3] == [2, 3, 5] and sorted(order) == list(range(7))


@pytest.mark.parametrize("value", [-1, 1.5, "60", True, None])
def test_what_is_no_number_of_contexts_is_refused(value):
    with pytest.raises(ExtraError, match="whole number from 0 on"):
        check_extra({PRACTICE: value})


def test_packing_leaves_practice_out_and_says_so():
    config = load_config("configs/demo.cpu.yaml", {"training.extra": {PRACTICE: 4},
                                                   "data.packing": True})
    used, (note,) = settle_extra(config, "cpu")
    assert used == {} and "no order" in note.reason
    config = load_config("configs/demo.cpu.yaml", {"training.extra": {PRACTICE: 4}})
    assert settle_extra(config, "cpu") == ({PRACTICE: 4}, ())


def test_of_practice_only_numbers_are_learned(records, practice):
    config = load_config("configs/demo.cpu.yaml", {"data.max_seq_length": 2048})
    tokenizer = load_tokenizer(config)
    rows = encode_records(tokenizer, practice[:6], config, stop_ids(tokenizer))
    for record, row in zip(practice, rows):
        numbers = json.loads(record["messages"][2]["content"])["evidence"]
        learned = tokenizer.decode([label for label in row["labels"] if label != IGNORED])
        shown = json.dumps(numbers, separators=(",", ":"))
        assert learned.startswith(f'{{"evidence":{shown[:-1]}]') and "answer" not in learned
        cited = re.findall(r"\d+(?=\])", learned.partition("]")[2])
        assert cited == [str(number) for number in numbers]
    whole, = encode_records(tokenizer, records[:1], config, stop_ids(tokenizer))
    assert "answer" in tokenizer.decode([one for one in whole["labels"] if one != IGNORED])
