"""Colab: one guarded install cell in each stage, and what a T4 is given. Nothing here runs on a GPU."""

import ast
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch

from kwanzaa_nb.config import load_config
from kwanzaa_nb.model import detect_hardware, effective_settings

ROOT = Path(__file__).resolve().parents[1]
STAGES = sorted((ROOT / "nbs").glob("0[1-4]_*.ipynb"))


@pytest.fixture
def t4(monkeypatch):
    "PyTorch's word for a Tesla T4, and flash-attn installed all the same."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))


def test_t4_gets_fp16_and_no_flash_attention(t4):
    hardware = detect_hardware("auto")
    assert hardware.device == "cuda" and not hardware.bf16 and not hardware.flash_attention
    for path in sorted((ROOT / "configs").glob("train.adapter*.yaml")):
        used = effective_settings(load_config(path), hardware)
        assert used.device == "cuda" and used.dtype == "fp16" and used.compute_dtype in ("fp16", "fp32"), path.name
        assert "flash" not in used.attention, path.name
        told = {one.key for one in used.differences}
        assert {"run.mixed_precision", "model.use_flash_attention"} <= told, f"{path.name}: {told}"


def install_cells(path):
    "Code cells that install something, with their place among the code cells."
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    return [(place, source) for place, source in enumerate(cells) if re.search(r"^\s*[%!]", source, re.MULTILINE)]


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_stage_has_one_guarded_install_and_a_badge(path, monkeypatch):
    [(place, source)] = install_cells(path)
    assert place == 0, "what is installed must be there before anything is imported"
    [package] = re.findall(r'%pip install -q "?(kwanzaa_nb\[[\w,]+\] @ git\+https://\S+?|git\+https://\S+?)"?$', source, re.MULTILINE)
    assert package.endswith("github.com/ainative/kwanzaa-notebooks")
    asked = []
    code = re.sub(r"%pip (.+)", lambda found: f"asked.append({found[1]!r})", source)
    ast.parse(code)
    exec(code, {"asked": asked})
    assert not asked, "outside of Colab nothing is installed"
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(code, {"asked": asked})
    assert len(asked) == 1 and "install -q" in asked[0]
    text = path.read_text(encoding="utf-8")
    assert text.count(f"colab.research.google.com/github/ainative/kwanzaa-notebooks/blob/main/nbs/{path.name}") == 1
