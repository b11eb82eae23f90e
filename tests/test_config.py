"""Configs: every problem at once, with its place, and nothing but ConfigError for bad input."""

import ast
import copy
import importlib.util
import json
import math
import pickle
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from kwanzaa_nb.core import settings as module
from kwanzaa_nb.core.config import (
    PATHS, Config, ConfigError, check_injected, config_schema, config_table,
    config_to_yaml, describe_config, known_keys, load_config, project_root, read_yaml,
    resolve_config, write_schema)
from kwanzaa_nb.data import corpus
from kwanzaa_nb.data.questions import Question
from kwanzaa_nb.run.cli import parser

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "gpus.yaml")
SEED = Path(__file__).with_name("seed_config.yaml")
REQUIRED = {"run.name", "run.output_dir", "model.base_model_id", "adapter.method",
            "data.train_file", "data.eval_file"}
ADDED = {"data.corpus", "data.questions", "data.dev_file", "evaluation.grammar"}  # to the keys of the seed
KINDS = {".".join(path): kind.annotation for path, kind in known_keys().items()
         if not isinstance(kind, type)}
LEAVES = list(KINDS)

MINIMAL = """\
run:
  name: mine
  output_dir: outputs/mine
model:
  base_model_id: some/model
adapter:
  method: qlora
data:
  train_file: train.jsonl
  eval_file: eval.jsonl
"""


@pytest.fixture
def write(tmp_path):
    def put(content):
        path = tmp_path / "run.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
    return put


@pytest.fixture
def load(write):
    return lambda text, *overrides: load_config(write(text), *overrides)


def made(overrides=None):
    "The smallest config, with overrides."
    return resolve_config("", overrides, tree())


def problems_of(act, *given, **named):
    with pytest.raises(ConfigError) as caught:
        act(*given, **named)
    return list(caught.value.problems)


def told(act, *given, **named):
    return [(problem.where, problem.code) for problem in problems_of(act, *given, **named)]


def tree(text=MINIMAL):
    return YAML(typ="safe").load(text)


# ---- what loads

def written_keys(part, path=()):
    "The keys that a file writes, with their values, in its order."
    for name, value in part.items():
        here = (*path, name)
        nested = isinstance(known_keys()[here], type)
        yield from written_keys(value, here) if nested else [(".".join(here), value)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_config_fits_the_schema_and_says_how_to_run_it_and_to_see_all_keys(path):
    config, text = load_config(path), path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=config.schema.json\n")
    jsonschema.Draft202012Validator(config_schema()).validate(tree(text))
    assert config.run.output_dir == f"outputs/{config.run.name}"
    head = text[:text.index("\n\n")]
    commands = re.findall(r"kwanzaa (.*)", head)
    assert commands == [f"run all --config configs/{path.name}", f"config show configs/{path.name}"]
    for command in commands:
        assert parser().parse_args(command.split()).command


OURS = [path for path in CONFIGS if path.stem != "train.adapter.qlora"]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_each_config_but_the_seeds_writes_what_differs_from_the_defaults(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 70
    defaults, config = dict(config_table(made())), dict(config_table(load_config(path)))
    same = {key for key, _ in written_keys(tree(text)) if config[key] == defaults[key]}
    assert same <= {*REQUIRED, "data.dev_file"}


def test_the_seed_loads_as_pasted_and_its_values_are_the_defaults():
    config, defaults = load_config(SEED), dict(config_table(made()))
    read = dict(config_table(config))
    for key, value in written_keys(tree(SEED.read_text(encoding="utf-8"))):
        assert read[key] == (tuple(value) if isinstance(value, list) else value)
    assert config.notes == ()
    assert {key for key in read if read[key] != defaults[key]} == {
        *REQUIRED, "publishing.hf_repo", "publishing.metadata.base_model_id"} - {"adapter.method"}


def test_the_qlora_config_is_the_seeds_and_what_is_added_stands_behind_it():
    path = ROOT / "configs" / "train.adapter.qlora.yaml"
    ours, seed = ([key for key, _ in written_keys(tree(path.read_text(encoding="utf-8")))]
                  for path in (path, SEED))
    assert [key for key in ours if key in seed] == seed
    assert set(ours) - set(seed) == ADDED
    pairs = zip(config_table(load_config(path)), config_table(load_config(SEED)))
    assert {own[0] for own, other in pairs if own != other} == ADDED | {
        "model.base_model_id", "publishing.metadata.base_model_id", "publishing.include"}


def test_the_configs_are_there_and_do_not_share_a_run():
    assert {path.name for path in CONFIGS} >= {
        "train.adapter.qlora.yaml", "train.adapter.lora.yaml", "train.adapter.qlora.llama.yaml",
        "train.adapter.qlora.deepseek.yaml", "demo.cpu.yaml", "smoke.yaml"}
    configs = [load_config(path) for path in CONFIGS]
    assert len({config.run.output_dir for config in configs}) == len(configs)
    repos = [config.publishing.hf_repo for config in configs if config.publishing.hf_repo]
    assert len(set(repos)) == len(repos) == 4


def test_defaults_of_our_own_keys():
    values = dict(config_table(made()))
    unset = {key for key, value in values.items() if value is None}
    assert unset >= {"data.corpus", "data.dev_file", "publishing.hf_repo", "evaluation.server"}
    assert (values["run.device"], values["evaluation.adapter"]) == ("auto", "auto")
    assert (values["evaluation.sampling_seeds"], made().evaluation.backend) == ((), "local")


@pytest.mark.parametrize("text", [
    MINIMAL + "training:\nevaluation: {}\n",
    b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode()], ids=["empty sections", "Windows"])
def test_what_makes_no_difference(load, text):
    assert load(text) == made()


def test_aliases_stand_for_what_they_name(load):
    text = MINIMAL.replace("name: mine", "name: &name mine")
    text += "publishing: {metadata: {task: *name}}\n"
    assert load(text).publishing.metadata.task == "mine"


# ---- numbers, truth values, texts

@pytest.mark.parametrize(("written", "value"), [
    ("2e-4", 2e-4), ('"2e-4"', 2e-4), ("'0.0002'", 2e-4), ('"1"', 1.0), ("1", 1.0), ('"+.5"', 0.5),
    ('"2.E-1"', 0.2)])
def test_text_is_read_as_a_number(load, written, value):
    config = load(MINIMAL + f"training: {{learning_rate: {written}}}\n")
    assert config.training.learning_rate == value
    assert isinstance(config.training.learning_rate, float)
    assert len(config.notes) == ("'" in written or '"' in written)
    assert all("training.learning_rate" in note for note in config.notes)


@pytest.mark.parametrize("written", ["16", "16.0", '"16"', '"1.6e1"', "0x10"])
def test_integral_numbers_are_whole(load, written):
    rank = load(MINIMAL.replace("method: qlora", f"method: qlora\n  r: {written}")).adapter.r
    assert rank == 16
    assert type(rank) is int


@pytest.mark.parametrize("key", ["adapter.r", "adapter.dropout", "training.epochs", "run.seed"])
@pytest.mark.parametrize("value", [
    True, False, math.nan, math.inf, -math.inf, "nan", "inf", "1e999", "1_0", "٣", "", " 1", "0x10",
    None, [], {}, [1], "1,5", "2e", "--1", "9" * 5000, b"1"])
def test_what_is_no_number(key, value):
    assert told(made, {key: value}) == [(f"override, {key}", "wrong_value")]


WRONG = {
    "adapter.r": [1.5, "1.5", 1e-9, 2**63, 1e30, "9" * 100],
    "run.name": [
        "", "  ", "\n", "a\nb", "a\0b", "\x7f", "a\tb", 5, True, None, ["a"], "\ud800", b"a"],
    "publishing.hf_repo": ["", "a/b/c", "a b", "/a", "a/", "https://huggingface.co/a/b", 5],
    "adapter.target_modules": ["all_linear", "q_proj", 5, [], None, {"q": 1}],
    "data.fields": [None, "text", ["text"], 5, True],
    "data.system_prompt": ["", " \n", "a\0b", 5, ["a"], "\ud800"],
    "data.max_seq_length": ["short"]}  # which a rule looks at


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in WRONG for value in WRONG[key]])
def test_a_wrong_value_is_one_problem(key, value):
    (found,) = problems_of(made, {key: value})
    assert (found.where, found.code) == (f"override, {key}", "wrong_value")
    str(found).encode("utf-8")


