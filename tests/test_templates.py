"""Masks on the chat templates of real models: only the answer and its end of turn are trained on.

The originals are read from the installed package trl, which keeps many for comparison. Of the models whose templates it does not keep there
are templates of our own that behave like them in what matters here; each says in what.
"""

import functools
import json
import re
from pathlib import Path

import pytest
import trl
from tiny import CHATML, THINKING, chat, tiny_config, tiny_model, tiny_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kwanzaa_nb.model.local import encode_prompts
from kwanzaa_nb.model.masking import (
    IGNORED, SPACED, MaskError, TemplateRefusal, answer_span, check_supervised, check_template,
    encode_chat, fit_template, render_chat, stop_ids, template_changes,
)
from kwanzaa_nb.model.load import ModelError, load_tokenizer, template_fallbacks
from kwanzaa_nb.model.packing import flatten_rows, flatten_shared

SHIPPED = Path(trl.__file__).parent / "chat_templates"
ANSWER = '{"citations":[],"answer":{"text":"Ọjọ́ kìíní, \\"so\\" it\'s said\\n\\nno more"}}'

# Ends of turns and, where there is one, the beginning of the text, as the models have them.
ORIGINALS = {
    "llama3": ("<|eot_id|>", "<|begin_of_text|>"), "llama3_1": ("<|eot_id|>", "<|begin_of_text|>"),
    "llama3_2": ("<|eot_id|>", "<|begin_of_text|>"), "qwen2_5": ("<|im_end|>", None),
    "qwen3": ("<|im_end|>", None), "qwen3_instruct_2507": ("<|im_end|>", None),
    "qwen3_5_think": ("<|im_end|>", None), "qwen3_5_nothink": ("<|im_end|>", None),
    "deepseekv3": ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "deepseek_r1_distill": ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "gemma": ("<end_of_turn>", "<bos>"), "gemma3": ("<end_of_turn>", "<bos>"),
    "gemma4": ("<turn|>", "<bos>"), "phi3": ("<|end|>", "<s>"), "phi3_5": ("<|end|>", "<s>"),
    "lfm2": ("<|im_end|>", "<|startoftext|>"), "cohere": ("<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"),
}
# The tokenizer's eos where it is another one; the end of a turn stands in the model's generation config.
EOS = {"gemma": "<eos>", "gemma3": "<eos>", "gemma4": "<eos>", "phi3": "<|endoftext|>",
       "phi3_5": "<|endoftext|>", "llama3": "<|end_of_text|>", "qwen2_5": "<|endoftext|>"}
PLAIN_TURNS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% else %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LIKE = {
    # Tulu 3: plain words as marks, and eos behind answers only.
    "behaves like Tulu 3": (PLAIN_TURNS, "<|end_of_text|>", "<|begin_of_text|>"),
    # OLMo 2: the same after a bos.
    "behaves like OLMo 2": ("{{ bos_token }}" + PLAIN_TURNS, "<|endoftext|>", "<|endoftext|>"),
    # Olmo 3 Instruct: ChatML whose last answer ends with eos in place of <|im_end|>, a default system message, and a remark behind a given one.
    "behaves like Olmo 3": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou call functions. <functions></functions><|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{% if m['role'] == 'system' %}{{ ' No functions. <functions></functions>' }}{% endif %}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ eos_token }}{% else %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|endoftext|>", None),
    # Mistral 7B Instruct 0.3: no generation prompt, and a system message that is shown only while the last message is the user's.
    "behaves like Mistral 0.3": (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}"
        "{% for m in rest %}{% if m['role'] == 'user' %}{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}"
        "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
        "</s>", "<s>"),
    # Mistral 7B Instruct 0.1: it refuses a system message.
    "behaves like Mistral 0.1": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
        "{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token + ' ' }}{% endif %}"
        "{% endfor %}", "</s>", "<s>"),
    # DeepSeek LLM Chat: words and a colon, so that a token could reach over the end of the prompt.
    "behaves like DeepSeek LLM": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token }}{% else %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "ChatML": (CHATML, "<|im_end|>", None),
    # Falcon Instruct: plain words as marks, and one line end in place of two.
    "behaves like Falcon": (
        "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
        "{{ {'system': 'System: ', 'user': 'User: ', 'assistant': 'Falcon: '}[m['role']] + m['content'].strip().replace('\r\n', '\n').replace('\n\n', '\n') }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\nFalcon:' }}{% endif %}",
        "<|endoftext|>", None),
    "trims": (CHATML.replace("m['content']", "m['content'] | trim"), "<|im_end|>", None),
}
GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = r"<\|[^|<>\s]+\|?>|<｜[^｜]+｜>|</?think>|<(?:start|end)_of_turn>|<[a-z|]+\|>|\[/?INST\]"
TEXT = [ANSWER, 'system user assistant "answer": {"text": "It is."}, [1] and more: {"citations":["a"]}, ":{" of it\n\n', "User: Assistant:{\"a\":1}"] * 20


