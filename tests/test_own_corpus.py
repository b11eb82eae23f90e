"Your own corpus: tables, texts, column names, and every fault with its place."

import csv
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_corpus import CHUNK, MISS, QUESTION

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.jsonl import DataError, MissingFile
from kwanzaa_nb.core.prompt import PromptError, system_prompt
from kwanzaa_nb.data.build import generate_records, with_system_prompt
from kwanzaa_nb.data.corpus import Chunk, CorpusOptions, corpus_options, slug
from kwanzaa_nb.data.documents import split_front_matter, split_text
from kwanzaa_nb.data.questions import load_corpus
from kwanzaa_nb.data.retrieval import Retriever
from kwanzaa_nb.data.tables import read_csv

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = {"source_org": "An archive", "year": 1966, "license": "CC0-1.0", "namespace": "mine",
            "canonical_url": "https://example.org/", "content_type": "summary"}
OPTIONS = CorpusOptions(defaults=DEFAULTS)
FLAT = {"question_id": "q-1", "question": "When?", "answer": "1966", "aliases": "in 1966|’66",
        "evidence_chunk_id": "c-1", "evidence_quote": "first held in 1966"}
HELD = "It was first held in 1966."
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[
    HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_csv(*rows):
    "Rows as CSV text; lists become a|b."
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "|".join(value) if isinstance(value, list) else value
                         for name, value in row.items()})
    return text.getvalue()


def as_jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_parquet(path, *rows):
    from datasets import Dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(name for row in rows for name in row)
    table = [{name: row.get(name) for name in names} for row in rows]
    Dataset.from_list(table).to_parquet(str(path))
    return path


def load(tmp_path, corpus=None, questions=None, options=OPTIONS):
    "Load two mappings from file name to content."
    for folder, files in (("corpus", corpus or {"a.jsonl": as_jsonl(CHUNK)}),
                          ("questions", questions or {"q.csv": as_csv(FLAT)})):
        for name, content in files.items():
            put(tmp_path / folder / name, content)
    return load_corpus(tmp_path / "corpus", tmp_path / "questions", options)


def faults(tmp_path, **files):
    "Load what cannot be used; return the problems by place."
    with pytest.raises(DataError) as error:
        load(tmp_path, **files)
    return {problem.where: problem for problem in error.value.problems}


def codes(found):
    return {where: problem.code for where, problem in found.items()}


# ---- tables

def test_a_csv_is_read_like_jsonl(tmp_path):
    chunks, questions = load(tmp_path, {"a.csv": as_csv(CHUNK)},
                             {"q.csv": as_csv(FLAT, {**MISS, "answer": ""})})
    assert chunks == {"c-1": Chunk.model_validate(CHUNK)}
    assert questions[0].groups == (("1966", "in 1966", "’66"),)
    assert questions[0].answer == "1966. [1]"
    assert (questions[1].answer, questions[1].type, questions[1].about) == (
        None, "near_miss", ("c-1",))


def test_a_parquet_file_is_read_like_jsonl(tmp_path):
    as_parquet(tmp_path / "corpus" / "a.parquet", CHUNK)
    as_parquet(tmp_path / "questions" / "q.parquet", QUESTION, MISS)
    chunks, questions = load_corpus(tmp_path / "corpus", tmp_path / "questions")
    assert chunks == {"c-1": Chunk.model_validate(CHUNK)}
    assert [question.question_id for question in questions] == ["q-1", "q-2"]
    flat = as_parquet(tmp_path / "flat.parquet", {**FLAT, "typed": None})
    [question] = load_corpus(tmp_path / "corpus" / "a.parquet", flat)[1]
    assert question.groups == (("1966", "in 1966", "’66"),)


