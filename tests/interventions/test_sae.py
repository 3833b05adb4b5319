"""Autoencoders as SAELens saves them: the same numbers, and models that they do not belong to."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conflictkit import anatomy
from conflictkit.errors import InvalidParameterError, SAEError, UnsupportedError
from conflictkit.interventions.features import FeatureEdit, Reconstruction
from conflictkit.interventions.sae import KINDS, SAE, by_layer
from tests import saes
from tests.anatomy.families import model
from tests.interventions.test_heads import logits
from tests.saes import FEATURES, WIDTH, K, write

NORMS = ("none", "constant_norm_rescale", "layer_norm")
MINE, OTHER = "a" * 64, "b" * 64


def stream(rows: int = 50) -> torch.Tensor:
    """`[rows, 3, width]`, not centred."""
    return torch.randn(rows, 3, WIDTH, generator=torch.Generator().manual_seed(7)) * 1.5 + 0.3


def by_definition(
    kind: str, tensors: dict[str, torch.Tensor], values: torch.Tensor, norm: str = "none",
    centred: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Codes before TopK, codes, and the stream that they stand for, in float64."""
    held = {name: one.double() for name, one in tensors.items()}
    h, scale, centre = values.double(), torch.tensor(1.0), torch.tensor(0.0)
    if norm == "constant_norm_rescale":
        scale = h.square().mean(-1, keepdim=True).sqrt()
    if norm == "layer_norm":
        centre = h.mean(-1, keepdim=True)
        scale = ((h - centre).square().sum(-1, keepdim=True) / (WIDTH - 1)).sqrt()
    inside = (h - centre) / (scale + 1e-5 * (norm == "layer_norm"))
    raw = (inside - held["b_dec"] * centred) @ held["W_enc"]
    if kind == "gated":
        every = (raw * held["r_mag"].exp() + held["b_mag"]).clamp(min=0)
        every[raw + held["b_gate"] <= 0] = 0
    else:
        raw = raw + held["b_enc"]
        least = held.get("threshold", held.get("topk_threshold", torch.zeros(())))
        every = raw.clamp(min=0).masked_fill(raw <= least, 0)
    code = every.clone()
    if kind == "topk":
        code[every < every.sort(-1, descending=True).values[..., K - 1, None]] = 0
    return every, code, (code @ held["W_dec"] + held["b_dec"]) * scale + centre


def near(found: torch.Tensor, expected: torch.Tensor, close: float = 1e-5) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=close, rtol=close)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_its_definition(kind: str, norm: str, tmp_path: Path) -> None:
    tensors = saes.weights(kind)
    sae = SAE.load(write(tmp_path / "one", kind, normalize_activations=norm))
    every, code, decoded = by_definition(kind, tensors, stream(), norm)
    assert 0.05 < float((every > 0).double().mean()) < 0.7  # some are off, some are on
    near(sae.code(stream()), every)
    near(sae.encode(stream()), code)
    near(sae.decode(sae.encode(stream()), stream()), decoded)
    assert (kind == "topk") == (not torch.equal(every, code))


def test_the_decoders_bias_need_not_be_taken_from_the_input(tmp_path: Path) -> None:
    tensors = saes.weights("jumprelu")
    sae = SAE.load(write(tmp_path / "one", apply_b_dec_to_input=False))
    every, _, decoded = by_definition("jumprelu", tensors, stream(), centred=False)
    near(sae.code(stream()), every)
    near(sae.decode(sae.encode(stream())), decoded)


def test_older_files_call_topk_an_activation(tmp_path: Path) -> None:
    told = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    old = SAE.load(write(tmp_path / "old", "standard", **told))
    new = SAE.load(write(tmp_path / "new", "topk"))
    assert (old.kind, old.k) == (new.kind, new.k) == ("topk", K)
    assert torch.equal(old.encode(stream()), new.encode(stream()))


