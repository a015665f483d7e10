"""Configurations of templates as records: a tactic speaks in names and values, a template in attributes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from dovetail.codegen.tactic import Config


@dataclass(frozen=True)
class Configuration:
    """Integers by name; a template's own record derives from it."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """The record of a configuration."""
        return cls(**{name: int(value) for name, value in config})

    @property
    def config(self) -> Config:
        """The configuration of a record."""
        return tuple((f.name, getattr(self, f.name)) for f in fields(self))
