"""Make the testbed from the original images: `python -m grafting_core.testbed.recipe.pretrain --work DIR`.

Every stage resumes from its checkpoint. Use several processes with one thread each by
`torchrun --nproc-per-node 2 -m grafting_core.testbed.recipe.pretrain`.
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DiTTransformer2DModel

from grafting_core.testbed.networks import FashionClassifier
from grafting_core.testbed.plugin import ASSETS
from grafting_core.testbed.recipe.autoencoder import encode_all, scaling_factor, train_autoencoder
from grafting_core.testbed.recipe.classifier import train_classifier
from grafting_core.testbed.recipe.data import read_split
from grafting_core.testbed.recipe.package import pretraining_cost, write_package
from grafting_core.testbed.recipe.training import Trainer, rank, saved_curve
from grafting_core.testbed.recipe.transformer import averaged_transformer, transformer_trainer

STEPS = {"classifier": 2_000, "autoencoder": 2_200, "transformer": 8_000}


def scaled_latents(autoencoder: AutoencoderKL, work: Path) -> dict[str, torch.Tensor]:
    """Posterior moments of the 60,000 training images, scaled to unit variance; computed once."""
    file = work / "latents.pt"
    if not file.exists():
        mean, std = encode_all(autoencoder, read_split("train")[0])
        factor = torch.tensor(scaling_factor(mean, std))
        temporary = file.with_suffix(f".tmp{rank()}")
        torch.save({"mean": mean * factor, "std": std * factor, "factor": factor}, temporary)
        os.replace(temporary, file)  # noqa: PTH105 - atomic
    latents: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return latents


def pretrain(work: Path, seed: int, steps: dict[str, int], assets: Path) -> None:
    """Train all three networks one after another, then write the package and its card."""
    classifier = train_classifier(work, seed, steps["classifier"])
    autoencoder = train_autoencoder(work, classifier, seed, steps["autoencoder"])
    latents = scaled_latents(autoencoder, work)
    labels = torch.from_numpy(read_split("train")[1].copy()).long()
    trainer = transformer_trainer(work, (latents["mean"], latents["std"]), labels, seed, steps["transformer"])
    trainer.run()
    if rank() == 0:
        networks = (classifier, autoencoder, averaged_transformer(trainer))
        _package(networks, float(latents["factor"]), trainer, assets)


def _package(
    networks: tuple[FashionClassifier, AutoencoderKL, DiTTransformer2DModel],
    factor: float,
    trainer: Trainer,
    assets: Path,
) -> None:
    """Write the files that ship; `python -m grafting_core.testbed.recipe.measure` adds metrics later."""
    cost = pretraining_cost(trainer.step, trainer.seconds)
    write_package(*networks, factor, cost, {}, assets)
    curve = {name: saved_curve(trainer.work, name) for name in STEPS}
    (assets / "curves.json").write_text(json.dumps(curve) + "\n")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the files that ship")
    parser.add_argument("--seed", type=int, default=0)
    for name, default in STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1 if "RANK" in os.environ else os.cpu_count() or 1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    steps = {name: getattr(arguments, f"{name}_steps") for name in STEPS}
    pretrain(arguments.work, arguments.seed, steps, arguments.assets)


if __name__ == "__main__":
    main()
