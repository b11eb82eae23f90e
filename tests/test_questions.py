"Questions: how a context lets them be answered, what keeps them from being used, simple rows."

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwanzaa_nb.core.jsonl import DataError
from kwanzaa_nb.data.corpus import Chunk, CorpusOptions
from kwanzaa_nb.data.questions import (
    ANSWERED, UNANSWERED, Question, check_question, complete_question, holds, load_corpus,
    may_answer, nearest_passage, reply_to, standing)

ROOT = Path(__file__).resolve().parents[1]
SOURCE = {"source_org": "A museum", "year": 1827, "license": "CC0-1.0", "namespace": "press",
          "canonical_url": "https://example.org/", "content_type": "museum_label"}


def chunk(name, text, document=None):
    return Chunk(chunk_id=name, doc_id=document or name, citation_label="A label", text=text,
                 **SOURCE)


def question(quotes=(), parts=(), **fields):
    "A question on evidence (chunk id, quote) with parts (answer, missing, places)."
    evidence = tuple({"chunk_id": name, "quote": quote} for name, quote in quotes)
    named = tuple(dict(zip(("answer", "missing", "evidence"), part)) for part in parts)
    return Question(**{"question_id": "q", "question": "What of it?", **fields,
                       "evidence": evidence, "parts": named})


WHOLE = chunk("fj", "The first issue is dated March 16, 1827. It was printed in New York City.")
STAR = chunk("ns", "The North Star was printed in Rochester.")
DATED = ("fj", "The first issue is dated March 16, 1827.")
PRINTED = ("fj", "It was printed in New York City.")
ISSUE = question(
    [DATED, PRINTED], [("It appeared in March 1827 [1].", "where it appeared", (0,)),
                       ("It came out in New York City [2].", "when it came out", (1,))],
    type="several", answer="It appeared in March 1827 [1], in New York City [2].",
    groups=(("March 1827", "1827-03"), ("New York City",)), missing="when and where it appeared")
DIARY, REGISTER = chunk("di", "The diary names 1910."), chunk("re", "The register names 1911.")
CONFLICT = question(
    [("di", DIARY.text), ("re", REGISTER.text)],
    [("In 1910, says the diary [1].", "what the register says", (0,)),
     ("In 1911, says the register [2].", "what the diary says", (1,))],
    type="conflict", answer="The diary says 1910 [1], the register 1911 [2].",
    groups=(("1910",), ("1911",)), missing="which of the two is right")
PREMISE = question([PRINTED], type="premise", answer="It came from New York City, not Boston [1].",
                   premise="It was printed in Boston.", groups=(("New York City",),))
LASTED = question([("ra", "It ran from 1827 to 1829.")], type="date", groups=(("two years",),),
                  answer="It lasted two years [1].")
MISS = question(type="near_miss", about=("fj", "ns"), missing="the price")
VAGUE = question(type="ambiguous", about=("fj", "ns"), answer="Two papers are shown here.",
                 clarify="Which of the papers do you mean?")


# ---- what a context allows

def half(text):
    return chunk("fj", text)


