"Records: the same bytes each time, splits kept apart, and no shortcut to the right decision."

import json
from collections import Counter, defaultdict
from copy import deepcopy

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import ROOT

from kwanzaa_nb.core.answer import find_marks, parse_model_answer, shown_sentences
from kwanzaa_nb.core.jsonl import DataError, MissingFile
from kwanzaa_nb.data.corpus import UNANSWERABLE_KINDS, Chunk, Question, check_question, load_corpus
from kwanzaa_nb.core.record import question_of, read_records, target_problems
from kwanzaa_nb.data.records import (
    FORMAT_REQUESTS, INJECTIONS, NOT_GIVEN, NOTHING_RETRIEVED, PANEL, SPLITS, TONE_REQUESTS, ForeignFile,
    build_records, check_records, count_rows, distractors, excerpt, gold_answer, leaks, lookup, names_answer,
    prompt_features, refusal_answer, refuse_foreign, shortcut_problems, shortcuts, split_documents, terms, units,
    word_set, write_records)
from kwanzaa_nb.data.retrieval import Retriever
from kwanzaa_nb.core.sentences import sentence_spans

COMMITTED = {split: ROOT / "data" / "training" / f"kwanzaa_{split}.jsonl" for split in SPLITS}
NOTHING = "### Retrieved Context:\n(none provided)\n\n### Instruction:\n"
MESSAGES = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": f"{NOTHING}When?"},
    {"role": "assistant", "content": "Then."},
]


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(ROOT / "data" / "corpus", ROOT / "data" / "questions")


@pytest.fixture(scope="module")
def built(corpus):
    return build_records(*corpus, seed=42)


