"""Loss of stage 1: the distance between an operator's output and the original's."""

from torch import Tensor
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from grafting_core.specs.plans import Loss


def regression_loss(
    kind: Loss, output_BTD: Tensor, target_BTD: Tensor, square: Tensor | None = None
) -> Tensor:
    """L1, L2, Huber (delta 1) or squared error over the target's mean square, `square` if given."""
    if kind == "l1":
        return l1_loss(output_BTD, target_BTD)
    if kind == "huber":
        return huber_loss(output_BTD, target_BTD, delta=1.0)
    error = mse_loss(output_BTD, target_BTD)
    return error if kind == "l2" else error / (target_BTD.square().mean() if square is None else square)
