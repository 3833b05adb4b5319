"""Small files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write all of it or nothing, as UTF-8: readers never see half a file.

    A link is followed, an old file's permissions are kept, a new one's are those of any new file.

    Raises:
        OSError: the disk is full, the folder is missing or read-only.
        ValueError: the text or the name cannot be written.
    """
    path = Path(os.path.realpath(path))
    draft = None
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(draft, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(draft, path)
    except BaseException:
        if draft is not None:
            with contextlib.suppress(OSError):
                os.unlink(draft)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