@pytest.fixture(scope="module")
def committed():
    return {split: read_records(path) for split, path in COMMITTED.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The committed record files are exactly what the corpus, the questions and seed 42 give. When this fails, run the stage
# `data` (nbs/01_data.ipynb) with configs/demo.cpu.yaml and commit data/training.
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", SPLITS)
def test_the_committed_records_are_rebuilt_byte_for_byte(built, split, tmp_path):
    rebuilt = write_records(built[split], tmp_path / "rebuilt.jsonl")
    assert COMMITTED[split].read_bytes() == rebuilt.read_bytes()


def test_building_twice_and_from_another_order_gives_the_same_bytes(corpus, built):
    chunks, questions = corpus
    turned = build_records(dict(reversed(list(chunks.items()))), questions[::-1], seed=42)
    assert json.dumps(turned) == json.dumps(built)


def test_another_seed_gives_another_split_and_keeps_every_rule(corpus, built):
    other = build_records(*corpus, seed=7)
    assert {row["id"] for row in other["train"]} != {row["id"] for row in built["train"]}
    assert all(other[split] for split in SPLITS)


def test_numbers_of_records(committed):
    sizes = {split: len(rows) for split, rows in committed.items()}
    assert sizes["train"] >= 1200 and sizes["dev"] >= 120 and sizes["eval"] >= 240
    assert len({row["pair_id"] for row in committed["eval"] if row["pair_id"]}) >= 60
    categories = Counter(row["category"] for row in committed["eval"])
    not_in_corpus = set(UNANSWERABLE_KINDS)
    refusals = [row for row in committed["eval"] if row["category"] == "refusal" and row["kind"] in not_in_corpus]
    assert min(categories[name] for name in ("citation_required", "refusal", "strict_json", "red_team")) >= 60
    assert len(refusals) >= 10 and not any(row["answerable"] for row in refusals)
    assert {row["kind"] for row in refusals} == not_in_corpus
    headings, rows = count_rows(committed)
    assert headings[1] == "records" and [row[1] for row in rows] == [len(committed[split]) for split in SPLITS]


@pytest.mark.parametrize("split", SPLITS)
def test_every_target_keeps_the_contract(committed, split):
    for row in committed[split]:
        target = parse_model_answer(row["messages"][-1]["content"], row["chunks"])
        assert (target.answer.completeness == "complete") is row["answerable"]
        sentences = shown_sentences(row["chunks"])
        cited = {sentences[number - 1].chunk_id for number in target.evidence}
        assert cited == ({chunk["chunk_id"] for chunk in row["chunks"] if chunk["gold"]} if row["answerable"] else set())
    assert check_records(committed[split], split) == []
    assert len({row["id"] for row in committed[split]}) == len(committed[split])


def test_check_records_names_each_breach(committed):
    answered = deepcopy(next(row for row in committed["train"] if row["answerable"]))
    turned, fewer, altered = deepcopy(answered), deepcopy(answered), deepcopy(answered)
    turned.update(id="turned", answerable=False)
    fewer.update(id="fewer", chunks=[], answerable=None)
    fewer["expected"]["gold_chunk_ids"] = []
    altered["id"] = "altered"
    altered["chunks"] = [{**chunk, "text": "Another text."} for chunk in altered["chunks"]]
    problems = check_records([answered, answered, turned, fewer, altered], "train")
    told = {problem.where.split("(")[1].split(")")[0]: problem.code for problem in problems}
    assert told == {answered["id"]: "duplicate_id", "turned": "answerable", "fewer": "number_not_shown", "altered": "bad_spans"}


def test_a_creative_target_may_do_without_evidence(committed):
    refused = deepcopy(next(row for row in committed["train"] if not row["answerable"]))
    target = {"evidence": [], "answer": {"completeness": "complete", "text": "A free verse."},
              "unknowns": {"unsupported_claims": [], "missing_context": [], "clarifying_questions": []}}
    refused["messages"][-1]["content"], refused["answerable"] = json.dumps(target), True
    assert [code for *_, code in target_problems(refused)] == ["answer_without_evidence"]
    assert target_problems({**refused, "mode": "creative"}) == []


def test_minimal_pairs_differ_in_their_gold_chunks_alone(committed):
    for split in ("dev", "eval"):
        pairs = defaultdict(list)
        for row in committed[split]:
            if row["pair_id"]:
                pairs[row["pair_id"]].append(row)
        assert pairs
        for with_gold, without in pairs.values():
            assert (with_gold["answerable"], without["answerable"]) == (True, False)
            assert question_of(with_gold) == question_of(without)
            assert with_gold["messages"][0] == without["messages"][0]
            gold = {chunk["chunk_id"] for chunk in with_gold["chunks"] if chunk["gold"]}
            assert gold and not gold & {chunk["chunk_id"] for chunk in without["chunks"]}
            if without["kind"] == "nothing_retrieved":
                assert without["chunks"] == []
                continue
            if without["kind"] != "irrelevant":
                assert len(with_gold["chunks"]) == len(without["chunks"]), with_gold["id"]


def test_questions_of_a_training_group_share_everything_but_the_question(committed):
    panels = defaultdict(list)
    for row in committed["train"]:
        panels[row["group"]].append(row)
    for group, rows in panels.items():
        assert len({row["question_id"] for row in rows}) == len(rows) <= PANEL, group
        contexts = {
            (row["messages"][0]["content"], row["messages"][1]["content"].rsplit("### Instruction:", 1)[0])
            for row in rows
        }
        assert len(contexts) == 1, group
    whole = [rows for rows in panels.values() if len(rows) == PANEL and rows[0]["chunks"]]
    halves = sum(sum(row["answerable"] for row in rows) * 2 == PANEL for rows in whole)
    assert len(whole) > 0.9 * len(panels) and halves > 0.8 * len(whole)


def test_every_trained_question_is_answered_in_one_context_and_refused_in_another(committed):
    written = [row for row in committed["train"] if ".lookup-" not in row["question_id"]]
    answered = {row["question_id"] for row in written if row["answerable"]}
    refused = {row["question_id"] for row in written if not row["answerable"]}
    assert len(answered & refused) >= 0.95 * len(answered)


def test_a_shortcut_stops_the_build(committed):
    assert shortcut_problems(committed["train"], "train") == []
    longer = [row | {"question": row["question"] + " please" * (not row["answerable"]) * 9} for row in committed["train"]]
    assert {problem.code for problem in shortcut_problems(longer, "train")} == {"shortcut"}


def test_some_questions_are_refused_where_their_own_chunk_has_lost_the_sentence(committed, corpus):
    evidence = {question.question_id: question.evidence for question in corpus[1] if question.answer}
    found = 0
    for row in committed["train"]:
        shown = " ".join(chunk["text"] for chunk in row["chunks"])
        asked = evidence.get(row["question_id"], ())
        if asked and not row["answerable"]:
            documents = {chunk["doc_id"] for chunk in row["chunks"]}
            found += all(corpus[0][item.chunk_id].doc_id in documents for item in asked)
            assert not all(item.quote in shown for item in asked)
    assert found > 50


def test_records_store_the_spans_of_what_they_show(committed, corpus):
    "Whatever the splitter becomes, a record keeps its numbers; an excerpt holds sentences of its chunk and nothing else."
    whole = {name: set(units(chunk.text)) for name, chunk in corpus[0].items()}
    parted = 0
    for row in (row for part in committed.values() for row in part):
        for chunk in row["chunks"]:
            assert chunk["spans"] == [list(span) for span in sentence_spans(chunk["text"])]
            if row["kind"] != "injection":
                shown = [chunk["text"][start:end] for start, end in chunk["spans"]]
                assert len(set(shown)) == len(shown) and set(shown) <= whole[chunk["chunk_id"]], row["id"]
                parted += set(shown) < whole[chunk["chunk_id"]]
    assert parted > 1000


HOSTILE = ["One day it rained.", "```\ncode 1\n\ncode 2\n```", "| a | b |", "- an item. It goes on.", "# A heading", "3. third", "A\nbroken line.", "“So,” he said.",
           "~~~", "[3] said so [1, 2].", "x" * 900, "- ", "e.g.", "Dr.", "No end", "ማን ነበረች። እሷ ነበረች።"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=30), min_size=1, max_size=8), st.sampled_from(["\n\n", "\n", " "]), st.integers(0, 50))
