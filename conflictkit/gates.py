"""When a control acts: a detector's score against a threshold, at every step or once per answer.

>>> from conflictkit.gates import Gate
>>> Gate.parse("jsd > 0.3 until 0.2")
Gate(detector='jsd', sign='>', threshold=0.3, release=0.2, at='step')
>>> print(Gate.parse("confidence-gain<0 at prompt"))
confidence-gain < 0 at prompt

A gate may also read what a layer of the context stream writes: by a fitted probe (`probe > 0.7`),
or by a statistic of `conflictkit.detectors.statistics`:

>>> Gate.parse("kurtosis@residual.3 > 20").place
('residual', 3)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from conflictkit import detectors
from conflictkit.detectors.probe import KINDS, LayerProbe
from conflictkit.detectors.statistics import STATISTICS
from conflictkit.errors import InvalidParameterError, unknown_name
from conflictkit.interventions.contrast import Parameter, check
from conflictkit.types import GATE_TOLERANCE, State, Step

TIMES = ("step", "prompt")
PROBE = "probe"
"""What a gate calls a probe of the context stream's activations."""
UNDECIDED, CLOSED, OPEN = 0, 1, 2

_BOUNDS = [
    Parameter(name, "float", 0.0, low=-1e9, high=1e9, choices=(), doc="")
    for name in ("threshold", "release")
]

_TEXT = re.compile(
    r"\s*(?P<detector>[a-z][a-z-]*[a-z]|[a-z][a-z0-9-]*@[a-z]+\.\d{1,4})\s*"
    r"(?P<sign>[<>])\s*(?P<threshold>[^\s<>]+)"
    r"(?:\s+until\s+(?P<release>\S+))?(?:\s+at\s+(?P<at>\S+))?\s*"
)

_STATISTIC = re.compile(r"(?P<name>[a-z][a-z0-9-]*)@(?P<kind>[a-z]+)\.(?P<layer>\d{1,4})")


def reads_activations(detector: str) -> bool:
    """Whether a gate's detector reads what a layer writes, not logits."""
    return detector == PROBE or "@" in detector


