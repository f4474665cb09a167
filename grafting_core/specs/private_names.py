"""Names of registered things that the reader may not know: hidden from look-ups, replaced in documents.

A field that holds the name of a table's row is declared with one of the types below. Documents are stored,
hashed and sent to workers with the real names; `as_shown` is the copy for the reader of this context.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, GetCoreSchemaHandler, SerializationInfo
from pydantic_core import CoreSchema, core_schema

ANOTHERS = "another's"
"""Replacement for a name that the reader may not know."""
Table = Literal["backbone", "data set", "feature network", "prompt judge"]
Hidden = frozenset[tuple[str, str]]
"""(Kind of table, name) of registered rows."""
M = TypeVar("M", bound=BaseModel)
ADM = "/adm"
"""End of the names of metrics that are computed like the guided-diffusion evaluator's."""

_HIDDEN: ContextVar[Hidden] = ContextVar("hidden", default=frozenset())


def hide(names: Hidden) -> None:
    """Hide these registered rows from the rest of this context: tables do not show them."""
    _HIDDEN.set(names)


def hidden() -> Hidden:
    """Return the (kind of table, name) of the rows that are hidden in this context."""
    return _HIDDEN.get()


@contextmanager
def hiding(names: Hidden) -> Iterator[None]:
    """Hide these rows, and no others, for the duration of the block."""
    before = _HIDDEN.set(names)
    try:
        yield
    finally:
        _HIDDEN.reset(before)


def shown_name(table: str, name: str) -> str:
    """Return the name of a table's row, or its replacement if it is hidden."""
    return _without(hidden(), table, name)


def shown_metric(metric: str) -> str:
    """Return the name of a metric, `fid1k/inception/adm`, with a hidden feature network replaced."""
    return _metric_without(hidden(), metric)


def _without(names: Hidden, table: str, name: str) -> str:
    return ANOTHERS if (table, name) in names else name


def _metric_without(names: Hidden, metric: str) -> str:
    kind, slash, rest = metric.partition("/")
    network = rest.removesuffix(ADM)
    return f"{kind}{slash}{_without(names, 'feature network', network)}{rest[len(network) :]}"


class Replaced:
    """Marks a field as the name of a row of a table, or as a metric, which contains a network's name.

    The name is replaced only where a model is serialised by `as_shown`. In an annotation it comes after the
    limits of the name, so that they are in the JSON schema of answers too.
    """

    def __init__(self, table: Table | Literal["metric"]) -> None:
        self._table = table

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        # The returned schema is that of the field, so that the JSON schema stays the same.
        replacing = core_schema.plain_serializer_function_ser_schema(
            self._serialized, info_arg=True, return_schema=schema
        )
        return cast(CoreSchema, {**schema, "serialization": replacing})

    def _serialized(self, name: str | None, info: SerializationInfo[Hidden | None]) -> str | None:
        if not info.context or name is None:
            return name
        if self._table == "metric":
            return _metric_without(info.context, name)
        return _without(info.context, self._table, name)


BackboneName = Annotated[str, Replaced("backbone")]
DatasetName = Annotated[str, Replaced("data set")]
NetworkName = Annotated[str, Replaced("feature network")]
MetricName = Annotated[str, Replaced("metric")]
Metrics = dict[MetricName, float]
"""Values by name of metric."""
Intervals = dict[MetricName, tuple[float, float]]
"""95 % intervals by name of metric."""


def as_shown(model: M) -> M:
    """Return a model with the hidden names in it replaced; the model itself if it has none."""
    names = hidden()
    if not names:
        return model
    replaced = model.model_dump_json(context=names)
    return model if replaced == model.model_dump_json() else type(model).model_validate_json(replaced)


def names_hidden(model: BaseModel) -> bool:
    """Whether a model names something that is hidden in this context."""
    return as_shown(model) is not model