RIGHT = {
    "publishing.hf_repo": ["owner/name", "name", "a_b/c.d-e", "AI2/Model"],
    "adapter.target_modules": [("query",), "all-linear"],
    "data.system_prompt": [
        "As {persona}, {rule}:\n{schema}\n", "Start with {\"evidence\": …", "none", "{x} {0} {}"]}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in RIGHT for value in RIGHT[key]])
def test_a_right_value_is_read_and_written(load, key, value):
    config = made({key: value})
    assert dict(config_table(config))[key] == value
    assert load(config_to_yaml(config)) == config


@pytest.mark.parametrize("value", ["true", "yes", "False", 1, 0, 1.0, None, "on"])
def test_what_is_no_truth_value(value):
    found = problems_of(made, {"data.packing": value})
    assert [problem.where for problem in found] == ["override, data.packing"]
    assert "true or false" in found[0].what
    meant = {"true": "true", "yes": "true", "on": "true", "False": "false"}.get(value)
    assert found[0].mend == (f"write {meant} without quotes" if meant else "")


RANGES = {
    "training.learning_rate": ([1e-9, 3], [0, -1e-4]), "adapter.dropout": ([0, 0.99], [1, -0.01]),
    "training.warmup_ratio": ([0, 0.5], [1, -0.1]), "training.epochs": ([0.01, 3], [0, -1]),
    "training.weight_decay": ([0, 0.1], [-0.1]), "training.max_grad_norm": ([0, 5], [-1]),
    "evaluation.generation_defaults.top_p": ([0.01, 1], [0, 1.01]),
    "evaluation.generation_defaults.temperature": ([0, 2], [-0.1]),
    "evaluation.answer_threshold": ([0, 0.5, 1], [-0.1, 1.1]),
    "budget.max_usd": ([0, 99.5], [-1]),
    "run.seed": ([0, 2**32 - 1], [-1, 2**32]), "data.max_seq_length": ([801, 10**6], [0, -1]),
} | {key: ([1, 7], [0, -1]) for key in (
    "adapter.r", "adapter.alpha", "run.logging_steps", "run.save_steps", "run.eval_steps",
    "run.save_total_limit", "training.max_steps", "training.per_device_train_batch_size",
    "training.per_device_eval_batch_size", "data.context_tokens",
    "training.gradient_accumulation_steps", "evaluation.batch_size", "evaluation.max_records",
    "evaluation.red_team", "data.dev_max_records", "training.early_stopping_patience",
    "evaluation.generation_defaults.max_new_tokens")}


