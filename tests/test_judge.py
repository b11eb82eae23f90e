"""A second opinion on claims: models of random weights, each kind held against plain transformers."""

import json
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny import ROOT, tiny_config
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig, BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification, BertModel,
    PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, T5ForTokenClassification,
)

from kwanzaa_nb.core.config import ConfigError, resolve_config
from kwanzaa_nb.core.manifest import portable_config
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.core.results import Results
from kwanzaa_nb.core.results_file import load_results, save_results
from kwanzaa_nb.core.stats import LabelError
from kwanzaa_nb.core.text import sentences
from kwanzaa_nb.evaluate import judge as module
from kwanzaa_nb.evaluate.judge import (
    JUDGED_AT, OPINION_HEAD, Judge, JudgeError, Kind, check_judge, claims_of, compare_with_people, find_judge,
    judge_claims, judge_folder, judge_of, kappa, opinion_controls, opinion_lines, opinion_rows, people_table,
    read_kind, second_opinion, windows,
)
from kwanzaa_nb.evaluate.metrics import controls, score_arms

CLAIM = "The festival lasts seven days."
SOURCE = "The festival lasts seven days. Karenga founded it in 1966."
LONG = " ".join(f"Sentence number {number} says nothing about it." for number in range(40))
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.5}
T5_SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "initializer_factor": 2.0, "decoder_start_token_id": 0, "pad_token_id": 0}
NLI = {0: "contradiction", 1: "entailment", 2: "neutral"}