@pytest.mark.parametrize("asked, shown, reply", [
    (ISSUE, [STAR, WHOLE], "complete"), (ISSUE, [half(DATED[1]), STAR], "half"),
    (ISSUE, [STAR, half(PRINTED[1])], "half"), (ISSUE, [STAR], "removed"), (ISSUE, [], "removed"),
    (ISSUE, [chunk("am", "New York\nCity reads.")], None),  # holds a wording
    (ISSUE, [half("No quote of it.")], None),  # the chunk of its evidence, whatever it holds
    (ISSUE, [chunk("co", f"Again: {DATED[1]}")], None),  # repeats the evidence
    (ISSUE, [chunk("am", "On March 16, 1827, it rained.")], None),  # the same day
    (ISSUE, [half(DATED[1]), chunk("am", "New York City grows.")], None),
    (ISSUE.model_copy(update={"parts": ISSUE.parts[:1]}), [half(DATED[1])], None),
    (ISSUE.model_copy(update={"parts": ()}), [half(DATED[1])], None),
    (CONFLICT, [REGISTER, DIARY], "conflict"), (CONFLICT, [DIARY, STAR], "one_side"),
    (CONFLICT, [REGISTER], "one_side"), (CONFLICT, [STAR], None), (CONFLICT, [], None),
    (CONFLICT, [DIARY, chunk("am", "A letter names 1911.")], None),
    (PREMISE, [WHOLE], "premise"), (PREMISE, [STAR], "removed"),
    (MISS, [STAR, WHOLE], "refused"), (MISS, [WHOLE], None), (MISS, [], None),
    (VAGUE, [WHOLE, STAR, DIARY], "clarification"), (VAGUE, [STAR], None),
    (VAGUE, [WHOLE, STAR, chunk("ns-2", "It had two editors.", "ns")], None),
    (LASTED, [chunk("am", "Founded in 1827, gone by 1829.")], None),  # both years it is made of
    (LASTED, [chunk("am", "Founded in 1827.")], "removed"), (LASTED, [], "removed"),
])
def test_a_context_settles_how_to_reply_or_leaves_it_open(asked, shown, reply):
    assert reply_to(asked, shown) == reply


@pytest.mark.parametrize("kind", UNANSWERED)
def test_each_unanswerable_type_is_refused_beside_what_it_is_about(kind):
    assert reply_to(MISS.model_copy(update={"type": kind}), [WHOLE, STAR]) == "refused"


def test_evidence_stands_where_its_quote_stands_in_its_own_chunk():
    copied = chunk("other", WHOLE.text)
    assert standing(ISSUE, [STAR, WHOLE]) == (0, 1) and standing(ISSUE, [half(PRINTED[1])]) == (1,)
    assert standing(ISSUE, [copied]) == standing(ISSUE, []) == standing(MISS, [WHOLE]) == ()


@pytest.mark.parametrize("text, wordings, found", [
    ("It was 1966.", ["1966"], True), ("UJIMA, that is", ["1966", "Ujima"], True),
    ("Page 19660 on ujimas.", ["1966", "Ujima"], False),
    ("They take six\n  packets.", ["six  packets"], True),
    ("They take six. Packets are small.", ["six packets"], True),  # punctuation does not count
    ("They take six small packets.", ["six packets"], False), ("a €", ["€"], True),
    ("a", [], False),
    ("snake_case", ["case"], True), ("ማን ነበረች።", ["ነበረች"], True)])
def test_wordings_are_found_as_whole_words(text, wordings, found):
    assert holds(text, wordings) is found


WORDS = st.sampled_from("when was the paper printed 1827 New York City it first issue on".split())


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, max_size=12).map(" ".join))
def test_nothing_that_may_answer_stands_beside_a_refusal(text):
    shown = [STAR, chunk("made", text or "-")]
    assert (reply_to(ISSUE, shown) == "removed") is not any(may_answer(ISSUE, one) for one in shown)
    assert may_answer(ISSUE, shown[1]) or not holds(text, ["New York City"])


# ---- a question checked against its chunks

CHUNKS = {one.chunk_id: one for one in (WHOLE, STAR, DIARY, REGISTER)}
LONG = chunk("long", " ".join(f"It was held in {year}." for year in range(1966, 1976)))


def wrong(asked, chunks=CHUNKS, **changes):
    fields = {**asked.model_dump(), **changes}
    return {(field, code) for field, *_, code in check_question(Question(**fields), chunks)}


@pytest.mark.parametrize("asked", [ISSUE, CONFLICT, PREMISE, MISS, VAGUE])
def test_good_questions_pass(asked):
    assert wrong(asked) == set()