def test_an_excerpt_is_made_of_whole_sentences_and_keeps_its_quotes(parts, between, turn):
    text = between.join(parts)
    assume(0 < len(text) <= 8000 and text.strip())
    source = chunk("c", "d", text)
    for quote in units(text)[:2]:
        part = excerpt(source, [quote], turn)
        assert quote in part.text
        assert part.text == text or Counter(units(part.text)) <= Counter(units(text))


# Refusals


def test_every_question_says_in_words_what_a_refusal_lacks(corpus):
    for question in corpus[1]:
        assert question.missing and not question.missing.endswith((".", "?")), question.question_id
        assert not names_answer(question.missing, question), (question.question_id, question.missing)


@pytest.mark.parametrize("split", SPLITS)
def test_every_refusal_is_a_sentence_with_its_phrase(committed, corpus, split):
    phrases = {question.question_id: question.missing for question in corpus[1]}
    wordings, refused = [*NOT_GIVEN, *NOTHING_RETRIEVED], [row for row in committed[split] if not row["answerable"]]
    said = Counter()
    for row in refused:
        target = parse_model_answer(row["messages"][-1]["content"], row["chunks"])
        phrase, = target.unknowns.missing_context
        said.update([next(wording for wording in wordings if target.answer.text == wording.format(missing=phrase))])
        assert target.answer.text.endswith(".") and not target.answer.text.endswith(".."), row["id"]
        assert phrase == phrases.get(row["question_id"], phrase) and (row["question_id"] in phrases or ".lookup-" in row["question_id"])
        assert any(target.answer.text == wording.format(missing=phrase) for wording in (NOT_GIVEN if row["chunks"] else NOTHING_RETRIEVED))
    assert set(NOT_GIVEN) <= set(said) and (split != "train" or set(said) == set(wordings))


