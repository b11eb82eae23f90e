"Published files: texts stay as they are, paths become portable, and secrets are refused by key."

import ast
import json
import os
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_run import make_run
from ruamel.yaml import YAML

from kwanzaa_nb.publish import staging
from kwanzaa_nb.core.config import (
    PATHS, Section, config_table, config_to_yaml, known_keys, load_config)
from kwanzaa_nb.publish.outgoing import OutgoingError, kinds_in
from kwanzaa_nb.core.manifest import portable_config, read_manifest
from kwanzaa_nb.core.stage import Stage

ROOT = Path(__file__).resolve().parents[1]
LIKE_PATHS = [
    "Answer by /api/v2/users.", "See /wiki/Help/Contents", r"Never name C:\Users or D:\Data\x.txt.",
    "and/or, him/her, 1/2", "/a/b/c", "~/notes/x", "/etc/hosts and /var/log/syslog",
    "^/(?:api|wiki)/[a-z]+/?$", "https://example.org/a/b?c=/d/e", r"\\share\folder\x", "/", "..",
    "/usr/bin/env python"]
FREE = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=60)
PATH_PARTS = [*"/\\~. x'\"\n:", "C:", "Users", "api", "home", "{rule}"]
PATHISH = st.lists(st.sampled_from(PATH_PARTS), max_size=12).map("".join)
TEXTS = (FREE | PATHISH).filter(lambda text: text.strip() and all(
    letter >= " " and letter != "\x7f" or letter in "\t\n" for letter in text))
NO_SHRINK = settings(max_examples=30, deadline=None,
                     suppress_health_check=[HealthCheck.function_scoped_fixture])


def config_of(root, **changes):
    config = load_config(ROOT / "configs" / "demo.cpu.yaml", {
        "run.output_dir": "outputs/x", "evaluation.answer_threshold": 0.5, **changes})
    config._root = Path(root)
    return config


def read_yaml(text):
    return YAML(typ="safe", pure=True).load(StringIO(text))


def public(config, root):
    return read_yaml(staging.public_training_config(config_to_yaml(config), None, root))


@pytest.mark.parametrize("text", LIKE_PATHS)
def test_texts_that_look_like_paths_are_published_as_they_are(tmp_path, text):
    phrase = text.replace("{", "(").replace("}", ")")
    config = config_of(tmp_path, **{
        "data.system_prompt": text,
        "data.ignore_fields": [phrase], "run.name": phrase, "adapter.target_modules": [phrase],
        "publishing.force_reason": phrase, "data.defaults": {"canonical_url": phrase}})
    assert public(config, tmp_path) == json.loads(json.dumps(config.model_dump(mode="json")))
    stage = Stage("train", config)
    stored = read_manifest(stage.folder)["stages"]["train"]["config"]
    assert stored == json.loads(json.dumps(config.model_dump(mode="json")))
    shown = {row[0]: row[1] for row in stage.settings().rows}
    assert shown["data.system_prompt"] == text
    stage.done()


@NO_SHRINK
@given(TEXTS)
@example("x: |\n  y # z")
@example("---\n'\"")
@example("0\x85 1\u2028 2")
def test_any_text_stays_or_is_refused_by_its_key(tmp_path, text):
    config = config_of(tmp_path, **{"data.system_prompt": text})
    portable = portable_config(config.model_dump(mode="json"), tmp_path)
    assert portable["data"]["system_prompt"] == text
    try:
        assert public(config, tmp_path)["data"]["system_prompt"] == text
    except OutgoingError as error:
        assert "training_config.yaml, data.system_prompt: " in str(error)
        assert kinds_in(text, tmp_path)


@pytest.mark.parametrize("key", [
    "data.system_prompt", "run.name", "data.ignore_fields.0", "publishing.force_reason"])
@pytest.mark.parametrize("what, words", [
    ("home", "somebody's folder|a path of the home folder"),
    ("root", "a path of the project's folder|of the temporary folder"),
    ("token", "a Hugging Face token"), ("other", "somebody's folder")])
def test_a_path_of_this_machine_and_a_token_are_refused(tmp_path, monkeypatch, key, what, words):
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    held = {
        "home": str(Path.home() / "notes.txt"), "root": f"{tmp_path}/data/x",
        "token": "hf_" + "Q" * 30, "other": r"C:\Users\grace"}[what]
    text = f"Look into {held} first."
    section, _, name = key.partition(".")
    change = {
        "data.ignore_fields.0": {"data.ignore_fields": [text]}}.get(key, {key: text})
    config = config_of(tmp_path, **change)
    sentence = "published as the adapter was trained with them: take it out"
    told = f"training_config.yaml, {key}: ({words}).*{sentence}"
    with pytest.raises(OutgoingError, match=told) as error:
        public(config, tmp_path)
    assert held not in str(error.value)
    stage = Stage("train", config)
    assert ("hf_" + "Q" * 30) not in (stage.folder / "manifest.json").read_text()
    stage.done()