def test_a_folder_with_subfolders_of_several_tables(tmp_path):
    two, three = ({**CHUNK, "chunk_id": f"c-{place}", "text": f"Text {place}."} for place in (2, 3))
    as_parquet(tmp_path / "corpus" / "deep" / "c.parquet", three)
    chunks, _ = load(tmp_path, {"a.jsonl": as_jsonl(CHUNK), "b.CSV": as_csv(two),
                                ".hidden/x.pdf": b"", "deep/.DS_Store": b"\0"})
    assert sorted(chunks) == ["c-1", "c-2", "c-3"]


def test_cells_stay_as_they_are_written(tmp_path):
    problems = []
    content = b'\xef\xbb\xbfa,b\r\n007,NA\r"two ""words"",\r\nlines",\n\n  \nNone,1e3\n'
    assert read_csv(put(tmp_path / "a.csv", content), "a.csv", problems) == [
        (2, {"a": "007", "b": "NA"}), (3, {"a": 'two "words",\nlines', "b": ""}),
        (6, {"a": "None", "b": "1e3"})]
    assert problems == []


@pytest.mark.parametrize("content, where, code", [
    ("", "a.csv", "empty_file"), ("a,b\n", "a.csv", "empty_file"),
    ("a;b\n1;2\n", "a.csv, row 1", "bad_separator"), ("a,a\n1,2\n", "a.csv, row 1", "bad_column"),
    ("a,\n1,2\n", "a.csv, row 1", "bad_column"), ("a,b\n1,2\n1\n", "a.csv, row 3", "ragged_row"),
    ("a,b\n1,2,3\n", "a.csv, row 2", "ragged_row"),
    ('a,b\n1,2\n3,"x\ny\n', "a.csv, row 3 (up to line 4)", "bad_csv"),
    ('a,b\n1,"x"y\n', "a.csv, row 2 (up to line 2)", "bad_csv"),
    (b"a,b\n1,\xe9\n2,\xe8\n", "a.csv, line 2", "not_utf8"),
    ("a,b\n1,2\n".encode("utf-16"), "a.csv", "not_utf8"),
])
def test_a_csv_that_is_none(tmp_path, content, where, code):
    problems = []
    assert len(read_csv(put(tmp_path / "a.csv", content), "a.csv", problems)) <= 1
    assert (problems[0].where, problems[0].code) == (where, code) and problems[0].mend


def test_a_parquet_file_that_is_none(tmp_path):
    found = faults(tmp_path, corpus={"a.parquet": b"PAR1 no", "b.parquet": b"",
                                     "c.jsonl": as_jsonl(CHUNK)})
    assert codes(found) == {"a.parquet": "bad_table", "b.parquet": "empty_file"}


def test_columns_are_told_once_a_file(tmp_path):
    rows = [{"chunk_id": f"c-{place}", "label": "A", "txt": HELD} for place in range(3)]
    found = faults(tmp_path, corpus={"a.csv": as_csv(*rows)})
    fields = ("label", "txt", "doc_id", "citation_label", "text")
    assert {where for where in found if where.startswith("a.csv")} == {
        f"a.csv, {name}" for name in fields}
    assert found["a.csv, text"].mend == "the nearest is 'txt'"


def test_a_blank_cell_names_its_row_and_field(tmp_path):
    blank = {**CHUNK, "chunk_id": "c-2", "text": " ", "year": "long ago"}
    found = faults(tmp_path, corpus={"a.csv": as_csv(CHUNK, blank)}, questions={
        "q.csv": as_csv(FLAT, {**FLAT, "question_id": "", "question": ""})})
    assert codes(found) == {"a.csv, row 3, year": "int_type", "a.csv, row 3, text": "missing",
                            "q.csv, row 3, question": "missing"}
    assert found["a.csv, row 3, year"].what == (
        "found 'long ago', expected a whole number from 1600 to 2100")


# ---- names and defaults