@pytest.mark.parametrize("question, missing, phrase", [
    ("Who was she?", "her name", "her name"), (" Who\nwas she?", None, "the answer to “Who was she?”"), ("ማን ነበረች?", None, "the answer to “ማን ነበረች?”"),
    ("What does note [3] say, and [1, 2]?", None, "the answer to “What does note say, and?”"), ("{} {missing}?", "{missing} {0}", "{missing} {0}"),
])
@pytest.mark.parametrize("shown", [True, False])
def test_a_refusal_says_what_is_missing_or_repeats_the_question(question, missing, phrase, shown):
    row = Question(question_id="q", question=question, answer=None, kind="near_miss", about=("c",), missing=missing)
    answer = refusal_answer(row, shown)
    assert answer.unknowns.missing_context == [phrase] and phrase in answer.answer.text and answer.answer.text.endswith(".")
    assert parse_model_answer(answer.model_dump_json(), []) == answer


# What is pointed at


def test_an_answer_points_at_every_sentence_that_its_quotes_lie_in():
    first = chunk("a", "d", "Nothing here. It began in 1966. It went on. It ended in 1970.")
    second = chunk("b", "d", "A list:\n\n- It began\n  in 1966 [4].\n- It ended.")
    question = Question.model_validate({
        "question_id": "q", "question": "When?", "answer": "1966", "statement": "It began in 1966. [1] [2] It ended. [3]",
        "evidence": [{"chunk_id": "a", "quote": "in 1966. It went on"}, {"chunk_id": "a", "quote": "It went on."}, {"chunk_id": "b", "quote": "ended"}]})
    answer = gold_answer(question, [second, first])
    numbered = {sentence.number: sentence.text for sentence in shown_sentences([second, first])}
    assert [numbered[number] for number in answer.evidence] == ["It began in 1966.", "It went on.", "- It ended."]
    assert answer.answer.text == "It began in 1966. [5][6] It ended. [3]" and find_marks(answer.answer.text) == answer.evidence


def test_a_lookup_of_any_text_keeps_the_contract():
    "Marks of other people's notes, lists and line breaks are left out of what is said."
    text = "- Fannie Smith went to Oslo\n  in 1911 [12], it says [3, 4].\n- She stayed not Long\n\n# The Second Heading Of Fannie"
    source = chunk("c", "d", text)
    made = [lookup(source, sentence) for sentence in units(text)]
    assert [question.statement for question in made if question][0] == "Fannie Smith went to Oslo in 1911, it says. [1]"
    for question in filter(None, made):
        answer = gold_answer(question, [source])
        assert parse_model_answer(answer.model_dump_json(), [source]) == answer


def test_an_answer_that_is_broken_over_two_lines_is_found():
    question = Question.model_validate({"question_id": "q", "question": "?", "answer": "six  packets", "aliases": []})
    assert names_answer("They take six\n  packets.", question) and not names_answer("They take six. Packets are small.", question)


def test_lookups_have_one_sentence_that_holds_their_terms_or_none(committed):
    rows = [row for row in committed["train"] if ".lookup-" in row["question_id"]]
    assert abs(sum(row["answerable"] for row in rows) * 2 - len(rows)) < 0.1 * len(rows)
    for row in rows:
        shown = [sentence.text for sentence in shown_sentences(row["chunks"])]
        if row["answerable"]:
            number, = parse_model_answer(row["messages"][-1]["content"], row["chunks"]).evidence
            named = [term for term in terms(shown[number - 1]) if term.casefold() in row["question"].casefold()]
            holders = [one for one in shown if all(term.casefold() in one.casefold() for term in named)]
            assert len(named) >= 2 and holders == [shown[number - 1]], row["id"]


def test_terms_are_names_numbers_and_longer_words():
    assert terms("In 1915, the Bureau of Education hired Ella Baker for 2,500 dollars.") == [
        *("1915", "Bureau of Education", "hired", "Ella Baker", "2,500", "dollars")
    ]


