"""Evaluates again and again, killing the process at random moments, until a run is through.

Called by `test_folder.py` as a process of its own: `killed.py MODEL CASES OUT SEED`. Every run is a
child of its own that nothing warns; the parent only imports what they share.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

import torch

import conflictkit as ck
from conflictkit.evaluation import evaluate


def main(place: str, cases: str, out: str, seed: str) -> None:
    torch.set_num_threads(1)
    draw = random.Random(int(seed))
    model = ck.load(place)
    kills, longest = 0, 0.05
    while True:
        child = os.fork()
        if not child:
            status = 1
            try:
                evaluate(
                    model, cases, "plain,memory,grd,ck-plug?alpha=0:1:0.5", out,
                    batch_size=2, max_new_tokens=4,
                )  # fmt: skip
                status = 0
            finally:
                os._exit(status)
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        elif os.WEXITSTATUS(status):
            sys.exit("a run failed by itself")
        else:
            break
        longest *= 1.15  # however slow the machine, some run gets through
    sys.stdout.write(json.dumps({"kills": kills}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
