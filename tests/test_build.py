"Records: the same bytes each time, splits kept apart, the right target for every context."

import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections import Counter, defaultdict

import pytest
from made_corpus import TOWNS, full_corpus, passage, small_corpus
from tiny import ROOT

from kwanzaa_nb.core.answer import parse_model_answer, shown_sentences
from kwanzaa_nb.core.jsonl import DataError
from kwanzaa_nb.core.prompt import split_user
from kwanzaa_nb.core.record import question_of, target_problems
from kwanzaa_nb.core.sentences import sentence_spans
from kwanzaa_nb.data.build import (
    FORMAT_REQUESTS, INJECTIONS, SPLITS, TONE_REQUESTS, generate_records, make_record,
    split_documents, with_system_prompt)
from kwanzaa_nb.data.checks import RecordChecks, leaks, usage
from kwanzaa_nb.data.contexts import Limits
from kwanzaa_nb.data.questions import Question, load_corpus, may_answer
from kwanzaa_nb.data.write import checked
from kwanzaa_nb.evaluate.metrics import controls, refused_target, score_arms
from kwanzaa_nb.evaluate.rules import apply_rules, fit_rules

USER_SPLITS = ("train", "dev", "eval", "sealed")  # as `record_files` names them


def by_split(records):
    found = defaultdict(list)
    for split, record in records:
        found[split].append(record)
    return found


@pytest.fixture(scope="module")
def made():
    "All records of a made-up corpus."
    return by_split(generate_records(*full_corpus(16)))


@pytest.fixture(scope="module")
def corpus():
    "The project's passages and questions."
    return load_corpus(ROOT / "data" / "corpus", ROOT / "data" / "questions")


@pytest.fixture(scope="module")
def built(corpus):
    "All records of the project's corpus, checked."
    return by_split(checked(generate_records(*corpus), corpus[1], SPLITS, refused_target))


def target_of(record):
    return json.loads(record["messages"][-1]["content"])


def all_of(records):
    return [record for part in records.values() for record in part]


# ---- the same bytes

HASHES = """
import hashlib, json
from made_corpus import full_corpus
from kwanzaa_nb.data.build import generate_records
digest = hashlib.sha256()
for split, record in generate_records(*full_corpus(8)):
    digest.update(json.dumps([split, record]).encode())
print(digest.hexdigest())
"""


def test_two_processes_build_the_same_bytes():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])

    def digest(seed):
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed}
        return subprocess.run([sys.executable, "-c", HASHES], check=True, capture_output=True,
                              text=True, env=environment).stdout.strip()

    assert digest("1") == digest("2") != ""


def test_the_order_of_passages_does_not_matter_and_another_seed_splits_otherwise():
    chunks, questions = full_corpus(8)
    records = list(generate_records(chunks, questions))
    assert list(generate_records(dict(reversed(chunks.items())), questions)) == records
    other = list(generate_records(chunks, questions, seed=7))
    assert {row["id"] for _, row in other} != {row["id"] for _, row in records}
    assert {split for split, _ in other} == {split for split, _ in records}


def test_records_are_not_held_while_they_are_built():
    chunks, questions = full_corpus(10)
    checks, size = RecordChecks(questions), 0
    tracemalloc.start()
    for split, record in generate_records(chunks, questions):
        size += len(json.dumps(record))
        checks.add(split, record)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 1_000_000 and peak < size / 2 and len(pickle.dumps(checks.facts)) < size / 20


# ---- splits

def asked(name, *chunk_ids):
    evidence = [{"chunk_id": chunk_id, "quote": "candles"} for chunk_id in chunk_ids]
    return Question(question_id=name, question=f"What of {name}?", answer="1966 [1].",
                    evidence=evidence)


