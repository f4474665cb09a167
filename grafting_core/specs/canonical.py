"""Canonical JSON, and the digests that name artifacts."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Hashable
from functools import lru_cache, wraps
from typing import Any, TypeVar

from pydantic import BaseModel

Spec = TypeVar("Spec", bound=Hashable)
Result = TypeVar("Result")


def _plain(value: Any) -> Any:
    """Reduce to JSON types; integral floats become integers so that 1 and 1.0 have the same digest."""
    if isinstance(value, BaseModel):
        return fields_of(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"canonical JSON holds finite numbers only, not {value!r}")
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def fields_of(model: BaseModel, exclude: Collection[str] = ()) -> dict[str, Any]:
    """Fields of a model that enter a digest, as JSON types.

    All fields but those excluded, and those that were added later (`Frozen.added`) and have their default.
    """
    added: frozenset[str] = getattr(type(model), "added", frozenset())
    entering = {
        name: getattr(model, name)
        for name, field in type(model).model_fields.items()
        if name not in exclude
        and not (name in added and getattr(model, name) == field.get_default(call_default_factory=True))
    }
    return {name: _plain(value) for name, value in entering.items()}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, shortest round-trip floats. Raises ValueError for non-finite ones."""
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def memoized(function: Callable[[Spec], Result]) -> Callable[[Spec], Result]:
    """Cache a function of a frozen spec: one submission evaluates the same spec many times.

    Specs with a field that cannot be hashed (such as another package's operator) are computed each time.
    """
    cached = lru_cache(maxsize=4096)(function)

    @wraps(function)
    def look_up(spec: Spec) -> Result:
        try:
            hash(spec)
        except TypeError:
            return function(spec)
        return cached(spec)

    return look_up
