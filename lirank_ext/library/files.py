"""Writes a file as a whole: a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def replace(path: str | os.PathLike, parts: Iterable[bytes | memoryview]) -> None:
    """Put a file in the place of an older one at once, and through a symbolic link.

    The data is on the disk before the name is, so a full disk, a kill or a power cut leave the
    older file as it was.

    Args:
        path: of the file.
        parts: its content, one behind the other.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(os.path.realpath(path))
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with open(new, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The new name is on disk only once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