def test_your_names_and_our_defaults(tmp_path):
    names = {"chunk_id": "uid", "doc_id": "uid", "citation_label": "title", "text": "body",
             "question": "ask"}
    options = CorpusOptions(names, DEFAULTS, ("notes", "text"))
    own = {"uid": "c-1", "title": "A", "body": CHUNK["text"], "year": "", "notes": "x",
           "text": "left out"}
    asked = {"ask" if name == "question" else name: value for name, value in FLAT.items()}
    for content in ({"a.csv": as_csv(own)}, {"a.jsonl": as_jsonl({**own, "year": None})}):
        folder = tmp_path / next(iter(content))
        chunks, questions = load(folder, content, {"q.csv": as_csv(asked)}, options)
        assert (chunks["c-1"].text, chunks["c-1"].year) == (CHUNK["text"], 1966)
        assert questions[0].question == "When?"


def test_a_column_that_is_mapped_away_is_told(tmp_path):
    options = CorpusOptions({"text": "body", "question": "ask"}, DEFAULTS)
    rows = as_jsonl({**CHUNK, "body": CHUNK["text"]})
    found = faults(tmp_path, corpus={"a.jsonl": rows}, options=options)
    assert "data.fields reads text from 'body'" in found["a.jsonl, line 1, text"].mend
    assert "no column 'ask'" in found["q.csv, question"].what


def test_a_default_that_is_missing_is_named(tmp_path):
    rows = as_jsonl({name: value for name, value in CHUNK.items() if name not in DEFAULTS})
    found = faults(tmp_path, corpus={"a.jsonl": rows}, options=CorpusOptions())
    assert found["a.jsonl, line 1, license"].mend == (
        "give it in the file, or as data.defaults.license")
    assert load(tmp_path / "again", {"a.jsonl": rows})[0]["c-1"].license == "CC0-1.0"


def data_section(**changes):
    return load_config(ROOT / "configs" / "demo.cpu.yaml",
                       {f"data.{name}": value for name, value in changes.items()}).data


def test_a_config_becomes_options():
    options = corpus_options(data_section(defaults={"year": 2001}, fields={"text": "body"}))
    assert options.defaults == {"year": 2001} and options.fields == {"text": "body"}
    assert options.max_chunk_words == 400 and 40 <= options.chunk_words <= 180


def test_the_system_message_is_the_projects_or_ones_own():
    messages = [{"role": "system", "content": system_prompt()}, {"role": "user", "content": "Who?"}]
    record = {"persona": "educator", "mode": "base_adapter_rag", "messages": messages}
    assert with_system_prompt(record, data_section().system_prompt) == record
    own = data_section(system_prompt="You teach {persona}. {schema}").system_prompt
    first, *rest = with_system_prompt(record, own)["messages"]
    assert first["content"].startswith("You teach ") and '{"evidence"' in first["content"]
    assert "{persona}" not in first["content"] and rest == messages[1:]
    with pytest.raises(PromptError):
        with_system_prompt({**record, "mode": "none"}, own)


# ---- texts

def test_texts_become_chunks(tmp_path):
    front = ("---\ntitle: A house\nyear: 1959\nsource: A library\n"
             "url: https://example.org/b\ntags: [a, b]\n---\n")
    texts = {"Böll, H.md": f"{front}One.\n\n## Two\n\nThree.",
             "sub/文.txt": "# no heading here\r\nIt was first\rheld in 1966."}
    chunks, questions = load(tmp_path, texts, {"q.csv": as_csv({**FLAT, "evidence_chunk_id": ""})})
    first, second, third = chunks.values()
    assert (first.chunk_id, first.doc_id, first.citation_label, first.text) == (
        "Boll-H-01", "Boll-H", "A house", "One.")
    assert (second.chunk_id, second.citation_label, second.text) == (
        "Boll-H-02", "A house: Two", "## Two\n\nThree.")
    assert (second.year, second.source_org, second.canonical_url, second.tags) == (
        1959, "A library", "https://example.org/b", ("a", "b"))
    assert re.fullmatch("sub-[0-9a-f]{8}-01", third.chunk_id)
    assert (third.year, third.citation_label) == (1966, "文")
    assert third.text == "# no heading here\nIt was first\nheld in 1966."
    assert questions[0].chunk_ids == (third.chunk_id,)


