"""Files of autoencoders that are broken, or not there; and those fetched by name."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conflictkit.errors import HubError, SAEError, UnsupportedError
from conflictkit.interventions.sae import SAE, by_layer
from tests import saes
from tests.saes import FEATURES, WIDTH, write


@pytest.mark.parametrize(
    ("hook", "layer"),
    [("blocks.4.hook_resid_post", 4), ("blocks.4.hook_resid_pre", 3), ("layers.7", 7),
     ("model.layers.12", 12)],
)  # fmt: skip
def test_the_layer_behind_which_it_reads(hook: str, layer: int, tmp_path: Path) -> None:
    sae = SAE.load(write(tmp_path / "one", metadata={"hook_name": hook}))
    assert (sae.layer, sae.hook, sae.model, sae.kind) == (layer, hook, "tiny", "jumprelu")


def test_names_may_stand_beside_the_rest(tmp_path: Path) -> None:
    """Where files of before SAELens 6 have them."""
    folder = write(tmp_path / "one", "standard")
    told = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    told |= told.pop("metadata")
    del told["architecture"]
    (folder / "cfg.json").write_text(json.dumps(told), encoding="utf-8")
    sae = SAE.load(folder)
    assert (sae.layer, sae.model, sae.kind) == (1, "tiny", "standard")


@pytest.mark.parametrize(
    ("told", "why"),
    [({"architecture": "transcoder"}, "an SAE of kind 'transcoder'.* is not known .kinds: stand"),
     ({"architecture": 7}, "an SAE of kind '7'"),
     ({"normalize_activations": "expected_average_only_in"}, "normalised by 'expected_average"),
     ({"reshape_activations": "hook_z"}, "is not known"),
     ({"metadata": {"hook_name": "blocks.1.attn.hook_z"}}, "reads at 'blocks.1.attn.hook_z'"),
     ({"metadata": {"hook_name": "blocks.0.hook_resid_pre"}}, "which is not behind a layer"),
     ({"metadata": {"hook_name": None}}, "reads at ''"),
     ({"architecture": "topk", "k": 0}, "k must be a whole number from 1, not 0"),
     ({"architecture": "topk", "k": 2.5}, "k must be a whole number from 1, not 2.5"),
     ({"architecture": "topk"}, "k must be a whole number from 1, not None"),
     ({"activation_fn_str": "topk", "activation_fn_kwargs": [5]}, "kwargs must be an object")],
)  # fmt: skip
def test_configurations_that_are_not_known(told: Any, why: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "one", "standard", **told)
    with pytest.raises(SAEError, match=why) as caught:
        SAE.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "is not JSON"), ("{", "is not JSON"), ("[]", "must be an object"),
     ('{"k": NaN}', "NaN is no number"), ('{"k": 1, "k": 2}', "a field is given twice"),
     ("\xff", "is not JSON"), ("[" * 200_000, "holds more than"), ("{}", "it reads at ''"),
     ('{"metadata": 3}', "metadata must be an object"),
     ('{"metadata": ["a"]}', "metadata must be an object")],
)  # fmt: skip
def test_configurations_that_cannot_be_read(text: str, why: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "one")
    (folder / "cfg.json").write_text(text, encoding="utf-8")
    for read in (SAE.load, lambda place: by_layer([str(place)])):
        with pytest.raises(SAEError, match=why) as caught:
            read(folder)
        assert str(folder) in str(caught.value)


def test_a_configuration_that_is_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "one")
    (folder / "cfg.json").unlink()
    for place in (folder, tmp_path / "nowhere", folder / "sae_weights.safetensors"):
        with pytest.raises(SAEError, match=r"there is no cfg\.json in '.*one|nowhere"):
            SAE.load(place)


def broken(name: str) -> dict[str, torch.Tensor]:
    made = saes.weights("jumprelu")
    if name == "missing":
        del made["threshold"]
    elif name == "more":
        made["scaling"] = torch.ones(FEATURES)
    elif name == "shape":
        made["b_enc"] = torch.zeros(FEATURES + 1)
    elif name == "turned":
        made["W_enc"] = made["W_enc"].T.contiguous()
    elif name == "flat":
        made["W_dec"] = made["W_dec"].flatten()
    elif name == "scalar":
        made["b_dec"] = torch.tensor(0.0)
    elif name == "nan":
        made["W_enc"][3, 5] = float("nan")
    elif name == "inf":
        made["W_dec"][0, 0] = float("inf")
    return made


@pytest.mark.parametrize(
    ("name", "why"),
    [("missing", "a jumprelu SAE holds W_dec, W_enc, b_dec, b_enc, threshold, this file W_dec, "
                 "W_enc, b_dec, b_enc$"),
     ("more", "this file W_dec, W_enc, b_dec, b_enc, scaling, threshold"),
     ("shape", rf"b_enc has the shape \[{FEATURES + 1}\]"),
     ("turned", rf"W_enc has the shape \[{FEATURES}, {WIDTH}\]"),
     ("flat", rf"W_dec has the shape \[{FEATURES * WIDTH}\]"),
     ("scalar", r"b_dec has the shape \[\]"),
     ("nan", "W_enc is not finite"), ("inf", "W_dec is not finite")],
)  # fmt: skip
def test_tensors_that_do_not_fit(name: str, why: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "one", tensors=broken(name)) if name != "flat" else tmp_path
    if name == "flat":
        write(tmp_path)
        save_file(broken(name), tmp_path / "sae_weights.safetensors")
    with pytest.raises(SAEError, match=why) as caught:
        SAE.load(folder)
    assert str(folder) in str(caught.value)


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it was run')",)


@pytest.mark.parametrize("what", ["nothing", "empty", "pickle", "torch", "cut", "folder"])
def test_weights_that_are_none(what: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "one")
    file = folder / "sae_weights.safetensors"
    whole = file.read_bytes()
    file.unlink()
    if what == "pickle":
        file.write_bytes(pickle.dumps(Bomb()))
    elif what == "torch":
        torch.save(saes.weights("jumprelu"), file)
    elif what == "folder":
        file.mkdir()
    elif what != "nothing":
        file.write_bytes(b"" if what == "empty" else whole[:-8])
    with pytest.raises(SAEError, match=r"sae_weights\.safetensors cannot be read"):
        SAE.load(folder)


def test_a_flag_of_another_kind_changes_nothing(tmp_path: Path) -> None:
    """SAELens rescales codes of TopK and BatchTopK alone."""
    for kind in ("gated", "jumprelu", "standard"):
        plain = SAE.load(write(tmp_path / kind, kind))
        told = SAE.load(write(tmp_path / "told" / kind, kind, rescale_acts_by_decoder_norm=True))
        assert torch.equal(plain.encoder, told.encoder)
        assert torch.equal(plain.bias, told.bias)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_names_are_fetched_by_saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    folder = write(tmp_path / "one", "topk", rescale_acts_by_decoder_norm=True)
    asked: list[tuple[str, ...]] = []

    def local(*names: str) -> Any:
        asked.append(names)
        return sae_lens.SAE.load_from_disk(folder)

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", local)
    name = "tiny-res:blocks.1/width_40:x"
    fetched, here = SAE.load(name), SAE.load(folder)
    assert asked == [("tiny-res", "blocks.1/width_40:x")]
    assert (fetched.source, fetched.kind, fetched.layer, fetched.model) == (name, "topk", 1, "tiny")
    assert fetched.digest == here.digest
    values = torch.randn(9, WIDTH)
    assert torch.equal(fetched.encode(values), here.encode(values))
    assert not fetched.encoder.requires_grad
    assert by_layer([name]) == {1: name}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("error", [OSError("no network"), ValueError("not in the directory")])
def test_names_that_cannot_be_fetched(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    sae_lens = pytest.importorskip("sae_lens")

    def fail(*_: str) -> None:
        raise error

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", fail)
    with pytest.raises(HubError, match=f"'b/c' of release 'a' cannot be loaded: {error}"):
        SAE.load("a:b/c")


def test_names_need_saelens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(UnsupportedError, match=r"a:b: .* pip install 'conflictkit\[sae\]'"):
        SAE.load("a:b")
