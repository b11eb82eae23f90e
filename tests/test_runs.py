"""Runs: manifests, inputs, the order of stages, and notebooks executed by papermill."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from stage_project import REPOSITORY, entry_of, kwanzaa, stage_notebook, stage_of

from kwanzaa_nb.core.files import write_atomically
from kwanzaa_nb.core import files, manifest, stage, table
from kwanzaa_nb.core.config import ConfigError, Fallback
from kwanzaa_nb.core.manifest import StageError
from kwanzaa_nb.run import cli, launch


def put(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


# ---- notebooks that run


def test_a_stage_runs(project):
    put(project, "data/train.jsonl", "{}")
    stage_notebook(project, "stage.progress('one record\\nwritten')",
                   "stage.wrote('data/train.jsonl')\nstage.done(records=1)")
    lines = []
    report = launch.run_stage("data", "configs/tiny.yaml", {"run.seed": 7}, log=lines.append)
    assert report == project / "outputs/tiny/notebooks/01_data.ipynb"
    assert launch.unexecuted(report) == []
    assert [path.name for path in report.parent.iterdir()] == ["01_data.ipynb"]
    entry = entry_of(project)
    assert entry["status"] == "done" and entry["summary"] == {"records": 1}
    assert entry["config"]["run"]["seed"] == 7
    assert entry["wrote"]["data/train.jsonl"] == files.file_record(project / "data/train.jsonl")
    assert {"python", "papermill"} <= set(entry["versions"]) and entry["hardware"]["cpus"] >= 1
    assert entry["commit"] is None
    for text in ("one record written", "cell 5 of 5: A stage"):
        assert any(text in line for line in lines)
    assert "done: outputs/tiny/notebooks/01_data.ipynb" in lines[-1]
    for path in (report, project / "outputs/tiny/manifest.json"):
        assert str(project) not in path.read_text(encoding="utf-8")


def test_the_kernel_is_this_interpreter(project, tmp_path, monkeypatch):
    "A kernel named python3 in the user's home that points elsewhere is not used."
    spec = tmp_path / "jupyter/kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    elsewhere = {"argv": ["/nowhere/python"], "display_name": "x", "language": "python"}
    spec.write_text(json.dumps(elsewhere), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    stage_notebook(project, "import sys\nstage.done(python=sys.prefix.split('/'))")
    launch.run_stage("data", "configs/tiny.yaml", log=str)
    assert entry_of(project)["summary"]["python"] == sys.prefix.split("/")


def test_a_failing_cell_leaves_report_and_sentence(project, capfd):
    stage_notebook(project, "stage.read('data/train.jsonl', made_by='data')", "stage.done()")
    assert cli.main(["run", "data", "--config", "configs/tiny.yaml"]) == 2
    out, err = capfd.readouterr()
    assert ("data/train.jsonl is missing: run the stage data first "
            "(kwanzaa run data --config configs/tiny.yaml") in err
    assert "The report is kept: outputs/tiny/notebooks/01_data.ipynb" in err
    assert "Traceback" not in out + err
    entry = entry_of(project)
    assert entry["status"] == "failed" and "data/train.jsonl is missing" in entry["error"]
    report = nbformat.read(project / "outputs/tiny/notebooks/01_data.ipynb", as_version=4)
    shown = [output for cell in report.cells for output in cell.get("outputs", [])
             if output.output_type == "error"]
    assert len(shown) == 1 and len(shown[0].traceback) == 1


@pytest.mark.parametrize("cells, told, is_cut", [
    (["{}['gold']", "stage.done()"], "KeyError: 'gold'", True),
    # sys.exit ends a notebook early, and papermill reports success
    (["stage.done()", "import sys; sys.exit(0)", "print('never')"],
     "1 of its cells never ran, the first is cell 7", True),
    (["import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "stage.done()"],
     "died, most likely for want of memory", True),
    (["print('nothing')"], "without calling done", False)])
def test_what_ends_a_notebook_is_said(project, cells, told, is_cut):
    stage_notebook(project, *cells)
    with pytest.raises(StageError, match=told):
        launch.run_stage("data", "configs/tiny.yaml", log=str)
    assert bool(launch.unexecuted(project / "outputs/tiny/notebooks/01_data.ipynb")) is is_cut
    assert entry_of(project)["status"] == "failed"


def test_sections_from_a_file_and_overrides_on_papermill_s_command_line(project):
    notebook = stage_notebook(project, "stage.done()")
    command = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb",
               "-f", "configs/tiny.yaml", "-y", "{overrides: {training.epochs: 5}}"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    settings = entry_of(project)["config"]
    assert (settings["run"]["name"], settings["training"]["epochs"]) == ("tiny", 5)
    assert launch.unexecuted("out.ipynb") == []


def test_a_misspelled_injected_parameter(project):
    "papermill itself only warns; the notebook stops, and leaves a report."
    notebook, report = stage_notebook(project, "stage.done()"), project / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match="overides"):
        given = {"config": "configs/tiny.yaml", "overides": {"run.seed": 1}}
        papermill.execute_notebook(notebook, report, given, cwd=project, progress_bar=False)
    assert report.exists() and not (project / "outputs").exists()


@pytest.mark.parametrize("tags", [(), ("parameter",)])
def test_a_lost_parameters_tag_is_found_before_the_run(project, tags):
    stage_notebook(project, "stage.done()", tags=tags)
    with pytest.raises(StageError, match="0 cells tagged parameters"):
        launch.run_stage("data", "configs/tiny.yaml", log=str)


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_run(project, word):
    stage_notebook(project, "stage.progress('begun')\nimport time\ntime.sleep(60)", "stage.done()")
    process = kwanzaa("data", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        for line in process.stdout:
            if "begun" in line:
                process.send_signal(word)
                break
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err and "Stopped" in err
    assert entry_of(project)["status"] == "interrupted"
    report = nbformat.read(project / "outputs/tiny/notebooks/01_data.ipynb", as_version=4)
    assert report.cells[3].execution_count and not report.cells[5].execution_count


def test_the_first_failure_is_the_last_stage_run(project):
    stage_notebook(project, "1 / 0")
    stage_notebook(project, "stage.done()", name="02_train")
    with pytest.raises(StageError, match="ZeroDivisionError"):
        launch.run_all("configs/tiny.yaml", ("train", "data"), log=str)
    assert entry_of(project, "train")["status"] == "not_run"


def test_a_bad_config_stops_before_a_kernel_starts(project, capsys):
    stage_notebook(project, "stage.done()")
    wrong = ["--set", "run.sed=1", "--set", "data.packin=no"]
    assert cli.main(["run", "data", "--config", "configs/tiny.yaml", *wrong]) == 2
    assert "2 problems" in capsys.readouterr().err and not (project / "outputs").exists()


# ---- inputs


def test_an_input_that_nobody_makes(project):
    with pytest.raises(StageError, match="data/corpus is missing: restore it"):
        stage_of("data").read("data/corpus")


def test_an_input_changed_since(project):
    put(project, "data/train.jsonl", "1\n")
    maker = stage_of("data")
    maker.wrote("data/train.jsonl")
    maker.done()
    path = stage_of("train").read("data/train.jsonl", made_by="data")
    assert path == project / "data/train.jsonl"
    put(project, "data/train.jsonl", "2\n")
    told = "not the file that the stage data wrote.*run the stage data again"
    with pytest.raises(StageError, match=told):
        stage_of("train").read("data/train.jsonl", made_by="data")


def test_data_of_one_s_own_needs_no_data_stage(project):
    put(project, "data/train.jsonl", "1\n")
    stage = stage_of("train")
    stage.read("data/train.jsonl", made_by="data")
    assert list(entry_of(project, "train")["read"]) == ["data/train.jsonl"]


@pytest.mark.parametrize("error, status", [
    (ValueError("x"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_the_input_of_an_unfinished_stage(project, error, status):
    put(project, "outputs/tiny/adapter/adapter_config.json", "{}")
    maker = stage_of("train")
    maker.fail(error)
    told = f"train of this run is marked {status}.*kwanzaa run train"
    with pytest.raises(StageError, match=told):
        stage_of("evaluate").read("outputs/tiny/adapter", made_by="train")


def test_a_file_missing_from_a_folder(project):
    for name in ("a", "b"):
        put(project, f"outputs/tiny/adapter/{name}", name)
    maker = stage_of("train")
    maker.wrote("outputs/tiny/adapter")
    maker.done()
    (project / "outputs/tiny/adapter/b").unlink()
    with pytest.raises(StageError, match="adapter/b is missing: run the stage train first"):
        stage_of("evaluate").read("outputs/tiny/adapter", made_by="train")


def test_scores_of_an_older_adapter(project):
    put(project, "outputs/tiny/adapter/w", "old")
    put(project, "outputs/tiny/evaluation/metrics.json", "{}")
    train = stage_of("train")
    train.wrote("outputs/tiny/adapter")
    train.done()
    evaluate = stage_of("evaluate")
    evaluate.read("outputs/tiny/adapter", made_by="train")
    evaluate.wrote("outputs/tiny/evaluation/metrics.json")
    evaluate.done()
    stage_of("publish").read("outputs/tiny/evaluation/metrics.json", made_by="evaluate")
    put(project, "outputs/tiny/adapter/w", "new")
    train = stage_of("train")
    train.wrote("outputs/tiny/adapter")
    train.done()
    told = "evaluate read an older adapter/w.*run the stage evaluate again"
    with pytest.raises(StageError, match=told):
        stage_of("publish").read("outputs/tiny/evaluation/metrics.json", made_by="evaluate")


def test_an_output_that_is_not_there(project):
    with pytest.raises(StageError, match="train.jsonl isn't there"):
        stage_of("data").wrote("data/train.jsonl")


# ---- the manifest


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b'{"stages": []}', b'{"stages": {"data": {"status": "odd"}}}',
    b"\xff\xfe", b'{"stages": {"data": {}}}'])
def test_a_manifest_that_is_none_is_never_written_over(project, content):
    path = project / "outputs/tiny/manifest.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(StageError, match="manifest.json can't be read"):
        stage_of("data")
    assert path.read_bytes() == content


def test_stages_keep_each_other_s_entries(project):
    stage_of("data").done(records=3)
    stage_of("train").fail(ValueError("x"))
    stages = manifest.read_manifest(project / "outputs/tiny")["stages"]
    statuses = [stages[name]["status"] for name in manifest.STAGES]
    assert statuses == ["done", "failed", "not_run", "not_run"]
    assert stages["data"]["summary"] == {"records": 3}


def test_no_path_no_user_no_token_in_a_manifest(project, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    monkeypatch.setenv("HOME", str(tmp_path / "grace hopper"))
    away = tmp_path / "grace hopper" / "far" / "eval.jsonl"
    put(tmp_path, away.relative_to(tmp_path), "{}")
    stage = stage_of("evaluate", **{"data.eval_file": str(away)})
    stage.read(away)
    reason = f"{away} is not there, hf_{'a' * 30} neither."
    stage.note_fallbacks(Fallback("model.base_model_id", str(away), "x", reason))
    token = os.environ["HF_TOKEN"]
    stage.fail(ValueError(f"can't open {away} nor {project}/data/x.jsonl with {token}"))
    text = (project / "outputs/tiny/manifest.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "grace" not in text and "hf_aaa" not in text
    assert '"data/x.jsonl' in text or " data/x.jsonl" in text
    assert json.loads(text)["stages"]["evaluate"]["config"]["data"]["eval_file"] == ".../eval.jsonl"


def test_values_that_json_does_not_know(project):
    stage_of("train").done(loss=float("nan"), folder=project / "outputs", kinds=("a", "b"))
    entry = entry_of(project, "train")
    assert entry["summary"] == {"loss": None, "folder": "outputs", "kinds": ["a", "b"]}


def test_two_folders_with_files_of_one_name():
    keys = {manifest.file_key(f"/{folder}/eval.jsonl", "/p/outputs/x", "/p")
            for folder in ("a", "b")}
    assert len(keys) == 2 and all(key.endswith("/eval.jsonl") for key in keys)


@pytest.mark.parametrize("text, expected", [
    ("https://huggingface.co/a/b and s3://x/y/z", "https://huggingface.co/a/b and s3://x/y/z"),
    ("owner/model", "owner/model"), ("/p", "."), ("/p/data", "data"), ("/p2/data/x", ".../x"),
    ("1/2 and 3/4", "1/2 and 3/4"),
    ("open('/etc/ada/x.txt')", "open('.../x.txt')"), (r"C:\Users\ada\x.txt", ".../x.txt"),
    ("~/models/x", ".../x"),
])
def test_portable_text(text, expected):
    assert manifest.portable(text, "/p") == expected


@pytest.mark.parametrize("token", ["hf_" + "a1" * 10, "sk-" + "b2" * 12, "sk-proj-" + "c3_" * 9, "ghp_" + "d4" * 18, "github_pat_" + "e5_" * 12])
def test_what_looks_like_a_key_is_replaced(token, monkeypatch):
    assert manifest.portable(f"refused: {token} is not known", "/p") == "refused: <token> is not known"
    monkeypatch.setenv("KWANZAA_API_KEY", "a key of no known form")
    assert manifest.portable("refused: a key of no known form", "/p") == "refused: <token>"


def test_words_that_begin_like_keys_stay():
    for text in ("sk-learn", "the task-specific_adapter_of_this_run", "ghp_short"):
        assert manifest.portable(text, "/p") == text


def test_a_file_that_can_not_be_begun_names_itself(tmp_path):
    (tmp_path / "there").write_text("a file, not a folder", encoding="utf-8")
    with pytest.raises(OSError) as error:
        write_atomically(tmp_path / "there" / "new.json", "x")
    assert error.value.filename == str(tmp_path / "there" / "new.json")


def test_followed_lines_are_whole_and_new(tmp_path):
    path, told = tmp_path / "progress.log", []
    path.write_text("old\n", encoding="utf-8")
    with launch.follow(path, told.append, pause=0.01), open(path, "a", encoding="utf-8") as file:
        for piece in ("hal", "f é\nsec", "ond\nunended"):
            file.write(piece)
            file.flush()
            time.sleep(0.03)
    assert told == ["half é", "second"]


def test_a_table_escapes_what_would_break_it():
    shown = table.Table(["a|b"], [["x\ny"], [None]])
    assert shown._repr_markdown_() == "| a\\|b |\n| --- |\n| x ↵ y |\n|  |"


# ---- the command


@pytest.mark.parametrize("words", [
    [], ["run"], ["run", "trian"], ["run", "all", "--set", "x"], ["config", "look", "x"],
    ["run", "all", "--set", "a=[1"]])
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2 and "usage: kwanzaa" in capsys.readouterr().err


def test_a_config_is_shown_and_checked(project, capsys):
    assert cli.main(["config", "show", "configs/tiny.yaml", "--set", "training.epochs=1.5"]) == 0
    assert "epochs: 1.5" in capsys.readouterr().out
    assert cli.main(["config", "check", "configs/none.yaml"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_needs_no_torch():
    code = """\
import sys
from kwanzaa_nb.core import stage
from kwanzaa_nb.run import cli
try:
    cli.main(['--help'])
except SystemExit as left:
    assert left.code == 0
assert not {'torch', 'transformers', 'papermill'} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=60)


def test_overrides_are_checked_with_the_config(project):
    given = {"config": "configs/tiny.yaml"}
    with pytest.raises(ConfigError, match="epohs"):
        stage.start_stage("train", given | {"overrides": {"training.epohs": 1}})
    with pytest.raises(StageError, match="no stage trian"):
        stage.start_stage("trian", given)
