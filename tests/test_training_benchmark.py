"The training benchmark: all arms train on the same tokens to the same losses."

import json

import pytest
from tiny import ROOT

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.model.masking import IGNORED
from kwanzaa_nb.model.load import load_tokenizer
from kwanzaa_nb.bench.training import (
    ARMS,
    RECORDS,
    Turns,
    arm_config,
    demo_rows,
    even_rows,
    loss_differences,
    rates,
    take_turns,
    train_arm,
    training_rows,
    write_model,
)

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def config():
    return load_config(ROOT / "configs" / "demo.cpu.yaml", RECORDS)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    "A tiny model, and short rows of several lengths with common beginnings."
    folder = tmp_path_factory.mktemp("training")
    write_model(config, folder / "model", **TINY)
    rows = []
    for place in range(6):
        tokens = [*range(100, 140), *range(200 + 10 * place, 215 + 12 * place)]
        rows.append({"input_ids": tokens, "labels": [IGNORED] * 45 + tokens[45:],
                     "group": str(place // 3)})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def run(folder, name, steps=3):
    "An arm in this process; its result, and what it told."
    told = []
    return train_arm(name, folder, steps, Turns(lambda: told.append("turn"), told.append)), told


def test_all_arms_learn_the_same(folder):
    found = {}
    for name in ARMS:
        if ARMS[name].four_bit:
            pytest.importorskip("bitsandbytes")
        found[name], told = run(folder, name)
        assert told[:2] == [{"ready": True}, "turn"] and told.count("turn") == 3
        assert "cpu_seconds" in told[-1]
        assert not list((folder / name).glob("checkpoint-*"))
    losses = found["TRL"]["losses"]
    assert len(losses) == 3 and losses[0] - losses[2] > 1e-2, "nothing was learnt, so equal losses show nothing"
    apart = loss_differences({"arms": found})
    assert set(apart) == {name for name, arm in ARMS.items() if not arm.four_bit}
    assert max(apart.values()) < 1e-4
    assert abs(found["ours, NF4"]["losses"][0] - losses[0]) > 1e-4, "these weights are not in 4 bits"


def test_arms_in_processes_take_turns(folder):
    found = take_turns(folder, ["TRL", "ours"], 2)
    assert loss_differences({"arms": found})["ours"] < 1e-4
    assert all(len(arm["cpu_seconds"]) == 2 and min(arm["cpu_seconds"]) > 0 and 0.1 < arm["peak_gb"] < 4 for arm in found.values())


def test_an_arm_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="'ours' ended early(.|\n)*rows.json"):
        take_turns(tmp_path, ["ours"], 1)


def test_what_is_trained_on(config):
    tokenizer = load_tokenizer(config)
    rows = demo_rows(tokenizer, config, 3)
    assert len(rows) == 18 and len({row["group"] for row in rows}) == 3
    sizes = [sum(len(row["input_ids"]) for row in rows[start : start + 6]) for start in (0, 6, 12)]
    assert sizes[0] < sizes[1] < sizes[2]
    even = even_rows(tokenizer, config, 5, length=64)
    assert [len(row["input_ids"]) for row in even] == [64] * 5
    assert all(row["labels"] == [IGNORED] * 8 + row["input_ids"][8:] for row in even)
    assert len({tuple(row["input_ids"][:4]) for row in even}) == 5


def test_rows_a_batch():
    batches = {name: arm_config(arm, "model", 12, 2).training.per_device_train_batch_size
               for name, arm in ARMS.items()}
    assert {name for name, size in batches.items() if size == 1} == {"TRL, one a batch", "TRL, packed", "ours, packed"}
    assert {size for size in batches.values()} == {1, 6}


def test_the_table():
    arms = {"TRL": {"cpu_seconds": [5, 4, 4], "losses": [2.0, 1.0], "peak_gb": 2},
            "TRL, packed": {"cpu_seconds": [5], "losses": [2, 1], "peak_gb": 3},
            "ours": {"cpu_seconds": [1, 2, 1], "losses": [2.0, 1.5], "peak_gb": 1},
            "ours, NF4": {"cpu_seconds": [2], "losses": [9, 9], "peak_gb": 1}}
    mix = {"supervised_tokens": 20, "arms": arms}
    assert rates(mix) == {"TRL": 5, "TRL, packed": 4, "ours": 20, "ours, NF4": 10}
    rows = training_rows({"mixes": {"some": mix}})
    assert rows[2] == ["some", "ours", "20.0", "4.00", "5e-01", "1.00"]
    assert rows[3] == ["some", "ours, NF4", "10.0", "2.00", "", "1.00"]