@pytest.mark.parametrize("sentence, name", [
    ("Charles B. Hall flew first.", "Charles B. Hall"), ("In 1910 W. E. B. Du Bois taught.", "W. E. B. Du Bois"), ("The paper of W.E.B. Du Bois.", "W.E.B. Du Bois"),
    ("He met J. L. Fleming and A. Philip Randolph.", "J. L. Fleming and A. Philip Randolph"), ("A copy is in Washington, D.C.", "Washington"), ("It was plan B.", None),
])
def test_initials_stay_in_a_name(sentence, name):
    assert name is None or name in terms(sentence)
    assert not any(term.rstrip(".") in ("B", "D", "C", "W", "E", "J", "L", "A") for term in terms(sentence))


def test_pairs_stand_behind_one_another_in_one_group(committed):
    for part in committed.values():
        groups = [row["group"] for row in part]
        runs = 1 + sum(before != after for before, after in zip(groups, groups[1:]))
        assert runs == len(set(groups))


def test_chunks_shown_without_being_gold_never_name_the_answer(committed, corpus):
    questions = {question.question_id: question for question in corpus[1]}
    checked = 0
    for row in (row for part in committed.values() for row in part):
        question = questions.get(row["question_id"])
        if question is None or question.answer is None:
            continue
        for chunk in row["chunks"]:
            if not chunk["gold"]:
                checked += 1
                assert not names_answer(chunk["text"], question), (row["id"], chunk["chunk_id"])
    assert checked > 300


def test_names_are_found_as_whole_words_in_any_case():
    question = Question.model_validate({"question_id": "q", "question": "?", "answer": "1966", "aliases": ["Ujima"]})
    assert names_answer("It was 1966.", question) and names_answer("UJIMA, that is", question)
    assert not names_answer("Page 19660 on ujimas.", question)


def test_distractors_are_no_gold_chunks_and_name_no_answer(corpus):
    chunks, questions = corpus
    retriever = Retriever([chunk for chunk in chunks.values()][:60])
    for question in [question for question in questions if question.answer][::12]:
        near, far = distractors(question, retriever, 3), distractors(question, retriever, 3, hard=False)
        assert len(near) == len(far) == 3 and not {chunk.chunk_id for chunk in near} & {chunk.chunk_id for chunk in far}
        for chunk in [*near, *far]:
            assert chunk.chunk_id not in question.chunk_ids and not names_answer(chunk.text, question)


def test_the_shuffled_chunks_do_not_give_the_place_of_the_gold_chunk_away(committed):
    places = Counter(
        [chunk["gold"] for chunk in row["chunks"]].index(True)
        for row in committed["train"]
        if row["answerable"] and len(row["chunks"]) == 2
    )
    assert min(places[0], places[1]) >= 0.35 * (places[0] + places[1])


def chunk(name, document, text="A text about candles.", namespace="kwanzaa_primary_sources"):
    return Chunk(
        chunk_id=name,
        doc_id=document,
        citation_label="A label",
        canonical_url="https://example.org/a",
        source_org="An archive",
        year=1966,
        content_type="summary",
        license="CC0-1.0",
        namespace=namespace,
        text=text,
    )


def asked(name, *chunk_ids, answer="1966"):
    evidence = [{"chunk_id": chunk_id, "quote": "candles"} for chunk_id in chunk_ids]
    marks = " ".join(f"[{place}]" for place in range(1, len(evidence) + 1))
    return Question.model_validate(
        {
            "question_id": name,
            "question": f"What of {name}?",
            "answer": answer,
            "statement": f"1966. {marks}",
            "evidence": evidence,
        }
    )


@pytest.mark.parametrize("seed", range(8))
def test_documents_joined_by_a_question_are_never_parted(seed):
    chunks = {f"c{place}": chunk(f"c{place}", f"d{place}") for place in range(24)}
    questions = [
        asked("a", "c0", "c9"),
        asked("b", "c9", "c17"),
        asked("c", "c3", "c4"),
        asked("d", "c17", "c20", "c1"),
        Question.model_validate(
            {"question_id": "e", "question": "?", "answer": None, "kind": "near_miss", "about": ["c4", "c11"]}
        ),
    ]
    where = split_documents(chunks, questions, seed)
    assert set(where) == {f"d{place}" for place in range(24)} and set(where.values()) == set(SPLITS)
    assert len({where[name] for name in ("d0", "d9", "d17", "d20", "d1")}) == 1
    assert len({where[name] for name in ("d3", "d4", "d11")}) == 1


