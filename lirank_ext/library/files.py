"""Writes a file as a whole: a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import ctypes
import os
import shutil
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


def replace_folder(new: Path, folder: Path) -> None:
    """Put a folder in the place of an older one, which is removed.

    On Linux a reader finds the old folder or the new one at every moment. Elsewhere there is none
    for an instant.

    Args:
        new: the complete folder, beside the other.
        folder: its name from now on.

    Raises:
        OSError: it cannot be renamed.
    """
    if not folder.exists():
        os.rename(new, folder)
    elif _exchange(new, folder):
        shutil.rmtree(new)
    else:
        old = new.with_name(f"{new.name}.old")
        os.rename(folder, old)
        os.rename(new, folder)
        shutil.rmtree(old)
    _sync_folder(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places at once. Returns whether the system can do that."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return call is not None and call(here, bytes(one), here, bytes(other), exchange) == 0
