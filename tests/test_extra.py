"Further arguments of TRL, tools that log besides, optimisers by name: used, refused, or said."

import dataclasses
import os
import sys

import pytest
import torch
from test_training import CPU, ROWS, STEADY, adapter_weights, largest_difference
from tiny import tiny_config, tiny_model, tiny_tokenizer
from transformers import set_seed
from trl import SFTConfig

import kwanzaa_nb.train.extra as module
import kwanzaa_nb.train.trainer as training
from kwanzaa_nb.core.config import ConfigError
from kwanzaa_nb.core.settings import TrainingSection
from kwanzaa_nb.model.load import RuntimeSettings, add_adapter
from kwanzaa_nb.model.packing import SEGMENTED
from kwanzaa_nb.train.command import prepare_reports
from kwanzaa_nb.train.extra import ExtraError, check_extra, settle_extra
from kwanzaa_nb.train.trainer import step_budget, train_adapter, trainer_arguments

QUICK = {**STEADY, "training.per_device_train_batch_size": 4,
         "training.gradient_accumulation_steps": 1}


def train(folder, extra=(), optim="sgd", **overrides):
    "Train two steps; (trainer, adapter weights)."
    config = tiny_config(**{**QUICK, "training.extra": dict(extra), **overrides})
    used, _ = settle_extra(config, "cpu")
    config = config.model_copy(update={
        "training": config.training.model_copy(update={"extra": used})})
    set_seed(config.run.seed)
    adapted = add_adapter(tiny_model(), config)
    effective = RuntimeSettings("cpu", "fp32", "fp32", SEGMENTED, False, optim)
    trainer, _ = train_adapter(adapted, tiny_tokenizer(), list(ROWS), ROWS[:2], config, effective,
                               folder)
    return trainer, adapter_weights(adapted)


# names


def test_all_wrong_names_and_values_come_at_once_and_no_secret_is_repeated():
    with pytest.raises(ExtraError) as error:
        check_extra({"neftune_alpha": 5, "learning_rate": 1, "loss_type": "dft", "xyz": 1,
                     "hub_token": "hf_abcdef", "adam_beta1": "high", "push_to_hub": True,
                     "lr_scheduler_kwargs": {"num_cycles": 2}})
    codes = [problem.code for problem in error.value.problems]
    assert codes == ["unknown_name", "own_key", "fixed", "unknown_name", "fixed", "wrong_value",
                     "no_repository"]
    said = str(error.value)
    assert "did you mean neftune_noise_alpha?" in said and "write training.learning_rate" in said
    assert "HF_TOKEN" in said and "hf_abcdef" not in said


def test_whatever_the_project_sets_is_refused(monkeypatch):
    given = {}

    def noting(**arguments):
        given.update(arguments)
        return SFTConfig(**arguments)

    monkeypatch.setattr(training, "SFTConfig", noting)
    config = tiny_config(**QUICK)
    trainer_arguments(config, CPU, step_budget(config, 8)[0], "folder", True)
    assert len(given) > 30 and set(given) <= set(module._KEYS) | set(module._FIXED)
    names = {field.name for field in dataclasses.fields(SFTConfig)}
    assert set(module._KEYS) | set(module._FIXED) <= names
    assert not set(module._KEYS) & set(module._FIXED)


def test_every_key_that_is_named_instead_exists():
    config = tiny_config()
    for key in set(module._KEYS.values()):
        section, name = key.split(".")
        assert hasattr(getattr(config, section), name), key


def test_a_number_that_is_none_is_refused():
    for value in (float("nan"), {"num_cycles": float("inf")}):
        with pytest.raises(ConfigError, match="training.extra"):
            tiny_config(**{"training.extra": {"lr_scheduler_kwargs": value}})


# what is used


def test_arguments_reach_the_trainer(tmp_path):
    trainer, _ = train(tmp_path, {"adam_beta2": 0.5, "lr_scheduler_kwargs": {"num_cycles": 2},
                                  "logging_first_step": True},
                       **{"training.lr_scheduler": "cosine_with_restarts"})
    assert trainer.args.adam_beta2 == 0.5
    assert trainer.args.lr_scheduler_kwargs == {"num_cycles": 2}