@pytest.mark.parametrize("key", RANGES)
def test_ranges(key):
    good, bad = RANGES[key]
    for value in good:
        assert dict(config_table(made({key: value})))[key] == value
    for value in bad:
        assert told(made, {key: value}) == [(f"override, {key}", "wrong_value")]


def test_every_number_has_a_range_test():
    numbers = {key for key, kind in KINDS.items() if re.search("float|int(?!s)", str(kind))}
    assert numbers == set(RANGES) | {"evaluation.sampling_seeds", "publishing.gates"}


WORDS = [key for key, kind in KINDS.items() if get_origin(kind) is Literal]


@pytest.mark.parametrize("key", [*WORDS, "adapter.target_modules", "evaluation.answer_threshold"])
def test_words_come_from_a_list_and_the_nearest_is_told(key):
    (word, *_) = module.choices(tuple(key.split(".")))
    (found,) = problems_of(made, {key: word + "x"})
    assert (found.where, found.mend) == (f"override, {key}", f"the nearest is {word}")


def enum_values(file, name):
    "Values of an Enum of transformers, read from its source: importing it would take seconds."
    spec = importlib.util.find_spec("transformers")
    if spec is None:
        pytest.skip("transformers is not installed")
    body = ast.parse(Path(spec.origin).with_name(file).read_text(encoding="utf-8")).body
    enum = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    return {node.value.value for node in enum.body if isinstance(node, ast.Assign)}


def test_schedulers_and_optimisers_are_known_to_transformers():
    schedulers, optimisers = get_args(module.Scheduler), get_args(module.Optimiser)
    assert set(schedulers) <= enum_values("trainer_utils.py", "SchedulerType")
    assert set(optimisers) <= enum_values("training_args.py", "OptimizerNames")


# ---- lists

def test_each_bad_item_of_a_list_is_told_with_its_line(load):
    modules = "method: qlora\n  target_modules:\n    - q_proj\n    - 5\n    - ''"
    text = MINIMAL.replace("method: qlora", modules) + "evaluation:\n  metrics: [json_valid_rate,\n"
    text += "    json_valid]\n  sampling_seeds: [1, -1, '2', x]\n"
    assert told(load, text) == [(where, "wrong_value") for where in (
        "line 10, adapter.target_modules[1]", "line 11, adapter.target_modules[2]",
        "line 17, evaluation.metrics[1]", "line 18, evaluation.sampling_seeds[1]",
        "line 18, evaluation.sampling_seeds[3]")]


def test_only_the_four_metrics():
    found = problems_of(made, {"evaluation.metrics": ["json_valid_rte", "bleu"]})
    assert [(problem.where, problem.mend) for problem in found] == [
        ("override, evaluation.metrics[0]", "the nearest is json_valid_rate"),
        ("override, evaluation.metrics[1]", "")]


# ---- unknown, missing, duplicate

TEN = """\
run:
  name: ten
  name: eleven
  output_dir: outputs/ten
  sede: 1
model:
  base_model: some/model
  trust_remote_code: "no"
adapter:
  method: qlora
  r: 1.5
  learning_rate: 1e-4
data:
  train_file: same.jsonl
  eval_file: ./same.jsonl
  questions: data/questions
training:
  epochs: .nan
evaluation:
  metrics:
    - json_valid_rate
    - rouge
"""


def test_ten_mistakes_show_exactly_ten(load):
    assert told(load, TEN) == [
        ("line 3, run.name", "duplicate_key"),
        ("line 5, run.sede", "unknown_key"),
        ("line 7, model.base_model", "unknown_key"),
        ("line 8, model.trust_remote_code", "wrong_value"),
        ("line 11, adapter.r", "wrong_value"),
        ("line 12, adapter.learning_rate", "unknown_key"),
        ("line 15, data.eval_file", "impossible"),
        ("line 16, data.questions", "impossible"),
        ("line 18, training.epochs", "wrong_value"),
        ("line 22, evaluation.metrics[1]", "wrong_value"),
    ]


def test_overrides_join_the_list(load):
    overrides = {"training.learning_rate": -1, "run.nme": "x", "data.dev_file": "eval.jsonl"}
    assert told(load, MINIMAL + "training: {epoch: 1}\n", overrides) == [
        ("line 11, training.epoch", "unknown_key"), ("override, run.nme", "unknown_key"),
        ("override, training.learning_rate", "wrong_value"),
        ("override, data.dev_file", "impossible")]


SECTIONS = "known here: run, model, adapter, data, training, improve, budget, evaluation, publishing"


@pytest.mark.parametrize(("text", "where", "mend"), [
    ("training: {epoch: 1}", "line 11, training.epoch", "the nearest known key is training.epochs"),
    ("epochs: 1", "line 11, epochs",
     "epochs is a key of another section: write it as training.epochs"),
    ("quantization: {}", "line 11, quantization",
     "quantization is a section: write it as adapter.quantization"),
    ("trainning: {epochs: 1, x: 2}", "line 11, trainning", "the nearest known key is training"),
    ("training: {sede: 1}", "line 11, training.sede", "the nearest known key is run.seed"),
    ("publishing: {metadata: {}, \n zzzz: 1}", "line 12, publishing.zzzz",
     f"known here: {', '.join(module.PublishingSection.model_fields)}"),
    ("1: 2", "line 11, 1", SECTIONS), ("<<: {training: {}}", "line 11, <<", SECTIONS),
    ("? [a]\n: 2", "line 11, a list or section as a key", SECTIONS),
])
def test_an_unknown_key_gets_a_mend(load, text, where, mend):
    (found,) = problems_of(load, MINIMAL + text + "\n")
    assert (found.where, found.code, found.mend) == (where, "unknown_key", mend)


