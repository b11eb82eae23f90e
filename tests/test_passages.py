"Questions with retrieved passages, from files that nobody here wrote, become records."

import json

import pytest

from kwanzaa_nb.core.jsonl import DataError, MissingFile
from kwanzaa_nb.core.prompt import split_user
from kwanzaa_nb.core.record import read_records, spread
from kwanzaa_nb.data.passages import NOT_TOLD, passage_record, read_passages
from kwanzaa_nb.data.write import write_records
from kwanzaa_nb.evaluate.metrics import controls, read_cases, score, score_arms

TEA = {"chunk_id": "tea#1",
       "text": "Green tea is steeped for two minutes. Boiling water makes it bitter.",
       "title": "Green \n tea"}
MILL = {"chunk_id": "mill#4", "text": "The mill burnt down in 1931.",
        "citation_label": "The mill", "title": "x", "year": 1999, "lang": "en"}
ROW = {"id": "q1", "question": "How long is green tea steeped?", "answerable": True,
       "chunks": [MILL, TEA]}


def answer(numbers, text, completeness="complete", missing=()):
    return json.dumps({"evidence": numbers, "answer": {"completeness": completeness,
                                                       "text": text},
                       "unknowns": {"unsupported_claims": [],
                                    "missing_context": [*missing], "clarifying_questions": []}})


def outputs(records, *raws):
    return [{"id": record["id"], "arm": "a", "raw": raw, "finish_reason": "stop"}
            for record, raw in zip(records, raws)]


@pytest.fixture
def file_of(tmp_path):
    def write(*rows, name="found.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n"
                                for row in rows), encoding="utf-8")
        return path
    return write


def problems_of(path, **more):
    with pytest.raises(DataError) as caught:
        read_passages(path, **more)
    return [(problem.where.removeprefix(f"{path.name}, "), problem.code)
            for problem in caught.value.problems]


def test_the_prompt_shows_labels_years_and_numbered_sentences():
    record = passage_record(ROW, year=2001)
    context, question = split_user(record["messages"][1]["content"])
    assert question == ROW["question"] and "educator" in record["messages"][0]["content"]
    assert "The mill, 1999\n[1] The mill burnt down in 1931. [1]" in context
    assert "Green tea, 2001\n[2] Green tea is steeped for two minutes. [2]\n[3]" in context
    assert record["chunks"][0]["lang"] == "en" and record["chunks"][0]["spans"] == [[0, 28]]


def test_passages_without_any_name_are_numbered():
    bare = passage_record({**ROW, "chunks": [{"chunk_id": name, "text": "It rained."}
                                             for name in "ab"]}, year=1984)
    assert "Passage 1, 1984\n[1] It rained. [1]\n\nPassage 2, 1984\n[2]" in bare["messages"][1]["content"]


def test_null_is_the_same_as_nothing():
    whole = {**ROW, "persona": None, "chunks": [{**MILL, "score": None},
                                                {**TEA, "year": None, "citation_label": None}]}
    assert passage_record(whole, year=2001) == passage_record(ROW, year=2001)
    unknown = passage_record({**ROW, "answerable": None, "id": None}, number=7, year=2001)
    assert unknown["answerable"] is None and unknown["id"] == "line-7"


def test_written_records_are_read_back_equal(file_of, tmp_path):
    rows = [ROW, {**ROW, "id": None, "answerable": False},
            {**ROW, "id": "q3", "answerable": None}, {**ROW, "id": "q4",
                                                      "answerable": False, "chunks": []},
            {**ROW, "id": "q5", "expected": {"groups": [["two minutes"]]}}]
    found = read_passages(file_of(*rows), year=2001)
    assert read_records(write_records(found, tmp_path / "x_eval.jsonl")) == found
    assert [record["id"] for record in found] == ["q1", "line-2", "q3", "q4", "q5"]
    with pytest.raises(DataError):  # nobody trains on them
        read_records(tmp_path / "x_eval.jsonl", targets=True)


def test_a_choice_of_some_has_both_kinds(file_of):
    rows = [{**ROW, "id": f"q{place}", "answerable": place < 10} for place in range(20)]
    assert [record["answerable"] for record in spread(read_passages(file_of(*rows), year=2001), 4)] == [True, True, False, False]


