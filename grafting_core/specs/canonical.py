"""Canonical JSON and the digests that name every artifact."""

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
    """Reduce to JSON types; integral floats become integers so that 1 and 1.0 name the same thing."""
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
    """What of a model enters a digest, as JSON types.

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
    """Sorted keys, no spaces, shortest round-trip floats. Raises ValueError for NaN and infinities."""
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def memoized(function: Callable[[Spec], Result]) -> Callable[[Spec], Result]:
    """Keep the last answers about frozen specs: a submission asks for the same ones again and again.

    A spec with a field that cannot be hashed (of another package's operator, say) is computed each time.
    """
    kept = lru_cache(maxsize=4096)(function)

    @wraps(function)
    def look_up(spec: Spec) -> Result:
        try:
            hash(spec)
        except TypeError:
            return function(spec)
        return kept(spec)

    return look_up
