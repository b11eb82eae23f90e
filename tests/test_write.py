"Writing records: all splits or none, the same bytes, and no file of other people."

import json

import pytest
from made_corpus import full_corpus, small_corpus

from kwanzaa_nb.core.jsonl import DataError
from kwanzaa_nb.core.prompt import render_user
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.core.settings import DataSection
from kwanzaa_nb.data.build import generate_records
from kwanzaa_nb.data.checks import leaks
from kwanzaa_nb.data.write import (
    ForeignFile, checked, count_by, count_rows, record_files, refuse_foreign, write_records,
    write_splits)

SPLITS = ("train", "dev", "eval", "sealed")


@pytest.fixture
def paths(tmp_path):
    return {split: tmp_path / f"{split}.jsonl" for split in SPLITS}


def build(corpus, paths, **changes):
    chunks, questions = corpus
    records = ((split, record | changes) for split, record in generate_records(chunks, questions))
    return write_splits(checked(records, questions, SPLITS), paths)


def test_what_is_written_is_read_back_and_has_the_same_bytes_again(paths):
    counts = build(full_corpus(8), paths)
    assert {split: len(read_records(path, targets=True)) for split, path in paths.items()} == counts
    before = {path: path.read_bytes() for path in paths.values()}
    build(full_corpus(8), paths)
    assert {path: path.read_bytes() for path in paths.values()} == before
    assert all(json.dumps(json.loads(line), ensure_ascii=False, separators=(",", ":")) == line
               for line in paths["dev"].read_text(encoding="utf-8").splitlines())


def test_a_build_that_stops_writes_nothing_and_old_files_stay(tmp_path, paths):
    with pytest.raises(DataError, match="its id was used before"):
        build(small_corpus(6), paths, id="always the same")
    assert list(tmp_path.iterdir()) == []
    build(small_corpus(9), paths)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError):
        build(small_corpus(2), paths)
    with pytest.raises(KeyboardInterrupt):
        write_splits(interrupted(), paths)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def interrupted():
    yield "train", {"id": "a"}
    yield "dev", {"id": "b"}
    raise KeyboardInterrupt


def test_a_split_without_records_or_without_a_path_has_no_file(paths):
    "An old sealed file would hold documents that are trained on now."
    assert build(small_corpus(9), paths)["sealed"] and paths["sealed"].exists()
    del paths["dev"]
    records = [("train", {"id": "a"}), ("dev", {"id": "b"}), ("eval", {"id": "c"})]
    counts = write_splits(records, paths)
    assert counts == {"train": 1, "eval": 1} and not paths["sealed"].exists()
    assert paths["train"].read_text() == '{"id":"a"}\n'


@pytest.mark.parametrize("named, files", [
    ({}, {"eval": "b_eval.jsonl", "sealed": "b_sealed.jsonl"}),
    ({"dev_file": "d.jsonl"},
     {"dev": "d.jsonl", "eval": "b_eval.jsonl", "sealed": "b_sealed.jsonl"}),
    ({"eval_file": "b_sealed.jsonl"}, {"sealed": "b_sealed.jsonl"})])
def test_each_split_has_its_file(named, files):
    section = {"train_file": "a.jsonl", "eval_file": "b_eval.jsonl"} | named
    assert record_files(DataSection(**section)) == {"train": "a.jsonl"} | files


def test_files_of_other_people_are_not_overwritten(tmp_path):
    path = tmp_path / "train.jsonl"
    refuse_foreign(path)
    path.write_bytes(b"")
    refuse_foreign(path)
    write_records((record for _, record in generate_records(*small_corpus(1))), path)
    refuse_foreign(path)
    for content in ('{"messages": []}\n', "notes\n", "\n\n"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ForeignFile, match="train.jsonl is there and was not built"):
            refuse_foreign(path)
        assert path.read_text(encoding="utf-8") == content


def test_counts():
    chunk = {"chunk_id": "a-1", "doc_id": "a", "namespace": "n"}
    first = {"category": "refusal", "answerable": False, "pair_id": "p", "question_id": "q",
             "kind": "", "chunks": [chunk, {"chunk_id": "b-1"}]}
    second = first | {"category": "partial", "answerable": None, "kind": "half", "chunks": []}
    third = first | {"category": "citation_required", "answerable": True, "chunks": [chunk]}
    headings, rows = count_rows({"train": [first, second, third], "eval": []})
    assert dict(zip(headings, rows[0])) == {
        "split": "train", "records": 3, "citation_required": 1, "partial": 1, "refusal": 1,
        "answerable": 1, "minimal pairs": 1, "questions": 1, "documents": 2, "passages": 2}
    assert rows[1] == ["eval", *[0] * 9]
    records = {"train": [first, second], "eval": [third]}
    assert count_by(records, "kind") == (
        ["kind", "train", "eval"], [["none", 1, 1], ["half", 1, 0]])
    assert count_by(records, "passages")[1] == [[0, 1, 0], [1, 0, 1], [2, 1, 0]]
    assert count_by(records, "namespace")[1] == [["none", 1, 0], ["n", 1, 1]]
    assert count_by(records, "persona")[1] == [["none", 2, 1]]


def test_leaks_between_files_of_bare_messages_are_found(tmp_path):
    "The stage `data` looks for leaks between a user's own files too."
    def file(name, *questions):
        heading = "### Retrieved Context:\n(none provided)\n\n### Instruction:\n"
        rows = [{"messages": [{"role": "system", "content": "Be exact."},
                              {"role": "user", "content": f"{heading}{question}"},
                              {"role": "assistant", "content": "Then."}]} for question in questions]
        return read_records(write_records(rows, tmp_path / name))

    train = file("a.jsonl", "When?")
    assert leaks(train, file("b.jsonl", "Who made the seven candles?"), "eval") == []
    assert len(leaks(train, file("c.jsonl", "Who made the seven candles?", "When?"), "eval")) == 1


def test_a_passage_of_bare_messages_is_found_wherever_it_stands(tmp_path):
    "Bare messages name no passage, so its name is made of its text and its place."
    def file(name, question, *passages):
        chunks = [{"chunk_id": text, "source_org": "A library", "year": 1966, "text": text}
                  for text in passages]
        row = {"messages": [{"role": "system", "content": "Be exact."},
                            {"role": "user", "content": render_user(question, chunks)},
                            {"role": "assistant", "content": "Then."}]}
        return read_records(write_records([row], tmp_path / name))

    train = file("a.jsonl", "When?", "It holds seven candles.", "Three are red.")
    held_out = file("b.jsonl", "Which colour?", "Three are red.")
    [problem] = leaks(train, held_out, "eval")
    assert problem.where.startswith("eval, line-1, passage ")
    assert leaks(train, file("c.jsonl", "Which colour?", "Three are green."), "eval") == []
