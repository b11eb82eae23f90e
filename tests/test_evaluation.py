"The stage evaluate: which prompts and passes it runs, and how it completes valid answers."

import json
from copy import deepcopy
from types import SimpleNamespace

import pytest
from tiny import ROOT, tiny_config

from kwanzaa_nb.core.answer import find_marks, validate_answer_json
from kwanzaa_nb.model.decision import Calibration, calibrate
from kwanzaa_nb.core.record import question_of, read_records, spread
from kwanzaa_nb.evaluate.passes import (
    adapter_to_evaluate, backend_fallbacks, calibration_of, complete_answers, decodings,
    development_decisions, experiment, grammar_identity, passes, sampling_fallbacks,
    settle_threshold, write_jsonl)
from kwanzaa_nb.model.backend import is_headline, open_log, read_log
from kwanzaa_nb.model.local import LocalBackend
from kwanzaa_nb.model.load import RuntimeSettings
from kwanzaa_nb.core.sentences import number_sentences

CPU = RuntimeSettings("cpu", "fp32", "fp32", "sdpa", False, "adamw_torch")


@pytest.fixture(scope="module")
def records():
    "One in three of the committed records."
    return read_records(ROOT / "data" / "training" / "kwanzaa_eval.jsonl")[::3]


def named(*categories):
    return [{"id": place, "category": category} for place, category in enumerate(categories)]


@pytest.mark.parametrize("most, kept", [
    (None, [*range(7)]), (7, [*range(7)]), (99, [*range(7)]), (3, [0, 4, 6]), (4, [0, 1, 4, 6]),
    (5, [0, 1, 4, 5, 6]), (1, [0]), (6, [0, 1, 2, 4, 5, 6])])
def test_spread_takes_turns_over_the_categories(most, kept):
    rows = named("a", "a", "a", "a", "b", "b", "c")
    assert [record["id"] for record in spread(rows, most)] == kept


def test_spread_of_the_committed_records(records):
    few = spread(records, 8)
    assert len(few) == 8
    assert {record["category"] for record in few} == {record["category"] for record in records}
    assert [record["id"] for record in records if record in few] == [record["id"] for record in few]


TEMPERATURE, TOP_P = (f"evaluation.generation_defaults.{name}" for name in ("temperature", "top_p"))


def test_decodings_are_greedy_first():
    config = tiny_config(**{
        "evaluation.sampling_seeds": [3, 5], "evaluation.batch_size": 7, TEMPERATURE: 0.4,
        TOP_P: 0.8, "evaluation.generation_defaults.max_new_tokens": 33})
    found = decodings(config)
    assert [one.name for one in found] == ["greedy", "sampled, seed 3", "sampled, seed 5"]
    assert {(one.max_new_tokens, one.batch_size) for one in found} == {(33, 7)}
    heat = [(one.temperature, one.top_p) for one in found]
    assert heat == [(0.0, 1.0), (0.4, 0.8), (0.4, 0.8)]
    assert [one.name for one in decodings(tiny_config())] == ["greedy"]


@pytest.mark.parametrize("seeds, temperature, keys", [
    ([], 0.2, [TEMPERATURE, TOP_P]), ([1], 0.2, []), ([], 0, [])])
def test_what_the_greedy_headline_leaves_unused_is_said(seeds, temperature, keys):
    config = tiny_config(**{"evaluation.sampling_seeds": seeds, TEMPERATURE: temperature})
    found = sampling_fallbacks(config)
    assert [item.key for item in found] == keys
    assert all("greedy" in item.reason and item.requested != item.used for item in found)


@pytest.mark.parametrize("top_p, keys", [(1.0, ["temperature"]), (0.9, ["temperature", "top_p"])])
def test_only_what_differs_is_called_a_difference(top_p, keys):
    found = sampling_fallbacks(tiny_config(**{"evaluation.generation_defaults.top_p": top_p}))
    assert [item.key.rsplit(".", 1)[1] for item in found] == keys


def test_the_adapter_that_is_evaluated(tmp_path):
    read = []
    stage = SimpleNamespace(folder=tmp_path)
    stage.read = lambda path, made_by=None: read.append((path, made_by)) or path
    for asked, path, maker in (
        ("auto", tmp_path / "adapter", "train"),
        ("elsewhere/adapter", "elsewhere/adapter", None),
    ):
        stage.config = tiny_config(evaluation__adapter=asked)
        assert adapter_to_evaluate(stage) == path and read.pop() == (path, maker)
    stage.config = tiny_config(evaluation__adapter="none")
    assert adapter_to_evaluate(stage) is None and read == []


