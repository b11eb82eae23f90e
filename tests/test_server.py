"A server with OpenAI's protocol: a real one on loopback, and one that fails in many ways."

import json
import socket
import threading
import time

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ROOT, tiny_config

from kwanzaa_nb.core.answer import record_schema
from kwanzaa_nb.evaluate.passes import (
    arms, backend_fallbacks, decodings, experiment, settle_threshold)
from kwanzaa_nb.model.backend import (
    REFUSED, Decoding, generate_pass, log_line, open_log, read_log, make_output)
from kwanzaa_nb.evaluate.metrics import score
from kwanzaa_nb.model.load import RuntimeSettings
from kwanzaa_nb.core.sentences import number_sentences
from kwanzaa_nb.core.strict_json import parse_strict_json
from kwanzaa_nb.model.server import (
    Question, ServerBackend, ServerError, ask, control_text, read_completion, request)
from kwanzaa_nb.core.record import read_records

GREEDY = Decoding(max_new_tokens=24, batch_size=2)
RECORDS = [
    {"id": f"r{place}", "chunks": [{"chunk_id": f"c{place}", "text": "One. Two."}],
     "messages": [{"role": "user", "content": "why " * (3 - place)}, {"role": "assistant", "content": "secret"}]}
    for place in range(3)
]
CPU = RuntimeSettings("cpu", "fp32", "fp32", "sdpa", False, "x")


def reply(text, finish="stop", tokens=3):
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [
        {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}}


def test_a_pass_over_a_server_is_logged_like_any_other(serve, tmp_path):
    url, asked = serve(lambda body, _: (200, reply(f"to {len(body['messages'][-1]['content'])}")))
    log = tmp_path / "outputs.jsonl"
    open_log(log, {"server": url})
    outputs = generate_pass(ServerBackend(url, "m", "key"), RECORDS, GREEDY, log, "base",
                            report=lambda line: None)
    assert [output["raw"] for output in outputs] == [f"to {4 * (3 - place)}" for place in range(3)]
    assert {output["finish_reason"] for output in outputs} == {"stop"}
    assert {output["new_tokens"] for output in outputs} == {3}
    assert len({output["prompt_sha256"] for output in outputs}) == 3 and len(asked) == 3
    path, authorization, body = asked[0]
    assert path == "/v1/chat/completions" and authorization == "Bearer key"
    assert "secret" not in json.dumps(asked)
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 24, 0.0)
    again = generate_pass(ServerBackend(url, "m"), RECORDS, GREEDY, log, "base",
                          report=lambda line: None)
    assert again == outputs and len(asked) == 3


def test_what_is_asked():
    question = Question("r", ({"role": "user", "content": "why"},),
                        ({"chunk_id": "c", "text": "One. Two."},))
    plain = request(question, GREEDY, "m")
    assert "seed" not in plain and "response_format" not in plain
    sampled = request(question, Decoding(5, 1, temperature=0.2, top_p=0.9, seed=4,
                                         grammar=True), "m")
    assert (sampled["temperature"], sampled["top_p"], sampled["seed"], sampled["max_tokens"]) == (0.2, 0.9, 4, 5)
    asked = sampled["response_format"]["json_schema"]["schema"]
    assert asked == record_schema(question.chunks)
    assert asked["properties"]["evidence"]["items"]["maximum"] == 2
    assert "One." not in json.dumps(sampled["response_format"])
    nothing = request(Question("r", question.messages), Decoding(5, 1, grammar=True), "m")["response_format"]["json_schema"]["schema"]
    assert nothing == record_schema([]) and nothing["properties"]["evidence"]["maxItems"] == 0


def test_a_schema_reaches_the_server_as_it_is(serve):
    url, asked = serve(lambda body, _: (200, reply("{}")))
    backend = ServerBackend(url, "m")
    backend.write(backend.prompts(RECORDS[:1]), Decoding(5, 1, grammar=True))
    sent = asked[0][2]["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"] == record_schema(RECORDS[0]["chunks"])


