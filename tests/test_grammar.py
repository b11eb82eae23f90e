"The grammar of a record: it accepts gold answers, and whatever it accepts is valid."

import json
import random
import re
import time

import numpy as np
import pytest
import torch
from test_control import MADE, made
from tiny import ROOT, chat, tiny_model, tiny_tokenizer

from kwanzaa_nb.core.answer import ModelAnswer, find_marks, parse_model_answer
from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.model.grammar import (
    BITS, Bounds, Grammar, GrammarError, GrammarProcessor, allowed, forced, number_rules,
    record_grammar)
from kwanzaa_nb.model.backend import Decoding
from kwanzaa_nb.model.decision import decision_tokens
from kwanzaa_nb.model.load import load_tokenizer
from kwanzaa_nb.model.local import LocalBackend
from kwanzaa_nb.model.masking import stop_ids
from kwanzaa_nb.core.prefix import PrefixCheck
from kwanzaa_nb.core.prompt import target_json
from kwanzaa_nb.core.strict_json import parse_strict_json


def chunks_of(count):
    "Chunks with that many sentences, four in each."
    texts = [" ".join(f"Tool {number} was lent." for number in range(first, min(first + 4, count + 1))) for first in range(1, count + 1, 4)]
    return [{"chunk_id": f"c{place}", "text": text} for place, text in enumerate(texts)]


THREE = chunks_of(3)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(load_config("configs/demo.cpu.yaml"))


@pytest.fixture(scope="module")
def grammar(tokenizer):
    return Grammar(tokenizer, len(tokenizer), {tokenizer.eos_token_id})