@functools.cache
def merges(kind):
    "A tokenizer's file: of bytes as in Llama 3, OLMo and Qwen, or of words with a mark for spaces as in Llama 2 and Mistral."
    if kind == "bytes":
        built, alphabet, pieces = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet(), []
        built.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(GPT4), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        built.decoder = decoders.ByteLevel()
    else:
        built, alphabet = Tokenizer(models.BPE(unk_token="<0x00>", byte_fallback=True)), []
        pieces = [f"<0x{byte:02X}>" for byte in range(256)]
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        built.decoder = decoders.Sequence([decoders.Replace("▁", " "),
                                           decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    built.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=700,
                                                        initial_alphabet=alphabet,
                                                        special_tokens=pieces, show_progress=False))
    return json.dumps(json.loads(built.to_str()) | {"added_tokens": []})  # bytes are ordinary tokens


def trained_tokenizer(template, end, bos, kind, eos=None):
    "A tokenizer with merges and the special tokens of a template; as from `load_tokenizer` where the end of a turn is not its eos."
    built = Tokenizer.from_str(merges(kind))
    named = sorted({end, eos or end, "<pad>", *([bos] if bos else []),
                    *re.findall(SPECIAL, template)})
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in named])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, eos_token=eos or end,
                                        bos_token=bos, pad_token="<pad>", chat_template=template)
    tokenizer.turn_ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)]
    return tokenizer


def fitted(name, kind="bytes"):
    template, end, bos = LIKE[name] if name in LIKE else ((SHIPPED / f"{name}.jinja").read_text(encoding="utf-8"), *ORIGINALS[name])
    tokenizer = trained_tokenizer(template, end, bos, kind, EOS.get(name))
    fit_template(tokenizer)
    check_template(tokenizer)
    return tokenizer


def check(tokenizer, messages):
    "What holds for every template; returns the trained tokens."
    answer = messages[-1]["content"].strip()
    row = encode_chat(tokenizer, messages)
    prompt = tokenizer(render_chat(tokenizer, messages[:-1], add_generation_prompt=True), add_special_tokens=False)["input_ids"]
    trained = [label for label in row["labels"] if label != IGNORED]
    start = len(prompt)
    assert row["input_ids"][:start] == prompt, "the prompt is not the one generated from"
    assert row["labels"] == [IGNORED] * start + trained + [IGNORED] * (len(row["labels"]) - start - len(trained))
    assert row["input_ids"][start:start + len(trained)] == trained
    assert trained[-1] in stop_ids(tokenizer)
    assert len([token for token in trained if token in stop_ids(tokenizer)]) == 1
    assert check_supervised(tokenizer, row, answer) == len(trained)
    assert tokenizer.decode(trained[:-1]) == answer
    assert tokenizer.bos_token_id is None or row["input_ids"][:2] != [tokenizer.bos_token_id] * 2, "two beginnings of the text"
    return trained


@pytest.mark.parametrize("kind", ["bytes", "words"])
@pytest.mark.parametrize("name", [*ORIGINALS, *LIKE])
def test_answer_and_end_are_trained_on_after_the_prompt_of_generation(name, kind):
    tokenizer = fitted(name, kind)
    for answer in (ANSWER, f" {ANSWER}\n", "}", "Is it?", "assistant"):
        messages = chat(answer)
        check(tokenizer, messages)
        asked = encode_prompts(tokenizer, [{"id": "a", "messages": messages}])[0]
        assert list(asked.tokens) == encode_chat(tokenizer, messages)["input_ids"][:len(asked.tokens)]
        assert asked.decides is not None, "where answering and refusing part is not known"
    text = render_chat(tokenizer, chat()[:2], add_generation_prompt=True)
    assert "Be exact." in text and "Is it?" in text, "what is asked is not all there"


