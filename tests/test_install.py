"""Install the core, then the extra [server], into an empty environment, both without torch.

pip fetches the pinned versions from wherever it is set up to find wheels.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import listening, model_handler
from test_package import CORE, EXTRAS

from kwanzaa_nb.core.results import METRICS

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "llguidance")
pytestmark = pytest.mark.end_to_end


def clean():
    "The environment without this interpreter's packages."
    return {name: value for name, value in os.environ.items()
            if not name.startswith("PYTHON") and name != "VIRTUAL_ENV"}


def done(words, folder, status=0):
    "What a command printed and complained of; it must end with that status."
    ran = subprocess.run(list(map(str, words)), cwd=folder, env=clean(), capture_output=True,
                         text=True, timeout=300, check=False)
    assert ran.returncode == status and "Traceback" not in ran.stderr, f"{words}: {ran.returncode}\n{ran.stdout[-1000:]}\n{ran.stderr[-3000:]}"
    return ran.stdout, ran.stderr


class Installed:
    "An environment of its own, and an empty folder to work in."

    pins = ROOT / ".ci" / "constraints.txt"

    def __init__(self, home):
        self.folder, self.bin = home / "somewhere", home / "venv" / "bin"
        self.folder.mkdir()
        copy = shutil.copytree(ROOT, home / "source", ignore=shutil.ignore_patterns(".*", "outputs", "build", "*.egg-info", "_docs", "_proc"), symlinks=True)
        done([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
              "--no-build-isolation", "-w", home, copy], home)
        (self.wheel,) = home.glob("kwanzaa_nb-*.whl")
        done([sys.executable, "-m", "venv", home / "venv"], home)
        self.install(str(self.wheel))
        shutil.rmtree(copy)

    def install(self, what):
        done([self.bin / "python", "-m", "pip", "install", "--quiet",
              "--disable-pip-version-check", "-c", self.pins, what],
             self.folder)

    def kwanzaa(self, *words, status=0, folder=None):
        return done([self.bin / "kwanzaa", *words], folder or self.folder, status)

    def python(self, code, folder=None, status=0):
        return done([self.bin / "python", "-c", code], folder or self.folder, status)[0]


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def project(core):
    "A project that `kwanzaa init` started, with records that the builder made in the core."
    core.kwanzaa("init", "mine")
    folder = core.folder / "mine"
    core.python("""
from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.data.build import generate_records
from kwanzaa_nb.data.corpus import corpus_options
from kwanzaa_nb.data.questions import load_corpus
from kwanzaa_nb.data.write import checked, record_files, write_splits
config = load_config("configs/train.adapter.qlora.yaml")
data = config.data
chunks, questions = load_corpus(config.path(data.corpus), config.path(data.questions), corpus_options(data))
paths = {split: config.path(path) for split, path in record_files(data).items()}
found = generate_records(chunks, questions, seed=config.run.seed)
print(write_splits(checked(found, questions, [*paths]), paths))
""", folder)
    return folder


def without_torch(installed):
    names = installed.python(f"import importlib.util as found; print(*[name for name in {HEAVY!r} if found.find_spec(name)])").split()
    assert not set(names) & {"torch", "transformers", "peft", "trl", "datasets",
                             "accelerate", "llguidance"}, names
    return names


def test_the_core_has_no_torch_and_every_module_of_it_imports_in_a_fresh_interpreter(core):
    assert without_torch(core) == []
    installed = [name for name in CORE if not name.startswith("bench.")]
    assert len(installed) > 30
    for name in installed:
        core.python(f"import kwanzaa_nb.{name}")
    missing = core.python(f"""
import importlib
for name in {sorted(EXTRAS)!r}:
    try:
        importlib.import_module("kwanzaa_nb." + name)
    except ModuleNotFoundError:
        print(name)