@pytest.mark.parametrize("key", module.REMOVED)
def test_a_key_of_an_earlier_version_says_what_to_do_instead(key):
    assert tuple(key.split(".")) not in known_keys()
    section, name = key.split(".")
    sections = tree()
    sections[section] = {**sections.get(section, {}), name: 5}
    for act in (lambda: resolve_config(sections=sections), lambda: made({key: 5})):
        (found,) = problems_of(act)
        assert (found.where.split(", ")[1], found.code) == (key, "unknown_key")
        assert found.mend == f"this key was removed: {module.REMOVED[key]}"


@pytest.mark.parametrize("name, plain, revision", [
    ("owner/name", "owner/name", None), ("owner/name@v1", "owner/name", "v1"),
    ("owner/name@", "owner/name", None), ("package:name", "package:name", None),
    ("mine@home", "mine@home", None), ("mine@home2", "mine", "home2"),
    ("@odd", "@odd", None), ("x" * 300 + "@v1", "x" * 300, "v1")])
def test_a_revision_stands_behind_the_name_of_no_folder(tmp_path, name, plain, revision):
    (tmp_path / "mine@home").mkdir()
    assert module.split_revision(name, tmp_path) == (plain, revision)
    config = made({"model.base_model_id": name})
    config._root = tmp_path
    assert config.base == (plain, revision)


@pytest.mark.parametrize("key", sorted(REQUIRED))
def test_a_missing_key_is_told_where_its_section_is(load, key):
    section, name = key.split(".")
    text = "".join(line for line in MINIMAL.splitlines(True) if not line.startswith(f"  {name}:"))
    line = text.split("\n").index(f"{section}:") + 1
    assert told(load, text) == [(f"line {line}, {key}", "missing_key")]
    assert isinstance(load(text, {key: "qlora" if name == "method" else "x"}), Config)


@pytest.mark.parametrize("section", ["run", "model", "adapter", "data"])
def test_a_missing_section_is_one_problem(section):
    values = tree()
    del values[section]
    found = problems_of(resolve_config, sections=values)
    assert [(problem.where, problem.code) for problem in found] == [(section, "missing_section")]
    assert all(name in found[0].mend for name in tree()[section])


def test_a_missing_section_may_come_from_overrides():
    values = tree()
    del values["data"]
    both = {"data.train_file": "a", "data.eval_file": "b"}
    assert resolve_config(sections=values, overrides=both).data.eval_file == "b"
    found = problems_of(resolve_config, sections=values, overrides={"data.train_file": "a"})
    assert [(problem.where, problem.mend) for problem in found] == [
        ("data.eval_file", "write eval_file: under data")]


def test_a_misspelled_required_section_is_checked_as_what_it_means(load):
    text = MINIMAL.replace("model:", "modle:").replace("some/model", "5\n  rev: x")
    assert told(load, text) == [
        ("line 4, modle", "unknown_key"), ("line 5, modle.base_model_id", "wrong_value"),
        ("line 6, modle.rev", "unknown_key")]


@pytest.mark.parametrize("value", [5, "x", [], True])
def test_a_section_that_is_none_is_one_problem(value):
    for section in ("run", "training"):
        found = told(resolve_config, sections=tree() | {section: value})
        assert found == [(f"injected, {section}", "wrong_type")]


def test_a_null_required_section_lists_its_keys(load):
    text = MINIMAL.replace("  train_file: train.jsonl\n  eval_file: eval.jsonl\n", "")
    assert told(load, text) == [("line 8, data.train_file", "missing_key"),
                                                      ("line 8, data.eval_file", "missing_key")]


def test_duplicates_are_told_on_every_level(load):
    text = MINIMAL + "training: {epochs: 1,\n epochs: 2,\n epochs: 3}\nrun: {}\n"
    found = problems_of(load, text)
    assert [problem.where for problem in found] == [
        "line 12, training.epochs", "line 13, training.epochs", "line 14, run"]
    assert [problem.what for problem in found] == ["written twice, first on line 11"] * 2 + [
        "written twice, first on line 1"]


# ---- files that cannot be checked

@pytest.mark.parametrize(("content", "code", "where"), [
    (b"", "empty_file", "line 1"), (b"# only a comment\n", "empty_file", "line 1"),
    (b"run:\n  name: \xff\n", "not_utf8", "line 2"),
    ("run: 1".encode("utf-16"), "not_utf8", "line 1"), (b"\n- run\n", "not_mapping", "line 2"),
    (b"run", "not_mapping", "line 1"), (b"null", "not_mapping", "line 1"),
    (b"run:\n  name: [1\nmodel: 2\n", "bad_yaml", "line 3"),
    (b"run:\n\tname: 1\n", "bad_yaml", "line 2"),
    (b"a: 1\n---\nb: 2\n", "bad_yaml", "line 2"), (b"a: *nowhere\n", "bad_yaml", "line 1"),
    (b"a: 1\nb: \0\n", "bad_yaml", "line 2"), (b"[" * 2000, "bad_yaml", "the file"),
    (b"a: &a [*a]\n", "bad_yaml", "line 1"),
    (b"a: &a [" + b"1," * 200 + b"]\nb: &b [" + b"*a," * 200 + b"]\n", "bad_yaml", "line 1"),
])
def test_a_file_that_cannot_be_checked(load, content, code, where):
    assert told(load, content) == [(where, code)]


