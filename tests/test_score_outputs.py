"""`kwanzaa score`: anybody's outputs, all problems of bad input at once, and no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_package import BLOCK

from kwanzaa_nb.core.answer import complete_answer, parse_model_answer, validate_answer_json
from kwanzaa_nb.core.jsonl import DataError
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.core.results_file import results_schema
from kwanzaa_nb.evaluate.metrics import score_arms
from kwanzaa_nb.evaluate.score_outputs import as_output, load_outputs, model_output
from kwanzaa_nb.run.cli import main

ROOT = Path(__file__).resolve().parents[1]
DEV = ROOT / "data" / "training" / "kwanzaa_dev.jsonl"
RECORDS = read_records(DEV)[:24]


def target(record):
    return record["messages"][-1]["content"]


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "records.jsonl", RECORDS)
    return tmp_path


def answer_of(record):
    "The answer_json of a record's target."
    return complete_answer(parse_model_answer(target(record), record["chunks"]), record["chunks"],
                           query=record["question"], namespaces=["test"])


@pytest.mark.parametrize("field", ["raw", "output", "completion", "answer_json", "object"])
def test_the_right_answer_passes_in_every_form(folder, field):
    value = {"answer_json": answer_of, "object": lambda record: json.loads(target(record))}
    rows = [{"id": record["id"], field if field != "object" else "output":
             value.get(field, target)(record)} for record in RECORDS]
    given = load_outputs(write(folder / "mine.jsonl", rows), "records.jsonl")
    found = score_arms(given.outputs, given.records)["mine"]
    assert given.notes == [] and found.codes == {} and found.rates["json_valid_rate"].value == 1
    assert found.rates["grounded_answer_rate"].value == 1


def test_records_without_an_output_count_as_failed_and_are_said(folder):
    rows = [{"id": record["id"], "raw": target(record)} for record in RECORDS[:20]]
    given = load_outputs(write(folder / "mine.jsonl", rows), "records.jsonl")
    assert len(given.notes) == 1 and "4 of 24 records" in given.notes[0]
    assert RECORDS[20]["id"] in given.notes[0] and "and 1 more" in given.notes[0]
    found = score_arms(given.outputs, given.records)["mine"]
    assert found.codes == {"no_sample": 4}
    rate = found.rates["json_valid_rate"]
    assert (rate.passed, rate.total) == (20, 24)


def test_all_problems_of_both_files_at_once(folder):
    one, two = RECORDS[0]["id"], RECORDS[1]["id"]
    write(folder / "mine.jsonl", [
        {"id": one, "raw": "{}"}, {"id": one, "raw": "{}"}, {"id": "nobody", "output": "{}"},
        {"id": 3, "raw": "{}"}, {"id": two, "raw": None}, {"id": two}, '{"id": "cut',
        {"id": two, "raw": "{}", "output": "{}"}, {"id": two, "raw": "", "arm": 7}])
    with pytest.raises(DataError) as error:
        load_outputs("mine.jsonl", "records.jsonl")
    found = [(problem.where.removeprefix("mine.jsonl, "), problem.code)
             for problem in error.value.problems]
    assert found == [("line 2, id", "duplicate_output"), ("line 3, id", "unknown_record"),
                     ("line 4, id", "wrong_type"), ("line 5, raw", "wrong_type"),
                     ("line 6, raw", "no_output"), ("line 7", "bad_json"),
                     ("line 8, output", "several_outputs"), ("line 9, arm", "wrong_type")]
    assert all(problem.mend for problem in error.value.problems)
    write(folder / "records.jsonl", [RECORDS[0], {"id": "x"}, "[]"])
    with pytest.raises(DataError) as error:
        load_outputs("mine.jsonl", "records.jsonl")
    places = {problem.where.rsplit(",", 1)[0] for problem in error.value.problems}
    assert {"records.jsonl, line 2", "mine.jsonl, line 4"} <= places


def test_files_that_are_not_there_are_both_named(folder):
    with pytest.raises(DataError) as error:
        load_outputs("a.jsonl", "b.jsonl")
    assert [problem.where for problem in error.value.problems] == ["a.jsonl", "b.jsonl"]


def test_several_systems_stand_side_by_side(folder):
    rows = [{"id": record["id"], "raw": raw, "arm": arm} for record in RECORDS
            for arm, raw in (("right", target(record)), ("wrong", "Well."))]
    given = load_outputs(write(folder / "mine.jsonl", rows), "records.jsonl")
    found = score_arms(given.outputs, given.records)
    assert [one.rates["json_valid_rate"].value for one in found.values()] == [1, 0]


def test_the_log_of_a_run_is_scored_by_its_headline_and_its_own_records(folder):
    def row(record_id, arm, name, raw):
        return {"id": record_id, "arm": arm, "pass": name, "raw": raw, "finish_reason": "stop"}

    rows = [{"type": "header", "version": 1}]
    rows += [row(one["id"], "base", "base, greedy", "Well.") for one in RECORDS]
    rows += [row(one["id"], "base", "base, sampled, seed 1", target(one)) for one in RECORDS]
    rows += [row("probe", "base", "base, greedy", "Well.")]
    given = load_outputs(write(folder / "outputs.jsonl", rows), "records.jsonl")
    assert len(given.outputs) == 24 and {one["raw"] for one in given.outputs} == {"Well."}
    assert len(given.notes) == 1 and "1 outputs of the log are left out" in given.notes[0]


# an answer_json read back

ANSWERED = next(one for one in RECORDS if one["answerable"] and len(one["chunks"]) > 1
                and json.loads(target(one))["evidence"])


def changed(**changes):
    "The evidence of an answer_json whose first source has other values."
    answer = answer_of(ANSWERED)
    answer["sources"][0] = {name: value for name, value in {**answer["sources"][0],
                                                            **changes}.items() if value is not None}
    validate_answer_json(answer)
    return json.loads(model_output(answer, ANSWERED["chunks"]))["evidence"]


def test_a_source_is_the_sentence_that_it_quotes():
    right = json.loads(target(ANSWERED))["evidence"]
    shown = sum(len(chunk["spans"]) for chunk in ANSWERED["chunks"])
    assert changed() == right
    without = changed(quote=None, quote_start=None, quote_end=None)
    assert without[0] <= shown and without[1:] == right[1:]
    assert changed(quote="What nobody wrote.")[0] > shown
    assert changed(chunk_id="elsewhere")[0] > shown


@pytest.mark.parametrize("mark", ["[0]", "[99]"])
def test_a_mark_without_a_source_is_an_invented_one(mark):
    answer = answer_of(ANSWERED)
    answer["answer"]["text"] += f" {mark}"
    output = as_output({"id": ANSWERED["id"], "answer_json": answer}, ANSWERED, "mine")
    assert "number_not_shown" in score_arms([output], [ANSWERED])["mine"].codes


def test_an_object_that_is_no_answer_json_fails_with_its_reason():
    answer = {**answer_of(ANSWERED), "version": 7}
    output = as_output({"id": ANSWERED["id"], "answer_json": answer}, ANSWERED, "mine")
    (outcome,) = score_arms([output], [ANSWERED])["mine"].outcomes
    assert not outcome.valid and any("no valid answer_json: version" in note
                                     for note in outcome.notes)


# the command


def test_the_command_prints_rates_and_failures_and_writes_the_page(folder, capsys):
    rows = [{"id": record["id"], "raw": target(record)} for record in RECORDS[:20]]
    write(folder / "mine.jsonl", [*rows[:-1], {**rows[-1], "raw": "Sure! {}"}])
    assert main(["score", "mine.jsonl", "--records", "records.jsonl", "--html", "page.html"]) == 0
    out = capsys.readouterr().out
    assert "json_valid_rate              0.79 [" in out and "n=24" in out
    assert "no_sample: 4 of 24 records. The arm wrote nothing" in out
    assert "text_before: 1 of 24 records. Text stands before the JSON." in out
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert RECORDS[0]["id"] in page and "4 of 24 records" in page and "always_<wbr>refuse" in page


def test_json_is_all_that_stands_on_the_standard_output(folder, capsys):
    from jsonschema import Draft202012Validator

    write(folder / "mine.jsonl", [{"id": one["id"], "raw": target(one)} for one in RECORDS[:20]])
    words = ["score", "mine.jsonl", "--records", "records.jsonl", "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    results = json.loads(out)
    Draft202012Validator(results_schema()).validate(results)
    assert results["arms"]["mine"]["rates"]["json_valid_rate"]["passed"] == 20
    assert "4 of 24 records" in err


def test_rules_without_a_model_stand_beside(folder, capsys):
    write(folder / "mine.jsonl", [{"id": one["id"], "raw": target(one)} for one in RECORDS])
    words = ["score", "mine.jsonl", "--records", "records.jsonl", "--train", "records.jsonl"]
    assert main(words) == 2 and "give --train" in capsys.readouterr().err
    assert main([*words, "--dev", "records.jsonl"]) == 0
    assert "rule: best_sentence_threshold" in capsys.readouterr().out


def test_wrong_input_is_status_2_and_nothing_is_printed(folder, capsys):
    write(folder / "mine.jsonl", [{"id": "nobody", "raw": "{}"}])
    assert main(["score", "mine.jsonl", "--records", "records.jsonl"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nothing was scored: 1 problem") and "line 1, id" in err


def test_sealed_records_keep_count(folder, capsys):
    write(folder / "mine_sealed.jsonl", RECORDS)
    write(folder / "a.jsonl", [{"id": one["id"], "raw": target(one)} for one in RECORDS])
    for _ in range(2):
        assert main(["score", "a.jsonl", "--records", "mine_sealed.jsonl"]) == 0
        assert "Measured on the sealed records" in capsys.readouterr().out
    uses = folder / "mine_sealed.uses.txt"
    assert len(uses.read_text(encoding="utf-8").splitlines()) == 1 and "kwanzaa score a.jsonl, outputs " in uses.read_text(encoding="utf-8")
    write(folder / "a.jsonl", [{"id": one["id"], "raw": "other"} for one in RECORDS])
    assert main(["score", "a.jsonl", "--records", "mine_sealed.jsonl"]) == 0
    assert len(uses.read_text(encoding="utf-8").splitlines()) == 2, "other outputs are another look"


def test_it_needs_no_torch(folder):
    write(folder / "mine.jsonl", [{"id": one["id"], "raw": target(one)} for one in RECORDS])
    words = ["score", "mine.jsonl", "--records", "records.jsonl", "--html", "page.html"]
    code = f"""{BLOCK}
sys.path.insert(0, {str(ROOT)!r})
from kwanzaa_nb.run.cli import main
from kwanzaa_nb.evaluate.testing import check_answer
assert check_answer("It came out in 1861.", ["The book came out in Boston in 1861."]).grounded
status = main({words!r})
sys.exit(status or ("torch" in sys.modules) or ("inspect_ai" in sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0 and "json_valid_rate" in done.stdout, done.stderr
