"Fixtures that several test files share."

import pytest
from stage_project import CONFIG, REPOSITORY


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project of its own, which is the current folder: settings.ini, one config, no data."
    root = tmp_path / "ada" / "project"
    (root / "configs").mkdir(parents=True)
    (root / "nbs").mkdir()
    (root / "settings.ini").write_text("[DEFAULT]\nlib_name = kwanzaa_nb\n", encoding="utf-8")
    (root / "configs" / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return root
