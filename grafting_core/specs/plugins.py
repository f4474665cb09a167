"""Tables of backbones, data sets and feature networks, extended by entry points of packages and by labs.

Our own entries are loaded in the same way as those of other packages. An entry point names an `Entry`, which
is data: reading a table imports no model. The function named by `load` loads what an entry describes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.private_names import Table, hidden

API_VERSION = 1
"""Version of the interface of entries and the objects that they load; raised on breaking changes."""

DISTRIBUTION = "graftlab"
log = logging.getLogger(__name__)


class Entry(Frozen):
    """Table row. `api` is the `API_VERSION` that it was written for."""

    api: int
    load: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None = None
    """Loader as `package.module:function`; None if there is nothing to load."""

    @property
    def loader(self) -> Callable[..., Any]:
        """Loader function. Raises ValueError if there is none, ImportError if a library is missing."""
        if self.load is None:
            raise ValueError("this entry names nothing to load")
        function: Callable[..., Any] = resolve_name(self.load)
        return function

    def check_name(self, name: str) -> None:
        """Raises ValueError if the entry must not have this name."""


Row = TypeVar("Row", bound=Entry)


class PluginTable(Generic[Row]):
    """Entries of one kind by name: our own first, then those of other packages in order of their names.

    An entry that cannot be loaded, or whose name is taken, is logged and left out; `find` gives the reason.
    The table is read at its first use and cached; `reload` clears the cache.
    """

    def __init__(self, what: Table, group: str, row: type[Row], own: Mapping[str, Row]) -> None:
        self.what, self.group, self._row, self._own = what, group, row, own
        self._registered = dict[str, Row]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def get(self, name: str) -> Row | None:
        """Entry of this name, whatever the size of the table; None if there is none."""
        if name in self._read[0]:
            return self._read[0][name]
        return None if (self.what, name) in hidden() else self._registered.get(name)

    @property
    def entries(self) -> Mapping[str, Row]:
        unseen = {name for what, name in hidden() if what == self.what}
        registered = {name: row for name, row in self._registered.items() if name not in unseen}
        return {**registered, **self._read[0]}

    @property
    def shipped(self) -> Mapping[str, Row]:
        """Entries of packages, without those that the lab has registered."""
        return self._read[0]

    def register(self, rows: Mapping[str, Row]) -> None:
        """Set the rows that this lab has registered, replacing those set before.

        Entry points take precedence over rows of the same name.
        """
        self._registered = dict(rows)

    def ships(self, name: str) -> bool:
        """Whether an entry point has this name, usable or not."""
        rows, failures = self._read
        return name in rows or name in failures

    @property
    def failures(self) -> Mapping[str, str]:
        """Entry point that was left out -> reason."""
        return self._read[1]

    def find(self, name: str) -> Row:
        """Entry of this name. Raises ValueError with the known names, or the reason it cannot be used."""
        entry = self.get(name)
        if entry is not None:
            return entry
        if name in self.failures:
            raise ValueError(f"{self.what} {name!r} cannot be used: {self.failures[name]}")
        raise ValueError(f"unknown {self.what} {name!r}; use one of {', '.join(self.entries)}")

    def reload(self) -> None:
        """Clear the cache, so that the next use reads the entry points again."""
        self.__dict__.pop("_read", None)

    @cached_property
    def _read(self) -> tuple[dict[str, Row], dict[str, str]]:
        points = sorted(entry_points(group=self.group), key=_precedence)
        loaded, failures = dict[str, Row](), dict[str, str]()
        for point in points:
            try:
                loaded[point.name] = self._load(point, {**self._own, **loaded})
            except Exception as error:  # noqa: BLE001 - another package's code may raise anything
                reason = f"{point.value}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                log.warning("%s %r is left out: %s", self.what, point.name, reason)
                failures[point.name] = reason
        return {**loaded, **self._own}, failures

    def _load(self, point: EntryPoint, taken: Mapping[str, Row]) -> Row:
        if point.name in taken:
            raise ValueError(f"the name {point.name!r} is taken")
        row = point.load()
        if not isinstance(row, self._row):
            raise TypeError(f"a {type(row).__name__}, where a {self._row.__name__} is needed")
        if row.api != API_VERSION:
            raise ValueError(f"written for version {row.api} of the interface; this is {API_VERSION}")
        row.check_name(point.name)
        return row


def _precedence(point: EntryPoint) -> tuple[bool, str, str]:
    """Our own entry points first, so that no other package takes their names; then in order of names."""
    ours = point.dist is not None and point.dist.name == DISTRIBUTION
    return not ours, point.name, point.value
