"""The page to chat: what it shows, what it refuses, and how it works in a browser."""

import http.client
import json
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from browser import RUN, axe_source, resize
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from kwanzaa_nb.core.answer import (
    AnswerError, ModelAnswer, complete_answer, parse_model_answer, validate_answer_json)
from kwanzaa_nb.core.errors import KwanzaaError
from kwanzaa_nb.run import cli
from kwanzaa_nb.use import ask as use_ask
from kwanzaa_nb.use.ask import sure_words
from kwanzaa_nb.use.chat import (
    Chat, ChatError, address_of, chat_page, is_loopback, listen, serve_chat, turn_html)

EVIL = "<script>document.title = 'evil'</script><img src=x onerror=\"document.title = 'evil'\">"
SHARED = {"source_org": f"Archive {EVIL}", "content_type": "letter", "namespace": "docs",
          "license": "CC0", "canonical_url": "https://example.org/a", "doc_id": "a", "year": 1960}
TEXTS = {"mill": f"The mill was built in 1843. It stood still in 1851. {EVIL}",
         "school": "The school was opened in 1872.", "bridge": "A ledger lists who paid. " * 60}
CHUNKS = [SHARED | {"chunk_id": name, "citation_label": f"{name}.md", "text": text}
          for name, text in TEXTS.items()]
ANSWERS = {
    "built": ([1, 2], f"It was built in 1843. [1] {EVIL} It stood still in 1851. [2]", "complete"),
    "paid": ([], f"Who paid is not told. {EVIL}", "insufficient_data")}


def replied(question, kind="built", confidence=0.9):
    "A reply of a model that is not there."
    evidence, text, completeness = ANSWERS[kind]
    lacks = [f"who paid {EVIL}"] if kind == "paid" else []
    written = {"evidence": evidence, "answer": {"text": text, "completeness": completeness},
               "unknowns": {"unsupported_claims": [], "missing_context": lacks,
                            "clarifying_questions": [f"Which school? {EVIL}"]}}
    answer = complete_answer(ModelAnswer.model_validate(written), CHUNKS, query=question[:1000],
                             confidence=confidence)
    return SimpleNamespace(question=question, chunks=CHUNKS, answer=answer, seconds=7.3,
                           doubts=[f"“{EVIL}” stands elsewhere"] if kind == "built" else [])


class StandIn:
    "Answers at once, and keeps what it was asked; a gate holds it back."

    def __init__(self):
        self.asked, self.gate = [], threading.Event()
        self.gate.set()

    def __call__(self, question, before):
        self.asked.append((question, [reply.question for reply in before]))
        self.gate.wait(30)
        if "gone" in question:
            raise KwanzaaError("The server at http://127.0.0.1:9/v1\ndoes not answer: start it.")
        return replied(question, "paid" if "paid" in question else "built")


def body(question, before=()):
    return json.dumps({"question": question, "before": before}).encode()


# What is shown


def test_all_that_a_model_or_a_document_writes_is_escaped():
    for kind in ANSWERS:
        shown = turn_html(replied(f"{EVIL}?", kind))
        assert "<script" not in shown and "<img" not in shown
        assert shown.count("&lt;script&gt;") >= 5
        assert ("Look at this twice" in shown) == (kind == "built")


def test_each_mark_has_its_sentence_and_each_sentence_its_way_back():
    shown = turn_html(replied("When?"))
    for number, sentence in ((1, TEXTS["mill"][:27]), (2, "It stood still in 1851.")):
        mark = f'data-mark="[{number}]"'
        assert f'<button type="button" class="there" {mark} ' in shown
        assert f'<button type="button" class="back" {mark} ' in shown
        assert f'<mark tabindex="-1" data-marks="[{number}]">{sentence}</mark>' in shown
    assert shown.index("Passages that it cites") < shown.index("Other passages that it read (2)")


def test_a_mark_that_leads_nowhere_is_said_to():
    reply = replied("When?")
    reply.answer["answer"]["text"] = "In 1843. [1] [7]"
    shown = turn_html(reply)
    assert '<b class="astray">[7]</b>' in shown and "[7] leads nowhere" in shown
    assert 'data-mark="[7]"' not in shown


def test_overlapping_sentences_are_one_part_with_two_marks():
    reply = replied("When?")
    first = reply.answer["sources"][0]
    second = {**first, "quote_start": 4, "quote": first["quote"][4:]}
    reply.answer["sources"] = [first, second]
    assert '<mark tabindex="-1" data-marks="[1] [2]">' in turn_html(reply)


