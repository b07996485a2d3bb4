"""What can be added: engines, meters, settle rules, designs. Each is a module: a file in its room, or one of another
package that an entry point names (`slackwater.engines` and so on).

They are found here and nowhere else, and imported when one is asked for or all are listed. What a module must hold
says its contract: engine/base.py, meter/base.py, settle/base.py, sweep/design/__init__.py.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import operator
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True)
class Broken:
    """One that cannot be loaded, and why: a sentence that names the file or the package."""

    name: str
    reason: str


@dataclass(frozen=True)
class Kind:
    """One of the things that can be added."""

    noun: str
    room: str
    """The package whose modules are ours."""
    group: str
    """The group of entry points for those of other packages. The entry point's name is the name in the config."""
    needs: Sequence[str]
    """What makes a module one of them: dotted names in it."""

    def load(self, name: str, key: str) -> ModuleType:
        """The module of this name, the value of the config's `key`. Raises ConfigError: there is none, or why not."""
        found = self.find(name)
        if isinstance(found, Broken):
            raise ConfigError(f"{key}={name}: {found.reason} Nothing was started.")
        if found is None:
            known = ", ".join(each for each, one in self.all().items() if not isinstance(one, Broken))
            raise ConfigError(f"{key}={name} is not a known {self.noun}: expected one of {known}. Nothing was started.")
        return found

    def find(self, name: str) -> ModuleType | Broken | None:
        """The module of this name, why it cannot be loaded, or None; no other is imported."""
        found = self._ours(name) if name in self._files() else None
        return found if found is not None or name not in self._points() else self._loaded(self._points()[name])

    def all(self) -> dict[str, ModuleType | Broken]:
        """Each by its name, in the order of the names."""
        found = {name: self.find(name) for name in sorted({*self._files(), *self._points()})}
        return {name: one for name, one in found.items() if one is not None}

    def _files(self) -> Mapping[str, str]:
        """Name that one of ours would have → its module: NAME.py or NAME/, or FOLDER/FILE.py for FOLDER_FILE."""
        found, places = {}, importlib.import_module(self.room).__path__
        for module in pkgutil.iter_modules(places):
            found[module.name] = f"{self.room}.{module.name}"
            inside = pkgutil.iter_modules([f"{place}/{module.name}" for place in places]) if module.ispkg else ()
            found |= {f"{module.name}_{inner.name}": f"{self.room}.{module.name}.{inner.name}" for inner in inside}
        return found

    def _points(self) -> Mapping[str, EntryPoint]:
        return {point.name: point for point in reversed(_entry_points(tuple(sys.path))) if point.group == self.group}

    def _ours(self, name: str) -> ModuleType | Broken | None:
        try:
            module = importlib.import_module(self._files()[name])
        except (ImportError, SyntaxError) as error:
            return Broken(name, f"{self._files()[name]} cannot be loaded: {error}. Install what it needs, or fix it.")
        return None if self._lacks(module) else module

    def _loaded(self, point: EntryPoint) -> ModuleType | Broken:
        where = f"{point.value} of the package {point.dist.name if point.dist else '?'}"
        try:
            module: ModuleType = point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001  another's code: it breaks as it likes
            said = " ".join(str(error).split()).rstrip(".")
            return Broken(point.name, f"{where} cannot be loaded: {type(error).__name__}: {said}. Fix that package, "
                                      "or uninstall it.")
        if lacks := self._lacks(module):
            return Broken(point.name, f"{where} is not a valid {self.noun}: it has no {' and no '.join(lacks)}. Fix "
                                      "that package, or uninstall it.")
        return module

    def _lacks(self, module: ModuleType) -> list[str]:
        missing = []
        for needed in self.needs:
            try:
                operator.attrgetter(needed)(module)
            except AttributeError:
                missing.append(needed)
        return missing


ENGINES = Kind("engine", "pipeline.engine", "slackwater.engines", ("Engine.start",))
METERS = Kind("meter", "pipeline.meter", "slackwater.meters", ("Meter.read", "find"))
SETTLE = Kind("settle rule", "pipeline.settle", "slackwater.settle", ("settled",))
DESIGNS = Kind("design", "pipeline.sweep.design", "slackwater.designs", ("blocks",))
KINDS = (ENGINES, METERS, SETTLE, DESIGNS)


@dataclass(frozen=True)
class Installed:
    """A plug-in of another package, for the list of `slackwater doctor`."""

    name: str
    kind: str
    package: str
    reason: str
    """Why it cannot be used; "" if it can."""


def installed() -> list[Installed]:
    """Every entry point of these groups, in the order of packages; each is imported."""
    found = []
    for point in _entry_points(tuple(sys.path)):
        kind = next(kind for kind in KINDS if kind.group == point.group)
        used = kind.find(point.name)
        reason = ""
        if isinstance(used, Broken):
            reason = used.reason
        elif used is None or used.__name__ != _module(point):
            reason = f"another {kind.noun} has this name already. Rename it in that package."
        found.append(Installed(point.name, kind.noun, point.dist.name if point.dist else "?", reason))
    return found


def packages() -> list[str]:
    """The names of the packages that bring plug-ins."""
    return sorted({point.dist.name for point in _entry_points(tuple(sys.path)) if point.dist})


def config_folders() -> Sequence[Path]:
    """The folder `conf` of each package that brings a plug-in: its config files stand there as ours do in conf/.

    The package is looked up and not imported, so that one which breaks takes no config file with it."""
    return _config_folders(tuple(sys.path))


@functools.cache
def _config_folders(path: tuple[str, ...]) -> Sequence[Path]:
    folders = []
    for package in dict.fromkeys(_module(point).partition(".")[0] for point in _entry_points(path)):
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        places = [Path(place) / "conf" for place in (spec.submodule_search_locations if spec else None) or ()]
        folders += [place for place in places if place.is_dir()]
    return folders


def _module(point: EntryPoint) -> str:
    return point.value.partition(":")[0].strip()


@functools.cache
def _entry_points(path: tuple[str, ...]) -> Sequence[EntryPoint]:
    """Those of our groups, in the order of packages and names. Reading them all takes tens of ms, so once per path."""
    from importlib.metadata import entry_points  # tens of ms too, and every command imports this file

    return sorted((point for kind in KINDS for point in entry_points(group=kind.group)),
                  key=lambda point: (point.dist.name if point.dist else "", point.name))
