"""All of what docs/speed.md says, measured and written: python experiments/speed/run.py

Each part is a process of its own; a part that has written its file is not measured again (the
cells of `generate` one by one), unless `--again`. About half an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from store import OUT

HERE = Path(__file__).resolve().parent
PARTS = ("generate", "copying", "score", "leaks")
TINY = {
    "generate": "--shapes tiny --contexts 64 128 --batches 1 4 16 --seconds 1 --most 3 --tokens 6 "
    "--copied 1000000",
    "copying": "--questions 4 --rounds 2",
    "score": "--shape tiny --pairs 2 --context 60",
    "leaks": "--answers 40",
}
"""Sizes that prove that everything runs, and measure nothing."""
CACHES = "--shapes 0.15B --contexts 4096 --batches 1 --roads plain sequential packed"
"""Of the length at which caches are asked about."""


def main() -> None:
    """Run what is asked for, then tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="measure finished parts again")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a trial of the code")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--docs", type=Path, help="where speed.md lies, if not in docs")
    options = parser.parse_args()
    if options.tiny and options.out == OUT:
        parser.error("--tiny needs an --out of its own")
    for part in options.only:
        file = options.out / f"{part}.json"
        if options.again:
            file.unlink(missing_ok=True)
        if part != "generate" and file.exists():
            print(f"{part}: there already", flush=True)
            continue
        sizes = TINY[part].split() if options.tiny else []
        _run(part, *sizes, "--out", str(options.out))
        if part == "generate" and not options.tiny:
            _run(part, *CACHES.split(), "--out", str(options.out))
    if options.tiny and options.docs is None:
        return
    _run("told", "--out", str(options.out), *(["--docs", str(options.docs)] * bool(options.docs)))


def _run(part: str, *options: str) -> None:
    start = time.monotonic()
    subprocess.run([sys.executable, str(HERE / f"{part}.py"), *options], check=True)
    print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
