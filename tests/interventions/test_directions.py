"""Directions as data, and the tap that looks at what layers leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import conflictkit as ck
from conflictkit.errors import InvalidParameterError, UnsupportedError
from conflictkit.interventions import HeadScale
from conflictkit.interventions.directions import DirectionAdd, Directions
from conflictkit.interventions.taps import LayerTap
from conflictkit.mechanics.capture import capture
from conflictkit.streams import Stream
from tests.anatomy import families
from tests.interventions.test_heads import logits
from tests.tiny import byte_tokenizer

ONE = Directions({3: torch.tensor([1.0, 0.1, -3.0]), 0: torch.tensor([0.5, 0.0, 2.0])})
TWO = Directions({3: torch.tensor([0.0, 1.0, 1.0]), 7: torch.tensor([4.0, 5.0, 6.0])})


def told(directions: Directions) -> dict[int, list[float]]:
    return {layer: vector.tolist() for layer, vector in directions.vectors.items()}


def test_directions_are_added_layer_by_layer() -> None:
    assert told(ONE + TWO) == {0: [0.5, 0, 2], 3: [1, pytest.approx(1.1), -2], 7: [4, 5, 6]}
    assert told(ONE - TWO) == {0: [0.5, 0, 2], 3: [1, pytest.approx(-0.9), -4], 7: [-4, -5, -6]}
    assert told(TWO * 0.5) == told(0.5 * TWO) == {3: [0, 0.5, 0.5], 7: [2, 2.5, 3]}
    assert told(-TWO) == {3: [0, -1, -1], 7: [-4, -5, -6]}
    assert list(ONE.vectors) == [0, 3]
    assert ONE.norms == pytest.approx({0: 4.25**0.5, 3: 10.01**0.5})
    assert (ONE + TWO == TWO + ONE, ONE == TWO, ONE == "else") == (True, False, False)
    assert len({ONE + TWO, TWO + ONE, ONE, Directions(dict(ONE.vectors))}) == 2
    assert ONE.width == 3


def test_text_gives_back_every_bit() -> None:
    vectors = {
        at: torch.randn(192, generator=torch.Generator().manual_seed(at)) * 10.0**at
        for at in (9, 0, 31)
    }
    read = Directions.read(str(Directions(vectors)))
    assert list(read.vectors) == [0, 9, 31]
    assert all(torch.equal(read.vectors[at], vectors[at]) for at in vectors)
    halves = Directions({1: vectors[0].bfloat16(), 0: vectors[0].double()})
    assert {one.dtype for one in halves.vectors.values()} == {torch.float32}
    assert Directions.read(str(halves)) == halves


def test_directions_are_not_those_that_were_passed() -> None:
    vector = torch.ones(3, requires_grad=True)
    made = Directions({0: vector})
    with torch.no_grad():
        vector.add_(1)
    assert told(made) == {0: [1, 1, 1]}
    assert not made.vectors[0].requires_grad


@pytest.mark.parametrize(
    ("vectors", "why"),
    [({}, "one layer at least"), ({0: torch.ones(2), 1: torch.ones(3)}, "and one width"),
     ({-1: torch.ones(2)}, "layer from 0"), ({"0": torch.ones(2)}, "layer from 0"),
     ({True: torch.ones(2)}, "layer from 0"), ({0.0: torch.ones(2)}, "layer from 0"),
     ({0: torch.ones(2, 2)}, "a vector"), ({0: torch.ones(())}, "a vector"),
     ({0: torch.ones(0)}, "a vector"), ({4: torch.tensor([1, float("nan")])}, "layer 4 is not"),
     ({4: torch.tensor([1, float("-inf")])}, "layer 4 is not finite"),
     ({0: torch.ones(2), "1": torch.ones(2)}, "layer from 0")],
)  # fmt: skip
def test_what_is_no_direction(vectors: Any, why: str) -> None:
    with pytest.raises(InvalidParameterError, match=why):
        Directions(vectors)


@pytest.mark.parametrize(
    "text",
    ["", "3", "3:", ":AAAA", "x:AACAPw", "-1:AACAPw", "3:AAC", "3:A", "3:????", "3:AACAPw+",
     "3:AACAPw+3:AACAPw", "12345:AACAPw", "0:AADAfw", "0:AACA_w", "3 :AACAPw"],
)  # fmt: skip
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="cannot read the direction"):
        Directions.read(text)
    assert told(Directions.read("3:AACAPw")) == {3: [1]}


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "2", None, torch.ones(3)])
def test_directions_are_multiplied_by_numbers(factor: Any) -> None:
    with pytest.raises(InvalidParameterError, match="multiplied by a number"):
        _ = ONE * factor
    with pytest.raises(InvalidParameterError, match="directions of widths 3 and 2"):
        _ = ONE + Directions({0: torch.ones(2)})


def wide(name: str) -> Any:
    """A family's model with room for every byte."""
    config = families.CONFIGS[name]()
    config.vocab_size = 300
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "falcon-7b", "gpt-neox"])
def test_a_tap_records_what_capture_captures(name: str, tmp_path: Path) -> None:
    hf = wide(name)
    toolkit = ck.load(hf, tokenizer=byte_tokenizer())
    cases = ck.atlas.guards("test", "recall")[:4]
    # OPT's MLPs see the positions of all rows in one line.
    kinds = ("residual", "attention", "mlp")[: 2 if name == "opt" else 3]
    kept = capture(toolkit, cases, tmp_path / "acts", kinds=kinds, stream="memory")
    prompts = [toolkit.prompts(case.question, None)["memory"].ids for case in cases]
    order = sorted(range(4), key=lambda row: len(prompts[row]))  # as capture reads them
    assert len({len(one) for one in prompts}) > 1
    plain = logits(hf, torch.tensor([prompts[0]]))
    tap = LayerTap([(kind, layer) for kind in kinds for layer in (0, 1)])
    with tap.attach(hf), torch.no_grad():
        Stream(hf, [prompts[row] for row in order], pad_id=0, use_cache=False).prefill()
    assert set(tap.values) == {f"{kind}.{layer}" for kind in kinds for layer in (0, 1)}
    for kind in kinds:
        for layer in (0, 1):
            expected = kept.values(kind, layer)[order]
            assert torch.equal(tap.values[f"{kind}.{layer}"][:, -1], expected)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in hf.modules())
    assert torch.equal(logits(hf, torch.tensor([prompts[0]])), plain)
    left = {name: value.clone() for name, value in tap.values.items()}
    logits(hf, torch.tensor([prompts[1]]))
    assert all(torch.equal(tap.values[name], left[name]) for name in left)  # it looks no more
    if name == "opt":
        flat = LayerTap([("mlp", 0)])
        with pytest.raises(UnsupportedError, match="of the residual stream"), flat.attach(hf):
            logits(hf, torch.tensor([prompts[1]]))


