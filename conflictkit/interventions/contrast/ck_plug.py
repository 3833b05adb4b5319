"""CK-PLUG, a knob between context and memory (Bi et al. 2025, arXiv 2503.15888).

On the kept tokens (top `select_top` of either stream, or at least `relative_top` times a stream's
top probability), with entropies H_c, H_m of both distributions renormalised there:

    flagged  = H_m - H_c < epsilon * H_c             (the context made the model less sure)
    fixed    : score = (1 - alpha) * l_c + (2 alpha - 1) * l_m
    adaptive : score = (2 H_m * l_c + 2 (H_c - H_m) * l_m) / D
               D = H_c + n H_m,  n = 1 + |H_c - H_m| / (H_c + H_m)

Flagged rows are scored on the kept tokens only, all others are left alone bit for bit. Weights
`[batch, 1]`. alpha 1 is memory, 0 the bare difference l_c - l_m, 0.5 ranks like plain decoding;
the adaptive weights rank like alpha = H_c / (H_c + H_m). Defaults: adaptive, epsilon 0 (the
paper's main text), select_top 10, relative_top 0.01 (what the released code uses in effect).

Where released code differs (byronBBL/CK-PLUG): it flags H_m < 2 H_c (epsilon 1), cuts unflagged
rows to the kept tokens too, ignores its relative_top argument, fails for vocabularies smaller
than select_top, and scores indistinguishable streams at alpha 0 by rounding noise (here they are
left alone, and so are streams with the same top token at alpha 0, where no evidence but the
difference remains). Its temperature, the factor 2/D above, is kept: the paper's own weights rank
tokens the same. `variant="released"` reproduces the trigger, the cut and the missing guard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from conflictkit.detectors.confidence import RELATIVE_TOP, SELECT_TOP, entropy, kept_set, restrict
from conflictkit.errors import InvalidParameterError
from conflictkit.interventions.contrast._base import Rule, param
from conflictkit.interventions.contrast._released import VARIANTS
from conflictkit.types import GATE_TOLERANCE, Mix, State, Step


@dataclass(frozen=True)
class CKPlug(Rule):
    """Where the context makes the model less sure, shift weight between the two sources."""

    name: ClassVar[str] = "ck-plug"
    detector_names: ClassVar[Mapping[str, str]] = {
        name: f"{name}_kept" for name in ("confidence_gain", "context_entropy", "memory_entropy")
    }

    alpha: float = param(0.5, low=0, high=1, doc="1: memory; naming it switches adaptive off")
    adaptive: bool = param(True, doc="weigh by the entropies instead of alpha")
    select_top: int = param(SELECT_TOP, low=1, high=1e9, doc="tokens kept per stream, with ties")
    relative_top: float = param(RELATIVE_TOP, low=0, high=1, doc="also keep this share of the top")
    epsilon: float = param(
        0.0, low=-1e3, high=1e3, doc="flag if H_m - H_c < epsilon * H_c; 0: paper, 1: released"
    )
    variant: str = param("mended", choices=VARIANTS, doc="released: cut unflagged rows, epsilon 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "released" and self.epsilon not in (0.0, 1.0):
            raise InvalidParameterError(
                f"ck-plug: variant 'released' fixes epsilon at 1, got {self.epsilon:g}"
            )

    @classmethod
    def settle(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """An alpha that somebody names is meant to act, so it switches `adaptive` off."""
        return {"adaptive": "alpha" not in given, **given}

    def __call__(self, step: Step, state: State) -> Mix:
        """Weights `[batch, 1]` on the kept set.

        Scores: `context_entropy`, `memory_entropy` and their difference `confidence_gain`, all on
        the kept tokens; `alpha`, the share of memory (adaptive: H_c / (H_c + H_m)); `flagged`.
        """
        released = self.variant == "released"
        kept = kept_set(step.context, step.memory, self.select_top, self.relative_top)
        kept = kept & step.allowed
        l_c, l_m = restrict(step.context, kept), restrict(step.memory, kept)
        h_c, h_m = entropy(l_c), entropy(l_m)
        gain = h_m - h_c
        flagged = gain < h_c
        if not released:
            flagged = (gain < self.epsilon * h_c - GATE_TOLERANCE) & ~self._idle(l_c, l_m, kept)
        context_weight, memory_weight = self._weights(h_c, h_m, flagged)
        everything = False if released else ~flagged.unsqueeze(-1)
        return Mix(
            torch.where(flagged, context_weight, 1.0).unsqueeze(-1),
            torch.where(flagged, memory_weight, 0.0).unsqueeze(-1),
            support=kept | everything,
            scores={
                "confidence_gain": gain,
                "context_entropy": h_c,
                "memory_entropy": h_m,
                "alpha": self._share(h_c, h_m),
                "flagged": flagged.float(),
            },
        )

    def _share(self, h_c: Tensor, h_m: Tensor) -> Tensor:
        """`[batch]` alpha in effect; two sure streams count as equally sure."""
        if not self.adaptive:
            return torch.full_like(h_c, self.alpha)
        total = h_c + h_m
        return torch.where(total > 0, h_c / total.clamp(min=1e-30), 0.5)

    def _weights(self, h_c: Tensor, h_m: Tensor, flagged: Tensor) -> tuple[Tensor, Tensor]:
        if not self.adaptive:
            one = torch.ones_like(h_c)
            return one * (1.0 - self.alpha), one * (2.0 * self.alpha - 1.0)
        total = torch.where(flagged, h_c + h_m, 1.0)
        scale = torch.where(flagged, h_c + h_m * (1.0 + (h_c - h_m).abs() / total), 1.0)
        return 2.0 * h_m / scale, 2.0 * (h_c - h_m) / scale

    def _idle(self, l_c: Tensor, l_m: Tensor, kept: Tensor) -> Tensor:
        """`[batch]` bool: rows in which the difference of the streams says nothing."""
        idle = (l_c - l_m).abs().masked_fill(~kept, 0.0).amax(-1) <= GATE_TOLERANCE
        if not self.adaptive and self.alpha == 0:
            idle = idle | (l_c.argmax(-1) == l_m.argmax(-1))
        return idle