@pytest.mark.parametrize("asked, changes, found", [
    (ISSUE, {"answer": "It appeared in March 1827 in New York City [1]."},
     {("answer", "evidence_without_mark")}),
    *((ISSUE, {"answer": f"{ISSUE.answer} {mark}"}, {("answer", "mark_without_evidence")})
      for mark in ("[3]", "[01]", "[1, 2]", "[ 3 ]", "[1–2]", "[12345]")),
    (ISSUE, {"answer": f"It is old. {ISSUE.answer}"}, {("answer", "claim_without_mark")}),
    (ISSUE, {"answer": "It appeared in winter [1] in New York City [2]."},
     {("answer", "group_not_in_answer")}),
    (ISSUE, {"groups": (("2",),)}, {("answer", "group_not_in_answer")}),  # no word but a mark
    (ISSUE, {"evidence": ()}, {("evidence", "shape"), ("parts.0.evidence", "shape"),
                               ("parts.1.evidence", "shape")}),
    (ISSUE, {"answer": None}, {("answer", "shape")}),
    (ISSUE, {"evidence": ({"chunk_id": "fj", "quote": "it was Printed"},), "parts": ()},
     {("evidence", "quote_not_in_chunk")}),
    (ISSUE, {"evidence": ({"chunk_id": "fi", "quote": "It"},), "parts": ()},
     {("evidence", "unknown_chunk_id")}),
    (ISSUE, {"parts": ({**ISSUE.parts[0].model_dump(), "evidence": (2,)},)},
     {("parts.0.evidence", "shape")}),
    (ISSUE, {"parts": ({**ISSUE.parts[0].model_dump(), "evidence": (-1,)},)},
     {("parts.0.evidence", "shape")}),
    (ISSUE, {"parts": ({**ISSUE.parts[0].model_dump(), "evidence": (1,)},)},
     {("parts.0.answer", "evidence_without_mark"), ("parts.0.answer", "mark_without_evidence")}),
    (ISSUE, {"refusal": "No."}, {("refusal", "shape")}),
    (ISSUE, {"clarify": "Which?"}, {("clarify", "shape")}),
    (ISSUE, {"premise": "It did."}, {("premise", "shape")}),
    (ISSUE, {"missing": "page [3]"}, {("missing", "refusal_with_marks")}),
    (CONFLICT, {"evidence": CONFLICT.model_dump()["evidence"][:1], "parts": ()},
     {("evidence", "shape")}),
    (PREMISE, {"premise": None}, {("premise", "shape")}),
    (VAGUE, {"clarify": None}, {("clarify", "shape")}),
    (VAGUE, {"answer": None}, {("answer", "shape")}),
    (VAGUE, {"answer": "Two [1]."}, {("answer", "refusal_with_marks")}),
    (MISS, {"about": ()}, {("about", "shape")}),
    (MISS, {"about": ("zz",)}, {("about", "unknown_chunk_id")}),
    (MISS, {"answer": "It. [1]"}, {("answer", "shape")}),
    (MISS, {"groups": (("1966",),)}, {("groups", "shape")}),
    (MISS, {"evidence": ISSUE.model_dump()["evidence"]}, {("evidence", "shape")}),
    (MISS, {"refusal": "Not in [3]."}, {("refusal", "refusal_with_marks")}),
])
def test_what_keeps_a_question_from_becoming_a_record_is_named(asked, changes, found):
    assert wrong(asked, **changes) == found


def test_evidence_lies_in_no_more_sentences_than_an_answer_points_at():
    asked = question([("long", LONG.text[:-30])], answer="For years [1].")
    [(field, what, mend, code)] = check_question(asked, {"long": LONG})
    assert (field, mend, code) == ("evidence", "quote less", "too_much_evidence")
    assert what == "lies in 9 sentences, expected at most 8"


