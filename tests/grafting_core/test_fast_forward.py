"""The fast forward gives what the network's own gives, whatever has been grafted into it."""

import copy
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from grafting_core.backbones import fast_forward
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.conditions import Conditions
from grafting_core.backbones.fast_forward import FastForward, PlainForward, forward_of
from grafting_core.diffusion.sampling import sample_images
from grafting_core.operators.parallel import ParallelBlocks
from grafting_core.specs.design import ParallelPair
from grafting_core.specs.operators import KINDS
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.surgery.operate import operate
from tests.support.builders import design_of, replacement

LABELS = Conditions({"class_labels": torch.tensor([3, 0, 9, 10, 10, 7, 1, 2, 3, 10, 10, 5])})


@pytest.fixture
def network(backbone: Backbone) -> nn.Module:
    return copy.deepcopy(backbone.transformer)


def latents(count: int = len(LABELS)) -> Tensor:
    return torch.randn(count, 4, 7, 7, generator=torch.Generator().manual_seed(3))


def assert_equal_to_own(network: nn.Module, labels: Conditions = LABELS, timestep: int = 417) -> None:
    forward, given = forward_of(network), latents(len(labels))
    assert isinstance(forward, FastForward)
    with torch.no_grad():
        own = PlainForward(network)(given, timestep, labels)
    torch.testing.assert_close(forward(given, timestep, labels), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_operator_kind_gives_what_its_network_gives(
    backbone: Backbone, network: nn.Module, kind: str
) -> None:
    edits = [replacement(kind, block=block) for block in (0, 5)]
    operate(backbone.with_transformer(network), design_of(backbone, *edits))
    assert_equal_to_own(network.eval())


@pytest.mark.parametrize("timestep", [0, 1, 999])
def test_the_teacher_gives_what_it_gives_at_any_timestep(network: nn.Module, timestep: int) -> None:
    assert_equal_to_own(network, timestep=timestep)


def test_fewer_samples_than_classes_are_embedded_one_by_one(network: nn.Module) -> None:
    assert_equal_to_own(network, LABELS.rows(slice(4)))


def test_tiles_change_nothing(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_forward, "TILE_BYTES", 5 * 49 * 384 * 4)
    assert_equal_to_own(network)


def test_the_last_step_takes_a_patch_of_any_size() -> None:
    torch.manual_seed(0)
    network = DiTTransformer2DModel(2, 16, 4, 8, 2, sample_size=8, patch_size=2, num_embeds_ada_norm=10)
    forward, given = FastForward(network.eval()), torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        own = PlainForward(network)(given, 80, LABELS.rows(slice(3)))
    torch.testing.assert_close(forward(given, 80, LABELS.rows(slice(3))), own, rtol=1e-5, atol=1e-5)


def test_parallel_blocks_give_what_they_give(backbone: Backbone, network: nn.Module) -> None:
    pairs = [ParallelPair(first=first) for first in (0, 4)]
    edits = [replacement("hyena_x", block=block) for block in (1, 2)]
    operate(backbone.with_transformer(network), design_of(backbone, *edits, *pairs))
    for pair in network.modules():
        if isinstance(pair, ParallelBlocks):
            nn.init.normal_(pair.merge.weight, std=0.05)  # type: ignore[arg-type]  # a Linear
    assert_equal_to_own(network.eval())


class Unknown(nn.Module):
    """A block that the fast forward has never heard of."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.norm1 = block.norm1

    def forward(self, hidden_BTD: Tensor, **conditions: Any) -> Tensor:
        out: Tensor = self.block(hidden_BTD, **conditions)
        return out.flip(1)


@pytest.mark.parametrize("place", [0, 4])
def test_a_block_of_another_kind_computes_by_itself(network: nn.Module, place: int) -> None:
    network.transformer_blocks[place] = Unknown(network.transformer_blocks[place])
    assert_equal_to_own(network)


def test_an_edit_or_a_training_step_between_two_calls_is_seen(network: nn.Module) -> None:
    forward = forward_of(network)
    before = forward(latents(), 5, LABELS)
    with torch.no_grad():
        network.transformer_blocks[2].norm1.linear.weight.mul_(1.5)
    assert not torch.equal(forward(latents(), 5, LABELS), before)
    assert_equal_to_own(network)


def test_training_mode_and_watched_networks_keep_their_own_forward(network: nn.Module) -> None:
    assert isinstance(forward_of(network.train()), PlainForward)
    network.eval().transformer_blocks[1].attn1.register_forward_hook(lambda module, given, output: None)
    assert isinstance(forward_of(network), PlainForward)


def test_double_precision_is_kept(network: nn.Module) -> None:
    network.double()
    given = latents().double()
    out = forward_of(network)(given, 300, LABELS)
    with torch.no_grad():
        own = PlainForward(network)(given, 300, LABELS)
    torch.testing.assert_close(out, own, rtol=1e-12, atol=1e-12)


def test_a_self_graft_with_the_old_weights_draws_the_teachers_images(
    backbone: Backbone, network: nn.Module
) -> None:
    edits = [replacement(kind, init="inherit") for kind in ("mha", "mlp")]
    operate(backbone.with_transformer(network), design_of(backbone, *edits))
    protocol = EvaluationProtocol(sampler="ddim", sampling_steps=3, micro_batch=10)
    images = [
        sample_images(backbone, each, protocol, range(10)) for each in (backbone.transformer, network.eval())
    ]
    assert torch.equal(*images)


@pytest.mark.parametrize("kind", [None, "hyena_x", "window_attention", "mamba2", "linear_attention"])
def test_the_flops_of_a_whole_forward_are_those_that_are_counted(
    backbone: Backbone, network: nn.Module, kind: str | None
) -> None:
    edits = [] if kind is None else [replacement(kind, block=block) for block in range(4)]
    operate(backbone.with_transformer(network), design_of(backbone, *edits))
    # The counter does not know the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        PlainForward(network.eval())(latents(1), 417, LABELS.rows(slice(1)))
    card = backbone.card
    new = sum(edit.operator.computed_flops(card.dims) for edit in edits)
    old = sum(card.original(edit.site).computed_flops(card.dims) for edit in edits)
    assert card.forward_flops() + new - old == pytest.approx(counter.get_total_flops(), rel=0.01)