def test_noise_on_the_embeddings_is_added_in_training_only(tmp_path):
    still = {"training.learning_rate": 1e-9}
    logs = [train(tmp_path / str(alpha), {"neftune_noise_alpha": alpha} if alpha else {},
                  **still)[0].state.log_history for alpha in (0, 5)]
    for name, alike in (("loss", False), ("eval_loss", True)):
        plain, noisy = ([row[name] for row in log if name in row] for log in logs)
        assert len(plain) == 2 and (noisy == pytest.approx(plain, abs=1e-4)) is alike
    _, (note,) = settle_extra(tiny_config(**{"training.extra": {"neftune_noise_alpha": 5}}), "cpu")
    assert "weaker" in note.reason and note.used == {"neftune_noise_alpha": 5}


def test_kernels_of_liger_are_left_out_where_they_cant_run(monkeypatch):
    asked = {"use_liger_kernel": True, "liger_kernel_config": {"rope": True}, "adam_beta2": 0.9}
    config = tiny_config(**{"training.extra": asked})
    used, (note,) = settle_extra(config, "cpu")
    assert used == note.used == {"adam_beta2": 0.9} and note.requested == asked
    assert note.key == "training.extra" and "need a GPU" in note.reason
    monkeypatch.setattr(module, "is_liger_kernel_available", lambda: False)
    assert "pip install liger-kernel" in settle_extra(config, "cuda")[1][0].reason
    monkeypatch.setattr(module, "is_liger_kernel_available", lambda: True)
    assert settle_extra(config, "cuda") == (asked, ())


def test_checkpoints_are_pushed_into_a_private_repository():
    push = {"push_to_hub": True, "hub_model_id": "ada/checkpoints"}
    used, (note,) = settle_extra(tiny_config(**{"training.extra": push}), "cpu")
    assert used == {**push, "hub_private_repo": True} and "private" in note.reason
    public = {**push, "hub_private_repo": False}
    assert settle_extra(tiny_config(**{"training.extra": public}), "cpu") == (public, ())


# optimisers


OPTIMISERS = TrainingSection.model_fields["optim"].annotation.__args__


@pytest.mark.parametrize("optim", [name for name in OPTIMISERS if "paged" not in name])
def test_each_optimiser_that_needs_no_gpu_trains(tmp_path, optim):
    start = adapter_weights(add_adapter(tiny_model(), tiny_config(**QUICK)))
    _, weights = train(tmp_path, optim=optim)
    assert largest_difference(start, weights) > 1e-6
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_gradients_that_are_not_clipped_are_the_plain_ones(tmp_path):
    by = {norm: train(tmp_path / str(norm), **{"training.max_grad_norm": norm})
          for norm in (0.0, 1e9, 1e-3)}
    assert largest_difference(by[0.0][1], by[1e9][1]) == 0
    assert largest_difference(by[0.0][1], by[1e-3][1]) > 1e-5
    norms = [row["grad_norm"] for row in by[0.0][0].state.log_history if "grad_norm" in row]
    assert len(norms) == 2 and min(norms) > 1e-3


# tools that log besides


@pytest.fixture
def environment(monkeypatch):
    "What a test sets in the environment is gone behind it."
    before = dict(os.environ)
    monkeypatch.setenv("WANDB_DISABLED", "true")
    yield monkeypatch
    os.environ.clear()
    os.environ.update(before)


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tool, file", [("tensorboard", "tensorboard"), ("wandb", "wandb/"),
                                        ("mlflow", "mlflow.db")])
def test_tools_log_into_the_run_folder_and_know_no_secret(tmp_path, environment, tool, file):
    pytest.importorskip("tensorboardX" if tool == "tensorboard" else tool)
    environment.setenv("WANDB_API_KEY", "a1b2c3d4" * 5)
    environment.setenv("HF_TOKEN", "hf_" + "x1y2z3" * 5)
    environment.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    prepare_reports(tiny_config(**{"run.report_to": [tool]}), run)
    assert os.environ["WANDB_MODE"] == "offline"
    train(tmp_path / "checkpoints", **{"run.report_to": [tool]})
    sys.modules.get("wandb") and sys.modules["wandb"].finish()
    found = texts(run)
    assert any(name.startswith(file) for name in found)
    assert any(b"eval_loss" in text or b"eval/loss" in text for text in found.values())
    secrets = (b"a1b2c3d4" * 5, b"hf_" + b"x1y2z3" * 5)
    assert not [name for name, text in texts(tmp_path).items()
                if any(secret in text for secret in secrets)]
    outside = [path.name for path in tmp_path.iterdir() if path.name not in ("run", "checkpoints")]
    assert outside == []


def test_nothing_is_asked_of_tools_that_are_not_listed(tmp_path, environment):
    prepare_reports(tiny_config(), tmp_path)
    assert os.environ["WANDB_DISABLED"] == "true" and os.environ["WANDB_MODE"] == "offline"
