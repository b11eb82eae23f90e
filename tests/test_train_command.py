"The training command: killed and resumed, in several processes, and ended early."

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from ruamel.yaml import YAML
from tiny import ROOT, SECTIONS, tiny_config, tiny_model, tiny_tokenizer

import kwanzaa_nb.train.command as command_module
from kwanzaa_nb.bench import trials
from kwanzaa_nb.train.resume import last_complete
from kwanzaa_nb.core.manifest import read_manifest
from kwanzaa_nb.train.command import (TRAINING_STEPS, SaveWhenAsked, Training, TrainingError, TrainingStopped, explain_early_end,
                                      open_stage, prepare_reports, report_failure, run_training)
from kwanzaa_nb.core.record import read_records

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SETTINGS = {"run": {"seed": 3, "logging_steps": 1, "save_steps": 2, "eval_steps": 3,
                    "save_total_limit": 2}, "adapter": {"dropout": 0.1, "r": 4,
                                                        "target_modules": "all-linear"},
            "training": {"epochs": 3, "per_device_train_batch_size": 2,
                         "gradient_accumulation_steps": 2, "learning_rate": 0.01,
                         "lr_scheduler": "cosine", "warmup_ratio": 0.1},
            "data": {"max_seq_length": 4096},
            "evaluation": {"generation_defaults": {"max_new_tokens": 2000}}}


def heeds_ctrl_c():
    "Undo in a child that Ctrl-C is ignored, as it is in the background of a script."
    signal.signal(signal.SIGINT, signal.default_int_handler)


