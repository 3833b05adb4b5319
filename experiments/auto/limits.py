"""What can be known: telling corrections from resistances where `auto` has to.

At the first disagreement the context is right (correction) or wrong (resistance). Several judges
try to tell which: the seven signals; the weight at which an answer turns, by which constant weights
order the cases; the residual stream at the prompt's last position; and, which no rule is told, the
form of the passage. Each is a logistic regression judged on subjects it was not fitted on. Beside
its AUROC stands the best minimum of correction and resistance that its order allows: whole answers
taken from the context stream above a threshold found in hindsight, and from memory below it.

Run: python experiments/auto/limits.py [--model SEED --tokenizer ATLAS --cases FILE --name seed1]
Reads the answers that fit.py kept below runs/auto (and makes them, if they are not there); writes
results/limits-<name>.json and .md.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, folder, load, parser, told

from conflictkit.anatomy import find
from conflictkit.cli._progress import watching
from conflictkit.evaluation import Run, auto, load_run
from conflictkit.evaluation.asking import pick
from conflictkit.evaluation.cases import load_cases
from conflictkit.evaluation.logistic import Flags, held_out
from conflictkit.evaluation.metrics.intervals import Array
from conflictkit.evaluation.metrics.rates import MINIMUM
from conflictkit.mechanics.capture import capture

FORMS = ("assertive", "bare")
"""Of passages; hedged ones are what is left."""
STRONG = 100.0
"""Penalty of lines over a whole stream: as many numbers as there are cases."""


def main() -> None:
    """Judge, write, show."""
    options = parser(__doc__)
    options.add_argument("--cases", default="atlas:validation")
    options.add_argument("--name", default="atlas")
    options.add_argument("--results", type=Path, default=HERE / "results")
    arguments = options.parse_args()
    model = load(arguments)
    answers = folder(arguments, model, f"fit-{arguments.cases}")
    cases = pick(load_cases(arguments.cases), None, arguments.limit, arguments.seed)
    with watching("answering", "answers") as watch:
        auto.fit(
            model, cases, seed=arguments.seed, batch_size=arguments.batch_size,
            answers=answers, progress=watch,
        )  # fmt: skip
    run = load_run(answers)
    figures = {
        "command": "python experiments/auto/limits.py",
        "cases": arguments.cases,
        **judged(run, model, arguments.seed),
        "answers": told(run),
    }
    path = arguments.results / f"limits-{arguments.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(figures), encoding="utf-8")
    print(page(figures))


def judged(run: Run, model: Any, seed: int) -> dict[str, Any]:
    """Judge -> AUROC with its interval, and the best minimum in hindsight."""
    answered = auto.read(run)
    decided = answered.differ & np.isin(answered.states, MINIMUM)
    right = answered.states == MINIMUM[0]
    found = {}
    for name, scores in judges(run, answered, decided, right, model, seed):
        area, low, high = auto.auroc(
            scores[decided], right[decided], answered.subjects[decided], seed
        )
        found[name] = {
            "auroc": area, "low": low, "high": high, "minimum": minimum(answered, decided, scores)
        }  # fmt: skip
    count = {state: int((decided & (answered.states == state)).sum()) for state in MINIMUM}
    return {"n": count, "judges": found}


def judges(
    run: Run, answered: auto.Answered, decided: Flags, right: Flags, model: Any, seed: int
) -> Iterator[tuple[str, Array]]:
    """Name and judgement of every case, higher where the context is more likely to be right."""
    ids = list(dict.fromkeys(result.case for result in run.results))
    by_id = {case.id: case for case in run.cases}
    cases = [by_id[one] for one in ids]

    def line(signals: Array, known: Flags = decided, yes: Flags = right) -> Array:
        return held_out(signals, yes, known, answered.subjects, seed)

    yes = np.isin(answered.states, auto.RIGHT)
    known = answered.differ & (yes | np.isin(answered.states, auto.WRONG))
    yield "seven signals, as auto is fitted", line(answered.signals, known, yes)
    yield "seven signals, fitted to these two states alone", line(answered.signals)
    yield "weight at which the answer turns", turns(run, ids)
    with tempfile.TemporaryDirectory() as out:
        layers = range(len(find(model.model).layers))
        kept = capture(model, cases, Path(out) / "kept", kinds=["residual"], layers=layers)
        for layer in layers:
            stream = kept.values("residual", layer).double().numpy()
            yield f"residual stream behind layer {layer}", held_out(
                stream, right, decided, answered.subjects, seed, STRONG
            )  # fmt: skip
    form = np.array([[case.context_kind == kind for kind in FORMS] for case in cases], float)
    yield "the passage's form (not told)", line(form)
    yield "its form and the seven signals", line(np.hstack([form, answered.signals]))
    yield "the truth", right.astype(float)


def turns(run: Run, ids: list[str]) -> Array:
    """At how many of the weights from 0 to 1 a case is answered as at 1."""
    weights = auto.held_weights(run)
    given: dict[str, dict[float, str]] = {}
    for result in run.results:
        given.setdefault(result.case, {})[weights[result.method]] = result.answer
    inside = [weight for weight in weights.values() if weight <= 1]
    return np.array([sum(given[one][w] == given[one][1.0] for w in inside) for one in ids], float)


def minimum(answered: auto.Answered, decided: Flags, scores: Array) -> float:
    """The best minimum of correction and resistance over all thresholds."""
    context, memory = (answered.right[:, answered.weights.index(w)] for w in (1.0, 0.0))
    found = []
    for bound in [*np.unique(scores[decided]), np.inf]:
        got = np.where((scores >= bound) | ~answered.differ, context, memory)
        found.append(min(float(got[answered.states == state].mean()) for state in MINIMUM))
    return max(found)


def page(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    model, counts = figures["answers"]["model"], figures["n"]
    rows = [
        f"| {name} | {told['auroc']:.3f} ({told['low']:.3f} to {told['high']:.3f}) "
        f"| {100 * told['minimum']:.1f} |"
        for name, told in figures["judges"].items()
    ]
    return "\n".join(
        [
            f"# What can be known on {figures['cases']}",
            "",
            f"Made by `{figures['command']}`: model {model['name']} "
            f"({model['fingerprint'][:12]}). "
            f"Can {counts['correction']:,} corrections be told from {counts['resistance']:,} "
            "resistances at the first disagreement, on subjects left out of the fit? The best "
            "minimum of correction and resistance (per cent) is that of whole answers from one "
            "stream each, with a threshold found in hindsight: more than a rule can count on.",
            "",
            "| judged by | AUROC | best minimum |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
