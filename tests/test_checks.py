"Checks that stop a build: each with its sentence, and all at once."

import itertools
import json
from copy import deepcopy

import pytest
from made_corpus import TOWNS, full_corpus

import kwanzaa_nb.data.checks as checks
from kwanzaa_nb.core.jsonl import DataError
from kwanzaa_nb.data.build import SPLITS, make_record
from kwanzaa_nb.data.checks import (
    Facts, LeakIndex, RecordChecks, copies, leaks, never_used, shortcut_problems, shortcuts, usage,
    usage_problems)
from kwanzaa_nb.data.write import checked
from kwanzaa_nb.evaluate.metrics import refused_target

CHUNKS, QUESTIONS = full_corpus(4)
BY_ID = {question.question_id: question for question in QUESTIONS}
FEATURES = (1, 200, 22, 4, 1901)


def record_of(name, town, passage=0, **changes):
    "A record of the question on the first town, about a passage of any town."
    question = BY_ID[f"{TOWNS[0]}-{name}"]
    shown = [CHUNKS[f"{TOWNS[town]}-{passage}"]]
    return {**make_record(question, shown, f"g{town}{passage}"), **changes}


def with_target(record, **answer):
    "A copy of a record whose target says something else."
    changed = deepcopy(record)
    target = json.loads(changed["messages"][-1]["content"])
    target["answer"] |= answer
    changed["messages"][-1]["content"] = json.dumps(target)
    return changed


def stopped(*records, wanted=(), judge=lambda record: ()):
    "The codes and the lines of the problems that stop a build of training records."
    with pytest.raises(DataError) as error:
        list(checked((("train", record) for record in records), QUESTIONS, wanted, judge))
    return [problem.code for problem in error.value.problems], str(error.value)


def starred(record):
    "A copy of a record with a line of stars at the end of its passage."
    changed = deepcopy(record)
    chunk = changed["chunks"][0]
    chunk["spans"].append([len(chunk["text"]) + 2, len(chunk["text"]) + 5])
    chunk["text"] += "\n\n***"
    return changed


def refusing_what_is_shown():
    "A refusal that shows the passage with the answer after all."
    record = record_of("opened", 1)
    return {**record, "chunks": record_of("opened", 0)["chunks"]}


ANSWER = record_of("opened", 0)
FAULTS = {
    "answered_anyway": (refusing_what_is_shown(), "Akron-0 holds every part of the answer"),
    "garbage": (starred(ANSWER), "a sentence without a word: '***'"),
    "group_not_in_answer": (with_target(ANSWER, text="It opened long ago [1]."),
                            "no wording of the part '1701'")}


@pytest.mark.parametrize("code", FAULTS)
def test_a_wrong_record_stops_the_build(code):
    record, sentence = FAULTS[code]
    codes, lines = stopped(record)
    assert codes == [code] and sentence in lines and record["id"] in lines


@pytest.mark.parametrize("text", ["| 7 | 5 |", "- A", "福"])
def test_a_short_unit_with_a_letter_or_a_digit_is_no_garbage(text):
    changed = deepcopy(ANSWER)
    chunk = changed["chunks"][0]
    chunk["spans"].append([len(chunk["text"]) + 2, len(chunk["text"]) + 2 + len(text)])
    chunk["text"] += f"\n\n{text}"
    assert list(checks._garbage(changed)) == []


@pytest.mark.parametrize("target", ["No right answer is known.", "[]", "{}", '{"evidence":[99],"answer":{},"unknowns":{}}'])
def test_what_is_no_target_uses_nothing(target):
    record = deepcopy(ANSWER)
    record["messages"][-1]["content"] = target
    own, other = checks.facts_of(record), checks.facts_of(ANSWER)
    assert own.uses == {} and checks.usage([own, other]) == checks.usage([other])


def test_a_target_that_breaks_the_contract_stops_the_build():
    codes, lines = stopped(with_target(ANSWER, completeness="insufficient_data"))
    assert codes and "messages[2].content" in lines
    codes, _ = stopped({**ANSWER, "answerable": False})
    assert "answerable" in codes