def some_records(split, count):
    "The shortest records of a split, whole groups."
    records = read_records(ROOT / "data" / "training" / f"kwanzaa_{split}.jsonl")
    sizes = {}
    for one in records:
        sizes[one["group"]] = sizes.get(one["group"], 0) + len(one["messages"][1]["content"])
    short = sorted(sizes, key=sizes.get)
    ordered = sorted(records, key=lambda one: short.index(one["group"]))
    sides = [[one for one in ordered if one["answerable"] is side] for side in (True, False)]
    return ordered[:count] if split == "train" else [*sides[0][:count - count // 2],
                                                     *sides[1][:count // 2]]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with a base model and records."
    folder = tmp_path_factory.mktemp("home")
    tiny_model(attention="sdpa").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    for name, count in (("train", 22), ("dev", 5), ("eval", 2)):
        lines = [json.dumps(one) for one in some_records(name, count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def config_file(home, name, **changes):
    "A config of a run, with changes by section."
    places = {"run": {"name": name, "output_dir": str(home / name)},
              "model": {"base_model_id": str(home / "base")},
              "data": {f"{part}_file": str(home / f"{part}.jsonl")
                       for part in ("train", "dev", "eval")}}
    values = {section: {**SECTIONS.get(section, {}), **SETTINGS.get(section, {}),
                        **places.get(section, {}), **changes.get(section, {})}
              for section in SECTIONS}
    path = home / f"{name}.yaml"
    with open(path, "w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)
    return path


def command(path, processes=None, module="kwanzaa_nb.train"):
    "The words that train by a config, in this many processes."
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes",
              str(processes), "--main_process_port", "0", "-m"]
    return [sys.executable, "-m", *(launch if processes else []), module, "--config", str(path)]


def run(path, processes=None, module="kwanzaa_nb.train", **more):
    return subprocess.run(command(path, processes, module), cwd=ROOT, env={**ENVIRONMENT, **more},
                          capture_output=True, text=True, timeout=900)


def log_of(folder):
    return json.loads((folder / "adapter" / "training_log.json").read_text(encoding="utf-8"))


def losses(folder, name="loss"):
    return [row[name] for row in log_of(folder)["log"] if name in row]


@pytest.fixture(scope="module")
def whole(home):
    "The folder of a training that nothing interrupted."
    done = run(config_file(home, "whole"))
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "whole"


def test_a_trial_is_trained_and_measured(home, monkeypatch):
    monkeypatch.setitem(trials.TRIALS, "tiny", {"adapter.r": 2})
    row = trials.run_trial(str(config_file(home, "trial")), "tiny", home / "trials", 2)
    assert (row["trial"], row["steps"]) == ("tiny", 2)
    assert 0 <= row["auroc"] <= 1 and row["eval_loss"] > 0 and "valid" in row


def staged(home, name, **changes):
    "A training in this process, ready to run."
    training = Training(open_stage(config_file(home, name, **changes)))
    for step in TRAINING_STEPS[:-2]:
        step(training)
    return training


def adapter_of(training):
    return (training.stage.folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_cell_that_is_run_again_trains_from_where_the_first_began(home):
    "It ended before its first checkpoint, so the model in the notebook has learned a few steps already."
    short = {"training": {"max_steps": 3}, "run": {"save_steps": 3, "eval_steps": 3}}
    once, twice = staged(home, "at-once", **short), staged(home, "again", **short)
    run_training(once)

    def stop(moment):
        raise KeyboardInterrupt

    with pytest.raises(TrainingStopped, match="it starts anew"):
        run_training(twice, stop)
    run_training(twice)
    assert adapter_of(once) == adapter_of(twice)


def test_an_estimate_after_an_interruption_counts_what_is_left(home):
    name, most = "interrupted", {"training": {"max_steps": 4}, "run": {"save_steps": 2, "eval_steps": 4}}
    training = staged(home, name, **most)

    def stop_later(moment):
        if moment.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(TrainingStopped, match="resumes from step 2"):
        run_training(training, stop_later)
    again = staged(home, name, **most)
    assert "minutes up to step 2, and 2 measured steps" in again.estimate.seconds_by
    assert "up to step" not in training.estimate.seconds_by
    run_training(again)


def test_records_that_are_all_too_long_are_named(home):
    small = {"data": {"max_seq_length": 40, "over_length": "drop_records"}, "evaluation": {"generation_defaults": {"max_new_tokens": 20}}}
    with pytest.raises(TrainingError, match="all training records have over 40 tokens: raise data.max_seq_length"):
        staged(home, "too-long", **small)
    told = (home / "too-long" / "progress.log").read_text(encoding="utf-8")
    assert "22 training and 5 development records had over 40 tokens, so data.over_length (drop_records)" in told


def test_the_command_does_what_the_stage_does(whole):
    entry = read_manifest(whole)["stages"]["train"]
    assert entry["status"] == "done" and entry["summary"]["steps"] == 18
    assert "adapter/adapter_model.safetensors" in entry["wrote"]
    assert {Path(key).name for key in entry["read"]} == {"train.jsonl", "dev.jsonl"}
    assert len(losses(whole)) == 18 and len(losses(whole, "eval_loss")) == 6
    kept, rows = log_of(whole)["kept"], log_of(whole)["decision"]
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 15, 18]
    assert [row["step"] for row in rows if "evidence" in row] == [9, 12, 15, 18]
    best = max((row for row in rows if "evidence" in row),
               key=lambda row: (row["decision_and_evidence"], row["step"]))
    assert kept["by"] == "decision_and_evidence" and kept["step"] == best["step"]
    assert entry["summary"]["kept"].startswith(f"Step {best['step']} of 18")
    assert entry["summary"]["behaviour_seconds"] == sum(row["behaviour_seconds"] for row in rows)
    assert not list((whole / "checkpoints").glob("*/checkpoint-*"))


def test_the_notebook_takes_the_same_steps_in_the_same_order():
    cells = json.loads((ROOT / "nbs" / "02_train.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    names = [step.__name__ for step in command_module.TRAINING_STEPS]
    called = re.findall(rf"^({'|'.join(names)})\(work", code, re.MULTILINE)
    assert called == names


def killed_after(path, folder, step):
    "Run the command and kill it with SIGKILL a moment after it has told of a step."
    process = subprocess.Popen(command(path), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        if line.startswith(f"step {step} of 18"):
            time.sleep(random.random() * 0.1)  # into the next step, an evaluation or a checkpoint
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    return next((folder / "checkpoints").glob("[0-9a-f]*"))


def test_killed_anywhere_and_run_again_it_ends_with_the_same_bytes(home, whole):
    step = random.randrange(3, 17)
    path = config_file(home, "killed")
    checkpoints = killed_after(path, home / "killed", step)
    kept = last_complete(checkpoints)
    saved = int(kept.name.rpartition("-")[2])
    assert step - 2 <= saved <= step + 6, f"killed after step {step}"
    again = run(path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"resumes from {kept.name.replace('checkpoint-', 'step ')}" in again.stdout
    resumed, expected = ((folder / "adapter" / "adapter_model.safetensors").read_bytes()
                         for folder in (home / "killed", whole))
    assert resumed == expected
    assert losses(home / "killed") == losses(whole) and losses(home / "killed",
                                                               "eval_loss") == losses(whole,
                                                                                      "eval_loss")


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
def test_a_scheduler_or_a_person_that_ends_the_job_loses_no_step(home, whole, word):
    "The first signal saves the step that is running, which no interval asked for, and stops."
    name = f"asked-{word.name}"
    path = config_file(home, name, run={"save_steps": 100})
    process = subprocess.Popen(command(path), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, preexec_fn=heeds_ctrl_c)
    for line in process.stdout:
        if line.startswith("step 4 of 18"):
            process.send_signal(word)
            break
    said, error = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in error, error
    assert ("once more stops at once" in error) is (word == signal.SIGINT)
    saved = int(re.search(r"asked to stop: step (\d+) is saved first", said)[1])
    assert 4 <= saved <= 8 and f"run the same again: it resumes from step {saved}" in error
    assert read_manifest(home / name)["stages"]["train"]["status"] == "interrupted"
    again = run(path)
    assert again.returncode == 0 and f"resumes from step {saved}" in again.stdout
    resumed, expected = ((folder / "adapter" / "adapter_model.safetensors").read_bytes()
                         for folder in (home / name, whole))
    assert resumed == expected


def test_the_second_ctrl_c_stops_at_once(home):
    path = config_file(home, "twice", run={"save_steps": 100})
    process = subprocess.Popen(command(path), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, preexec_fn=heeds_ctrl_c)
    for line in process.stdout:
        if line.startswith("step 4 of 18"):
            process.send_signal(signal.SIGINT)
            for line in process.stderr:
                if "once more stops at once" in line:
                    break
            process.send_signal(signal.SIGINT)
            break
    said, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error, error
    assert "training was stopped" in error and read_manifest(
        home / "twice")["stages"]["train"]["status"] == "interrupted"


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with SaveWhenAsked(print) as saving:
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not saving.asked
            assert signal.getsignal(signal.SIGTERM) == saving._ask
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_development_records_the_last_step_is_kept_and_that_is_said(home):
    path = config_file(home, "blind", data={"dev_file": None}, training={
        "epochs": 1, "early_stopping_patience": 2})
    done = run(path)
    assert done.returncode == 0, done.stderr[-3000:]
    entry = read_manifest(home / "blind")["stages"]["train"]
    notes = {note["key"]: note for note in entry["fallbacks"]}
    assert notes["training.select_by"]["used"] is None
    assert notes["training.early_stopping_patience"]["used"] is None
    assert entry["summary"]["kept"] == ("Step 6 of 6, the last trained, was kept: data.dev_file "
                                        "names no development records.")


def test_two_processes_learn_what_one_learns_at_the_same_global_batch(home):
    "Rows that don't divide evenly, several epochs; the order of sums alone is another."
    changes = {"adapter": {"dropout": 0.0}, "training": {"optim": "sgd", "learning_rate": 0.5,
                                                         "epochs": 2}}
    one = run(config_file(home, "one", **changes))
    changes["training"]["gradient_accumulation_steps"] = 1
    two = run(config_file(home, "two", **changes), 2)
    for done in (one, two):
        assert done.returncode == 0, done.stderr[-3000:]
        for line in ("trains from the start", "step 12 of 12: loss"):
            assert done.stdout.count(line) == 1
    for name in ("loss", "eval_loss", "grad_norm"):
        first, second = losses(home / "one", name), losses(home / "two", name)
        assert len(first) == len(second) >= 4 and second == pytest.approx(first, abs=1e-4)
    first, second = (log_of(home / name)["decision"] for name in ("one", "two"))
    assert [row["auroc"] for row in first] == [row["auroc"] for row in second]
    assert losses(home / "one")[-1] < losses(home / "one")[0] - 0.1
    assert read_manifest(home / "two")["stages"]["train"]["summary"]["steps"] == 12


def test_the_failure_of_one_process_ends_all_with_a_sentence(home):
    path = config_file(home, "failing", training={"gradient_accumulation_steps": 1, "epochs": 40})
    done = run(path, 2, "failing_train", RANK_THAT_FAILS="1", PYTHONPATH=str(ROOT / "tests"))
    assert done.returncode
    assert "TrainingError: the loss is nan at step 2: lower training.learning_rate" in done.stderr
    assert done.stderr.count("TrainingError: ") == 1
    entry = read_manifest(home / "failing")["stages"]["train"]
    assert entry["status"] == "failed" and entry["error"].startswith("the loss is nan at step 2")
    checkpoints = next((home / "failing" / "checkpoints").glob("[0-9a-f]*"))
    assert last_complete(checkpoints).name == "checkpoint-2"


def test_the_configs_for_accelerate_are_ones_that_it_takes():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
    assert [path.stem for path in files] == ["ddp", "fsdp_qlora", "one_gpu"]
    for path in files:
        loaded = load_config_from_file(str(path))
        assert loaded.num_processes >= 1
        assert "Not run on a GPU yet" in path.read_text(encoding="utf-8")


def test_processes_other_than_the_first_write_nothing(home, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    path = config_file(home, "second")
    stage = open_stage(path)
    stage.progress("said by nobody")
    stage.read(home / "train.jsonl")
    assert not (home / "second").exists()
    monkeypatch.setattr(command_module, "PATIENCE", 0)
    monkeypatch.setenv("RANK", "0")
    first = open_stage(path)
    monkeypatch.setenv("RANK", "1")
    report_failure(stage, TrainingError("only this one knows why"))
    monkeypatch.setenv("RANK", "0")
    report_failure(first, RuntimeError("connection closed"))
    assert read_manifest(home / "second")["stages"]["train"]["error"] == "only this one knows why"


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(command_module.importlib.util, "find_spec", lambda name: None)
    for name in ("trackio", "tensorboard", "wandb", "mlflow"):
        with pytest.raises(TrainingError, match=f"pip install {name}"):
            prepare_reports(tiny_config(**{"run.report_to": [name]}), tmp_path)
    prepare_reports(tiny_config(), tmp_path)


@pytest.mark.parametrize("error, sentence", [
    (KeyboardInterrupt(), "run the same again: it starts anew"),
    (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; make room"),
    (RuntimeError("No space left on device"), "the disk is full; make room"),
])
def test_what_ends_a_training_early_is_told_in_a_sentence(error, sentence, tmp_path):
    with pytest.raises((TrainingStopped, TrainingError), match=sentence):
        with explain_early_end(tmp_path / "checkpoints"):
            raise error
    with pytest.raises(OSError, match="denied"):
        with explain_early_end(tmp_path / "checkpoints"):
            raise OSError(errno.EACCES, "denied")


@pytest.mark.parametrize("trained, published, named", [
    ("owner/base", None, "owner/base"), ("owner/base@v1", None, "owner/base@v1"),
    ("owner/base@v1", "owner/base", "owner/base@v1"), ("package:base", "owner/base", "owner/base")])
def test_the_adapter_is_told_the_revision_of_its_base(monkeypatch, trained, published, named):
    class Told(Exception):
        "Stops where the adapter would be written."

    def told(model, tokenizer, folder, texts, base_model, *_):
        raise Told(base_model)

    monkeypatch.setattr(command_module, "save_adapter", told)
    config = tiny_config(**{
        "model.base_model_id": trained, "publishing.metadata.base_model_id": published})
    training, trainer = MagicMock(config=config), MagicMock(is_fsdp_enabled=False)
    with pytest.raises(Told, match=f"^{named}$"):
        command_module._save_training(training, trainer)
