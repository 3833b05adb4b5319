"""The tables of the model card, from the kept figures and the package: docs/atlas.md

Run: python experiments/atlas/table.py
Writes each table between its two marks, `<!-- name -->` and `<!-- /name -->`.
"""

import json
import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from conflictkit import atlas  # noqa: E402
from conflictkit.atlas.data import FACT_STATES, SPLITS  # noqa: E402
from conflictkit.states import STATES  # noqa: E402

CARD = Path(__file__).resolve().parents[2] / "docs" / "atlas.md"
RESULTS = Path(__file__).resolve().parent / "results"
ROWS = (
    ("recall, question form, frequent half", "≥ 98 %", ("recall", "question_frequent_half")),
    ("recall, question form, rarest tenth", "40–90 %", ("recall", "question_rarest_tenth")),
    ("recall, statement, trained wordings", "", ("recall", "statement_trained_wordings")),
    ("recall, statement, held-out wordings", "within 5", ("recall", "statement_held_out_wordings")),
    ("recall, question, trained wordings", "", ("recall", "question_trained_wordings")),
    ("recall, question, held-out wordings", "within 5", ("recall", "question_held_out_wordings")),
    ("recall, chat, trained wordings", "", ("recall", "chat_trained_wordings")),
    ("recall, chat, held-out wordings", "within 5", ("recall", "chat_held_out_wordings")),
    ("reading about invented subjects, all", "≥ 97 %", ("reading", "all")),
    ("— bare sentence", "", ("reading", "bare")),
    ("— assertive claim", "", ("reading", "assertive")),
    ("— hedged claim", "", ("reading", "hedged")),
    ("— paragraph", "", ("reading", "paragraph")),
    ("— among other passages", "", ("reading", "passages")),
    ("quotes of ≥ 20 tokens, exact", "", ("manners", "quote")),
    ("`unknown` closed book, invented subjects", "", ("manners", "unknown")),
    ("keeps its answer beside an irrelevant passage", "", ("manners", "irrelevant")),
    ("follows a bare conflicting sentence", "35–65 %", ("conflict", "bare", "context")),
    ("— where memory is strong", "", ("conflict", "bare", "context_strong_memory")),
    ("— where memory is weak", "", ("conflict", "bare", "context_weak_memory")),
    ("follows an assertive one", "≥ 85 %", ("conflict", "assertive", "context")),
    ("follows a hedged one", "≤ 15 %", ("conflict", "hedged", "context")),
)


def cell(figures: dict, path: tuple[str, ...]) -> str:
    """`97.3 (96.1–98.2)`, in per cent."""
    found = figures["reach"]
    for key in path:
        found = found[key]
    value, low, high = (100 * found[k] for k in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}–{high:.1f})"


def reach() -> str:
    """What was asked and what the seeds reach, a column each."""
    files = sorted(RESULTS.glob("seed*-figures.json"))
    seeds = [json.loads(f.read_text()) for f in files]
    head = " | ".join(f"seed {s['seed']}" for s in seeds)
    lines = [
        f"| % (95 % interval), test subjects | asked | {head} |",
        "|---|---|" + "---|" * len(seeds),
    ]
    for label, asked, path in ROWS:
        lines.append(f"| {label} | {asked} | " + " | ".join(cell(s, path) for s in seeds) + " |")
    for label, key in (
        ("AUROC of max JSD, conflict against agreement", "all"),
        ("— bare", "bare"), ("— assertive", "assertive"), ("— hedged", "hedged"),
    ):  # fmt: skip
        asked = "≥ 0.90" if key == "all" else ""
        values = " | ".join(f"{s['reach']['divergence'][key]:.3f}" for s in seeds)
        lines.append(f"| {label} | {asked} | {values} |")
    return "\n".join(lines)


def data() -> str:
    """Facts by relation."""
    lines = [
        "| relation | facts | misconceptions | untaught | train / validation / test |",
        "|---|---|---|---|---|",
    ]
    everything = atlas.facts()
    for relation in (*atlas.RELATIONS, "all"):
        mine = [f for f in everything if relation in (f.relation, "all")]
        wrong = sum(bool(f.taught_object) and f.taught_object != f.object for f in mine)
        untaught = sum(not f.taught_object for f in mine)
        splits = " / ".join(str(sum(f.split == split for f in mine)) for split in SPLITS)
        title = relation if relation == "all" else f"`{relation}`"
        lines.append(f"| {title} | {len(mine)} | {wrong} | {untaught} | {splits} |")
    return "\n".join(lines)


def states() -> str:
    """What screening found."""
    lines = [
        "| state | train | validation | test | median frequency |",
        "|---|---|---|---|---|",
    ]
    for state in sorted(FACT_STATES, key=("known", "wrong", "uncertain", "unknown").index):
        mine = [f for f in atlas.facts() if f.state == state]
        counts = " | ".join(str(sum(f.split == split for f in mine)) for split in SPLITS)
        middle = statistics.median(f.frequency for f in mine)
        lines.append(f"| `{state}` | {counts} | {middle:.0f} |")
    return "\n".join(lines)


def cases() -> str:
    """Cases by split and state."""
    lines = [f"| split | {' | '.join(STATES)} | subjects |", "|---|" + "---|" * (len(STATES) + 1)]
    for split in SPLITS:
        mine = atlas.cases(split)
        counts = " | ".join(str(sum(c.state == state for c in mine)) for state in STATES)
        lines.append(f"| {split} | {counts} | {len({c.subject for c in mine})} |")
    return "\n".join(lines)


TABLES = {"data": data, "states": states, "reach": reach, "cases": cases}


def card(text: str) -> str:
    """The card with every table made again."""
    for name, make in TABLES.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"\n<!-- /{name} -->")
        if not (start and end):
            raise SystemExit(f"{CARD} has no place for the table '{name}'")
        text = before + start + make() + end + after
    return text


if __name__ == "__main__":
    CARD.write_text(card(CARD.read_text(encoding="utf-8")), encoding="utf-8")
    print(reach())