def test_every_key_that_is_a_path_is_made_portable(tmp_path):
    ends = ("_file", "_dir", "corpus", "questions", "_template")
    described = {".".join(path) for path, info in known_keys().items()
                 if not (isinstance(info, type) and issubclass(info, Section))
                 and path[-1].endswith(ends)}
    assert described <= set(PATHS)
    away = {key: f"/mnt/somewhere/{key}" for key in PATHS}
    config = config_of(tmp_path, **away)
    shown = dict(config_table(config))
    for key in PATHS:
        assert portable_config(shown[key], tmp_path, key) == f".../{key}"
    assert "/mnt/" not in json.dumps(portable_config(config.model_dump(mode="json"), tmp_path))
    assert "/mnt/" not in staging.public_training_config(config_to_yaml(config), None, tmp_path)


@pytest.mark.parametrize("text", LIKE_PATHS)
def test_a_report_keeps_texts_and_loses_paths(tmp_path, text):
    given_ = {
        "config": f"{tmp_path}/configs/x.yaml",
        "overrides": {"data.system_prompt": text, "data.corpus": "/mnt/corpus/x.jsonl"},
        "data": {"system_prompt": text}}
    source = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in given_.items())
    outputs = [{
        "output_type": "stream", "name": "stdout",
        "text": [f"{text}\n", f"{tmp_path}/a.py:3: UserWarning\n"]},
        {"output_type": "execute_result", "metadata": {}, "data": {
            "text/plain": [text], "text/html": f"<p>{text}</p>", "image/png": "/home/ada/x"}}]
    book = {"cells": [{
        "cell_type": "code", "metadata": {"tags": ["injected-parameters"]},
        "source": source.splitlines(keepends=True), "outputs": outputs}],
            "metadata": {"papermill": {
                "parameters": given_, "input_path": "/mnt/nbs/x.ipynb",
                "output_path": f"{tmp_path}/out.ipynb"}}}
    made = json.loads(staging.public_notebook(json.dumps(book), tmp_path))
    cell, ran = made["cells"][0], made["metadata"]["papermill"]
    values = {one.targets[0].id: ast.literal_eval(one.value)
              for one in ast.parse("".join(cell["source"])).body}
    wanted = {
        "config": "configs/x.yaml",
        "overrides": {"data.system_prompt": text, "data.corpus": ".../x.jsonl"},
        "data": {"system_prompt": text}}
    assert values == ran["parameters"] == wanted
    assert (ran["input_path"], ran["output_path"]) == (".../x.ipynb", "out.ipynb")
    assert cell["outputs"][0]["text"] == [f"{text}\n", "./a.py:3: UserWarning\n"]
    assert cell["outputs"][1]["data"] == outputs[1]["data"]
    assert str(tmp_path) not in json.dumps(made)


@pytest.mark.parametrize("text", LIKE_PATHS)
def test_json_keeps_texts_and_loses_what_is_a_path_here(tmp_path, text):
    values = {
        "_name_or_path": str(tmp_path), "far": str(Path(os.__file__)), "chat_template": text,
        "list": [text, 1, None]}
    made = json.loads(staging.public_json(json.dumps(values), tmp_path / "project"))
    assert made["chat_template"] == text or os.path.lexists(text)
    assert made["list"][1:] == [
        1, None] and made["_name_or_path"] == f".../{tmp_path.name}" and made["far"] == ".../os.py"
    adapter = {"base_model_name_or_path": "/mnt/models/smol", "target_modules": text, "r": 8}
    made = json.loads(staging.public_adapter_config(json.dumps(adapter), None, tmp_path))
    assert made["base_model_name_or_path"] == ".../smol"
    assert made["target_modules"] == text or os.path.lexists(text)


def test_a_card_shows_examples_as_they_are_and_none_that_may_not_leave(tmp_path):
    folder = make_run(tmp_path, good=0.0, records=6)
    config = config_of(tmp_path, **{
        "run.name": "tiny", "run.output_dir": "outputs/tiny", "data.eval_file": "data/eval.jsonl"})
    log = folder / "evaluation" / "outputs.jsonl"
    whole = log.read_text()
    log.write_text(whole[:whole.rindex("\n") + 1].replace("Well, ", "See /wiki/Help/Contents: "))
    assert "See /wiki/Help/Contents: " in staging.run_card(config, folder, findings=[])
    log.write_text(log.read_text().replace("See /wiki/Help/Contents: ", "See /home/grace/x: "))
    card = staging.run_card(config, folder, findings=[])
    assert "grace" not in card and "| cause | records |" in card


def test_a_published_config_has_the_threshold_that_was_chosen(tmp_path):
    config = config_of(tmp_path, **{"evaluation.answer_threshold": "dev"})
    written = config_to_yaml(config)
    published = [read_yaml(staging.public_training_config(written, None, tmp_path, *least))
                 for least in ((0.32,), (), (None,))]
    assert [one["evaluation"]["answer_threshold"] for one in published] == [0.32, 0.5, None]