def test_without_right_answers_support_and_refusing_are_judged(file_of):
    records = read_passages(file_of(ROW, {**ROW, "id": "q2", "answerable": False}), year=2001)
    refusal = answer([], "The passages do not say it.", "insufficient_data",
                     ["how long it is steeped"])
    right = score(outputs(records, answer([2], "Green tea is steeped for two minutes. [2]"),
                          refusal), records)
    assert right.rates["citation_coverage_rate"].value == right.rates["refusal_correctness_rate"].value == 1
    assert not right.codes
    forged = score(outputs(records, answer([2],
                                           "Green tea is steeped for nine minutes. [2]"),
                           answer([1], "The mill burnt down in 1931. [1]")), records)
    assert forged.rates["citation_coverage_rate"].value == 0
    assert {"claim_unsupported", "answered_unanswerable"} == set(forged.codes)


def test_right_answers_count_where_they_are_given(file_of):
    expected = {"groups": [["two minutes", "120 seconds"]], "gold_chunk_ids": ["tea#1"]}
    records = read_passages(file_of({**ROW, "expected": expected},
                                    {**ROW, "id": "q2",
                                     "chunks": [MILL, {**TEA, "gold": True}]}), year=2001)
    case, marked = read_cases(records)
    assert case.groups == (("two minutes", "120 seconds"),)
    assert case.gold == marked.gold == {"tea#1"} and marked.groups == ()
    wrong = score(outputs(records, *2 * [answer([1], "The mill burnt down in 1931. [1]")]), records)
    assert wrong.codes == {"gold_chunk_not_cited": 2, "answer_not_in_text": 1}


def test_controls_leave_out_what_takes_a_right_answer(file_of):
    records = read_passages(file_of(ROW, {**ROW, "id": "q2", "answerable": False}), year=2001)
    assert records[0]["messages"][-1]["content"] == NOT_TOLD
    arms = score_arms(controls(records), records)
    assert {"gold", "wrong_chunk"} & {*arms} == set()
    assert arms["always_refuse"].rates["json_valid_rate"].value == 1
    assert {"gold", "wrong_chunk"} <= {*score_arms(controls(records[1:]), records[1:])}


def test_everything_that_is_wrong_is_told_at_once_by_line_and_field(file_of):
    path = file_of(
        ROW, "{", {**ROW, "question": " "}, {"query": "Who?", "passages": []},
        {**ROW, "answerable": "yes", "chunks": [{"text": 7}, 8]}, {**ROW, "id": "q1"},
        {**ROW, "id": "q7", "messages": []}, {**ROW, "id": "q8",
                                              "chunks": [{**MILL, "citation_label": "### x"}]},
        {**ROW, "id": "q9", "expected": {"gold_chunk_ids": ["other"]}},
        {**ROW, "id": "q10", "persona": "pirate"}, {**ROW, "id": "q11", "chunks": "tea"})
    assert problems_of(path, year=2001) == [
        ("line 2", "bad_json"), ("line 3, question", "field_type"),
        ("line 4, question", "missing_field"), ("line 4, chunks", "missing_field"),
        ("line 4, answerable", "missing_field"), ("line 5, answerable", "field_type"),
        ("line 5, chunks[0].chunk_id", "field_type"), ("line 5, chunks[0].text", "field_type"),
        ("line 5, chunks[1]", "field_type"), ("line 6, id", "duplicate_id"),
        ("line 7, messages", "already_a_record"),
        ("line 8, chunk 1, citation_label", "bad_citation_label"),
        ("line 9, expected.gold_chunk_ids", "unknown_gold"),
        ("line 10, persona", "unknown_persona"), ("line 11, chunks", "field_type")]


def test_a_missing_year_is_told_once_and_an_impossible_one_is_refused(file_of):
    path = file_of(ROW, {**ROW, "id": "q2"})
    assert problems_of(path) == [("line 1, chunks[1].year", "missing_year")]
    assert problems_of(path, year=99) == [("line 1, chunks[1].year", "field_type"),
                                          ("line 2, chunks[1].year", "field_type")]


def test_files_that_are_not_there_or_empty(file_of, tmp_path):
    with pytest.raises(MissingFile):
        read_passages(tmp_path / "none.jsonl")
    assert problems_of(file_of()) == [("found.jsonl", "empty_file")]
