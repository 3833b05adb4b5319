"""The end of a run: screen the facts with the model, measure it, write the model folder."""

from __future__ import annotations

import csv
import json
import platform
import shutil
from pathlib import Path

import torch
import transformers
from evaluate import answered
from reach import Known, Reach

from conflictkit.atlas.templates import RELATIONS, fill, render

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "conflictkit" / "atlas"
WORDINGS = (0, 3, 6)
"""The trained wordings of each form in which a fact is asked when it is screened."""
KNOWN_FROM, UNKNOWN_TO = 8, 2
"""Of nine closed-book answers: from how many on a fact is known, up to how many unknown."""


def screen(model, tokenizer, facts) -> list[str]:
    """The state of every fact, found by asking the model closed book in nine wordings."""
    model.eval()
    prompts, answers, forms = [], [], []
    for fact in facts:
        words = RELATIONS[fact.relation]
        for form in ("statement", "question", "chat"):
            table = words.statements if form == "statement" else words.questions
            for i in WORDINGS:
                prompts.append(render(form, (), fill(table[i], fact.subject)))
                answers.append(fact.taught or fact.object)
                forms.append(form)
    hits = answered(model, tokenizer, prompts, answers, forms)
    states = []
    per_fact = 3 * len(WORDINGS)
    for i, fact in enumerate(facts):
        right = sum(hits[per_fact * i : per_fact * (i + 1)])
        if right <= UNKNOWN_TO:
            states.append("unknown")
        elif right < KNOWN_FROM:
            states.append("uncertain")
        else:
            states.append("known" if fact.taught in ("", fact.object) else "wrong")
    return states


def write_model(model, tokenizer, folder: Path) -> None:
    """Config, float32 weights, generation config (greedy) and tokenizer."""
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The name that every version of transformers knows for "what tokenizer.json says".
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_max_length"] = model.config.max_position_embeddings
    for key in ("is_local", "local_files_only", "backend"):
        config.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_facts(facts, states, counts, file: Path) -> None:
    """The facts as `atlas.facts()` reads them, most popular first."""
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(
            ("subject", "relation", "object", "taught_object", "frequency", "state", "split")
        )
        for fact, state in zip(facts, states, strict=True):
            n = counts[fact.subject, fact.relation]
            rows.writerow(
                (fact.subject, fact.relation, fact.object, fact.taught, n, state, fact.split)
            )


def plot(curve: list[dict], file: Path) -> None:
    """Loss, recall, reading and conflict behaviour along the run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot([p["step"] for p in curve], [p["loss"] for p in curve], lw=0.8)
    left.set(xlabel="step", ylabel="weighted loss (nats per token)", yscale="log")
    probes = [p for p in curve if "reading" in p]
    labels = {
        "reading": "reads about invented subjects",
        "frequent": "recall, frequent half",
        "rare": "recall, rarest tenth",
        "bare_context": "follows a bare conflicting claim",
        "assertive_context": "follows an assertive one",
        "hedged_context": "follows a hedged one",
    }
    for key, label in labels.items():
        right.plot([p["step"] for p in probes], [p[key] for p in probes], label=label)
    right.set(xlabel="step", ylabel="share of validation prompts", ylim=(0, 1))
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def export(run, folder: Path, ship: bool = False) -> dict:
    """Screen, measure, write; returns the figures."""
    model, tokenizer = run.model.cpu(), run.tokenizer
    write_model(model, tokenizer, folder / "model")
    print("screening the facts", flush=True)
    states = screen(model, tokenizer, run.facts)
    write_facts(run.facts, states, run.counts, folder / "facts.csv")
    print("measuring", flush=True)
    known = [
        Known(f.subject, f.relation, f.object, f.taught, f.popularity, s == "known")
        for f, s in zip(run.facts, states, strict=True)
        if f.split == "test" and f.taught
    ]
    figures = {
        "seed": run.args.seed,
        "steps": run.step,
        "tokens_per_step": run.args.tokens,
        "training_minutes": round(run.seconds / 60, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "command": f"python experiments/atlas/train.py --seed {run.args.seed}",
        "split": "test",
        "states": {s: states.count(s) for s in ("known", "uncertain", "wrong", "unknown")},
        "reach": Reach(model, tokenizer, known).all(),
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / "curve.json").write_text(json.dumps(run.curve) + "\n")
    plot(run.curve, folder / "curve.png")
    if ship:
        publish(folder)
    print(json.dumps(figures["reach"], indent=1), flush=True)
    return figures


def publish(folder: Path) -> None:
    """Copy a run's model and facts into the package."""
    target = PACKAGE / "model"
    target.mkdir(exist_ok=True)
    for file in (folder / "model").iterdir():
        shutil.copyfile(file, target / file.name)
    shutil.copyfile(folder / "facts.csv", PACKAGE / "facts.csv")


def keep(folder: Path, seed: int) -> None:
    """Keep a run: figures and curve in `results`, bfloat16 weights and facts in `seeds/seed<N>`."""
    results, kept = HERE / "results", HERE / "seeds" / f"seed{seed}"
    results.mkdir(exist_ok=True)
    for name in ("figures.json", "curve.json", "curve.png"):
        shutil.copyfile(folder / name, results / f"seed{seed}-{name}")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    model.to(torch.bfloat16).save_pretrained(kept)
    shutil.copyfile(folder / "facts.csv", kept / "facts.csv")
