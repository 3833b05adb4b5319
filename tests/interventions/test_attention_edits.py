"""Attention steered, against attention written out with the bias or the query put in by hand."""

from __future__ import annotations

import copy
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

import conflictkit as ck
from conflictkit.interventions import (
    AttentionBias,
    FocusDirections,
    MaskedHeads,
    activations,
)
from tests.anatomy import families
from tests.golden import mechanistic, of_case, tiny_llama
from tests.interventions.attention_by_definition import (
    KERNELS,
    by_definition,
    kernel,
    logits,
    padded,
)

HEADS = 4
LAYERS = 2
CLOSE: Any = {"atol": 2e-4, "rtol": 1e-4}


def bias_table(
    rows: dict[str, Tensor],
    spans: list[list[tuple[int, int]]],
    alphas: list[float],
    heads: list[list[tuple[int, int]] | None],
    lengths: list[int],
    *,
    inside: bool = False,
    released: bool = False,
) -> list[Tensor]:
    """`[batch, heads, 1, keys]` for each layer, entry by entry."""
    batch, width = rows["input_ids"].shape
    table = [torch.zeros(batch, HEADS, 1, width, dtype=torch.double) for _ in range(LAYERS)]
    for row in range(batch):
        padding = width - int(rows["attention_mask"][row].sum())
        for column in range(padding, width):
            place = column - padding
            hits = sum(start <= place < stop for start, stop in spans[row])
            if released:
                prompt = place < lengths[row]
                times = hits - prompt if inside else prompt * (len(spans[row]) - hits)
            else:
                times = int(hits > 0) if inside else int(place < lengths[row] and not hits)
            for layer in range(LAYERS):
                mine = heads[row]
                deep = layer + 1 if released and mine is None else 1
                for head in range(HEADS):
                    if mine is None or (layer, head) in mine:
                        table[layer][row, head, 0, column] = times * deep * math.log(alphas[row])
    return table