@pytest.mark.parametrize("finish, reason", [("length", "length"), ("stop", "stop"),
                                            ("eos_token", "stop")])
def test_reasons(serve, finish, reason):
    url, _ = serve(lambda body, _: (200, reply(None, finish)))
    backend = ServerBackend(url, "m")
    (written,) = backend.write(backend.prompts(RECORDS[:1]), GREEDY)
    assert (written.raw, written.reason, written.tokens, written.p_answer) == ("", reason, (), None)
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
    assert len(asked) == times and "sk-secret" not in str(caught.value)
    assert "why" not in str(caught.value)


def test_a_server_that_is_not_there_is_a_sentence_and_loses_nothing(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", lambda *given: 0.0)
    url, _ = serve(lambda body, _: (200, reply("there")) if len(body["messages"][0]["content"]) < 12 else (500, {}))
    log = tmp_path / "outputs.jsonl"
    open_log(log, {"server": url})
    with pytest.raises(ServerError):
        generate_pass(ServerBackend(url, "m"), RECORDS, GREEDY, log, "base",
                      report=lambda line: None)
    assert sorted(output["id"] for output in read_log(log)[1]) == ["r1", "r2"]
    with pytest.raises(ServerError, match="did not answer.*evaluation.server"):
        absent = ServerBackend("http://127.0.0.1:9/v1", "m")
        absent.write(absent.prompts(RECORDS[:1]), GREEDY)


# whatever comes with status 200


BODIES = {  # a body, and what the sentence says about it
    "html": (b"<!doctype html><html><title>Open WebUI</title></html>", "no JSON .*begins: <!doctype html>"),
    "stream": (b'data: {"choices":[{"delta":{"content":"{}"}}]}\n\ndata: [DONE]\n\n', "no JSON .*begins: data:"),
    "cut": (b'{"id":"1","choices":[{"index":0,', "no JSON"), "empty": (b"", "no JSON .*nothing"), "latin-1": ('{"choices": "\xe9"}'.encode("latin-1"), "no UTF-8"),
    "null": (b"null", "choices is missing"), "list": (b"[1, 2]", "choices is missing"), "no choices": (b'{"choices": null}', "choices is missing"),
    "choices no list": (b'{"choices": {"0": 1}}', "choices"), "choices empty": (b'{"choices": []}', "choices"),
    "choice null": (b'{"choices": [null]}', r"choices\[0\].message"), "message null": (b'{"choices": [{"message": null}]}', r"choices\[0\].message"),
    "content number": (b'{"choices": [{"message": {"content": 7}}]}', "content of its message is a number"),
    "content list": (b'{"choices": [{"message": {"content": [{"type": "image_url"}]}}]}', "a list that is not all text"),
    "error": (b'{"error": {"message": "model m not found", "code": 404}}', "reports an error: model m not found"),
    "error text": (b'{"error": "no such model"}', "reports an error: no such model"),
    "error in a choice": (b'{"choices": [{"error": {"message": "upstream broke"}, "message": null}]}', "upstream broke"),
    "deep": (b"[" * 100_000, "no JSON"), "huge number": (b'{"choices": ' + b"9" * 5000 + b"}", "no JSON"),
    "control": (b'{"error": {"message": "a\\u0000b\\u001b[31mc\\nd\\u202ee"}}', "error: ab.31mc de"),
}


@pytest.mark.parametrize("body, told", BODIES.values(), ids=BODIES)
def test_a_success_that_is_no_completion_is_one_sentence(serve, body, told):
    url, asked = serve(lambda *_: (200, body))
    backend = ServerBackend(url, "m", "sk-secret-1")
    with pytest.raises(ServerError, match=f"answered, but .*{told}.*evaluation.server") as caught:
        backend.write(backend.prompts(RECORDS[:1]), GREEDY)
    assert len(asked) == 1 and "\n" not in str(caught.value) and len(str(caught.value)) < 700


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["content", "text", "type", "error", "message", "code", "completion_tokens"]) | st.text(max_size=5), inner, max_size=3), max_leaves=8)


