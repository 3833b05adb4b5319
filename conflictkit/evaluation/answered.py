"""What a model has answered before, kept on the disk: nothing is asked twice.

One JSON lines file per model and way of decoding, only ever appended to. A line is whole or it does
not count, so a run that is killed loses what it was asking and nothing else; two runs may share a
file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from conflictkit.errors import InvalidParameterError
from conflictkit.scoring.disk import Settings, append, json_line, lock, open_to_append, writing

FOLDER = "CONFLICTKIT_CACHE"
"""Environment variable that names the folder of all that is kept between runs."""


@dataclass(frozen=True)
class Said:
    """What a model says to one prompt.

    Attributes:
        greedy: the greedy answer.
        samples: sampled answers.
    """

    greedy: str
    samples: tuple[str, ...]


def cache_folder() -> Path:
    """The folder of all that is kept between runs: `$CONFLICTKIT_CACHE`, else `conflictkit` in
    `$XDG_CACHE_HOME`, else `~/.cache/conflictkit`."""
    if own := os.environ.get(FOLDER):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "conflictkit"


def prompt_hash(ids: Sequence[int]) -> str:
    """SHA-256 of a prompt's token ids: 64 hexadecimal digits."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


class Answered:
    """Answers of one model under one way of decoding.

    Args:
        folder: where they are kept; made when something is added.
        settings: model and decoding, as JSON data: with others it is another file.

    Attributes:
        path: the file.

    Raises:
        InvalidParameterError: the folder is a file, or the file cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Settings) -> None:
        place = Path(folder)
        if place.exists() and not place.is_dir():
            raise InvalidParameterError(f"the cache '{place}' is not a folder: name another one")
        self._settings = settings
        canonical = json.dumps(settings, sort_keys=True, allow_nan=False)
        name = hashlib.sha256(canonical.encode()).hexdigest()[:32]
        self.path = place / "answers" / f"{name}.jsonl"
        self._known = self._read()

    def get(self, prompt: str) -> Said | None:
        """What was said to the prompt of this hash, if it was asked."""
        return self._known.get(prompt)

    def add(self, said: Mapping[str, Said]) -> None:
        """Keep what was said to prompts, by their hashes.

        Raises:
            OutputError: it cannot be written; nothing is lost of what was there before.
        """
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open_to_append(self.path) as file:
                lock(file, self.path, wait=True)
                append(file, self._opening(file) + b"".join(_line(*one) for one in said.items()))
        self._known |= said

    def _opening(self, file: BinaryIO) -> bytes:
        """What has to stand before new lines: in a new file its settings, behind a line that a
        killed run tore its end."""
        size = file.seek(0, os.SEEK_END)
        if not size:
            return json_line({"settings": self._settings})
        file.seek(size - 1)
        return b"" if file.read(1) == b"\n" else b"\n"

    def _read(self) -> dict[str, Said]:
        found: dict[str, Said] = {}
        if not self.path.exists():
            return found
        try:
            with self.path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n") and (entry := _entry(line)) is not None:
                        found[entry[0]] = entry[1]
        except OSError as error:
            raise InvalidParameterError(f"cannot read '{self.path}': {error.strerror}") from error
        return found


def _line(prompt: str, said: Said) -> bytes:
    return json_line({"prompt": prompt, "greedy": said.greedy, "samples": said.samples})


def _entry(line: bytes) -> tuple[str, Said] | None:
    """A line as it was written; None for the settings, and for a line that was torn."""
    try:
        data: Any = json.loads(line)
        prompt, greedy, samples = data["prompt"], data["greedy"], data["samples"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(samples, list) or not all(isinstance(one, str) for one in (prompt, greedy)):
        return None
    if not all(isinstance(one, str) for one in samples):
        return None
    return prompt, Said(greedy, tuple(samples))