@pytest.mark.parametrize(("name", "attention"), KERNELS)
@pytest.mark.parametrize("variant", ["mended", "released"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_bias_is_log_alpha_on_the_logits(
    name: str, attention: str, variant: str, inside: bool
) -> None:
    """Rows of their own spans, heads, strengths and padding; prompts that end within the rows."""
    model, rows = families.model(name), padded(11, 8)
    spans, alphas, lengths = [[(1, 3), (2, 5)], [(0, 2), (4, 5)]], [0.3, 0.02], [8, 5]
    heads: list[Any] = [None, [(0, 3), (1, 0), (1, 2)]]
    table = bias_table(
        rows, spans, alphas, heads, lengths, inside=inside, released=variant == "released"
    )
    with by_definition(model):
        plain = logits(model, rows)
    with by_definition(model, table):
        expected = logits(model, rows)
    edit = AttentionBias(spans, alphas, heads, inside=inside, variant=variant)
    with kernel(model, attention), edit.attach(model, prompt_lengths=lengths) as handle:
        steered = logits(model, rows)
    assert all((expected - plain)[row].abs().max() > 0.02 for row in (0, 1))
    torch.testing.assert_close(steered, expected, **CLOSE)
    assert handle.edits == 22


@pytest.mark.parametrize(("name", "attention"), KERNELS)
def test_a_direction_is_added_to_the_queries_behind_their_rotation(
    name: str, attention: str
) -> None:
    model, rows = families.model(name), padded(9, 6)
    width = ck.anatomy.find(model).head_dim
    directions = {(0, 1): torch.randn(width), (1, 3): torch.randn(width)}
    strengths = [2.0, -3.0]

    def moved(layer: int, query: Tensor) -> Tensor:
        query = query.clone()
        for (where, head), direction in directions.items():
            if where == layer:
                for row, strength in enumerate(strengths):
                    query[row, head] += strength * direction.double()
        return query

    with by_definition(model, query=moved):
        expected = logits(model, rows)
    with kernel(model, attention):
        plain = logits(model, rows)
        with FocusDirections(directions, strengths).attach(model):
            focused = logits(model, rows)
    assert all((expected - plain)[row].abs().max() > 0.02 for row in (0, 1))
    torch.testing.assert_close(focused, expected, **CLOSE)


@pytest.mark.parametrize(("name", "attention"), KERNELS)
def test_a_masked_head_has_no_query_from_the_last_prompt_token_on(
    name: str, attention: str
) -> None:
    model, rows, lengths = families.model(name), padded(9, 6), [5, 4]
    first = [9 - 9 + 5 - 1, 9 - 6 + 4 - 1]

    def blinded(layer: int, query: Tensor) -> Tensor:
        query = query.clone()
        for row, heads in enumerate(([0, 2], [3]) if layer else ([1], [])):
            query[row, heads, first[row] :] = 0
        return query

    with by_definition(model, query=blinded):
        expected = logits(model, rows)
    heads = [[(0, 1), (1, 0), (1, 2)], [(1, 3)]]
    with kernel(model, attention):
        plain = logits(model, rows)
        edit = MaskedHeads(heads, positions="decoding")
        with edit.attach(model, prompt_lengths=lengths):
            masked = logits(model, rows)
    torch.testing.assert_close(masked, expected, **CLOSE)
    for row in (0, 1):
        assert torch.equal(masked[row, : first[row]], plain[row, : first[row]])
        assert (masked - plain)[row, first[row] :].abs().max() > 0.02


@pytest.mark.parametrize("name", ["llama", "gpt-neox"])
def test_a_masked_head_attends_evenly_to_what_it_may_see(name: str) -> None:
    # transformers leaves hooks in a model that was asked for probabilities.
    model = copy.deepcopy(families.model(name))
    with kernel(model, "eager"), MaskedHeads([(1, 2)]).attach(model), torch.no_grad():
        seen = model(families.tokens(), output_attentions=True).attentions[1]
    even = torch.ones(9, 9).tril() / torch.arange(1, 10)[:, None]
    torch.testing.assert_close(seen[:, 2], even.expand(2, 9, 9))
    assert (seen[:, 1] - even).abs().max() > 0.01


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", range(4))
def test_the_released_steering_gives_the_released_numbers(
    case: int, attention: str, shared: Path
) -> None:
    """All heads (compounding over layers), chosen heads, two spans, `include`; no mask given."""
    golden = of_case(mechanistic(shared, "pasta_attention_steering.npz"), case)
    model = tiny_llama(golden)
    model.set_attn_implementation(attention)
    chosen = json.loads(str(golden["head_config"]))
    everywhere = None in chosen.values()
    heads = [(int(layer), head) for layer, some in chosen.items() for head in some or ()]
    ids = torch.from_numpy(golden["ids"])
    spans = [(int(start), int(stop)) for start, stop in golden["ranges"]]
    for variant, name in (("released", "logits_official"), ("mended", "logits_independent")):
        edit = AttentionBias(
            spans,
            float(golden["alpha"]),
            None if everywhere else heads,
            inside=str(golden["mode"]) == "include",
            variant=variant,
        )
        with edit.attach(model, prompt_lengths=[ids.shape[1]]), torch.no_grad():
            found = model(ids).logits.numpy()
        assert np.abs(found - golden[name]).max() <= 2e-5
        assert np.abs(found - golden["logits_clean"]).max() > 0.01


def edits(strength: float = 1.0) -> list[Any]:
    """One edit of every kind for head width 8; 0 turns the first two off."""
    torch.manual_seed(4)
    return [
        AttentionBias([(1, 3)], math.exp(-3 * strength)),
        FocusDirections({(0, 2): 3 * torch.randn(8), (1, 1): 3 * torch.randn(8)}, strength),
        MaskedHeads([(0, 1), (1, 0)], positions="decoding"),
    ]


@pytest.mark.parametrize(("name", "attention"), KERNELS)
def test_off_is_bit_identical(name: str, attention: str) -> None:
    """At strength 0, attached to another context, and after; with padding and without a mask."""
    model = families.model(name)
    width = ck.anatomy.find(model).head_dim
    keys = list(model.state_dict())
    for rows in (padded(7, 5), {"input_ids": families.tokens()}):
        with kernel(model, attention):
            plain = logits(model, rows)
            for edit in (
                AttentionBias([(1, 3)], 1.0),
                AttentionBias([(1, 3)], 1.0, inside=True, variant="released"),
                FocusDirections({(0, 2): torch.randn(width)}, 0.0),
            ):
                with edit.attach(model, prompt_lengths=[7, 5]) as handle:
                    assert torch.equal(logits(model, rows), plain)
                    assert handle.edits == 0
                    assert list(model.state_dict()) == keys
            for edit in (AttentionBias([(1, 3)], 0.1), MaskedHeads([(0, 0)])):
                attached = activations.Edits(model, [edit], prompt_lengths=[7, 5])
                assert torch.equal(logits(model, rows), plain)
                with attached.at_work():
                    assert not torch.equal(logits(model, rows), plain)
                assert torch.equal(logits(model, rows), plain)
                del attached
            assert torch.equal(logits(model, rows), plain)
            assert model.config._attn_implementation == attention


def in_steps(model: Any) -> Tensor:
    """`[3, 9, vocab]`: eight tokens at once and one on the cache (another kernel under sdpa)."""
    ids, kept = families.tokens(3), hf.DynamicCache()
    with torch.no_grad():
        parts = [model(part, past_key_values=kept).logits for part in (ids[:, :8], ids[:, 8:])]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("edit", "idle"),
    [
        (AttentionBias([(1, 3)], [1.0, 0.1, 0.1]), 0),
        (AttentionBias([[(1, 3)], [], [(2, 4)]], 0.1), 1),
        (AttentionBias([(1, 3)], 0.1, [[(0, 1)], None, []]), 2),
        (FocusDirections({(1, 1): torch.full((8,), 9.0)}, torch.tensor([1.0, 2.0, 0.0])), 2),
        (MaskedHeads([[(0, 1)], (), [(1, 1)]]), 1),
    ],
)
def test_a_row_without_an_edit_keeps_its_bits(edit: Any, idle: int, attention: str) -> None:
    model = families.model("llama")
    with kernel(model, attention):
        plain = in_steps(model)
        with edit.attach(model, prompt_lengths=[9, 9, 9]) as handle:
            found = in_steps(model)
    assert handle.edits == 18
    assert [torch.equal(found[row], plain[row]) for row in range(3)] == [
        row == idle for row in range(3)
    ]


def test_positions_without_an_edit_keep_their_bits() -> None:
    model = families.model("llama")
    plain = in_steps(model)
    edit = AttentionBias([(1, 3)], 0.1, positions="answer")
    with edit.attach(model, prompt_lengths=[6, 5, 9]) as handle:
        found = in_steps(model)
    assert handle.edits == 3 + 4
    assert torch.equal(found[2], plain[2])
    for row, start in enumerate((6, 5)):
        assert torch.equal(found[row, :start], plain[row, :start])
        assert not torch.equal(found[row, start], plain[row, start])


def test_the_future_stays_hidden() -> None:
    """The trap of a bias on sdpa's fast road, which has no mask at all."""
    model, ids = families.model("llama"), families.tokens()
    other = ids.clone()
    other[:, -1] = 5
    for edit in edits():
        with edit.attach(model, prompt_lengths=[9, 9]):
            one, two = logits(model, {"input_ids": ids}), logits(model, {"input_ids": other})
        assert torch.equal(one[:, :-1], two[:, :-1])


@cache
def windowed() -> Any:
    """One layer with a window of 6, one without: caches of two lengths in one pass."""
    torch.manual_seed(3)
    config = hf.Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, eos_token_id=1,
        sliding_window=6, use_sliding_window=True,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return hf.Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gpt-neox", "windowed"])
@pytest.mark.parametrize("kept", ["dynamic", "static", None])
@pytest.mark.parametrize("kind", range(3))
def test_generate_is_rereading_everything(name: str, kept: str | None, kind: int) -> None:
    """With a cache (a sliding window's keeps the last keys only), or with none; padded rows."""
    model, lengths = windowed() if name == "windowed" else families.model(name), [9, 6]
    rows = padded(*lengths)
    options: dict[str, Any] = {"use_cache": False}
    if kept is not None:
        options = {"cache_implementation": kept}
    with edits()[kind].attach(model, prompt_lengths=lengths):
        written = generate(model, rows, output_logits=True, return_dict_in_generate=True, **options)
        ids = written.sequences
        mask = torch.cat([rows["attention_mask"], torch.ones(2, 6, dtype=torch.long)], 1)
        whole = {"input_ids": ids, "attention_mask": mask}
        again = logits(model, whole | {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)})
    torch.testing.assert_close(torch.stack(written.logits, 1), again[:, 8:-1], **CLOSE)