""").split()
    assert missing == sorted(EXTRAS)
    assert not core.python("import importlib.util as found; print(found.find_spec('kwanzaa_nb.bench') or '')").strip()


def test_commands_that_need_no_torch(core, project):
    assert "validate" in core.kwanzaa("--help")[0] and "No runs" in core.kwanzaa("runs")[0]
    configs = [path for path in sorted((project / "configs").rglob("*.yaml"))
               if path.parent.name not in ("accelerate", "sweeps") and path.name != "gpus.yaml"]
    assert len(configs) >= 6
    for path in configs:
        assert "no problems" in core.kwanzaa("config", "check", path, folder=project)[0]
        shown = core.kwanzaa("config", "show", path, folder=project)[0]
        (core.folder / "shown.yaml").write_text(shown, encoding="utf-8")
        core.kwanzaa("config", "check", "shown.yaml")
    built = sorted((project / "data" / "training").glob("*.jsonl"))
    assert len(built) == 4
    for path in [ROOT / "data" / "training" / "kwanzaa_eval.jsonl", *built]:
        assert "records" in core.kwanzaa("validate", path)[0]
    (core.folder / "broken.jsonl").write_text('{"id": "one", "messages": []}\n', encoding="utf-8")
    assert "broken.jsonl" in core.kwanzaa("validate", "broken.jsonl", status=1)[0]
    assert "config.yaml" in core.kwanzaa("sweep", "configs/sweeps/rank.cpu.yaml", "--table", folder=project)[0]


def test_the_records_are_those_of_the_checkout(project):
    for path in sorted((project / "data" / "training").glob("*.jsonl")):
        assert path.read_bytes() == (ROOT / "data" / "training" / path.name).read_bytes()


def test_scores_and_reports_of_outputs_that_are_there(core, project):
    core.python(f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from made_run import make_run
make_run(".")
""", project)
    folder = project / "outputs" / "tiny"
    assert (folder / "evaluation" / "metrics.json").is_file()
    assert "json_valid_rate" in core.kwanzaa("verdict", "outputs/tiny", folder=project)[0]
    assert "tiny" in core.kwanzaa("runs", folder=project)[0]
    core.kwanzaa("report", "outputs/tiny", folder=project)
    core.kwanzaa("report", "outputs", folder=project)
    assert (folder / "report.html").is_file() and (project / "outputs" / "index.html").is_file()


def test_anybodys_outputs_are_scored_with_the_core_alone(core, tmp_path):
    core.install(f"{core.wheel}[score]")
    assert without_torch(core) == []
    records = ROOT / "data" / "training" / "kwanzaa_dev.jsonl"
    rows = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    (core.folder / "mine.jsonl").write_text("".join(
        json.dumps({"id": row["id"], "output": row["messages"][-1]["content"]}) + "\n" for row in rows[1:]), encoding="utf-8")
    out, err = core.kwanzaa("score", "mine.jsonl", "--records", records, "--html", "page.html")
    assert "mine has no output for 1 of 181 records" in out and "json_valid_rate              0.99" in out and err == ""
    assert (core.folder / "page.html").stat().st_size > 100_000
    results = json.loads(core.kwanzaa("score", "mine.jsonl", "--records", records, "--json")[0])
    assert results["arms"]["mine"]["codes"] == {"no_sample": 1}
    out, err = core.kwanzaa("score", "mine.jsonl", "--records", records, "--inspect", "logs", status=2)
    assert "pip install 'kwanzaa_nb[inspect]'" in err and "Traceback" not in err
    core.python("from kwanzaa_nb.evaluate.testing import assert_grounded; assert_grounded('It came out in 1861.', ['The book came out in 1861.'])")


@pytest.mark.parametrize("words, extra", [
    (["run", "data"], "train"), (["run", "train"], "train"), (["run", "evaluate"], "eval"),
    (["run", "all"], "train,eval"), (["run", "evaluate",
                                      "--set", "evaluation.server=http://127.0.0.1:9/v1"],
                                     "server"), (["validate",
                                                  "data/training/kwanzaa_dev.jsonl",
                                                  "--preview", "1"], "eval")], ids=str)
def test_what_needs_more_names_the_smallest_extra_in_one_sentence(core, project, words, extra):
    before = sorted(project.rglob("*"))
    out, err = core.kwanzaa(*words, status=2, folder=project)
    assert f"pip install 'kwanzaa_nb[{extra}]'" in err and len(err.strip().splitlines()) == 1
    assert out == ""
    assert sorted(project.rglob("*")) == before


# with the extra [server]


def answering(body, _):
    "Base writes prose, the adapter a refusal that keeps the contract."
    text = "I am not sure." if body["model"] == "plain" and "response_format" not in body else json.dumps({
        "evidence": [], "answer": {"completeness": "insufficient_data", "text": "The context doesn't say."},
        "unknowns": {"unsupported_claims": [], "missing_context": ["A source."], "clarifying_questions": []}})
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 9, "total_tokens": 10}}