def tokenizer(is_t5=False):
    "An untrained tokenizer: single bytes and marks."
    marks = ["<pad>", "</s>"] if is_t5 else ["[PAD]", "[CLS]", "[SEP]"]
    signs = [*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE(vocab={sign: place for place, sign in enumerate(signs)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    single, pair, known = (("$A </s>", "$A </s> $B:1 </s>:1", [("</s>", 1)]) if is_t5 else
                           ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]))
    plain.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=known)
    named = ({"pad_token": "<pad>", "eos_token": "</s>"} if is_t5 else
             {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"})
    return PreTrainedTokenizerFast(tokenizer_object=plain, **named)


def saved(folder, kind, **settings):
    "Write a model of random weights and its tokenizer into a folder."
    is_t5, seed = kind.__name__.startswith("T5"), settings.pop("seed", 5)
    words = tokenizer(is_t5)
    torch.manual_seed(seed)
    config = T5Config(vocab_size=len(words), **T5_SIZES, **settings) if is_t5 else BertConfig(vocab_size=len(words), **SIZES, **settings)
    kind(config).eval().save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def nli(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("nli"), BertForSequenceClassification, id2label=NLI)


def found(folder, **settings):
    return find_judge(str(folder), device="cpu", **settings)


class Reading(Judge):
    "A judge without a model: a claim is supported by evidence that holds it, or as a function says."

    def __init__(self, says=lambda claim, chunks: float(any(claim in chunk for chunk in chunks))):
        super().__init__("reader", ROOT, Kind("pair", 0), {}, "0" * 64)
        self.says, self.asked = says, []

    def score(self, pairs):
        self.asked += pairs
        return [self.says(*pair) for pair in pairs]


# Each kind of model


@pytest.mark.parametrize("label", [0, 1, 2])
def test_an_nli_model_is_read_at_the_label_that_says_entailment(tmp_path, label):
    names = ["contradiction", "neutral"]
    names.insert(label, "ENTAILMENT")
    folder = saved(tmp_path, BertForSequenceClassification, id2label=dict(enumerate(names)))
    model, words = BertForSequenceClassification.from_pretrained(folder).eval(), tokenizer()
    with torch.no_grad():
        expected = model(**words(SOURCE, CLAIM, return_tensors="pt")).logits.softmax(-1)[0, label].item()
    assert found(folder)(CLAIM, [SOURCE]) == pytest.approx(expected, abs=1e-5)
    assert found(folder).kind == Kind("pair", label)


def test_two_labels_without_names_are_those_of_minicheck(tmp_path):
    folder = saved(tmp_path, BertForSequenceClassification, num_labels=2)
    model, words = BertForSequenceClassification.from_pretrained(folder).eval(), tokenizer()
    with torch.no_grad():
        expected = model(**words(f"{SOURCE}[SEP]{CLAIM}", return_tensors="pt")).logits.softmax(-1)[0, 1].item()
    assert found(folder)(CLAIM, [SOURCE]) == pytest.approx(expected, abs=1e-5)


def test_a_single_label_is_a_chance_by_itself(tmp_path):
    folder = saved(tmp_path, BertForSequenceClassification, num_labels=1)
    model, words = BertForSequenceClassification.from_pretrained(folder).eval(), tokenizer()
    with torch.no_grad():
        expected = model(**words(SOURCE, CLAIM, return_tensors="pt")).logits.sigmoid()[0, 0].item()
    assert found(folder)(CLAIM, [SOURCE]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("labels", [{}, {"id2label": {0: "hallucinated", 1: "supported"}}])
def test_a_claim_is_as_good_as_its_worst_token(tmp_path, labels):
    folder, wrong = saved(tmp_path, BertForTokenClassification, **labels), 0 if labels else 1
    model, words = BertForTokenClassification.from_pretrained(folder).eval(), tokenizer()
    read = words(f"Summarize the following text:\npassage 1: {SOURCE}\noutput:\n", CLAIM, return_tensors="pt")
    own = [place for place, part in enumerate(read.sequence_ids(0)) if part == 1]
    assert len(own) == len(CLAIM)
    with torch.no_grad():
        expected = 1 - model(**read).logits.softmax(-1)[0, own, wrong].max().item()
    assert found(folder)(CLAIM, [SOURCE]) == pytest.approx(expected, abs=1e-5)


def test_a_sequence_to_sequence_model_says_one_or_zero(tmp_path):
    folder = saved(tmp_path, T5ForConditionalGeneration)
    model, words = T5ForConditionalGeneration.from_pretrained(folder).eval(), tokenizer(is_t5=True)
    read = words(f"predict: {SOURCE}</s>{CLAIM}", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = model(**read, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
    no, yes = words.convert_tokens_to_ids(["0", "1"])
    expected = torch.stack([logits[no], logits[yes]]).softmax(-1)[1].item()
    assert found(folder)(CLAIM, [SOURCE]) == pytest.approx(expected, abs=1e-5)


def test_hhem_is_loaded_without_its_code(tmp_path):
    base = saved(tmp_path / "base", T5ForTokenClassification, num_labels=2)
    folder, trap = tmp_path / "hhem", tmp_path / "was_run"
    folder.mkdir()
    save_file({f"t5.{name}": weight.clone() for name, weight in load_file(base / "model.safetensors").items()},
              folder / "model.safetensors", {"format": "pt"})
    prompt = "<pad> Is it so?\n\nPremise: {text1}\n\nHypothesis: {text2}"
    (folder / "config.json").write_text(json.dumps({
        "model_type": "HHEMv2", "architectures": ["HHEMv2ForSequenceClassification"], "foundation": str(base), "prompt": prompt,
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}}))
    (folder / "own.py").write_text(f"open({str(trap)!r}, 'w').close()")
    model, words = T5ForTokenClassification.from_pretrained(base).eval(), tokenizer(is_t5=True)
    read = words(prompt.format(text1=SOURCE, text2=CLAIM), return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected = model(**read).logits[0, 0].softmax(-1)[1].item()
    assert found(folder)(CLAIM, [SOURCE]) == pytest.approx(expected, abs=1e-5)
    assert not trap.exists()


@pytest.mark.parametrize("settings, kind", [
    ({"architectures": ["DebertaV2ForSequenceClassification"], "id2label": {"0": "entailment", "1": "not_entailment"}}, Kind("pair", 0)),
    ({"architectures": ["XForSequenceClassification"], "id2label": {"10": "entailment", "9": "neutral", "8": "contradiction"}}, Kind("pair", 2)),
    ({"architectures": ["XForSequenceClassification"], "id2label": {"0": "hallucinated", "1": "consistent"}}, Kind("pair", 1)),
    ({"architectures": ["XForSequenceClassification"], "id2label": {"0": "unsupported", "1": "Supported"}}, Kind("pair", 1)),
    ({"architectures": ["XForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, Kind("pair", None)),
    ({"model_type": "HHEMv2Config", "architectures": ["XForSequenceClassification"]}, Kind("hhem", 1)),
    ({"architectures": ["T5ForConditionalGeneration"]}, Kind("yes-no", None))])
def test_kinds_are_told_by_settings(settings, kind):
    assert read_kind(settings, "x") == kind


@pytest.mark.parametrize("settings, told", [
    ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"), ({}, "nothing that it names"),
    ({"architectures": ["BartForConditionalGeneration"]}, "BartForConditionalGeneration"),
    ({"architectures": ["XForSequenceClassification"], "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, "LABEL_2"),
    ({"architectures": ["XForSequenceClassification"], "id2label": {"0": "POSITIVE", "1": "NEGATIVE"}}, "POSITIVE"),
    ({"architectures": ["XForTokenClassification"], "id2label": {"0": "O", "1": "B-PER", "2": "I-PER"}}, "B-PER")])
def test_models_of_other_kinds_are_refused(settings, told):
    with pytest.raises(JudgeError, match=told) as error:
        read_kind(settings, "owner/name")
    assert "evaluation.judge.model" in str(error.value) and "\n" not in str(error.value)


# Long evidence, several sentences, odd texts


def count(text):
    return len(text.split())


@pytest.mark.parametrize("room", [7, 10, 25, 60, 1000])
def test_windows_hold_each_sentence_and_each_pair_of_neighbours(room):
    parts, cut = sentences(LONG), windows([LONG], room, count)
    assert all(count(one) <= max(room, 7) for one in cut)
    assert all(any(part in one for one in cut) for part in parts)
    if room >= 4 * 8:  # half a window holds two sentences
        assert all(any(f"{one} {other}" in window for window in cut) for one, other in zip(parts, parts[1:]))
    assert (len(cut) == 1) == (room == 1000)


def test_windows_of_odd_evidence():
    assert windows([], 10, count) == [] and windows(["", "  "], 10, count) == []
    assert windows(["One chunk. It goes on.", "Another."], 100, count) == ["One chunk. It goes on. Another."]
    long_word = windows(["x" * 1000], 100, len)
    assert "".join(long_word).count("x") >= 1000 and all(len(one) <= 100 for one in long_word)
    assert all(count(one) <= 10 for one in windows(["word " * 500], 10, count))


def test_the_best_window_and_the_worst_sentence_count(nli):
    one = found(nli)
    far = [LONG, SOURCE]
    reader = module._Reader(one)
    texts, = reader.texts((CLAIM, tuple(far)))
    assert len(texts) > 2 and all(len(reader.tokenizer(*text)["input_ids"]) <= reader.limit for text in texts)
    assert one(CLAIM, far) == pytest.approx(max(module._chances(one, reader, [text])[0] for text in texts), abs=1e-5)
    other = "Karenga founded it in 1966."
    assert one(f"{CLAIM} {other}", [SOURCE]) == pytest.approx(min(one(CLAIM, [SOURCE]), one(other, [SOURCE])), abs=1e-5)


def test_a_claim_without_evidence_is_not_supported(nli):
    one = found(nli)
    assert one(CLAIM, []) == 0.0 and one(CLAIM, ["", " "]) == 0.0
    assert 0 <= one("word " * 3000, [SOURCE]) <= 1 and 0 <= one("", [SOURCE]) <= 1


def test_many_claims_at_once_are_judged_as_one_by_one(nli):
    pairs = [(f"Claim number {number} is {'long ' * number}.", (SOURCE, LONG)[:1 + number % 2]) for number in range(9)]
    one = found(nli, batch_size=4)
    assert one.score(pairs) == pytest.approx([one(*pair) for pair in pairs], abs=1e-5)


def test_marks_of_the_tokenizer_in_a_text_are_only_text(nli, tmp_path):
    marked = f"It lasts.[SEP]{CLAIM}[CLS]"
    for one in (found(nli), found(saved(tmp_path, BertForSequenceClassification, num_labels=2))):
        reader = module._Reader(one)
        ids, plain = (reader.tokenizer(*reader.text(text, text))["input_ids"] for text in (marked, "It lasts."))
        assert ids.count(2) == plain.count(2) and ids.count(1) == plain.count(1)


# Errors, before anything is generated


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(JudgeError, match="no config.json"):
        found(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(JudgeError, match="no config.json that can be read"):
        found(tmp_path)


def test_without_a_network_it_is_said_where_it_was_looked_for(monkeypatch):
    def offline(*_, **__):
        raise LocalEntryNotFoundError("Cannot reach it\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(JudgeError, match="'owner/name' for a second opinion is not a folder here.*Cannot reach it") as error:
        judge_folder("owner/name")
    assert "\n" not in str(error.value)


def test_a_name_that_the_hub_would_not_take_is_refused():
    with pytest.raises(JudgeError, match="not a folder here"):
        judge_folder("a/b/c/d")


def test_a_revision_is_asked_for_and_weights_only_where_needed(monkeypatch, tmp_path):
    asked = []

    def snapshot(name, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision, [pattern for pattern in allow_patterns if "bin" in pattern or "safe" in pattern]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert judge_folder("owner/name@v1", weights=False) == tmp_path
    judge_folder("owner/name")  # has no safetensors, so older files are looked for
    (tmp_path / "model.safetensors").touch()
    judge_folder("owner/name")
    safe, old = "*.safetensors", "pytorch_model*.bin"
    assert asked == [("owner/name", "v1", []), ("owner/name", None, [safe]), ("owner/name", None, [safe, old]), ("owner/name", None, [safe])]


def test_a_base_model_without_a_trained_head_is_refused(tmp_path):
    folder = saved(tmp_path, BertModel, id2label=NLI)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(JudgeError, match="lack classifier"):
        check_judge(found(folder))
    with pytest.raises(JudgeError, match="BertForMaskedLM"):
        found(saved(tmp_path / "mlm", BertForMaskedLM))


def test_a_model_that_needs_its_own_code_is_refused(tmp_path, nli):
    folder, trap = tmp_path / "own", tmp_path / "was_run"
    folder.mkdir()
    for file in nli.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "its_own", "auto_map": auto}))
    (folder / "own.py").write_text(f"open({str(trap)!r}, 'w').close()")
    with pytest.raises(JudgeError, match="never run|could not be loaded"):
        check_judge(found(folder))
    assert not trap.exists()


def test_damaged_weights_are_refused(tmp_path):
    folder = saved(tmp_path, BertForSequenceClassification, id2label=NLI)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(JudgeError, match="could not be loaded"):
        check_judge(found(folder))


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    folder = saved(tmp_path, BertForSequenceClassification, id2label=NLI)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(JudgeError, match="no numbers in fp32"):
        check_judge(found(folder))


def test_too_little_memory_is_said_before_loading(nli, monkeypatch):
    monkeypatch.setattr(module, "_free_memory", lambda: 1000)
    with pytest.raises(JudgeError, match="0.0 GB of memory are free"):
        check_judge(found(nli))
    monkeypatch.setattr(module, "_free_memory", lambda: None)
    assert "a model judges" in check_judge(found(nli))


def test_a_gpu_that_runs_out_of_memory_gets_smaller_batches_then_the_processor(nli, monkeypatch):
    one, sizes, plain = found(nli, batch_size=4), [], module._chances

    def full(judge, reader, batch):
        sizes.append(len(batch))
        if judge.device == "cuda":
            raise torch.OutOfMemoryError("out of memory")
        return plain(judge, reader, batch)

    pairs = [(f"Claim {number}.", (SOURCE,)) for number in range(4)]
    expected = one.score(pairs)
    one.device = "cuda"
    monkeypatch.setattr(module, "_chances", full)
    monkeypatch.setattr(module.Judge, "release", lambda self: None)
    assert one.score(pairs) == pytest.approx(expected, abs=1e-5)
    assert sizes == [4, 2, 1, 1, 1, 1, 1] and one.device == "cpu"


def test_fp16_is_not_used(nli, monkeypatch):
    monkeypatch.setattr("kwanzaa_nb.model.load.choose_dtype", lambda *_: ("fp16", ""))
    assert found(nli).dtype == "fp32"


# Results on disk


def test_what_is_on_disk_is_not_judged_again(tmp_path):
    cache, reader = tmp_path / "judge.jsonl", Reading()
    pairs = [(CLAIM, (SOURCE,)), ("It rains.", (SOURCE,)), (CLAIM, (SOURCE,))]
    assert judge_claims(reader, pairs, cache) == [1.0, 0.0, 1.0]
    assert len(reader.asked) == 2 and len(cache.read_text().splitlines()) == 2
    assert judge_claims(reader, pairs, cache) == [1.0, 0.0, 1.0] and len(reader.asked) == 2
    judge_claims(reader, [(CLAIM, (LONG,)), ("It rained.", (SOURCE,))], cache)
    assert len(reader.asked) == 4
    judge_claims(replace_judge(reader, sha256="1" * 64), pairs, cache)
    judge_claims(replace_judge(reader, dtype="bf16"), pairs, cache)
    assert len(reader.asked) == 8


def replace_judge(reader, **settings):
    other = Reading(reader.says)
    other.asked = reader.asked
    for name, value in settings.items():
        setattr(other, name, value)
    return other


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path):
    cache, pairs = tmp_path / "judge.jsonl", [(f"Claim {number}.", (SOURCE,)) for number in range(40)]

    def stops(claim, chunks):
        if claim == "Claim 20.":
            raise KeyboardInterrupt
        return 0.25

    with pytest.raises(KeyboardInterrupt):
        judge_claims(Reading(stops), pairs, cache)
    assert len(cache.read_text().splitlines()) == 16
    with cache.open("a") as file:
        file.write('{"key": "half a li')
    reader = Reading(lambda *_: 0.75)
    assert judge_claims(reader, pairs, cache) == [0.25] * 16 + [0.75] * 24
    assert len(reader.asked) == 24 and len(cache.read_text().splitlines()) == 40
    assert all(json.loads(line)["chance"] in (0.25, 0.75) for line in cache.read_text().splitlines())


def test_a_model_is_loaded_for_what_is_not_on_disk_only(nli, tmp_path, monkeypatch):
    cache, pairs = tmp_path / "judge.jsonl", [(CLAIM, (SOURCE,))]
    first = judge_claims(found(nli), pairs, cache)
    monkeypatch.setattr(module, "_load_model", lambda judge: pytest.fail("it was loaded"))
    assert judge_claims(found(nli), pairs, cache) == first


def test_another_file_is_another_model(tmp_path):
    one = found(saved(tmp_path / "a", BertForSequenceClassification, id2label=NLI))
    same = found(saved(tmp_path / "b", BertForSequenceClassification, id2label=NLI))
    other = found(saved(tmp_path / "c", BertForSequenceClassification, id2label=NLI, seed=6))
    assert one.sha256 == same.sha256 != other.sha256


def test_progress_is_told_every_five_seconds(monkeypatch):
    clock, told = iter(range(0, 1000, 2)), []
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    judge_claims(Reading(), [(f"Claim {number}.", (SOURCE,)) for number in range(160)], report=told.append)
    assert 2 <= len(told) <= 5 and told[0].startswith("second opinion: ") and "of 160 claims" in told[0]


# Over a run


@pytest.fixture(scope="module")
def records():
    return read_records(ROOT / "data" / "training" / "kwanzaa_eval.jsonl")[:60]


def test_claims_are_those_that_scoring_counts(records):
    outputs = controls(records)
    raws = {(output["arm"], output["id"]): output["raw"] for output in outputs}
    seen = 0
    for arm, part in score_arms(outputs, records).items():
        for one in part.outcomes:
            claims = claims_of(one, raws[arm, one.case.id])
            if one.decision != "answered":
                assert not claims
                continue
            assert max(len(claims), 1) == one.claims and sum(by_rules for _, by_rules in claims) == one.supported
            seen += len(claims)
    assert seen > 200


def test_the_controls_tell_a_judge_that_reads(records):
    scores, outputs = opinion_controls(records)
    raws = {output["id"]: output["raw"] for output in outputs if output["arm"] == "control: gold"}
    own = {pair for one in scores["control: gold"].outcomes for pair, _ in claims_of(one, raws[one.case.id])}
    assert len(own) > 20
    opinion = second_opinion(Reading(lambda claim, chunks: float((claim, chunks) in own)), scores, outputs, report=print)
    gold, wrong = opinion["arms"]["control: gold"], opinion["arms"]["control: wrong_chunk"]
    assert gold["rate"]["value"] == 1.0 and wrong["rate"]["value"] < 0.1
    assert gold["rate"]["total"] == scores["control: gold"].rates["claim_support_rate"].total
    assert all(rows[0] in opinion["arms"] and len(rows) == len(OPINION_HEAD) for rows in opinion_rows(opinion, scores))
    assert [line[0] for line in opinion_lines(opinion)] == [f"second opinion of reader, {arm}" for arm in opinion["arms"]]


def test_the_first_opinion_stays_as_it_is(records):
    outputs = controls(records)
    scores = score_arms(outputs, records)
    before = {arm: part.to_dict() for arm, part in scores.items()}
    opinion = second_opinion(Reading(lambda *_: 1.0), scores, outputs)
    assert {arm: part.to_dict() for arm, part in scores.items()} == before
    empty, refused = opinion["arms"]["empty_object"], opinion["arms"]["always_refuse"]
    assert empty["rate"]["value"] == 0 and empty["rate"]["total"] == len(records) and empty["kappa"] is None
    assert refused["rate"]["total"] == 0
    rows = {row[0]: row for row in opinion_rows(opinion, scores)}
    assert rows["always_refuse"][2] == "not measured" and rows["empty_object"][-1] == "not defined"


def test_an_opinion_is_part_of_the_results(records, tmp_path):
    scores, outputs = opinion_controls(records[:10])
    opinion = second_opinion(Reading(), scores, outputs)
    (tmp_path / "evaluation").mkdir()
    empty = {"format": get_args(Results.__annotations__["format"])[0], "arms": {}}
    save_results(tmp_path, empty | {"second_opinion": opinion})
    assert load_results(tmp_path)["second_opinion"] == json.loads(json.dumps(opinion))
    schema = json.loads((ROOT / "configs" / "schemas" / "metrics.schema.json").read_text())
    assert "second_opinion" in schema["properties"] and "ArmOpinion" in schema["$defs"]
    broken = {**opinion, "arms": {"gold": {"both": 1}}}
    with pytest.raises(ValueError, match="only_rules"):
        save_results(tmp_path, empty | {"second_opinion": broken})


@pytest.mark.parametrize("counts, expected", [
    ((20, 5, 10, 15), 0.4),  # a textbook's example: 35 of 50 agree, 25 by chance
    ((45, 15, 25, 15), 0.1304), ((50, 0, 0, 50), 1.0), ((0, 50, 50, 0), -1.0), ((25, 25, 25, 25), 0.0),
    ((10, 10, 0, 0), 0.0), ((10, 0, 0, 0), None), ((0, 0, 0, 0), None)])
def test_kappa(counts, expected):
    table = dict(zip(("both", "only_rules", "only_model", "neither"), counts))
    value = kappa(table)
    assert value is None and expected is None or value == pytest.approx(expected, abs=1e-4)


# Held against people


@pytest.fixture
def labels(tmp_path):
    rows = [(CLAIM, "supported"), ("It began in 1966.", "supported"), ("It lasts nine days.", "not_supported"),
            ("Malcolm founded it.", "partially_supported")]
    with (tmp_path / "wice_claim_dev.jsonl").open("w") as file:
        for claim, label in rows:
            print(json.dumps({"claim": claim, "evidence": sentences(SOURCE), "label": label}), file=file)
    return tmp_path


def test_a_judge_that_agrees_with_people(labels):
    right = Reading(lambda claim, chunks: 0.9 if claim in (CLAIM, "It began in 1966.") else 0.2)
    row, = compare_with_people(labels, right)
    assert (row["model_auroc"], row["model_tpr"], row["model_fpr"]) == (1.0, 1.0, 0.0)
    assert right.asked[0][1] == ("The festival lasts seven days.\n\nKarenga founded it in 1966.",)
    wrong, = compare_with_people(labels, Reading(lambda *pair: 1 - right.says(*pair)))
    assert (wrong["model_auroc"], wrong["model_tpr"], wrong["model_fpr"]) == (0.0, 0.0, 1.0)
    assert wrong["kappa"] < 0 < row["kappa"]
    assert [row[name] for name in ("auroc", "tpr", "fpr")] == [wrong[name] for name in ("auroc", "tpr", "fpr")]
    assert "1.000" in str(people_table([row]))


def test_strict_thresholds_keep_the_order(labels):
    row, = compare_with_people(labels, Reading(lambda claim, chunks: JUDGED_AT / (2 if claim == CLAIM else 4)))
    assert row["model_auroc"] == 0.75 and row["model_tpr"] == 0.0


def test_without_a_judge_the_table_is_that_of_the_rules(labels, tmp_path):
    row, = compare_with_people(labels)
    assert "model_auroc" not in row and row["rows"] == 4
    with pytest.raises(LabelError):
        compare_with_people(tmp_path / "nowhere", Reading())


# Settings


def test_no_judge_is_the_default():
    assert judge_of(tiny_config()) is None
    assert tiny_config().evaluation.judge.model is None


def test_a_config_names_a_judge(nli):
    config = tiny_config(evaluation__judge__model=str(nli), evaluation__batch_size=3)
    one = judge_of(config)
    assert (one.folder, one.device, one.dtype, one.batch_size) == (nli, "cpu", "fp32", 3)


def test_a_judge_can_be_written_as_null_or_as_a_group(tmp_path):
    text = (ROOT / "configs" / "smoke.yaml").read_text().replace("evaluation: {max_records: 8,", "evaluation: {judge: JUDGE, max_records: 8,")
    assert "JUDGE" in text
    for written, expected in (("null", None), ("{model: null}", None), ("{model: owner/name@v1}", "owner/name@v1")):
        path = tmp_path / "one.yaml"
        path.write_text(text.replace("JUDGE", written))
        assert resolve_config(path).evaluation.judge.model == expected
    path.write_text(text.replace("JUDGE", "owner/name"))
    with pytest.raises(ConfigError, match="judge"):
        resolve_config(path)


def test_a_folder_is_named_without_its_place(nli, tmp_path, monkeypatch):
    assert found(nli).name == nli.name and str(nli.parent) not in check_judge(found(nli))
    monkeypatch.chdir(nli)
    assert find_judge(".", device="cpu").name == nli.name
    values = tiny_config(evaluation__judge__model=str(nli)).model_dump(mode="json")
    assert str(nli) not in json.dumps(portable_config(values, ROOT))


def test_a_stored_comparison_is_shown_beside_the_rules(labels, monkeypatch):
    from kwanzaa_nb.evaluate import instrument as shown

    rows = compare_with_people(labels, Reading())
    monkeypatch.setattr(shown, "stored", lambda name: {"measured": rows} if name in ("reliability", "second_opinion") else None)
    rules, model, _ = shown.instrument()
    assert "AUROC" in rules[1] and model[0].endswith(", reader") and f"AUROC {rows[0]['model_auroc']:.2f}" in model[1]


def test_outputs_do_not_depend_on_who_judges_them(records):
    from kwanzaa_nb.evaluate.passes import experiment

    effective = SimpleNamespace(device="cpu", dtype="fp32", four_bit=False, compute_dtype="fp32")
    configs = tiny_config(), tiny_config(evaluation__judge__model="owner/name")
    one, other = (experiment(config, effective, records[:2], None) for config in configs)
    assert one == other
