"""Gates on a probe inside transformers' `generate`: `ck.decode` reads them, a processor cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

import conflictkit as ck
from conflictkit.detectors.probe import LayerProbe
from conflictkit.errors import InvalidParameterError, ProbeError, UnsupportedError
from conflictkit.gates import Gate
from conflictkit.policy import Policy
from tests.probed import Passes, hooks, probe_of
from tests.tiny import byte_tokenizer, llama

HF = llama(300)
ASKED = [("What is it that they said?", "Because. For no reason at all."), ("Who?", "Nobody.")]
TOKENS = 8


@pytest.fixture(scope="module")
def model() -> Any:
    return ck.load(HF, tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def probe(model: Any) -> LayerProbe:
    prompt = model.prompts(*ASKED[0])["context"].ids
    return probe_of(HF, "residual", 1, seed=2, prompt=prompt)


def gated(probe: LayerProbe | None, text: str = "probe > 0.5") -> Policy:
    return Policy.of("cad?alpha=2", when=replace(Gate.parse(text), probe=probe))


def decode(model: Any, **options: Any) -> Any:
    prompts = [model.prompts(*one) for one in ASKED]
    rows = [{"input_ids": list(one["context"].ids)} for one in prompts]
    inputs = model.tokenizer.pad(rows, return_tensors="pt")
    given = {
        "memory_ids": [list(one["memory"].ids) for one in prompts],
        "custom_generate": ck.decode, "max_new_tokens": TOKENS, "pad_token_id": 2,
    }  # fmt: skip
    made = HF.generate(**inputs, **given | options)
    width = inputs["input_ids"].shape[1]
    return [[token for token in row if token not in (1, 2)] for row in made[:, width:].tolist()]


def asked(model: Any, policy: Any, **options: Any) -> list[Any]:
    questions, contexts = map(list, zip(*ASKED, strict=True))
    return model.ask_batch(questions, contexts, policy=policy, max_new_tokens=TOKENS, **options)


def ids(answer: Any) -> list[int]:
    return [token.id for token in answer.trace.tokens if token.id not in (1, 2)]


@pytest.mark.parametrize(
    "decoding", [{}, {"num_beams": 2}, {"num_beams": 3, "n": 2}], ids=lambda one: str(len(one))
)
def test_decode_writes_what_ask_writes(
    model: Any, probe: LayerProbe, decoding: dict[str, int]
) -> None:
    for text in ("probe > 0.5", "probe > 0.6 until 0.4", "probe < 0.5 at prompt"):
        wanted = asked(model, gated(probe, text), **decoding)
        options: dict[str, Any] = {**decoding, "num_return_sequences": decoding.get("n", 1)}
        options.pop("n", None)
        made = decode(model, policy=gated(probe, text), **options)
        flat = [ids(one) for row in wanted for one in (row, *row.alternatives)]
        assert made == flat
        if text == "probe > 0.5":
            met = {token.scores["active"] for row in wanted for token in row.trace.tokens}
            assert met == {0.0, 1.0}
            assert made != decode(model, method="cad?alpha=2", **options)
            assert made != decode(model, method="plain", **options)
    assert hooks(HF) == 0


def test_a_gate_may_be_passed_by_name_and_a_policy_by_file(
    model: Any, probe: LayerProbe, tmp_path: Path
) -> None:
    wanted = decode(model, policy=gated(probe))
    gated(probe).save(tmp_path / "p.json")
    gate = Gate.parse("probe > 0.5").reading(probe)
    assert decode(model, policy=str(tmp_path / "p.json")) == wanted
    assert decode(model, method="cad", alpha=2.0, when=gate) == wanted
    other = gated(probe_of(HF, "mlp", 0, seed=1), "probe < 0.5")
    both = [gated(probe), other]
    bound = "hoyer@residual.1 > 0.2"
    assert decode(model, method="cad", alpha=2.0, when=bound) == [
        ids(one) for one in asked(model, Policy.of("cad?alpha=2", when=bound))
    ]
    assert decode(model, policy=both) == [ids(one) for one in asked(model, both)]


def test_processors_and_a_gate_on_a_probe_go_together(model: Any, probe: LayerProbe) -> None:
    """What processors do to the scores, a probe does not see."""

    def shifted(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, 40:80] = -torch.inf
        return scores

    wanted = asked(model, gated(probe), processors=[shifted])
    made = decode(model, policy=gated(probe), logits_processor=LogitsProcessorList([shifted]))
    assert made == [ids(one) for one in wanted]
    assert made != decode(model, policy=gated(probe))


def test_a_gate_without_its_probe_is_refused_before_anything_is_read(
    model: Any, probe: LayerProbe
) -> None:
    other = replace(probe, fingerprint="f" * 64, model="another")
    with Passes(HF) as passes:
        with pytest.raises(InvalidParameterError, match="'probe > 0.5' needs a probe.*fit-probe"):
            decode(model, policy=gated(None))
        with pytest.raises(InvalidParameterError, match=r"when=Gate.parse\('probe > 0.5'\)"):
            decode(model, method="cad", when="probe > 0.5")
        with pytest.raises(ProbeError, match="fitted on the model 'another'"):
            decode(model, policy=gated(other))
        with pytest.raises(ProbeError, match="fitted on the model 'another'"):
            decode(model, policy=[gated(probe), gated(other)])
        with pytest.raises(InvalidParameterError, match="reads residual of layer 7: there is none"):
            decode(model, policy=gated(replace(probe, layer=7)))
    assert passes.count == 0
    assert hooks(HF) == 0


def test_a_processor_refuses_a_gate_on_a_probe(model: Any, probe: LayerProbe) -> None:
    memory = [list(model.prompts(*one)["memory"].ids) for one in ASKED]
    said = "'probe > 0.5' reads activations, which a processor cannot.*custom_generate"
    with Passes(HF) as passes:
        several: list[dict[str, Any]] = [
            {"policy": gated(probe)},
            {"policy": gated(None)},
            {"policy": [Policy.of("cad"), gated(probe)]},
            {"method": "cad", "when": "probe > 0.5"},
        ]
        for given in several:
            with pytest.raises(UnsupportedError, match=said):
                ck.ConflictProcessor(HF, memory, **given)
        with pytest.raises(UnsupportedError, match="'gini@mlp.0 > 0.5' reads activations"):
            ck.ConflictProcessor(HF, memory, method="cad", when="gini@mlp.0 > 0.5")
    assert passes.count == 0