@pytest.mark.parametrize("path", ["missing.yaml", "", "a\0b", "x" * 5000])
def test_no_such_file(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert [code for _, code in told(load_config, path)] in (["missing_file"], ["unreadable"])


def test_a_folder_is_no_file(tmp_path):
    assert told(load_config, tmp_path) == [("the file", "unreadable")]


@pytest.mark.parametrize("value", [
    "2024-99-99", "!!int x", "!!python/object:os.system 3", "!foo {a: 1}", "!!set {a}", "9" * 5000,
    "!!float {}", "!!timestamp now"])
def test_a_value_that_cannot_be_read_is_one_problem(load, value):
    assert told(load, MINIMAL + f"training:\n  epochs: {value}\n") == [
        ("line 12, training.epochs", "bad_value")]


def test_integers_that_python_does_not_print():
    keys = ("run.name", "adapter.r", "training.epochs", "evaluation.sampling_seeds",
            "evaluation.generation_defaults.max_new_tokens")
    huge = 10**5000
    assert told(made, dict.fromkeys(keys, huge) | {keys[3]: [huge], huge: 1}) == [
        ("override, a number of more than 4300 digits", "unknown_key"),
        *((f"override, {key}{'[0]' if key == keys[3] else ''}", "wrong_value") for key in keys)]


def test_numbers_and_dates_of_any_size_are_shown(load):
    text = MINIMAL + f"training:\n  epochs: 0x{'f' * 5000}\n  optim: 2024-01-01\n"
    found = problems_of(load, text)
    assert [problem.where for problem in found] == [
        "line 12, training.epochs", "line 13, training.optim"]
    assert all(len(problem.what) < 400 for problem in found)


# ---- overrides

def test_overrides_patch_dotted_nested_and_mixed_keys():
    config = made({"training.epochs": 5, "run": {"seed": 1}, "evaluation": {
        "generation_defaults.top_p": 0.5, "generation_defaults": {"temperature": 1}}})
    assert (config.training.epochs, config.run.seed, config.run.name) == (5, 1, "mine")
    sampling = config.evaluation.generation_defaults
    assert (sampling.top_p, sampling.temperature) == (0.5, 1)


@pytest.mark.parametrize(("overrides", "where", "code"), [
    ({"training.epoch": 1}, "override, training.epoch", "unknown_key"),
    ({"epochs": 1}, "override, epochs", "unknown_key"),
    ({"training.epochs.x": 1}, "override, training.epochs.x", "unknown_key"),
    ({"training": {"epoch": 1}}, "override, training.epoch", "unknown_key"),
    ({5: 1}, "override, 5", "unknown_key"), ({"": 1}, "override, ''", "unknown_key"),
    ({"training": 5}, "override, training", "bad_override"),
    ({"training": None}, "override, training", "bad_override"), ([1], "override", "bad_override"),
    ("training.epochs", "override", "bad_override"),
    ({("run",): 1}, "override, ('run',)", "unknown_key"),
    ({"training.epochs": {"a": 1}}, "override, training.epochs", "wrong_value"),
])
def test_a_wrong_override_is_one_problem(overrides, where, code):
    assert told(made, overrides) == [(where, code)]


def test_an_override_mends_the_file(load):
    assert load(MINIMAL + "training: {epochs: many}\n", {"training.epochs": 1}).training.epochs == 1


def test_overrides_are_not_changed():
    overrides = {"training.epochs": "2", "run": {"seed": 3}}
    before = copy.deepcopy(overrides)
    made(overrides)
    assert overrides == before


# ---- impossible combinations

IMPOSSIBLE = [
    ({"adapter.quantization.load_in_4bit": False}, "adapter.quantization.load_in_4bit"),
    ({"adapter.method": "lora"}, "adapter.quantization.load_in_4bit"),
    ({"adapter.method": "pissa"}, "adapter.quantization.load_in_4bit"),
    ({"data.train_file": "x/../eval.jsonl"}, "data.eval_file"),
    ({"data.dev_file": "./train.jsonl"}, "data.dev_file"),
    ({"data.dev_file": "eval.jsonl"}, "data.dev_file"),
    ({"data.corpus": "c", "data.questions": "q", "data.context_tokens": 2048},
     "data.context_tokens"),
    ({"data.questions": "q"}, "data.questions"),
    ({"data.max_seq_length": 800}, "evaluation.generation_defaults.max_new_tokens"),
    ({"data.system_prompt": "\x85"}, "data.system_prompt"),
    ({"data.system_prompt": "As {persona}: {shema}"}, "data.system_prompt"),
    ({"data.system_prompt": "{Rule}"}, "data.system_prompt"),
    *(({"publishing.hf_repo": "a/b", "publishing.include": [name]}, "publishing.include")
      for name in ("adapter_config.json", "adapter_model.safetensors")),
    ({"publishing.include": ["../secret"]}, "publishing.include"),
    ({"publishing.include": ["/etc/passwd"]}, "publishing.include"),
    ({"publishing.include": ["a\\b"]}, "publishing.include"),
    ({"evaluation.sampling_seeds": [1, 2, 1]}, "evaluation.sampling_seeds"),
    ({"evaluation.sampling_seeds": [1], "evaluation.generation_defaults.temperature": 0},
     "evaluation.sampling_seeds"),
    ({"evaluation.server": "https://me:secret@example.org/v1"}, "evaluation.server"),
    *(({"data.corpus": "c", "data.questions": "q", key: f"{start}/x"}, key)
      for key in PATHS for start in ("~nobody-of-that-name", "~~~")),
]


@pytest.mark.parametrize(("overrides", "key"), IMPOSSIBLE)
def test_an_impossible_combination_is_one_problem_with_a_mend(overrides, key):
    (found,) = problems_of(made, overrides)
    assert (found.where.split(", ")[-1], found.code) == (key, "impossible")
    assert found.mend


def test_every_rule_is_broken_by_some_test():
    broken = {(problem.where, problem.what) for overrides, _ in IMPOSSIBLE
              for problem in problems_of(made, overrides)}
    assert len(broken) == len(module.RULES)


@pytest.mark.parametrize("overrides", [
    {"adapter.method": "lora", "adapter.quantization.load_in_4bit": False},
    {"adapter.method": "pissa", "adapter.quantization.load_in_4bit": False},
    {"adapter.method": "dora"}, {"adapter.method": "rslora", "adapter.quantization.load_in_4bit": False},
    {"data.corpus": "c"}, {"data.corpus": "c", "data.questions": "q"}, {"data.max_seq_length": 801},
    {"data.dev_file": "dev.jsonl"}, {"evaluation.answer_threshold": 0.4},
    {"publishing.include": ["README.md"]}, {"evaluation.sampling_seeds": [1, 2]},
    {"publishing.hf_repo": "a/b"}, {"evaluation.generation_defaults.temperature": 0},
    {"evaluation.server": "http://localhost:8000/v1"}])
def test_possible_combinations(overrides):
    assert isinstance(made(overrides), Config)


# ---- a corpus of one's own

def test_the_fields_are_those_of_chunks_and_questions():
    assert get_args(module.ChunkField) == corpus.field_names(corpus.Chunk)
    assert set(get_args(module.QuestionField)) == set(corpus.field_names(Question))
    assert tuple(module.choices(("data", "defaults"))) == corpus.DEFAULTED
    assert not set(get_args(module.ChunkField)) & set(get_args(module.QuestionField))


def test_a_config_says_how_a_corpus_is_read(load):
    text = MINIMAL + "  fields: {text: body, question: ask}\n  ignore_fields: [notes]\n"
    text += "  defaults: {year: 1966, license: CC0-1.0}\n  context_tokens: 400\n"
    assert corpus.corpus_options(load(text).data) == corpus.CorpusOptions(
        {"text": "body", "question": "ask"}, {"year": 1966, "license": "CC0-1.0"}, ("notes",), 80)
    assert corpus.corpus_options(made().data) == corpus.CorpusOptions()


def test_each_wrong_entry_of_a_mapping_is_told_with_its_line(load):
    text = MINIMAL + "  fields:\n    text: body\n    txt: body\n    year: 5\n    tags: !!int x\n"
    assert told(load, text) == [
        ("line 13, data.fields.txt", "unknown_key"), ("line 14, data.fields.year", "wrong_value"),
        ("line 15, data.fields.tags", "bad_value")]
    text = text.replace("    tags: !!int x\n", "")
    found = problems_of(load, text)
    assert [(problem.where, problem.code) for problem in found] == [
        ("line 13, data.fields.txt", "unknown_key"), ("line 14, data.fields.year", "wrong_value")]
    assert found[0].mend == "the nearest is text"


@pytest.mark.parametrize(("entry", "mend"), [
    ({"year": 1599}, ""), ({"year": 2101}, ""), ({"year": "many"}, ""),
    ({"year": None}, "leave it out"), ({"license": 5}, ""), ({"license": ""}, ""),
    ({"licence": "x"}, "the nearest is license"),
    ({"text": "x"}, f"known here: {', '.join(corpus.DEFAULTED)}")])
def test_what_can_not_be_a_default_of_chunks(load, entry, mend):
    (found,) = problems_of(made, {"data.defaults": entry})
    assert (found.where, found.mend) == (f"override, data.defaults.{next(iter(entry))}", mend)
    config = made({"data.defaults": {"year": "1966", "license": "CC0-1.0"}})
    assert config.data.defaults == {"year": 1966, "license": "CC0-1.0"} and len(config.notes) == 1
    assert load(config_to_yaml(config)) == config
    (found,) = problems_of(made, {"data.defaults.year": 1966})
    assert found.mend == "data.defaults is one value: give it whole"


@pytest.mark.parametrize("path", [*CONFIGS, SEED], ids=lambda path: path.name)
def test_a_config_is_shown_with_every_key_explained_and_reads_back_equal(load, write, path):
    prompt = "As {persona},\n{rule}: # {schema}"
    config = load_config(path, {"data.system_prompt": prompt, "data.fields": {"text": "body: #1"}})
    text = describe_config(config)
    assert load(text) == config
    lines = text.splitlines()
    assert all(len(line) <= 100 for line in lines if line.lstrip().startswith("#"))
    source = read_yaml(write(text))
    for key in LEAVES:
        above = lines[int(source.places[tuple(key.split("."))].split()[1]) - 2]
        assert re.search(r"(Required|[\]\w}\"])\.$", above) and above.lstrip().startswith("# "), key


def test_a_mapping_is_frozen_and_survives_copying(load):
    config = made({"data.fields": {"text": "body"}})
    fields = config.data.fields
    for change in (lambda: fields.update(year="y"), lambda: fields.pop("text"),
                   lambda: fields.__setitem__("year", "y")):
        with pytest.raises(TypeError):
            change()
    assert pickle.loads(pickle.dumps(fields)) == copy.deepcopy(fields) == fields == {"text": "body"}
    assert load(config_to_yaml(config)) == config
    assert hash(config) == hash(made({"data": {"fields": {"text": "body"}}}))


# ---- resolving

def test_the_default_is_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "nbs")
    assert resolve_config() == resolve_config("", {}, {"run": {}, "data": None}) == load_config(
        ROOT / "configs" / "demo.cpu.yaml")
    monkeypatch.chdir(tmp_path)
    assert told(resolve_config) == [("the file", "missing_file")]


