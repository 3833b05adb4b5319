"""What every contrast rule shares: checked parameters, the mix of two streams, `combine`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from conflictkit.errors import InvalidParameterError, LogitsError
from conflictkit.types import Combined, Mix, State, Step

MAX_WEIGHT = 1e6
"""Upper bound of contrast strengths: beyond it float32 scores could overflow."""

# Stands for -inf while weighing, so that 0 * -inf and inf - inf cannot happen; MAX_WEIGHT times
# this is still finite in float32.
_FLOOR = -1e30


@dataclass(frozen=True)
class Parameter:
    """One parameter of a rule, as it is checked and documented.

    Attributes:
        name: keyword of the rule.
        kind: `bool`, `int`, `float` or `str`.
        default: value if not given.
        low, high: inclusive bounds of a number; None: unbounded.
        choices: the words allowed for a `str`; none: any.
        doc: one line.
    """

    name: str
    kind: str
    default: bool | int | float | str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    doc: str

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.kind == "bool":
            return "true or false"
        if self.kind == "str":
            return f"one of {', '.join(self.choices)}" if self.choices else "text"
        article = "an int" if self.kind == "int" else "a finite float"
        low = "" if self.low is None else f" from {self.low:g}"
        high = "" if self.high is None else f" up to {self.high:g}"
        return f"{article}{low}{high}"


def param(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    doc: str = "",
) -> Any:
    """Declare a rule's dataclass field; the default's type is the type demanded."""
    about = {"default": default, "low": low, "high": high, "choices": tuple(choices), "doc": doc}
    return field(default=default, metadata=about)


def parameters(rule: type[Rule] | Rule) -> tuple[Parameter, ...]:
    """The parameters of a rule, in the order of its fields."""
    return tuple(
        Parameter(name=item.name, kind=type(item.default).__name__, **item.metadata)
        for item in fields(rule)
    )


def check(owner: str, parameter: Parameter, value: Any) -> bool | int | float | str:
    """`value` as the parameter's type.

    Raises:
        InvalidParameterError: wrong type, not finite, out of range, or not one of the choices.
    """
    wanted = parameter.kind
    if wanted == "bool" and isinstance(value, bool):
        return value
    if wanted == "str" and isinstance(value, str) and value in (parameter.choices or (value,)):
        return value
    if wanted in ("int", "float") and not isinstance(value, bool):
        number = None
        if wanted == "int" and isinstance(value, numbers.Integral):
            number = int(value)
        elif wanted == "float" and isinstance(value, numbers.Real):
            number = _as_float(value)
        low = -math.inf if parameter.low is None else parameter.low
        high = math.inf if parameter.high is None else parameter.high
        if number is not None and math.isfinite(number) and low <= number <= high:
            return number
    raise InvalidParameterError(
        f"{owner}: parameter '{parameter.name}' is {value!r}, expected {parameter.expected}"
    )


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int that no float can hold
        return math.inf


@dataclass(frozen=True)
class Rule:
    """How to weigh the streams at one step; parameters are checked on construction.

    A rule holds no state of its own: what it remembers travels in `State`, one entry per row, so
    that beams may reorder it and drafts may roll it back. Rows never influence each other, and
    neither `__call__` nor `mix` waits for the device.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ("context", "memory")
    # Detectors that measure what a score of this rule calls by another detector's name.
    detector_names: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for parameter in parameters(self):
            value = check(self.name, parameter, getattr(self, parameter.name))
            object.__setattr__(self, parameter.name, value)

    @classmethod
    def settle(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters a user named, with those that follow from them."""
        return dict(given)

    def initial(self, batch: int, device: torch.device | str = "cpu") -> State:
        """What `batch` rows remember before their first step."""
        return {}

    def __call__(self, step: Step, state: State) -> Mix:
        """Decide the weights of one step, given what the rows remember."""
        raise NotImplementedError

    def combine(
        self,
        context_logits: Tensor | None,
        memory_logits: Tensor | None,
        state: State | None = None,
    ) -> Combined:
        """Apply the rule to one position's raw logits.

        Args:
            context_logits, memory_logits: `[batch, vocab]`, any floating dtype; None only for a
                stream that the rule does not need.
            state: `Combined.state` of the position before; None at the first.

        Raises:
            InvalidParameterError: missing streams, or shapes, dtypes or devices that do not fit.
            LogitsError: rows with NaN, +inf or nothing finite.
        """
        given = {"context": context_logits, "memory": memory_logits}
        streams = {name: logits for name, logits in given.items() if logits is not None}
        _check_streams(self, streams)
        step = Step.from_logits(streams)
        if step.invalid.any():
            rows = step.invalid.nonzero().flatten().tolist()
            raise LogitsError(
                f"{self.name}: logits of row(s) {rows} hold NaN or +inf, or no finite entry that "
                "all streams share; mask tokens with -inf and leave at least one"
            )
        start = self.initial(len(step.logits), step.logits.device)
        if state is None:
            state = start
        elif {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in start.items()}:
            raise InvalidParameterError(
                f"{self.name}: the state does not belong to this rule and {len(step.logits)} "
                "row(s): pass the state of the step before, or None at the first step"
            )
        return mix(step, self(step, state))


def weights(step: Step, context: float, memory: float) -> tuple[Tensor, Tensor]:
    """The same two weights for every row: `[batch, 1]` each."""
    rows = step.logits.new_ones(step.logits.shape[0], 1)
    return rows * context, rows * memory


def mix(step: Step, decision: Mix) -> Combined:
    """Carry out a rule's decision: `log_softmax(w_c * l_c + w_m * l_m [+ bias])` on the support.

    Tokens off the support, and tokens at -inf in the answering stream, are -inf. A support that
    would empty a row is ignored in that row. Rows with weights (1, 0), no bias and full support
    are the answering stream's logits bit for bit, and so are rows that the step marks as invalid
    (whose weights and scores mean nothing).
    """
    own, other, name = decision.context_weight, decision.memory_weight, "memory"
    logits, speaker = step.logits, step.logprobs[step.answering]
    if step.answering == "memory":
        own, other, name = other, own, "context"
    elif decision.edited is not None and step.answering != "edited":
        rows = decision.edited.unsqueeze(-1)
        speaker = torch.where(rows, step.logprobs["edited"], speaker)
        logits = torch.where(rows, speaker, logits)
    reference = step.logprobs.get(name) if decision.reference is None else decision.reference
    scores = own * speaker.clamp(min=_FLOOR)
    if reference is not None:
        scores = scores + other * reference.clamp(min=_FLOOR)
    untouched = ((own == 1) & (other == 0)).all(-1, keepdim=True)
    kept = step.allowed
    if decision.bias is not None:
        scores = scores + decision.bias
        untouched = untouched & (decision.bias == 0).all(-1, keepdim=True)
    if decision.support is not None:
        supported = decision.support & step.allowed
        kept = torch.where(supported.any(-1, keepdim=True), supported, step.allowed)
        untouched = untouched & (kept == step.allowed).all(-1, keepdim=True)
    untouched = untouched | step.invalid.unsqueeze(-1)
    scores = scores.masked_fill(~kept, -torch.inf).log_softmax(-1)
    return Combined(
        torch.where(untouched, logits, scores),
        decision.context_weight,
        decision.memory_weight,
        decision.scores,
        decision.state,
    )


def _check_streams(rule: Rule, streams: dict[str, Tensor]) -> None:
    absent = [name for name in rule.needs if name not in streams]
    if absent:
        raise InvalidParameterError(f"{rule.name}: needs {absent[0]}_logits, got None")
    if not streams:
        raise InvalidParameterError(f"{rule.name}: needs the logits of at least one stream")
    for name, logits in streams.items():
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidParameterError(
                f"{rule.name}: {name}_logits must be a floating tensor [batch, vocab], got {kind}"
            )
        if logits.dim() != 2 or logits.shape[1] == 0:
            raise InvalidParameterError(
                f"{rule.name}: {name}_logits must have shape [batch, vocab], "
                f"got {list(logits.shape)}"
            )
    first, *others = streams.values()
    for logits in others:
        if logits.shape != first.shape or logits.device != first.device:
            raise InvalidParameterError(
                f"{rule.name}: context_logits {list(first.shape)} on {first.device} and "
                f"memory_logits {list(logits.shape)} on {logits.device} must have the same shape "
                "and device"
            )