def test_every_document_of_the_corpus_is_in_one_split(committed, corpus):
    splits = defaultdict(set)
    for split, part in committed.items():
        for row in part:
            for shown in row["chunks"]:
                splits[shown["doc_id"]].add(split)
    assert all(len(found) == 1 for found in splits.values()) and len(splits) > 10


def test_nothing_leaks_and_each_planted_leak_is_found(committed):
    train, held_out = committed["train"], committed["eval"]
    assert leaks(train, held_out, "eval") == leaks(train, committed["dev"], "dev") == []
    assert leaks(committed["dev"], held_out, "eval") == []
    row = next(row for row in train if row["chunks"])
    fresh = {**row, "id": "planted", "question_id": "new", "question": "Something else entirely?", "chunks": []}
    same = {**fresh, "question_id": row["question_id"]}
    near = {**fresh, "question": f"{row['question'].upper()} So?"}
    shared = {**fresh, "chunks": row["chunks"][:1]}
    assert leaks(train, [fresh], "eval") == []
    assert [problem.where for problem in leaks(train, [same], "eval")] == ["eval, planted"]
    assert [problem.where for problem in leaks(train, [near], "eval", near=0.75)] == ["eval, planted"]
    assert [problem.where for problem in leaks(train, [shared], "eval")] == [
        f"eval, document {row['chunks'][0]['doc_id']}"
    ]


def test_near_duplicates_count_words_whatever_their_case_and_order():
    first = {"id": "a", "question_id": "a", "question": "On which day was it held in Los Angeles?", "chunks": []}
    second = {"id": "b", "question_id": "b", "question": "In LOS ANGELES, on which day was it held?!", "chunks": []}
    third = {"id": "c", "question_id": "c", "question": "On which day was the parade held in Chicago?", "chunks": []}
    assert word_set(first["question"]) == word_set(second["question"])
    assert len(leaks([first], [second], "eval")) == 1 and leaks([first], [third], "eval") == []


@pytest.mark.parametrize("split", SPLITS)
def test_no_shortcut_tells_what_can_be_answered(committed, split):
    found = shortcuts(committed[split])
    assert [name for name, _ in found] and set(dict(found)) == set(prompt_features(committed[split][0]))
    for name, accuracy in found:
        assert 0.5 <= accuracy <= 0.60, (name, accuracy)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("feature", ["number of chunks", "words of question", "first chunk's year"])
def test_a_planted_shortcut_is_found(feature, turned):
    rows = []
    for place in range(20):
        answerable = (place % 2 == 0) is not turned
        planted = {"number of chunks": 1, "words of question": 4, "first chunk's year": 1960}
        planted[feature] += 3 * (place % 2)
        rows.append(
            {
                "answerable": answerable,
                "question": " ".join(["word"] * planted["words of question"]),
                "chunks": [{"chunk_id": "c", "text": "text", "year": planted["first chunk's year"]}]
                * planted["number of chunks"],
            }
        )
    assert dict(shortcuts(rows))[feature] == 1.0 and shortcuts(rows)[0][1] == 1.0


def test_wordings_of_held_out_requests_never_occur_in_training(committed):
    words = {split: [*FORMAT_REQUESTS[split], *TONE_REQUESTS[split], *INJECTIONS[split]] for split in SPLITS}
    stems = {split: [wording.replace("{question}", "").strip() for wording in words[split]] for split in SPLITS}
    shown = {split: "\n".join(row["messages"][1]["content"] for row in committed[split]) for split in SPLITS}
    for split in SPLITS:
        assert len(set(stems[split])) == len(stems[split])
        for other in SPLITS:
            found = [stem for stem in stems[split] if stem in shown[other]]
            assert bool(found) is (split == other), (split, other, found)
    for wording in [wording for split in SPLITS for wording in [*FORMAT_REQUESTS[split], *TONE_REQUESTS[split]]]:
        assert wording.count("{question}") == 1


