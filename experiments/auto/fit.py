"""Fit `auto` to Atlas and put the policy into the package.

Run: python experiments/auto/fit.py
Writes conflictkit/atlas/auto.json and results/fit.json. Answers are kept below runs/auto: the same
command goes on where it was cut short, and starts anew when the weights have changed.
"""

from __future__ import annotations

import json
from pathlib import Path

from common import HERE, folder, load, parser, told

import conflictkit as ck
from conflictkit.cli._progress import watching
from conflictkit.evaluation import load_run
from conflictkit.evaluation.asking import pick
from conflictkit.evaluation.auto import fit
from conflictkit.evaluation.cases import load_cases


def main() -> None:
    """Fit, write, and say what came out."""
    options = parser(__doc__)
    options.add_argument("--cases", default="atlas:validation")
    options.add_argument("--out", type=Path, default=ck.atlas.auto())
    options.add_argument("--figures", type=Path, default=HERE / "results" / "fit.json")
    arguments = options.parse_args()
    model = load(arguments)
    cases = pick(load_cases(arguments.cases), None, arguments.limit, arguments.seed)
    answers = folder(arguments, model, f"fit-{arguments.cases}")
    with watching("answering", "answers") as watch:
        fitted = fit(
            model,
            cases,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            answers=answers,
            progress=watch,
        )
    fitted.policy.save(arguments.out)
    figures = {
        "command": "python experiments/auto/fit.py",
        "cases": arguments.cases,
        "limit": arguments.limit,
        "seed": arguments.seed,
        "fit": fitted.to_dict(),
        "answers": told(load_run(answers)),
    }
    arguments.figures.parent.mkdir(parents=True, exist_ok=True)
    arguments.figures.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"{fitted.policy}\n-> {arguments.out}\n-> {arguments.figures}")


if __name__ == "__main__":
    main()