def theirs(folder: Path) -> Any:
    sae_lens = pytest.importorskip("sae_lens")
    return sae_lens.SAE.load_from_disk(folder)


def alike(mine: SAE, other: Any) -> None:
    """Both say the same of every stream."""
    with torch.no_grad():
        code = other.encode(stream())
        near(mine.encode(stream()), code)
        near(mine.decode(mine.encode(stream()), stream()), other.decode(code))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [one for one in KINDS if one != "batchtopk"])
def test_a_kind_is_saelenss(kind: str, norm: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "one", kind, normalize_activations=norm)
    alike(SAE.load(folder), theirs(folder))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("told", [{"apply_b_dec_to_input": False}, {"dtype": "bfloat16"}])
def test_what_the_configuration_says_is_saelenss(told: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "one", "jumprelu", **{"dtype": "float32"} | told)
    other = theirs(folder)
    if told.get("dtype"):
        other.save_model(folder)  # its tensors too are half as long then
        other = other.to(dtype=torch.float32)
    alike(SAE.load(folder), other)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_topk_of_rescaled_codes_is_saelenss(norm: str, tmp_path: Path) -> None:
    told = {"rescale_acts_by_decoder_norm": True, "normalize_activations": norm}
    folder = write(tmp_path / "one", "topk", **told)
    plain = SAE.load(write(tmp_path / "plain", "topk", normalize_activations=norm))
    other, mine = theirs(folder), SAE.load(folder)
    alike(mine, other)
    chosen = mine.encode(stream()) > 0
    assert not torch.equal(chosen, plain.encode(stream()) > 0)  # it picks others


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("rescale", [False, True])
def test_batchtopk_is_what_saelens_makes_of_it(rescale: bool, tmp_path: Path) -> None:
    """As it stands in training, and as it is saved, by a name that is no longer its own."""
    folder = write(tmp_path / "one", "batchtopk", rescale_acts_by_decoder_norm=rescale)
    module = pytest.importorskip("sae_lens.saes.batchtopk_sae")
    config = module.BatchTopKTrainingSAEConfig(
        d_in=WIDTH, d_sae=FEATURES, k=K, rescale_acts_by_decoder_norm=rescale
    )
    training = module.BatchTopKTrainingSAE(config)
    training.load_state_dict(saes.weights("batchtopk"))
    training.save_inference_model(tmp_path / "saved")
    alike(SAE.load(folder), theirs(tmp_path / "saved"))
    assert SAE.load(folder).kind == "jumprelu"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_say_what_they_say_among_all(kind: str, norm: str, tmp_path: Path) -> None:
    sae = SAE.load(write(tmp_path / "one", kind, normalize_activations=norm))
    ids = [7, 0, FEATURES - 1, 3]
    few = sae.select(ids)
    near(few.code(stream()), sae.code(stream())[..., ids])
    assert (few.features, few.width, few.whole) == (4, WIDTH, False)
    assert few.bytes == 2 * 4 * WIDTH * 4
    assert few.encoder.untyped_storage().nbytes() == few.bytes // 2  # no view of the whole
    assert few.decoder.untyped_storage().nbytes() == few.bytes // 2
    near(few.select([2, 1]).code(stream()), sae.code(stream())[..., [FEATURES - 1, 0]])
    if kind == "topk":
        with pytest.raises(UnsupportedError, match="TopK needs all features"):
            few.encode(stream())
    else:
        near(few.encode(stream()), sae.encode(stream())[..., ids])


@pytest.mark.parametrize("ids", [[-1], [FEATURES], [0, 99], [True], [1.0], ["3"], [None]])
def test_a_feature_that_is_not_there(ids: Any, tmp_path: Path) -> None:
    sae = SAE.load(write(tmp_path / "one"))
    with pytest.raises(SAEError, match=rf"has no feature {ids[-1]!r}: it has {FEATURES}"):
        sae.select(ids)
    with pytest.raises(SAEError, match="has no feature"):
        FeatureEdit(sae, add=dict.fromkeys(ids, 1.0))


