"""A controller: which rule acts, when, and how strongly.

>>> from conflictkit import methods
>>> from conflictkit.controller import Controller
>>> print(Controller(methods.build("cad", alpha=1.0), when="jsd > 0.3", strength=0.5))
cad(alpha=1, variant=mended) at strength 0.5 when jsd > 0.3

AdaCAD is CAD whose strength is the divergence of the streams:

>>> print(Controller(methods.build("cad", alpha=1.0), strength="jsd"))
cad(alpha=1, variant=mended) at strength jsd at every step
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from conflictkit import detectors
from conflictkit.errors import InvalidParameterError
from conflictkit.files import shortened
from conflictkit.gates import Gate
from conflictkit.interventions.contrast import MAX_WEIGHT, Parameter, Rule, check
from conflictkit.types import Mix, State, Step

_MOST_IDS = 2**31
_STRENGTH = Parameter("strength", "float", 1.0, low=0, high=MAX_WEIGHT, choices=(), doc="")


@dataclass(frozen=True)
class Controller:
    """A rule that acts only when its gate is open, and only as strongly as told.

    With strength s the rule's weights (w_c, w_m) become (1 + s * (w_c - 1), s * w_m): 0 leaves the
    answering stream untouched, bit for bit, as a closed gate does; 1 is the rule as published,
    bit for bit too. A rule with memory along the answer (GRD) sees only the steps at which its
    gate is open.

    Attributes:
        rule: who wins.
        when: a `Gate`, its text (`jsd > 0.3 until 0.2 at prompt`), or None: at every step.
        strength: a number from 0 to 1e6, or a detector's name: its score at each step, negative
            ones counted as 0.
        start_after: control starts behind this text in the answer, such as `</think>`; or its
            token ids; None: with the first token. Text has to be bound to a tokenizer before use
            (`bound`), which the toolkit does.
        markers: what `bound` makes of `start_after`: the ids that it may be written in.

    Raises:
        UnknownNameError: no such detector.
        InvalidParameterError: a part of the wrong type or out of range.
    """

    rule: Rule
    when: Gate | str | None = None
    strength: float | str = 1.0
    start_after: str | tuple[int, ...] | None = None
    markers: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise InvalidParameterError(
                f"a controller needs a rule, not {type(self.rule).__name__}: "
                "make one by conflictkit.methods.build"
            )
        object.__setattr__(self, "when", Gate.of(self.when))
        object.__setattr__(self, "strength", _strength(self.strength))
        object.__setattr__(self, "start_after", _marker(self.start_after))
        if isinstance(self.start_after, tuple):
            object.__setattr__(self, "markers", (self.start_after,))
        if self._edits and isinstance(self.strength, str):
            raise InvalidParameterError(
                f"{self.name} edits activations: its strength is a number, not '{self.strength}'"
            )

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.rule.name

    @property
    def _edits(self) -> bool:
        return "edited" in self.rule.needs

    @property
    def gate(self) -> Gate | None:
        """`when` as the gate that it has become."""
        return self.when if isinstance(self.when, Gate) else None

    @property
    def is_bare(self) -> bool:
        """Whether this is nothing but its rule."""
        return self.when is None and self.strength == 1.0 and self.start_after is None

    @property
    def needs(self) -> tuple[str, ...]:
        """Streams of the rule and of every detector; unless bare, the context stream first."""
        # At another strength an edit is another edit: it needs no unedited stream beside it.
        alone = self.is_bare or (self._edits and self.when is None and self.start_after is None)
        names: list[str] = [] if alone else ["context"]
        names += self.rule.needs
        if self.gate is not None:
            names += self.gate.needs
        if isinstance(self.strength, str):
            names += detectors.get(self.strength).needs
        return tuple(dict.fromkeys(names))

    @property
    def params(self) -> dict[str, Any]:
        """The rule's parameters, and what this controller adds to them."""
        added: dict[str, Any] = {}
        if self.when is not None:
            added["when"] = str(self.when)
        if self.strength != 1.0:
            added["strength"] = self.strength
        if self.start_after is not None:
            marker = self.start_after
            added["start_after"] = marker if isinstance(marker, str) else list(marker)
        return asdict(self.rule) | added

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={_short(value)}" for name, value in asdict(self.rule).items())
        text = f"{self.rule.name}({inside})"
        if self.strength != 1.0:
            text += f" at strength {_short(self.strength)}"
        text += f" when {self.when}" if self.when is not None else " at every step"
        if self.start_after is not None:
            text += f" after {self.start_after!r}"
        return text

    def bound(self, tokenizer: Any) -> Controller:
        """The same with the ids that `start_after` is written in, where it is text.

        A tokenizer writes a text in other tokens behind a letter than at a line's beginning, and
        may join its end with what follows: every way that a few neighbours bring about is looked
        for. A text inside a word is not.

        Raises:
            InvalidParameterError: the tokenizer makes nothing of the text.
        """
        if not isinstance(self.start_after, str):
            return self
        markers = _written(tokenizer, self.start_after)
        if not markers:
            raise InvalidParameterError(f"start_after={self.start_after!r} has no tokens")
        return replace(self, markers=markers)

    def uncontrolled(self, ids: Sequence[int]) -> int:
        """How many of an answer's first tokens come before control starts; all if it never does."""
        if self.start_after is None:
            return 0
        for end in range(1, len(ids) + 1):
            if any(tuple(ids[max(end - len(m), 0) : end]) == m for m in self._markers):
                return end
        return len(ids)

    def initial(self, batch: int, device: torch.device | str = "cpu") -> State:
        """The rule's state under `rule.*`, the gate's, and how far the marker has been written."""
        state = {f"rule.{k}": v for k, v in self.rule.initial(batch, device).items()}
        if self.gate is not None:
            state |= self.gate.initial(batch, device)
        if self.start_after is not None:
            longest = max(map(len, self._markers))
            state["recent"] = torch.full((batch, longest), -1, device=device)
            state["started"] = torch.zeros(batch, dtype=torch.bool, device=device)
        return state

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights `[batch, 1]` or `[batch, vocab]`, as the rule's.

        Scores: the rule's, under the names of the detectors that measure the same; the gate's
        detector; `active` (0 or 1) if the control is gated or waits for a marker; `strength` if a
        detector sets it.
        """
        inner = {k.removeprefix("rule."): v for k, v in state.items() if k.startswith("rule.")}
        mix = self.rule(step, inner)
        names = self.rule.detector_names
        mix = replace(mix, scores={names.get(k, k): v for k, v in mix.scores.items()})
        if self.is_bare:
            return replace(mix, state={f"rule.{k}": v for k, v in mix.state.items()})
        active = torch.ones_like(step.invalid)
        scores, after = dict(mix.scores), {}
        if self.start_after is not None:
            active, marker = self._started(step, state)
            after |= marker
        if self.gate is not None:
            is_open, score, gate = self.gate(step, state)
            # Asked before its time a gate held from the prompt on would be settled too early.
            after["gate"] = torch.where(active, gate["gate"], state["gate"])
            active = active & is_open
            scores.setdefault(self.gate.detector.replace("-", "_"), score)
        after |= {
            f"rule.{k}": torch.where(_like(active, v), v, inner[k]) for k, v in mix.state.items()
        }
        if self.when is not None or self.start_after is not None:
            scores["active"] = active.float()
        strength = active.float()
        if isinstance(self.strength, str):
            strength = strength * detectors.get(self.strength)(step).clamp(0, MAX_WEIGHT)
            scores["strength"] = strength
        else:
            strength = strength * self.strength
        if mix.edited is not None:
            mix = replace(mix, edited=mix.edited & active)
        return replace(_scaled(mix, strength.unsqueeze(-1)), scores=scores, state=after)

    @property
    def _markers(self) -> tuple[tuple[int, ...], ...]:
        if self.markers:
            return self.markers
        raise InvalidParameterError(
            f"start_after={self.start_after!r} is text: bind the controller to a tokenizer first"
        )

    def _started(self, step: Step, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows behind the marker, `[batch]` bool, and what to remember of it."""
        recent, started = state["recent"], state["started"]
        if step.previous is not None:
            newest = step.previous.to(recent.device)[:, None]
            recent = torch.cat([recent[:, 1:], newest], dim=1)
            for ids in self._markers:
                marker = torch.tensor(ids, device=recent.device)
                started = started | (recent[:, -len(ids) :] == marker).all(-1)
        return started, {"recent": recent, "started": started}