@st.composite
def nearly_completions(stable_hash):
    "A completion of which any part may be something else."
    def may(value):
        return stable_hash(JSON) if stable_hash(st.integers(0, 5)) == 0 else value
    content = st.text() | st.lists(st.fixed_dictionaries({"type": st.just("text"),
                                                          "text": st.text()}), max_size=3)
    message = {"role": "assistant", "content": may(stable_hash(content)),
               "reasoning_content": may(None), "tool_calls": may(None), "refusal": may(None)}
    choice = {"finish_reason": may("stop"), "message": may(message),
              **({"error": stable_hash(JSON)} if stable_hash(st.integers(0, 5)) == 0 else {})}
    return json.dumps(may({"choices": may([may(choice)]), "usage": may({"completion_tokens": may(3)})})).encode()


@settings(max_examples=600, deadline=None)
@given(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()) | nearly_completions())
def test_whatever_a_body_holds_it_is_an_output_of_right_types_or_one_sentence(body):
    try:
        written = read_completion(body, "text/plain", "sk-secret")
    except ServerError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 500
        return
    assert isinstance(written.raw, str) and written.raw.encode("utf-8") is not None
    assert isinstance(written.reason, str) and written.reason
    assert written.new_tokens is None or type(written.new_tokens) is int and written.new_tokens >= 0
    assert written.raw.strip() or written.problem, "an empty output without a word"
    assert parse_strict_json(log_line(make_output(written, Question("r", ()), "base",
                                                  "base, greedy", 0.1)))


class Raw:
    "A server that sends the bytes it is told, whatever is asked."

    def __init__(self, answers):
        self.answers, self.asked, self.socket = answers, 0, socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.serve, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"

    def serve(self):
        while True:
            try:
                link, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(link,), daemon=True).start()

    def answer(self, link):
        with link:
            link.recv(65_536)
            self.asked += 1
            try:
                for part in self.answers():
                    time.sleep(part) if isinstance(part, float) else link.sendall(part)
            except OSError:
                pass


