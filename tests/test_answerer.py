"From a staged folder and, by another process, from a Hub on loopback: the same answers."

import json
import os
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from hub_server import TOKEN, Hub
from huggingface_hub import HfApi
from tiny import ROOT, short_spoken, tiny_config, tiny_tokenizer

from kwanzaa_nb.core.answer import LATER_OUTPUT, AnswerError, find_marks, validate_answer_json
from kwanzaa_nb.publish.answerer import (
    Answerer, AnswererError, answerer_config, fetch, load_answerer)
from kwanzaa_nb.publish.card import usage
from kwanzaa_nb.core.config import config_to_yaml
from kwanzaa_nb.publish.hub import Destination, explain, upload
from kwanzaa_nb.model.load import ModelError, add_adapter
from kwanzaa_nb.core.sentences import number_sentences
from kwanzaa_nb.publish.staging import stage_publication
from kwanzaa_nb.train.trainer import save_adapter
from kwanzaa_nb.use.doubts import find_doubts

QUESTION = "How long is green tea steeped?"
CHUNK = {"chunk_id": "tea-01", "doc_id": "tea", "citation_label": "Tea Board, 1998",
         "canonical_url": "https://tea.example.org/steeping", "source_org": "Tea Board",
         "year": 1998, "content_type": "summary", "license": "CC0-1.0", "namespace": "tea",
         "text": "Tea is a drink. Green tea is steeped for two minutes."}
OTHER = CHUNK | {"chunk_id": "tea-02",
                 "text": "Black tea is steeped for four minutes, and oolong for three."}
QUESTIONS, CHUNKS = [QUESTION, "Who drinks it?",
                     "Is oolong steeped longer than green tea?"], [CHUNK, OTHER]
WHEN = "2026-01-01T00:00:00Z"
INCLUDE = ["adapter_config.json", "adapter_model.safetensors", "training_config.yaml",
           "README.md", "SHA256SUMS"]
ASK = f"""\
import json, sys
from kwanzaa_nb import load_answerer
answer = load_answerer(sys.argv[1], base=sys.argv[2], grammar=True)
print(json.dumps([answer(question, {CHUNKS!r}, generated_at={WHEN!r}) for question in {QUESTIONS!r}]))
"""


