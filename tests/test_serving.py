"Asking a server through `load_answerer`: what it is sent, what comes of it, and what can go wrong."

import json
import subprocess
import sys
from itertools import islice

import openai
import pytest
from tiny import ROOT, tiny_config

from kwanzaa_nb import load_answerer
from kwanzaa_nb.core.answer import AnswerError, record_schema, validate_answer_json
from kwanzaa_nb.core.config import config_to_yaml
from kwanzaa_nb.core.prompt import render_prompt
from kwanzaa_nb.core.record import question_of, read_records
from kwanzaa_nb.model.server import ServerBackend, ServerError
from kwanzaa_nb.publish.answerer import AnswererError

QUESTION = "How long is green tea steeped?"
CHUNK = {"chunk_id": "tea-01", "doc_id": "tea", "citation_label": "Tea Board, 1998",
         "canonical_url": "https://tea.example.org/steeping", "source_org": "Tea Board",
         "year": 1998, "content_type": "summary", "license": "CC0-1.0", "namespace": "tea",
         "text": "Tea is a drink. Green tea is steeped for two minutes."}
UNKNOWNS = {"unsupported_claims": [], "missing_context": [], "clarifying_questions": []}
RIGHT = json.dumps({"evidence": [2], "unknowns": UNKNOWNS,
                    "answer": {"completeness": "complete", "text": "Two minutes. [2]"}})


def reply(text, **message):
    return {"choices": [{"finish_reason": "stop",
                         "message": {"role": "assistant", "content": text, **message}}]}


@pytest.fixture
def serve(serve, monkeypatch):
    "Start a server that answers every question alike."
    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", lambda *given: 0.0)

    def start(answer=None, models=("kwanzaa",)):
        return serve(lambda *_: (200, reply(RIGHT) if answer is None else answer), models)

    return start


