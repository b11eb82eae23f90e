"Paragraphs from the printed lines of a PDF."

import random

import pytest

from kwanzaa_nb.core.jsonl import LONGEST_PARAGRAPH
from kwanzaa_nb.data.pdf import (drop_running_lines, join_pages, join_words, split_paragraphs,
                                 text_of_pages)

FULL = "A line of text that was filled to the margin, and that goes on in the"


def kept(*pages):
    return drop_running_lines([page.split("\n") for page in pages])


def with_body(head, foot=""):
    "Five pages, each with its own text between a head and a foot, of which # is the page's number."
    return ["\n".join(filter(None, [head.replace("#", str(number)), f"Text of {'ABCDE'[number - 7]}.",
                                    "The middle.", f"End of {'ABCDE'[number - 7]}.",
                                    foot.replace("#", str(number))])) for number in range(7, 12)]


@pytest.mark.parametrize("head, foot", [
    ("The garden", ""), ("", "#"), ("The garden", "#"), ("Chapter 4: Tools #", ""),
    ("# The garden", ""), ("Page # of 17", "The garden"), ("", "– # –"), ("Annual report 1998 #", "")])
def test_running_heads_and_page_numbers_are_left_out(head, foot):
    assert all(page[0].startswith("Text ") and page[-1].startswith("End ")
               for page in kept(*with_body(head, foot)))


@pytest.mark.parametrize("lines", [
    ["1974", "1975", "1976", "1977"], ["In 1974", "In 1975", "In 1976"],
    ["Day 1", "Day 2", "Day 3", "Day 4"], ["Day 1 of seven", "Day 2 of seven", "Day 3 of seven"],
    ["3 plots", "1 shed", "2 keys"], ["12", "40", "11", "7"], ["The shed", "The gate", "The shed"]])
def test_what_only_looks_like_a_running_line_stays(lines):
    pages = [f"{line}\nText of {place}." for place, line in enumerate("abcd"[:len(lines)])
             for line in [lines["abcd".index(line)]]]
    assert [page[0] for page in kept(*pages)] == lines


def test_a_line_in_the_middle_of_a_page_is_never_a_running_one():
    page = "One.\nTwo.\nRefrain\nThree.\nFour."
    assert all("Refrain" in one for one in kept(*[page.replace("One", word) for word in "ABCDE"]))


def test_two_pages_decide_nothing():
    assert kept("The garden\nText.", "The garden\nMore.")[1][0] == "The garden"


@pytest.mark.parametrize("text, expected", [
    ("commu-\nnity, a community", "community, a community"),
    ("twenty-\nfour keys", "twenty-four keys"),
    ("a well-\nknown baker is well-known", "a well-known baker is well-known"),
    ("Commu-\nnity and community", "Community and community"),
    ("from 1966-\n1971", "from 1966-\n1971"), ("a dash -\nhere", "a dash -\nhere"),
    ("the ofﬁce of the baﬄed ﬂorist", "the office of the baffled florist"),
    ("ga\N{SOFT HYPHEN}\nrden", "garden"), ("ga\N{SOFT HYPHEN}rden", "garden")])
def test_words_are_joined_as_the_document_shows_them(text, expected):
    assert join_words(text) == expected


@pytest.mark.parametrize("lines, expected", [
    (["Rules", FULL, "garden."], f"Rules\n\n{FULL}\ngarden."),
    ([FULL, "garden.", "Tools", FULL, "shed."], f"{FULL}\ngarden.\n\nTools\n\n{FULL}\nshed."),
    ([FULL, "garden of", "Weeksville."], f"{FULL}\ngarden of\nWeeksville."),  # within a sentence
    (["It was built by", "Weeksville's people.", FULL], f"It was built by\nWeeksville's people.\n\n{FULL}"),
    (["Short, and", "goes on.", FULL], f"Short, and\ngoes on.\n\n{FULL}"),
    ([FULL, "garden.", "Year Plots", "1974 11", FULL, "shed."],
     f"{FULL}\ngarden.\n\nYear Plots\n\n1974 11\n\n{FULL}\nshed."),
    ([], ""), (["  "], "")])
def test_short_lines_show_where_paragraphs_end(lines, expected):
    assert split_paragraphs(lines) == expected


def test_a_sentence_goes_on_over_pages_but_no_paragraph_grows_without_end():
    assert join_pages(["One", "two.", " ", "Three."]) == "One\ntwo.\n\nThree."
    text = join_pages(["word " * 900] * 30)
    assert max(map(len, text.split("\n\n"))) < LONGEST_PARAGRAPH
    assert text.split() == ["word"] * 27_000


def test_a_running_head_does_not_part_a_sentence_at_the_end_of_a_page():
    lines = [f"{FULL} {word}" for word in ("spring", "summer", "autumn", "winter")]
    pages = [f"The garden\n{line}\n{number}" for number, line in enumerate([*lines, "year 1974."], start=1)]
    assert text_of_pages(pages) == "\n".join([*lines, "year 1974."])


@pytest.mark.parametrize("seed", range(30))
def test_no_word_is_lost_but_for_running_lines(seed):
    chance = random.Random(seed)
    words = ["the", "Garden", "1974", "shed.", "twenty-", "four", "of", "Mill", "Street,", "12"]
    pages = ["\n".join(" ".join(chance.choices(words, k=chance.randint(1, 12)))
                       for _ in range(chance.randint(0, 12))) for _ in range(chance.randint(0, 2))]
    given = "".join("".join(pages).split()).replace("-", "")
    assert "".join(text_of_pages(pages).split()).replace("-", "") == given