@pytest.mark.parametrize("confidence, words", [
    (1, "almost certainly hold"), (0.8, "very probably hold"), (0.79, "probably hold"),
    (0.5, "may or may not"), (0.39, "probably do not"), (0, "very probably do not"),
    (None, ""), (float("nan"), ""), (1.2, ""), ("0.9", "")])
def test_confidence_in_words(confidence, words):
    said = sure_words(confidence)
    assert (words in said) if words else said == ""


@pytest.mark.parametrize("chunks", [[], [{}], [{"chunk_id": "mill", "text": 5}]])
def test_passages_that_lack_something_are_shown_all_the_same(chunks):
    reply = replied("When?")
    reply.chunks = chunks
    assert "leads to" in turn_html(reply) or "does not stand" in turn_html(reply)


# What is asked


def test_a_question_with_its_turns_is_answered():
    chat = Chat(StandIn())
    _, first = chat.reply_to(body("When?"))
    status, told = chat.reply_to(body("  Who paid? ", [first["id"]]))
    assert status == 200 and chat.ask.asked == [("When?", []), ("Who paid?", ["When?"])]
    assert 'id="asked-2"' in told["html"] and "Who paid is not told." in told["html"]
    validate_answer_json(json.loads(told["json"]))


def test_replies_are_forgotten_from_the_oldest_on():
    chat = Chat(StandIn(), most=2)
    names = [chat.reply_to(body("When?"))[1]["id"] for _ in range(3)]
    assert list(chat.given) == names[1:]
    assert chat.reply_to(body("And?", names[1:]))[0] == 200
    for unknown in (names[:1], ["x"], [*names[2:], "x"]):
        status, told = chat.reply_to(body("And?", unknown))
        assert status == 422 and "begin a new conversation" in told["error"]
    assert len(chat.ask.asked) == 4


@pytest.mark.parametrize("sent", [
    b"", b"no JSON", b"[]", b"{}", b'{"question": 5}', b'{"question": null}', b"\xff",
    b'{"question": "a", "before": [5]}', b'{"question": "a", "more": 1}', b"[" * 100_000])
def test_what_is_no_question_is_refused(sent):
    status, told = Chat(StandIn()).reply_to(sent)
    assert status == 400 and told == {"error": told["error"]} and "reload it" in told["error"]


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_an_empty_question_is_refused(question):
    assert Chat(StandIn()).reply_to(body(question)) == (
        422, {"error": "Write a question first."})


def test_an_error_is_one_sentence(capsys):
    def invalid(question, before):
        parse_model_answer("Sure!", CHUNKS)

    def broken(question, before):
        raise ZeroDivisionError("no sentence")

    assert Chat(StandIn()).reply_to(body("gone")) == (
        422, {"error": "The server at http://127.0.0.1:9/v1 does not answer: start it."})
    with pytest.raises(AnswerError):
        invalid("", ())
    status, told = Chat(invalid).reply_to(body("a"))
    assert status == 422 and told["error"].startswith("The model wrote no valid answer (")
    assert capsys.readouterr().err == ""
    status, told = Chat(broken).reply_to(body("a"))
    assert status == 500 and "(ZeroDivisionError)" in told["error"]
    assert "no sentence" not in told["error"] and "no sentence" in capsys.readouterr().err


# The server


def serve(ask, host="127.0.0.1"):
    "A chat in a thread, and its address."
    page, sockets = chat_page(ask, f"Ask {EVIL}", "3 documents", host), listen(host, 0)
    threading.Thread(target=serve_chat, args=(page, sockets), daemon=True).start()
    return address_of(host, sockets)


@pytest.fixture(scope="module")
def chat():
    ask = StandIn()
    return ask, serve(ask)


def send(address, path, method="GET", sent=None, **headers):
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request(method, path, sent, {name.replace("_", "-"): value
                                            for name, value in headers.items()})
    reply = connection.getresponse()
    return reply.status, reply.headers, reply.read()


