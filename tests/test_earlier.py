"Adapters that earlier versions trained: what no answer depends on is passed over, the rest is one sentence."

import subprocess
import sys

import pytest
from tiny import ROOT, tiny_config

from kwanzaa_nb.core.config import ConfigError, EarlierError, config_to_yaml, load_config, load_trained
from kwanzaa_nb.core.settings import REMOVED
from test_serving import BLOCKED

REMOVED_KEYS = {"adapter": ["variant: null"], "publishing": ["beats_rules: true", "private: true"], "improve": ["samples: 8"],
                "data": ["chunk_words: 80", "max_passages: 4"], "evaluation": ["backend: local", "batch_tokens: 4000"],
                "model": ["chat_template: null", "revision: null"], "run": ["launcher: null"]}


def earlier(folder, **more):
    "A folder with the config of a training by an earlier version."
    config = tiny_config(**{"run.name": "first", "evaluation.answer_threshold": 0.25})
    lines = config_to_yaml(config).splitlines()
    for section, keys in {**REMOVED_KEYS, **more}.items():
        place = next((place for place, line in enumerate(lines) if line.startswith(f"{section}:")), None)
        if place is None:
            lines += [f"{section}:"]
            place = len(lines) - 1
        lines[place + 1:place + 1] = [f"  {key}" for key in keys]
    (folder / "training_config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "training_config.yaml", config


def test_removed_keys_that_no_answer_depends_on_are_passed_over(tmp_path):
    path, config = earlier(tmp_path)
    with pytest.raises(ConfigError):
        load_config(path)
    found = load_trained(path, {"run.device": "cpu"})
    for section in ("model", "adapter", "data", "evaluation"):
        assert getattr(found, section) == getattr(config, section)
    assert found.run.name == "first"


def test_keys_that_have_another_place_are_read_there(tmp_path):
    path, config = earlier(tmp_path, adapter=["variant: rslora"], model=["revision: 5aad3ff"])
    found = load_trained(path)
    assert found.adapter.method == "rslora" and found.model.base_model_id == f"{config.model.base_model_id}@5aad3ff"


@pytest.mark.parametrize("more, named", [({"data": ["personas: [poet]"]}, "data.personas"), ({"data": ["never_known: 1"]}, "data.never_known"),
                                         ({"model": ["chat_template: '{{ x }}'"]}, "model.chat_template")])
def test_what_answers_depend_on_is_one_sentence_before_torch(tmp_path, more, named):
    path, _ = earlier(tmp_path, **more)
    with pytest.raises(EarlierError, match=named) as error:
        load_trained(path)
    assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "run/adapter").mkdir(parents=True)
    (tmp_path / "run/adapter/training_config.yaml").write_bytes(path.read_bytes())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("A saw is sharp.")
    asking = (f"load_answerer({str(tmp_path)!r})", f"load_answerer({str(tmp_path)!r}, url='http://127.0.0.1:9/v1')",
              f"from kwanzaa_nb.use.ask import open_reader; open_reader({str(tmp_path / 'notes')!r}, {str(tmp_path)!r}, embeddings='any/model')",
              f"from kwanzaa_nb.run.export import export_run; export_run({str(tmp_path / 'run')!r}, ['q8_0'])")
    code = BLOCKED + "from kwanzaa_nb.core.config import EarlierError\n" + "".join(
        f"try:\n    {one}\nexcept EarlierError as error:\n    print(error)\n" for one in asking)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(error.value)] * len(asking), done.stderr


def test_damage_is_told_as_ever(tmp_path):
    path, _ = earlier(tmp_path, data=["max_seq_length: many"])
    with pytest.raises(ConfigError):
        load_trained(path)


def test_every_removed_key_is_passed_over_or_named(tmp_path):
    for dotted in REMOVED:
        section, _, key = dotted.partition(".")
        path, _ = earlier(tmp_path, **{section: [f"{key}: 3"]})
        try:
            load_trained(path)
        except EarlierError as error:
            assert dotted in str(error) and dotted in ("model.chat_template", "data.personas")
