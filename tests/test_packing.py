"Packing: a record in a row is computed as if it were alone, and none is lost or cut."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import row, tiny_model
from transformers import MistralConfig, MistralForCausalLM

from kwanzaa_nb.model.masking import IGNORED
from kwanzaa_nb.model.packing import (
    SEGMENTED, Segments, causal_mask, flatten_rows, flatten_shared, pack_rows, row_shares,
    segmented_attention, share_prompts,
)
from kwanzaa_nb.train.trainer import supervised_loss

ROWS = [row(5, 4, first=5), row(1, 1, first=50), row(9, 7, first=90), row(2, 3, first=140)]


def logits(model, *rows):
    inputs = flatten_rows(list(rows))
    inputs.pop("labels")
    return model(**inputs, use_cache=False).logits[0]


def plain_logits(model, one):
    "Logits of one record by transformers' own eager attention."
    model.set_attn_implementation("eager")
    found = model(torch.tensor([one["input_ids"]]), use_cache=False).logits[0]
    model.set_attn_implementation(SEGMENTED)
    return found


def gradients(model):
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("heads, key_value_heads", [(4, 4), (4, 2), (4, 1)])
def test_a_flat_row_equals_separate_passes(heads, key_value_heads):
    model = tiny_model(heads=heads, key_value_heads=key_value_heads)
    with torch.no_grad():
        together = logits(model, *ROWS)
        apart = torch.cat([plain_logits(model, one) for one in ROWS])
    assert (together - apart).abs().max() < 1e-5


def test_gradients_of_a_flat_row_equal_those_of_separate_passes():
    model = tiny_model()
    total, count = supervised_loss(model, flatten_rows(ROWS))
    total.backward()
    together, apart_total, apart_count = gradients(model), 0.0, 0
    for one in ROWS:
        loss, number = supervised_loss(model, flatten_rows([one]))
        loss.backward()
        apart_total, apart_count = apart_total + loss.item(), apart_count + number
    apart = gradients(model)
    assert count == apart_count == sum(label != IGNORED for one in ROWS for label in one["labels"])
    assert total.item() == pytest.approx(apart_total, rel=1e-5)
    for name, gradient in together.items():
        assert (gradient - apart[name]).abs().max() < 1e-5 * max(1.0, gradient.abs().max().item()), name


def test_a_record_never_sees_another():
    model = tiny_model()
    other = {**ROWS[0], "input_ids": [250 - token for token in ROWS[0]["input_ids"]]}
    start = len(ROWS[0]["input_ids"])
    with torch.no_grad():
        first, second = logits(model, ROWS[0], ROWS[2]), logits(model, other, ROWS[2])
    assert torch.equal(first[start:], second[start:])
    assert not torch.allclose(first[:start], second[:start])


@pytest.mark.parametrize("window", [1, 2, 3, 8, 100])
def test_a_sliding_window_equals_a_reference_mask(window):
    torch.manual_seed(0)
    lengths, heads = [6, 1, 11], 2
    query, key, value = (torch.randn(1, heads, sum(lengths), 4) for _ in range(3))
    starts = torch.tensor([0, 6, 7, 18], dtype=torch.int32)
    found, weights = segmented_attention(None, query, key, value,
                                         cu_seq_lens_q=starts, sliding_window=window)
    record = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    place = torch.cat([torch.arange(length) for length in lengths])
    visible = torch.tensor(
        [
            [
                bool(record[row] == record[column]) and 0 <= int(place[row] - place[column]) < window
                for column in range(18)
            ]
            for row in range(18)
        ]
    )
    scores = (query @ key.transpose(-1, -2) / 2.0).masked_fill(~visible, float("-inf"))
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    assert weights is None and torch.allclose(found, expected, atol=1e-6)


def test_a_model_with_sliding_window_equals_its_own_attention():
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=3, initializer_range=0.2,
        )
    ).eval()
    model.set_attn_implementation(SEGMENTED)
    with torch.no_grad():
        together, apart = logits(model,
                                 *ROWS), torch.cat([plain_logits(model, one) for one in ROWS])
        model.config.sliding_window = None
        wide = torch.cat([plain_logits(model, one) for one in ROWS])
    assert (together - apart).abs().max() < 1e-5
    assert (together - wide).abs().max() > 1e-3, "the window made no difference, so the test shows nothing"


def test_causal_mask():
    assert causal_mask(4, 4, 2, "cpu").tolist() == [
        [True, False, False, False], [True, True, False, False], [False, True, True, False],
        [False, False, True, True],
    ]


