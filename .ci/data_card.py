"""Count corpus, questions and records, and write the tables of the data card: run it after every change of the data."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
SPLITS = ("train", "dev", "eval", "sealed")
BLOCK = re.compile(r"(?P<start><!-- counts: (?P<name>\w+) -->\n)(?P<table>.*?)(?P<end><!-- end of counts -->)", re.DOTALL)
HARD = ("near_miss", "wrong_person", "wrong_year", "no_quote", "too_far")


def rows(paths: Iterable[Path]) -> list[dict]:
    """Read the lines of some JSONL files."""
    return [json.loads(line) for path in sorted(paths) for line in path.read_text(encoding="utf-8").splitlines()]


def table(headings: list[str], lines: Iterable[list]) -> str:
    """Write a Markdown table."""
    cells = [headings, ["---"] * len(headings), *lines]
    return "".join(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in line)} |\n" for line in cells)


def counted(names: Iterable[str], columns: list[dict]) -> list[list]:
    """Make a line a name, with its count in each column, the most frequent in the last column first."""
    return [[f"`{name}`", *(column[name] for column in columns)]
            for name in sorted(names, key=lambda name: (-columns[-1][name], name))]


def corpus_table(chunks: list[dict], questions: list[dict]) -> str:
    """Count documents, passages and questions of each namespace; a question belongs to its first passage."""
    space = {chunk["chunk_id"]: chunk["namespace"] for chunk in chunks}
    documents = defaultdict(set)
    for chunk in chunks:
        documents[chunk["namespace"]].add(chunk["doc_id"])
    asked = Counter(space[first_passage(question)] for question in questions)
    passages = Counter(space.values())
    lines = [[f"`{name}`", len(documents[name]), passages[name], asked[name]] for name in sorted(documents)]
    every = len({chunk["doc_id"] for chunk in chunks})
    return table(["namespace", "documents", "passages", "questions"], [*lines, ["all", every, len(chunks), len(questions)]])


def first_passage(question: dict) -> str:
    """Name the first passage that a question rests on or is about."""
    return question["evidence"][0]["chunk_id"] if question.get("evidence") else question["about"][0]


def sizes_table(chunks: list[dict], questions: list[dict]) -> str:
    """Say how long the passages are, and how many questions have what not all have."""
    words = [len(chunk["text"].split()) for chunk in chunks]
    return table(["", "number"], [
        ["words of the shortest passage", min(words)], ["words of a passage, on average", round(sum(words) / len(words))],
        ["words of the longest passage", max(words)], ["web addresses of sources", len({chunk["canonical_url"] for chunk in chunks})],
        *([name, sum(bool(question.get(field)) for question in questions)] for name, field in (
            ("questions also written as people type them", "typed"), ("questions that follow another in a conversation", "after"),
            ("questions of which one part can be answered alone", "parts"))),
        ["questions that the corpus does not answer", sum(question["type"] in HARD for question in questions)]])


def forms_table(chunks: list[dict]) -> str:
    """Count passages by the kind of text that they are."""
    found = Counter(chunk["content_type"] for chunk in chunks)
    return table(["kind of text", "passages"], counted(found, [found]))


def types_table(chunks: list[dict], questions: list[dict]) -> str:
    """Count questions by type and namespace."""
    space, found = {chunk["chunk_id"]: chunk["namespace"] for chunk in chunks}, defaultdict(Counter)
    for question in questions:
        for column in (space[first_passage(question)], "all"):
            found[column][question["type"]] += 1
    names = [*sorted(set(space.values())), "all"]
    headings = ["type", *(name.removeprefix("kwanzaa_").replace("_", " ") for name in names)]
    return table(headings, counted(found["all"], [found[name] for name in names]))


def split_table(records: dict[str, list[dict]], questions: list[dict]) -> str:
    """Count the records of each split, by category, and what they draw on."""
    hard = {question["question_id"] for question in questions if question["type"] in HARD}
    categories = sorted({record["category"] for part in records.values() for record in part})
    lines = []
    for name, count in (
        ("records", len), *((f"`{name}`", lambda part, name=name: sum(record["category"] == name for record in part)) for name in categories),
        ("answered, wholly or in part", lambda part: sum(record["expected"]["completeness"] != "insufficient_data" for record in part)),
        ("refused or asked back", lambda part: sum(record["expected"]["completeness"] == "insufficient_data" for record in part)),
        ("hard refusals", lambda part: sum(record["question_id"] in hard for record in part)),
        ("minimal pairs", lambda part: len({record["pair_id"] for record in part if record["pair_id"]})),
        ("conversations", lambda part: sum(len(record["messages"]) > 3 for record in part)),
        ("questions", lambda part: len({record["question_id"] for record in part})),
        ("documents", lambda part: len({chunk["doc_id"] for record in part for chunk in record["chunks"]})),
        ("passages", lambda part: len({chunk["chunk_id"] for record in part for chunk in record["chunks"]})),
    ):
        lines.append([name, *(count(part) for part in records.values())])
    return table(["", *records], lines)


def kinds_table(records: dict[str, list[dict]]) -> str:
    """Count the records of each split by kind."""
    found = [Counter(record["kind"] for record in part) for part in records.values()]
    names = {name for counts in found for name in counts}
    return table(["kind", *records], [[f"`{name}`", *(counts[name] for counts in found)] for name in sorted(names)])


def tables(data: Path = DATA) -> dict[str, str]:  # by the name of their place in the card
    """Count everything that the card has tables of."""
    chunks, questions = rows((data / "corpus").glob("*.jsonl")), rows((data / "questions").glob("*.jsonl"))
    questions = [{"type": "fact", **question} for question in questions]
    records = {split: rows([data / "training" / f"kwanzaa_{split}.jsonl"]) for split in SPLITS}
    return {"namespaces": corpus_table(chunks, questions), "sizes": sizes_table(chunks, questions), "forms": forms_table(chunks),
            "types": types_table(chunks, questions), "splits": split_table(records, questions), "kinds": kinds_table(records)}


def main() -> None:
    """Write the tables into the card."""
    found, card = tables(), DATA / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(BLOCK.sub(lambda block: f"{block['start']}\n{found[block['name']]}\n{block['end']}", text), encoding="utf-8")
    print(f"{len(BLOCK.findall(text))} tables written into data/README.md")


if __name__ == "__main__":
    main()
