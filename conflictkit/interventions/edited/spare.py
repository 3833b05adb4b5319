"""SpARE (Zhao et al. 2025, NAACL, arXiv 2410.15999): features of one source out, of the other in.

Features of a sparse autoencoder that tell whether the answer will follow context or memory are
found by mutual information (`conflictkit.mechanics.spare`). With z = code(h) and targets w, the
mean codes of runs that went either way, each chosen layer is edited at the prompt's last position:

    r_i = min(max(g w_i, 0), z_i)   features of the other source
    a_i = max(g w_i - z_i, 0)       features of the preferred one
    h' = h + W_dec^T (a - r)

z of a layer is that of the stream already edited below. Paper: g = 2 (Llama), 1.8 and 3 (Gemma 2).
TopK is never applied, as in released code, so that only the chosen features' rows are used. One
forward per token.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from conflictkit.errors import InvalidParameterError, SAEError
from conflictkit.interventions.activations import Edit
from conflictkit.interventions.contrast import param
from conflictkit.interventions.edited._base import SOURCES, Prompts
from conflictkit.interventions.edited._steered import PLACES, SteeredRule
from conflictkit.interventions.features import FeatureEdit
from conflictkit.interventions.sae import SAE, by_layer

Targets = dict[int, dict[int, float]]
"""Layer -> feature -> w."""

_FEATURE = re.compile(r"(\d{1,4})\.(\d{1,7}):([-+.e\d]{1,25})")


@dataclass(frozen=True)
class SpARE(SteeredRule):
    """Take out what speaks for one source, put in what speaks for the other."""

    name: ClassVar[str] = "spare"
    lists: ClassVar[tuple[str, ...]] = ("context", "memory", "sae", "digest")

    prefer: str = param("context", choices=SOURCES, doc="source to favour")
    degree: float = param(2.0, low=0, high=100, doc="g, what targets are multiplied by")
    positions: str = param("last_prompt", choices=tuple(PLACES), doc="where")
    sae: str = param("", doc="atlas, folders, or release:id, joined by +; empty: from a fit")
    digest: str = param("", doc="SHA-256 of the rows that the fit used; empty: any")
    context: str = param("", doc="layer.feature:target joined by +; empty: from a fit")
    memory: str = param("", doc="the same, of memory")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in SOURCES:
            _ = targets_of(getattr(self, name))

    @property
    def is_settled(self) -> bool:
        """Whether it knows features of either source."""
        return bool(self.context or self.memory)

    def rows(self) -> dict[int, SAE]:
        """Layer -> the autoencoder's rows of the chosen features, those of the context first.

        Raises:
            SAEError: no autoencoder of a layer, or another one than the features were found in.
        """
        both = targets_of(self.context), targets_of(self.memory)
        layers = sorted({*both[0], *both[1]})
        found = {}
        for layer in layers:
            ids = tuple(one for side in both for one in side.get(layer, {}))
            found[layer] = _rows(self.sae, layer, ids)
        if self.digest and (made := digest_of(found)) != self.digest:
            raise SAEError(
                f"spare: these features were found in another autoencoder than "
                f"'{self.sae}' ({self.digest[:12]}, not {made[:12]})"
            )
        return found

    def check_model(self, name: str, fingerprint: str) -> None:
        """Refuse a model that the autoencoders do not belong to; its width is looked at later."""
        for sae in self.rows().values():
            sae.check(name, fingerprint, sae.width, sae.layer + 1)

    def edits(self, prompts: Prompts, strength: float = 1.0) -> Mapping[str, Sequence[Edit]]:
        """One edit for each layer of the edited stream."""
        context, memory = targets_of(self.context), targets_of(self.memory)
        made: list[Edit] = []
        for layer, sae in self.rows().items():
            sides = [list(side.get(layer, {}).values()) for side in (context, memory)]
            places = dict(enumerate(self.degree * w for side in sides for w in side))
            first = {at: w for at, w in places.items() if at < len(sides[0])}
            rest = {at: w for at, w in places.items() if at >= len(sides[0])}
            add, remove = (first, rest) if self.prefer == "context" else (rest, first)
            made.append(FeatureEdit(sae, remove, add, strength, positions=PLACES[self.positions]))
        return {"edited": made}


def targets_of(text: str) -> Targets:
    """What `layer.feature:target+...` says.

    Raises:
        InvalidParameterError: it cannot be read, or names a feature twice.
    """
    found: Targets = {}
    for part in text.split("+") if text else ():
        match = _FEATURE.fullmatch(part)
        layer, feature = (int(match[1]), int(match[2])) if match else (0, 0)
        try:
            target = float(match[3]) if match else float("nan")
        except ValueError:
            target = float("nan")
        if not abs(target) < 1e9 or feature in found.get(layer, {}):
            raise InvalidParameterError(
                f"spare: cannot read the feature {part[:40]!r}: write LAYER.FEATURE:TARGET"
            )
        found.setdefault(layer, {})[feature] = target
    return found


def text_of(targets: Targets) -> str:
    """Targets as text, the other way round."""
    return "+".join(
        f"{layer}.{feature}:{target:.7g}".replace("+", "")
        for layer, side in targets.items()
        for feature, target in side.items()
    )


def digest_of(rows: Mapping[int, SAE]) -> str:
    """SHA-256 of the rows of every layer."""
    return hashlib.sha256("".join(rows[at].digest for at in sorted(rows)).encode()).hexdigest()


@lru_cache(maxsize=64)
def _rows(source: str, layer: int, ids: tuple[int, ...]) -> SAE:
    """The rows alone stay in memory."""
    places = by_layer(source.split("+"))
    if layer not in places:
        raise SAEError(f"spare: no autoencoder of layer {layer} in '{source}'")
    return SAE.load(places[layer]).select(ids)