def test_sections_alone_and_over_a_file(write):
    assert resolve_config(sections=tree()) == made()
    path = write(MINIMAL + "training: {epochs: 9, learning_rate: 1.0e-3}\n")
    sections = {"training": {"epochs": "4"}, "run": {}}
    config = resolve_config(str(path), {"training.optim": "sgd"}, sections)
    training = config.training
    assert (training.epochs, training.learning_rate, training.optim) == (4, 0.0002, "sgd")
    assert len(config.notes) == 1


def test_an_injected_section_replaces_the_mistakes_of_the_file_and_brings_its_own(write):
    path = write(MINIMAL + "training: {epochs: many,\n x: 1}\n")
    assert resolve_config(path, None, {"training": {"epochs": 1}}).training.epochs == 1
    sections = {"training": {"epoch": 1}, "tranning": {"a": 1}}
    assert told(resolve_config, path, {"run.sede": 1}, sections) == [
        ("injected, training.epoch", "unknown_key"), ("injected, tranning", "unknown_key"),
        ("override, run.sede", "unknown_key")]


def test_sections_that_are_none(write):
    assert told(resolve_config, write(MINIMAL), {}, [1]) == [("injected", "wrong_type")]


def test_config_paths_start_here_or_at_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "nbs")
    assert load_config("configs/smoke.yaml").run.name == "smoke"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(MINIMAL, encoding="utf-8")
    assert load_config("own.yaml").run.name == "mine"


