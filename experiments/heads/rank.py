"""The rankings that ship with Atlas, one for each analysis that a method takes its heads from.

Run: python experiments/heads/rank.py
Writes conflictkit/atlas/heads/*.json, from 300 conflict cases of the train split; the same command
goes on where it was cut short. Run it again whenever Atlas's weights change: a ranking is tied to
them, and a test fails until it is.
"""

from __future__ import annotations

from pathlib import Path

import conflictkit as ck
from conflictkit.cli._progress import watching
from conflictkit.interventions.edited import EditRule
from conflictkit.mechanics.ranking import rank
from conflictkit.scoring.run import Progress

CASES = 300
FOLDER = Path(ck.atlas.__file__).parent / "heads"


def analyses() -> list[str]:
    """What some method takes its heads from."""
    rules = [ck.methods.describe(name).rule for name in ck.methods.names(edits=True)]
    return sorted({rule.ranked_by for rule in rules if issubclass(rule, EditRule)})


def main() -> None:
    """Rank, write, and say the best heads."""
    model, cases = ck.load("atlas"), ck.atlas.cases("train")
    FOLDER.mkdir(exist_ok=True)
    for by in analyses():
        with watching(by, "cases") as watch:
            out = FOLDER / f"{by}.json"
            found = rank(
                model, cases, by=by, limit=CASES, out=out, overwrite=True,
                progress=lambda done, total, tell=watch: tell(Progress(done, done / total)),
            )  # fmt: skip
        best = {kind: found.top(kind, 3) for kind in found.scores}
        print(by, found.cases, best, found.enlarge, found.suppress)


if __name__ == "__main__":
    main()
