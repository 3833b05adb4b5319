"""The folder of captured activations: what it says, what it holds, and how a run goes on in it.

`capture.json` says what was captured, `part-N.safetensors` hold it, each complete by itself: its
metadata names the case that the next part begins with.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conflictkit.errors import EmptyInputError, InvalidParameterError, OutputError, ResumeError
from conflictkit.scoring import disk

if TYPE_CHECKING:
    from conflictkit.toolkit import Model

FORMAT, VERSION = "conflictkit-activations", 1
ABOUT = "capture.json"


@dataclass(frozen=True)
class Captured:
    """A folder of activations.

    Attributes:
        folder: where it is.
        about: what `capture.json` says.
    """

    folder: Path
    about: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether every case was read."""
        return bool(self.about["finished"])

    @property
    def kinds(self) -> tuple[str, ...]:
        """What was captured."""
        return tuple(self.about["settings"]["kinds"])

    @property
    def layers(self) -> tuple[int, ...]:
        """Of which layers, from 0."""
        return tuple(self.about["settings"]["layers"])

    def parts(self, *names: str) -> Iterator[dict[str, Tensor]]:
        """The named tensors of one part after the other: `residual.3`, `case`, `position`.

        Raises:
            InvalidParameterError: there is no such tensor.
        """
        from safetensors import safe_open

        known = [f"{kind}.{layer}" for kind in self.kinds for layer in self.layers]
        for name in names:
            if name not in (*known, "case", "position"):
                raise InvalidParameterError(
                    f"'{self.folder}' holds no {name}: it has {', '.join(known)}"
                )
        for path in parts_of(self.folder):
            with safe_open(path, framework="pt") as file:
                yield {name: file.get_tensor(name) for name in names}

    def values(self, kind: str, layer: int) -> Tensor:
        """`[rows, width]` float32 activations of one layer, in the order of the cases.

        Raises:
            InvalidParameterError: this was not captured.
        """
        name = f"{kind}.{layer}"
        return torch.cat([part[name] for part in self.parts(name)])

    def places(self) -> tuple[Tensor, Tensor]:
        """`[rows]` int64: number of the case of each row, and its position in the prompt."""
        both = list(self.parts("case", "position"))
        return torch.cat([one["case"] for one in both]), torch.cat(
            [one["position"] for one in both]
        )

    def check(self, model: Model) -> None:
        """Refuse a model that these activations are not of.

        Raises:
            InvalidParameterError: other weights.
        """
        told = self.about["settings"]
        if told["fingerprint"] != model.fingerprint:
            raise InvalidParameterError(
                f"'{self.folder}' holds activations of the model '{told['model']}', not of "
                f"'{model.name}'"
            )


def load(folder: str | PathLike[str]) -> Captured:
    """Activations that were captured.

    Raises:
        OutputError: there are none.
    """
    path = Path(folder) / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"there are no activations in '{folder}': {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or about["version"] != VERSION:
        raise OutputError(f"'{path}' was not written by this release of conflictkit")
    return Captured(Path(folder), about)


def open_folder(
    folder: Path, settings: Mapping[str, Any], overwrite: bool, stack: ExitStack
) -> Captured | None:
    """Hold the folder; what is in it already, if that is finished."""
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ABOUT
        strangers = [one.name for one in folder.iterdir() if one.name != ABOUT and not _ours(one)]
        if strangers and not path.exists():
            raise OutputError(f"'{folder}' holds other files ({strangers[0]}): name a new folder")
        file = stack.enter_context(disk.open_to_append(folder / ".lock"))
    disk.lock(file, folder)
    if path.exists() and not overwrite:
        there = load(folder)
        if told := disk.differences(there.about["settings"], settings):
            raise ResumeError(
                f"'{folder}' is of another run ({'; '.join(told)}): name another folder, or "
                "overwrite it"
            )
        if there.finished:
            return there
        return None
    with disk.writing(folder):
        for part in parts_of(folder):
            part.unlink()
        _tell(folder, settings, {"finished": False})
    return None


def finish(folder: Path, settings: Mapping[str, Any]) -> Captured:
    """Say that every case was read.

    Raises:
        EmptyInputError: none of them could be.
    """
    aside: Counter[str] = Counter()
    rows = 0
    for path in parts_of(folder):
        told = _metadata(path)
        aside.update(told["aside"])
        rows += told["rows"]
    if not rows:
        raise EmptyInputError(f"none of the cases can be read: {dict(aside) or 'there are none'}")
    with disk.writing(folder):
        _tell(folder, settings, {"finished": True, "rows": rows, "aside": dict(aside)})
    return load(folder)


def _tell(folder: Path, settings: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    about = {"format": FORMAT, "version": VERSION, "settings": settings, **more}
    disk.put(folder / ABOUT, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())


def _ours(path: Path) -> bool:
    return path.name == ".lock" or path.name.lstrip(".").startswith("part-")


def parts_of(folder: Path) -> list[Path]:
    """The parts that are complete, in order."""
    found = []
    while (path := folder / f"part-{len(found):06d}.safetensors").exists():
        found.append(path)
    return found


def _metadata(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["conflictkit"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ResumeError(f"'{path}' cannot be read: delete it to go on before it") from error


def end_of(path: Path) -> int:
    """The case that the next part begins with."""
    return _metadata(path)["stop"]


def write(folder: Path, tensors: dict[str, Tensor], told: Mapping[str, Any]) -> None:
    """Add one part, whole; `told` holds `stop`, the case that the next one begins with."""
    from safetensors.torch import save

    metadata = {"conflictkit": json.dumps({**told, "rows": len(tensors["case"])})}
    place = folder / f"part-{len(parts_of(folder)):06d}.safetensors"
    with disk.writing(folder):
        disk.put(place, save(tensors, metadata=metadata))