# ---- injected parameters

def test_check_injected_accepts_what_is_known():
    cells = ["", "import os\nfoo = 1", "# Parameters\nconfig = ''\noverrides = {}\n",
             "# Parameters  \nrun: dict = {}"]
    assert check_injected(cells, ["config", "overrides", "run"]) is None


def test_check_injected_tells_each_unknown_name_once():
    cells = ["# Parameters\nconfg = 1\noverride, zz = 1, 2\nconfg = 2",
             "# Parameters\nthis is no python", "# Parameters\n\0",
             "# Parameters\ntraining.epochs = 1\nconfig: str = ''"]
    found = problems_of(lambda: check_injected(cells, ["config", "overrides", "training"]))
    assert [(problem.where, problem.mend) for problem in found] == [
        ("confg", "the nearest is config"), ("(override, zz)", "the nearest is overrides"),
        ("training.epochs", "the nearest is training")]


def test_the_name_of_a_python_parameter_can_be_far_from_all():
    found = problems_of(lambda: check_injected(["# Parameters\nqqq = 1"], ["config", "run"]))
    assert found[0].mend == "the parameters are config, run"


# ---- the tree itself

def test_a_config_is_frozen_to_its_leaves():
    config = made()
    for key, value in config_table(config):
        owner = config
        for part in key.split(".")[:-1]:
            owner = getattr(owner, part)
        with pytest.raises(ValueError, match="frozen"):
            setattr(owner, key.split(".")[-1], value)
        hash(value)
    with pytest.raises(ValueError, match="frozen"):
        config.run = config.run
    with pytest.raises(ValueError, match="frozen"):
        config.notes = ()


def test_equality_and_hash_go_by_values():
    first, second = made(), made({"training.epochs": "2"})
    assert second.notes
    assert first == second
    assert hash(first) == hash(second)
    assert first != made({"training.epochs": 3})
    assert first != 5


def test_paths_start_at_the_root_found_on_loading(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "nbs")
    config = load_config("configs/demo.cpu.yaml")
    monkeypatch.chdir(tmp_path)
    assert config.path(config.run.output_dir) == ROOT / "outputs" / "kwanzaa-demo-cpu"
    assert config.path(tmp_path / "x") == tmp_path / "x"
    assert config.path("~/x") == Path("~/x").expanduser()


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "~~", Path("~nobody-of-that-name")])
def test_a_path_into_nobodys_home_is_told_in_a_sentence(path):
    (found,) = problems_of(lambda: load_config(ROOT / "configs" / "demo.cpu.yaml").path(path))
    assert (found.where, found.code) == (str(path), "no_home") and found.mend
    assert [problem.code for problem in problems_of(load_config, path)] == ["missing_file"]


