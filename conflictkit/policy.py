"""A policy: a controller as data, in a JSON file that runs no code.

>>> from conflictkit.policy import Policy
>>> policy = Policy.of("cad?alpha=1", when="jsd > 0.3")
>>> print(policy)
cad(alpha=1, variant=mended) when jsd > 0.3
>>> Policy.from_dict(policy.to_dict()) == policy
True
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from conflictkit import methods
from conflictkit.controller import Controller
from conflictkit.detectors.probe import LayerProbe
from conflictkit.errors import ConflictKitError, InvalidParameterError, PolicyError
from conflictkit.files import JsonFile, is_digest, write_whole
from conflictkit.gates import Gate
from conflictkit.interventions.contrast import Rule

FORMAT, VERSION = "conflictkit-policy", 1
_FILE = JsonFile("policy", PolicyError, largest=2 * 1024 * 1024, most_parts=40_000)
"""A policy is a few hundred bytes, but for directions (700 for a head) and features (20 each)."""


@dataclass(frozen=True)
class ModelTie:
    """The model that a policy was made for.

    Attributes:
        name: what the model was loaded by.
        fingerprint: `conflictkit.models.fingerprint` of its weights.
    """

    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise PolicyError("model.name must be text")
        if not is_digest(self.fingerprint):
            raise PolicyError("model.fingerprint must be 64 hexadecimal digits")


@dataclass(frozen=True)
class Calibration:
    """How a gate's threshold was found.

    Attributes:
        asked: largest share of answers without conflict that the gate may open on.
        false_alarm: share of them on which it did.
        negatives: answers without conflict it was set on.
        detection: share of answers with a conflict on which it opened; None: there were none.
        positives: their number.
    """

    asked: float
    false_alarm: float
    negatives: int
    detection: float | None
    positives: int

    def __post_init__(self) -> None:
        for name in ("asked", "false_alarm", "detection"):
            value = getattr(self, name)
            if value is None and name == "detection":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise PolicyError(f"calibration.{name} must be a number from 0 to 1")
            object.__setattr__(self, name, float(value))
        for name in ("negatives", "positives"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise PolicyError(f"calibration.{name} must be a whole number from 0")


@dataclass(frozen=True)
class Policy:
    """A controller with what it is tied to.

    Attributes:
        controller: rule, gate, strength and marker.
        model: the model it was made for; None: any.
        calibration: how its threshold was found; None: set by hand.
    """

    controller: Controller
    model: ModelTie | None = None
    calibration: Calibration | None = None

    @classmethod
    def of(cls, method: str | Rule | Controller, **parts: Any) -> Policy:
        """A policy tied to no model.

        Args:
            method: a method's name, `name?parameter=value&...`, a rule, or a whole controller.
            parts: `when`, `strength`, `start_after` of the controller.
        """
        return choose(method, parts=parts)

    def __str__(self) -> str:
        return str(self.controller) + (f" (for {self.model.name})" if self.model else "")

    def to_dict(self) -> dict[str, Any]:
        """The policy as JSON can hold it, exactly."""
        controller = self.controller
        marker = controller.start_after
        return {
            "format": FORMAT,
            "version": VERSION,
            "method": controller.rule.name,
            "params": asdict(controller.rule),
            "when": controller.gate.to_dict() if controller.gate else None,
            "strength": controller.strength,
            "start_after": list(marker) if isinstance(marker, tuple) else marker,
            "model": asdict(self.model) if self.model else None,
            "calibration": asdict(self.calibration) if self.calibration else None,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Policy:
        """A policy from what `to_dict` returned; every field is checked, none is ignored.

        Raises:
            PolicyError: not a policy, a newer version, an unknown or missing field or a bad value;
                the message names the field.
        """
        try:
            _FILE.fields("policy", data, _KEYS)
            if data["format"] != FORMAT:
                raise PolicyError(f"format must be '{FORMAT}'")
            if data["version"] != VERSION or isinstance(data["version"], bool):
                raise PolicyError(
                    f"version {data['version']!r} cannot be read: this release knows {VERSION}"
                )
            if not isinstance(data["method"], str):
                raise PolicyError("method must be text")
            _FILE.fields("params", data["params"], None)
            info = methods.describe(data["method"])
            _FILE.fields("params", data["params"], {p.name for p in info.parameters})
            when = data["when"]
            if when is not None:
                probed = isinstance(when, Mapping) and "probe" in when
                names = [one for one in Gate.__dataclass_fields__ if one != "probe" or probed]
                when = Gate.from_dict(_FILE.fields("when", when, names))
            # Not `build`: a file holds every parameter, so nothing is left to follow from others.
            rule = info.rule(**data["params"])
            return cls(
                Controller(rule, when, data["strength"], data["start_after"]),
                _part(ModelTie, "model", data["model"]),
                _part(Calibration, "calibration", data["calibration"]),
            )
        except PolicyError:
            raise
        except ConflictKitError as error:
            raise PolicyError(str(error)) from error

    def reading(self, probe: LayerProbe) -> Policy:
        """The same with this probe, where its gate wants one and has none."""
        gate = self.controller.gate
        if gate is None:
            return self
        return replace(self, controller=replace(self.controller, when=gate.reading(probe)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy as JSON; an old file is replaced in one move, or left as it was.

        Raises:
            PolicyError: the file cannot be written.
        """
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        _FILE.check(text)
        try:
            write_whole(path, text)
        except (OSError, ValueError) as error:
            raise PolicyError(f"cannot write the policy {path}: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a policy; nothing in the file is ever executed.

        Raises:
            PolicyError: no regular file, too large, not UTF-8 JSON, or not a policy; the message
                names the file and what is wrong.
        """
        try:
            return cls.from_dict(_FILE.parse(_FILE.contents(path)))
        except PolicyError as error:
            raise PolicyError(f"policy {os.fspath(path)!r}: {error}") from error

    def check(self, name: str, fingerprint: str) -> None:
        """Refuse a model that the policy was not made for.

        Raises:
            PolicyError: tied to other weights.
        """
        if self.model is not None and self.model.fingerprint != fingerprint:
            raise PolicyError(
                f"this policy was made for the model '{self.model.name}', not for '{name}': "
                'calibrate it again, or set "model" to null to use it all the same'
            )


PARTS = ("when", "strength", "start_after")
"""What a user may add to a method by keyword."""


def choose(
    method: str | Rule | Controller | None = None,
    policy: Policy | str | os.PathLike[str] | None = None,
    parts: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
) -> Policy:
    """What a user asked for by `method=` or `policy=`, wherever either may be given.

    Args:
        method: a name, `name?parameter=value&...`, a rule or a controller; None: `adacad`.
        policy: a policy or its file, instead of a method.
        parts: some of `PARTS`, for a name or a rule; None values count as not given.
        params: parameters of the method, for a name.

    Raises:
        PolicyError: the file is no policy.
        UnknownNameError, InvalidParameterError: a name or a value; two ways to say one thing.
    """
    given = {name: value for name, value in (parts or {}).items() if value is not None}
    added = [*given, *(params or {})]
    if policy is not None:
        if method is not None or added:
            what = "method" if method is not None else added[0]
            raise InvalidParameterError(f"a policy says everything: leave {what}= out")
        if isinstance(policy, Policy):
            return policy
        if not isinstance(policy, str | os.PathLike):
            raise InvalidParameterError(
                f"policy must be a Policy or a file, not {type(policy).__name__}"
            )
        return Policy.load(policy)
    method = "adacad" if method is None else method
    if isinstance(method, Controller):
        if added:
            raise InvalidParameterError(f"{added[0]}= goes into the controller itself")
        return Policy(method)
    if isinstance(method, Rule):
        if params:
            raise InvalidParameterError(f"parameters {sorted(params)} go into the rule itself")
        return Policy(Controller(method, **given))
    if not isinstance(method, str):
        raise InvalidParameterError(
            f"method must be a name, a rule or a controller, not {type(method).__name__}"
        )
    return Policy(Controller(methods.parse(method, **(params or {})), **given))


def choose_rows(
    rows: int, method: Any, policy: Any, parts: Mapping[str, Any], params: Mapping[str, Any]
) -> list[Policy]:
    """`choose` for a batch: `method` and `policy` may also be lists with one entry per row.

    Returns:
        One policy for each row, or a single one for all of them.

    Raises:
        PolicyError, UnknownNameError, InvalidParameterError: as `choose`, or lists that do not fit.
    """
    columns = {"method": method, "policy": policy}
    lists = [name for name, value in columns.items() if isinstance(value, list | tuple)]
    if not lists:
        return [choose(method, policy, parts, params)]
    for name in lists:
        if len(columns[name]) != rows:
            raise InvalidParameterError(f"{len(columns[name])} entries in {name} for {rows} rows")
    if params:
        raise InvalidParameterError(
            f"{next(iter(params))}= cannot belong to several methods: "
            "write them as name?parameter=value"
        )
    pairs = zip(*(v if n in lists else [v] * rows for n, v in columns.items()), strict=True)
    return [choose(one, other, parts) for one, other in pairs]


_KEYS = tuple(Policy.of("plain").to_dict())


def _part(kind: Any, where: str, data: Any) -> Any:
    return None if data is None else kind(**_FILE.fields(where, data, kind.__dataclass_fields__))