def adapter(folder, content):
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(content)
    return folder


def test_an_experiment_is_told_from_every_other(records, tmp_path):
    def told(config=tiny_config(), settings=CPU, asked=records[:4], folder=None):
        return json.dumps(experiment(config, settings, asked, folder), sort_keys=True)

    first, second = adapter(tmp_path / "a", b"one"), adapter(tmp_path / "b", b"two")
    asked, answered = deepcopy(records[:4]), deepcopy(records[:4])
    asked[0]["messages"][1]["content"] += " "
    answered[0]["messages"][-1]["content"] = "{}"
    changes = [
        {"evaluation.batch_size": 3}, {"evaluation.generation_defaults.max_new_tokens": 7},
        {"evaluation.sampling_seeds": [1]}, {"model.base_model_id": "owner/other"},
        {"model.base_model_id": "owner/other@abc"}]
    machines = [("cuda", "bf16", "bf16", False), ("cuda", "fp16", "fp16", True),
                ("cuda", "fp16", "bf16", True), ("cpu", "fp32", "fp32", True)]
    others = [
        told(folder=first), told(folder=second), told(asked=records[:3]), told(asked=asked),
        *(told(tiny_config(**change)) for change in changes),
        *(told(settings=RuntimeSettings(*words, "sdpa", packed, "x"))
          for *words, packed in machines)]
    assert len({told(), *others}) == len(others) + 1
    assert told() == told(asked=answered) and str(tmp_path) not in "".join(others)


def outputs(records, arm="adapter"):
    return [{"id": record["id"], "arm": arm, "raw": record["messages"][-1]["content"]}
            for record in records]


def test_valid_answers_are_completed(records):
    written = [*outputs(records, "base"), *outputs(records)]
    lines, incomplete = complete_answers(written, records, tiny_config())
    assert incomplete == {} and len(lines) == 2 * len(records)
    by_id = {record["id"]: record for record in records}
    for line in lines[::9]:
        record = by_id[line["id"]]
        whole = validate_answer_json(line["answer_json"])
        assert whole.retrieval_summary.query == question_of(record)
        assert len(whole.retrieval_summary.results) == len(record["chunks"])
        assert whole.answer.completeness == record["expected"]["completeness"]
        mode = line["answer_json"]["model_mode"] if "model_mode" in line["answer_json"] else None
        assert mode in (None, "base_only" if line["arm"] == "base" else "base_adapter_rag")


@pytest.mark.parametrize("reason, count", [("stop", 3), ("unknown", 3), ("length", 0), ("invalid", 0), ("error", 0)])
def test_what_did_not_end_by_itself_is_no_answer_even_where_it_can_be_read(records, reason, count):
    lines, incomplete = complete_answers([row | {"finish_reason": reason} for row in outputs(records[:3])], records, tiny_config())
    assert len(lines) == count and incomplete == {}


def test_an_invalid_answer_is_left_out_and_is_no_incomplete_one(records):
    rows = outputs(records[:3])
    rows[1]["raw"] = "I think so."
    lines, incomplete = complete_answers(rows, records, tiny_config())
    assert [line["id"] for line in lines] == [records[0]["id"], records[2]["id"]]
    assert incomplete == {}


@pytest.fixture
def answered(records):
    found = next(one for one in records if one["answerable"] and len(one["chunks"]) > 1)
    return deepcopy(found)


@pytest.mark.parametrize("field", [
    "license", "citation_label", "canonical_url", "year", "namespace"])
def test_missing_provenance_is_listed_by_name(answered, field):
    for chunk in answered["chunks"]:
        del chunk[field]
    lines, incomplete = complete_answers(outputs([answered]), [answered], tiny_config())
    assert lines == [] and list(incomplete) == [f"adapter, {answered['id']}"]
    reason = incomplete[f"adapter, {answered['id']}"]
    assert field in reason and "missing" in reason and "\n" not in reason


def test_a_namespace_of_another_type_stops_nothing(answered):
    answered["chunks"][0]["namespace"] = None
    lines, incomplete = complete_answers(outputs([answered]), [answered], tiny_config())
    assert lines == [] and list(incomplete) == [f"adapter, {answered['id']}"]