def test_a_server_is_evaluated_and_its_log_scored_again_without_torch(core, project):
    core.install(f"{core.wheel}[server]")
    without_torch(core)
    settings = {"run.output_dir": "outputs/served", "evaluation.server": None,
                "model.base_model_id": "plain", "evaluation.adapter": "tuned", "evaluation.max_records": 6, "evaluation.grammar": "true",
                **{f"data.{split}_file": f"data/training/kwanzaa_{split}.jsonl" for split in ("train", "dev", "eval")},
                "data.max_seq_length": 2048}
    received = []
    with listening(model_handler(answering, received)) as address:
        settings["evaluation.server"] = f"{address}/v1"
        words = ["run", "evaluate", "--config", "configs/demo.cpu.yaml",
                 *[word for key, value in settings.items() for word in ("--set", f"{key}={value}")]]
        out, err = core.kwanzaa(*words, folder=project)
    assert "json_valid_rate" in out and err == ""
    asked = len(received)
    assert asked >= 4 * 6 and {one.path for one in received} == {"/v1/chat/completions"}
    assert any("response_format" in one.body for one in received)
    assert {one.body["messages"][-1]["role"] for one in received} == {"user"}
    folder = project / "outputs" / "served" / "evaluation"
    measured = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert set(measured["arms"]) == {"base", "base+grammar", "adapter", "adapter+grammar"}
    assert [measured["arms"][arm]["rates"]["json_valid_rate"]["value"] for arm in ("base", "adapter")] == [0.0, 1.0]
    assert set(METRICS) <= set(measured["arms"]["base"]["rates"])
    assert measured["experiment"]["device"] is None and measured["experiment"]["versions"] == {}
    for name in ("outputs.jsonl", "answers.jsonl", "metrics.png", "index.html"):
        assert (folder / name).stat().st_size
    assert measured["thresholds"] == {"base": None, "adapter": None}  # this server tells no logprobs
    (folder / "metrics.json").unlink()  # the server is gone: whoever scores the log again asks nothing
    core.kwanzaa(*words, folder=project)
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["arms"] == measured["arms"]
    assert "evaluate" in core.kwanzaa("verdict", "outputs/served", folder=project)[0]
    gate = core.python("""
from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.publish.gate import gate_findings, gate_verdict
from kwanzaa_nb.publish.staging import staged_table
config = load_config("configs/demo.cpu.yaml")
print(gate_verdict(gate_findings(config, config.path("outputs/served")), None))
""", project)
    assert gate.strip()


# with the extra [inspect], in an environment of its own


@pytest.fixture(scope="module")
def inspect(core, tmp_path_factory):
    "An environment with inspect_ai, whose pins are others than those of the rest."
    made = Installed.__new__(Installed)
    home = tmp_path_factory.mktemp("inspect")
    made.folder, made.bin, made.wheel = home / "somewhere", home / "venv" / "bin", core.wheel
    made.pins = ROOT / ".ci" / "constraints.inspect.txt"
    made.folder.mkdir()
    done([sys.executable, "-m", "venv", home / "venv"], home)
    made.install(f"{made.wheel}[inspect]")
    made.install("openai")
    return made


def _eval_words(inspect, address):
    "The command that evaluates a model of a server with inspect_ai."
    told = {"MINE_API_KEY": "none", "MINE_BASE_URL": f"{address}/v1"}
    return [inspect.bin / "inspect", "eval", "kwanzaa_nb/cited_answers", "--model", "openai-api/mine/tuned", "-T", "records=records.jsonl",
            "--log-dir", "logs", "--display", "plain", *[word for name, value in told.items() for word in ("--env", f"{name}={value}")]]


def test_inspect_asks_a_server_and_reads_our_logs(inspect):
    without_torch(inspect)
    records = (ROOT / "data" / "training" / "kwanzaa_dev.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    (inspect.folder / "records.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    rows = [json.loads(line) for line in records]
    (inspect.folder / "mine.jsonl").write_text("".join(
        json.dumps({"id": row["id"], "output": row["messages"][-1]["content"]}) + "\n" for row in rows), encoding="utf-8")
    inspect.kwanzaa("score", "mine.jsonl", "--records", "records.jsonl", "--inspect", "logs")
    with listening(model_handler(answering, [])) as address:
        out, err = done(_eval_words(inspect, address), inspect.folder)
    assert "json_valid_rate" in out + err and "Unable to convert" not in out + err
    read = inspect.python("""
from inspect_ai.log import list_eval_logs, read_eval_log
for info in list_eval_logs("logs"):
    log = read_eval_log(info)
    rates = {name: one.value for name, one in log.results.scores[0].metrics.items()}
    print(log.eval.model, log.status, len(log.samples), rates["json_valid_rate"])
""").split("\n")
    assert {"mine success 4 1.0", "openai-api/mine/tuned success 4 1.0"} <= set(read)
