"The made-up corpus of the benchmarks: it is one that the builder takes, of any size."

import json

import pytest

from kwanzaa_nb.bench.benchmarks import (
    build_made_up, made_up_chunk, made_up_question, measure_estimates, slope)
from kwanzaa_nb.data.corpus import Chunk
from kwanzaa_nb.data.questions import Question, check_question


def test_every_question_is_one_that_its_corpus_answers():
    chunks = {row["chunk_id"]: Chunk.model_validate(row) for row in map(made_up_chunk, range(400))}
    questions = [Question.model_validate(made_up_question(place)) for place in range(0, 400, 10)]
    assert len(chunks) == 400 and [problem for question in questions for problem in check_question(question, chunks)] == []
    assert len({question.question for question in questions}) == 40


def test_the_corpus_depends_on_numbers_alone():
    assert made_up_chunk(12) == made_up_chunk(12) != made_up_chunk(13) and made_up_question(30) == made_up_question(30)


def test_all_splits_are_built_and_nothing_is_left_over(capsys):
    found = build_made_up(500)
    assert (found["chunks"], found["questions"]) == (500, 50) and found["records"] > 100
    assert found["loading_seconds"] > 0 and found["building_seconds"] > 0 and 0 < found["peak_gb"] < 50


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_slope_is_the_power_of_growth(power):
    rows = [{"chunks": size, "seconds": 3 * size ** power} for size in (10, 100, 5000)]
    assert slope(rows, "seconds") == pytest.approx(power)


def train_of(folder, status="done", **summary):
    folder.mkdir()
    stage = {"status": status, "config": {"run": {"name": folder.name}}, "summary": summary}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "stages": {"train": stage}}))
    return str(folder)


def test_what_trainings_took_is_read_from_their_manifests(tmp_path):
    costs = {"predicted_seconds": 60.0, "seconds": 66.0, "predicted_bytes": 10, "peak_bytes": 11}
    runs = [train_of(tmp_path / name, steps=7, **costs) for name in ("one", "two")]
    assert measure_estimates(*runs) == [{"run": name, "steps": 7, **costs} for name in ("one", "two")]
    half = train_of(tmp_path / "half", "running")
    without = train_of(tmp_path / "without", steps=7, seconds=66.0)
    for folder in (half, without):
        with pytest.raises(SystemExit, match="no finished training with an estimate"):
            measure_estimates(runs[0], folder)