def test_project_root(tmp_path, monkeypatch):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert project_root() == deep
    for content in ("lib_name = kwanzaa_nb\n", "\x00[[[", "[DEFAULT]\nlib_name = other\n",
                    "[x]\nlib_name = kwanzaa_nb\n"):
        (tmp_path / "a" / "settings.ini").write_text(content, encoding="utf-8")
        assert project_root() == deep
    settings_ini = "[DEFAULT]\nlib_name = kwanzaa_nb\ncolour = 50%\n"
    (tmp_path / "settings.ini").write_text(settings_ini, encoding="utf-8")
    assert project_root() == project_root(deep) == project_root(str(deep)) == tmp_path
    assert project_root(ROOT / "nbs") == ROOT


def test_table_lists_every_key_in_order():
    assert [key for key, _ in config_table(made())] == LEAVES


# ---- schema

def test_the_committed_schema_is_the_generated_one(tmp_path):
    committed = ROOT / "configs" / "config.schema.json"
    fresh = write_schema(tmp_path / "schema.json")
    mend = "run: python -c 'from kwanzaa_nb.core.config import write_schema; write_schema()'"
    assert committed.read_bytes() == fresh.read_bytes(), mend


def test_the_schema_describes_closes_and_bounds():
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
        for name, item in part["properties"].items():
            section = schema["$defs"].get(item.get("$ref", "").split("/")[-1], item)
            assert section["description"], name
    assert schema["$defs"]["AdapterSection"]["properties"]["method"]["enum"] == ["qlora", "lora", "rslora", "dora", "pissa"]
    assert schema["$defs"]["RunSection"]["properties"]["seed"]["default"] == 42
    assert not re.search(r'"(ge|gt|le|lt)"', json.dumps(schema))
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(tree())
    for bad in ({"run": {"name": 5}}, {"training": {"epochs": 0}}, {"training": {"epoch": 1}},
                {"x": 1}):
        assert not validator.is_valid(tree() | bad)


# ---- anything at all

def only_config_or_error(act):
    try:
        config = act()
    except ConfigError as error:
        assert error.problems
        assert len(error.problems) == len(str(error).split("\n")) - 1
        str(error).encode("utf-8")
    else:
        assert isinstance(config, Config)


PARTS = sorted({part for path in known_keys() for part in path} | {"zzz", "epoch"})
NAMES = st.sampled_from(PARTS) | st.text(max_size=4)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.dates(),
    st.binary(max_size=3), st.sampled_from(["qlora", "1e-4", "x/y", 10**400]))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    NAMES | SCALARS, inner, max_size=4), max_leaves=12)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[
    HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SIGNS = "abr:un-[]{}&*!|>%@`'\"#?, \n\t01e.~<="


@MANY
@given(VALUES, VALUES)
def test_any_sections_and_overrides(sections, overrides):
    only_config_or_error(lambda: resolve_config("", overrides, sections))


@MANY
@given(st.dictionaries(st.sampled_from(LEAVES), VALUES, max_size=4))
def test_any_values_of_known_keys(overrides):
    only_config_or_error(lambda: resolve_config("", overrides, tree()))


@MANY
@given(st.binary(max_size=60) | st.text(alphabet=SIGNS, max_size=60).map(str.encode))
def test_any_bytes(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    only_config_or_error(lambda: load_config(path))


@MANY
@given(st.integers(0, len(MINIMAL)),
       st.text(":-[]{}&*!|'\"#\n 0é\x00\u2028", min_size=1, max_size=4))
def test_a_damaged_file(tmp_path, at, damage):
    path = tmp_path / "any.yaml"
    path.write_bytes((MINIMAL[:at] + damage + MINIMAL[at:]).encode())
    only_config_or_error(lambda: load_config(path))


CONTROL = "".join(map(chr, [*range(32), 127]))
PRINTED = st.characters(exclude_categories=("Cs",), exclude_characters=CONTROL)
LINE = st.text(PRINTED, min_size=1, max_size=12).filter(lambda text: text.strip(" "))
ODD = ["no", "2e-4", "null", "~", "1.0", "- a", "a: b", "'", "\\", "#x", "2024-01-01"]


@settings(MANY, max_examples=50)
@given(name=LINE | st.sampled_from(ODD), rate=st.floats(1e-12, 10), decay=st.floats(0, 1e300),
       modules=st.lists(LINE, min_size=1, max_size=3))
def test_round_trip(tmp_path, name, rate, modules, decay):
    config = made({"run.name": name, "training.learning_rate": rate, "training.weight_decay": decay,
                   "adapter.target_modules": modules})
    path = tmp_path / "again.yaml"
    path.write_text(config_to_yaml(config), encoding="utf-8", newline="\n")
    again = load_config(path)
    assert again == config
    assert again.notes == ()
    assert config_to_yaml(again) == config_to_yaml(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_written_yaml_means_the_same_to_a_yaml_1_1_reader(path):
    yaml = pytest.importorskip("yaml")
    config = load_config(path, {"run.name": "no", "training.learning_rate": 1e-5})
    assert resolve_config(sections=yaml.safe_load(config_to_yaml(config))) == config


def test_lines_are_those_of_the_file():
    source = read_yaml(SEED)
    lines = SEED.read_text(encoding="utf-8").split("\n")
    for path in known_keys():
        place = source.place(path)
        if path in source.places:
            assert lines[int(place.split()[1]) - 1].strip().startswith(f"{path[-1]}:")
