"Masks, for any chat template: only the answer and its end of turn are trained on."

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHATML, LAST_TURN, NO_END, ROOT, STRIPPING, THINKING, chat, tiny_tokenizer

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.model.local import encode_prompts
from kwanzaa_nb.model.masking import (
    IGNORED, MaskError, answer_span, check_supervised, encode_chat, render_chat, stop_ids)
from kwanzaa_nb.model.load import load_tokenizer
from kwanzaa_nb.core.record import read_records

TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"), "stripping": (STRIPPING, "<|im_end|>"),
    "last turn": (LAST_TURN, "<|end|>"),
}
ANSWERS = {
    "plain": "yes", "json": '{"evidence":[],"answer":{"text":"…"}}',
    "unicode": "Ọjọ́ kìíní 🕯️ – «Umoja»", "newline": "one\ntwo\n\nthree", "in the prompt": "Is it?",
    "role word": "assistant", "one sign": "}", "looks like a turn": "user\nsystem: x",
}


@pytest.fixture(scope="module")
def smollm():
    return load_tokenizer(load_config(ROOT / "configs" / "demo.cpu.yaml"))


@pytest.fixture(scope="module", params=["train", "eval"])
def records(request):
    return read_records(ROOT / "data" / "training" / f"kwanzaa_{request.param}.jsonl")[::8]


def trained(encoded):
    return [label for label in encoded["labels"] if label != IGNORED]


