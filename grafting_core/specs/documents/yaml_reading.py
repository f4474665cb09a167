"""Restricted YAML reader: builds values from the parser's events and stops at the size limits."""

from collections.abc import Iterator
from typing import Any

import yaml

from grafting_core.specs.documents.errors import shown
from grafting_core.specs.documents.scalars import scalar

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's loader if installed: ten times as fast."""


class NestedTooDeep(ValueError):
    """The document has more levels than allowed."""


class TooManyValues(ValueError):
    """The document has more values than allowed."""


def read_yaml(text: str, max_depth: int, max_values: int) -> Any:
    """Value of the single document in the text. Aliases, tags, merge keys and repeated keys are refused.

    Raises ValueError with the line number, NestedTooDeep, TooManyValues, or the parser's yaml.YAMLError.
    """
    if text.startswith("%TAG") or "\n%TAG" in text:
        raise ValueError("tags are not allowed")
    return _Reader(yaml.parse(text, Loader=LOADER), max_depth, max_values).document()


def _at(event: yaml.Event, message: str) -> ValueError:
    return ValueError(f"line {event.start_mark.line + 1}: {message}" if event.start_mark else message)


class _Reader:
    """Builds values event by event, so that memory never exceeds the limits."""

    def __init__(self, events: Iterator[yaml.Event], max_depth: int, max_values: int) -> None:
        self._events, self._max_depth, self._left = events, max_depth, max_values

    def document(self) -> Any:
        """Value of the document. Raises as `read_yaml` does."""
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), 0)
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _at(after, "a second document begins; send only one")
        return value

    def _value(self, event: yaml.Event, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            raise _at(event, "aliases are not allowed")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _at(event, f"tags are not allowed; remove {shown(tag, 60)}")
        self._left -= 1
        if self._left < 0:
            raise TooManyValues
        if depth > self._max_depth:
            raise NestedTooDeep
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        return self._list(depth) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(depth)

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        if not event.implicit[0]:
            return event.value
        try:
            return scalar(event.value)
        except ValueError as error:
            raise _at(event, str(error)) from error

    def _list(self, depth: int) -> list[Any]:
        made = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            made.append(self._value(event, depth + 1))
        return made

    def _mapping(self, depth: int) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event)
            if key in made:
                raise _at(event, f"key {shown(key)} appears more than once")
            made[key] = self._value(next(self._events), depth + 1)
        return made

    def _key(self, event: yaml.Event) -> Any:
        if not isinstance(event, yaml.ScalarEvent):
            raise _at(event, "a key must be text")
        if event.value == "<<" and event.implicit[0]:
            raise _at(event, "merge keys are not allowed; write the fields out")
        if event.tag is not None:
            raise _at(event, f"tags are not allowed; remove {shown(event.tag, 60)}")
        return self._scalar(event)
