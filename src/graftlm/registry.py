"""Classes that are found by name: one registry for each extension point.

A class comes from this package, from a call of `Registry.add`, or from an installed package:

    [project.entry-points."graftlm.weight_formats"]
    affine4 = "my_package.affine4:Affine4"

Only classes of installed packages are available in the commands and the processes that they start.
Modules are imported when a name is asked for, so that a class costs nothing to those who do not
use it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from graftlm.errors import ConfigError, near_matches

__all__ = ["Registry", "same_class"]

ClassT = TypeVar("ClassT", bound=type)


class Registry(Generic[ClassT]):
    """The classes of one kind, by name.

    Args:
        kind: the kind in words, for messages, such as ``weight format``.
        group: the group of entry points that installed packages use.
        function: the function that registers a class, for messages.
        built_in: the classes of this package: the module that registers each name.
    """

    def __init__(
        self, kind: str, group: str, function: str, built_in: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self.group = group
        self.function = function
        self.built_in = dict(built_in or {})
        self._classes: dict[str, ClassT] = {}

    def add(self, name: str, cls: ClassT) -> None:
        """Register ``cls`` as ``name``.

        A class of the same module and name may be registered again, as a notebook does.

        Raises:
            ConfigError: another class has this name.
        """
        taken = self._classes.get(name)
        home = self.built_in.get(name, cls.__module__)
        if (taken and not same_class(taken, cls)) or home != cls.__module__:
            raise ConfigError(f"{self.kind} {name!r} is taken; choose another name")
        self._classes[name] = cls

    def names(self) -> list[str]:
        """Every known name, sorted. Nothing is imported."""
        return sorted(self.built_in.keys() | self._classes.keys() | self.installed().keys())

    def named(self, name: str) -> ClassT:
        """The class known as ``name``.

        Raises:
            ConfigError: there is none; the message lists the known names.
        """
        if name not in self._classes:
            if name in self.built_in:
                importlib.import_module(self.built_in[name])
            elif name in (installed := self.installed()):
                self.add(name, installed[name].load())
        if name not in self._classes:
            raise ConfigError(
                f"{self.kind} {name!r} is not registered: expected one of "
                f"{', '.join(self.names())}{near_matches(str(name), self.names()) or '.'} One of "
                f"your own is registered by graftlm.extend.{self.function} before it is used."
            )
        return self._classes[name]

    def installed(self) -> dict[str, importlib.metadata.EntryPoint]:
        """What installed packages offer, by name."""
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}


def same_class(one: type[Any], other: type[Any]) -> bool:
    """Whether both are the same definition, perhaps executed twice."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