@pytest.mark.parametrize("seed", range(4))
def test_documents_joined_by_a_question_are_never_parted(seed):
    chunks = {f"c{place}": passage(f"c{place}", "Candles.", f"d{place}") for place in range(24)}
    about = Question(question_id="e", question="?", type="near_miss", about=("c4", "c11"))
    joined = [asked("a", "c0", "c9"), asked("b", "c9", "c17"), asked("c", "c3", "c4"),
              asked("d", "c17", "c20", "c1"), about]
    where = split_documents(chunks, joined, seed)
    assert set(where) == {f"d{place}" for place in range(24)} and set(where.values()) == set(SPLITS)
    assert len({where[name] for name in ("d0", "d9", "d17", "d20", "d1")}) == 1
    assert len({where[name] for name in ("d3", "d4", "d11")}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_conversation_is_never_parted(seed):
    chunks = {f"c{place}": passage(f"c{place}", "Candles.", f"d{place}") for place in range(24)}
    after = [asked(f"q{place}", f"c{place}").model_copy(
        update={"after": f"q{place - 8}"} if place >= 8 else {}) for place in range(24)]
    where = split_documents(chunks, after, seed)
    assert all(where[f"d{place}"] == where[f"d{place % 8}"] for place in range(24))
    assert set(where.values()) == set(SPLITS)


def test_a_held_out_conversation_begins_with_its_first_question():
    chunks, questions = full_corpus(16)
    again = [question.model_copy(update={"question_id": f"{question.question_id}-again",
                                         "question": f"{question.question} Say it again.",
                                         "after": question.question_id})
             for question in questions if question.after]
    made = by_split(generate_records(chunks, [*questions, *again]))
    turns = {row["question_id"].partition("-")[2]: len(row["messages"]) // 2
             for split in SPLITS[1:] for row in made[split] if row["kind"] == "follow_up"}
    assert turns == {"then": 2, "then-again": 3}


def test_a_question_that_follows_is_asked_in_its_conversation_alone():
    chunks, questions = full_corpus(16)
    questions = [question.model_copy(update={"after": f"{question.question_id[:-3]}-opened"})
                 if question.type == "ambiguous" else question for question in questions]
    made = [row for _, row in generate_records(chunks, questions)
            if row["question_id"].endswith("-it")]
    assert {len(row["messages"]) for row in made} == {5}


def test_no_conversation_is_made_where_an_earlier_turn_is_open():
    "A further passage of its document may settle the question that fits two things."
    chunks, questions = full_corpus(16)
    towns = [question.question_id[:-3] for question in questions if question.type == "ambiguous"]
    questions = [question.model_copy(update={"about": question.about[:2]})
                 if question.type == "ambiguous" else question for question in questions]
    gates = [question.model_copy(update={"question_id": f"{town}-then-gate", "after": f"{town}-it"})
             for town in towns for question in questions if question.question_id == f"{town}-gate"]
    made = list(generate_records(chunks, [*questions, *gates]))
    assert made and not any(record["question_id"].endswith("-then-gate") for _, record in made)


def test_namespaces_are_split_alike_and_unwanted_splits_are_trained_on():
    chunks = {f"c{place}": passage(f"c{place}", "Candles.", namespace=f"n{place % 2}")
              for place in range(88)}
    questions = [asked(f"q{place}", f"c{place}") for place in range(88)]
    where = split_documents(chunks, questions)
    counts = Counter((chunks[name].namespace, split) for name, split in where.items())
    assert {split: counts["n0", split] for split in SPLITS} == {
        split: counts["n1", split] for split in SPLITS}
    fewer = split_documents(chunks, questions, wanted=("train", "eval"))
    assert fewer == {name: split if split == "eval" else "train" for name, split in where.items()}


def test_documents_with_questions_are_split_before_those_without():
    chunks = {f"c{place}": passage(f"c{place}", "Candles.") for place in range(60)}
    where = split_documents(chunks, [asked(f"q{place}", f"c{place}") for place in range(4)])
    assert sorted(where[f"c{place}"] for place in range(4)) == ["dev", "eval", "train", "train"]


def test_splits_share_neither_documents_nor_questions(made):
    for field in ("doc_id", "chunk_id"):
        where = defaultdict(set)
        for split, part in made.items():
            for record in part:
                for chunk in record["chunks"]:
                    where[chunk[field]].add(split)
        assert all(len(splits) == 1 for splits in where.values())
    assert {split for split in SPLITS if made[split]} == set(SPLITS)
    for place, split in enumerate(SPLITS):
        for earlier in SPLITS[:place]:
            assert leaks(made[earlier], made[split], split) == []


# ---- small corpora

@pytest.mark.parametrize("documents", [4, 5, 6, 9])
def test_a_small_corpus_builds(documents):
    chunks, questions = small_corpus(documents)
    found = by_split(checked(generate_records(chunks, questions), questions, USER_SPLITS,
                             refused_target))
    assert all(len(found[split]) >= 4 for split in ("train", "dev", "eval"))
    assert bool(found["sealed"]) is (documents >= 8)


@pytest.mark.parametrize("documents", [1, 2, 3])
def test_a_corpus_that_is_too_small_stops_with_one_sentence(documents):
    chunks, questions = small_corpus(documents)
    with pytest.raises(DataError) as error:
        list(checked(generate_records(chunks, questions), questions, USER_SPLITS))
    [problem] = error.value.problems
    assert f"only {documents} document" in problem.what and "4 are enough" in problem.mend


def test_passages_without_questions_and_passages_too_long_are_no_obstacle():
    chunks, questions = small_corpus(6)
    for place in range(30):
        chunks[f"x{place}"] = passage(f"x{place}", f"A barn of {place} doors.")
    chunks["long"] = passage("long", "It goes on and on. " * 400)
    found = by_split(checked(generate_records(chunks, questions), questions, USER_SPLITS))
    assert {split for split in found if found[split]} == {"train", "dev", "eval"}
    assert "long" not in {chunk["chunk_id"] for row in all_of(found) for chunk in row["chunks"]}


# ---- the right target for every context

REPLIES = {  # kind -> completeness, fields of `unknowns` that are not empty, answerable
    "fact": ("complete", set(), True), "several": ("complete", set(), True),
    "premise": ("complete", {"unsupported_claims"}, True),
    "conflict": ("partial", {"missing_context"}, True), "one_side": ("complete", set(), True),
    "half": ("partial", {"missing_context"}, None),
    "ambiguous": ("insufficient_data", {"clarifying_questions"}, None),
    "near_miss": ("insufficient_data", {"missing_context"}, False),
    "removed": ("insufficient_data", {"missing_context"}, False)}


@pytest.mark.parametrize("kind", REPLIES)
def test_each_reply_has_its_target(made, kind):
    completeness, filled, answerable = REPLIES[kind]
    rows = [row for row in all_of(made) if row["kind"] == kind]
    assert rows
    for row in rows:
        target = target_of(row)
        assert target["answer"]["completeness"] == row["expected"]["completeness"] == completeness
        assert {name for name, entries in target["unknowns"].items() if entries} == filled
        assert row["answerable"] is answerable and bool(target["evidence"]) is (
            completeness != "insufficient_data")
        whole = kind in ("fact", "several", "premise", "conflict")
        assert bool(row["expected"]["groups"]) is whole


def test_every_target_keeps_the_contract_and_cites_the_gold_passages(made):
    ids = Counter(row["id"] for row in all_of(made))
    assert set(ids.values()) == {1}
    for row in all_of(made):
        assert target_problems(row) == [] and refused_target(row) == []
        target = parse_model_answer(row["messages"][-1]["content"], row["chunks"])
        sentences = shown_sentences(row["chunks"])
        cited = {sentences[number - 1].chunk_id for number in target.evidence}
        gold = {chunk["chunk_id"] for chunk in row["chunks"] if chunk["gold"]}
        assert cited == gold == set(row["expected"]["gold_chunk_ids"])
        assert all(chunk["spans"] == [list(span) for span in sentence_spans(chunk["text"])]
                   for chunk in row["chunks"])


def test_a_context_that_settles_nothing_makes_no_record():
    chunks, questions = full_corpus(1)
    town = TOWNS[0]
    with pytest.raises(ValueError, match="does not settle how to reply"):
        make_record(questions[0], [chunks[f"{town}-0"].model_copy(
            update={"chunk_id": "copy", "doc_id": "copy"})], "g")


def test_a_conversation_shows_its_context_once_and_answers_every_turn(made):
    rows = {split: [row for row in made[split] if len(row["messages"]) > 3] for split in SPLITS}
    assert all(rows.values())
    for row in all_of(rows):
        _, first, reply, second, last = row["messages"]
        assert [message["role"] for message in row["messages"]] == [
            "system", "user", "assistant", "user", "assistant"]
        assert first["content"].startswith("### Retrieved Context:")
        assert second["content"] == f"### Instruction:\n{row['question']}"
        assert question_of(row) == row["question"]
        for message in (reply, last):
            assert parse_model_answer(message["content"], row["chunks"])


def test_a_hidden_order_stands_in_a_passage_without_evidence(made):
    for split in SPLITS:
        rows = [row for row in made[split] if row["kind"] == "injection"]
        assert rows
        for row in rows:
            held = [chunk for chunk in row["chunks"] if chunk["text"].endswith(INJECTIONS[split])]
            assert len(held) == 1 and not held[0]["gold"] and row["category"] == "red_team"


def test_requests_for_a_format_a_tone_and_typed_questions(made, corpus):
    for split in SPLITS:
        for kind, category, wordings in (("format", "strict_json", FORMAT_REQUESTS),
                                         ("tone", "red_team", TONE_REQUESTS)):
            rows = [row for row in made[split] if row["kind"] == kind]
            assert rows and {row["category"] for row in rows} == {category}
            for row in rows:
                assert question_of(row) in [text.format(question=row["question"])
                                            for text in wordings[split]]
    typed = [row for row in made["eval"] if row["kind"] == "typed"]
    assert typed and all(question_of(row) == question_of(row).lower() for row in typed)
    assert any(question_of(row).endswith("library open when") for row in made["train"])


def test_wordings_of_held_out_requests_are_never_trained_on(built):
    words = {split: [text.replace("{question}", "").strip() for text in (
        *FORMAT_REQUESTS[split], *TONE_REQUESTS[split], *INJECTIONS[split])] for split in SPLITS}
    shown = {split: "\n".join(message["content"] for row in built[split]
                              for message in row["messages"][1:-1]) for split in SPLITS}
    for split in SPLITS:
        for other in SPLITS:
            found = [text for text in words[split] if text in shown[other]]
            assert bool(found) is (split == other), (split, other, found)


def test_a_system_prompt_of_ones_own_replaces_nothing_else(made):
    row = made["train"][0]
    changed = with_system_prompt(row, "You are {persona}. {schema}")
    assert changed["messages"][0]["content"].startswith("You are a")
    assert changed["messages"][1:] == row["messages"][1:] and with_system_prompt(row, None) is row


# ---- contexts

def test_questions_of_a_training_group_share_everything_but_the_question(built):
    groups = defaultdict(list)
    for row in built["train"]:
        groups[row["group"]].append(row)
    for group, rows in groups.items():
        assert len({row["question_id"] for row in rows}) == len(rows) <= 6, group
        shared = {(row["messages"][0]["content"], row["persona"],
                   split_user(row["messages"][1]["content"])[0]) for row in rows}
        assert len(shared) == 1, group
    for part in built.values():  # records of a group, and the sides of a pair, stand together
        names = [row["group"] for row in part]
        assert 1 + sum(one != other for one, other in zip(names, names[1:])) == len(set(names))
    trained = [row for row in built["train"] if row["answerable"] is not None]
    assert 0.35 < sum(row["answerable"] for row in trained) / len(trained) < 0.65


def test_every_training_question_with_evidence_is_answered(built, corpus):
    trained = {record["question_id"] for record in built["train"]}
    answered = {record["question_id"] for record in built["train"]
                if record["answerable"] is not False}
    with_evidence = {question.question_id for question in corpus[1] if question.evidence}
    assert len(trained & with_evidence) > 500 and trained & with_evidence <= answered


def test_minimal_pairs_differ_in_their_evidence_alone(built):
    nothing = 0
    for split in SPLITS[1:]:
        pairs = defaultdict(list)
        for row in built[split]:
            if row["pair_id"]:
                pairs[row["pair_id"]].append(row)
        assert pairs
        for one, other in pairs.values():
            assert (one["answerable"], other["answerable"]) == (True, False)
            assert question_of(one) == question_of(other)
            assert one["messages"][0] == other["messages"][0]
            gold = {chunk["chunk_id"] for chunk in one["chunks"] if chunk["gold"]}
            assert gold and not gold & {chunk["chunk_id"] for chunk in other["chunks"]}
            nothing += not other["chunks"]
            assert not other["chunks"] or len(one["chunks"]) - len(other["chunks"]) in (0, 1, 2)
    assert 0 < nothing < 20


def test_no_refusal_shows_what_may_answer(built, corpus):
    questions = {question.question_id: question for question in corpus[1]}
    rows = [row for row in all_of(built) if row["kind"] == "removed"]
    for row in rows:
        question, shown = questions[row["question_id"]], row["chunks"]
        assert not any(may_answer(question, corpus[0][chunk["chunk_id"]]) for chunk in shown)
    assert len(rows) > 300


def test_the_place_of_the_gold_passage_is_no_hint(built):
    pairs = [row["chunks"] for row in built["train"]
             if row["answerable"] and len(row["chunks"]) == 2]
    places = Counter([chunk["gold"] for chunk in pair].index(True) for pair in pairs)
    assert min(places[0], places[1]) >= 0.35 * places.total()


def test_limits_are_kept():
    chunks, questions = full_corpus(6)
    for limits in (Limits(400), Limits(100)):
        records = all_of(by_split(generate_records(chunks, questions, limits)))
        shown = [[chunks[chunk["chunk_id"]] for chunk in row["chunks"]] for row in records]
        assert shown and all(limits.fits(context) for context in shown)


# ---- the project's corpus: counts of the specification, and what can be had without a model

def test_counts_of_the_projects_records(built, corpus):
    sizes = {split: len(part) for split, part in built.items()}
    assert sizes["train"] >= 1800 and sizes["dev"] >= 150
    assert sizes["eval"] >= 400 and sizes["sealed"] >= 200
    assert len({chunk["doc_id"] for row in built["eval"] for chunk in row["chunks"]}) >= 60
    types = {question.question_id: question.type for question in corpus[1]}
    unanswered = ("near_miss", "wrong_person", "wrong_year", "no_quote", "too_far")
    special = ("conflict", "premise", "half", *unanswered)

    def hard(row):
        return row["kind"] in special or types[row["question_id"]] in unanswered

    assert sum(row["answerable"] is False and hard(row) for row in built["eval"]) >= 60
    without = [row for row in all_of(built) if row["expected"]["completeness"] != "complete"]
    trained = [row for row in built["train"] if row["expected"]["completeness"] != "complete"]
    assert sum(map(hard, trained)) >= len(trained) / 2 and len(without) > len(trained)
    for kind in ("long_context", "typed", "follow_up"):
        assert sum(row["kind"] == kind for row in built["eval"]) >= 10, kind


def test_every_field_is_used_and_few_answers_are_copied(built, corpus):
    checks = RecordChecks(corpus[1])
    for row in built["train"]:
        checks.add("train", row)
    for name, rate in usage(checks.facts["train"]).items():
        assert rate.value <= 0.5 if name.startswith("copied") else rate.value >= 0.03, name


@pytest.mark.parametrize("split", ["dev", "eval"])
def test_the_right_answers_are_right_by_every_metric(built, split):
    rows = [row for row in controls(built[split]) if row["arm"] == "gold"]
    rates = score_arms(rows, built[split])["gold"].rates
    assert {name: rate.value for name, rate in rates.items()} == dict.fromkeys(rates, 1.0)


def test_no_rule_without_a_model_answers_half_of_the_questions(built):
    rules = fit_rules(built["train"], built["dev"])
    scores = score_arms(apply_rules(rules, built["eval"]), built["eval"])
    covered = {arm: part.rates["citation_coverage_rate"].value for arm, part in scores.items()}
    assert len(covered) == 3 and max(covered.values()) < 0.45, covered