def answer(body, status="200 OK", *headers, length=None):
    lines = [f"HTTP/1.1 {status}",
             "Connection: close", f"Content-Length: {len(body) if length is None else length}",
             *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


@pytest.fixture
def raw(monkeypatch):
    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", lambda *given: 0.0)
    started = []

    def start(answers):
        started.append(Raw(answers))
        return started[-1]

    yield start
    for server in started:
        server.socket.close()


@pytest.mark.parametrize("parts, told", [
    ([answer(b'{"choices"', length=500)], "body can't be read"),  # cut off
    ([answer(b"\x1f\x8bno gzip", "200 OK", "Content-Encoding: gzip")], "body can't be read"),
    ([answer(b'{"cho', length=500), 3.0], "body can't be read .*Timeout"),  # no more comes
    ([answer(b"x", length=50), *[0.15, b"x"] * 40], "body can't be read .*still coming"),  # a drip
    ([answer(b"x", length=10**9), *[b"x" * 1_000_000] * 40], "body can't be read .*over 8,000,000 bytes"),
    ([answer(b"", "204 No Content")], "answered, but"), ([answer(b"", "302 Found", "Location: /v1/login")], "refused with status 302|did not answer"),
    ([b""], "did not answer"), ([b"no HTTP\r\n\r\n"], "did not answer"), ([answer(b"", "304 Not Modified")], "status 304"),
    ([answer(b"\xff\xfe", "500 Oh", "Content-Type: text/plain; charset=hex")], "status 500|body can't be read"),
    ([answer(b"{}", "200 OK", "Content-Type: text/html; charset=idna")], "answered, but"),
])
def test_a_body_that_does_not_come_is_one_sentence(raw, parts, told):
    server = raw(lambda: parts)
    backend = ServerBackend(server.url, "m", timeout=1.0)
    with pytest.raises(ServerError, match=told):
        backend.write(backend.prompts(RECORDS[:1]), GREEDY)
    assert 1 <= server.asked <= 100, "asked without end"


@pytest.mark.parametrize("header", ["Retry-After: 999999999", "Retry-After: nan", "Retry-After: -1", "Retry-After: Wed, 99 Foo 99999 99:99:99 GMT", "x-should-retry: true"])
def test_a_pause_that_the_server_asks_for_has_bounds(raw, header):
    server = raw(lambda: [answer(b'{"error": "busy"}', "429 Too Many", header)])
    with pytest.raises(ServerError, match="status 429: busy"):
        ask(ServerBackend(server.url, "m").client, "m", GREEDY, Question("r", ()))
    assert server.asked <= 4


@pytest.mark.parametrize("content, text", [([{"type": "text", "text": "{"}, {"text": "}"}], "{}"),
                                           ([], ""), (None, ""),
                                           ("\ud800 \ud83d\ude00", "\ufffd \U0001f600")])
def test_content_that_can_be_text_is(content, text):
    written = read_completion(json.dumps({"choices": [{"finish_reason": "stop", "message": {"content": content}}]}).encode())
    assert (written.raw, written.reason, bool(written.problem)) == (text, "stop", not text)


def test_a_text_without_end_is_the_record_s_own_failure():
    with pytest.raises(ServerError, match="200,000 characters") as caught:
        read_completion(json.dumps(reply("x" * 200_000)).encode())
    assert caught.value.blames == "record"


# what is known of an output


@pytest.mark.parametrize("usage, known", [
    (None, None), ({}, None), ("3", None), ([3], None),
    *[({"completion_tokens": odd}, None) for odd in (
        None, -1, float("nan"), float("inf"), "3", 10**30, True, 3.5, [3], 0)],
    ({"completion_tokens": 3}, 3), ({"completion_tokens": 3, "prompt_tokens": None}, 3)])
def test_a_number_of_tokens_that_is_none_is_unknown(usage, known):
    assert read_completion(json.dumps(reply("{}") | {"usage": usage}).encode()).new_tokens == known
    without = {key: value for key, value in reply("{}").items() if key != "usage"}
    assert read_completion(json.dumps(without).encode()).new_tokens is None


@pytest.mark.parametrize("finish, message, reason, problem", [
    ("stop", {"content": None, "reasoning_content": "Hm. " * 9},
     "stop", "36 characters of reasoning"), ("length", {"content": "", "reasoning": "Hm."},
                                             "length", "3 characters of reasoning"),
    ("tool_calls", {"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls",
     "call of a tool"), ("content_filter", {"content": None}, "content_filter", "no text"),
    ("content_filter", {"content": "{}"}, "content_filter", "reason content_filter"),
    ("stop", {"content": None, "refusal": "I can't"}, "stop", "refusal: I can't"),
    ("stop", {}, "stop", "no text"), (None, {"content": "{}"}, "unknown", ""),
    (None, {"content": ""}, "unknown", "no text"), (7, {"content": "{}"}, "unknown", ""),
    ("eos_token", {"content": "{}"}, "stop", ""), ("max_tokens", {"content": "{"}, "length", ""),
    ("a\x00b\nc", {"content": "{}"}, "ab c", "reason ab c"),
    ("refused", {"content": "{}"}, "refused by the server", "refused by the server"),
    ("x" * 500, {"content": "{}"}, "x" * 40 + " …", "x …")])
def test_why_an_output_ended_is_kept(finish, message, reason, problem):
    written = read_completion(json.dumps({"choices": [{"finish_reason": finish, "message": message}]}).encode())
    assert written.reason == reason and problem in written.problem
    assert bool(problem) == bool(written.problem)


# addresses and keys


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://a/v1", "http://",
                                 "http:///v1", "http://a:99999/v1", "http://a:b/v1",
                                 "http://a:0/v1", "http://a:-1/v1",
                                 "http://[::1/v1", "http://[zz]/v1", "http://a b/v1",
                                 " http://a/v1", "http://a/v1\n",
                                 "http://a\x00/v1",
                                 "http://a/v1/chat/completions",
                                 "http://a/v1/models/",
                                 "http://me:pass@a/v1", "http://a/v1?key=sk-secret",
                                 "http://a/v1#x", "http://" + "a" * 64 + ".de/v1",
                                 "http://a..b/v1", "http://1.2.3.4.5/v1",
                                 "http://256.1.1.1/v1", "http://\ud800/v1", "http://a\\b/v1"])