@pytest.mark.parametrize("name", [*ORIGINALS, *LIKE])
def test_of_several_exchanges_the_last_answer_is_trained_on(name):
    tokenizer = fitted(name)
    messages = [*chat("first answer", "One?"), *chat("second answer", "Two?")[1:]]
    trained = check(tokenizer, messages)
    assert "first" not in tokenizer.decode(trained)
    assert "first answer" in render_chat(tokenizer, messages[:-1], add_generation_prompt=True)


def test_every_template_that_trl_keeps_is_trained_on_rightly_or_refused_in_a_sentence():
    right, refused = [], []
    for path in sorted(SHIPPED.glob("*.jinja")):
        eos, bos = ORIGINALS.get(max((name for name in ORIGINALS if path.name.startswith(name)),
                                     key=len, default=""), ("<|im_end|>", "<s>"))
        tokenizer = trained_tokenizer(path.read_text(encoding="utf-8"), eos, bos, "bytes")
        fit_template(tokenizer)
        try:
            check(tokenizer, chat(ANSWER))
            right.append(path.stem)
        except MaskError as error:
            assert "\n" not in str(error)
            refused.append(path.stem)
    assert set(ORIGINALS) <= set(right) and "gptoss" in refused, "an answer in a channel of its own can't be asked for"
    assert len(right) > 2 * len(refused) > 0


# What is changed in a template, and where it is told


@pytest.mark.parametrize("name, remarks", [
    ("llama3_1", 0), ("qwen2_5", 0), ("qwen3_instruct_2507", 0), ("behaves like Olmo 3", 0),
    ("behaves like Mistral 0.3", 0), ("gemma3", 0), ("behaves like Falcon", 1), ("qwen3", 1),
    ("qwen3_5_think", 1), ("deepseekv3", 1), ("gemma", 1), ("behaves like Mistral 0.1", 1)])
def test_a_template_is_changed_where_it_must_be_and_says_so(name, remarks):
    tokenizer = fitted(name)
    before = tokenizer.chat_template
    assert len(template_changes(tokenizer)) == remarks
    assert [one.key for one in template_fallbacks(tokenizer)] == ["chat template"] * remarks
    fit_template(tokenizer)
    assert tokenizer.chat_template == before, "fitted twice"


def test_a_model_that_thinks_is_asked_for_the_answer():
    for name in ("qwen3", "qwen3_5_think", "deepseekv3", "deepseek_r1_distill"):
        asked = render_chat(fitted(name), chat()[:2], add_generation_prompt=True)
        assert re.search(r"<think>\s*</think>\s*$", asked), asked[-60:]


def test_a_system_message_that_is_refused_stands_in_front_of_the_question():
    asked = render_chat(fitted("gemma"), chat()[:2], add_generation_prompt=True)
    assert asked == "<bos><start_of_turn>user\nBe exact.\n\nIs it?<end_of_turn>\n<start_of_turn>model\n"


def test_the_changed_template_is_saved_with_the_tokenizer(tmp_path):
    tokenizer = fitted("qwen3")
    tokenizer.save_pretrained(tmp_path)
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    asked = plain.apply_chat_template(chat()[:2], tokenize=False, add_generation_prompt=True)
    assert asked == render_chat(tokenizer, chat()[:2], add_generation_prompt=True)


def test_the_tokenizer_eos_of_gemma_and_phi_ends_no_turn():
    "The generation config's ids do, and they are with the tokenizer."
    for name in EOS:
        tokenizer = fitted(name)
        trained = check(tokenizer, chat(ANSWER))
        assert tokenizer.eos_token_id != trained[-1] == tokenizer.convert_tokens_to_ids(ORIGINALS[name][0])
        del tokenizer.turn_ends
        if name not in ("phi3", "phi3_5"):  # their templates end a finished conversation with eos besides
            with pytest.raises(MaskError, match="the model stops at .*generation_config.json") as error:
                encode_chat(tokenizer, chat(ANSWER))
            assert "\n" not in str(error.value) and tokenizer.eos_token in str(error.value)