@pytest.mark.parametrize("content, where, code", [
    ("", "a.md", "empty_file"), (" \n\n", "a.md", "empty_file"),
    ("---\nyear: 1966\n---\n", "a.md", "empty_file"),
    (b"One.\nTwo \xe9.\n", "a.md, line 2", "not_utf8"),
    ("One.".encode("utf-16"), "a.md", "not_utf8"),
    ("---\nyear: 1966\ntitle: a: b\n---\nOne.", "a.md, line 3", "bad_front_matter"),
    ("---\njust text\n---\nOne.", "a.md, line 1", "bad_front_matter"),
    ("---\nlayout: post\n---\nOne.", "a.md, front matter, 'layout'", "extra_forbidden"),
    ("---\nyear: 1966-05-01\n---\nOne.", "a.md, line 4, year", "int_type"),
    ("One.\n\nA bell \x07 rings.", "a.md, line 1, text", "control_character"),
    ("A letter \ufffd is lost.", "a.md, line 1, text", "control_character"),
    ("---\nyear: 1966\n---\nOne.\n\n" + "A sentence. " * 2000, "a.md, line 6", "huge_line"),
    ("One.\n\n# Long\n\n" + "word " * 401, "a.md, line 3, text", "long_chunk"),
])
def test_a_text_that_cannot_be_used(tmp_path, content, where, code):
    questions = {"q.csv": as_csv({**FLAT, "evidence_chunk_id": "b-01"})}
    found = faults(tmp_path, corpus={"a.md": content, "b.txt": HELD}, questions=questions)
    assert codes(found) == {where: code}


def test_a_text_stays_as_its_author_wrote_it(tmp_path):
    text = ("# Candles\n\nIt was first held\nin 1966. Seven candles burn. Dr. King\nwas not there."
            "\n\n- One item. It goes on.\n- Another [3].")
    rows = {  # short answer: quote, quote as it stands, answer with its mark
        "seven": ("Seven candles burn. Dr. King was not there.",
                  "Seven candles burn. Dr. King\nwas not there.", "Seven. [1]"),
        "1966": ("held in  1966.\nSeven", "held\nin 1966. Seven", "1966. [1]"),
        "goes on": ("It goes on.", "It goes on.", "Goes on. [1]"),
        "Another": ("Another", "Another", "Another. [1]")}
    table = as_csv(*({"question": f"{answer}?", "answer": answer, "evidence_quote": quote}
                     for answer, (quote, *_) in rows.items()))
    chunks, questions = load(tmp_path, {"a.md": text}, {"q.csv": table})
    assert chunks["a-01"].text == text
    assert [(question.evidence[0].quote, question.answer) for question in questions] == [
        (quote, answer) for _, quote, answer in rows.values()]
    assert all(question.evidence[0].chunk_id == "a-01" for question in questions)


def test_front_matter_needs_two_lines():
    for text in ("One.\n---\nTwo.", "--- x\na: 1\n---\n", "---\nno end"):
        problems = []
        assert split_front_matter(text, "a.md", problems) == ({}, text, 1) and not problems


def test_files_that_cannot_be_read_are_told(tmp_path):
    found = faults(
        tmp_path, corpus={"a.jsonl": as_jsonl(CHUNK), "b.xlsx": b"PK", "c.txt": "One."},
        questions={"q.csv": as_csv(FLAT), "q.txt": "Why?"})
    assert codes(found) == {"b.xlsx": "unknown_format", "corpus": "mixed_folder",
                            "q.txt": "unknown_format"}
    with pytest.raises(MissingFile, match="corpus and .*questions are not there"):
        load_corpus(tmp_path / "x" / "corpus", tmp_path / "x" / "questions")
    with pytest.raises(DataError, match="notes.xls: a file that can't be read"):
        load_corpus(put(tmp_path / "notes.xls", b""), tmp_path / "questions" / "q.csv")


