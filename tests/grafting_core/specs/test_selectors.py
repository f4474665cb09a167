"""Selectors name the blocks the paper's tables mean."""

import pytest

from grafting_core.specs.documents.layers import Strategy, resolve


def test_half_interleaved_takes_the_odd_blocks() -> None:
    assert resolve(Strategy(interleaved=0.5), 28) == list(range(1, 28, 2))


def test_three_quarters_interleaved_keeps_every_fourth_block() -> None:
    kept = set(range(28)) - set(resolve(Strategy(interleaved=0.75), 28))
    assert kept == {0, 4, 8, 12, 16, 20, 24}


def test_all_takes_every_block() -> None:
    assert resolve("all", 3) == [0, 1, 2]


def test_explicit_blocks_are_sorted() -> None:
    assert resolve((3, 1), 4) == [1, 3]


def test_deep_and_first_take_the_ends() -> None:
    assert resolve(Strategy(deep=0.5), 28) == list(range(14, 28))
    assert resolve(Strategy(first=0.25), 8) == [0, 1]


def test_local_strategies_rank_by_the_profile() -> None:
    profile = [0.2, 0.9, 0.1, 0.9, 0.5, 0.3]
    assert resolve(Strategy(top_local=0.5), 6, profile) == [1, 3, 4]
    assert resolve(Strategy(low_local=0.5), 6, profile) == [0, 2, 5]
    assert resolve(Strategy(top_local=1 / 6), 6, profile) == [1]


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ((), "at least one"),
        ((4,), "blocks are 0 to 3"),
        ((1, 1), "block 1 is listed more than once"),
        (Strategy(interleaved=0.3), "0.5 or 0.75"),
        (Strategy(), "exactly one of them, not 0"),
        (Strategy(deep=0.5, first=0.5), "exactly one of them, not 2"),
        (Strategy(deep=0.05), "from 0.25, one of 4 blocks, to 1, not 0.05"),
        (Strategy(first=1.5), "to 1, not 1.5"),
        (Strategy(top_local=0.5), "needs a locality profile"),
    ],
)
def test_impossible_selectors_say_what_would_be_right(selector: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(selector, 4)  # type: ignore[arg-type]  # parametrised