def test_a_tap_changes_nothing_and_sees_what_others_changed() -> None:
    hf = families.model("llama")
    vector = torch.full((32,), 2.0)
    plain, tap = logits(hf), LayerTap([("residual", 1), ("residual", 1)])
    with tap.attach(hf):  # no warning though nothing was read: it is there to look
        pass
    with tap.attach(hf):
        assert torch.equal(logits(hf), plain)
    clean = tap.values["residual.1"]
    with DirectionAdd(Directions({1: vector})).attach(hf), tap.attach(hf):
        logits(hf)
    torch.testing.assert_close(tap.values["residual.1"], clean + vector)
    with HeadScale({(0, 0): 0.0}).attach(hf), tap.attach(hf):
        logits(hf)
    assert not torch.equal(tap.values["residual.1"], clean)
    assert list(tap.values) == ["residual.1"]


@pytest.mark.parametrize("place", [("residual", 2), ("mlp", 7), ("attention", -1), ("head", 0)])
def test_a_tap_of_what_is_not_there_leaves_nothing(place: Any) -> None:
    hf = families.model("llama")
    with pytest.raises(InvalidParameterError, match=f"reads {place[0]} of layer {place[1]}"):
        LayerTap([("residual", 0), place]).attach(hf)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in hf.modules())