def test_a_target_that_the_metrics_refuse_stops_the_build():
    wrong = with_target(ANSWER, text="It opened long ago [1].")
    codes, lines = stopped(wrong, judge=refused_target)
    assert codes[-1] == "refused_target" and "the metrics refuse its own answer" in lines
    assert list(checked([("train", ANSWER)], QUESTIONS, (), refused_target))


def test_an_id_that_is_used_twice_stops_the_build():
    codes, lines = stopped(ANSWER, ANSWER)
    assert codes == ["duplicate_id"] and "its id was used before" in lines


def test_all_problems_come_at_once():
    codes, _ = stopped(*(record for record, _ in FAULTS.values()), wanted=("train", "dev", "eval"))
    assert codes == ["empty_split", "answered_anyway", "garbage", "duplicate_id",
                     "group_not_in_answer"]


def test_a_good_build_goes_through():
    records = [("train", ANSWER), ("train", record_of("opened", 1))]
    assert list(checked(records, QUESTIONS, ["train"], refused_target)) == records


@pytest.mark.parametrize("wanted, told", [
    (("train", "dev", "eval", "sealed"), ["dev and eval splits"]),
    (("train", "dev"), ["dev split"]), (("train", "sealed"), ["sealed split"]), (("train",), [])])
def test_empty_splits_are_told_in_one_sentence(wanted, told):
    "Sealed records may be missing, unless they are what is evaluated on."
    checks = RecordChecks(QUESTIONS)
    checks.add("train", ANSWER)
    problems = checks.problems(wanted)
    assert [problem.where for problem in problems] == told
    assert all("only 1 document has questions" in problem.what and "add documents" in problem.mend
               for problem in problems)


# ---- leaks

def asked(name, question, *documents):
    chunks = [{"chunk_id": f"{document}-1", "doc_id": document, "text": f"Of {document}."}
              for document in documents]
    return {"id": f"r-{name}", "question_id": name, "question": question, "chunks": chunks}


TRAINED = asked("a", "On which day was it held in Los Angeles?", "d1", "d2")


@pytest.mark.parametrize("record, told", [
    (asked("a", "Something else entirely?"), ["its question is trained on as a"]),
    (asked("b", "In LOS ANGELES, on which day was it held?!"), ["its question is trained on as a"]),
    (asked("b", "On which day was it first held in Los Angeles?"),
     ["its question is trained on as a"]),
    (asked("b", "On which day was the parade held in Chicago?", "d3"), []),
    (asked("b", "Who came?", "d3", "d2"), ["it is shown in training too"]), (asked("b", "?!"), [])])
def test_leaks_are_found_by_question_near_question_and_document(record, told):
    assert [problem.what for problem in leaks([TRAINED], [record], "eval")] == told
    assert {problem.code for problem in leaks([TRAINED], [record], "eval")} <= {"leak"}


def shown(text, place=1, **more):
    chunk = {"chunk_id": f"passage-{place}", "text": text, **more}
    return {"id": text, "question_id": text, "question": text, "chunks": [chunk]}


TEXT = "It cost [1] dollar.\nFew paid it."


@pytest.mark.parametrize("train, held_out, places", [
    (shown(TEXT), shown("It cost (1) dollar. Few paid it.", 2), ["eval, later, passage passage-2"]),
    (shown(TEXT, doc_id="d"), shown(TEXT, 2), ["eval, later, passage passage-2"]),
    (shown(TEXT), shown(TEXT, 2, doc_id="d"), ["eval, later, passage passage-2"]),
    (shown(TEXT, doc_id="d"), shown(TEXT, doc_id="e"), []),  # a corpus says what is a document
    (shown(TEXT), shown("It rained for days."), [])])  # ids may count the passages of a record
def test_a_passage_without_a_document_is_known_by_its_words(train, held_out, places):
    held_out = {**held_out, "id": "later", "question_id": "other", "question": "Who?"}
    assert [problem.where for problem in leaks([train], [held_out], "eval")] == places


