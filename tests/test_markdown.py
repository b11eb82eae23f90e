"Texts in Markdown are shown as they are, and add no heading, table, link or HTML."

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from huggingface_hub import ModelCard
from made_run import make_run
from markdown_it import MarkdownIt

from kwanzaa_nb.publish import dataset, staging
from kwanzaa_nb.publish.card import failures_text, render_card
from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.manifest import read_manifest
from kwanzaa_nb.core.results_file import load_results
from kwanzaa_nb.core.table import Table, as_markdown, code_span

ROOT = Path(__file__).resolve().parents[1]
READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
PIECES = ["\n", "\n\n", "\r\n", "\r", "# ", "## x", "|", "| a | b |\n|---|---|\n", "`",
          "```", "~~~\n", "*", "**", "_", "__", "[", "](", "![", ")",
          "](http://a.org)", "https://a.org", "www.a.org", "a@b.org", "<b>",
          "</details>", "<script>", "<!--", "<http://a.org>", "&amp;", "&lt;", "&#35;", "---",
          "===", "\n---\n", "\n===\n", "- ", "+ ", "1. ", "2) ", "> ", "    ", "\t", "\\",
          "\\|", "$", "$$x$$", "~~", "{#id}", "[^1]", "[a]: http://a.org", "\x00", "\x0b",
          "\x0c", "\x85", "\u2028", "\ud800", "é", "0", " ", "x", ":", "'", '"',
          "%YAML", "key: value", "!!python/object", "@ada"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=40)
OFTEN = settings(max_examples=150, deadline=None)
SOME = settings(max_examples=12, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])
ONE_LINE = TEXT.map(lambda text: "".join(letter for letter in text if letter >= " " and letter not in "\x7f\x85\u2028\u2029\ud800")).filter(str.strip)


def flat(tokens):
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def shape(markdown):
    "How many nodes there are of each kind that a text could make."
    return Counter(token.type for token in flat(READER.parse(markdown))
                   if token.type not in ("text", "inline", "softbreak", "text_special"))


def words(markdown):
    "What is read."
    inline = [token for token in READER.parse(markdown) if token.type == "inline"]
    return ["".join(part.content for part in token.children) for token in inline]