@pytest.mark.parametrize("norm", NORMS)
def test_what_a_code_changes_is_the_difference_of_streams(norm: str, tmp_path: Path) -> None:
    sae = SAE.load(write(tmp_path / "one", normalize_activations=norm))
    code, h = sae.encode(stream()), stream()
    more = torch.rand(code.shape, generator=torch.Generator().manual_seed(1))
    near(sae.change(more, h), sae.decode(code + more, h) - sae.decode(code, h), 1e-4)
    if norm != "none":
        with pytest.raises(UnsupportedError, match=rf"normalises \({norm}\): pass like="):
            sae.decode(code)


def test_the_digest_is_of_the_numbers(tmp_path: Path) -> None:
    sae = SAE.load(write(tmp_path / "one"))
    assert sae.digest == SAE.load(write(tmp_path / "two", layer=0)).digest
    assert sae.digest == sae.to("cpu", torch.float64).digest
    others = [sae.select([0]), sae.select([1]), SAE.load(write(tmp_path / "other", seed=1))]
    assert len({one.digest for one in (sae, *others)}) == 4
    for kind, names in {
        "jumprelu": ("encoder", "decoder", "bias", "decoder_bias", "threshold"),
        "gated": ("gate",),
    }.items():
        one = SAE.load(write(tmp_path / kind, kind))
        for name in names:
            held = getattr(one, name)
            other = (held[0] + 1, held[1]) if name == "gate" else held + 1
            assert replace(one, **{name: other}).digest != one.digest, name
    used: dict[str, Any] = {"kind": "standard", "k": 3, "norm": "layer_norm", "centred": False}
    for name, other in used.items():
        assert replace(sae, **{name: other}).digest != sae.digest, name
    assert sae.to("cpu", torch.float64).code(stream()).dtype == torch.float64


def test_a_model_that_it_does_not_belong_to(tmp_path: Path) -> None:
    named = SAE.load(write(tmp_path / "named", model="org/Tiny"))
    print_of = {"conflictkit_fingerprint": MINE}
    tied = SAE.load(write(tmp_path / "tied", model="org/Tiny", metadata=print_of))
    nameless = SAE.load(write(tmp_path / "nameless", model=""))
    for sae, name, fingerprint in (
        (named, "org/Tiny", MINE), (named, "/models/tiny/", OTHER), (tied, "renamed", MINE),
        (nameless, "whatever", OTHER),
    ):  # fmt: skip
        sae.check(name, fingerprint, WIDTH, 2)
    for sae, name, print_, width, layers, why in (
        (named, "org/Big", MINE, 64, 2, "of width 32; 'org/Big' has width 64"),
        (named, "org/Tiny", MINE, WIDTH, 1, "hook_resid_post; 'org/Tiny' has 1 layers"),
        (named, "org/Big", MINE, WIDTH, 2, "not to 'org/Big': .*model='org/Big'"),
        (tied, "org/Tiny", OTHER, WIDTH, 2, r"\(a{12}\); 'org/Tiny' has other weights \(b{12}\)"),
    ):
        with pytest.raises(SAEError, match=rf"belongs to 'org/Tiny'.*{why}"):
            sae.check(name, print_, width, layers)
    renamed = SAE.load(tmp_path / "tied", model="org/Big")
    renamed.check("org/Big", OTHER, WIDTH, 2)
    with pytest.raises(SAEError, match="not to 'org/Tiny'"):
        renamed.check("org/Tiny", MINE, WIDTH, 2)
    with pytest.raises(SAEError, match="belongs to 'a model it does not name'"):
        nameless.check("org/Tiny", MINE, 16, 2)


@pytest.fixture
def hf() -> Any:
    return copy.deepcopy(model("llama"))


