"A grammar a record: gold fits it, whatever it lets through keeps the contract, and what is forced is exact."

import json
import random

import pytest
import torch
from tiny import ROOT, tiny_model, tiny_tokenizer

from kwanzaa_nb.answer import parse_model_answer
from kwanzaa_nb.config import load_config
from kwanzaa_nb.grammar import Bounds, Grammar, GrammarError, GrammarProcessor, allowed, forced, record_grammar
from kwanzaa_nb.model import load_tokenizer

AWKWARD = [
    {"chunk_id": 'a "b"\\c', "text": 'He said "no" \\ twice.\nThen ⟪é🙂⟫ [1] left /now/ (a+b)*.'},
    {"chunk_id": "ü-2", "text": "One word"},
]
SIGNS = [{"chunk_id": "signs", "text": "…!? _\n"}, {"chunk_id": "escaped", "text": "...\n\t, \x1f 7; PIECES"}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(load_config("configs/demo.cpu.yaml"))


@pytest.fixture(scope="module")
def grammar(tokenizer):
    return Grammar(tokenizer, len(tokenizer), {tokenizer.eos_token_id})


def encoded(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def accepts(grammar, tokenizer, chunks, text, bounds=Bounds()):
    matcher, ids = grammar.matcher(record_grammar(chunks, bounds)), encoded(tokenizer, text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def test_every_gold_answer_of_the_evaluation_set_fits_its_grammar(grammar, tokenizer):
    lines = (ROOT / "data/training/kwanzaa_eval.jsonl").read_text(encoding="utf-8").splitlines()
    for record in map(json.loads, lines):
        assert accepts(grammar, tokenizer, record["chunks"], record["messages"][-1]["content"]), record["id"]


def written(citations, completeness="complete", text="So it was [1].", missing=(), asking=()):
    return json.dumps(
        {
            "citations": [{"quote": quote, "chunk_id": chunk_id} for chunk_id, quote in citations],
            "answer": {"completeness": completeness, "text": text},
            "unknowns": {"unsupported_claims": [], "missing_context": list(missing), "clarifying_questions": list(asking)},
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


@pytest.mark.parametrize(
    "text",
    [
        written([("ü-2", "word")]),
        written([('a "b"\\c', 'said "no" \\ twice.\nThen'), ("ü-2", "One word")], text="It [1] is [2]. So [1]."),
        written([], "insufficient_data", "Not said.", missing=["the year"]),
        written([], "insufficient_data", "Not said.", asking=["Which year?"]),
        written([("ü-2", "One word")], text='"¿It" — so [1].'),
    ],
)
def test_what_the_contract_allows_is_allowed(grammar, tokenizer, text):
    parse_model_answer(text, AWKWARD)
    assert accepts(grammar, tokenizer, AWKWARD, text)


@pytest.mark.parametrize(
    "text",
    [
        written([("ü-3", "word")]),
        written([("ü-2", "said")]),
        written([("ü-2", "One  word")]),
        written([("ü-2", "")]),
        written([("ü-2", "word")], text="No mark."),
        written([("ü-2", "word")], text="Two marks [1] [2]."),
        written([("ü-2", "word")], "insufficient_data", missing=["the year"]),
        written([], "insufficient_data", "Not said [1].", missing=["the year"]),
        written([], "insufficient_data", "Not said."),
        written([], "insufficient_data", "...", missing=["the year"]),
        written([], "insufficient_data", "Not said.", missing=["\n?"]),
        written([], "partial", "Nobody knows."),
        written([('a "b"\\c', ".")]),
        written([('a "b"\\c', ".\n")]),
        written([("ü-2", "word")], text="\n [1]"),
        written([("ü-2", "word"), ("ü-2", "word")], text="It [1] is [2]."),
        written([], "insufficient_data", "Line\nbreak", missing=["the year"]).replace("\\n", "\n"),
        written([("ü-2", "word")]).replace('"complete"', '"done"'),
        written([("ü-2", "word")]) + " ",
        written([("ü-2", "word")]).replace('"answer"', '"Answer"'),
    ],
)
def test_what_the_contract_forbids_is_forbidden(grammar, tokenizer, text):
    assert not accepts(grammar, tokenizer, AWKWARD, text)


def test_an_answer_may_cite_nothing_where_that_was_said(grammar, tokenizer):
    bare = written([], "partial", "Nobody knows.")
    for chunks in (AWKWARD, []):
        matcher = grammar.matcher(record_grammar(chunks, uncited=True))
        assert matcher.try_consume_tokens(encoded(tokenizer, bare)) and matcher.is_accepting()
        assert not accepts(grammar, tokenizer, chunks, bare)


def test_a_chunk_without_letters_is_not_cited_and_escapes_are_no_letters(grammar, tokenizer):
    assert accepts(grammar, tokenizer, SIGNS, written([("escaped", ", \x1f 7")])) and accepts(grammar, tokenizer, SIGNS, written([("escaped", "PIECES")]))
    for chunk_id, quote in (("signs", "…"), ("signs", "_"), ("escaped", "\n\t"), ("escaped", "\x1f"), ("escaped", "...")):
        assert not accepts(grammar, tokenizer, SIGNS, written([(chunk_id, quote)])), quote
    assert record_grammar(SIGNS[:1]) == record_grammar([])


def test_more_chunks_than_a_parameter_has_bits(grammar, tokenizer):
    many = [{"chunk_id": f"c{place}", "text": f"word {place}"} for place in range(70)]
    first, last, same = [("c3", "word")], [("c69", "69")], [("c5", "word")]  # 5 and 69 share a bit
    for citations in (first, last, first + last, last + first):
        text = "So it was " + "".join(f"[{number}]" for number in range(1, len(citations) + 1))
        assert accepts(grammar, tokenizer, many, written(citations, text=text))
    assert not accepts(grammar, tokenizer, many, written(same + last, text="So it was [1][2]"))


SMALL = Bounds(citations=3, quote=60, text=12, pieces=3, notes=2, note=8)


def wander(matcher, tokenizer, chooser, most=3000):
    "Tokens chosen at random among those allowed; an end, of a string or of all, is chosen each third time that it may come."
    ids, ends = [], {tokenizer.eos_token_id, *encoded(tokenizer, '"')}
    while not matcher.is_stopped() and len(ids) < most:
        places = allowed(matcher, len(tokenizer)).nonzero()[0].tolist()
        closing = [token for token in places if token in ends]
        ids.append(chooser.choice(closing if closing and chooser.random() < 1 / 3 else places))
        assert matcher.consume_token(ids[-1])
    assert matcher.is_stopped(), "it has no end"
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("chunks", [AWKWARD, AWKWARD[1:], SIGNS, AWKWARD + SIGNS, []], ids=["two", "one", "signs", "four", "none"])
@pytest.mark.parametrize("vocabulary", ["bytes", "words"])
@pytest.mark.parametrize("uncited", [False, True])
def test_whatever_a_grammar_lets_through_keeps_the_contract(grammar, tokenizer, chunks, vocabulary, uncited):
    if vocabulary == "bytes":
        tokenizer = tiny_tokenizer()
        grammar = Grammar(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    source, cited = record_grammar(chunks, SMALL, uncited=uncited), set()
    for seed in range(25):
        answer = parse_model_answer(wander(grammar.matcher(source), tokenizer, random.Random(seed)), chunks)
        cited |= {len(answer.citations)} if answer.answer.completeness != "insufficient_data" else {None}
    assert None in cited and (0 in cited) == uncited and (1 in cited) == bool(chunks)
    assert (max(count or 0 for count in cited) > 1) == (len(chunks) > 1 and chunks is not SIGNS)


def test_what_is_forced_is_what_masks_would_have_led_to(grammar, tokenizer):
    source, ids = record_grammar(AWKWARD[1:]), encoded(tokenizer, written([("ü-2", "One")]))
    place, skipped = 0, 0
    for cut in range(len(ids)):
        matcher = grammar.matcher(source)
        assert matcher.consume_tokens(ids[:cut])
        ahead = tokenizer.decode(forced([matcher])[0])
        assert tokenizer.decode(ids[cut:]).startswith(ahead)
        skipped += len(ahead) > 0
        place += 1
    assert 0 < skipped < place


def test_rows_share_as_many_forced_tokens_as_the_shortest_has(grammar, tokenizer):
    one, other = (grammar.matcher(record_grammar(AWKWARD[1:])) for _ in range(2))
    assert other.consume_tokens(encoded(tokenizer, written([("ü-2", "One")])[: len('{"citations":[{"quote":"')]))
    assert forced([one]) != [[]] and forced([one, other]) == [[], []] and forced([]) == []


def test_the_processor_works_in_generate_of_transformers(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer) + 8, attention="sdpa")
    grammar = Grammar(tokenizer, model.config.vocab_size, {tokenizer.eos_token_id})
    prompt = torch.tensor([encoded(tokenizer, "why so")] * 2)
    processor = GrammarProcessor([grammar.matcher(record_grammar(AWKWARD, SMALL)) for _ in range(2)], prompt=prompt.shape[1])
    torch.manual_seed(0)
    rows = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=1.0, max_new_tokens=700, logits_processor=[processor],
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )
    for row in rows[:, prompt.shape[1]:]:
        text = tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert json.loads(text)["answer"]["text"], text


def test_a_token_that_is_not_allowed_is_an_error(grammar, tokenizer):
    processor = GrammarProcessor([grammar.matcher(record_grammar([]))])
    with pytest.raises(GrammarError, match="not allowed"):
        processor.follow(torch.tensor([encoded(tokenizer, "Sure")]))


def test_a_slow_tokenizer_and_a_bad_grammar_are_refused_with_a_sentence(grammar):
    with pytest.raises(GrammarError, match="evaluation.grammar"):
        Grammar(object(), 10, {0})
    with pytest.raises(GrammarError, match="can't be used"):
        grammar.matcher("start: MISSING")
