"""Fit what Atlas ships: directions, features, and where it declines.

Run: python experiments/steering/ship.py
Copies the autoencoders of runs/sae/atlas (experiments/atlas/train_sae.py) into
conflictkit/atlas/saes and writes conflictkit/atlas/steering/*.json from conflicts of the train
split. Run it again whenever Atlas's weights change: the policies are tied to them, and a test
fails until it is.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from compare import LAYERS, LEARNT
from declined import PAIRS, SHARE, strangers

import conflictkit as ck
from conflictkit.interventions.sae import SAE, by_layer
from conflictkit.mechanics.steering import METHODS, fit_refusal, fit_steering

PACKAGE = Path(ck.atlas.__file__).parent
SAES = Path("runs/sae/atlas")
SPARE_SHARE = 0.003
"""Of 0.003, 0.01, 0.02, 0.03 and 0.07 the one that settles most of 96 validation disputes, either
way: where a hundred features fire, most of those that tell say the same."""


def main() -> None:
    """Copy, fit, write, and say what came out."""
    found = by_layer([str(SAES)])
    card = json.loads((SAES / "card.json").read_text(encoding="utf-8"))
    for row in card["layers"]:
        if row["layer"] not in found or SAE.load(found[row["layer"]]).digest != row["digest"]:
            raise SystemExit(f"{SAES}: the card is not of these files; run train_sae.py again")
    for old in (PACKAGE / "saes").glob("layer*"):
        shutil.rmtree(old)
    for layer, place in found.items():
        shutil.copytree(place, PACKAGE / "saes" / f"layer{layer}")
    shutil.copyfile(SAES / "card.json", PACKAGE / "saes" / "card.json")
    model = ck.load("atlas")
    cases = [one for one in ck.atlas.cases("train") if one.state in ("correction", "resistance")]
    cases = random.Random(0).sample(cases, LEARNT)
    folder = PACKAGE / "steering"
    folder.mkdir(exist_ok=True)
    for method in METHODS:
        layers = sorted(found) if method == "spare" else LAYERS
        made = fit_steering(
            model, cases, method, layers=layers, keep="runs/steering/shipped",
            **({"share": SPARE_SHARE} if method == "spare" else {}),
        )  # fmt: skip
        made.policy.save(folder / f"{method}.json")
        print(method, dict(made.about), flush=True)
    known = random.Random(0).sample(ck.atlas.cases("train", "agreement"), PAIRS)
    made = fit_refusal(model, known, strangers(PAIRS), share=SHARE)
    made.policy.save(folder / "refusal-region.json")
    print(made.about)


if __name__ == "__main__":
    main()