def test_other_templates_keep_every_character():
    for name in ("llama3_1", "qwen2_5", "behaves like OLMo 2"):
        tokenizer = fitted(name)
        assert tokenizer.chat_template == (LIKE[name][0] if name in LIKE else (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8"))


# What is refused, and how


@pytest.mark.parametrize("template, says", [
    (CHATML.replace("m['content']", "m['content'] | upper"), "does not show the system message as it was given"),
    (CHATML.replace("m['content']", "(m['content'] | upper if m['role'] == 'assistant' else m['content'])"), "does not show the answer as it was given"),
    (CHATML.replace("<|im_end|>\n", "\n"), "no end-of-turn token follows the answer"),
    (CHATML.replace("<|im_end|>\n{% endfor", "{% endfor"), "there, and the model stops at <.im_end.> .257.: choose"),  # as GLM 4
    (CHATML.replace("assistant\n{% endif %}", "assistant\n<|channel|>\n{% endif %}"), "the prompt ends"),
    ("{{ raise_exception('not today') }}", "refuses the messages .not today."),
    ("{% for m in messages %}{{ m.content.text.strip() }}{% endfor %}", "refuses the messages"),
    ("{% for m in", "refuses the messages"),
])
def test_what_no_mask_is_right_for_is_refused_in_a_sentence(template, says):
    tokenizer = tiny_tokenizer(template)
    fit_template(tokenizer)
    with pytest.raises(MaskError, match=says) as error:
        encode_chat(tokenizer, chat("quiet"))
    assert "\n" not in str(error.value)
    if "end-of-turn" not in says:
        assert "chat_template.jinja" in str(error.value)


def test_a_thought_that_the_prompt_begins_is_closed_and_never_trained_in():
    with pytest.raises(MaskError):
        encode_chat(tiny_tokenizer(THINKING), chat())
    tokenizer = tiny_tokenizer(THINKING)
    fit_template(tokenizer)
    assert tokenizer.decode([label for label in encode_chat(tokenizer, chat())["labels"] if label != IGNORED]) == "yes<|im_end|>"


def test_an_answer_that_holds_the_end_of_a_turn_is_trained_on_to_its_own_end():
    tokenizer = tiny_tokenizer()
    encoded = encode_chat(tokenizer, chat("a<|im_end|>b"))
    assert tokenizer.decode([label for label in encoded["labels"] if label != IGNORED]) == "a<|im_end|>b<|im_end|>"


def test_padding_that_is_the_end_of_a_turn_masks_no_end():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = [encode_chat(tokenizer, chat(answer)) for answer in ("yes", "longer than that")]
    for flat in (flatten_rows(rows), flatten_shared(rows)):
        assert (flat["labels"] == tokenizer.eos_token_id).sum() == 2


# What a template does to messages in silence

DROPS = CHATML.replace("{% for m in messages %}", "{% for m in messages %}{% if m['role'] != 'system' %}").replace("\n{% endfor", "\n{% endif %}{% endfor")
SYSTEM = {
    "dropped": DROPS,
    "dropped without tools": CHATML.replace("{% for m in messages %}", "{% for m in messages %}{% if m['role'] != 'system' or tools %}").replace(
        "\n{% endfor", "\n{% endif %}{% endfor"),
    "cut": CHATML.replace("m['content']", "(m['content'][:2000] if m['role'] == 'system' else m['content'])"),
    "upper": CHATML.replace("m['content']", "(m['content'] | upper if m['role'] == 'system' else m['content'])"),
    "escaped": CHATML.replace("m['content']", "(m['content'] | e if m['role'] == 'system' else m['content'])"),
    "one line": CHATML.replace("m['content']", "(m['content'] | replace('\n', ' ') if m['role'] == 'system' else m['content'])"),
    "refused": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
    "zero": "{% if messages[0]['role'] == 'system' %}{{ 1 // 0 }}{% endif %}" + CHATML,
    "type": "{% if messages[0]['role'] == 'system' %}{{ 1 + 'a' }}{% endif %}" + CHATML,
}


@pytest.mark.parametrize("name", SYSTEM)
def test_a_system_message_that_a_template_does_not_show_stands_in_front_of_the_question(name):
    tokenizer = tiny_tokenizer(SYSTEM[name])
    fit_template(tokenizer)
    check_template(tokenizer)
    assert template_changes(tokenizer) == ["the model takes no system message, so it stands in front of the question"]
    assert render_chat(tokenizer, chat()[:2], add_generation_prompt=True) == "<|im_start|>user\nBe exact.\n\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    assert encode_prompts(tokenizer, [{"id": "a", "messages": chat()}]) and check(tokenizer, chat())


HOPELESS = {
    "no question": (CHATML.replace("m['content']", "(m['content'] if m['role'] != 'user')"), "leaves the user's message out"),
    "nothing at all": ("{{ bos_token }}", "leaves the system message out"),
    "half a question": (CHATML.replace("m['content']", "m['content'][:900]"), "does not show the system message as it was given"),
    "twice": (CHATML.replace("{{ m['content'] }}", "{{ m['content'] }} {{ m['content'] if m['role'] == 'user' }}"), "shows the user's message 2 times"),
    "parts": (CHATML.replace("{{ m['content'] }}", "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"),
              "leaves the system message out, for it reads a list of parts and no text"),
    "parts by number": (CHATML.replace("m['content']", "m['content'][0]['text']"), "leaves the system message out, for it reads a list of parts"),
    "TypeError": ("{{ 1 + 'a' }}", "TypeError"), "ZeroDivisionError": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "UndefinedError": ("{{ none_such.of_it }}", "refuses the messages .'none_such' is undefined"),
    "SecurityError": ("{{ messages.__class__.__mro__ }}", "refuses the messages"),
    "RecursionError": ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
    "KeyError": ("{{ '%(a)s' % {} }}", "KeyError"), "OverflowError": ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
    "syntax": ("{% for m in", "refuses the messages"), "several lines": ("{{ raise_exception('a\nb') }}", "refuses the messages .a b."),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_a_template_that_can_not_ask_is_refused_in_a_sentence_when_it_is_loaded(bare, name):
    template, says = HOPELESS[name]
    (bare / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = tiny_config(model__base_model_id=str(bare))
    for call in (lambda: load_tokenizer(config),
                 lambda: encode_prompts(tiny_tokenizer(template),
                                        [{"id": "r1",
                                          "messages": chat("x", "y" * 999, "z" * 999)}]),
                 lambda: encode_chat(tiny_tokenizer(template), chat("x", "y" * 999, "z" * 999))):
        with pytest.raises(TemplateRefusal, match=says) as error:
            call()
        assert "\n" not in str(error.value) and "chat_template.jinja" in str(error.value)


def test_a_record_that_a_template_changes_is_named(bare):
    "Here one that the trial does not find out."
    tokenizer = tiny_tokenizer(CHATML.replace("m['content']", "m['content'] | replace('rare', 'medium')"))
    fit_template(tokenizer)
    check_template(tokenizer)
    records = [{"id": "well", "messages": chat()}, {"id": "changed",
                                                    "messages": chat("so", "Is it rare?")}]
    with pytest.raises(TemplateRefusal, match="^changed: the chat template does not show the user's message as it was given"):
        encode_prompts(tokenizer, records)
    with pytest.raises(TemplateRefusal):
        encode_chat(tokenizer, records[1]["messages"])


NO_LINES = CHATML.replace("{{ m['content'] }}", "{{ m['content'].split() | join(' ') }}")


@pytest.mark.parametrize("template, system", [
    (NO_LINES, "<|im_start|>system\nBe exact. <|end|><|im_end|>\n<|im_start|>user\n"),
    (NO_LINES.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"), "<|im_start|>user\nBe exact. <|end|> "),
])
def test_white_space_inside_of_messages_is_as_the_template_writes_it(template, system):
    "But for the answer, which no template writes when a model does."
    tokenizer = tiny_tokenizer(template)
    fit_template(tokenizer)
    check_template(tokenizer)
    assert template_changes(tokenizer)[-1] == SPACED
    assert len(template_changes(tokenizer)) == 1 + ("system" not in system)
    messages = chat("it \n\n is", "Is\r\n\r\nit<|im_end|>  so?", "Be\n\nexact. <|end|>")
    asked = render_chat(tokenizer, messages[:2], add_generation_prompt=True)
    assert asked == f"{system}Is it<|im_end|> so?<|im_end|>\n<|im_start|>assistant\n"
    assert asked == tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True), "a server is asked the same"
    row = encode_chat(tokenizer, messages)
    assert tokenizer.decode([label for label in row["labels"] if label != IGNORED]) == "it \n\n is<|im_end|>"
    assert row["input_ids"].count(tokenizer.eos_token_id) == asked.count("<|im_end|>\n") + 1, "the question ends no turn"
    assert list(encode_prompts(tokenizer, [{"id": "a", "messages": messages}])[0].tokens) == row["input_ids"][:-len("it \n\n is") - 2]


def test_a_template_that_changes_white_space_may_change_nothing_else():
    tokenizer = tiny_tokenizer(NO_LINES.replace("join(' ')",
                                                "join(' ') | replace('rare', 'medium')"))
    fit_template(tokenizer)
    check_template(tokenizer)
    with pytest.raises(TemplateRefusal,
                       match="does not show the user's message as it was given .in place of 'rare"):
        render_chat(tokenizer, chat(question="Is it rare?"))


def test_what_a_template_leaves_out_of_a_text_is_told():
    "SmolLM3 and others read words in a message as a setting."
    tokenizer = tiny_tokenizer(CHATML.replace("m['content']", "m['content'].replace('/no_think', '')"))
    fit_template(tokenizer)
    with pytest.raises(TemplateRefusal, match="the system message as it was given .in place of '/no_think Be.*' it writes ' Be.*'.: write that otherwise"):
        encode_chat(tokenizer, chat(system="/no_think Be."))


def test_a_rendering_is_kept_for_messages_that_are_alike_in_all_but_their_texts():
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m.name or m.role }}: {{ m.content }}<|im_end|>{% endfor %}")
    first, second = ([{**message, **more} for message in chat()] for more in ({}, {"name": "Ada"}))
    for messages, name in ((first, "user"), (second, "Ada"), (first, "user")):
        assert f"{name}: Is it?<|im_end|>" in render_chat(tokenizer, messages)
    for spaces in range(120):
        assert f"user: {' ' * spaces}Is it?" in render_chat(tokenizer,
                                                            chat(question=" " * spaces + "Is it?"))


def test_a_message_that_a_template_tests_for_is_shown_as_it_was_given():
    "A text with the end of a thought is no thought."
    tokenizer = fitted("qwen3")
    for messages in (chat("yes</think>no"), chat("no", "a </think> b", "<think>")):
        text, start, stop = answer_span(tokenizer, messages)
        assert text[start:stop] == messages[2]["content"] and messages[1]["content"] in text[:start]


# The setting


@pytest.fixture
def bare(tmp_path):
    "A model without a chat template."
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    tiny_tokenizer(None).save_pretrained(tmp_path)
    return tmp_path


def test_a_model_without_template_is_given_one_by_a_file_in_its_folder(bare):
    config = tiny_config(model__base_model_id=str(bare))
    with pytest.raises(ModelError, match="with a chat_template.jinja"):
        load_tokenizer(config)
    (bare / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    tokenizer = load_tokenizer(config)
    assert tokenizer.chat_template == CHATML and tokenizer.eos_token_id in stop_ids(tokenizer)


def test_a_template_file_that_cannot_be_read_is_one_sentence(bare):
    (bare / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError) as error:
        load_tokenizer(tiny_config(model__base_model_id=str(bare)))
    assert "\n" not in str(error.value)


def test_of_several_named_templates_the_default_is_taken(bare):
    several = tiny_tokenizer({"default": CHATML, "tool_use": "{{ 'tools' }}"})
    several.save_pretrained(bare)
    assert load_tokenizer(tiny_config(model__base_model_id=str(bare))).chat_template == CHATML


def test_a_refusal_is_a_mask_error():
    with pytest.raises(TemplateRefusal):
        render_chat(tiny_tokenizer(None), chat())
