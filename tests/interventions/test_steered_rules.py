"""Rules whose data come from a fit: what they change where, their texts, and having none."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conflictkit import methods
from conflictkit.errors import InvalidParameterError, SAEError
from conflictkit.interventions.directions import DirectionAdd, Directions
from conflictkit.interventions.edited import CAA, ITI, Prompts, RefusalRegion, RepE, SpARE
from conflictkit.interventions.edited import spare as module
from conflictkit.interventions.edited.spare import targets_of, text_of
from conflictkit.interventions.features import FeatureEdit
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.interventions.sae import SAE
from tests import saes
from tests.anatomy.families import model, tokens
from tests.interventions.test_heads import logits

NAMES = ("caa", "repe", "iti", "spare", "refusal-region")
V = torch.randn(32, generator=torch.Generator().manual_seed(2))
TEXT = str(Directions({1: V}))
PLACES = {"last_prompt": "last", "all": None, "generated": "decoding"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    module._rows.cache_clear()  # folders of tests may have one name
    return saes.write(tmp_path / "sae", layer=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_that_was_not_fitted_says_how_to(name: str) -> None:
    rule: Any = methods.build(name)
    assert not rule.is_settled
    with pytest.raises(
        InvalidParameterError,
        match=rf"^{name} was not fitted to this model\. Fit it \(conflictkit fit-steering --model "
        rf"MODEL --cases FILE --method {name} --out {name}\.json\) and pass the file "
        rf"\(--policy {name}\.json\)$",
    ):
        rule.checked()
    with pytest.raises(InvalidParameterError, match="was not fitted"):
        rule.attach(model("llama"))
    ranking: Any = HeadRanking.__new__(HeadRanking)
    assert not rule.fits(ranking)  # no ranking of heads tells it


def test_a_rule_takes_the_data_of_a_fitted_one() -> None:
    mine, fitted = CAA("memory", 4.0, "all"), CAA("context", 1.0, directions=TEXT)
    assert mine.taking(fitted) == CAA("memory", 4.0, "all", TEXT)
    assert mine.taking(fitted).checked() == mine.taking(fitted)
    given = SpARE(sae="x", digest="0" * 64, context="3.1:2", memory="3.2:1")
    assert SpARE("memory", 3.0, "all").taking(given) == replace(
        given, prefer="memory", degree=3.0, positions="all"
    )


@pytest.mark.parametrize("rule", [CAA, RepE, ITI])
@pytest.mark.parametrize("where", PLACES)
def test_directions_go_with_the_side(rule: Any, where: str) -> None:
    for prefer, sign in (("context", 1), ("memory", -1)):
        made = rule(prefer, 3.0, where, TEXT).edits(Prompts([5]), 0.5)
        assert list(made) == ["edited"]
        (edit,) = made["edited"]
        assert isinstance(edit, DirectionAdd)
        assert edit.strength == (sign * 1.5,)
        assert edit.positions == PLACES[where]
        assert edit.directions == Directions({1: V})
    assert (rule().prefer, rule().alpha, rule().positions) == ("context", 1.0, "generated")


def test_a_refusal_region_is_left_behind() -> None:
    rule = RefusalRegion(directions=TEXT)
    (edit,) = rule.edits(Prompts(), 0.5)["edited"]
    assert isinstance(edit, DirectionAdd)
    assert edit.strength == (-0.05,)  # everywhere, a tenth of the mean difference
    assert edit.positions is None
    (edit,) = replace(rule, positions="last_prompt").edits(Prompts([4]))["edited"]
    assert edit.positions == "last"


@pytest.mark.parametrize("rule", [CAA(directions=TEXT), RefusalRegion(directions=TEXT)])
def test_a_rule_attached_is_a_plain_hook(rule: Any) -> None:
    hf = copy.deepcopy(model("llama"))
    amount = 1.0 if rule.name == "caa" else -0.1
    begin = 8 if rule.name == "caa" else 0

    def add(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, begin:] += amount * V
        return out

    hook = hf.model.layers[1].register_forward_hook(add)
    expected = logits(hf)
    hook.remove()
    with rule.attach(hf, prompt_lengths=[9, 9]):
        torch.testing.assert_close(logits(hf), expected)


@pytest.mark.parametrize("rule", [CAA, RepE, ITI, RefusalRegion])
@pytest.mark.parametrize(
    "bad",
    [{"directions": "3"}, {"directions": "3:x"}, {"directions": TEXT + "+1:" + TEXT[2:]},
     {"alpha": float("nan")}, {"alpha": 1001.0}, {"positions": "answer"}, {"positions": "last"}],
)  # fmt: skip
def test_values_are_checked_when_made(rule: Any, bad: Any) -> None:
    with pytest.raises(InvalidParameterError):
        rule(**bad)


@pytest.mark.parametrize(
    "targets",
    [{}, {0: {0: 0.0}}, {3: {17: 2.5, 4: -1.25e-7}, 1: {0: 1234567.0, 99: 1.5e8}},
     {12: {131071: 0.1, 5: 3e-20}}],
)  # fmt: skip
def test_texts_say_what_was_said(targets: Any) -> None:
    text = text_of(targets)
    found = targets_of(text)
    assert list(found) == list(targets)
    for layer, side in targets.items():
        assert list(found[layer]) == list(side)
        assert found[layer] == pytest.approx(side, rel=1e-6)
    assert text_of(found) == text  # from then on exactly


def test_texts_may_be_written_by_hand() -> None:
    assert targets_of("3.17:2+3.4:.5+1.0:1e3") == {3: {17: 2.0, 4: 0.5}, 1: {0: 1000.0}}
    assert targets_of("") == {}


@pytest.mark.parametrize(
    "text",
    ["3", "3.1", "3.1:", "3.1:x", "3.1:nan", "3.1:inf", "3.1:1e9", "3.1:--1", "3.1:1e", "-1.1:2",
     "3.-1:2", "3.1:2+", "+3.1:2", "3.1:2+3.1:4", "3.1:2 3.2:2", "3.1:2,3.2:2", "12345.0:1",
     "3.12345678:1", "3.1:" + "1" * 26],
)  # fmt: skip
def test_texts_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="spare: cannot read the feature .*LAYER.FEAT"):
        targets_of(text)
    for side in ("context", "memory"):
        with pytest.raises(InvalidParameterError, match="spare: cannot read the feature"):
            replace(SpARE(), **{side: text})  # type: ignore[arg-type]


def test_features_go_with_the_side(folder: Path) -> None:
    rule = SpARE(sae=str(folder), degree=3.0, context="0.7:2+0.1:1", memory="0.5:0.5+0.6:4")
    for prefer, add, remove in (
        ("context", {0: 6.0, 1: 3.0}, {2: 1.5, 3: 12.0}),
        ("memory", {2: 1.5, 3: 12.0}, {0: 6.0, 1: 3.0}),
    ):  # places among the rows that are kept: 7, 1, 5, 6
        (edit,) = replace(rule, prefer=prefer).edits(Prompts([3]), 0.25)["edited"]
        assert isinstance(edit, FeatureEdit)
        assert (edit.add, edit.remove, edit.strength) == (add, remove, (0.25,))
        assert edit.positions == "last"
        assert torch.equal(edit.sae.decoder, SAE.load(folder).decoder[[7, 1, 5, 6]])
        assert edit.sae.bytes == 2 * 4 * 32 * 4  # and no others
    assert [one.layer for one in rule.rows().values()] == [0]


def test_one_side_will_do_and_a_feature_may_be_on_both(folder: Path) -> None:
    hf = copy.deepcopy(model("llama"))
    sae, lengths = SAE.load(folder), [9, 9]
    alone = SpARE(sae=str(folder), context="0.7:2")
    assert alone.is_settled
    with FeatureEdit(sae, add={7: 4.0}, positions="last").attach(hf, prompt_lengths=lengths):
        expected = logits(hf)
    with alone.attach(hf, prompt_lengths=lengths):
        torch.testing.assert_close(logits(hf), expected)
    both = replace(alone, memory="0.7:0")
    with both.attach(hf, prompt_lengths=lengths):
        torch.testing.assert_close(logits(hf), expected)  # nothing of it is taken out


def test_layers_have_their_autoencoders(folder: Path, tmp_path: Path) -> None:
    other = saes.write(tmp_path / "other" / "second", layer=1, seed=3)
    rule = SpARE(sae=f"{folder}+{other.parent}", context="1.4:1+0.2:1", memory="1.2:1")
    rows = rule.rows()
    assert list(rows) == [0, 1]
    assert torch.equal(rows[1].decoder, SAE.load(other).decoder[[4, 2]])
    edits: Any = rule.edits(Prompts([4]))["edited"]
    assert [edit.sae.layer for edit in edits] == [0, 1]
    digest = module.digest_of(rows)
    assert replace(rule, digest=digest).rows().keys() == rows.keys()
    swapped = replace(rule, context="1.2:1+0.2:1", memory="1.4:1", digest=digest)
    with pytest.raises(SAEError, match=rf"in another autoencoder than .*\({digest[:12]}, not "):
        swapped.rows()
    rule.check_model("org/tiny", "0" * 64)
    with pytest.raises(SAEError, match="belongs to 'tiny', not to 'gpt2'"):
        rule.check_model("gpt2", "0" * 64)
    hf = copy.deepcopy(model("llama"))
    with replace(rule, positions="all").attach(hf) as handle:
        logits(hf)
    assert handle.edits == 2 * tokens().numel()  # an edit for each layer
