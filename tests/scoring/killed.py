"""Runs a file of rows again and again, killing the process at random moments, until it is through.

Called by `test_resume.py` as a process of its own: `killed.py MODEL ROWS OUT SEED`. Every run is a
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
from conflictkit.scoring import score_file


def main(place: str, rows: str, out: str, seed: str) -> None:
    torch.set_num_threads(1)
    draw = random.Random(int(seed))
    model = ck.load(place)
    kills, longest = 0, 0.02
    while not os.path.exists(out) or os.path.exists(f"{out}.journal"):
        child = os.fork()
        if not child:
            status = 1
            try:
                score_file(model, rows, out, window=3, on_error="skip", scores=["jsd"])
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
        longest *= 1.1  # however slow the machine, some run gets through
    sys.stdout.write(json.dumps({"kills": kills}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