@dataclass(frozen=True)
class Gate:
    """Open where a detector's score is beyond a threshold.

    A score within 1e-5 of a bound counts as equal to it, so that rounding cannot decide. The gate
    is a fold over the steps of a row: beams may reorder it and drafts may roll it back.

    Attributes:
        detector: name of a detector (see `conflictkit.detectors`), `probe`, or
            `STATISTIC@KIND.LAYER`.
        sign: `>`: open above the threshold; `<`: open below it.
        threshold: in the detector's unit.
        release: with hysteresis, an open gate closes only beyond this value on the other side; it
            must not be stricter than `threshold`. None: `threshold` itself.
        at: `step`: asked at every token; `prompt`: asked before the first token under control and
            held for the rest of the answer.
        probe: the probe that `probe` stands for; None: to be settled before use (`reading`), which
            the toolkit does.

    Raises:
        UnknownNameError: no such detector, statistic or kind of activations.
        InvalidParameterError: a value of the wrong type, not finite, or a release that could never
            hold the gate open.
    """

    detector: str
    sign: str
    threshold: float
    release: float | None = None
    at: str = "step"
    probe: LayerProbe | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.detector, str):
            raise InvalidParameterError(f"gate: detector must be a name, not {self.detector!r}")
        if (found := _STATISTIC.fullmatch(self.detector)) is not None:
            for what, known in (("name", STATISTICS), ("kind", KINDS)):
                if found[what] not in known:
                    raise unknown_name(f"{what} of a statistic", found[what], known)
        elif self.detector != PROBE:
            detectors.get(self.detector)
        if self.probe is not None and not (
            isinstance(self.probe, LayerProbe) and self.detector == PROBE
        ):
            raise InvalidParameterError("gate: probe= is a LayerProbe, for the detector 'probe'")
        if self.sign not in ("<", ">"):
            raise InvalidParameterError(f"gate: sign must be '<' or '>', not {self.sign!r}")
        object.__setattr__(self, "threshold", check("gate", _BOUNDS[0], self.threshold))
        if self.at not in TIMES:
            raise InvalidParameterError(f"gate: at must be 'step' or 'prompt', not {self.at!r}")
        if self.release is None:
            return
        release = float(check("gate", _BOUNDS[1], self.release))
        object.__setattr__(self, "release", release)
        if self.at == "prompt":
            raise InvalidParameterError("gate: a gate held from the prompt on has no release")
        if release > self.threshold if self.sign == ">" else release < self.threshold:
            side = "below" if self.sign == ">" else "above"
            raise InvalidParameterError(
                f"gate: release {release:g} must lie {side} the threshold {self.threshold:g}"
            )

    @classmethod
    def parse(cls, text: str) -> Gate:
        """The gate that a line of text describes: `jsd > 0.3 [until 0.2] [at prompt]`.

        Raises:
            UnknownNameError: no such detector.
            InvalidParameterError: not of this form, or a value that the gate refuses.
        """
        found = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidParameterError(
                f"cannot read the gate {text!r}: write DETECTOR > NUMBER or DETECTOR < NUMBER, "
                "then, if wanted, 'until NUMBER' and 'at prompt'"
            )
        parts: dict[str, Any] = {k: v for k, v in found.groupdict().items() if v is not None}
        for name in ("threshold", "release"):
            if name in parts:
                try:
                    parts[name] = float(parts[name])
                except ValueError:
                    raise InvalidParameterError(
                        f"gate {text!r}: {name} '{parts[name]}' is no number"
                    ) from None
        return cls(**parts)

    def __str__(self) -> str:
        text = f"{self.detector} {self.sign} {self.threshold:.12g}"
        if self.release is not None:
            text += f" until {self.release:.12g}"
        return text if self.at == "step" else f"{text} at {self.at}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the streams that the detector reads."""
        if self.probe is not None:
            return self.probe.needs
        if self.reads_activations:
            return ("context",)
        return detectors.get(self.detector).needs

    @property
    def reads_activations(self) -> bool:
        """Whether it reads what a layer writes, not logits."""
        return reads_activations(self.detector)

    @property
    def place(self) -> tuple[str, int] | None:
        """The `(kind, layer)` that it reads; None: none, or that of a probe to be settled."""
        if (found := _STATISTIC.fullmatch(self.detector)) is not None:
            return found["kind"], int(found["layer"])
        return None if self.probe is None else (self.probe.kind, self.probe.layer)

    def reading(self, probe: LayerProbe) -> Self:
        """The same with this probe, where it wants one and has none."""
        wants = self.detector == PROBE and self.probe is None
        return replace(self, probe=probe) if wants else self

    def _score(self, step: Step) -> Tensor:
        if not self.reads_activations:
            return detectors.get(self.detector)(step)
        name = "{}.{}".format(*(self.place or ("", ""))) if self.probe is None else self.probe.place
        if name not in step.activations:
            raise InvalidParameterError(
                f"the gate '{self}' reads activations: it works in ask, evaluate and "
                "generate(custom_generate=conflictkit.decode), with a probe (probe=FILE)"
            )
        if self.probe is not None:
            return self.probe.at(step).to(step.logits.device)
        values = step.activations[name]
        return STATISTICS[self.detector.partition("@")[0]](values).to(step.logits.device)

    def initial(self, batch: int, device: torch.device | str = "cpu") -> State:
        """`gate`: `[batch]` int64, every row undecided."""
        return {"gate": torch.full((batch,), UNDECIDED, dtype=torch.int64, device=device)}

    def __call__(self, step: Step, state: State) -> tuple[Tensor, Tensor, State]:
        """Ask every row.

        Returns:
            `[batch]` bool: open; `[batch]` float32: the score; the new state.
        """
        score = self._score(step)
        before = state["gate"]
        is_open = self.fires(score)
        if self.at == "prompt":
            is_open = torch.where(before == UNDECIDED, is_open, before == OPEN)
        elif self.release is not None:
            is_open = is_open | ((before == OPEN) & self._holds(score))
        return is_open, score, {"gate": torch.where(is_open, OPEN, CLOSED)}

    def fires(self, score: Any) -> Any:
        """Whether a score alone would open the gate: a bool, or a tensor of them of its shape."""
        if self.sign == ">":
            return score > self.threshold + GATE_TOLERANCE
        return score < self.threshold - GATE_TOLERANCE

    def _holds(self, score: Tensor) -> Tensor:
        release = self.threshold if self.release is None else self.release
        if self.sign == ">":
            return score >= release - GATE_TOLERANCE
        return score <= release + GATE_TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """The gate as JSON can hold it."""
        told = dict(vars(self))
        probe = told.pop("probe")
        return told if probe is None else {**told, "probe": probe.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Gate:
        """A gate from what `to_dict` returned.

        Raises:
            ConflictKitError: a value that the gate or its probe refuses.
        """
        probe = data.get("probe")
        return cls(**{**data, "probe": None if probe is None else LayerProbe.from_dict(probe)})

    @classmethod
    def of(cls, given: Gate | str | None) -> Gate | None:
        """A gate from what a user may pass as `when=`: a gate, its text, or None (no gate)."""
        if given is None or isinstance(given, Gate):
            return given
        if isinstance(given, str):
            return cls.parse(given)
        raise InvalidParameterError(f"when must be text or a Gate, not {type(given).__name__}")