def test_foreign_files_are_not_overwritten(committed, tmp_path):
    path = tmp_path / "train.jsonl"
    refuse_foreign(path)
    path.write_bytes(b"")
    refuse_foreign(path)
    write_records(committed["train"][:2], path)
    refuse_foreign(path)
    for content in (json.dumps({"messages": MESSAGES}) + "\n", "notes\n", "\n\n"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ForeignFile, match="train.jsonl is there and was not built"):
            refuse_foreign(path)
        assert path.read_text(encoding="utf-8") == content


def lines(path, *rows):
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def test_records_are_written_and_read_back(committed, tmp_path):
    assert read_records(write_records(committed["dev"], tmp_path / "a.jsonl")) == committed["dev"]


def test_bare_messages_are_records(tmp_path):
    found = read_records(lines(tmp_path / "a.jsonl", {"messages": MESSAGES}, {"messages": MESSAGES, "id": "mine"}))
    assert [row["id"] for row in found] == ["line-1", "mine"]
    assert all(row["chunks"] == [] and row["answerable"] is None and row["messages"] == MESSAGES for row in found)
    assert len({row["group"] for row in found}) == 2


def test_bare_records_of_two_files_can_be_compared(tmp_path):
    "The stage `data` looks for leaks between a user's own files too."
    other = [MESSAGES[0], {"role": "user", "content": f"{NOTHING}Who made the seven candles?"}, MESSAGES[2]]
    train = read_records(lines(tmp_path / "a.jsonl", {"messages": MESSAGES}))
    fresh = read_records(lines(tmp_path / "b.jsonl", {"messages": other}))
    same = read_records(lines(tmp_path / "c.jsonl", {"messages": other}, {"messages": MESSAGES}))
    assert leaks(train, fresh, "eval") == []
    assert len(leaks(train, same, "eval")) == 1


def content(place, text):
    return [{**message, "content": text} if index == place else message for index, message in enumerate(MESSAGES)]


@pytest.mark.parametrize(
    "messages, field, code",
    [
        (None, "messages", "messages_type"),
        ("text", "messages", "messages_type"),
        ([1, 2, 3], "messages", "messages_type"),
        ([], "messages", "roles"),
        (MESSAGES[1:], "messages", "roles"),
        (MESSAGES + MESSAGES[1:], "messages", "roles"),
        ([MESSAGES[1], MESSAGES[0], MESSAGES[2]], "messages", "roles"),
        (content(0, ""), "messages[0].content", "content"),
        (content(1, " \n"), "messages[1].content", "content"),
        (content(2, None), "messages[2].content", "content"),
        (content(2, ["a"]), "messages[2].content", "content"),
        (content(2, "\ud800"), "messages[2].content", "content"),
    ],
)
def test_bad_messages_are_named_by_line_and_field(tmp_path, messages, field, code):
    path = lines(tmp_path / "a.jsonl", {"messages": MESSAGES}, {"messages": messages})
    with pytest.raises(DataError) as error:
        read_records(path, shown="a.jsonl")
    assert [(problem.where, problem.code) for problem in error.value.problems] == [(f"a.jsonl, line 2, {field}", code)]


