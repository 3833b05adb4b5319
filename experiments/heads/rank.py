"""The rankings that ship with Atlas, one for each analysis that a method takes its heads from.

Run: python experiments/heads/rank.py
Writes conflictkit/atlas/heads/*.json, from conflict cases of the train split; the same command goes
on where it was cut short. Run it again whenever Atlas's weights change: a ranking is tied to them,
and a test fails until it is.
"""

from __future__ import annotations

from pathlib import Path

import conflictkit as ck
from conflictkit.cli._progress import watching
from conflictkit.interventions.edited import EditRule
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.mechanics.ranking import rank
from conflictkit.scoring.run import Progress

CASES, FEW = 300, 24
"""Cases that a ranking is made from; the second for JuICE, which reads 25 times as much for each of
three prompts, and took four in its paper."""
FOLDER = Path(ck.atlas.__file__).parent / "heads"


HOW = {
    # Relative changes of probabilities near 0 are large: a few cases would decide.
    "path-patching": "path-patching?measure=logit",
    # With the paper's strengths no head helps, or harms, in all three prompts here.
    "juice": "juice-gentle",
}
"""What a method's analysis is on Atlas, where it is not the default."""


def analyses() -> list[str]:
    """What some method takes its heads from."""
    rules = [ck.methods.describe(name).rule for name in ck.methods.names(edits=True)]
    return sorted({rule.ranked_by for rule in rules if issubclass(rule, EditRule)})


def main() -> None:
    """Rank, write, and say the best heads."""
    model, cases = ck.load("atlas"), ck.atlas.cases("train")
    FOLDER.mkdir(exist_ok=True)
    for by in analyses():
        out = FOLDER / f"{by}.json"
        if out.exists() and HeadRanking.read(out).fingerprint == model.fingerprint:
            continue
        with watching(by, "cases") as watch:
            found = rank(
                model, cases, by=HOW.get(by, by), out=out, overwrite=True,
                limit=FEW if by == "juice" else CASES,
                progress=lambda done, total, tell=watch: tell(Progress(done, done / total)),
            )  # fmt: skip
        best = {kind: found.top(kind, 3) for kind in found.scores}
        print(by, found.cases, best, found.enlarge, found.suppress)


if __name__ == "__main__":
    main()
