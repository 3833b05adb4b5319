"""One training seed of Atlas with its cases and rankings: what the stages of `run.py` share."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rank import CASES, FEW, HOW

import conflictkit as ck
from conflictkit.cli._progress import watching
from conflictkit.detectors import divergence
from conflictkit.evaluation import Run, evaluate
from conflictkit.evaluation.cases import cases_hash
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.mechanics.ranking import rank
from conflictkit.scoring.run import Progress
from conflictkit.streams import Stream
from conflictkit.types import Case

HERE = Path(__file__).resolve().parent
SEEDS = HERE.parent / "atlas" / "seeds"
BY = ("attribution", "attention-mass", "path-patching", "juice")
KINDS = ("bare", "assertive", "hedged")
CONFLICTS = ("correction", "resistance")
GUARDS = ("agreement", "reading", "recall")
ALLOWED = 0.02
"""Share of a guard that a setting may lose against `plain`."""
ROWS = 32
"""Prompts that are read at once."""


@dataclass(frozen=True)
class Seed:
    """A training seed: its weights, its cases, and where its answers are kept.

    Attributes:
        name: `seed0`, ...
        runs: folder for answers; a cut run goes on from there.
        share: part of every sample to use, 1 for results.
    """

    name: str
    runs: Path
    share: float = 1.0

    @cached_property
    def model(self) -> Any:
        """The toolkit's model; the tokenizer is the same for all seeds."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(ck.atlas.path())
        return ck.load(SEEDS / self.name, tokenizer=tokenizer)

    @cached_property
    def facts(self) -> list[Any]:
        """What this seed knows, as it was screened."""
        return ck.atlas.facts(SEEDS / self.name / "facts.csv")

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of what the figures depend on, and the hash of the test cases they are made from."""
        import transformers

        return {
            "conflictkit": ck.__version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "test cases": cases_hash(self.cases("test")),
        }

    def cases(self, split: str) -> list[Case]:
        """Conflicts, agreement and guards of a split."""
        made = ck.atlas.cases(split, screened=self.facts)
        made += ck.atlas.guards(split, screened=self.facts)
        return [one for one in made if one.state in (*CONFLICTS, *GUARDS)]

    def drawn(self, split: str, sizes: Mapping[str, int]) -> list[Case]:
        """So many cases of each kind of conflict and of each guard, the same ones every time."""
        pools: dict[str, list[Case]] = {name: [] for name in sizes}
        for case in self.cases(split):
            name = case.context_kind if case.state in CONFLICTS else case.state
            if name in pools:
                pools[name].append(case)
        draw = random.Random(0)
        found: list[Case] = []
        for name, pool in pools.items():
            count = min(len(pool), max(2, round(sizes[name] * self.share)))
            found += draw.sample(pool, count)
        return found

    @cached_property
    def rankings(self) -> dict[str, HeadRanking]:
        """Of conflicts of the train split, as `rank.py` makes the shipped ones."""
        folder = self.runs / self.name / "heads"
        folder.mkdir(parents=True, exist_ok=True)
        cases = ck.atlas.cases("train", screened=self.facts)
        found = {}
        for by in BY:
            out = folder / f"{by}.json"
            if not out.exists():
                with watching(f"{self.name}: {by}", "cases") as watch:
                    rank(
                        self.model, cases, by=HOW.get(by, by), out=out,
                        limit=FEW if by == "juice" else CASES,
                        progress=lambda done, total, tell=watch: tell(Progress(done, done / total)),
                    )  # fmt: skip
            found[by] = HeadRanking.read(out)
            found[by].check(self.model.name, self.model.fingerprint)
            if found[by].cases_hash != cases_hash(cases):
                raise SystemExit(f"{out} was made from other cases: delete it")
        return found

    def answered(self, what: str, cases: Sequence[Case], methods: Sequence[str]) -> Run:
        """Every case under every method; kept, so that it is done once."""
        with watching(f"{self.name}: {what}", "answers") as watch:
            return evaluate(
                self.model,
                cases,
                list(dict.fromkeys(methods)),
                self.runs / self.name / what,
                spec=what,
                batch_size=64,
                top=1,
                progress=watch,
            )

    @torch.no_grad()
    def diverged(self, cases: Sequence[Case], *, by_length: bool = False) -> torch.Tensor:
        """JSD of the streams at the first token of every case: `[cases]`.

        Args:
            cases: read in this order.
            by_length: read cases of like length together: less padding. The weights are bfloat16,
                so who is read together moves a value, by up to 0.05.
        """
        found = torch.zeros(len(cases))
        prompts = [self.model.prompts(one.question, list(one.contexts)) for one in cases]
        order = list(range(len(prompts)))
        if by_length:
            order.sort(key=lambda row: len(prompts[row]["context"].ids))
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            logs = []
            for side in ("context", "memory"):
                ids = [prompts[row][side].ids for row in rows]
                stream = Stream(self.model.model, ids, pad_id=0, use_cache=False)
                logs.append(stream.prefill().float().log_softmax(-1))
            found[rows] = divergence.jsd(*logs)
        return found