def test_the_page_loads_nothing_from_elsewhere(chat):
    status, headers, page = send(chat[1], "/")
    assert status == 200 and not re.search(rb"https?:|<[^>]* src=|url\(", page)
    policy = dict(part.strip().split(" ", 1)
                  for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["script-src"].startswith("'sha256-")
    assert b"<title>Ask &lt;script&gt;" in page and page.count(b"<script") == 1


def test_a_question_over_the_wire(chat):
    status, headers, told = send(chat[1], "/ask", "POST", body("When?"),
                                 Content_Type="application/json")
    assert status == 200 and headers["Content-Type"].startswith("application/json")
    assert set(json.loads(told)) == {"id", "html", "json"}


@pytest.mark.parametrize("path, method, headers, status", [
    ("/", "GET", {"Host": "evil.example"}, 403), ("/", "GET", {"Host": "evil.example:80"}, 403),
    ("/ask", "POST", {"Host": "evil.example", "Content_Type": "application/json"}, 403),
    ("/ask", "POST", {"Content_Type": "text/plain"}, 415), ("/ask", "POST", {}, 415),
    ("/ask", "GET", {}, 405), ("/ask", "OPTIONS", {"Origin": "https://evil.example"}, 405)])
def test_pages_of_others_are_refused(chat, path, method, headers, status):
    ask, address = chat
    before = len(ask.asked)
    found, given, _ = send(address, path, method, body("When?") if method == "POST" else None,
                           **headers)
    assert found == status and len(ask.asked) == before
    assert not [name for name in given if name.lower().startswith("access-control")]


@pytest.mark.parametrize("host, own", [("127.0.0.1", True), ("localhost", True), ("::1", True),
                                       ("[::1]", True), ("127.8.8.8", True), ("0.0.0.0", False),
                                       ("::", False), ("192.168.1.4", False), ("box", False)])
def test_which_hosts_are_loopback(host, own):
    assert is_loopback(host) == own
    assert bool(chat_page(StandIn(), host=host).settings["names"]) == own


def test_a_port_that_is_taken_is_a_sentence(chat):
    with pytest.raises(ChatError, match="can't be listened on .*: name another by --port"):
        listen(port=urlsplit(chat[1]).port)
    with pytest.raises(ChatError, match="can't be listened on"):
        listen("no.such.host.invalid", 0)
    for port in (-1, 65536, 99999):
        with pytest.raises(ChatError, match=f"^{port} is no port: "):
            listen(port=port)


def test_questions_are_answered_one_at_a_time_and_the_page_stays_reachable():
    ask = StandIn()
    address = serve(ask)
    ask.gate.clear()
    statuses = queue.SimpleQueue()
    for question in ("one", "two"):
        threading.Thread(target=lambda text: statuses.put(send(
            address, "/ask", "POST", body(text), Content_Type="application/json")[0]),
            args=(question,), daemon=True).start()
    while not ask.asked:
        time.sleep(0.01)
    assert send(address, "/")[0] == 200 and len(ask.asked) == 1
    ask.gate.set()
    assert [statuses.get(timeout=30) for _ in range(2)] == [200, 200] and len(ask.asked) == 2


START = """
import threading
from kwanzaa_nb.run import cli
from kwanzaa_nb.use import ask

class Reader:
    about = "1 document"
    def __call__(self, question, before):
        threading.Event().wait(60)

ask.open_reader = lambda *given, **more: Reader()
raise SystemExit(cli.main(["chat", "notes", "--port", "0"]))
"""


@pytest.mark.parametrize("asks", [False, True])
def test_ctrl_c_ends_the_command_also_in_the_middle_of_an_answer(asks):
    own = subprocess.Popen(
        [sys.executable, "-c", START], stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    address = re.search(r"http://127\.0\.0\.1:\d+/", own.stdout.readline())[0]
    assert b"<title>Ask notes</title>" in send(address, "/")[2]
    if asks:
        threading.Thread(target=send, args=(address, "/ask", "POST", body("When?")), daemon=True,
                         kwargs={"Content_Type": "application/json"}).start()
        time.sleep(2)
    own.send_signal(signal.SIGINT)
    out, err = own.communicate(timeout=30)
    assert own.returncode == 0 and "The chat has ended." in out and "Traceback" not in err


def test_a_taken_port_is_told_before_a_model_is_loaded(chat, monkeypatch, capsys):
    monkeypatch.setattr(use_ask, "open_reader", lambda *given, **more: pytest.fail("loaded"))
    assert cli.main(["chat", "notes", "--port", str(urlsplit(chat[1]).port)]) == 2
    assert "can't be listened on" in capsys.readouterr().err


# In a browser


@pytest.fixture
def opened(browser, chat):
    "The page, freshly opened: a function that asks and waits, and one that finds elements."
    def find(selector):
        return browser.find_elements("css selector", selector)

    def ask(question, turns):
        find("#question")[0].send_keys(f"{question}\n")
        WebDriverWait(browser, 30).until(lambda _: len(find(".turn")) == turns)

    chat[0].asked.clear()
    browser.get(chat[1])
    return browser, find, ask


def test_a_mark_leads_to_its_sentence_and_back(opened):
    browser, find, ask = opened
    ask("When was it built?", 1)
    first, second = find(".there")
    browser.execute_script("arguments[0].focus()", first)
    assert [one.text for one in find(".now")] == ["The mill was built in 1843."]
    second.send_keys(Keys.ENTER)
    assert [one.text for one in find(".now")] == ["It stood still in 1851."]
    sentence = browser.switch_to.active_element
    assert sentence.tag_name == "mark" and sentence.text == "It stood still in 1851."
    sentence.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element == second


def test_a_conversation(opened, chat):
    browser, find, ask = opened
    ask("When was it built?", 1)
    ask("And who paid?", 2)
    assert chat[0].asked == [("When was it built?", []),
                             ("And who paid?", ["When was it built?"])]
    assert "who paid" in find(".turn")[1].text and "Which school?" in find(".turn")[1].text
    find("#new")[0].click()
    assert not find(".turn") and browser.switch_to.active_element.get_attribute("id") == "question"
    ask("Anew?", 1)
    assert chat[0].asked[-1] == ("Anew?", [])


def test_progress_and_errors_are_in_the_page(opened, chat):
    browser, find, ask = opened
    chat[0].gate.clear()
    try:
        find("#question")[0].send_keys("It is gone\n")
        WebDriverWait(browser, 30).until(lambda _: find("progress")[0].is_displayed())
        assert "writing an answer" in find("#told")[0].text
    finally:
        chat[0].gate.set()
    WebDriverWait(browser, 30).until(lambda _: find("#failed")[0].text)
    assert find("#failed")[0].text == (
        "The server at http://127.0.0.1:9/v1 does not answer: start it.")
    assert not find("progress")[0].is_displayed()
    assert find("#question")[0].get_attribute("value") == "It is gone"


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_runs_nothing_is_fetched_nothing_is_too_wide(opened, chat, width):
    browser, find, ask = opened
    browser.get_log("performance"), browser.get_log("browser")
    resize(browser, width)
    browser.get(chat[1])
    ask(EVIL, 1)
    ask("Who paid?", 2)
    find(".there")[0].click()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events
             if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {chat[1], f"{chat[1]}ask"}
    assert browser.title.startswith("Ask <script>") and not browser.get_log("browser")
    assert browser.execute_script(
        "return document.documentElement.scrollWidth - innerWidth") <= 0
    left, right = find(".reply")[0].rect, find(".passages")[0].rect
    assert (right["x"] > left["x"]) == (width == 1200), "beside the answer, or below it on a phone"


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark"), (390, "light"),
                                           (1280, "dark")])
def test_axe_finds_nothing(opened, chat, width, scheme):
    "Neither on the page as it opens, nor with an answer, a chosen mark, a refusal and an error."
    browser, find, ask = opened
    source = axe_source()
    resize(browser, width)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(chat[1])
    browser.execute_script(source)
    found = browser.execute_async_script(RUN)
    ask("When was it built?", 1)
    find(".there")[0].click()
    ask("Who paid?", 2)
    find("#question")[0].send_keys("It is gone\n")
    WebDriverWait(browser, 30).until(lambda _: find("#failed")[0].text)
    assert found + browser.execute_async_script(RUN) == []


def test_the_answer_is_copied_as_json(opened):
    browser, find, ask = opened
    ask("When?", 1)
    browser.execute_script("""Object.defineProperty(navigator, 'clipboard', {value: {
        writeText: text => { window.copied = text; return Promise.resolve(); }}})""")
    find(".copy")[0].click()
    validate_answer_json(json.loads(browser.execute_script("return window.copied")))
    browser.execute_script("navigator.clipboard.writeText = () => Promise.reject('no')")
    find(".copy")[0].click()
    validate_answer_json(json.loads(browser.execute_script(
        "return new Promise(done => setTimeout(() => done(String(getSelection())), 200))")))