def test_bare_records_can_be_completed(answered):
    refusal = json.dumps({
        "evidence": [], "answer": {"completeness": "insufficient_data", "text": "It is not there."},
        "unknowns": {"unsupported_claims": [], "missing_context": ["the year"],
                     "clarifying_questions": []}})
    bare = {"id": "line-1", "persona": "", "chunks": [], "messages": answered["messages"]}
    rows = [{"id": "line-1", "arm": "base", "raw": refusal}]
    lines, incomplete = complete_answers(rows, [bare], tiny_config())
    assert incomplete == {} and len(lines) == 1


def test_rows_are_written_whole(tmp_path):
    path = write_jsonl(tmp_path / "a" / "b.jsonl", ({"ọ": place} for place in range(2)))
    assert path.read_text(encoding="utf-8") == '{"ọ": 0}\n{"ọ": 1}\n'


# who writes, and what confidence rests on


class Known(LocalBackend):
    "A backend that knows a probability for each record, and counts how often it is asked."

    def __init__(self):
        self.asked = []

    def prompts(self, records):
        return [SimpleNamespace(record_id=record["id"], digest=record.get("prompt", "d")) for record in records]

    def p_answer(self, prompts):
        for prompt in prompts:
            self.asked.append(prompt.record_id)
            yield prompt, int(prompt.record_id[1:]) / 10


def test_development_decisions_are_logged_once(tmp_path):
    log, backend, sides = tmp_path / "outputs.jsonl", Known(), (False, False, None, True, True)
    open_log(log, {"model": "known"})
    rows = [{"id": f"r{place}", "answerable": side} for place, side in enumerate(sides)]

    def decisions(rows):
        return development_decisions(backend, rows, log, "adapter", report=lambda line: None)

    found = [(row["id"], row["p_answer"], row["answerable"]) for row in decisions(rows[:3])]
    assert found == [("r0", 0.0, False), ("r1", 0.1, False)]
    assert [row["id"] for row in decisions(rows)] == backend.asked == ["r0", "r1", "r3", "r4"]
    outputs = read_log(log)[1]
    fitted = calibration_of([*outputs, {"pass": "adapter, greedy"}], "adapter")
    assert fitted.records == 4 and fitted(0.0) < 0.5 < fitted(0.4)
    assert calibration_of(outputs, "base") == Calibration()
    assert development_decisions(object(), rows, log, "base") == []


def test_a_decision_about_another_prompt_of_the_same_id_is_not_used(tmp_path):
    log, backend = tmp_path / "outputs.jsonl", Known()
    open_log(log, {"model": "known"})

    def decisions(rows):
        return development_decisions(backend, rows, log, "base", report=lambda line: None)

    rows = [{"id": f"r{place}", "answerable": place > 1} for place in range(4)]
    decisions(rows)
    rows = [{**rows[0], "answerable": True}, {**rows[1], "prompt": "other"}, rows[2]]
    for _ in range(2):  # the second time nothing is asked
        found = decisions(rows)
        assert [(row["id"], row["prompt_sha256"], row["answerable"]) for row in found] == [
            ("r0", "d", True), ("r1", "other", False), ("r2", "d", True)]
    assert backend.asked == ["r0", "r1", "r2", "r3", "r1"]
    assert calibration_of(found, "base").records == 3  # r3 is no development record any more


@pytest.mark.parametrize("pairs, chosen", [
    ([(0.4, True), (0.35, True), (0.3, False), (0.6, False), (0.1, False)], 0.35),
    ([(0.4, True), (0.3, False)], 0.4), ([(0.2, True), (0.9, False)], 0.2),
    ([], 0.5), ([(0.1, True)], 0.5)])
def test_a_threshold_is_chosen_on_the_development_set(pairs, chosen):
    asked = tiny_config(**{"evaluation.answer_threshold": "dev"})
    decisions = [{"p_answer": chance, "answerable": side} for chance, side in pairs]
    settled = settle_threshold(asked, decisions)
    assert settled.evaluation.answer_threshold == chosen
    assert [one.answer_threshold for _, one, _ in passes(settled, "base", CPU)] == [chosen]
    for fixed in (0.7, None):
        config = tiny_config(**{"evaluation.answer_threshold": fixed})
        assert settle_threshold(config, decisions) is config
    told = {one.key: one for one in backend_fallbacks(asked)}["evaluation.answer_threshold"]
    assert (told.requested, told.used) == ("dev", 0.5) and "data.dev_file" in told.reason


def test_what_a_threshold_was_chosen_on_is_part_of_an_experiment(records):
    asked = tiny_config(**{"evaluation.answer_threshold": "dev"})
    first, second, fixed = (
        experiment(config, CPU, records[:2], None, dev).get("development_sha256")
        for config, dev in ((asked, records[2:4]), (asked, records[3:5]),
                            (tiny_config(), records[2:4])))
    assert first != second and first and second and not fixed


