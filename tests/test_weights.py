"The weight of the evidence: it finds the numbers, and the loss is the weighted mean."

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import chat, tiny_config, tiny_model, tiny_tokenizer
from torch.nn.functional import cross_entropy

from kwanzaa_nb.core.config import load_config, project_root
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.model.load import RuntimeSettings, load_tokenizer
from kwanzaa_nb.model.masking import IGNORED, stop_ids
from kwanzaa_nb.model.packing import SEGMENTED, flatten_rows, flatten_shared
from kwanzaa_nb.train.extra import ExtraError, check_extra, settle_extra
from kwanzaa_nb.train.trainer import encode_records, supervised_loss, train_adapter
from kwanzaa_nb.train.weights import EVIDENCE_WEIGHT, EvidenceWeights

ANSWERS = ['{"evidence":[1],"answer":"In 1966 [1]."}', '{"evidence":[2,13],"answer":"Two [2]."}',
           '{"evidence":[],"answer":"Not here."}', '{"evidence":[4],"answer":"[4] or 9"}']
CPU = RuntimeSettings("cpu", "fp32", "fp32", SEGMENTED, False, "adamw_torch")


def encoded(config=None):
    tokenizer = tiny_tokenizer()
    records = [{"id": str(place), "group": "g", "messages": chat(answer, f"Is it {place}?")}
               for place, answer in enumerate(ANSWERS)]
    return tokenizer, encode_records(tokenizer, records, config or tiny_config(),
                                     stop_ids(tokenizer))


def test_the_numbers_of_real_records_are_those_of_their_evidence():
    config = load_config("configs/demo.cpu.yaml", {"data.max_seq_length": 2048})
    tokenizer = load_tokenizer(config)
    records = list(read_records(project_root() / "data/training/kwanzaa_dev.jsonl"))[:60]
    weigh = EvidenceWeights(tokenizer, 6)
    rows = encode_records(tokenizer, records, config, stop_ids(tokenizer))
    lengths = set()
    for record, row in zip(records, rows, strict=True):
        labels = torch.tensor(row["labels"])
        cited = json.loads(record["messages"][-1]["content"])["evidence"]
        heavy = tokenizer.decode(labels[weigh.numbers(labels)])
        assert heavy == "".join(map(str, cited))
        lengths.add(len(cited))
    assert {0, 1, 2} <= lengths


@pytest.mark.parametrize("flatten", [flatten_rows, flatten_shared])
def test_in_a_flat_row_each_answer_has_its_own_numbers(flatten):
    tokenizer, rows = encoded()
    labels = flatten(rows)["labels"][0]
    heavy = EvidenceWeights(tokenizer, 6).numbers(labels)
    assert tokenizer.decode(labels[heavy]) == "12134"


def test_the_loss_is_the_weighted_mean_of_the_tokens():
    tokenizer, rows = encoded()
    batch, model = flatten_shared(rows), tiny_model()
    weigh = EvidenceWeights(tokenizer, 6)
    found, count = supervised_loss(model, batch, weigh=weigh)
    summed = weighed = 0.0
    for row in rows:  # each alone, by the definition
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        logits = model(**{name: value for name, value in flatten_rows([row]).items()
                          if name != "labels"}).logits[0, :-1]
        assert ids.shape[1] == len(labels) == len(logits) + 1
        losses = cross_entropy(logits, labels[1:], reduction="none", ignore_index=IGNORED)
        weights = 1.0 + 5.0 * weigh.numbers(labels[1:])
        summed += (weights * losses).sum()
        weighed += weights[labels[1:] != IGNORED].sum()
    assert (found / count).item() == pytest.approx((summed / weighed).item(), rel=1e-5)
    plain, _ = supervised_loss(model, batch)
    assert found.item() != pytest.approx(plain.item(), rel=1e-4)
    once, _ = supervised_loss(model, batch, weigh=EvidenceWeights(tokenizer, 1))
    assert once.item() == pytest.approx(plain.item(), rel=1e-6)


def test_where_nothing_is_learned_the_loss_is_zero():
    tokenizer, rows = encoded()
    batch = flatten_shared([{**row, "labels": [IGNORED] * len(row["labels"])} for row in rows])
    weigh = EvidenceWeights(tokenizer, 6)
    loss, count = supervised_loss(tiny_model(), batch, allow_empty=True, weigh=weigh)
    assert (loss.item(), count) == (0.0, 0)


def trained(tmp_path, **extra):
    config = tiny_config(training__extra=extra, training__max_steps=2, run__logging_steps=1)
    tokenizer, rows = encoded(config)
    adapted = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear",
                                                      task_type="CAUSAL_LM"))
    trainer, _ = train_adapter(adapted, tokenizer, rows, rows, config, CPU, tmp_path)
    log = trainer.state.log_history
    return next(one["loss"] for one in log if "loss" in one), trainer.evaluate()["eval_loss"]


def test_training_weighs_and_the_evaluation_does_not(tmp_path):
    plain, _ = trained(tmp_path / "plain")
    heavy, evaluated = trained(tmp_path / "heavy", **{EVIDENCE_WEIGHT: 6})
    once, _ = trained(tmp_path / "once", **{EVIDENCE_WEIGHT: 1})
    assert once == plain != heavy
    tokenizer, rows = encoded()
    assert abs(evaluated - plain) < abs(evaluated - heavy), "the evaluation has no weights"


@pytest.mark.parametrize("value", [0, 0.5, -1, float("inf"), float("nan"), "6", True, None])
def test_what_is_no_weight_is_refused(value):
    with pytest.raises(ExtraError, match="write a number from 1 on"):
        check_extra({EVIDENCE_WEIGHT: value})


def test_the_weight_is_used_as_it_was_asked():
    config = tiny_config(training__extra={EVIDENCE_WEIGHT: 2.5})
    assert settle_extra(config, "cpu") == ({EVIDENCE_WEIGHT: 2.5}, ())
