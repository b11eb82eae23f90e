"From a staged folder and, by another process, from a Hub on loopback: the same answers."

import json
import os
import subprocess
import sys

import pytest
import torch
from hub_server import TOKEN, Hub
from huggingface_hub import HfApi
from tiny import ROOT, tiny_config, tiny_model, tiny_tokenizer

import kwanzaa_nb
from kwanzaa_nb.answer import AnswerError, validate_answer_json
from kwanzaa_nb.answerer import AnswererError, answerer_config, fetch, load_answerer
from kwanzaa_nb.card import usage
from kwanzaa_nb.config import config_to_yaml
from kwanzaa_nb.hub import Destination, upload
from kwanzaa_nb.model import ModelError, add_adapter
from kwanzaa_nb.staging import stage_publication
from kwanzaa_nb.training import save_adapter

QUESTION = "How long is green tea steeped?"
CHUNK = {"chunk_id": "tea-01", "doc_id": "tea", "citation_label": "Tea Board, 1998", "canonical_url": "https://tea.example.org/steeping",
         "source_org": "Tea Board", "year": 1998, "content_type": "summary", "license": "CC0-1.0", "namespace": "tea",
         "text": "Green tea is steeped for two minutes."}
WHEN = "2026-01-01T00:00:00Z"
INCLUDE = ["adapter_config.json", "adapter_model.safetensors", "training_config.yaml", "README.md", "SHA256SUMS"]
ASK = f"""\
import json, sys
from kwanzaa_nb import load_answerer
from kwanzaa_nb.answer import AnswerError
found = [load_answerer(sys.argv[1], base=sys.argv[2], grammar=True)({QUESTION!r}, [{CHUNK!r}], generated_at={WHEN!r})]
try:
    load_answerer(sys.argv[1], base=sys.argv[2])({QUESTION!r}, [{CHUNK!r}])
except AnswerError as error:
    found.append(error.raw)
print(json.dumps(found))
"""


def short_spoken(tokenizer):
    "A random model that ends each string as soon as it may, so that what a grammar lets it write is short."
    model = tiny_model()
    quote = tokenizer.convert_tokens_to_ids('"')
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 8.0
        model.get_output_embeddings().weight[quote] = 0
        model.get_output_embeddings().weight[quote, 0] = 4.0
    return model


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
            torch.nn.init.normal_(weight, std=0.3)
    save_adapter(model, tokenizer, root / "out/adapter", {"training_config.yaml": config_to_yaml(config)}, "ada/tiny-base")
    return config, base, stage_publication(config, root / "out")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    started = Hub()
    yield started
    started.close()


def raw_of(answerer):
    with pytest.raises(AnswerError) as error:
        answerer(QUESTION, [CHUNK])
    return error.value.raw


def test_published_downloaded_by_another_process_and_the_same_answers(run, server, tmp_path):
    config, base, staged = run
    there = Destination("ada/adapter", "model", True, "v0", "adapter_config.json")
    upload(there, staged, INCLUDE, config, TOKEN, HfApi(endpoint=server.url, token=TOKEN), report=str)
    here = load_answerer(staged, base=str(base), grammar=True)(QUESTION, [CHUNK], generated_at=WHEN)
    validate_answer_json(here)
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_DISABLE_XET": "1",
                   "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", ASK, "ada/adapter", str(base)], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    there_answer, there_raw = json.loads(done.stdout.splitlines()[-1])
    assert there_answer == here and there_raw == raw_of(load_answerer(staged, base=str(base)))
    assert list((tmp_path / "empty").rglob("adapter_model.safetensors"))


def test_the_adapter_makes_a_difference_and_the_output_is_in_the_error(run):
    config, base, staged = run
    answerer = load_answerer(staged, base=str(base))
    adapted = raw_of(answerer)
    with answerer.backend.model.disable_adapter():
        assert raw_of(answerer) != adapted


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


def test_the_package_has_it_and_nothing_else_by_name():
    assert kwanzaa_nb.load_answerer is load_answerer
    with pytest.raises(AttributeError):
        _ = kwanzaa_nb.load_nothing