def test_the_passes_of_an_arm():
    config = tiny_config(**{"evaluation.sampling_seeds": [1], "evaluation.grammar": True})
    found = list(passes(config, "adapter", CPU))
    assert [(name, one.name, one.grammar, same) for name, one, same in found] == [
        ("adapter", "greedy", False, None), ("adapter", "sampled, seed 1", False, None),
        ("adapter+grammar", "greedy", True, "adapter")]
    half = RuntimeSettings("cuda", "bf16", "bf16", "sdpa", False, "x")
    assert [same for _, _, same in passes(config, "adapter", half)] == [None, None, None]
    assert len(list(passes(tiny_config(), "base", CPU))) == 1
    names = [(name, f"{name}, {one.name}") for name, one, _ in found]
    names += [("adapter", "adapter, development"), ("adapter", "adapter, greedy, twice")]
    heads = [is_headline({"arm": arm, "pass": name}) for arm, name in names]
    assert heads == [True, False, True, False, False]
    assert backend_fallbacks(config) == []


def test_what_a_grammar_was_made_of_is_part_of_an_experiment(records):
    with_grammar = tiny_config(**{"evaluation.grammar": True})
    plain, same = (experiment(config, CPU, records[:4], None)
                   for config in (tiny_config(), with_grammar))
    assert plain == same and set(same["grammar"]) == {"llguidance", "sha256"}
    changed = deepcopy(records[:4])
    chunk = changed[0]["chunks"][0]
    chunk["text"] += " More."
    chunk["spans"].append([len(chunk["text"]) - 5, len(chunk["text"])])
    assert experiment(with_grammar, CPU, changed, None)["grammar"] != same["grammar"]
    freer = [{**record, "mode": "creative"} for record in records[:4]]
    assert grammar_identity(freer) != grammar_identity(records[:4]) == same["grammar"]
    assert grammar_identity(records[:4], served=True) != grammar_identity(changed, served=True)


def test_a_source_of_a_completed_answer_is_a_sentence_of_its_chunk(records):
    lines, _ = complete_answers(outputs(records), records, tiny_config())
    by_id = {record["id"]: record for record in records}
    counted = 0
    for line in lines:
        record = by_id[line["id"]]
        texts = {chunk["chunk_id"]: chunk["text"] for chunk in record["chunks"]}
        shown = {(one.chunk_id, one.start, one.end) for one in number_sentences(record["chunks"])}
        marks = find_marks(line["answer_json"]["answer"]["text"])
        sources = line["answer_json"]["sources"]
        assert set(marks) == set(range(1, len(sources) + 1))
        for source in sources:
            start, end = source["quote_start"], source["quote_end"]
            assert source["quote"] == texts[source["chunk_id"]][start:end]
            assert (source["chunk_id"], source["quote_start"], source["quote_end"]) in shown
            counted += 1
    assert counted > len(records) / 3


def test_a_creative_answer_may_do_without_a_source(answered):
    raw = ('{"evidence":[],"answer":{"completeness":"complete","text":"A river sings."},"unknowns":'
           '{"unsupported_claims":[],"missing_context":[],"clarifying_questions":[]}}')
    rows = [{"id": answered["id"], "arm": "adapter", "raw": raw}]
    (line,), incomplete = complete_answers(rows, [{**answered, "mode": "creative"}], tiny_config())
    found = line["answer_json"]
    assert incomplete == {} and (found["sources"], found["model_mode"]) == ([], "creative")
    assert complete_answers(rows, [answered], tiny_config()) == ([], {})


def test_a_valid_answer_states_its_calibrated_confidence(records):
    answered = next(record for record in records if record["answerable"])
    rows = [output | {"p_answer": 0.8} for output in outputs([answered])]
    fitted = calibrate([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
    config = tiny_config()
    for arm in ("adapter", "adapter+grammar"):
        written = [row | {"arm": arm} for row in rows]
        (line,), _ = complete_answers(written, [answered], config, {"adapter": fitted})
        found = line["answer_json"]
        assert found["answer"]["confidence"] == round(fitted(0.8), 4)
        assert found["model_mode"] == "base_adapter_rag"
    (line,), _ = complete_answers(rows, [answered], config, {"adapter": Calibration()})
    assert "confidence" not in line["answer_json"]["answer"]
