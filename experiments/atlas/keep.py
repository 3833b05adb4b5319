"""Keep a finished run: python experiments/atlas/keep.py --seed 0 [--ship]

Copies its figures and curve to `results`, its weights as bfloat16 to `seeds`; `--ship` also puts
the model and its screened facts into the package.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from export import keep, publish  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="run folder, if not runs/seed<N>")
    parser.add_argument("--ship", action="store_true", help="put it into the package")
    args = parser.parse_args()
    folder = args.run or HERE / "runs" / f"seed{args.seed}"
    keep(folder, args.seed)
    if args.ship:
        publish(folder)