def test_scaling_and_dropout_are_passed_on():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 4) for _ in range(3))
    starts = torch.tensor([0, 5], dtype=torch.int32)
    plain, scaled = (
        segmented_attention(None, query, key, value, cu_seq_lens_q=starts, scaling=scale)[0]
        for scale in (None, 0.5)
    )
    other = segmented_attention(None, query, key, value, cu_seq_lens_q=starts, scaling=0.1)[0]
    dropped = segmented_attention(None, query, key, value, cu_seq_lens_q=starts, dropout=0.9)[0]
    assert torch.allclose(plain, scaled, atol=1e-6)  # 1 / sqrt(4)
    assert not torch.allclose(plain, other, atol=1e-3)
    assert not torch.allclose(plain, dropped, atol=1e-3)


def test_rows_that_are_not_flat_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="flatten_rows"):
        model(torch.tensor([[1, 2, 3]]), use_cache=False)
    query = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="flatten_rows"):
        segmented_attention(
            None, query, query, query, attention_mask=torch.ones(3, 3),
            cu_seq_lens_q=torch.tensor([0, 3])
        )


def test_flat_rows():
    flat = flatten_rows(
        [
            {"input_ids": [5, 6, 7, 8, 9], "labels": [5, -100, 7, 8, 9], "seq_lengths": [3, 2]},
            {"input_ids": [1], "labels": [1]},
        ]
    )
    assert flat["labels"].tolist() == [[-100, -100, 7, -100, 9, -100]]
    assert flat["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0]]
    assert flat["cu_seq_lens_q"].tolist() == flat["cu_seq_lens_k"].tolist() == [0, 3, 5, 6]
    assert flat["cu_seq_lens_q"].dtype == torch.int32 and flat["max_length_q"] == 3


@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_packing_loses_and_cuts_no_record(lengths):
    rows = [
        {"input_ids": [place] * length, "labels": [IGNORED] + [place] * (length - 1), "group": "g"}
        for place, length in enumerate(lengths)
    ]
    packed = pack_rows(rows, 20)
    found = []
    for pack in packed:
        assert len(pack["input_ids"]) == len(pack["labels"]) == sum(pack["seq_lengths"]) <= 20
        start = 0
        for length in pack["seq_lengths"]:
            found.append(
                (tuple(pack["input_ids"][start : start + length]),
                 tuple(pack["labels"][start : start + length]))
            )
            start += length
    assert sorted(found) == sorted((tuple(one["input_ids"]), tuple(one["labels"])) for one in rows)
    assert pack_rows(rows, 20) == packed


def test_packing_refuses_a_record_that_is_too_long():
    with pytest.raises(Exception, match="long"):
        pack_rows([row(3, 3), row(20, 5)], 20)


def test_a_packed_row_gives_the_loss_of_its_records():
    model, packed = tiny_model(), pack_rows(ROWS, 24)
    assert len(packed) < len(ROWS)
    with torch.no_grad():
        apart = [supervised_loss(model, flatten_rows([one])) for one in ROWS]
        together = [supervised_loss(model, flatten_rows([pack])) for pack in packed]
    assert sum(count for _, count in together) == sum(count for _, count in apart)
    assert sum(loss.item() for loss, _ in together) == pytest.approx(sum(loss.item() for loss, _ in apart), rel=1e-5)


# sharing prompts


def record_of(prompt, answer):
    return {"input_ids": [*prompt, *answer], "labels": [IGNORED] * len(prompt) + list(answer)}


def random_records(generator, count):
    "Records that begin alike in part: with common instructions, with common contexts, or not at all."
    stable_hash = lambda length: torch.randint(2, 60, (length,), generator=generator).tolist()  # noqa: E731
    instructions, contexts = [stable_hash(20),
                              stable_hash(18)], [stable_hash(17), stable_hash(30), stable_hash(5)]
    pick = lambda items: items[int(torch.randint(len(items), (1,), generator=generator))]  # noqa: E731
    return [record_of([*pick(instructions), *pick(contexts), *stable_hash(4)], stable_hash(6))
            for _ in range(count)]


def loss_and_gradient(model, batch):
    model.zero_grad()
    total, count = supervised_loss(model, batch)
    total.backward()
    return total.item(), count, {name: parameter.grad.clone()
                                 for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("seed", range(6))
def test_shared_prompts_give_the_loss_and_gradient_of_separate_records(seed):
    records = random_records(torch.Generator().manual_seed(seed), 7)
    model = tiny_model()
    model.set_attn_implementation(SEGMENTED)
    alone, together = loss_and_gradient(model, flatten_rows(records)), loss_and_gradient(model, flatten_shared(records))
    assert alone[1] == together[1] and together[0] == pytest.approx(alone[0], rel=1e-5)
    for name, gradient in alone[2].items():
        assert torch.allclose(gradient, together[2][name], atol=1e-5), name
    assert flatten_shared(records)["input_ids"].shape[1] < flatten_rows(records)["input_ids"].shape[1]


def test_no_supervised_token_and_no_last_token_of_a_prompt_is_shared():
    same = record_of(list(range(2, 40)), [50, 51])
    plan = share_prompts([same, same, record_of(list(range(2, 40)), [52, 51])])
    shared = [(start, stop) for _, start, stop, _ in plan][:1]
    assert shared == [(0, 37)]
    assert [(start, stop) for _, start, stop, _ in plan[1:]] == [(37, 40)] * 3


def test_each_path_of_the_plan_is_its_record():
    records = random_records(torch.Generator().manual_seed(9), 9)
    flat = flatten_shared(records)["input_ids"][0].tolist()
    leaves = [(before, start, stop) for start, stop, before in flatten_shared(records)["segments"]]
    parents = {place for before, _, _ in leaves for place in before}
    paths = [sum((flat[left:right] for left, right in before), []) + flat[start:stop]
             for before, start, stop in leaves if (start, stop) not in parents]
    assert sorted(paths) == sorted(record["input_ids"] for record in records)


def test_packed_rows_share_too():
    first, second = record_of(list(range(2, 30)), [40]), record_of(list(range(2, 30)), [41])
    row = {"input_ids": first["input_ids"] + second["input_ids"],
           "labels": first["labels"] + second["labels"], "seq_lengths": [29, 29]}
    assert flatten_shared([row])["input_ids"].tolist() == flatten_shared([first, second])["input_ids"].tolist()


# windows where prompts are shared


def windowed_model(window=5):
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=window,
            initializer_range=0.2,
        )
    ).eval()
    model.set_attn_implementation(SEGMENTED)
    return model


