"""What a user asks of a training: files, columns, and values of the configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.reading import Reading
from ..models import ConfigError, Dwell, Task
from ..models._parse import override, put, read_yaml
from .settings import Config


@dataclass
class Options:
    """The options of ``train`` and ``ablate``.

    Attributes:
        data, valid: files to train on and to validate on.
        label, long_dwell, preset: tasks and blocks; see
            :func:`lirank_ext.training.defaults.for_files`.
        reading: how the columns are read.
        config: a YAML file with values of the configuration.
        set: values of the configuration, ``KEY=VALUE``.
        settings: values of the configuration that have an option of their own, by key.
        output: folder of the run.
        resume, overwrite: go on with the run that is there, or replace it.
        check: compare the ranker with a logistic regression and boosted trees.
    """

    data: list[str]
    valid: list[str] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    long_dwell: list[str] = field(default_factory=list)
    preset: str | None = None
    reading: Reading = field(default_factory=Reading)
    config: str | None = None
    set: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    output: str = "lirank_model"
    resume: bool = False
    overwrite: bool = False
    check: bool = False

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Options:
        """From the values of a command line, by name.

        A name with a dot is a key of the configuration; names that are no attribute are passed
        over, and so are options that were not given.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        given = {name: value for name, value in values.items() if value is not None}
        settings = {key: value for key, value in given.items() if "." in key}
        plain = {name: value for name, value in given.items() if name in known}
        return cls(**plain, reading=Reading.from_values(values), settings=settings)

    def given(self) -> dict[str, Any]:
        """The values of the configuration that the user asks for, as nested dicts.

        ``settings`` wins over ``set``, and both win over the file.

        Raises:
            ConfigError: the file cannot be read, or a key or a value does not fit.
        """
        data: dict[str, Any] = {}
        if self.config is not None:
            data = read_yaml(self.config)
            Config.from_dict(data, self.config)  # its own mistakes, before the data are looked at
        for item in self.set:
            key, equals, value = item.partition("=")
            if not equals:
                raise ConfigError(f"--set {item}: wanted KEY=VALUE")
            override(data, key, value)
        for key, value in self.settings.items():
            put(data, key, value)
        for name, values in data.items():
            if not isinstance(values, dict):
                raise ConfigError(f"{name}: wanted keys and values, got {values!r}")
        return data

    def columns(self) -> dict[str, Any]:
        """The options that decide the columns and the blocks, where they were given."""
        names = ("label", "long_dwell", "preset")
        given = {name: getattr(self, name) for name in names if getattr(self, name)}
        return given | self.reading.given()

    def tasks(self) -> list[str | Task]:
        """Label columns, and a task for each ``--long-dwell``."""
        tasks: list[str | Task] = list(self.label)
        for item in self.long_dwell:
            column, _, clusters = item.partition(":")
            name = "long_dwell" if len(self.long_dwell) == 1 else f"long_{column}"
            names = [cluster for cluster in clusters.split(",") if cluster]
            tasks.append(Task(name, column, dwell=Dwell(names)))
        return tasks