@pytest.mark.parametrize("wrong", [{"width": 24}, {"layer": 2}])
@pytest.mark.parametrize("kind", ["edit", "reconstruction"])
def test_attaching_to_another_model_leaves_nothing(
    hf: Any, wrong: Any, kind: str, tmp_path: Path
) -> None:
    sae = SAE.load(write(tmp_path / "one", **wrong))
    edit = FeatureEdit(sae, add={0: 1.0}) if kind == "edit" else Reconstruction([sae])
    plain = logits(hf)
    with pytest.raises(SAEError, match=r"of 'tiny' is of width .* has 2 layers of width 32"):
        edit.attach(hf)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in hf.modules())
    assert torch.equal(logits(hf), plain)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_lost_added_again_is_the_stream(
    hf: Any, kind: str, norm: str, tmp_path: Path
) -> None:
    folders = [
        write(tmp_path / str(at), kind, layer=at, seed=at, normalize_activations=norm)
        for at in (0, 1)
    ]
    both, plain = [SAE.load(one) for one in folders], logits(hf)
    with Reconstruction(both, error=True).attach(hf) as handle:
        near(logits(hf), plain)
    assert handle.edits == plain[..., 0].numel()
    tensors = [saes.weights(kind, seed=at) for at in (0, 1)]

    def replaced(at: int) -> Any:
        return lambda _, __, out: by_definition(kind, tensors[at], out, norm)[2].float()

    layers: Any = anatomy.find(hf).layers
    hooks = [layers[at].register_forward_hook(replaced(at)) for at in (0, 1)]
    expected = logits(hf)
    for hook in hooks:
        hook.remove()
    with Reconstruction(both).attach(hf):
        near(logits(hf), expected, 1e-4)
    assert not torch.allclose(expected, plain, atol=0.1)
    assert torch.equal(logits(hf), plain)


def test_reconstructions_need_layers_of_their_own(tmp_path: Path) -> None:
    sae = SAE.load(write(tmp_path / "one"))
    for several in ([], [sae, sae]):
        with pytest.raises(InvalidParameterError, match="autoencoders of different layers"):
            Reconstruction(several)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_types_keep_theirs(hf: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    sae = SAE.load(write(tmp_path / "one"))
    layer: Any = anatomy.find(hf.to(dtype)).layers[1]
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, out: seen.append(out))
    with FeatureEdit(sae, remove={3: 2.0}, add={1: 4.0}).attach(hf):
        edited = logits(hf)
    with Reconstruction([sae], error=True).attach(hf):
        kept = logits(hf)
    hook.remove()
    assert [one.dtype for one in (edited, kept, *seen)] == [dtype] * 4
    plain = logits(hf)
    assert not torch.equal(edited, plain)
    # One rounding to the model's own type at most.
    step = torch.finfo(dtype).eps * 40 if dtype != torch.float64 else 1e-5
    near(kept, plain, step)
    assert sae.encoder.dtype == torch.float32


def test_by_layer_finds_those_in_a_folder(tmp_path: Path) -> None:
    for at, place in ((3, "x"), (0, "y"), (11, "z")):
        write(tmp_path / "all" / place, layer=at)
    (tmp_path / "all" / "notes").mkdir()
    alone = write(tmp_path / "alone", layer=5)
    every = tmp_path / "all"
    assert by_layer([str(every), str(alone)]) == {
        3: str(every / "x"), 0: str(every / "y"), 11: str(every / "z"), 5: str(alone),
    }  # fmt: skip
    write(tmp_path / "again", layer=3)
    with pytest.raises(SAEError, match=r"two SAEs of layer 3: .*x and .*again"):
        by_layer([str(every), str(tmp_path / "again")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SAEError, match=r"there is no cfg\.json"):
        by_layer([str(tmp_path / "empty")])
    (every / "z" / "cfg.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SAEError, match="it reads at ''"):
        by_layer([str(every)])
