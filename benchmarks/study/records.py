"""One small file per finished run, so that a study can be stopped and go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .plan import StudyError


class Records:
    """Finished runs in a folder: ``records/<data set>/<name>-<seed>.json``, and their scores.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, data: str, name: str, seed: int) -> Path:
        """Where the record of a run is."""
        return self.folder / "records" / data / f"{name}-{seed}.json"

    def scores_path(self, data: str, name: str, seed: int) -> Path:
        """Where the scores of a run on the test rows are."""
        return self.folder / "scores" / data / f"{name}-{seed}.npy"

    def find(self, data: str, name: str, seed: int, settings: dict[str, Any]) -> dict | None:
        """The record of a run, None where it is still to be done.

        Raises:
            StudyError: the record is of other settings, or can't be read.
        """
        path = self.path(data, name, seed)
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            known = record["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{path}: not a record of this study; remove it") from error
        for key in sorted({*settings, *known}):
            if known.get(key) != settings.get(key):
                raise StudyError(
                    f"{path}: a record of other settings ({key} was {known.get(key)!r}, now it is "
                    f"{settings.get(key)!r}); give another --out or remove it"
                )
        scored = record.get("scored", False)
        return record if not scored or self.scores_path(data, name, seed).is_file() else None

    def keep(self, record: dict[str, Any], scores: np.ndarray | None = None) -> None:
        """Write a record, after its scores: what is there is complete."""
        key = (record["data"], record["name"], record["seed"])
        record["scored"] = scores is not None
        if scores is not None:
            path = self.scores_path(*key)
            path.parent.mkdir(parents=True, exist_ok=True)
            new = _beside(path)
            with open(new, "wb") as file:
                np.save(file, scores.astype(np.float32))
            os.replace(new, path)
        path = self.path(*key)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = _beside(path)
        new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)

    def scores(self, record: dict[str, Any]) -> np.ndarray:
        """(iterations, test rows, tasks) logits."""
        return np.load(self.scores_path(record["data"], record["name"], record["seed"]))


def _beside(path: Path) -> Path:
    """A file of this process alone, as several can share a folder."""
    return path.with_suffix(f".{os.getpid()}.new")
