"""Check what the built packages hold: the shipped model and facts in, experiments and tests out.

Usage: python .ci/wheel_contents.py FOLDER
"""

import sys
import tarfile
import zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
(sdist,) = folder.glob("*.tar.gz")
in_wheel = zipfile.ZipFile(wheel).namelist()
with tarfile.open(sdist) as archive:
    in_sdist = [name.partition("/")[2] for name in archive.getnames()]

problems = []
for name in (
    "conflictkit/py.typed",
    "conflictkit/atlas/auto.json",
    "conflictkit/atlas/facts.csv",
    "conflictkit/atlas/model/config.json",
    "conflictkit/atlas/saes/card.json",
    "conflictkit/atlas/saes/layer4/cfg.json",
    "conflictkit/atlas/saes/layer4/sae_weights.safetensors",
    "conflictkit/atlas/steering/spare.json",
    "conflictkit/evaluation/report/templates/report.html",
    "conflictkit/mechanics/templates/features.html",
):
    if name not in in_wheel:
        problems.append(f"{wheel.name} lacks {name}")
if not any(
    name.startswith("conflictkit/atlas/model/") and name.endswith(".safetensors")
    for name in in_wheel
):
    problems.append(f"{wheel.name} lacks the weights of Atlas")
roots = {name.partition("/")[0] for name in in_wheel}
extra = {root for root in roots if root != "conflictkit" and not root.endswith(".dist-info")}
if extra:
    problems.append(f"{wheel.name} installs more than conflictkit: {', '.join(sorted(extra))}")
for name in ("pyproject.toml", "LICENSE", "NOTICE", "Makefile", "conftest.py"):
    if name not in in_sdist:
        problems.append(f"{sdist.name} lacks {name}")
for name in (".venv", "build", "dist", "runs", "site"):
    if any(found == name or found.startswith(name + "/") for found in in_sdist):
        problems.append(f"{sdist.name} holds {name}/")
if problems:
    sys.exit("\n".join(problems))
