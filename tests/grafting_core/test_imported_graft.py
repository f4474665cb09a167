"""An imported graft is a backbone like any other: grafted further, trained, sampled, exported, registered."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from grafting_core import export_model, load_grafted
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.checkpoint_folder import write_checkpoint
from grafting_core.backbones.registered import load_registered, read_card
from grafting_core.backbones.released_grafts import ImportedCheckpoint, import_checkpoint
from grafting_core.backbones.shared_embedders import load_unique_state
from grafting_core.data.latents import EncodedImages, Latents
from grafting_core.diffusion.sampling import sample_latents
from grafting_core.distillation.distill import distill, replacement_student
from grafting_core.specs.design import GraftDesign, ReplaceOperator
from grafting_core.specs.operators.hyena import HyenaX, HyenaY
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan
from grafting_core.specs.sampling_rules import protocol_for
from grafting_core.specs.site import GraftSite
from grafting_core.surgery.operate import operate
from grafting_core.training.finetune import finetune
from tests.support import original_dit
from tests.support.checkpoints import HYENA, RELEASED, save_checkpoint, save_vae, small_state
from tests.support.original_dit import relative_errors

EDIT = ReplaceOperator(site=GraftSite(block=0, slot="attention"), operator=HyenaY())
DISTILL = DistillPlan(steps=2, batch_size=2, images=4, held_out=8)
FINETUNE = FinetunePlan(steps=1, batch_size=2, warmup_steps=0, images=4)
SAMPLE = EvaluationProtocol(samples=2, sampler="ddim", sampling_steps=2, guidance=4.0, micro_batch=2)


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    """A released graft as it is registered."""
    file = save_checkpoint(tmp_path / RELEASED / "model.pt", {"ema": small_state(HYENA)})
    imported = import_checkpoint(file)
    assert isinstance(imported, ImportedCheckpoint)
    write_checkpoint(imported, tmp_path / "registered")
    save_vae(tmp_path / "registered" / "vae")
    return load_registered(read_card(tmp_path / "registered", name="hyena-x"), torch.device("cpu"))


@torch.no_grad()
def output(backbone: Backbone) -> Tensor:
    noisy = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    conditions = backbone.label_conditions(torch.tensor([1, 2]))
    return backbone.predict(noisy, torch.tensor([100, 900]), conditions)


@torch.no_grad()
def test_three_channels_are_guided_unless_a_protocol_says_otherwise(
    backbone: Backbone,
) -> None:
    """DDIM with one step goes from noise to the clean latents of the guided prediction."""
    protocol = protocol_for(backbone.card, SAMPLE.model_copy(update={"sampling_steps": 1}), ("sampler",))
    assert protocol.guidance_channels == "first_3"
    guided, everywhere = (
        sample_latents(
            backbone, backbone.transformer, protocol.model_copy(update={"guidance_channels": given}), [0, 1]
        )
        for given in ("first_3", "all")
    )
    assert torch.equal(guided[:, :3], everywhere[:, :3])
    assert not torch.allclose(guided[:, 3:], everywhere[:, 3:])


def test_a_graft_on_an_imported_graft_is_distilled_finetuned_and_exported(
    backbone: Backbone, tmp_path: Path
) -> None:
    mean = torch.randn(8, *backbone.latent_shape, generator=torch.Generator().manual_seed(2))
    conditions = backbone.label_conditions(torch.arange(8))
    latents = Latents.of(backbone, EncodedImages("ab" * 32, mean, torch.zeros_like(mean), conditions))
    result = distill(backbone, [replacement_student(EDIT, DISTILL, "key")], latents, latents)["key"]
    assert (result.steps, result.diverged) == (2, False)
    design = GraftDesign(backbone=backbone.card.ref, edits=(EDIT,))
    operate(backbone, design)
    backbone.get_operator(EDIT.site).get_submodule("operator").load_state_dict(result.state)
    load_unique_state(backbone.transformer, finetune(backbone, FINETUNE, latents))
    backbone.transformer.eval()
    expected = output(backbone)
    export_model(backbone, design, backbone.transformer.state_dict(), tmp_path / "out")
    again = load_grafted(tmp_path / "out")
    assert [edit.operator for edit in again.card.edits] == [HyenaY(), HyenaX()]
    assert again.card.arithmetic == "original"
    assert torch.equal(output(again), expected)
    card = read_card(tmp_path / "out", name="further")
    assert (card.edits, card.arithmetic) == (again.card.edits, "original")


@torch.no_grad()
def test_stage_1_imitates_what_the_original_computes(backbone: Backbone) -> None:
    """The teacher's attention at a site has the original's modulated input, and so its output."""
    state, found = small_state(HYENA), list[Tensor]()
    site = backbone.get_operator(EDIT.site)
    handle = site.register_forward_hook(lambda module, inputs, out: found.append(out))
    output(backbone)
    handle.remove()
    noisy = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    expected = original_dit.first_attention(state, noisy, torch.tensor([100, 900]), torch.tensor([1, 2]), 6)
    assert max(relative_errors(found[0], expected)) < 1e-5
