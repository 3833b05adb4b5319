"""Captured activations against the model's own hidden states, and runs that are cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import conflictkit as ck
from conflictkit import anatomy
from conflictkit.errors import (
    EmptyInputError,
    InvalidParameterError,
    LogitsError,
    OutputError,
    ResumeError,
    UnknownNameError,
)
from conflictkit.mechanics import capture as module
from conflictkit.mechanics.capture import capture
from conflictkit.mechanics.captured import load
from tests.anatomy import families
from tests.tiny import byte_tokenizer

CASES = ck.atlas.cases("train", "correction")[:7]


@pytest.fixture(scope="module")
def atlas() -> Any:
    return ck.load("atlas")


def wide(name: str) -> Any:
    """A family's model with room for every byte."""
    config = families.CONFIGS[name]()
    config.vocab_size = 300
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def ids(model: Any, case: Any, stream: str = "context") -> torch.Tensor:
    return torch.tensor([model.prompts(case.question, list(case.contexts) or None)[stream].ids])


def test_the_stream_is_that_of_the_models_own_hidden_states(atlas: Any, tmp_path: Path) -> None:
    kept = capture(atlas, CASES, tmp_path / "acts")
    assert kept.finished
    assert kept.about["rows"] == len(CASES)
    assert (kept.kinds, kept.layers) == (("residual",), tuple(range(6)))
    for number, case in enumerate(CASES):
        with torch.no_grad():
            states = atlas.model(ids(atlas, case), output_hidden_states=True).hidden_states
        # The last of them is behind the final norm.
        for layer in range(5):
            mine = kept.values("residual", layer)[number]
            torch.testing.assert_close(mine, states[layer + 1][0, -1], atol=1e-4, rtol=1e-4)
    norm: Any = anatomy.find(atlas.model).norm
    with torch.no_grad():
        states = atlas.model(ids(atlas, CASES[-1]), output_hidden_states=True).hidden_states
        normed = norm(kept.values("residual", 5)[-1])
    torch.testing.assert_close(normed, states[6][0, -1], atol=1e-4, rtol=1e-4)
    case, position = kept.places()
    assert case.tolist() == list(range(len(CASES)))
    assert position.tolist() == [ids(atlas, one).shape[1] - 1 for one in CASES]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "gpt-neox"])
@pytest.mark.parametrize("positions", ["last", "prompt"])
def test_every_kind_at_every_position(name: str, positions: str, tmp_path: Path) -> None:
    hf = wide(name)
    model = ck.load(hf, tokenizer=byte_tokenizer())
    cases = ck.atlas.guards("test", "recall")[:3]
    options: Any = {"kinds": module.KINDS, "positions": positions, "stream": "memory"}
    size = 1 if positions == "last" else 2**20  # a part for each case, or one for all
    kept = capture(model, cases, tmp_path / "acts", shard_bytes=size, **options)
    body = anatomy.find(hf)
    parts: Any = {"residual": body.layers, "attention": body.attentions, "mlp": body.mlps}
    row = 0
    for case in cases:
        seen: dict[str, torch.Tensor] = {}
        hooks = []
        for kind, modules in parts.items():
            for layer, one in enumerate(modules):

                def keep(
                    _: Any, __: Any, out: Any, key: str = f"{kind}.{layer}", seen: Any = seen
                ) -> None:
                    values = out[0] if isinstance(out, tuple) else out
                    seen[key] = values.reshape(-1, values.shape[-1])

                hooks.append(one.register_forward_hook(keep))
        prompt = ids(model, case, "memory")
        with torch.no_grad():
            hf(prompt)
        for hook in hooks:
            hook.remove()
        count = prompt.shape[1] if positions == "prompt" else 1
        for key, expected in seen.items():
            kind, _, layer = key.partition(".")
            mine = kept.values(kind, int(layer))[row : row + count]
            torch.testing.assert_close(mine, expected[-count:], atol=1e-4, rtol=1e-4)
        row += count
    assert kept.about["rows"] == row