def test_links_to_folders_and_to_nothing_are_told(tmp_path):
    elsewhere, corpus = tmp_path / "elsewhere", tmp_path / "corpus"
    put(elsewhere / "more.txt", HELD)
    put(corpus / "deep" / "one.txt", HELD)
    (corpus / "one.txt").symlink_to(elsewhere / "more.txt")  # read like any file
    (corpus / "deep" / "more").symlink_to(elsewhere)
    (corpus / "round").symlink_to(corpus)
    (corpus / "self").symlink_to("self")
    (corpus / ".hidden").symlink_to(elsewhere)
    with pytest.raises(DataError) as error:
        load_corpus(corpus, None)
    assert {one.where: one.code for one in error.value.problems if one.code.endswith("link")
            or one.code == "linked_folder"} == {
        "deep/more": "linked_folder", "round": "linked_folder", "self": "broken_link"}
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "more").symlink_to(elsewhere)
    with pytest.raises(DataError, match="more: a link to a folder, which is not followed"):
        load_corpus(tmp_path / "links", None)


def test_a_file_too_large_to_be_read_at_once_is_told_unread(tmp_path):
    with put(tmp_path / "corpus" / "b.txt", "").open("wb") as file:
        file.truncate(25_000_000)
    questions = {"q.csv": as_csv({**FLAT, "evidence_chunk_id": "a-01"})}
    [(where, problem)] = faults(tmp_path, corpus={"a.txt": HELD}, questions=questions).items()
    assert (where, problem.what) == ("b.txt", "25 MB, expected at most 20 MB")
    assert (problem.mend, problem.code) == ("split it into documents", "too_large")


def test_ids_are_made_of_names():
    assert slug("a b/c_d.e") == "a-b-c_d.e" and slug("Zoë’s – notes") == "Zoes-notes"
    assert re.fullmatch(r"text-[0-9a-f]{8}", slug("文")) and slug("文") != slug("字")
    other = [slug("Протокол.md"), slug("Отчёт.md"), slug("Протокол 2020.md"), slug("2020 Отчёт.md")]
    assert len(set(other)) == 4 and all(re.fullmatch(r"[A-Za-z0-9._-]+", one) for one in other)
    assert len(slug("я" + "a" * 300)) <= 150


def test_two_files_with_one_id(tmp_path):
    found = faults(tmp_path, corpus={"a b.md": HELD, "a-b.md": "One."}, questions={
        "q.csv": as_csv({**FLAT, "evidence_chunk_id": "a-b-01"})})
    assert codes(found) == {"a-b.md, line 1": "duplicate_id"}


def test_headings_begin_chunks_and_paragraphs_are_kept():
    text = ("Lead.\n\n# A\n\n## B\n\nOne two. Three four.\n\nFive six seven.\n\nC\n===\n- x\n- y"
            "\n\n```\n# code\n\nmore\n```\n# D")
    assert [(piece.line, piece.heading, piece.text) for piece in split_text(text, 8)] == [
        (1, "", "Lead."), (3, "B", "# A\n\n## B\n\nOne two. Three four."),
        (9, "B", "Five six seven."), (11, "C", "C\n===\n- x\n- y"),
        (16, "C", "```\n# code\n\nmore\n```"), (21, "D", "# D")]


@pytest.mark.parametrize("text, headings", [
    ("1. Candles\n=====\nThey burn.", ["1. Candles"]),
    ("Lead.\n\n 2) Red\n---\nA.", ["", "2) Red"]),
    ("1. red\n2. green\n---\nThey burn.", [""]), ("- red\n=====\nThey burn.", [""]),
    ("1.\n---\nThey burn.", [""])])
def test_a_number_before_a_line_with_a_rule_below_makes_no_item_of_it(text, headings):
    assert [piece.heading for piece in split_text(text, 8)] == headings


