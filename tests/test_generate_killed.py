"Generation that is killed and run again: each record once; other settings start another log."

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from kwanzaa_nb.model.backend import read_log

SCRIPT = '''
import json, os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
import kwanzaa_nb.model.backend as generate

folder, setting, half_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
log, told = folder / "outputs.jsonl", (folder / "told.jsonl").open("a")
whole_append, appended = generate.append, 0


def tell(**row):
    told.write(json.dumps(row) + "\\n")
    told.flush()


def append(path, row):
    "As the real one, but for the time of death: after half of a line."
    global appended
    appended += 1
    if appended != half_at:
        return whole_append(path, row)
    with path.open("a") as file:
        file.write(json.dumps(row)[:900])
        file.flush()
        os.fsync(file.fileno())
    os.kill(os.getpid(), signal.SIGKILL)


class Slow:
    def prompts(self, records):
        return [SimpleNamespace(record_id=record["id"], digest=setting) for record in records]

    def batches(self, prompts, decoding):
        yield from (prompts[start:start + decoding.batch_size] for start in range(0, len(prompts), decoding.batch_size))

    def write(self, batch, decoding):
        tell(asked=[prompt.record_id for prompt in batch], seed=decoding.seed)
        time.sleep(0.02)
        return [generate.Written(f"{prompt.record_id} {setting} {decoding.seed} " + "ü" * 2000, "stop", 9) for prompt in batch]


generate.append = append
records = [{"id": f"r{place}", "messages": []} for place in range(40)]
tell(state=generate.open_log(log, {"setting": setting}))
for seed in (None, 5):
    decoding = generate.Decoding(max_new_tokens=9, batch_size=4, temperature=0.0 if seed is None else 1.0, seed=seed)
    generate.generate_pass(Slow(), records, decoding, log, "base", report=lambda line: None)
tell(state="ended")
'''
IDS = [f"r{place}" for place in range(40)]
PASSES = ("base, greedy", "base, sampled, seed 5")


def start(folder, setting="one", half_at=0):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), setting,
                             str(half_at)], stderr=subprocess.PIPE, text=True)


def whole_lines(path):
    content = path.read_bytes() if path.exists() else b""
    return content[:content.rfind(b"\n") + 1].splitlines()


def told(folder):
    "What the processes said: states, and batches asked."
    return [json.loads(line) for line in whole_lines(folder / "told.jsonl")]


def killed(folder, moment, **more):
    "Start, wait until it asks for something, kill it some seconds later; False where it had ended by itself."
    before, process = len(told(folder)), start(folder, **more)
    while process.poll() is None and len(told(folder)) <= before + 1:
        time.sleep(0.005)
    time.sleep(moment)
    process.kill()
    ended = process.wait() == 0
    assert ended or process.returncode == -signal.SIGKILL, process.stderr.read()
    return not ended


def check_log(path, setting):
    "Each record once in each pass, as it was written."
    header, outputs = read_log(path)
    assert header["setting"] == setting
    lines = [json.loads(line) for line in whole_lines(path)[1:]]  # as they stand, for `read_log` gives the last of each
    assert Counter((output["pass"], output["id"]) for output in lines) == Counter((name, one) for name in PASSES for one in IDS)
    assert outputs == lines
    for output in outputs:
        seed = None if output["pass"] == PASSES[0] else int(output["raw"].split()[2])
        assert output["raw"] == f"{output['id']} {setting} {seed} " + "ü" * 2000
        assert output["prompt_sha256"] == setting


def finish(folder, **more):
    process = start(folder, **more)
    assert process.wait() == 0, process.stderr.read()
    assert told(folder)[-1] == {"state": "ended"}


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_and_run_again(tmp_path, seed):
    chance, log, died = random.Random(seed), tmp_path / "outputs.jsonl", 0
    for _ in range(4):
        logged = whole_lines(log)
        died += killed(tmp_path, chance.uniform(0, 0.12))
        assert whole_lines(log)[:len(logged)] == logged, "what was logged is there no more"
    finish(tmp_path)
    check_log(log, "one")
    states, asked = [row["state"] for row in told(tmp_path)
                     if "state" in row], [row for row in told(tmp_path) if "asked" in row]
    assert died >= 3 and states[0] == "new" and set(states[1:]) == {"continued", "ended"}
    assert len(asked) <= 20 + died, "more was asked again than the batch that a kill cut"


def test_a_line_that_was_half_written_is_dropped_and_its_batch_asked_again(tmp_path):
    log = tmp_path / "outputs.jsonl"
    process = start(tmp_path, half_at=6)  # the second of the second batch
    assert process.wait() == -signal.SIGKILL
    assert len(whole_lines(log)) == 6 and not log.read_bytes().endswith(b"\n")
    finish(tmp_path)
    check_log(log, "one")
    asked = Counter(tuple(row["asked"]) for row in told(tmp_path) if row.get("seed", 0) is None)
    assert asked == Counter([tuple(IDS[place:place + 4]) for place in range(0, 40, 4)] + [tuple(IDS[4:8])])


def test_another_setting_is_another_log_and_the_first_goes_on_later(tmp_path):
    log = tmp_path / "outputs.jsonl"
    process = start(tmp_path, half_at=30)
    assert process.wait() == -signal.SIGKILL
    first = whole_lines(log)
    finish(tmp_path, setting="two")
    check_log(log, "two")
    kept = tmp_path / next(row["state"] for row in told(tmp_path)
                           if row.get("state", "new") not in ("new", "ended"))
    assert whole_lines(kept) == first
    before = len(told(tmp_path))
    finish(tmp_path)
    check_log(log, "one")
    assert whole_lines(log)[:30] == first
    assert len([row for row in told(tmp_path)[before:] if "asked" in row]) == 20 - 7
    (other,) = tmp_path.glob("outputs.*.jsonl")
    check_log(other, "two")