def test_a_run_goes_on_with_the_first_part_that_is_missing(
    atlas: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"layers": [1], "shard_bytes": 2 * 4 * 192}
    whole = capture(atlas, CASES, tmp_path / "whole", **options)
    real, read = module._read, []

    def cut(model: Any, ready: Any, *rest: Any) -> Any:
        read.append([one.number for one in ready])
        if len(read) == 3:
            raise KeyboardInterrupt
        return real(model, ready, *rest)

    monkeypatch.setattr(module, "_read", cut)
    told: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        capture(atlas, CASES, tmp_path / "cut", **options)
    assert not load(tmp_path / "cut").finished
    again = capture(
        atlas, CASES, tmp_path / "cut", progress=lambda p: told.append(p.rows), **options
    )
    assert read == [[0, 1], [2, 3], [4, 5], [4, 5], [6]]  # two cases at a time, none read twice
    assert told == [4, 6, 7]
    assert torch.equal(again.values("residual", 1), whole.values("residual", 1))
    # A finished one is not read again; a half-written part was never there.
    (tmp_path / "cut" / ".part-000004.safetensors.draft").write_bytes(b"half")
    capture(atlas, CASES, tmp_path / "cut", **options)
    assert len(read) == 5
    with pytest.raises(ResumeError, match="layers was \\[1\\], is \\[2\\]"):
        capture(atlas, CASES, tmp_path / "cut", **(options | {"layers": [2]}))
    with pytest.raises(ResumeError, match="cases_hash"):
        capture(atlas, CASES[::-1], tmp_path / "cut", **options)
    other = capture(atlas, CASES[:1], tmp_path / "cut", overwrite=True, layers=[2])
    assert other.values("residual", 2).shape[0] == 1
    broken = tmp_path / "cut" / "part-000000.safetensors"
    about = json.loads((tmp_path / "cut" / "capture.json").read_text())
    (tmp_path / "cut" / "capture.json").write_text(json.dumps(about | {"finished": False}))
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ResumeError, match="cannot be read: delete it"):
        capture(atlas, CASES[:1], tmp_path / "cut", layers=[2])


def test_what_cannot_be_captured_is_refused(atlas: Any, tmp_path: Path) -> None:
    out = tmp_path / "acts"
    for options, error, said in [
        ({"kinds": ["stream"]}, UnknownNameError, "kind of activations"),
        ({"kinds": []}, InvalidParameterError, "at least one kind"),
        ({"layers": [6]}, InvalidParameterError, "no layer 6: it has 6"),
        ({"layers": [-1]}, InvalidParameterError, "no layer -1"),
        ({"layers": [True]}, InvalidParameterError, "no layer True"),
        ({"positions": "first"}, UnknownNameError, "positions"),
        ({"stream": "edited"}, UnknownNameError, "stream"),
        ({"shard_bytes": 0}, InvalidParameterError, "shard_bytes"),
    ]:
        with pytest.raises(error, match=said):
            capture(atlas, CASES, out, **options)
        assert not out.exists()
    with pytest.raises(EmptyInputError, match="there are none"):
        capture(atlas, [], out)
    recall = ck.atlas.guards("test", "recall")[:2]
    with pytest.raises(EmptyInputError, match="no context"):
        capture(atlas, recall, tmp_path / "closed")
    assert capture(atlas, recall, tmp_path / "open", stream="memory").about["rows"] == 2
    with pytest.raises(OutputError, match="no activations"):
        load(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="other files .thesis.txt"):
        capture(atlas, CASES, tmp_path / "mine")
    kept = capture(atlas, CASES[:2], tmp_path / "few", layers=[0])
    with pytest.raises(InvalidParameterError, match="holds no residual.1"):
        kept.values("residual", 1)
    hf = wide("llama")
    with pytest.raises(InvalidParameterError, match="activations of the model 'atlas'"):
        kept.check(ck.load(hf, tokenizer=byte_tokenizer()))
    with torch.no_grad():
        next(hf.parameters()).fill_(float("nan"))
    with pytest.raises(LogitsError, match="not finite"):
        capture(ck.load(hf, tokenizer=byte_tokenizer()), CASES[:1], tmp_path / "nan")