def test_a_long_paragraph_is_parted_between_sentences():
    sentences = ["Dr. King spoke in 1963.", "He wrote letters, too.",
                 "This sentence alone is longer than the limit is.", "End."]
    pieces = split_text("{} {}\n{} {}".format(*sentences), 6)
    assert [piece.text for piece in pieces] == sentences
    assert [piece.line for piece in pieces] == [1, 1, 2, 2]


LINE = st.one_of(
    st.sampled_from([
        "", "", "# A", "## B c ##", "===", "---", "```", "~~~", "- item one. Two", "> said",
        "1. first", "| a | b |", "He came. She left",
        "Dr. Du Bois wrote. “It is so!” he said. Then",
        "U.S. law of 1863 [1]. No", "#", "a\rb\r\nc"]),
    st.text(st.characters(codec="utf-8"), max_size=30),
    st.text("ab. !?#-`\n\"“”[1]…", max_size=40))


@FUZZ
@given(st.lists(LINE, max_size=12).map("\n".join), st.integers(1, 12), st.booleans())
def test_no_word_is_lost_and_no_limit_broken(text, most, markdown):
    pieces = split_text(text, most, markdown)
    text, place = text.replace("\r\n", "\n").replace("\r", "\n"), 0
    for piece in pieces:
        found = text.index(piece.text, place)
        assert not text[place:found].strip() and piece.text.strip() == piece.text
        assert piece.line == text.count("\n", 0, found) + 1
        place = found + len(piece.text)
        has_heading = piece.heading and piece.heading in piece.text
        if len(piece.text.split()) > most and not has_heading \
                and not re.search("```|~~~|[\"“”]", text):
            assert len(split_text(piece.text, 1, markdown=False)) == 1
    assert not text[place:].strip()


@FUZZ
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), max_size=8),
       st.integers(9, 30))
def test_paragraphs_are_packed_within_the_limit(paragraphs, most):
    text = "\n\n".join(" ".join(" ".join(["Word"] * size) + "." for size in sizes)
                       for sizes in paragraphs)
    pieces = split_text(text, most)
    assert all(len(piece.text.split()) <= most and piece.text.endswith(".") for piece in pieces)
    assert " ".join(piece.text for piece in pieces).split() == text.split()


FRONT = st.lists(LINE, max_size=8).map(
    lambda lines: "\n".join(["---", "year: 1966", "---", *lines]).encode())


@FUZZ
@given(st.binary(max_size=80) | FRONT)
def test_whatever_a_text_holds_chunks_or_a_sentence(tmp_path, content):
    put(tmp_path / "corpus" / "a.md", content)
    put(tmp_path / "corpus" / "b.md", HELD)
    evidence = [{"chunk_id": "b-01", "quote": "first held in 1966"}]
    questions = put(tmp_path / "q.jsonl", as_jsonl({**QUESTION, "evidence": evidence}))
    try:
        assert "b-01" in load_corpus(tmp_path / "corpus", questions, OPTIONS)[0]
    except DataError as error:
        assert all(problem.where.startswith("a.md") for problem in error.problems), error


@settings(FUZZ, max_examples=40)
@given(st.binary(max_size=60) | st.text('ab,"\n\r ;\t|', max_size=40).map(
    lambda text: f"chunk_id,text\n{text}".encode()))
def test_whatever_a_csv_holds_rows_or_a_sentence(tmp_path, content):
    problems = []
    rows = read_csv(put(tmp_path / "a.csv", content), "a.csv", problems)
    assert all(problem.where.startswith("a.csv") for problem in problems)
    if not problems:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        written = [[cell for cell in cells if cell.strip()]
                   for cells in csv.reader(io.StringIO(text, newline=""))]
        assert [[cell for cell in row.values() if cell.strip()] for _, row in rows] == \
            [cells for cells in written if cells][1:]


# ---- lines

