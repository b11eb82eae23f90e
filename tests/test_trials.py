"Trials of one change each; `test_train_command` trains one."

import pytest

from kwanzaa_nb.bench import trials
from kwanzaa_nb.core.config import load_config


@pytest.mark.parametrize("name", trials.TRIALS)
def test_the_settings_of_every_trial_are_valid(name):
    config = load_config("configs/demo.cpu.yaml", trials.trial_settings(name, "outputs/trials", 6))
    assert config.training.max_steps == 2 * config.run.eval_steps == 6


def test_trials_write_into_folders_of_their_own():
    folders = {trials.trial_settings(name, "any", 3)["run.output_dir"] for name in trials.TRIALS}
    assert len(folders) == len(trials.TRIALS)


def test_trials_leave_out_a_part_of_the_demos_recipe():
    demo = dict(load_config("configs/demo.cpu.yaml").training.extra)
    once, without = (trials.TRIALS[name]["training.extra"]
                     for name in ("evidence counts once", "no practice"))
    assert {**once, **without} == demo and set(once) == {"practice"} != set(without)


def test_only_trials_of_one_config_and_length_are_compared():
    rows = [{"trial": "seed 1", "config": config, "steps": steps, "auroc": steps / 100}
            for config in ("a.yaml", "b.yaml") for steps in (60, 90)]
    (own,) = trials.of_length(rows, "b.yaml", 60)
    assert (own["config"], own["steps"]) == ("b.yaml", 60)
    assert ["AUROC", "1", "0.60", "0.60"] in trials.seed_spread([own]).rows


def test_a_wrong_call_names_the_trials():
    with pytest.raises(SystemExit, match="as configured.*There are: as configured, seed 1"):
        trials.main(["configs/demo.cpu.yaml", "60", "no such trial"])