def trained(folder, **changes):
    "A published folder, of which a server needs no more than the config of the training."
    config = tiny_config(**{"run.name": "tea-run", "evaluation.answer_threshold": 0.25,
                            "evaluation.generation_defaults.max_new_tokens": 123, **changes})
    (folder / "training_config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    return folder


def test_a_server_writes_and_the_answer_is_completed_here(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("KWANZAA_API_KEY", "sk-1")
    url, asked = serve()
    answer = load_answerer(trained(tmp_path), url=url, grammar=True)
    found = answer(QUESTION, [CHUNK], scores=[0.5])
    validate_answer_json(found)
    assert found["sources"][0]["quote"] == "Green tea is steeped for two minutes."
    assert found["provenance"]["adapter_version"] == "tea-run (kwanzaa)"
    (_, _, hello), (_, key, body) = asked
    assert hello["max_tokens"] == 1 and hello["logprobs"]
    assert key == "Bearer sk-1" and body["model"] == "kwanzaa" and body["max_tokens"] == 123
    assert body["messages"] == render_prompt(QUESTION, [CHUNK]) and body["temperature"] == 0
    assert body["response_format"]["json_schema"]["schema"] == record_schema([CHUNK])
    (unused,) = answer.fallbacks
    assert (unused.key, unused.requested, unused.used) == ("evaluation.answer_threshold", 0.25, None)
    assert "does not tell how likely its tokens are" in unused.reason and "logprobs" not in body


def test_the_prompt_is_that_of_the_training(serve, tmp_path):
    url, asked = serve()
    load_answerer(trained(tmp_path, **{"data.system_prompt": "Be brief, {persona}."}), url=url)(
        QUESTION, [CHUNK], "builder")
    assert asked[1].body["messages"][0]["content"] == "Be brief, a practical builder."
    assert "response_format" not in asked[1].body


def test_without_a_folder_the_projects_own_prompt_is_asked(serve):
    url, asked = serve(models=("base", "kwanzaa"))
    answer = load_answerer(url=url, model="kwanzaa")
    found = answer(QUESTION, [CHUNK])
    assert found["provenance"]["adapter_version"] == "kwanzaa" and answer.fallbacks == ()
    assert asked[0].body["messages"] == render_prompt(QUESTION, [CHUNK])
    assert asked[0].body["model"] == "kwanzaa"


@pytest.mark.parametrize("models, told", [
    (("base", "kwanzaa"), r"serves 2 models \(base, kwanzaa\): name one of them as model"),
    ((), "serves no model"), (b"<html>Welcome</html>", "is no JSON .*<html>Welcome"),
    (b'{"data": 7}', "lists no models, but sends"), (b'{"data": [{"id": 7}]}', "lists no models"),
    (b'{"data": ["kwanzaa"]}', "lists no models"), (b"[]", "lists no models")])
def test_a_server_whose_only_model_is_not_known_is_one_sentence(serve, models, told):
    url, asked = serve(models=models)
    with pytest.raises(ServerError, match=told) as error:
        load_answerer(url=url)
    assert "\n" not in str(error.value) and not asked


@pytest.mark.parametrize("answer, told", [
    (b"Bad gateway", "answered, but its body is no JSON"),
    (reply("", refusal="I won't"), "There is no answer: .*a refusal: I won't"),
    (reply("", reasoning_content="Hm."), "There is no answer: .*3 characters of reasoning")])
def test_nonsense_is_one_sentence(serve, answer, told):
    url, _ = serve(answer)
    with pytest.raises((ServerError, AnswererError), match=told) as error:
        load_answerer(url=url)(QUESTION, [CHUNK])
    assert "\n" not in str(error.value)


def test_what_breaks_the_contract_is_an_error_that_holds_it(serve):
    url, _ = serve(reply("Two minutes, I think."))
    with pytest.raises(AnswerError) as error:
        load_answerer(url=url, grammar=True)(QUESTION, [CHUNK])
    assert error.value.raw == "Two minutes, I think."


@pytest.mark.parametrize("given, kind, told", [
    ({}, AnswererError, "nothing to ask"),
    ({"url": "localhost:8080"}, ServerError, "^The server's address is localhost:8080, which"),
    ({"url": ""}, ServerError, "^The server's address is empty"),
    ({"url": "http://127.0.0.1:9/v1"}, ServerError, "did not answer .*start the server"),
    ({"source": "no such", "url": "http://127.0.0.1:9/v1"}, AnswererError, "neither a folder")])
def test_a_place_that_cannot_be_asked_is_one_sentence(monkeypatch, given, kind, told):
    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", lambda *given: 0.0)
    with pytest.raises(kind, match=told) as error:
        load_answerer(**given)
    assert "\n" not in str(error.value)


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from kwanzaa_nb import load_answerer
"""


def test_no_torch_is_needed_to_ask_a_server_and_its_lack_is_said_otherwise(serve, tmp_path):
    url, asked = serve()
    code = (f"{BLOCKED}print(load_answerer({str(trained(tmp_path))!r}, url={url!r})({QUESTION!r}, "
            f"[{CHUNK!r}])['answer'])\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "Two minutes. [1]" in done.stdout and len(asked) == 2, done.stderr
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    code = f"{BLOCKED}load_answerer({str(tmp_path)!r})\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "not installed, so no model can be loaded here" in done.stderr.splitlines()[-1]


# llama.cpp's own server


def test_llama_cpp_answers_under_the_schema_of_each_question(llama):
    records = read_records(ROOT / "data/training/kwanzaa_dev.jsonl")
    answer = load_answerer(url=llama, grammar=True)
    answer.tries = 1  # this model has learned nothing, and would break the rules again
    assert isinstance(answer.backend, ServerBackend) and answer.backend.model
    read = []
    for record in islice((one for one in records if one["chunks"]), 2):
        try:
            found = answer(question_of(record), record["chunks"])
            validate_answer_json(found)
            read.append(found)
        except AnswerError as error:  # what no schema can say, or an answer that is cut off
            kept = {problem.code for problem in error.problems}
            read.append(error.raw)
            assert error.raw.lstrip().startswith("{") and "schema" not in kept
            assert "number_not_shown" not in kept
    assert len(read) == 2