@pytest.mark.parametrize("quote, text, passage", [
    ("a b", "", ""), ("", "a b", ""), ("x y", "a b", ""), ("A, b", "z a b c", "a b"),
    ("a b c d", "a b", "a b"), ("!?", "a", "")])
def test_nearest_passages(quote, text, passage):
    assert nearest_passage(quote, text) == passage


@settings(max_examples=100, deadline=None)
@given(st.text("ab .,", max_size=30), st.text("ab .,", max_size=60))
def test_a_nearest_passage_is_verbatim(quote, text):
    assert nearest_passage(quote, text) in text


# ---- loading: every problem by file, line and field

def load(tmp_path, *rows, texts=None, table=None):
    "Load questions, as JSON lines or a CSV table, on two short texts."
    texts = texts or {"a.txt": "A bed takes six packets. We sow\nin May.", "b.txt": "It is warm."}
    (tmp_path / "corpus").mkdir(exist_ok=True)
    for name, text in texts.items():
        (tmp_path / "corpus" / name).write_text(text, encoding="utf-8")
    path = tmp_path / ("q.csv" if table else "q.jsonl")
    path.write_text(table or "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_corpus(tmp_path / "corpus", path, CorpusOptions(defaults=SOURCE))[1]


def faults(tmp_path, *rows, **more):
    with pytest.raises(DataError) as error:
        load(tmp_path, *rows, **more)
    return {problem.where.removeprefix("q.jsonl, "): problem for problem in error.value.problems}


ROW = {"question_id": "q-1", "question": "How many?", "answer": "It takes six packets [1].",
       "evidence": [{"chunk_id": "a-01", "quote": "six packets"}]}


@pytest.mark.parametrize("change, field, expected", [
    ({"type": "riddle"}, "type", "a type of question, such as fact"),
    ({"question": " "}, "question", "text of 1 to 1000 characters"),
    ({"answer": 6}, "answer", "a text, such as a name or a sentence with marks like [1]"),
    ({"groups": ["six"]}, "groups.0", "a list of lists of wordings"),
    ({"groups": [[]]}, "groups.0", "a list of lists of wordings"),
    ({"groups": [[" "]]}, "groups.0.0", "a list of lists of wordings"),
    ({"aliases": "six"}, "aliases", "a list of other wordings of the answer"),
    ({"aliases": [6]}, "aliases", "a list of other wordings of the answer"),
    ({"aliases": [" "]}, "aliases", "a list of other wordings of the answer"),
    ({"evidence": [{"quote": ""}]}, "evidence.0.quote", "text of 1 to 1000 characters"),
    ({"parts": [{"answer": "Six [1].", "missing": "when", "evidence": ["x"]}]},
     "parts.0.evidence.0", "a list of places in the question's evidence, from 0"),
    ({"after": "no id"}, "after", "the id of another question"),
    ({"persona": "poet"}, "persona", "one of educator, researcher, creator, builder"),
    ({"question_id": "two words"}, "question_id", "letters, digits and . _ : - without spaces"),
])
def test_a_field_that_cannot_be_read_says_what_was_expected(tmp_path, change, field, expected):
    problem = faults(tmp_path, {**ROW, **change})[f"line 1, {field}"]
    assert problem.what.endswith(f", expected {expected}")


def test_all_problems_come_at_once_by_line_and_field(tmp_path):
    found = faults(
        tmp_path, ROW, {**ROW, "question_id": "q-2", "evidence": []}, ROW,
        {**ROW, "question_id": "q-4", "after": "q_1"}, {**ROW, "question_id": "q-5", "type": "x"},
        {**ROW, "question_id": "q-6", "evidence_quote": "We sow"}, {**ROW, "kind": "fact"},
        {**ROW, "question_id": "q-8", "groups": [["six"]], "aliases": ["6"]})
    assert {where: problem.code for where, problem in found.items()} == {
        "line 2, evidence": "shape", "line 3": "duplicate_id",
        "line 4, after": "unknown_question_id", "line 5, type": "literal_error",
        "line 6, evidence": "shape",
        "line 7, kind": "extra_forbidden", "line 7": "duplicate_id", "line 8, aliases": "shape"}
    assert found["line 4, after"].mend == "the nearest is 'q-1'"
    assert all("\n" not in str(problem) for problem in found.values())


def test_a_question_that_follows_a_bad_one_is_not_blamed(tmp_path):
    bad, next_one = {**ROW, "persona": "poet"}, {**ROW, "question_id": "q-2", "after": "q-1"}
    assert list(faults(tmp_path, bad, next_one)) == ["line 1, persona"]


@pytest.mark.parametrize("after, whats", [
    (["q-1"], ["names the question itself"]),
    (["q-2", "q-1"], ["leads back to it through q-2", "leads back to it through q-1"]),
    (["q-2", "q-3", "q-2"], [None, "leads back to it through q-3", "leads back to it through q-2"])])
def test_a_conversation_has_a_first_question(tmp_path, after, whats):
    rows = [{**ROW, "question_id": f"q-{number}", **({"after": name} if name else {})}
            for number, name in enumerate(after, 1)]
    found = faults(tmp_path, *rows)
    assert {where: problem.what for where, problem in found.items()} == {
        f"line {number}, after": what for number, what in enumerate(whats, 1) if what}
    assert {problem.code for problem in found.values()} == {"circular_after"}
    assert all("name the question" in problem.mend for problem in found.values())


def test_no_question_is_blamed_for_a_chunk_that_could_not_be_read(tmp_path):
    with pytest.raises(DataError) as error:
        load(tmp_path, ROW, {**ROW, "question_id": "q-2", "evidence": [{"quote": "six"}]},
             {**ROW, "question_id": "q-3", "persona": "poet"}, texts={"a.txt": "", "b.txt": " "})
    assert [(problem.where, problem.code) for problem in error.value.problems] == [
        ("a.txt", "empty_file"), ("b.txt", "empty_file"),
        ("q.jsonl, line 3, persona", "literal_error")]


@pytest.mark.parametrize("missing, mend", [
    ("the host.", 'write "the host"'), ("who held it?", 'write "who held it"'),
    ("the\nhost", 'write "the host"'), (" the host", 'write "the host"'),
    ("the host. ", 'write "the host"'), ("ማን ነበረች። ?", 'write "ማን ነበረች።"'),
    (" ", "say in words"), (".", "say in words"), ("x" * 301, "say in words")])
def test_what_a_refusal_lacks_is_a_phrase_that_a_sentence_goes_on_with(tmp_path, missing, mend):
    [(where, problem)] = faults(tmp_path, {**ROW, "missing": missing}).items()
    assert where == "line 1, missing" and problem.mend.startswith(mend)
    assert "a phrase on one line" in problem.what


@pytest.mark.parametrize("missing", [
    "the host", "x", "x" * 300, "Dr. King's “first” paper, No. 3", "{} and {missing}", None])
def test_phrases_that_are_fine(tmp_path, missing):
    [read] = load(tmp_path, {**ROW, "missing": missing})
    assert read.missing == missing


# ---- simple rows

TABLE = """question,answer,evidence_quote,aliases,type,about,missing
How many packets does a bed take?,six packets,takes six packets,6 packets|half a dozen,,,the number
When do we sow?,They sow in May because it is warm then.,We sow in  May,,,,
When do they sow?,They sow in May.,We sow in May,,,,
Is it warm?,It is. They all say so.,It is warm,,,,
What does a packet cost?,,,,near_miss,a-01|b-01,the price of a packet
"""


def test_simple_rows_are_good_questions(tmp_path):
    short, own, brief, two, miss = load(tmp_path, table=TABLE)
    assert short.answer == "Six packets. [1]" and short.missing == "the number"
    assert short.groups == (("six packets", "6 packets", "half a dozen"),)
    assert short.evidence[0].model_dump() == {"chunk_id": "a-01", "quote": "takes six packets"}
    assert (own.answer, own.groups) == ("They sow in May because it is warm then. [1]", ())
    assert own.evidence[0].quote == "We sow\nin May"
    assert (brief.answer, brief.groups) == ("They sow in May. [1]", ())
    assert two.answer == "It is. [1] They all say so. [1]"
    assert (miss.type, miss.about, miss.answer) == ("near_miss", ("a-01", "b-01"), None)
    names = [one.question_id for one in (short, own, brief, two, miss)]
    assert len(set(names)) == 5 and all(name.startswith("q-") for name in names)


def test_a_question_keeps_its_id_when_rows_are_inserted(tmp_path):
    heading, *rows = TABLE.splitlines(keepends=True)
    before = [one.question_id for one in load(tmp_path, table=TABLE)]
    turned = "".join([heading, *rows[3:], *rows[:3]])
    after = [one.question_id for one in load(tmp_path, table=turned)]
    assert after == before[3:] + before[:3]
    [(where, problem)] = faults(tmp_path, table=f"{TABLE}{rows[0]}").items()
    assert where == "q.csv, row 7" and problem.code == "duplicate_id"


@pytest.mark.parametrize("row, where, what, mend", [
    ("q,seven packets,takes six packets,,", "answer",
     "'A bed takes six packets.' names none of ['seven packets']",
     "name one of them, or add the wording of the answer to the group or aliases"),
    ("q,six,Takes six packets,,", "evidence.0.chunk_id",
     "no chunk holds this quote: 'Takes six packets'",
     "the nearest passage, in a-01, is 'takes six packets.'"),
    ("q,six,zzz zzz,,", "evidence.0.chunk_id", "no chunk holds this quote: 'zzz zzz'",
     "copy it from the chunk's text"),
    ("q,it,i,,", "evidence.0.chunk_id", "2 chunks hold this quote, a-01, b-01: 'i'",
     "say which one is meant"),
    ("q,six,,,", "evidence", "missing, and a question of type fact needs it",
     "quote the sentence that answers it"),
    ("q,,takes six packets,,", "answer", "missing, and a question of type fact needs it",
     "write it, or say with another type, such as near_miss, that nothing answers it"),
    ("q,,,near_miss,", "about", "missing, and a question of type near_miss needs it",
     "list the ids of chunks on its subject"),
    ("q,,,near_miss,a-1", "about", "no chunk 'a-1' in the corpus", "the nearest is 'a-01'"),
    ("q,,takes six packets,near_miss,a-01", "evidence",
     "a question of type near_miss can't have this field",
     "delete it, or give the question another type"),
    (",six,takes six packets,,", "question", "missing, expected text of 1 to 1000 characters", ""),
])
def test_a_mistake_in_a_simple_row_is_one_sentence_with_its_mend(tmp_path, row, where, what, mend):
    table = f"question,answer,evidence_quote,type,about\n{row}\n"
    [(place, problem)] = faults(tmp_path, table=table).items()
    assert (place, problem.what, problem.mend) == (f"q.csv, row 2, {where}", what, mend)


def test_hints_for_named_chunks(tmp_path):
    rows = [{**ROW, "question_id": name, "evidence": [{"chunk_id": chunk_id, "quote": quote}]}
            for name, chunk_id, quote in (
                ("a", "b-01", "six packets"), ("b", "a-01", "a BED takes"),
                ("c", "a_01", "six packets"))]
    assert [problem.mend for problem in faults(tmp_path, *rows).values()] == [
        "it stands in a-01", "the nearest passage, in a-01, is 'A bed takes'",
        "the nearest is 'a-01'"]


def test_two_pieces_of_evidence_are_marked_each_where_it_stands():
    text = ("Nobody knew. It was first held in 1966 [4], says Dr. King. "
            "Seven candles burn. They are lit.")
    chunks = {"c": chunk("c", text)}

    def answer(*quotes):
        evidence = [{"chunk_id": "c", "quote": quote} for quote in quotes]
        return complete_question({"answer": "x", "evidence": evidence}, "a", chunks, [])["answer"]

    assert answer("first held") == "It was first held in 1966, says Dr. King. [1]"
    assert answer("was first", "in 1966") == "It was first held in 1966, says Dr. King. [1][2]"
    assert answer("first held", "candles burn. They") == (
        "It was first held in 1966, says Dr. King. [1] Seven candles burn. [2] They are lit. [2]")
    assert answer("never held") == "x"  # the quote is reported, the answer stays


def test_a_row_with_marks_or_groups_stays_as_it_is():
    row = {"question_id": "q", "answer": "Six packets [1].", "groups": [["six"]],
           "evidence": [{"chunk_id": "fj", "quote": "It was"}]}
    assert complete_question(row, "a", CHUNKS, []) == row
    given = {**row, "answer": "six", "aliases": []}
    assert complete_question(given, "a", CHUNKS, [])["groups"] == [["six"]]
    marked = {name: value for name, value in row.items() if name != "groups"}
    assert complete_question({**marked, "aliases": ["six"]}, "a", CHUNKS, [])["groups"] == [["six"]]


SENTENCES = st.lists(st.sampled_from([
    "It rained.", "Dr. King spoke in 1963!", "Was it so?", "“It is,” he said.", "It is $3 [2].",
    "- An item. It goes on.", "| a | b |", "# A heading", "3. third", "ማን ነበረች። እሷ ነበረች።",
    "A line\nbroken in two.", "No end", "W. E. B. Du Bois wrote, e.g., there."]),
    min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(SENTENCES, st.sampled_from([" ", "\n", "\n\n"]), st.integers(0, 60), st.integers(1, 60),
       st.sampled_from(["", "It came to him in a dream, and nobody else saw it. No one!"]))
def test_whatever_is_quoted_a_simple_row_becomes_a_good_question(parts, between, start, size, own):
    source = chunk("c", between.join(parts))
    quote = source.text[start:start + size].strip()
    words = [word for word in quote.split() if any(map(str.isalpha, word))]
    if not words:
        return
    problems = []
    row = {"question": "What?", "answer": own or words[0], "evidence_quote": quote}
    values = complete_question(row, "a", {"c": source}, problems)
    found = check_question(Question.model_validate(values), {"c": source})
    assert problems == [] and {code for *_, code in found} <= (
        set() if own else {"group_not_in_answer"})


# ---- the project's own questions

@pytest.fixture(scope="module")
def project():
    return load_corpus(ROOT / "data" / "corpus", ROOT / "data" / "questions")


def test_the_project_has_questions_of_every_type(project):
    _, questions = project
    assert len(questions) >= 1200
    assert {one.type for one in questions} == {*ANSWERED, *UNANSWERED, "ambiguous"}
    assert sum(bool(one.typed) for one in questions) >= 0.1 * len(questions)


def test_every_question_is_settled_by_its_own_passages_and_its_parts_by_theirs(project):
    chunks, questions = project
    for one in questions:
        reply = reply_to(one, [chunks[name] for name in one.chunk_ids])
        assert reply == {"ambiguous": "clarification", "conflict": "conflict",
                         "premise": "premise"}.get(one.type, "refused" if one.about else "complete")
        assert one.missing and (one.type == "conflict") <= (len(one.parts) == 2), one.question_id


def test_hardly_any_phrase_of_a_refusal_names_all_that_an_answer_needs(project):
    "A few name words of the question that are words of the answer, such as of a yes-no question."
    told = [one.question_id for one in project[1] if one.groups and all(
        holds(one.missing, wordings) for wordings in one.groups)]
    assert len(told) < 0.01 * len(project[1]), told