def test_an_address_that_cannot_be_asked_is_one_sentence(url):
    with pytest.raises(ServerError, match="^The server's address .*Write where it listens") as caught:
        ServerBackend(url, "m")
    assert "secret" not in str(caught.value) and "pass@" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:8000/v1",
                                 "https://api.example.org/openai/v1/",
                                 "http://[::1]:8000/v1", "HTTP://my_server/v1",
                                 "http://10.0.0.1/v1",
                                 "https://api.example.org", "http://münchen.example/v1"])
def test_an_address_that_can_be_asked_is_taken(url):
    assert ServerBackend(url, "m").url == url


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30) | st.text(max_size=30).map("http://{}".format) | st.text("ab[]:.@/%0123456789-_", max_size=20).map("http://{}/v1".format))
def test_any_address_is_taken_or_refused_in_a_sentence(url):
    try:
        ServerBackend(url, "m")
    except ServerError:
        pass


@pytest.mark.parametrize("key", ["sk-secret\n", "\tsk-secret", "sk-\rsecret",
                                 "sk-sécret", "Bearer sk-secret", "sk secret",
                                 "sk-\x00secret", "sk-secret\ud800", " ", "\u200bsk-secret"])
def test_a_key_that_no_header_can_hold_is_one_sentence_without_it(key):
    with pytest.raises(ServerError, match="^The server's API key .*environment variable KWANZAA_API_KEY") as caught:
        ServerBackend("http://localhost:1/v1", "m", key)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("echo", ["{}", "Bearer {}", "key {} {}", "{}" * 50,
                                  " " * 30_000 + "{}", "<p>{}</p>"])
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_the_server_repeats_is_not_shown(serve, monkeypatch, echo, status):
    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", lambda *given: 0.0)
    key = "sk-Secret.123+x"
    for body in (echo.replace("{}", key).encode(),
                 {"error": {"message": echo.replace("{}", key[:6] + "\x00" + key[6:])}},
                 {"detail": [{"msg": echo.replace("{}", key.lower())}]}):
        url, _ = serve(lambda *_, said=body: (status, said))
        with pytest.raises(ServerError) as caught:
            ask(ServerBackend(url, "m", key).client, "m", GREEDY, Question("r", ()))
        assert "secret" not in str(caught.value).lower() and "\x00" not in str(caught.value)


# one record that fails


EIGHT = [{"id": f"r{place}", "chunks": [], "messages": [{"role": "user", "content": f"r{place} " + "x" * (9 - place)}]} for place in range(8)]
LIMIT = {"error": {"message": "This model's maximum context length is 4096 tokens, however you requested 9000.", "code": 400}}


def refusing(status, *ids, body=LIMIT):
    return lambda asked, _: (status, body) if asked["messages"][0]["content"][:2] in ids else (200, reply("{}"))