def generate(model: Any, rows: dict[str, Tensor], **options: Any) -> Any:
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 2} | options
    given = {k: v for k, v in rows.items() if k != "position_ids"}
    return model.generate(**given, do_sample=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("kind", range(3))
def test_a_batch_is_its_rows(name: str, kind: int) -> None:
    model, lengths = families.model(name), [9, 6, 7]
    batch = padded(*lengths)
    edit = edits()[kind]
    with edit.attach(model, prompt_lengths=lengths):
        together = generate(model, batch)[:, 9:]
        beams = generate(model, batch, num_beams=3, num_return_sequences=2)[:, 9:]
    assert not torch.equal(together, generate(model, batch)[:, 9:])
    for row, length in enumerate(lengths):
        alone = {k: v[row : row + 1, -length:] for k, v in batch.items()}
        with edit.attach(model, prompt_lengths=[length]):
            assert torch.equal(generate(model, alone)[0, length:], together[row])
            found = generate(model, alone, num_beams=3, num_return_sequences=2)[:, length:]
        assert torch.equal(found, beams[2 * row : 2 * row + 2])


def test_beams_have_the_scores_of_their_tokens() -> None:
    model, lengths = families.model("llama"), [9, 6]
    rows = padded(*lengths)
    edit = AttentionBias([[(1, 3)], [(2, 5)]], [0.02, 0.1])
    with edit.attach(model, prompt_lengths=lengths):
        found = generate(
            model, rows, num_beams=3, num_return_sequences=3, length_penalty=0.0,
            output_scores=True, return_dict_in_generate=True, min_new_tokens=0, eos_token_id=63,
        )  # fmt: skip
    for beam, ids in enumerate(found.sequences):
        length = lengths[beam // 3]
        ids = ids[9 - length :][None]
        again = AttentionBias([[(1, 3)], [(2, 5)]][beam // 3], [0.02, 0.1][beam // 3])
        with again.attach(model, prompt_lengths=[length]):
            scores = logits(model, {"input_ids": ids}).log_softmax(-1)[0, length - 1 : -1]
        total = scores.gather(-1, ids[0, length:, None]).sum()
        torch.testing.assert_close(found.sequences_scores[beam], total, **CLOSE)