def encoded(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def accepts(grammar, tokenizer, chunks, text, uncited=False):
    "Whether a text is let through token by token, each one of the tokens that the mask allows, and its end too."
    matcher = grammar.matcher(chunks, uncited)
    for token in encoded(tokenizer, text):
        if not allowed(matcher, len(tokenizer))[token]:
            return False
        assert matcher.consume_token(token)
    return bool(allowed(matcher, len(tokenizer))[tokenizer.eos_token_id] and matcher.is_accepting())


def written(evidence, completeness="complete", text="So it was [1].", missing=(),
            asking=(), unsupported=()):
    return target_json(ModelAnswer.model_validate({
        "evidence": list(evidence), "answer": {"completeness": completeness,
                                               "text": text},
        "unknowns": {"unsupported_claims": list(unsupported),
                     "missing_context": list(missing), "clarifying_questions": list(asking)}}))


GOLD = {
    "complete": written([1]), "several": written([3, 1], text="It [3] is [1]. So [3]."),
    "all": written([2, 3, 1], text="All [2][3][1]."),
    "partial": written([2], "partial", "It was [2].", missing=["the year"]),
    "refused": written([], "insufficient_data", "Not said.", missing=["the year"]),
    "asked": written([], "insufficient_data", "Not said.", asking=["Which year?"]),
    "corrected": written([1], unsupported=["that it was in 1863"]),
    "refused and asked": written([], "insufficient_data", "Not said.",
                                 missing=["the year", "the place"], asking=["Which?"],
                                 unsupported=["that it was"]),
    "scripts": written([1], text='"¿It" — שלום مرحبا 你好 🙂 so\\/\n\t [1].'),
}


@pytest.mark.parametrize("text", GOLD.values(), ids=GOLD)
def test_each_form_of_an_answer_is_let_through_token_by_token(grammar, tokenizer, text):
    parse_model_answer(text, THREE)
    assert accepts(grammar, tokenizer, THREE, text)
    matcher = grammar.matcher(THREE)
    assert matcher.consume_tokens(encoded(tokenizer, text)) and matcher.is_accepting()


FORBIDDEN = {
    "not shown": written([4], text="So [4]."), "twice": written([1, 1], text="So [1]."), "no evidence": written([], text="So it was."),
    "no mark": written([1], text="No mark."), "mark of another": written([1], text="Two marks [1] [2]."), "one mark short": written([1, 2], text="Only [1]."),
    "zero": written([1]).replace("[1]", "[0]", 1), "leading zero": written([1]).replace("[1]", "[01]", 1), "text": written([1]).replace("[1]", '["1"]', 1),
    "fraction": written([1]).replace("[1]", "[1.0]", 1), "negative": written([1]).replace("[1]", "[-1]", 1), "null": written([1]).replace("[1]", "[null]", 1),
    "mark with zero": written([1], text="So [1] [01]."), "two in a mark": written([1, 2], text="So [1][2] [1, 2]."), "brackets": written([1], text="So [sic] it was [1]."),
    "complete with missing": written([1], missing=["the year"]), "partial without missing": written([1], "partial"),
    "partial with blank": written([1], "partial", missing=["?"]), "refusal with evidence": written([1], "insufficient_data", "Not said.", missing=["the year"]),
    "refusal with marks": written([], "insufficient_data", "Not said [1].", missing=["the year"]),
    "refusal without reason": written([], "insufficient_data", "Not said."), "refusal of signs": written([], "insufficient_data", "...", missing=["the year"]),
    "reason of signs": written([], "insufficient_data", "Not said.", missing=["\n?"]), "text of signs": written([1], text="\n [1]"), "only a mark": written([1], text="[1]"),
    "raw line break": written([], "insufficient_data", "Line\nbreak", missing=["the year"]).replace("\\n", "\n"),
    "completeness": written([1]).replace('"complete"', '"done"'), "behind": written([1]) + " ", "before": " " + written([1]), "space": written([1]).replace(":", ": ", 1),
    "key": written([1]).replace('"answer"', '"Answer"'), "fence": f"```json\n{written([1])}\n```", "nothing": "", "cut off": written([1])[:-1],
    "other order": json.dumps(dict(reversed(json.loads(written([1])).items())), separators=(",", ":")),
}


@pytest.mark.parametrize("text", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_the_contract_forbids_is_forbidden(grammar, tokenizer, text):
    assert not accepts(grammar, tokenizer, THREE, text)


def test_an_answer_may_name_nothing_where_that_was_said(grammar, tokenizer):
    for bare in (written([], "partial", "Nobody knows.", missing=["the year"]),
                 written([], text="Nobody knows.")):
        for chunks in (THREE, []):
            assert accepts(grammar, tokenizer, chunks, bare, uncited=True)
            assert not accepts(grammar, tokenizer, chunks, bare)
    for wrong in (written([], "partial", "Nobody knows."), written([], text="Nobody [1]."),
                  written([], missing=["the year"], text="So.")):
        assert not accepts(grammar, tokenizer, THREE, wrong, uncited=True)


def test_with_nothing_shown_no_number_is_let_through(grammar, tokenizer):
    for name, text in GOLD.items():
        assert accepts(grammar, tokenizer, [], text) == (name in ("refused", "asked", "refused and asked"))


def test_the_evidence_is_limited_by_the_bounds_alone(grammar, tokenizer):
    four, five = ([*range(1, 5)], [*range(1, 6)])
    for evidence, good in ((four, True), (five, False)):
        assert accepts(grammar, tokenizer, chunks_of(12), written(evidence, text="So " + "".join(f"[{number}]" for number in evidence))) == good


def test_more_sentences_than_a_parameter_has_bits(grammar, tokenizer):
    many = chunks_of(200)
    for evidence in ([3], [69], [200], [3, 69], [69, 3], [200, 1, 99, 12]):
        text = "So it was " + "".join(f"[{number}]" for number in evidence)
        assert accepts(grammar, tokenizer, many, written(evidence, text=text)), evidence
    assert not accepts(grammar, tokenizer, many, written([201], text="So [201]"))
    assert not accepts(grammar, tokenizer, many, written([2, 2], text="So [2]"))
    assert BITS == 64 and not accepts(grammar, tokenizer, many, written([5, 69], text="So it was [5][69]")), "they share a bit, as the notebook says"


@pytest.mark.parametrize("count", [300, 1200])
def test_a_long_library_has_a_grammar_of_no_more_rules(grammar, tokenizer, count):
    assert len(number_rules(4, count)) == len(number_rules(4, BITS)) == BITS + 4
    many, start = chunks_of(count), time.perf_counter()
    for evidence in ([count], [1, count, 12], [count - 1, 7, 99]):
        text = "So it was " + "".join(f"[{number}]" for number in evidence)
        assert accepts(grammar, tokenizer, many, written(evidence, text=text)), evidence
    assert not accepts(grammar, tokenizer, many, written([count + 1], text=f"So [{count + 1}]"))
    assert time.perf_counter() - start < 20, "no mask takes seconds"


SPACED = ["Mistral", "Llama 2", "unigram", "swallowing"]  # tokenizers that put a space before a text


@pytest.mark.parametrize("name", MADE)
def test_the_tokens_that_were_trained_on_are_let_through(name):
    tokenizer = made(name)
    grammar = Grammar(tokenizer, len(tokenizer), stop_ids(tokenizer))
    assert grammar.lead == (" " if name in SPACED else "")
    for form, text in GOLD.items():
        assert form == "scripts" or accepts(grammar, tokenizer, THREE, text), form
    before = decision_tokens(tokenizer).before
    ahead = forced([grammar.matcher(THREE)])[0]
    assert ahead and tuple(ahead[:len(before)]) == before[:len(ahead)], "where the decision is looked for"


@pytest.mark.parametrize("least, refuses", [(0.0, False), (2.0, True)])
@pytest.mark.parametrize("name", MADE)
def test_a_threshold_decides_under_a_grammar_whatever_the_tokenizer(name, least, refuses):
    tokenizer = made(name)
    model, usual = tiny_model(vocab_size=len(tokenizer), attention="sdpa"), decision_tokens(tokenizer).before

    def as_trained(_, __, found):  # it begins with the tokens that answers were trained on
        found.logits[..., list(usual)] += 9

    model.register_forward_hook(as_trained)
    backend = LocalBackend(model, tokenizer)
    record = {"id": "a", "chunks": THREE, "messages": chat("", "Why?")[:2]}
    found, = backend.write(backend.prompts([record]),
                           Decoding(40, 1, grammar=True, answer_threshold=least))
    chance, = (chance for _, chance in backend.p_answer(backend.prompts([record])))
    assert found.p_answer == pytest.approx(chance, abs=1e-4)
    assert found.raw.startswith('{"evidence":[]') == refuses


def behind(grammar, tokenizer, chunks, text):
    "The tokens that may follow a text, as texts."
    matcher = grammar.matcher(chunks)
    assert matcher.consume_tokens(encoded(tokenizer, text))
    return {tokenizer.decode([token]) for token in np.flatnonzero(allowed(matcher, len(tokenizer)))}


def test_a_mark_is_of_the_evidence_alone(grammar, tokenizer):
    head = '{"evidence":[12,3,1],"answer":{"completeness":"complete","text":"It was ['
    for more, digits in (("", "1"), ("12] [", "13"), ("12] [3", ""), ("12] [3][1] and [1", "2")):  # the first marks are in the order of the evidence
        found = behind(grammar, tokenizer, chunks_of(30), head + more)
        assert {piece[0] for piece in found} - {"]"} == set(digits), more


def test_a_number_of_the_evidence_is_named_once(grammar, tokenizer):
    digits = {piece for piece in behind(grammar, tokenizer, THREE, '{"evidence":[2,')
              if piece.strip()}
    assert digits == {"1", "3"}
    assert not any(piece[:1].isdigit() for piece in behind(grammar, tokenizer,
                                                           THREE, '{"evidence":[2'))


# ---------------------------------------------------------------- random walks

ENDS = ['"', "[", "]", ",", '"]', '"}']


def wander(matcher, tokenizer, eos_token_ids, chooser, most=1500):
    "An output of tokens chosen at random among those allowed; what leads to the end is chosen with a probability of 0.3 or more."
    ids = []
    while not matcher.is_stopped() and len(ids) < most:
        ahead = forced([matcher])[0]
        if not ahead:
            places = allowed(matcher, len(tokenizer))
            closing = [end for end in eos_token_ids if places[end]]
            ahead = [int(chooser.choice(closing if closing and chooser.random() < 0.3 else np.flatnonzero(places)))]
        assert matcher.consume_tokens(ahead), tokenizer.decode(ids + ahead)
        ids += ahead
    assert matcher.is_stopped(), "it has no end"
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


WALKS = {"bytes": 70, "words": 30}  # of each kind: with 5 contexts, with and without `uncited`, 1,000 together


@pytest.mark.parametrize("count", [0, 1, 3, 30, 200])
@pytest.mark.parametrize("vocabulary", ["bytes", "words"])
@pytest.mark.parametrize("uncited", [False, True], ids=["cited", "uncited"])
def test_whatever_a_grammar_lets_through_keeps_the_contract(grammar, tokenizer, count,
                                                            vocabulary, uncited):
    if vocabulary == "bytes":
        tokenizer = tiny_tokenizer()
        grammar = Grammar(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    eos_token_ids = [tokenizer.eos_token_id, *(encoded(tokenizer, end)[0] for end in ENDS
                                               if len(encoded(tokenizer, end)) == 1)]
    chunks, named, forms = chunks_of(count), set(), set()
    for seed in range(WALKS[vocabulary]):
        raw = wander(grammar.matcher(chunks, uncited), tokenizer, eos_token_ids,
                     random.Random(f"{count} {vocabulary} {uncited} {seed}"))
        answer = parse_model_answer(raw, chunks, creative=uncited)
        assert PrefixCheck().feed(raw) and raw == target_of(raw)
        assert set(find_marks(answer.answer.text)) == set(answer.evidence)
        assert len(set(answer.evidence)) == len(answer.evidence) <= Bounds().evidence
        named |= {len(answer.evidence)} if answer.answer.completeness != "insufficient_data" else set()
        forms.add(answer.answer.completeness)
    assert "insufficient_data" in forms and (0 in named) == uncited and (1 in named) == (count > 0)
    assert (max(named, default=0) > 1) == (count > 1) or uncited  # walks that may end the evidence at once seldom name several
    assert {"complete", "partial"} <= forms or not (count or uncited)


def target_of(raw):
    "The keys in the order of the contract, and nothing between them."
    value = parse_strict_json(raw)
    assert list(value) == ["evidence", "answer", "unknowns"]
    assert list(value["answer"]) == ["completeness", "text"]
    assert not re.search(r"[ \n\t\r]", re.sub(r'"(?:[^"\\]|\\.)*"', "", raw))
    return raw


def test_a_mask_is_made_in_little_time(grammar, tokenizer):
    matcher = grammar.matcher(chunks_of(200))
    assert matcher.consume_tokens(encoded(tokenizer, '{"evidence":[7],"answer":{"completeness":"complete","text":"It'))
    start = time.perf_counter()
    for _ in range(20):
        allowed(matcher, len(tokenizer))
        assert matcher.consume_tokens(encoded(tokenizer, " was"))
    assert time.perf_counter() - start < 1, "it takes about 0.5 ms a token, and a second token of the model 5 to 50"


# ---------------------------------------------------------------- following it

def test_what_is_forced_is_what_masks_would_have_led_to(grammar, tokenizer):
    ids, skipped = encoded(tokenizer, written([3], text="So it was [3].")), 0
    for cut in range(len(ids)):
        matcher = grammar.matcher(THREE)
        assert matcher.consume_tokens(ids[:cut])
        ahead = tokenizer.decode(forced([matcher])[0])
        assert tokenizer.decode(ids[cut:]).startswith(ahead)
        skipped += len(ahead) > 0
    assert 0 < skipped < len(ids)


def test_rows_share_as_many_forced_tokens_as_the_shortest_has(grammar, tokenizer):
    one, other = (grammar.matcher(THREE) for _ in range(2))
    assert other.consume_tokens(encoded(tokenizer, '{"evidence":[2],"answer":{"completeness":"complete","text":"'))
    assert forced([one]) != [[]] and forced([one, other]) == [[], []] and forced([]) == []


def test_the_second_grammar_takes_over_behind_the_evidence(grammar, tokenizer):
    matcher = grammar.matcher(THREE)
    for piece, settled in (('{"evidence":[', False), ("3", False), (",", False), ("1", False),
                           ("]", True), (',"answer":', True)):
        assert matcher.consume_tokens(encoded(tokenizer, piece)) and matcher.settled == settled, piece
    for refused in (grammar.matcher(THREE), grammar.matcher([])):
        assert refused.consume_tokens(encoded(tokenizer, '{"evidence":[],"answer":{"completeness":"insufficient_data"'))


def test_the_processor_works_in_generate_of_transformers(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer) + 8, attention="sdpa")
    grammar = Grammar(tokenizer, model.config.vocab_size, {tokenizer.eos_token_id})
    prompt = torch.tensor([encoded(tokenizer, "why so")] * 2)
    matchers = [grammar.matcher(THREE), grammar.matcher([])]
    torch.manual_seed(0)
    rows = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True,
        temperature=1.0, max_new_tokens=120,
        logits_processor=[GrammarProcessor(matchers, prompt=prompt.shape[1])],
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )
    for row, chunks in zip(rows[:, prompt.shape[1]:], (THREE, []), strict=True):
        text = tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        check = PrefixCheck()
        assert check.feed(text.rstrip("\ufffd")) and text.startswith('{"evidence":[')
        assert len(row) > 20
        if check.complete:
            parse_model_answer(text, chunks)


def test_a_token_that_is_not_allowed_is_an_error(grammar, tokenizer):
    processor = GrammarProcessor([grammar.matcher([])])
    with pytest.raises(GrammarError, match="not allowed"):
        processor.follow(torch.tensor([encoded(tokenizer, "Sure")]))


def test_taking_tokens_stops_at_the_first_that_is_not_allowed(grammar, tokenizer):
    ids = encoded(tokenizer, written([1], text="So [1] and [2]."))
    matcher = grammar.matcher(THREE)
    taken = next(place for place, token in enumerate(ids) if not matcher.consume_token(token))
    assert tokenizer.decode(ids[:taken]).endswith("So [1] and [")
    assert not grammar.matcher(THREE).consume_tokens(ids)


def test_no_method_of_the_library_passes_the_change_of_grammars_by(grammar):
    with pytest.raises(AttributeError):
        getattr(grammar.matcher(THREE), "try_consume_tokens")  # noqa: B009


def test_a_slow_tokenizer_and_a_bad_grammar_are_refused_with_a_sentence(grammar):
    with pytest.raises(GrammarError, match="evaluation.grammar"):
        Grammar(object(), 10, {0})
    with pytest.raises(GrammarError, match="can't be used"):
        grammar.made("start: MISSING")


def test_a_grammar_is_a_text_of_few_lines():
    assert record_grammar(3) == record_grammar(3) != record_grammar(4)
    assert "numbers_" not in record_grammar(0) and "MARK" not in record_grammar(0)
    assert record_grammar(3, evidence=[2]).count("[2]") >= 2
    assert len(record_grammar(200)) < 60_000


def test_every_gold_answer_of_the_evaluation_set_fits_its_grammar(grammar, tokenizer):
    lines = (ROOT / "data/training/kwanzaa_eval.jsonl").read_text(encoding="utf-8").splitlines()
    for record in map(json.loads, lines):
        ids, matcher = encoded(tokenizer,
                               record["messages"][-1]["content"]), grammar.matcher(record["chunks"])
        assert matcher.consume_tokens(ids) and matcher.is_accepting(), record["id"]
