"The files of a run have a version and a schema, and are refused with a sentence if they don't fit."

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from kwanzaa_nb.core.manifest import MANIFEST, StageError, read_manifest
from kwanzaa_nb.core.results_file import load_results, save_results, write_run_schemas

ROOT = Path(__file__).parents[1]
RATE = {"value": 0.5, "total": 4, "low": 0.15, "high": 0.85}


def test_committed_schemas_are_those_of_the_types(tmp_path):
    for path in write_run_schemas(tmp_path):
        committed = ROOT / "configs" / "schemas" / path.name
        told = "run write_run_schemas('configs/schemas')"
        assert path.read_bytes() == committed.read_bytes(), told


def test_results_come_back_equal(tmp_path):
    results = {"format": 2, "arms": {"adapter": {"rates": {"json_valid_rate": RATE}}}, "records": 4}
    save_results(tmp_path, results)
    assert load_results(tmp_path) == results
    with pytest.raises(ValidationError):
        save_results(tmp_path, {"arms": {}})
    assert load_results(tmp_path) == results, "refused results leave the old file whole"


@pytest.mark.parametrize("content, told", [
    ('{"arms": {}}', "format: field required"),
    ('{"format": 1, "arms": {}}', "format: input should be 2"),
    ('{"format": 2, "arms": {"adapter": {"rates": {"json_valid_rate": {"value": 1}}}}}',
     "arms.adapter.rates.json_valid_rate.total: field required"),
    ("[1]", "its top level"),
])
def test_results_of_another_form(tmp_path, content, told):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text(content, encoding="utf-8")
    with pytest.raises(StageError) as error:
        load_results(tmp_path)
    assert told in str(error.value) and "run the stage evaluate again" in str(error.value)


@pytest.mark.parametrize("manifest, told", [
    ({"stages": {}}, "format: field required"),
    ({"format": 2, "stages": {}}, "format: input should be 1"),
    ({"format": 1, "stages": {"train": {"status": "stuck"}}}, "stages.train.status"),
    ({"format": 1, "stages": {"train": []}}, "stages.train"), ([], "its top level"),
])
def test_manifests_of_another_form(tmp_path, manifest, told):
    (tmp_path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(StageError) as error:
        read_manifest(tmp_path)
    assert told in str(error.value) and "run the stages again from data" in str(error.value)