def _scaled(mix: Mix, strength: Tensor) -> Mix:
    """The mix at `[batch, 1]` strengths; 0 and 1 are exact."""
    full, off = strength == 1, strength == 0
    own = torch.where(full, mix.context_weight, 1 + strength * (mix.context_weight - 1))
    other = torch.where(full, mix.memory_weight, strength * mix.memory_weight)
    support = None if mix.support is None else mix.support | off
    bias = mix.bias
    if bias is not None:
        # A bias may hold -inf, and 0 * -inf is no number.
        bias = torch.where(off, 0.0, torch.where(full, bias, bias * strength))
    # Beyond the rules' own bound float32 scores could overflow.
    return replace(
        mix,
        context_weight=own.clamp(-MAX_WEIGHT, MAX_WEIGHT),
        memory_weight=other.clamp(-MAX_WEIGHT, MAX_WEIGHT),
        support=support,
        bias=bias,
    )


def _like(rows: Tensor, values: Tensor) -> Tensor:
    """`[batch]` as a condition on `values` `[batch, ...]`."""
    return rows.reshape(-1, *(1 for _ in values.shape[1:]))


def _strength(value: Any) -> float | str:
    if isinstance(value, str):
        return detectors.get(value).name
    return float(check("controller", _STRENGTH, value))


def _marker(value: Any) -> str | tuple[int, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) and value:
        with contextlib.suppress(UnicodeEncodeError):  # half a character is no text
            value.encode()
            return value
    known = isinstance(value, list | tuple)
    ids = [i for i in value if type(i) is int and 0 <= i < _MOST_IDS] if known else []
    if ids and len(ids) == len(value):
        return tuple(ids)
    raise InvalidParameterError(
        f"start_after must be a text or token ids that end the part without control, not {value!r}"
    )


def _written(tokenizer: Any, text: str) -> tuple[tuple[int, ...], ...]:
    """The ids that `text` is written in behind and before some neighbours, shortest first."""

    def encode(said: str) -> list[int]:
        return list(tokenizer(said, add_special_tokens=False)["input_ids"])

    found: set[tuple[int, ...]] = set()
    for before in ("", "x", "x.", "x\n", "x "):
        start = encode(before) if before else []
        for after in ("", "\n", "\n\n", " x", "x"):
            ids = encode(before + text + after)
            same = (i for i, pair in enumerate(zip(start, ids, strict=False)) if pair[0] != pair[1])
            first = next(same, min(len(start), len(ids)))
            for end in range(first + 1, len(ids) + 1):
                if text in tokenizer.decode(ids[first:end], skip_special_tokens=False):
                    found.add(tuple(ids[first:end]))
                    break
    found.add(tuple(encode(text)))
    return tuple(sorted((ids for ids in found if ids), key=lambda ids: (len(ids), ids)))


def _short(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else shortened(value)