@pytest.mark.parametrize("status, body", [(400, LIMIT), (413, {}), (422, {"detail": [{"msg": "too long"}]}), (500, {"error": {"message": "the context size is exceeded"}}),
                                          (200, {"error": {"message": "too long", "code": 400}}), (200, b"<html>"), (403, {"error": "flagged"})])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_one_record_that_is_refused_loses_no_other(serve, tmp_path, monkeypatch, status, body,
                                                   size):
    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", lambda *given: 0.0)
    url, asked = serve(refusing(status, "r3", body=body))
    log, told = tmp_path / "outputs.jsonl", []
    open_log(log, {"server": url})
    outputs = generate_pass(ServerBackend(url, "m"), EIGHT, Decoding(24, size), log, "base",
                            report=told.append)
    assert [output["id"] for output in outputs] == [record["id"] for record in EIGHT]
    assert [output["finish_reason"] for output in outputs] == ["stop"] * 3 + [REFUSED] + ["stop"] * 4
    assert outputs[3]["raw"] == "" and outputs[3]["problem"].startswith("The server refused it: ")
    assert outputs[3]["new_tokens"] is None
    assert "no answer for 1 of 8 records: r3 (The server refused it" in told[-1]
    scores = score(outputs, [record_of(one) for one in EIGHT])
    assert scores.codes["not_answered"] == 1 and scores.outcomes[3].notes == [outputs[3]["problem"]]
    assert not scores.outcomes[3].valid
    assert scores.rates["json_valid_rate"].total == 8
    assert parse_strict_json(json.dumps(scores.to_dict(), allow_nan=False))
    before = len(asked)
    mended, again = serve(lambda *_: (200, reply("{}")))
    later = generate_pass(ServerBackend(mended, "m"), EIGHT, Decoding(24, size), log, "base",
                          report=told.append)
    assert len(again) == 1 and len(asked) == before, "more was asked again than the one that was refused"
    assert {output["finish_reason"] for output in later} == {"stop"}
    assert sorted(read_log(log)[1], key=lambda one: one["id"]) == later


def record_of(asked):
    return asked | {"category": "x", "answerable": True, "persona": "educator",
                    "messages": [*asked["messages"], {"role": "assistant", "content": "{}"}]}


@pytest.mark.parametrize("count", [1, 8, 50])
def test_where_all_records_are_refused_it_stops(serve, tmp_path, count):
    url, asked = serve(lambda *_: (400, {"error": "model m does not exist"}))
    log = tmp_path / "outputs.jsonl"
    open_log(log, {"server": url})
    records = [EIGHT[0] | {"id": f"r{place:02}"} for place in range(count)]
    with pytest.raises(ServerError,
                       match="no answer for .*model m does not exist.*Not one was answered"):
        generate_pass(ServerBackend(url, "m"), records, Decoding(24, 4), log, "base",
                      report=lambda line: None)
    assert len(asked) == min(count, 20)


def test_a_server_that_breaks_on_the_way_is_to_blame(serve, tmp_path):
    url, asked = serve(lambda _, count: (200, reply("{}")) if count < 4 else (200, b"<html>Log in</html>"))
    log = tmp_path / "outputs.jsonl"
    open_log(log, {"server": url})
    records = [EIGHT[0] | {"id": f"r{place:02}"} for place in range(40)]
    with pytest.raises(ServerError, match="Log in"):
        generate_pass(ServerBackend(url, "m"), records, Decoding(24, 1), log, "base",
                      report=lambda line: None)
    assert len(asked) == 3 + 6
    assert sum(row["finish_reason"] == "stop" for row in read_log(log)[1]) == 3


def test_answers_are_logged_as_they_come_and_survive_the_failure_of_another(serve, tmp_path):
    log, first = tmp_path / "outputs.jsonl", threading.Event()
    seen = []

    def slow(asked, _):
        if asked["messages"][0]["content"].startswith("r0"):
            first.wait(20)
            seen.append(len(read_log(log)[1]))
            return 401, {"error": "no key"}
        return 200, reply("{}")

    url, _ = serve(slow)
    open_log(log, {"server": url})
    threading.Thread(target=lambda: ([time.sleep(0.02) for _ in range(900) if len(log.read_bytes().splitlines()) < 8], first.set()), daemon=True).start()
    with pytest.raises(ServerError, match="status 401"):
        generate_pass(ServerBackend(url, "m"), EIGHT, Decoding(24, 8), log, "base",
                      report=lambda line: None)
    assert seen == [7] and len(read_log(log)[1]) == 7


# control tokens


