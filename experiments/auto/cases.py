"""Cases beside those of the shipped model: other training seeds', and ParaConflict's prompts.

`--facts` takes the facts as another seed was screened. `--style paraconflict` writes prompts on
which `auto` was not fitted, in two forms of every case that has something to claim:
`substitution` ("X is C. X is") and `coherent` (the passages, then "Question: ... Answer: X is");
the memory prompt is "X is" alone (Li, Chen & Tong 2025). Atlas never read a prompt of either form.

Run: python experiments/auto/cases.py --style paraconflict --out runs/auto/paraconflict-test.jsonl
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import conflictkit as ck
from conflictkit.evaluation.cases import write_cases
from conflictkit.types import Case

CLAIMING = ("correction", "resistance", "agreement")


def main() -> None:
    """Write the cases."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--split", default="test")
    options.add_argument("--facts", type=Path, help="a facts.csv; by default the shipped model's")
    options.add_argument("--style", choices=("atlas", "paraconflict"), default="atlas")
    arguments = options.parse_args()
    screened = ck.atlas.facts(arguments.facts)
    made = ck.atlas.cases(arguments.split, screened=screened)
    if arguments.style == "paraconflict":
        made = [case for one in made for case in forms(one)]
    else:
        made += ck.atlas.guards(arguments.split, screened=screened)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_cases(arguments.out, made)
    print(f"{len(made):,} cases -> {arguments.out}")


def forms(case: Case) -> list[Case]:
    """A case in both forms; where nothing about the question is claimed, in the second alone."""
    clean = str(case.meta["statement"])
    passages = " ".join(case.contexts)
    told = f"{passages} Question: {case.question} Answer: {clean}"
    found = [_prompted(case, "coherent", passages, told, clean)]
    if case.state in CLAIMING:
        claim = f"{clean} {case.context_answers[0]}."
        found.append(_prompted(case, "substitution", claim, f"{claim} {clean}", clean))
    return found


def _prompted(case: Case, form: str, context: str, prompt: str, clean: str) -> Case:
    return replace(
        case,
        id=f"{case.id}-{form}",
        contexts=(context,),
        context_kind=form,
        prompt=prompt,
        memory_prompt=clean,
        aligned=prompt == f"{context} {clean}",
        source="paraconflict-style",
    )


if __name__ == "__main__":
    main()