def test_line_ends_may_be_mixed(tmp_path):
    rows = [json.dumps({**CHUNK, "chunk_id": f"c-{place}"}).encode() for place in range(1, 5)]
    content = rows[0] + b"\n" + rows[1] + b"\r\n" + rows[2] + b"\r" + rows[3]
    questions = {"q.csv": as_csv(FLAT).replace("\r\n", "\r")}
    assert len(load(tmp_path, {"a.jsonl": content}, questions)[0]) == 4


def test_control_characters_are_told_with_their_field(tmp_path):
    evidence = [{"chunk_id": "c-1", "quote": "first held in 1966\x1b"}]
    question = {**QUESTION, "evidence": evidence, "topic": "tab\tand\nline are fine"}
    found = faults(
        tmp_path, questions={"q.jsonl": as_jsonl(question)},
        corpus={"a.jsonl": as_jsonl(CHUNK, {**CHUNK, "chunk_id": "c-2", "text": "a\x85b"})})
    assert codes(found) == {"a.jsonl, line 2, text": "control_character",
                            "q.jsonl, line 1, evidence": "control_character"}
    assert found["a.jsonl, line 2, text"].what == "a control character, U+0085 at character 2"


def test_all_problems_of_all_files_come_at_once(tmp_path):
    corpus = {"a.jsonl": as_jsonl(CHUNK) + "{half", "b.csv": as_csv({**CHUNK, "chunk_id": "c 2"}),
              "c.csv": b"\xff,b\n1,2\n", "d.parquet": b"no"}
    questions = as_csv(FLAT, {**FLAT, "question_id": "q-2", "persona": "poet"})
    assert codes(faults(tmp_path, corpus=corpus, questions={"q.csv": questions})) == {
        "a.jsonl, line 2": "bad_json", "b.csv, row 2, chunk_id": "string_pattern_mismatch",
        "c.csv, line 1": "not_utf8", "d.parquet": "bad_table",
        "q.csv, row 3, persona": "literal_error"}


def test_a_bad_chunk_does_not_make_its_questions_bad(tmp_path):
    rows = as_jsonl({**CHUNK, "year": "x"}, {**CHUNK, "chunk_id": "c-2"})
    found = faults(tmp_path, corpus={"a.jsonl": rows})
    assert codes(found) == {"a.jsonl, line 1, year": "int_type"}


# ---- from a table to records

def test_a_corpus_with_nothing_but_simple_questions_becomes_records(tmp_path):
    names = ("okra corn beans squash yams peas rice greens millet melons peanuts sorghum peppers "
             "onions garlic beets kale lettuce cabbage carrots turnips potatoes radishes").split()
    texts = {f"{name}.txt": f"A bed of {name} takes {place + 3} packets of seed. It is large."
             for place, name in enumerate(names)}
    rows = [{"question": f"How many packets do {name} take?", "answer": f"{place + 3} packets",
             "evidence_quote": f"{name} takes {place + 3} packets"}
            for place, name in enumerate(names)]
    chunks, questions = load(tmp_path, texts, {"q.csv": as_csv(*rows)})
    assert questions[0].answer == "3 packets. [1]"
    records = list(generate_records(chunks, questions))
    assert {split for split, _ in records} == {"train", "dev", "eval", "sealed"}
    assert {record["answerable"] for _, record in records} == {True, False}
    assert {record["category"] for _, record in records} >= {"citation_required", "refusal"}


# ---- retrieval

def chunks_of(*texts):
    return [Chunk.model_validate({**CHUNK, "chunk_id": f"c-{place}", "text": text})
            for place, text in enumerate(texts)]


def test_a_retriever_ranks_its_chunks():
    chunks = chunks_of("x x word", "y y", "nothing")
    retriever = Retriever(chunks)
    ranked = retriever.search(query="xx word", count=2)
    assert retriever.chunks == chunks and ranked[0][0] is chunks[0] and len(ranked) == 2
    assert [chunk.chunk_id for chunk, _ in retriever.search("", 5)] == ["c-0", "c-1", "c-2"]
    assert retriever.search("x", 0) == []