def expected(text):
    "The text as one line, as it is to be read."
    text = text.encode("utf-8", "backslashreplace").decode()
    text = re.sub(r"[^\S\n]*(?:\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029])[^\S\n]*", " ↵ ",
                  text.strip())
    return re.sub(r"[\x00-\x08\x0e-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text.replace("\t", " ")).strip()


@OFTEN
@given(TEXT)
@example("[0.1](http://a.org)")
@example("[0.1]: http://a.org")
@example("a\\")
@example("#")
@example("1.")
def test_a_quoted_text_is_read_as_it_was(text):
    for around in ("{}", "before {} after", "*{}* (codes)", "# {}",
                   "- {}", "| {} | x |\n| --- | --- |"):
        if not expected(text) and around != "before {} after":
            continue
        made = around.format(as_markdown(text))
        assert shape(made) == shape(around.format("x")), made
        assert words(made)[0].strip() == around.splitlines()[0].format("x").replace("*", "").strip("#-| ").split(" |")[0].replace("x", "\0").replace("\0", expected(text), 1).strip() \
            if around != "before {} after" else words(made)[0].split() == ["before", *expected(text).split(), "after"]


@OFTEN
@given(st.lists(TEXT, min_size=2, max_size=2),
       st.lists(st.lists(TEXT, min_size=2, max_size=2), max_size=3))
def test_a_table_has_its_cells_and_nothing_else(columns, rows):
    made = Table(columns, rows)._repr_markdown_()
    plain = Table(["x"] * 2, [["x"] * 2 for _ in rows])._repr_markdown_()
    assert shape(made) == shape(plain)
    assert words(made) == [expected(cell) for row in [columns, *rows] for cell in row]


@OFTEN
@given(TEXT)
def test_code_within_a_line(text):
    made = f"before {code_span(text)} after"
    assert shape(made) == shape("before `x` after")
    (read,) = [token.content for token in flat(READER.parse(made)) if token.type == "code_inline"]
    assert read.split() == text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\ufffd").split()


@OFTEN
@given(TEXT, TEXT, TEXT)
def test_examples_of_failures(question, written, code):
    metrics = {"arms": {"adapter": {"codes": {"a": 1}}}}
    made = failures_text(metrics, [{"question": question, "written": written, "codes": [code]}]) + "\n\n## After"
    assert shape(made) == shape(failures_text(metrics, [{"question": "x", "written": "x", "codes": ["x"]}]) + "\n\n## After")


@SOME
@given(ONE_LINE)
@example("--- : # 'x")
@example("]](x)")
def test_no_setting_alters_a_card_or_its_metadata(tmp_path, text):
    folder = tmp_path / "outputs/tiny"
    if not folder.exists():
        make_run(tmp_path, good=0.0, records=4)
    (data, body), (plain_data, plain_body) = (render(tmp_path, folder, one) for one in (text, "x"))
    assert shape(body) == shape(plain_body)
    assert data["model_name"] == text and data["license"] == text
    assert data.keys() == plain_data.keys()
    assert {"lora", "citations"} < set(data["tags"]) and (text in data["tags"])


def render(root, folder, text):
    "A card's metadata and body, with that text wherever one can be."
    named = re.sub(r"[/\\.]", "", text)[:60].strip() or "x"
    keys = ("run.name", "publishing.force_reason",
            "publishing.metadata.dataset_version", "publishing.metadata.task",
            "publishing.license")
    config = load_config(ROOT / "configs" / "demo.cpu.yaml", {
        "run.output_dir": "outputs/tiny", **dict.fromkeys(keys, text),
        "model.base_model_id": f"HuggingFaceTB/SmolLM2-135M-Instruct@{text}",
        "data.eval_file": f"data/{named}.jsonl",
        "publishing.include": ["README.md", f"notebooks/{named}.ipynb"]})
    config._root = root
    manifest, metrics = read_manifest(folder), load_results(folder)
    manifest["stages"]["train"]["versions"] = {text: text}
    manifest["stages"]["train"]["summary"] = {text: text}
    manifest["stages"]["train"]["hardware"] = {"gpu": text, "cpus": 1, "machine": text,
                                               "memory_gb": 1}
    fallbacks = [{"key": text, "requested": text, "used": text, "reason": text}]
    examples = [{"question": text, "written": text, "codes": [text]}]
    card = render_card(config, manifest, metrics,
                       fallbacks, f"The gate was forced. Reason given: {text}", examples)
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    data = yaml.safe_load(head)
    assert ModelCard(card).data.to_dict()["tags"] == data["tags"]
    assert [index["name"] for index in data["model-index"]] == [text]
    return {**data, "model_name": data["model-index"][0]["name"]}, body


@SOME
@given(ONE_LINE)
@example("--- : # 'x")
def test_no_setting_alters_the_card_of_a_data_set(tmp_path, text):
    config = load_config(ROOT / "configs" / "demo.cpu.yaml",
                         {"run.name": text,
                          "publishing.metadata.dataset_version": text,
                          "publishing.metadata.task": text})
    rows = [["train", text, 3, 2, 1, 0, 0, "0" * 64]]
    card = dataset.dataset_card(config, rows, text)
    plain = dataset.dataset_card(load_config(ROOT / "configs" / "demo.cpu.yaml", {"run.name": "x", "publishing.metadata.dataset_version": "x", "publishing.metadata.task": "x"}),
                                 [["train", "x", 3, 2, 1, 0, 0, "0" * 64]], "x")
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert shape(body) == shape(plain.removeprefix("---\n").partition("\n---\n")[2])
    data = yaml.safe_load(head)
    assert data["pretty_name"] == f"{text} records" and data["license"] == text
    assert data["configs"][0]["data_files"][0]["path"] == text


def test_a_question_with_a_heading_does_not_head_the_card(tmp_path):
    folder = make_run(tmp_path, good=0.0, records=4)
    path = tmp_path / "data/eval.jsonl"
    evil = "Why?\n\n# My own heading\n\n| a | b |\n|---|---|\n</details><b>x"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        message = row["messages"][1]
        message["content"] = message["content"].rpartition("### Instruction:")[0] + f"### Instruction:\n{evil}\n"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(ROOT / "configs" / "demo.cpu.yaml",
                         {"run.name": "tiny", "run.output_dir": "outputs/tiny",
                          "data.eval_file": "data/eval.jsonl"})
    config._root = tmp_path
    log = folder / "evaluation" / "outputs.jsonl"
    log.write_text(log.read_text().rpartition("\n")[0] + "\n")
    card = staging.run_card(config, folder, findings=[])
    assert "My own heading" in card and not re.search(r"^\s*#+ My own", card, re.MULTILINE)
    headings = [token.content
                for before, token in zip(READER.parse(card), READER.parse(card)[1:])
                if before.type == "heading_open"]
    assert not any("My own" in heading for heading in headings)


@pytest.mark.parametrize("text", ["json_valid_rate", "0.98 [0.95, 0.99] n=120", "+0.123",
                                  "-0.5", "p < 0.001", "data/train.jsonl",
                                  "a (b), c; d", "owner/name_x"])
def test_plain_cells_stay_plain(text):
    assert as_markdown(text) == text
