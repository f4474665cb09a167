"""Make the testbed from the original images: `python -m grafting_core.testbed.pretrain --work DIR`.

Every stage resumes where a kill left it. Several processes share the work under
`torchrun --nproc-per-node 2 -m grafting_core.testbed.pretrain`, one thread each.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DiTTransformer2DModel

from grafting_core.testbed.autoencoder import encode_all, scaling_factor, train_autoencoder
from grafting_core.testbed.classifier import train_classifier
from grafting_core.testbed.data import read_split
from grafting_core.testbed.training import rank
from grafting_core.testbed.transformer import averaged_transformer, transformer_trainer

STEPS = {"classifier": 2_000, "autoencoder": 2_200, "transformer": 8_000}


def scaled_latents(autoencoder: AutoencoderKL, work: Path) -> dict[str, torch.Tensor]:
    """Posterior moments of the 60,000 training images, scaled to unit variance; computed once."""
    file = work / "latents.pt"
    if not file.exists():
        mean, std = encode_all(autoencoder, read_split("train")[0])
        factor = torch.tensor(scaling_factor(mean, std))
        beside = file.with_suffix(f".tmp{rank()}")
        torch.save({"mean": mean * factor, "std": std * factor, "factor": factor}, beside)
        os.replace(beside, file)  # noqa: PTH105 - the atomic one
    latents: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return latents


def pretrain(work: Path, seed: int, steps: dict[str, int]) -> None:
    """All three networks, one after the other."""
    classifier = train_classifier(work, seed, steps["classifier"])
    autoencoder = train_autoencoder(work, classifier, seed, steps["autoencoder"])
    train_transformer(work, autoencoder, seed, steps["transformer"])


def train_transformer(work: Path, autoencoder: AutoencoderKL, seed: int, steps: int) -> DiTTransformer2DModel:
    """The transformer alone, on this autoencoder's latents."""
    latents = scaled_latents(autoencoder, work)
    labels = torch.from_numpy(read_split("train")[1].copy()).long()
    trainer = transformer_trainer(work, (latents["mean"], latents["std"]), labels, seed, steps)
    trainer.run()
    return averaged_transformer(trainer)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    for name, default in STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1 if "RANK" in os.environ else os.cpu_count() or 1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    pretrain(given.work, given.seed, {name: getattr(given, f"{name}_steps") for name in STEPS})


if __name__ == "__main__":
    main()
