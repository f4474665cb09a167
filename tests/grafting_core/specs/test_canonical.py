"""Equal content has equal canonical JSON and digest, whatever the order or spelling of numbers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grafting_core.specs.canonical import canonical_json, digest

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_canonical_json_reads_back_as_the_same_value(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_key_order_does_not_matter(value: dict[str, int]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_one_and_one_point_zero_are_the_same_number() -> None:
    assert digest({"ratio": 3}) == digest({"ratio": 3.0})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_numbers_have_no_digest(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        digest([number])