def test_each_leak_is_told_once():
    index = LeakIndex([TRAINED])
    assert len(list(index.leaks({**TRAINED, "id": "x"}, "eval"))) == 3
    assert list(index.leaks({**TRAINED, "id": "y"}, "eval")) == []


def test_a_leak_between_any_two_splits_stops_the_build():
    for earlier, later in itertools.combinations(SPLITS, 2):
        checks = RecordChecks(QUESTIONS)
        checks.add(earlier, ANSWER)
        checks.add(later, {**record_of("opened", 1), "id": "later"})
        assert [problem.where for problem in checks.problems(())] == [f"{later}, later"], earlier


# ---- whole splits

def many(count, **changes):
    "Facts of records, every other one a refusal; a change gets the place and gives the value."
    used = {"evidence": True, "partial": True, "copied, of those with evidence": False}
    return [Facts(place % 2 == 0, FEATURES,
                  used | {name: change(place) for name, change in changes.items()})
            for place in range(count)]


def telling(facts, feature, turned=False):
    "Facts of which one number tells refusals from answers."
    return [fact._replace(features=tuple(
        value + 3 * (place == feature and fact.answerable is turned)
        for place, value in enumerate(FEATURES))) for fact in facts]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("place", range(5))
def test_a_planted_shortcut_is_found(place, turned):
    facts = telling(many(300), place, turned)
    unknown = facts[0]._replace(answerable=None)
    assert [value for _, value in shortcuts([*facts, unknown])] == [1.0, 0.5, 0.5, 0.5, 0.5]
    [problem] = shortcut_problems(facts, "train")
    assert problem.code == "shortcut" and "with a balanced accuracy of 1.00" in problem.what


def test_few_records_and_records_of_one_kind_have_no_shortcut():
    assert shortcuts([Facts(True, FEATURES, {})] * 300) == [] and shortcuts([]) == []
    longer = telling(many(100), 0)
    assert shortcuts(longer)[0][1] == 1.0 and shortcut_problems(longer, "dev") == []


def test_a_shortcut_stops_the_build_in_every_split():
    checks = RecordChecks(QUESTIONS)
    for split in SPLITS:
        checks.facts[split] = telling(many(300), 0)
    assert [(problem.where, problem.code) for problem in checks.problems()] == [
        (f"{split} split", "shortcut") for split in SPLITS]


@pytest.mark.parametrize("every, code", [(34, "unused_field"), (33, None), (10**6, None)])
def test_a_field_that_is_used_in_under_three_in_a_hundred_stops_the_build(every, code):
    "One that is never used is only reported, since no question asks for it."
    facts = many(3300, partial=lambda place: place % every == every - 1)
    problems = usage_problems(facts, "train")
    assert [problem.code for problem in problems] == ([code] if code else [])
    assert all("of the records use partial" in problem.what for problem in problems)
    assert never_used(facts) == (["partial"] if every > 1000 else [])


def test_answers_that_are_copied_over_a_half_stop_the_build():
    copied = {"copied, of those with evidence": lambda place: place % 4 < 2}
    assert usage_problems(many(300, **copied), "train") == []
    copied["evidence"] = lambda place: place % 4 < 3  # the share counts answers with evidence alone
    [problem] = usage_problems(many(300, **copied), "train")
    assert problem.code == "copied" and "67% of the answers share 8 words in a row" in problem.what
    assert usage_problems(many(100, **copied), "train") == [] and usage([]) == {}


@pytest.mark.parametrize("text, copied", [
    ("The library opened in spring of that long year [1].", True),
    ("THE LIBRARY, opened in spring [1] of that long year.", True),
    ("The library opened in spring of that year [1].", False), ("Spring.", False)])
def test_eight_words_in_a_row_are_copied(text, copied):
    evidence = ["Other.", "So the library opened in spring of that long year, it says."]
    assert copies(text, evidence) is copied