def check_sources(found, chunks):
    "The marks are positions of the sources, and each source quotes one sentence of a chunk, word for word, with its place."
    texts = {chunk["chunk_id"]: chunk["text"] for chunk in chunks}
    sentences = [(one.chunk_id, one.start, one.end) for one in number_sentences(chunks)]
    assert set(find_marks(found["answer"]["text"])) == set(range(1, len(found["sources"]) + 1))
    for source in found["sources"]:
        assert source["quote"] == texts[source["chunk_id"]][source["quote_start"]:source["quote_end"]]
        assert (source["chunk_id"], source["quote_start"], source["quote_end"]) in sentences


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run with an adapter of random weights, staged; the base model lies in a folder of its own."
    root = tmp_path_factory.mktemp("run")
    base, tokenizer = root / "base", tiny_tokenizer()
    short_spoken(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = tiny_config(**{"model.base_model_id": str(base), "run.output_dir": str(root / "out"), "publishing.include": INCLUDE,
                            "publishing.hf_repo": "ada/adapter", "evaluation.generation_defaults.max_new_tokens": 300, "evaluation.answer_threshold": 0})
    torch.manual_seed(1)
    model = add_adapter(short_spoken(tokenizer), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    save_adapter(model, tokenizer, root / "out/adapter",
                 {"training_config.yaml": config_to_yaml(config)}, "ada/tiny-base")
    return config, base, stage_publication(config, root / "out")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    started = Hub()
    yield started
    started.close()


def test_published_downloaded_by_another_process_and_the_same_answers(run, server, tmp_path):
    config, base, staged = run
    there = Destination("ada/adapter", "model", "v0", "adapter_config.json")
    upload(there, staged, INCLUDE, config, TOKEN, HfApi(endpoint=server.url, token=TOKEN),
           report=str)
    answer = load_answerer(staged, base=str(base), grammar=True)
    here = [answer(question, CHUNKS, generated_at=WHEN) for question in QUESTIONS]
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN,
                   "HF_HOME": str(tmp_path / "empty"), "HF_HUB_DISABLE_XET": "1",
                   "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", ASK, "ada/adapter", str(base)], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == here
    for found in here:
        validate_answer_json(found)
        assert found["sources"] and found["provenance"]["generated_at"] == WHEN
        check_sources(found, CHUNKS)
    assert list((tmp_path / "empty").rglob("adapter_model.safetensors"))


def written(answer, chunks):
    "What was written for each question, valid or not."
    kept, write = [], answer.backend.write
    answer.backend.write = lambda *given: kept.append(write(*given)) or kept[-1]
    for question in QUESTIONS:
        with suppress(AnswerError):
            answer(question, chunks)
    answer.backend.write = write
    return [outputs[0].raw for outputs in kept]


def test_the_adapter_makes_a_difference(run):
    config, base, staged = run
    answer = load_answerer(staged, base=str(base), grammar=True)
    adapted = written(answer, CHUNKS)
    with answer.backend.model.disable_adapter():
        assert len(adapted) == len(QUESTIONS) and written(answer, CHUNKS) != adapted


def test_without_chunks_nothing_is_cited_whatever_the_threshold(run):
    config, base, staged = run
    answer = load_answerer(staged, base=str(base), grammar=True)
    assert answer.decoding.answer_threshold == 0
    assert all(raw.startswith('{"evidence":[],"answer":') and raw.endswith("}")
               for raw in written(answer, []))


class Told:
    "Writes the same for every prompt, and keeps how it was asked."

    def __init__(self, raw):
        self.raw, self.decodings = raw, []

    def prompts(self, records):
        return records

    def write(self, batch, decoding):
        self.decodings.append(decoding)
        return [self]


def output(evidence, completeness, text, missing=()):
    return json.dumps({"evidence": evidence, "answer": {"completeness": completeness,
                                                        "text": text},
                       "unknowns": {"unsupported_claims": [],
                                    "missing_context": list(missing), "clarifying_questions": []}})


def test_numbers_become_sources_with_quotes_and_their_places():
    answer = Answerer(tiny_config(), Told(output([3, 2], "complete", "Black tea: four minutes. [3] Green tea: two. [2][3]")))
    found = answer(QUESTION, CHUNKS, scores=[0.5, 0.25], generated_at=WHEN)
    validate_answer_json(found)
    check_sources(found, CHUNKS)
    assert found["answer"]["text"] == "Black tea: four minutes. [1] Green tea: two. [2][1]"
    assert [(one["chunk_id"], one["quote"], one["quote_start"], one["relevance_score"]) for one in found["sources"]] == [
        ("tea-02", OTHER["text"], 0, 0.25), ("tea-01", "Green tea is steeped for two minutes.", 16, 0.5)]


def test_spans_of_ones_own_decide_what_a_number_stands_for():
    chunk = CHUNK | {"spans": [[0, 3], [4, 15], [16, 53]]}
    found = Answerer(tiny_config(), Told(output([1], "complete", "It is tea. [1]")))(QUESTION, [chunk])
    assert [(one["quote"], one["quote_start"], one["quote_end"]) for one in found["sources"]] == [("Tea", 0, 3)]


@pytest.mark.parametrize("raw, code", [
    (output([4], "complete", "Two. [4]"), "number_not_shown"),
    (output([2, 2], "complete", "Two. [2]"), "number_twice"),
    (output([2], "complete", "Two. [1][2]"), "mark_without_evidence"),
    (output([1, 2], "complete", "Two. [2]"), "evidence_without_mark"),
    (output([], "complete", "Two."), "answer_without_evidence"),
    (output([], "insufficient_data", "No."), "refusal_without_reason"),
    ('{"evidence":[2', "unfinished"), ('{"citations":[]}', "schema")])
def test_what_breaks_the_contract_is_an_error_that_holds_it(raw, code):
    with pytest.raises(AnswerError) as error:
        Answerer(tiny_config(), Told(raw))(QUESTION, CHUNKS)
    assert error.value.raw == raw and code in {problem.code for problem in error.value.problems}


class Hesitant(Told):
    "Writes one output after the other."

    def write(self, batch, decoding):
        self.decodings.append(decoding)
        return [Told(self.raw[len(self.decodings) - 1])]


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_an_answer_that_is_not_the_first_output_says_so_and_the_reader_is_told(wrong):
    told = Hesitant([output([4], "complete", "Two. [4]")] * wrong + [output([2], "complete", "Two minutes. [2]")])
    found = Answerer(tiny_config(), told, tries=3)(QUESTION, CHUNKS, safety_flags=["looked at"])
    validate_answer_json(found)
    assert [decoding.temperature > 0 for decoding in told.decodings] == [False, True, True][:wrong + 1]
    assert found["integrity"]["safety_flags"] == ["looked at", LATER_OUTPUT][:1 + bool(wrong)]
    assert any("asked again" in doubt for doubt in find_doubts(found, CHUNKS, QUESTION)) == bool(wrong)
    with pytest.raises(AnswerError):
        Answerer(tiny_config(), Hesitant(["{"] * 3), tries=3)(QUESTION, CHUNKS)


def test_only_where_nothing_was_retrieved_no_probability_is_enough():
    told = Told(output([], "insufficient_data", "Not known.", ["how long tea is steeped"]))
    answer = Answerer(tiny_config(**{"evaluation.answer_threshold": 0.25}), told)
    for chunks, namespaces in ((CHUNKS, ["tea"]), ([], ["unknown"])):
        found = answer(QUESTION, chunks)
        assert found["sources"] == [] and found["retrieval_summary"]["namespaces"] == namespaces
    assert [decoding.answer_threshold for decoding in told.decodings] == [0.25, float("inf")]


def test_what_is_not_valid_is_in_the_error(run):
    config, base, staged = run
    with pytest.raises(AnswerError, match="strict JSON") as error:
        load_answerer(staged, base=str(base))(QUESTION, [CHUNK])
    assert error.value.raw.startswith('"')


def test_the_snippet_of_the_card_runs(run):
    config, base, staged = run
    card = (staged / "README.md").read_text(encoding="utf-8")
    snippet = card.split("```python\n")[1].split("```")[0]
    assert snippet in usage(config)
    assert 'load_answerer("ada/adapter", grammar=True)' in snippet
    local = snippet.replace('"ada/adapter"', f"{str(staged)!r}, base={str(base)!r}")
    names = {}
    exec(local, names)
    validate_answer_json(names["found"])
    assert names["found"]["retrieval_summary"]["results"][0]["chunk_id"] == "tea-01"


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_who_downloads_is_not_told_how_to_publish(status):
    error = RuntimeError("refused")
    error.response = SimpleNamespace(status_code=status)
    told = explain(error, "https://hub.example.org", reading=True)
    assert "stage publish" not in told and "write access" not in told
    assert told != explain(error, "https://hub.example.org")


def test_what_is_missing_is_said(run, tmp_path):
    config, base, staged = run
    with pytest.raises(AnswererError, match="neither a folder nor a repository"):
        fetch("nothing here")
    for name in ("adapter_model.safetensors", "training_config.yaml"):
        folder = tmp_path / name
        folder.mkdir()
        for other in set(INCLUDE) - {name, "SHA256SUMS"}:
            (folder / other).write_bytes((staged / other).read_bytes())
        with pytest.raises(AnswererError, match=f"has no {name}"):
            load_answerer(folder)


def test_a_base_model_that_is_named_nowhere(run, tmp_path):
    config, base, staged = run
    for name in INCLUDE[:3]:
        (tmp_path / name).write_bytes((staged / name).read_bytes())
    described = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(described | {"base_model_name_or_path": None}), encoding="utf-8")
    text = (tmp_path / "training_config.yaml").read_text(encoding="utf-8")
    (tmp_path / "training_config.yaml").write_text(text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", ".../base"), encoding="utf-8")
    with pytest.raises(AnswererError, match="not named in its files: give it as base"):
        answerer_config(tmp_path)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_answerer(tmp_path, base=str(tmp_path / "no-such-folder"))


def test_the_base_model_of_a_run_may_be_a_folder_that_is_still_there(run, tmp_path):
    "It was trained on that copy, whose template may differ from the one on the Hub."
    config, base, staged = run
    folder, own = tmp_path / "run" / "adapter", tmp_path / "own-model"
    folder.mkdir(parents=True)
    own.mkdir()
    for name in INCLUDE[:3]:
        (folder / name).write_bytes((staged / name).read_bytes())
    text = (folder / "training_config.yaml").read_text(encoding="utf-8")
    (folder / "training_config.yaml").write_text(text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(own)), encoding="utf-8")
    named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert answerer_config(folder).model.base_model_id == named != str(own), "of a folder that came from somewhere"
    (tmp_path / "run" / "manifest.json").write_text("{}", encoding="utf-8")
    assert answerer_config(folder).model.base_model_id == str(own)


def test_files_that_changed_after_they_were_published(run, tmp_path):
    config, base, staged = run
    for name in INCLUDE:
        (tmp_path / name).write_bytes((staged / name).read_bytes())
    fetch(tmp_path)
    with open(tmp_path / "adapter_model.safetensors", "ab") as file:
        file.write(b"\0")
    with pytest.raises(AnswererError, match="not those that its SHA256SUMS lists"):
        fetch(tmp_path)


def test_a_repository_that_is_not_there(server, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(AnswererError, match="ada/nothing can't be downloaded: "):
        load_answerer("ada/nothing")
