"The GPU benchmark, on a CPU with tiny sizes: every part runs, and whatever goes wrong is a row."

import json
import sys

import pytest

from kwanzaa_nb.bench import gpu
from kwanzaa_nb.bench.gpu import PARTS, SIZES, gpu_bench, hear_part, run_part, told

BY_SCRIPT = [sys.executable, "-c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "The tiny models."
    folder, rows = tmp_path_factory.mktemp("gpu"), []
    run_part("models", SIZES["tiny"], folder, rows.append)
    assert [row["status"] for row in rows] == ["done"] * 2, rows
    return folder


@pytest.mark.parametrize("name", [name for name in PARTS if name != "models"])
def test_each_part_runs(name, folder):
    rows = []
    run_part(name, SIZES["tiny"], folder, rows.append)
    assert len(rows) > 1 and {row["status"] for row in rows} == {"done"}, rows
    assert all(row.get("ok", True) for row in rows), rows
    assert {row["part"] for row in rows} == {name} and rows[-1]["what"] == "the part"
    assert all("(not on a GPU)" in told(row) for row in rows if row["device"] == "cpu")
    if name == "training":
        assert {"ours, by segments", "TRL, packed", "TRL, padded"} <= {row["what"] for row in rows}
    if name.startswith("writing"):
        assert {row["what"].partition(": ")[2] for row in rows[:-1]} == {
            "ours", "ours, grammar", "transformers, one at a time", "transformers, in batches",
            "transformers, continuous"}


def test_a_part_that_fails_says_so_and_keeps_what_it_found(monkeypatch, tmp_path):
    def breaks(sizes, folder):
        yield {"what": "first"}
        raise ValueError("no luck")

    monkeypatch.setitem(PARTS, "machine", (9, breaks))
    rows = []
    run_part("machine", SIZES["tiny"], tmp_path, rows.append)
    assert [(row["what"], row["status"]) for row in rows] == [("first", "done"),
                                                            ("the part", "failed")]
    assert rows[1]["reason"] == "ValueError: no luck"


def test_a_process_that_dies_or_takes_too_long_is_told():
    row = json.dumps({"part": "x", "what": "first", "status": "done"})
    dies = f"print({row!r}); print('noise'); raise SystemExit('gone')"
    dead = list(hear_part("x", [*BY_SCRIPT, dies], 60))
    assert [one["status"] for one in dead] == ["done", "failed"] and "gone" in dead[1]["reason"]
    stays = f"import time; print({row!r}, flush=True); time.sleep(90)"
    slow = list(hear_part("x", [*BY_SCRIPT, stays], 3))
    assert slow[-1]["status"] == "cut" and slow[-1]["reason"] == "cut after 3 seconds"


def test_what_did_not_run_is_a_status_and_rows_are_written_as_made(monkeypatch, tmp_path, capsys):
    out, seen = tmp_path / "gpu.jsonl", []

    def heard(name, words, limit):
        assert "--part" in words and limit > 5
        yield {"part": name, "what": "first", "status": "done", "device": "cpu"}
        seen.append(len(out.read_text(encoding="utf-8").splitlines()))
        yield {"part": name, "what": "the part", "status": "failed", "reason": "no luck"}

    monkeypatch.setattr(gpu, "hear_part", heard)
    rows = gpu_bench(out, ["machine", "recipe"], 1.0, ["--size", "tiny"])
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == rows
    by_status = {status: {row["part"] for row in rows if row["status"] == status}
                 for status in ("done", "failed", "not run")}
    assert by_status["done"] == by_status["failed"] == {"machine", "recipe"}
    assert by_status["not run"] == set(PARTS) - {"machine", "recipe"}
    assert seen == [1, len(rows) - 1] and not list(tmp_path.glob(".*"))
    assert "models: the part: not run: reason not asked for" in capsys.readouterr().out
    late = gpu_bench(out, list(PARTS), 0.05, [])
    assert {row["status"] for row in late} == {"not run"}
    assert late[0]["reason"] == "no time was left"


def test_the_limits_stay_under_nine_minutes():
    assert sum(limit for limit, _ in PARTS.values()) <= 8.8 * 60
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "magic"])