@pytest.mark.parametrize(
    "field, value",
    [
        ("id", ["a"]),
        ("id", None),
        ("id", 5),
        ("chunks", None),
        ("chunks", ["a"]),
        ("chunks", [{}]),
        ("answerable", "yes"),
        ("category", None),
        ("group", ["a"]),
        ("persona", 1),
        ("expected", None),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, field, value):
    path = lines(tmp_path / "a.jsonl", {"messages": MESSAGES, field: value})
    with pytest.raises(DataError) as error:
        read_records(path, shown="a.jsonl")
    assert all(problem.where.startswith(f"a.jsonl, line 1, {field}") for problem in error.value.problems)


def test_all_problems_of_a_record_file_come_at_once(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        {"messages": []},
        {"messages": content(0, "")},
        {"messages": MESSAGES, "id": "x"},
        {"messages": MESSAGES, "id": "x"},
    )
    with pytest.raises(DataError) as error:
        read_records(path, shown="a.jsonl")
    assert [problem.code for problem in error.value.problems] == ["roles", "content", "duplicate_id"]
    with pytest.raises(DataError, match="line 2: not JSON"):
        read_records(lines(path, {"messages": MESSAGES}, b"{half"))
    with pytest.raises(MissingFile):
        read_records(tmp_path / "gone.jsonl")


def many(documents, distractor="Nothing of use stands here."):
    chunks = {
        f"c{place}": chunk(f"c{place}", f"d{place}", f"In 1966 the candles of house {place} were lit.")
        for place in range(documents)
    }
    questions = [
        Question.model_validate(
            {
                "question_id": f"q{place}",
                "question": f"When were candles lit at {place} {'abcdefgh'[place % 8] * 9}{place}?",
                "answer": f"house {place}",
                "statement": f"They were lit in house {place}. [1]",
                "evidence": [{"chunk_id": f"c{place}", "quote": f"house {place}"}],
            }
        )
        for place in range(documents)
    ]
    return chunks, questions


@pytest.mark.parametrize("documents", [1, 2, 3, 5, 9, 16])
def test_a_small_corpus_builds_or_says_why_not(documents):
    "Few documents leave a split with few chunks or none."
    try:
        small = build_records(*many(documents))
    except DataError as error:
        assert "split" in str(error) or "document" in str(error)
    else:
        assert all(small[split] for split in SPLITS)


def disagreeing():
    "Many documents, one of which has a second chunk that contradicts the first."
    chunks, questions = many(24)
    first = next(iter(chunks.values()))
    second = first.model_copy(update={"chunk_id": "c-other-side", "text": "The register names the year 1911. It has nine pages."})
    first = first.model_copy(update={"text": f"{first.text} The diary names the year 1910."})
    conflict = Question(
        question_id="conflict", question="In which year was it?", answer=None, kind="conflict", missing="which is right",
        evidence=[{"chunk_id": first.chunk_id, "quote": "The diary names the year 1910."},
                  {"chunk_id": second.chunk_id, "quote": "The register names the year 1911."}])
    return {**chunks, first.chunk_id: first, second.chunk_id: second}, [*questions, conflict]


@pytest.mark.parametrize("seed", range(12))
def test_a_conflict_is_refused_where_both_sides_are_shown(seed):
    chunks, questions = disagreeing()
    assert check_question(questions[-1], chunks) == []
    rows = [row for part in build_records(chunks, questions, seed=seed).values() for row in part if row["question_id"] == "conflict"]
    assert rows, "asked in each split that it can fall into"
    for row in rows:
        shown = " ".join(chunk["text"] for chunk in row["chunks"])
        assert row["answerable"] is False and "1910" in shown and "1911" in shown
        assert row["kind"] in ("conflict", "strict", "tone", "injection") and not any(chunk["gold"] for chunk in row["chunks"])


def test_a_conflict_needs_two_sides():
    chunks, questions = disagreeing()
    one = questions[-1].model_copy(update={"evidence": questions[-1].evidence[:1]})
    assert [code for *_, code in check_question(one, chunks)] == ["shape"]
    altered = questions[-1].evidence[0].model_copy(update={"quote": "The diary names no year."})
    other = questions[-1].model_copy(update={"evidence": (altered, questions[-1].evidence[1])})
    assert [code for *_, code in check_question(other, chunks)] == ["quote_not_in_chunk"]


def test_injected_pairs_have_the_same_number_of_chunks_in_a_small_split():
    small = build_records(*many(40))
    pairs = defaultdict(list)
    for row in (row for split in ("dev", "eval") for row in small[split] if row["kind"] == "injection"):
        pairs[row["pair_id"]].append(len(row["chunks"]))
    assert pairs and all(first == second for first, second in pairs.values())