@pytest.mark.parametrize("window", [3, 25, 200])
def test_shared_prompts_under_a_sliding_window_give_loss_and_gradient_of_separate_records(window):
    records, model = random_records(torch.Generator().manual_seed(4), 6), windowed_model(window)
    alone, together = loss_and_gradient(model, flatten_rows(records)), loss_and_gradient(model, flatten_shared(records))
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    for name, gradient in alone[2].items():
        assert torch.allclose(gradient, together[2][name],
                              atol=1e-5 * max(1.0, gradient.abs().max().item())), name


def test_flash_attention_is_given_what_it_reads(monkeypatch):
    "The flat row reaches transformers' variable-length flash kernel as records that begin at cu_seq_lens; the kernel is played by a loop."
    from transformers import modeling_flash_attention_utils as flash
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls = []

    def kernel(query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
               causal=False, softmax_scale=None, **_):
        calls.append((cu_seqlens_q.tolist(), max_seqlen_q, causal))
        parts = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
        found, _ = segmented_attention(None, *parts, scaling=softmax_scale,
                                       cu_seq_lens_q=cu_seqlens_q)
        return found[0]

    def padded(*_, **__):
        raise AssertionError("the padded kernel was called")

    found = (padded, kernel, None, None, None), (flash._lazy_define_process_function(kernel), dict)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_, **__: found)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping,
                        "flash_as_kernel", flash_attention_forward)
    model = tiny_model()
    batch = flatten_rows(ROWS)
    with torch.no_grad():
        expected = supervised_loss(model, batch)[0].item()
        model.config._attn_implementation = "flash_as_kernel"
        found = supervised_loss(model, batch)[0].item()
    starts = batch["cu_seq_lens_q"].tolist()
    assert calls and all(call == (starts, batch["max_length_q"], True) for call in calls)
    assert found == pytest.approx(expected, rel=1e-5)


def test_masks_are_made_once_a_row_and_are_gone_with_it():
    segments = Segments([(0, 3, []), (3, 5, [(0, 3)])])
    query = torch.randn(1, 2, 5, 4)
    for _ in range(2):
        segmented_attention(None, query, query, query, segments=segments)
    assert list(segments.masks) == [(2, 5, None, torch.float32)] and Segments(segments).masks == {}


def test_what_spreads_batches_over_gpus_leaves_the_segments_what_they_are():
    from torch.distributed.utils import _to_kwargs  # of DDP and FSDP, where a device is named
    from torch.utils.data._utils.pin_memory import pin_memory
    from accelerate.utils import send_to_device

    batch = flatten_shared(random_records(torch.Generator().manual_seed(2), 4))
    _, (spread,) = _to_kwargs((), batch, torch.device("cpu"), False)
    for moved in (spread, send_to_device(batch, "cpu")):
        assert isinstance(moved["segments"], Segments) and list(moved["segments"]) == list(batch["segments"])
    if torch.cuda.is_available():
        assert isinstance(pin_memory(batch)["segments"], Segments)


def test_shares_count_room_and_supervised_tokens():
    packed = pack_rows([row(3, 3), row(4, 4)], 16)
    shares = row_shares(packed, 16)
    assert shares == {"rows": 1, "records": 2, "tokens": 14, "supervised_tokens": 7,
                      "filled": 14 / 16, "supervised_share": 0.5}
    assert row_shares([row(0, 4)], 4)["supervised_tokens"] == 3