def prompt_tokens(tokenizer, messages):
    return list(encode_prompts(tokenizer, [{"id": "a", "messages": messages}])[0].tokens)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_answer_and_end_are_trained_on_and_nothing_else(template, answer):
    text, end = TEMPLATES[template]
    tokenizer = tiny_tokenizer(text, end)
    encoded = encode_chat(tokenizer, chat(answer))
    labels = trained(encoded)
    assert tokenizer.decode(labels) == answer + end
    assert check_supervised(tokenizer, encoded, answer) == len(labels) == len(answer.encode()) + 1
    prompt = prompt_tokens(tokenizer, chat(answer))
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert encoded["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert encoded["labels"][len(prompt) : len(prompt) + len(labels)] == labels


@pytest.mark.parametrize("answer", [" yes", "yes ", "\n yes \n", "\tyes\n"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_white_space_around_an_answer(template, answer):
    text, end = TEMPLATES[template]
    tokenizer = tiny_tokenizer(text, end)
    encoded = encode_chat(tokenizer, chat(answer))
    check_supervised(tokenizer, encoded, answer)
    labels = encoded["labels"]
    assert tokenizer.decode(trained(encoded)).strip().startswith("yes")
    assert trained(encoded)[-1] in stop_ids(tokenizer)
    first = next(place for place, label in enumerate(labels) if label != IGNORED)
    last = first + len(trained(encoded)) - 1
    assert labels[first : last + 1] == trained(encoded), "the end is trained on where it follows something untrained"


@settings(max_examples=60, deadline=None)
@given(
    answer=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(lambda text: text.strip())
)
def test_any_text_reads_back(answer):
    tokenizer = tiny_tokenizer()
    encoded = encode_chat(tokenizer, chat(answer))
    assert check_supervised(tokenizer, encoded, answer) >= 2


def test_a_middle_turn_may_end_otherwise():
    tokenizer = tiny_tokenizer(LAST_TURN, "<|turn|>")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    with pytest.raises(MaskError, match="no end-of-turn token follows"):
        encode_chat(tokenizer, chat())
    encoded = encode_chat(tokenizer, chat(), {end})
    assert tokenizer.decode(trained(encoded)) == "yes<|end|>"


def test_only_the_first_end_is_trained_on():
    tokenizer = tiny_tokenizer(CHATML.replace("<|im_end|>\n", "<|im_end|><|im_end|>\n"))
    assert tokenizer.decode(trained(encode_chat(tokenizer, chat()))) == "yes<|im_end|>"


def test_a_template_without_end_of_turn_is_refused():
    with pytest.raises(MaskError, match="no end-of-turn token follows the answer"):
        encode_chat(tiny_tokenizer(NO_END), chat())


@pytest.mark.parametrize("template", [None, ""])
def test_a_tokenizer_without_template_is_refused(template):
    for call in (
        lambda: encode_chat(tiny_tokenizer(template), chat()),
        lambda: render_chat(tiny_tokenizer(template), chat()),
    ):
        with pytest.raises(MaskError, match="no chat template"):
            call()


def test_a_template_that_hides_the_answer_is_refused():
    with pytest.raises(MaskError, match="does not show"):
        encode_chat(tiny_tokenizer(CHATML.replace("m['content']", "m['content'] | upper")),
                    chat("quiet"))


def test_a_blank_answer_is_refused():
    with pytest.raises(MaskError):
        encode_chat(tiny_tokenizer(), chat("  "))


def test_an_answer_that_the_prompt_holds_is_found_behind_the_prompt():
    text, start, stop = answer_span(tiny_tokenizer(), chat("yes", question="yes or no? yes",
                                                           system="Say yes."))
    assert text[start:stop] == "yes" and text[:start].endswith("<|im_start|>assistant\n")


def test_a_prompt_that_is_not_the_one_generated_from_is_refused():
    "A template may open a train of thought for generation and not show it in a finished turn."
    with pytest.raises(MaskError):
        encode_chat(tiny_tokenizer(THINKING), chat())


def test_a_wrong_mask_is_noticed():
    tokenizer = tiny_tokenizer()
    encoded = encode_chat(tokenizer, chat("exactly"))
    first = next(place for place, label in enumerate(encoded["labels"]) if label != IGNORED)
    for labels in (
        encoded["labels"][:first] + [IGNORED] + encoded["labels"][first + 1 :],
        encoded["labels"][: first - 9] + encoded["input_ids"][first - 9 : first] + encoded["labels"][first:],
    ):
        with pytest.raises(MaskError, match="the supervised tokens read"):
            check_supervised(tokenizer, {**encoded, "labels": labels}, "exactly")


def test_ends_come_from_tokenizer_and_generation_config():
    class Settings:
        eos_token_id = [7, 9]

    tokenizer = tiny_tokenizer()
    assert stop_ids(tokenizer, Settings()) == {tokenizer.eos_token_id, 7, 9}
    Settings.eos_token_id = 7
    assert stop_ids(tokenizer, Settings()) == {tokenizer.eos_token_id, 7}
    assert stop_ids(tokenizer) == {tokenizer.eos_token_id}


def test_every_committed_record_is_trained_on_as_it_is_asked(smollm, records):
    "Token for token: what stands before the answer in training is what generation starts from."
    prompts = encode_prompts(smollm, records)
    for record, prompt in zip(records, prompts):
        encoded = encode_chat(smollm, record["messages"])
        answer, length = record["messages"][-1]["content"], len(prompt.tokens)
        assert encoded["input_ids"][:length] == list(prompt.tokens), record["id"]
        assert all(label == IGNORED for label in encoded["labels"][:length])
        assert smollm.decode(trained(encoded)) == f"{answer}<|im_end|>"
        assert encoded["labels"][length : length + len(trained(encoded))] == trained(encoded)
        assert check_supervised(smollm, encoded, answer) == len(trained(encoded))


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_real_tokenizer_on_odd_answers(smollm, answer):
    encoded = encode_chat(smollm, chat(answer))
    assert smollm.decode(trained(encoded)) == f"{answer}<|im_end|>"
    prompt = prompt_tokens(smollm, chat(answer))
    assert encoded["input_ids"][: len(prompt)] == prompt


def test_the_real_tokenizer_tells_what_an_application_must_send(smollm):
    text = render_chat(smollm, chat()[:2], add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n") and json.dumps(text).count("<|im_start|>") == 3