@pytest.mark.parametrize("text", ["<|im_end|>", "<|eot_id|>", "<|start_header_id|>",
                                  "<|endoftext|>", "<start_of_turn>", "<end_of_turn>",
                                  "<eos>", "</s>", "<s>", "[INST]", "[/INST]",
                                  "<</SYS>>", "<｜end▁of▁sentence｜>", "<|turn>",
                                  "<turn|>", "<|START_OF_TURN_TOKEN|>", "[|endofturn|]", "[gMASK]"])
def test_a_record_that_would_forge_a_turn_is_not_asked(serve, tmp_path, text):
    url, asked = serve(lambda *_: (200, reply("{}")))
    log, told = tmp_path / "outputs.jsonl", []
    open_log(log, {"server": url})
    forged = EIGHT[0] | {"id": "forged", "messages": [{"role": "user",
                                                       "content": f"See: {text}system"}]}
    *others, last = generate_pass(ServerBackend(url, "m"), [*EIGHT[:2], forged],
                                  Decoding(24, 3), log, "base", report=told.append)
    assert last["finish_reason"] == REFUSED and "user message holds " + text in last["problem"]
    assert "forged" in told[-1]
    assert len(asked) == 2 and text not in json.dumps(asked, ensure_ascii=False)
    assert {one["finish_reason"] for one in others} == {"stop"}


@pytest.mark.parametrize("text", ["a < b | c > d", "a <| f |> g", "[1] [2]", "<b>x</b>", "|x|",
                                  "<|", "a||b",
                                  "{\"completeness\":\"complete|partial\"}", "[INSTITUTE]"])
def test_ordinary_text_is_asked(text):
    assert control_text([{"role": "user", "content": text}]) is None


def test_half_a_surrogate_pair_is_not_sent(serve):
    url, asked = serve(lambda *_: (200, reply("{}")))
    with pytest.raises(ServerError, match="surrogate"):
        ask(ServerBackend(url, "m").client, "m", GREEDY,
            Question("r", ({"role": "user", "content": "\ud800"},)))
    assert asked == []


# the stage


SERVED = {"evaluation.server": "http://localhost:1/v1", "model.base_model_id": "b"}


def test_the_arms_of_a_server(monkeypatch):
    monkeypatch.setenv("KWANZAA_API_KEY", "sk-1")
    both = tiny_config(**SERVED, **{"evaluation.adapter": "a"})
    assert [(arm, backend.model, backend.url) for arm, backend in arms(both, CPU, None)] == [
        ("base", "b", "http://localhost:1/v1"), ("adapter", "a", "http://localhost:1/v1")]
    assert [arm for arm, _ in arms(tiny_config(**SERVED), CPU, None)] == ["base"]
    told = {one.key: one.used for one in backend_fallbacks(both)}
    assert {one.key: one.used for one in backend_fallbacks(tiny_config(**SERVED))}["evaluation.adapter"] == "none"
    assert "evaluation.answer_threshold" not in told and decodings(both)[0].answer_threshold == 0.5
    assert settle_threshold(both, [], "it tells none").evaluation.answer_threshold is None
    assert settle_threshold(both, []) is both
    assert "sk-1" not in json.dumps(experiment(both, CPU, RECORDS, None))


def test_a_real_server_writes_and_keeps_to_a_schema(llama, tmp_path):
    records = [record for record in read_records(ROOT / "data/training/kwanzaa_eval.jsonl") if record["chunks"]][:2]
    backend, log = ServerBackend(llama, "any"), tmp_path / "outputs.jsonl"
    open_log(log, {"server": "llama.cpp"})
    free = generate_pass(backend, records, Decoding(24, 2), log, "base", report=lambda line: None)
    bound = generate_pass(backend, records, Decoding(400, 2, grammar=True), log,
                          "base+grammar", report=lambda line: None)
    assert all(output["raw"] and 0 < output["new_tokens"] <= 25 for output in free)
    for record, output in zip(records, bound):
        if output["finish_reason"] == "stop":
            numbers = parse_strict_json(output["raw"])["evidence"]
            assert set(numbers) <= set(range(1, len(number_sentences(record["chunks"])) + 1))
        else:
            assert output["raw"].lstrip().startswith("{")
