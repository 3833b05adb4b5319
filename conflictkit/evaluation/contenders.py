"""Methods to compare: names with parameters, sweeps over a parameter, policy files.

>>> from conflictkit.evaluation.contenders import contenders
>>> [[one.label for one in group] for group in contenders("plain,ck-plug?alpha=0:1:0.5")]
[['plain'], ['ck-plug?alpha=0', 'ck-plug?alpha=0.5', 'ck-plug?alpha=1']]
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from conflictkit import methods as registry
from conflictkit.errors import ConflictKitError, InvalidParameterError, UnsupportedError
from conflictkit.plan import EDITED
from conflictkit.policy import Policy

POLICY = "policy:"
_MOST = 1000
"""Values that a sweep may have."""

Policies = Mapping[str, Policy] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Contender:
    """One method under the name that a run gives it.

    Attributes:
        label: `name` or `name?parameter=value&...`; a policy file's name without its ending.
        policy: what it does.
    """

    label: str
    policy: Policy

    @property
    def needs(self) -> tuple[str, ...]:
        """Streams it reads, the answering one first."""
        return self.policy.controller.needs


Group = tuple[Contender, ...]
"""What is decoded in one batch: a method, or all values of a sweep."""


def contenders(methods: str | Sequence[str], policies: Policies = ()) -> tuple[Group, ...]:
    """The methods that were asked for.

    Args:
        methods: specs, or one text with commas between them: `name`, `name?parameter=value&...`,
            `policy:FILE`. A value `start:stop:step` is a sweep, its end included; several sweeps
            in one spec give all combinations.
        policies: policy files, or label -> policy. The label of a method is kept for that method,
            or for what was fitted of it to a model, as `auto` is.

    Raises:
        UnknownNameError, InvalidParameterError, PolicyError: no method at all, a name, parameter
            or file that does not do, two methods of the same label, or a policy under the label of
            a method that it is not.
        UnsupportedError: a method that reads other streams than context and memory.
    """
    specs = methods.split(",") if isinstance(methods, str) else list(methods)
    groups = [_group(spec.strip()) for spec in specs if isinstance(methods, str) or spec]
    if isinstance(policies, Mapping):
        groups += [(_labelled(label, policy),) for label, policy in policies.items()]
    else:
        groups += [(_from_file(path),) for path in policies]
    found = [one for group in groups for one in group]
    if not found:
        raise InvalidParameterError("there is nothing to evaluate: name at least one method")
    labels = [one.label for one in found]
    for one in found:
        if labels.count(one.label) > 1:
            raise InvalidParameterError(f"two methods are called '{one.label}': name it once")
        for name in one.needs:
            if name not in ("context", "memory", *EDITED):
                raise UnsupportedError(
                    f"method '{one.label}' needs the stream '{name}', which an evaluation does not "
                    "read"
                )
    return tuple(groups)


def _from_file(path: str | os.PathLike[str]) -> Contender:
    return _labelled(Path(path).stem, Policy.load(path))


def _labelled(label: str, policy: Policy) -> Contender:
    """A policy under its label, unless that is how a run calls something else."""
    try:
        meant = Policy.of(label).controller
    except ConflictKitError:  # the label of no method
        return Contender(label, policy)
    mine, bare = policy.controller, Policy.of(policy.controller.rule).controller
    fitted = policy.model is not None and mine == bare and mine.rule.name == label
    if mine != meant and not fitted:
        raise InvalidParameterError(
            f"the policy called '{label}' is not the method of that name, and would pass for it: "
            "rename its file (in Python: its key)"
        )
    return Contender(label, policy)


def _group(spec: str) -> Group:
    if spec.startswith(POLICY):
        return (_from_file(spec.removeprefix(POLICY)),)
    name, mark, query = spec.partition("?")
    pairs = [pair.partition("=")[::2] for pair in query.split("&")] if mark else []
    several = {key: list(_values(spec, key, text)) for key, text in pairs if text.count(":") == 2}
    first = [(key, several[key][0] if key in several else text) for key, text in pairs]
    # Says what is wrong with names, parameters and the form of the spec.
    registry.parse(name + mark + "&".join(f"{key}={text}" for key, text in first))
    order = [parameter.name for parameter in registry.describe(name).parameters]
    pairs.sort(key=lambda pair: order.index(pair[0]))
    choices = [several.get(key, [text]) for key, text in pairs]
    keys = [key for key, _ in pairs]
    return tuple(_contender(name, keys, texts) for texts in itertools.product(*choices))


def _contender(name: str, keys: Sequence[str], texts: Sequence[str]) -> Contender:
    rule = registry.parse(
        f"{name}?{'&'.join(f'{k}={t}' for k, t in zip(keys, texts, strict=True))}" if keys else name
    )
    shown = [f"{key}={_shortest(getattr(rule, key))}" for key in keys]
    label = f"{name}?{'&'.join(shown)}" if shown else name
    return Contender(label, Policy.of(rule))


def _shortest(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _values(spec: str, key: str, text: str) -> Iterator[str]:
    """The values of `start:stop:step`, exactly as decimal numbers count."""
    wrong = InvalidParameterError(
        f"method '{spec}': cannot read the sweep '{key}={text}', write start:stop:step with "
        f"start at most stop, a step above 0 and at most {_MOST} values"
    )
    try:
        start, stop, step = (Decimal(part) for part in text.split(":"))
    except InvalidOperation as error:
        raise wrong from error
    if not all(part.is_finite() for part in (start, stop, step)) or step <= 0 or start > stop:
        raise wrong
    if (stop - start) / step >= _MOST:
        raise wrong
    while start <= stop:
        yield f"{start.normalize():f}"
        start += step
