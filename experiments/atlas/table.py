"""Print the reach figures of all kept seeds as a table: python experiments/atlas/table.py"""

import json
from pathlib import Path

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


def table() -> str:
    """Markdown, one column per seed."""
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


if __name__ == "__main__":
    print(table())
