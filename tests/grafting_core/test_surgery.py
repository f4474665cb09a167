"""Surgery changes what it should and can be taken back to the bit."""

import copy

import pytest
import torch
from torch import Tensor, nn

from grafting_core.backbones.base import Backbone
from grafting_core.operators.mlp import FeedForward
from grafting_core.specs.site import GraftSite
from grafting_core.surgery.operate import new_operator, operate
from tests.support.builders import design_of, replacement, same


def output(backbone: Backbone) -> Tensor:
    torch.manual_seed(0)
    latents = torch.randn(2, 4, 7, 7)
    timesteps, labels = torch.tensor([3, 700]), torch.tensor([1, 10])
    with torch.no_grad():
        result: Tensor = backbone.transformer(latents, timestep=timesteps, class_labels=labels).sample
    return result


@pytest.mark.parametrize("kind", ["mha", "mlp"])
def test_a_self_graft_with_inherited_weights_leaves_the_output_bit_identical(
    backbone: Backbone, kind: str
) -> None:
    before = output(backbone)
    edits = [replacement(kind, block, "inherit") for block in range(backbone.card.depth)]
    undo = operate(backbone, design_of(backbone, *edits))
    during = output(backbone)
    undo.undo()
    assert torch.equal(before, during)


def test_undo_restores_the_very_modules(backbone: Backbone) -> None:
    before, weights = output(backbone), {k: v.clone() for k, v in backbone.transformer.state_dict().items()}
    undo = operate(backbone, design_of(backbone, replacement("hyena_x"), replacement("mlp", 2, ratio=3.0)))
    assert not torch.equal(output(backbone), before)
    undo.undo()
    assert torch.equal(output(backbone), before)
    assert same(backbone.transformer.state_dict(), weights)


@pytest.mark.parametrize("refused_at", ["building", "placing"])
def test_a_refused_operator_leaves_the_transformer_as_it_was(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, refused_at: str
) -> None:
    before = [backbone.get_operator(site) for site in backbone.sites]
    edits = [replacement("hyena_x"), replacement("mamba2", 2, "inherit")]
    error: type[Exception] = TypeError
    if refused_at == "placing":
        edits, error = [replacement("hyena_x"), replacement("hyena_x", 2)], MemoryError
        places = iter([None, MemoryError("out of memory")])
        put = Backbone.set_operator

        def set_operator(self: Backbone, site: GraftSite, module: nn.Module) -> None:
            if (refusal := next(places, None)) is not None:
                raise refusal
            put(self, site, module)

        monkeypatch.setattr(Backbone, "set_operator", set_operator)
    with pytest.raises(error):
        operate(backbone, design_of(backbone, *edits))
    assert all(
        now is then for now, then in zip(map(backbone.get_operator, backbone.sites), before, strict=True)
    )


def test_random_weights_depend_on_seed_and_site_alone(backbone: Backbone) -> None:
    def fresh(seed: int, block: int = 1) -> nn.Module:
        edit = replacement("hyena_x", block)
        return new_operator(backbone, edit, seed)

    first, again = (fresh(0).state_dict() for _ in range(2))
    torch.rand(1)
    assert same(first, again)
    assert not same(first, fresh(1).state_dict())
    assert not same(first, fresh(0, 2).state_dict())


def test_a_site_beyond_the_last_block_is_refused_before_any_change(backbone: Backbone) -> None:
    before = output(backbone)
    with pytest.raises(ValueError, match="blocks are 0 to 7"):
        operate(backbone, design_of(backbone, replacement("hyena_x"), replacement("hyena_x", 8)))
    assert torch.equal(output(backbone), before)


def inherited(backbone: Backbone, kind: str, **fields: float) -> nn.Module:
    edit = replacement(kind, 1, "inherit", **fields)
    return new_operator(backbone, edit, 0)


def test_a_wider_mlp_starts_as_the_same_function(backbone: Backbone) -> None:
    wider, hidden = inherited(backbone, "mlp", ratio=6.0), torch.randn(2, 49, 96)
    original = backbone.get_operator(replacement("mlp").site)
    torch.testing.assert_close(wider(hidden), original(hidden), rtol=0, atol=1e-5)


def test_a_narrower_mlp_drops_what_contributes_nothing(backbone: Backbone) -> None:
    torch.manual_seed(0)
    edit = replacement("mlp", 1, "inherit", ratio=3.0)
    copied = backbone.with_transformer(copy.deepcopy(backbone.transformer))
    original = copied.get_operator(edit.site)
    unused = torch.randperm(384)[:96]
    original.get_submodule("net.2").weight[:, unused] = 0
    narrower, hidden = new_operator(copied, edit, 0), torch.randn(2, 49, 96)
    assert isinstance(narrower, FeedForward)
    torch.testing.assert_close(narrower(hidden), original(hidden), rtol=0, atol=1e-5)


def test_a_hyena_takes_all_four_projections(backbone: Backbone) -> None:
    original = backbone.get_operator(replacement("hyena_y").site)
    weights = inherited(backbone, "hyena_y").state_dict()
    for index, name in enumerate(("to_q", "to_k", "to_v")):
        ours = weights["project_in.weight"][96 * index : 96 * (index + 1)]
        assert torch.equal(ours, original.get_submodule(name).weight)
    assert torch.equal(weights["project_out.bias"], original.get_submodule("to_out.0").bias)
