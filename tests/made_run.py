"""Make a run's folder without a model: real records and made-up outputs, scored by the real code."""

import json
from pathlib import Path

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.files import file_record
from kwanzaa_nb.evaluate.metrics import compare, score_arms
from kwanzaa_nb.evaluate.rules import beside_rules
from kwanzaa_nb.core.stage import Stage
from kwanzaa_nb.core.record import read_records

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {"arm": "adapter", "rule": "best_sentence", "arm_value": 0.8, "rule_value": 0.3, "difference": 0.5, "low": 0.4, "high": 0.6, "p": 0.0001,
          "records": 20, "documents": 12}
EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 2'>"


def output(arm, record, raw):
    return {"arm": arm, "id": record["id"], "pass": f"{arm}, greedy", "raw": raw,
            "finish_reason": "stop", "new_tokens": 9, "seconds": 0.5, "p_answer": None}


def make_run(root, name="tiny", good=0.8, records=20, evaluated=True, **changes):
    "Make outputs/NAME under a root; the adapter writes the expected answer in that share of records, and hostile HTML in the others."
    data = Path(root, "data")
    data.mkdir(parents=True, exist_ok=True)
    rows = read_records(ROOT / "data" / "training" / "kwanzaa_eval.jsonl")[:records]
    rows[0]["messages"][1]["content"] += f" {EVIL}"
    (data / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows),
                                     encoding="utf-8")
    config = load_config(ROOT / "configs" / "demo.cpu.yaml",
                         {"run.name": name, "run.output_dir": f"outputs/{name}",
                          "data.eval_file": "data/eval.jsonl", **changes})
    config._root = Path(root)
    stage = Stage("train", config, "configs/demo.cpu.yaml")
    stage.done(loss=0.5)
    if evaluated:
        stage = Stage("evaluate", config, "configs/demo.cpu.yaml")
        outputs = [output("base", row, f"Sure! {EVIL}") for row in rows]
        outputs += [output("adapter", row, row["messages"][-1]["content"] if place < good * records else f"Well, {EVIL}")
                    for place, row in enumerate(rows)]
        scores = score_arms(outputs, rows)
        folder = stage.folder / "evaluation"
        folder.mkdir()
        (folder / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"type": "header"}, *outputs]) + '{"cut": ', encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps({
            "format": 2, "arms": {arm: part.to_dict() for arm, part in scores.items()}, "comparison": compare(scores["base"], scores["adapter"]),
            "inputs": {"eval_sha256": file_record(data / "eval.jsonl")["sha256"]},
            "records": len(rows), "controls": {"best_sentence": scores["base"].to_dict()["rates"]}, "rules": BESIDE,
            **beside_rules(scores, {}, rows)}), encoding="utf-8")
        stage.done(records=len(rows))
    return stage.folder
