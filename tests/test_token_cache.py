"The token cache: rows come back equal, and are made anew after any change or damage."

import json
import shutil
from pathlib import Path

import pytest

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.model.masking import stop_ids
from kwanzaa_nb.model.load import load_tokenizer
from kwanzaa_nb.train import token_cache
from kwanzaa_nb.train.token_cache import cached_rows, rows_key
from kwanzaa_nb.train.trainer import RecordsError, encode_records
from kwanzaa_nb.core.record import read_records

ROOT = Path(__file__).resolve().parents[1]
RECORDS = [record for record in read_records(ROOT / "data" / "training" / "kwanzaa_dev.jsonl")
           if len(record["chunks"]) < 3]  # that fit into the demo's 1,024 tokens


@pytest.fixture(scope="module")
def given():
    "Tokenizer, records, config and ends of a turn."
    config = load_config(ROOT / "configs" / "demo.cpu.yaml")
    tokenizer = load_tokenizer(config)
    return tokenizer, RECORDS[:8], config, stop_ids(tokenizer)


def test_rows_are_those_of_encode_records(given, tmp_path):
    wanted = encode_records(*given)
    assert cached_rows(*given, folder=tmp_path) == (wanted, False)
    assert cached_rows(*given, folder=tmp_path) == (wanted, True)


def test_whatever_the_rows_depend_on_changes_the_key(given):
    tokenizer, records, config, eos_token_ids = given
    longer = load_config(ROOT / "configs" / "demo.cpu.yaml",
                         {"data.max_seq_length": config.data.max_seq_length + 1})
    other = load_tokenizer(config)
    other.chat_template += " "
    wider = load_tokenizer(config)
    wider.add_tokens(["<new>"])
    said = json.loads(json.dumps(records))
    said[3]["messages"][1]["content"] += "?"
    keys = [rows_key(*given), rows_key(tokenizer, records, longer, eos_token_ids),
            rows_key(other, records, config, eos_token_ids),
            rows_key(wider, records, config, eos_token_ids),
            rows_key(tokenizer, said, config, eos_token_ids),
            rows_key(tokenizer, records[1:], config, eos_token_ids),
            rows_key(tokenizer, records[::-1], config, eos_token_ids),
            rows_key(tokenizer, records, config, eos_token_ids | {5}),
            rows_key(tokenizer, [{**records[0], "group": "another"}, *records[1:]], config,
                     eos_token_ids)]
    assert len(set(keys)) == len(keys)
    assert keys[0] == rows_key(load_tokenizer(config), json.loads(json.dumps(records)), config,
                               set(eos_token_ids))


def test_another_version_of_the_code_is_another_key(given, monkeypatch):
    before = rows_key(*given)
    monkeypatch.setattr(token_cache, "ROWS_VERSION", token_cache.ROWS_VERSION + 1)
    assert rows_key(*given) != before


def test_what_is_half_written_or_damaged_is_made_anew(given, tmp_path):
    wanted, _ = cached_rows(*given, folder=tmp_path)
    place = next(tmp_path.iterdir())
    for damage in (lambda: (place / "dataset_info.json").write_text("{"),
                   lambda: next(place.glob("*.arrow")).write_bytes(b"half"),
                   lambda: (shutil.rmtree(place), place.mkdir())):
        damage()
        assert cached_rows(*given, folder=tmp_path) == (wanted, False)
        assert cached_rows(*given, folder=tmp_path) == (wanted, True)
    assert list(tmp_path.iterdir()) == [place]


def test_a_folder_that_cannot_be_written_is_only_slower(given, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    wanted = encode_records(*given)
    assert [cached_rows(*given, folder=tmp_path / "file")
            for _ in range(2)] == [(wanted, False)] * 2


def test_rows_with_problems_are_refused_each_time_and_never_kept(given, tmp_path):
    tokenizer, records, config, eos_token_ids = given
    short = load_config(ROOT / "configs" / "demo.cpu.yaml",
                        {"data.max_seq_length": 300, "data.context_tokens": 200})
    for _ in range(2):
        with pytest.raises(RecordsError):
            cached_rows(tokenizer, records, short, eos_token_ids, folder=tmp_path)
    assert not list(tmp_path.iterdir())
