"""A random DiT-XL/2 at full size: its folder, and both training stages in one process under watch.

`python -m tests.support.full_size write FOLDER` and `... train FOLDER STORAGE`, which prints a JSON object.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.diffusers_folder import EMBEDDER, FIRST_EMBEDDER, empty_transformer, shapes_of
from grafting_core.backbones.dit_config import DiTConfig
from grafting_core.backbones.registered import load_registered, read_card
from grafting_core.data.latents import EncodedImages, Latents, predict_batch
from grafting_core.distillation.distill import distill, replacement_student
from grafting_core.specs.design import GraftDesign, ReplaceOperator
from grafting_core.specs.memory import distillation_memory, finetuning_memory
from grafting_core.specs.operators.hyena import HyenaX
from grafting_core.specs.plans import DistillPlan, FinetunePlan
from grafting_core.specs.site import GraftSite
from grafting_core.storage.storage import Storage
from grafting_core.storage.tensor_files import read_tensors, write_tensors
from grafting_core.surgery.operate import operate
from grafting_core.training.finetune import finetune
from grafting_core.training.observer import StopRequested
from tests.support.training import StopAfter

CONFIG = DiTConfig(out_channels=8)
EDIT = ReplaceOperator(site=GraftSite(block=13, slot="attention"), operator=HyenaX())
T = TypeVar("T")
DISTILL = DistillPlan(steps=1, batch_size=2, images=4, held_out=8)
FINETUNE = FinetunePlan(steps=2, batch_size=1, warmup_steps=0, images=4)


def write_folder(folder: Path) -> None:
    """In half precision, every weight drawn non-zero, one embedder in all blocks."""
    torch.manual_seed(0)
    transformer = empty_transformer(CONFIG)
    state = {name: (torch.randn(shape) * 0.03).half() for name, shape in shapes_of(transformer).items()}
    for name in state:
        if EMBEDDER in name and not name.startswith(FIRST_EMBEDDER):
            state[name] = state[FIRST_EMBEDDER + name.split(EMBEDDER, 1)[1]].clone()
    target = folder / "transformer"
    target.mkdir(parents=True)
    transformer.save_config(target)
    save_file(state, target / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder / "vae")


class FileCheckpoints:
    """One file in a storage, as the lab's checkpoints are written."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self._step = storage, 0

    def latest(self) -> tuple[int, Mapping[str, Tensor]] | None:
        return (self._step, read_tensors(self._storage, "checkpoint")) if self._step else None

    def due(self) -> bool:
        return False

    def save(self, step: int, tensors: Mapping[str, Tensor], loss: float | None = None) -> None:
        write_tensors(self._storage, "checkpoint", tensors)
        self._step = step


def train(folder: Path, storage: Path) -> dict[str, float]:
    """Peak bytes and seconds of every step, and what was predicted of them from the card."""
    found: dict[str, float] = {}
    card = _watched(found, "read", lambda: read_card(folder, name="full-size"))
    backbone = _watched(found, "load", lambda: load_registered(card, torch.device("cpu")))
    found["held_params"] = sum(parameter.numel() for parameter in backbone.transformer.parameters())
    found["card_params"] = card.num_params
    latents = _latents(backbone)
    with torch.no_grad():
        found["output_std"] = float(predict_batch(backbone, latents.batch("shown", 0, 0, 1)).std())
    results = _watched(
        found,
        "distill",
        lambda: distill(backbone, [replacement_student(EDIT, DISTILL, "a")], latents, latents),
    )
    found["distill_predicted"] = distillation_memory(card, (EDIT,), DISTILL).total
    found["nmse"] = results["a"].errors["nmse"]
    operate(backbone, GraftDesign(backbone=card.ref, edits=(EDIT,)))
    backbone.get_operator(EDIT.site).operator.load_state_dict(results["a"].state)
    design = GraftDesign(backbone=card.ref, edits=(EDIT,))
    found["finetune_predicted"] = finetuning_memory(card, design, FINETUNE, teacher=False).total
    kept = FileCheckpoints(Storage(str(storage)))

    def first() -> None:
        with suppress(StopRequested):
            finetune(backbone, FINETUNE, latents, observer=StopAfter(1), checkpoints=kept)

    _watched(found, "finetune", first)
    with torch.no_grad():  # what was trained is gone; the checkpoint has it
        trained = backbone.transformer.proj_out_2.weight.detach().clone()
        backbone.transformer.proj_out_2.weight.zero_()
    backbone.transformer.zero_grad(set_to_none=True)
    average = _watched(found, "resume", lambda: finetune(backbone, FINETUNE, latents, checkpoints=kept))
    found["averaged_params"] = sum(value.numel() for value in average.values())
    moved = (backbone.transformer.proj_out_2.weight.detach() - trained).abs().max()
    found["last_step"] = float(moved)
    return found


def _latents(backbone: Backbone) -> Latents:
    mean = torch.randn(4, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    conditions = backbone.label_conditions(torch.arange(4))
    return Latents.of(backbone, EncodedImages("ab" * 32, mean, torch.zeros_like(mean), conditions))


def _watched(found: dict[str, float], name: str, work: Callable[[], T]) -> T:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    began = time.perf_counter()
    result = work()
    found[f"{name}_seconds"] = time.perf_counter() - began
    found[f"{name}_bytes"] = _peak()
    print(
        name, f"{found[f'{name}_bytes'] / 1e9:.2f} GB", f"{found[f'{name}_seconds']:.0f} s", file=sys.stderr
    )
    return result


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    if command == "write":
        write_folder(Path(paths[0]))
    else:
        measured = train(Path(paths[0]), Path(paths[1]))
        measured["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(measured))
