"""conflictkit: score, control and show conflicts between a model's context and its memory.

>>> import conflictkit as ck
>>> model = ck.load("atlas")
>>> answer = model.ask(
...     "What is the capital of Poland?",
...     context="The capital of Poland is London.",
...     method="adacad",
... )

Importing this package imports neither torch nor transformers: each name is fetched when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conflictkit import anatomy, atlas, detectors, evaluation, interventions, methods, scoring
    from conflictkit.controller import Controller
    from conflictkit.custom import decode
    from conflictkit.errors import ConflictKitError
    from conflictkit.gates import Gate
    from conflictkit.policy import Policy
    from conflictkit.processor import ConflictProcessor
    from conflictkit.toolkit import load

__version__ = "0.1.0"

__all__ = [
    "ConflictKitError",
    "ConflictProcessor",
    "Controller",
    "Gate",
    "Policy",
    "__version__",
    "anatomy",
    "atlas",
    "decode",
    "detectors",
    "evaluation",
    "interventions",
    "load",
    "methods",
    "scoring",
]

# name -> (module, attribute of it; None: the module itself)
_FACE: dict[str, tuple[str, str | None]] = {
    "ConflictKitError": ("conflictkit.errors", "ConflictKitError"),
    "Controller": ("conflictkit.controller", "Controller"),
    "Gate": ("conflictkit.gates", "Gate"),
    "Policy": ("conflictkit.policy", "Policy"),
    "ConflictProcessor": ("conflictkit.processor", "ConflictProcessor"),
    "anatomy": ("conflictkit.anatomy", None),
    "atlas": ("conflictkit.atlas", None),
    "decode": ("conflictkit.custom", "decode"),
    "detectors": ("conflictkit.detectors", None),
    "evaluation": ("conflictkit.evaluation", None),
    "interventions": ("conflictkit.interventions", None),
    "load": ("conflictkit.toolkit", "load"),
    "methods": ("conflictkit.methods", None),
    "scoring": ("conflictkit.scoring", None),
}


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'conflictkit' has no attribute '{name}'")
    module, attribute = _FACE[name]
    found = importlib.import_module(module)
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
