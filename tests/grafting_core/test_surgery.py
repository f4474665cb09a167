"""Surgery changes what it should and can be taken back to the bit."""

import pytest
import torch
from torch import Tensor

from grafting_core.backbones.dit import copy_weights, get_operator
from grafting_core.backbones.loader import Backbone
from grafting_core.operators.catalog import build
from grafting_core.surgery import new_operator, operate
from tests.builders import replacement, same


def output(backbone: Backbone) -> Tensor:
    torch.manual_seed(0)
    latents = torch.randn(2, 4, 7, 7)
    timesteps, labels = torch.tensor([3, 700]), torch.tensor([1, 10])
    with torch.no_grad():
        result: Tensor = backbone.transformer(latents, timestep=timesteps, class_labels=labels).sample
    return result


@pytest.mark.parametrize("kind", ["mha", "mlp"])
def test_a_self_graft_with_copied_weights_leaves_the_output_bit_identical(
    backbone: Backbone, kind: str
) -> None:
    before = output(backbone)
    edits = [replacement(kind, block) for block in range(backbone.card.depth)]
    operators = {edit.site: build(edit.operator, backbone.card.dims) for edit in edits}
    for site, operator in operators.items():
        copy_weights(get_operator(backbone.transformer, site), operator)
    undo = operate(backbone.transformer, edits, backbone.card.dims, operators=operators)
    during = output(backbone)
    undo.undo()
    assert torch.equal(before, during)


def test_undo_restores_the_very_modules(backbone: Backbone) -> None:
    before, weights = output(backbone), {k: v.clone() for k, v in backbone.transformer.state_dict().items()}
    undo = operate(
        backbone.transformer, [replacement("hyena_x"), replacement("mlp", 2, ratio=3.0)], backbone.card.dims
    )
    assert not torch.equal(output(backbone), before)
    undo.undo()
    assert torch.equal(output(backbone), before)
    assert same(backbone.transformer.state_dict(), weights)


def test_random_weights_depend_on_seed_and_site_alone(backbone: Backbone) -> None:
    dims = backbone.card.dims
    first, again = (new_operator(replacement("hyena_x"), dims, 0).state_dict() for _ in range(2))
    torch.rand(1)
    assert same(first, again)
    assert not same(first, new_operator(replacement("hyena_x"), dims, 1).state_dict())
    assert not same(first, new_operator(replacement("hyena_x", 2), dims, 0).state_dict())


def test_a_site_beyond_the_last_block_is_refused_before_any_change(backbone: Backbone) -> None:
    before = output(backbone)
    with pytest.raises(ValueError, match="blocks are 0 to 7"):
        operate(backbone.transformer, [replacement("hyena_x"), replacement("hyena_x", 8)], backbone.card.dims)
    assert torch.equal(output(backbone), before)
