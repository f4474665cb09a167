"""Stage 1's loss against its formulas in plain Python."""

import pytest
import torch

from grafting_core.distillation.loss import regression_loss

OUTPUT, TARGET = [0.5, -2.0, 3.0, 0.0], [0.0, 1.0, 3.5, -4.0]


def huber(error: float) -> float:
    return 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5


@pytest.mark.parametrize(
    ("kind", "right"),
    [
        ("l1", sum(abs(a - b) for a, b in zip(OUTPUT, TARGET, strict=True)) / 4),
        ("l2", sum((a - b) ** 2 for a, b in zip(OUTPUT, TARGET, strict=True)) / 4),
        ("huber", sum(huber(a - b) for a, b in zip(OUTPUT, TARGET, strict=True)) / 4),
        (
            "nmse",
            sum((a - b) ** 2 for a, b in zip(OUTPUT, TARGET, strict=True)) / sum(b**2 for b in TARGET),
        ),
    ],
)
def test_each_loss_is_its_formula(kind: str, right: float) -> None:
    loss = regression_loss(kind, torch.tensor([[OUTPUT]]), torch.tensor([[TARGET]]))  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(right)


def test_the_square_of_the_whole_target_divides_the_error_of_a_part() -> None:
    part = regression_loss("nmse", torch.ones(1, 1, 2), torch.zeros(1, 1, 2), torch.tensor(4.0))
    assert part.item() == pytest.approx(0.25)
