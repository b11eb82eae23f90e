"`import kwanzaa_nb as kz`: eleven names, loaded when they are used."

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import kwanzaa_nb as kz

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"load_config", "ConfigError", "parse_strict_json", "parse_model_answer", "validate_answer_json", "AnswerError",
         "render_prompt", "support", "SUPPORTED_AT", "score", "load_answerer"}
HEAVY = ("torch", "pydantic", "numpy")


def fresh(code):
    "What a new process prints that runs some code."
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout


def cpu_seconds(code):
    "CPU time of a new process that runs some code: the least of three, since other work makes any one longer."
    used = "\nimport os\nprint(sum(os.times()[:2]))"
    return min(float(fresh(code + used)) for _ in range(3))


def test_the_import_is_quick():
    assert cpu_seconds("import kwanzaa_nb") - cpu_seconds("") < 0.3


def test_the_import_loads_nothing_heavy_and_a_name_loads_what_it_needs():
    code = f"import sys, kwanzaa_nb as kz\nprint([name for name in {HEAVY!r} if name in sys.modules])\nkz.load_config\nprint('pydantic' in sys.modules)"
    assert fresh(code).splitlines() == ["[]", "True"]


def test_the_face_is_these_eleven_names():
    assert set(kz.__all__) == NAMES and len(kz.__all__) == 11 and set(dir(kz)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_name_loads(name):
    if name == "load_answerer" and not importlib.util.find_spec("torch"):
        pytest.skip("load_answerer needs torch")
    assert getattr(kz, name) is not None


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'load_answer'"):
        kz.load_answer  # noqa: B018


def test_the_guide_shows_every_name():
    text = (ROOT / "nbs" / "guides" / "api.ipynb").read_text(encoding="utf-8")
    assert not [name for name in NAMES if f"kz.{name}" not in text]
