"""Selectors name the blocks the paper's tables mean."""

import pytest

from grafting_core.spec.selectors import Interleaved, resolve


def test_half_interleaved_takes_the_odd_blocks() -> None:
    assert resolve(Interleaved(interleaved=0.5), 28) == list(range(1, 28, 2))


def test_three_quarters_interleaved_keeps_every_fourth_block() -> None:
    kept = set(range(28)) - set(resolve(Interleaved(interleaved=0.75), 28))
    assert kept == {0, 4, 8, 12, 16, 20, 24}


def test_all_takes_every_block() -> None:
    assert resolve("all", 3) == [0, 1, 2]


def test_explicit_blocks_are_sorted() -> None:
    assert resolve((3, 1), 4) == [1, 3]


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ((), "at least one"),
        ((4,), "blocks are 0 to 3"),
        ((1, 1), "block 1 is listed more than once"),
        (Interleaved(interleaved=0.3), "0.5 or 0.75"),
    ],
)
def test_impossible_selectors_say_what_would_be_right(selector: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(selector, 4)  # type: ignore[arg-type]  # the last one is a value no annotation forbids
