"""Directions added to the stream, and features taken out and put in, against plain hooks."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from conflictkit.errors import InvalidParameterError
from conflictkit.interventions import Handle, HeadScale
from conflictkit.interventions.directions import DirectionAdd, Directions
from conflictkit.interventions.edited import SpARE
from conflictkit.interventions.edited.spare import text_of
from conflictkit.interventions.features import FeatureEdit
from conflictkit.interventions.sae import SAE
from tests import saes
from tests.anatomy.families import model, tokens
from tests.golden import mechanistic, of_case
from tests.interventions.test_heads import census, logits
from tests.saes import WIDTH

LAYERS = {
    "llama": "model.layers", "gemma2": "model.layers", "olmo2": "model.layers",
    "gpt2": "transformer.h", "falcon-7b": "transformer.h", "falcon-40b": "transformer.h",
    "opt": "model.decoder.layers", "gpt-neox": "gpt_neox.layers", "mixtral": "model.layers",
}  # fmt: skip
"""Where each family has its layers."""

Change = Callable[[torch.Tensor], torch.Tensor]

VECTORS = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(5)) * 2
BOTH = Directions({0: VECTORS[0], 1: VECTORS[1]})
REMOVE, ADD = {3: 0.4, 8: 50.0, 11: -2.0}, {1: 3.0, 20: -1.0, 21: 0.2}


@pytest.fixture
def hf() -> Any:
    return copy.deepcopy(model("llama"))


@pytest.fixture
def sae(tmp_path: Path) -> SAE:
    """Behind the first layer, so that later tokens can attend to what it changes."""
    return SAE.load(saes.write(tmp_path / "sae", layer=0))


@contextmanager
def hooked(hf: Any, changes: dict[int, Change]) -> Iterator[None]:
    """Layer -> what is done to its output, by a plain hook."""

    def hook(change: Change) -> Any:
        return lambda _, __, out: (
            (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)
        )

    names = {one.config.model_type: LAYERS[name] for name in LAYERS for one in [model(name)]}
    layers = hf.get_submodule(names[hf.config.model_type])
    handles = [layers[at].register_forward_hook(hook(change)) for at, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def added(strength: float = 1.0) -> dict[int, Change]:
    return {at: lambda h, at=at: h + strength * VECTORS[at] for at in (0, 1)}


def steered(h: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    """The equation with all features, in float64."""
    held = {name: one.double() for name, one in saes.weights("jumprelu").items()}
    raw = (h.double() - held["b_dec"]) @ held["W_enc"] + held["b_enc"]
    z = raw.clamp(min=0) * (raw > held["threshold"])
    change = torch.zeros_like(z)
    for feature, target in REMOVE.items():
        change[..., feature] = -torch.minimum(torch.tensor(target).clamp(min=0), z[..., feature])
    for feature, target in ADD.items():
        change[..., feature] = (target - z[..., feature]).clamp(min=0)
    return (h + strength * change @ held["W_dec"]).to(h.dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_both_are_plain_hooks(name: str, sae: SAE) -> None:
    hf = model(name)
    plain, names = logits(hf), hf.state_dict().keys()
    with hooked(hf, added(0.7)):
        expected = logits(hf)
    with DirectionAdd(BOTH, 0.7).attach(hf) as handle:
        assert hf.state_dict().keys() == names
        torch.testing.assert_close(logits(hf), expected, atol=1e-4, rtol=1e-4)
    assert handle.edits == tokens().numel()  # of two layers, each position once
    with hooked(hf, {0: steered}):
        expected = logits(hf)
    assert not torch.allclose(expected, plain, atol=1e-2)
    with FeatureEdit(sae, REMOVE, ADD).attach(hf) as handle:
        torch.testing.assert_close(logits(hf), expected, atol=1e-4, rtol=1e-4)
        assert hf.state_dict().keys() == names
    assert handle.edits == tokens().numel()
    with DirectionAdd(BOTH, 0.0).attach(hf), FeatureEdit(sae, REMOVE, ADD, 0.0).attach(hf):
        assert torch.equal(logits(hf), plain)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in hf.modules())
    assert torch.equal(logits(hf), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("edit", ["direction", "feature"])
def test_rows_have_strengths_of_their_own(hf: Any, edit: str, dtype: torch.dtype, sae: SAE) -> None:
    strengths, ids, plain = [0.0, 1.5, -0.5], tokens(3), logits(hf.to(dtype), tokens(3))
    with hooked(hf, {0: lambda h: torch.stack([  # each row by itself
        steered(row, s) if edit == "feature" else (row + s * VECTORS[0].to(dtype)).to(dtype)
        for row, s in zip(h, strengths, strict=True)
    ])}):  # fmt: skip
        expected = logits(hf, ids)
    made: Any = {
        "direction": DirectionAdd(Directions({0: VECTORS[0]}), strengths),
        "feature": FeatureEdit(sae, REMOVE, ADD, torch.tensor(strengths)),
    }
    with made[edit].attach(hf) as handle:
        found = logits(hf, ids)
    close = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.25}[dtype]
    torch.testing.assert_close(found, expected, atol=close, rtol=close)
    assert handle.edits == 2 * ids.shape[1]
    assert torch.equal(found[0], plain[0])
    with pytest.raises(InvalidParameterError, match="3 rows met a batch"), made[edit].attach(hf):
        logits(hf, tokens(2))


@pytest.mark.parametrize("what", ["direction", "feature"])
def test_positions_mean_the_same_with_and_without_a_cache(hf: Any, what: str, sae: SAE) -> None:
    lengths, ids = [4, 7], tokens(2, 7)
    mask = torch.ones_like(ids)
    ids[0, :3], mask[0, :3] = 2, 0  # the first prompt is shorter, padding stands left
    change: Any = added(3.0)[0] if what == "direction" else lambda h: steered(h, 8.0)

    def expected(prompt: torch.Tensor, word: str, more: int) -> list[int]:
        said = prompt.tolist()
        end = len(said)
        begin, stop = {
            "prompt": (0, end), "last": (end - 1, end), "answer": (end, 999),
            "decoding": (end - 1, 999), "span": (2, 5),
        }[word]  # fmt: skip

        def there(h: torch.Tensor) -> torch.Tensor:
            return torch.cat([h[:, :begin], change(h[:, begin:stop]), h[:, stop:]], dim=1)

        with hooked(hf, {0: there}):
            for _ in range(more):
                out = logits(hf, torch.tensor([said]), use_cache=False)
                said.append(int(out[0, -1].argmax()))
        return said[end:]

    answers = set()
    for word in ("prompt", "last", "answer", "decoding", "span"):
        where: Any = (2, 5) if word == "span" else word
        edit: Any = DirectionAdd(Directions({0: VECTORS[0]}), 3.0, where)
        if what == "feature":
            edit = FeatureEdit(sae, REMOVE, ADD, 8.0, where)
        wanted = [expected(ids[row, 7 - lengths[row] :], word, 6) for row in range(2)]
        answers.add(str(wanted))
        for use_cache in (True, False):
            with edit.attach(hf, prompt_lengths=lengths) as handle:
                made = hf.generate(
                    ids, attention_mask=mask, max_new_tokens=6, do_sample=False,
                    use_cache=use_cache, eos_token_id=None, pad_token_id=2,
                )  # fmt: skip
            assert made[:, 7:].tolist() == wanted, (word, use_cache)
            if use_cache:
                counts = {"prompt": 11, "last": 2, "answer": 10, "decoding": 12, "span": 6}
                assert handle.edits == counts[word]
    assert len(answers) > 2  # it matters where


def test_beams_keep_the_strengths_of_their_prompts(hf: Any) -> None:
    ids, options = tokens(2, 6), {"max_new_tokens": 5, "num_beams": 3, "eos_token_id": None}
    several = [DirectionAdd(BOTH, 2.0), DirectionAdd(BOTH, -2.0)]
    alone = []
    for row, one in enumerate(several):
        with one.attach(hf):
            alone.append(hf.generate(ids[row : row + 1], pad_token_id=2, **options)[0].tolist())
    with DirectionAdd(BOTH, [2.0, -2.0]).attach(hf):
        assert hf.generate(ids, pad_token_id=2, **options).tolist() == alone


def test_several_at_once_act_in_order(hf: Any, sae: SAE) -> None:
    feature, direction = FeatureEdit(sae, REMOVE, ADD), DirectionAdd(Directions({0: VECTORS[0]}))
    orders: list[list[Change]] = [[steered, added()[0]], [added()[0], steered]]
    results = []
    for edits, (first, second) in zip(
        ([feature, direction], [direction, feature]), orders, strict=True
    ):
        with hooked(hf, {0: lambda h, f=first, s=second: s(f(h))}):
            results.append(logits(hf))
        with Handle(hf, edits):
            torch.testing.assert_close(logits(hf), results[-1], atol=1e-4, rtol=1e-4)
        with edits[0].attach(hf), edits[1].attach(hf):
            torch.testing.assert_close(logits(hf), results[-1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(*results, atol=1e-2)


def test_a_later_layers_codes_are_of_the_edited_stream(hf: Any, tmp_path: Path) -> None:
    later = SAE.load(saes.write(tmp_path / "later", layer=1))
    with hooked(hf, {0: added()[0], 1: steered}):
        expected = logits(hf)
    first = DirectionAdd(Directions({0: VECTORS[0]}))
    with Handle(hf, [FeatureEdit(later, REMOVE, ADD), first]):
        torch.testing.assert_close(logits(hf), expected, atol=1e-4, rtol=1e-4)


def test_detaching_in_any_order_leaves_nothing(hf: Any, sae: SAE) -> None:
    plain, before = logits(hf), census(hf)
    edits: list[Any] = [DirectionAdd(BOTH), FeatureEdit(sae, REMOVE, ADD), HeadScale({(0, 0): 0.0})]
    handles = [one.attach(hf) for one in edits]
    assert not torch.equal(logits(hf), plain)
    assert torch.equal(logits(copy.deepcopy(hf)), plain)
    for at in (1, 0, 0):
        handles.pop(at).detach()
    assert census(hf) == before
    assert torch.equal(logits(hf), plain)
    with pytest.raises(KeyboardInterrupt), edits[0].attach(hf):
        raise KeyboardInterrupt
    assert census(hf) == before
    with pytest.warns(UserWarning, match="changed nothing"), edits[1].attach(hf):
        pass


def test_threads_do_not_see_each_others(hf: Any, sae: SAE) -> None:
    with hooked(hf, added(2.0)):
        one = logits(hf)
    with hooked(hf, {0: steered}):
        two = logits(hf)
    plain, ready, failed = logits(hf), threading.Barrier(3), []

    def work(edit: Any, expected: torch.Tensor) -> None:
        try:
            with edit.attach(hf):
                ready.wait(30)
                for _ in range(5):
                    torch.testing.assert_close(logits(hf), expected, atol=1e-4, rtol=1e-4)
                ready.wait(30)
        except BaseException as error:
            failed.append(error)
            ready.abort()

    jobs = [(DirectionAdd(BOTH, 2.0), one), (FeatureEdit(sae, REMOVE, ADD), two)]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    ready.wait(30)  # both are attached
    assert torch.equal(logits(hf), plain)
    ready.wait(30)
    for thread in threads:
        thread.join()
    assert failed == []


def test_another_thread_may_detach(hf: Any) -> None:
    with hooked(hf, added(-0.5)):
        expected = logits(hf)
    with DirectionAdd(BOTH, -0.5).attach(hf):  # its hooks stay where they are
        other = DirectionAdd(BOTH).attach(hf)
        thread = threading.Thread(target=other.detach)
        thread.start()
        thread.join()
        torch.testing.assert_close(logits(hf), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("vectors", "why"),
    [({0: torch.ones(16)}, "directions of width 16: the model has width 32"),
     ({0: torch.ones(32), 2: torch.ones(32)}, "layer 2: the model has 2 layers")],
)  # fmt: skip
def test_directions_of_another_model_leave_nothing(hf: Any, vectors: Any, why: str) -> None:
    plain = logits(hf)
    with pytest.raises(InvalidParameterError, match=why):
        Handle(hf, [DirectionAdd(BOTH), DirectionAdd(Directions(vectors))])
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in hf.modules())
    assert torch.equal(logits(hf), plain)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "1", None, [], [1.0, "a"], True])
def test_strengths_and_targets_are_finite_numbers(bad: Any, sae: SAE) -> None:
    with pytest.raises(InvalidParameterError, match="DirectionAdd: expected a finite number"):
        DirectionAdd(BOTH, bad)
    with pytest.raises(InvalidParameterError, match="FeatureEdit: expected a finite number"):
        FeatureEdit(sae, add={0: 1.0}, strength=bad)
    with pytest.raises(InvalidParameterError, match="FeatureEdit: expected a finite number"):
        FeatureEdit(sae, add={0: bad})


def test_features_are_on_one_side(sae: SAE) -> None:
    with pytest.raises(InvalidParameterError, match="feature 3 cannot be both removed and added"):
        FeatureEdit(sae, {3: 1.0, 4: 1.0}, {3: 2.0})
    with pytest.raises(InvalidParameterError, match="FeatureEdit: no feature"):
        FeatureEdit(sae)


def test_what_is_taken_out_is_there_and_what_is_put_in_tops_up(hf: Any, sae: SAE) -> None:
    """Removing nothing, removing what is off, and adding less than there is leave the stream."""
    seen: list[torch.Tensor] = []
    ids = torch.tensor([[5]])
    with hooked(hf, {0: lambda h: (seen.append(h), h)[1]}):
        plain = logits(hf, ids)
    z = sae.code(seen[0])[0, 0]
    on = int(z.argmax())
    off = [at for at, one in enumerate(z.tolist()) if one == 0]
    edit = FeatureEdit(sae, dict.fromkeys(off, 9.0), {on: float(z[on]) / 2})
    with edit.attach(hf):
        assert torch.equal(logits(hf, ids), plain)
    with hooked(hf, {0: lambda h: h - z[on] * sae.decoder[on]}):
        expected = logits(hf, ids)
    with FeatureEdit(sae, {on: 1e6}).attach(hf):
        torch.testing.assert_close(logits(hf, ids), expected, atol=1e-4, rtol=1e-4)


def golden_sae(folder: Path, get: dict[str, Any]) -> Path:
    kind = "jumprelu" if str(get["kind"]) == "jumprelu" else "standard"
    names = ["b_enc", "W_dec", "b_dec", *(["threshold"] if kind == "jumprelu" else [])]
    tensors = {name: torch.from_numpy(get[name]) for name in names}
    tensors["W_enc"] = torch.from_numpy(get["W_enc"]).T.contiguous()
    centred = kind == "standard"
    return saes.write(folder, kind, tensors=tensors, layer=0, apply_b_dec_to_input=centred)


@pytest.mark.parametrize("case", range(6))
def test_the_edit_is_the_released_codes(case: int, shared: Path, tmp_path: Path) -> None:
    get = of_case(mechanistic(shared, "spare_edit.npz"), case)
    place, h = golden_sae(tmp_path / "sae", get), torch.from_numpy(get["h"])
    sae = SAE.load(place)
    torch.testing.assert_close(sae.code(h), torch.from_numpy(get["z"]), atol=2e-6, rtol=0)
    sides = [
        {int(at): float(get[f"w_{name}"][at]) for at in get[f"idx_{name}"]}
        for name in ("context", "parameter")
    ]
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=h.shape[1], intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    hf: Any = transformers.LlamaForCausalLM(config).eval()
    seen: list[Any] = []
    hf.model.layers[0].register_forward_hook(lambda *_: h[:, None])
    degree = float(get["edit_degree"])
    context, memory = (text_of({0: side}) for side in sides)
    scaled = [{at: degree * w for at, w in side.items()} for side in sides]
    for prefer, key, (add, remove) in (
        ("context", "h_use_context", scaled), ("memory", "h_use_parameter", scaled[::-1]),
    ):  # fmt: skip
        rule = SpARE(prefer, degree, "all", str(place), "", context, memory)
        for edit in (rule, FeatureEdit(sae, remove, add)):
            with edit.attach(hf):
                last = hf.model.layers[0].register_forward_hook(lambda _, __, out: seen.append(out))
                logits(hf, torch.tensor([[1]]))
                last.remove()
            expected = torch.from_numpy(get[key])
            torch.testing.assert_close(seen.pop()[:, 0], expected, atol=2e-6, rtol=0)
