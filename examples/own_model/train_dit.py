"""Train a small DiT on a folder of images with plain diffusers: `python train_dit.py IMAGES OUTPUT`.

It stands for the model of your own, so nothing here imports this project. The output is a folder as diffusers
saves a pipeline: transformer/, scheduler/ and, unless `--pixels` is given, vae/. With `--flow` the model
predicts the velocity of a rectified flow, with `--no-labels` it takes no classes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn

BATCH = 32


def read_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Pixels [N, 3, H, W] in [-1, 1] and labels [N], classes in the order of their folders' names."""
    pixels, labels = [], []
    for label, kind in enumerate(sorted(each for each in folder.iterdir() if each.is_dir())):
        for file in sorted(kind.iterdir()):
            pixels.append(np.asarray(Image.open(file).convert("RGB")))
            labels.append(label)
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return images, torch.tensor(labels)


def train(
    model: nn.Module, loss: Callable[[Tensor], Tensor], count: int, seconds: float, rate: float
) -> None:
    """AdamW with a cosine schedule over a budget of seconds; keeps an average of the weights at the end."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    began, step = time.monotonic(), 0
    while (progress := (time.monotonic() - began) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * (1 - progress))
        rows = torch.randint(0, count, (BATCH,))
        value = loss(rows)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        decay = min(0.995, (1 + step) / (10 + step))
        for name, current in model.state_dict().items():
            if current.is_floating_point():
                average[name].lerp_(current, 1 - decay)
        if step % 100 == 1:
            print(f"{type(model).__name__} step {step} ({progress:.0%}) loss {value.item():.4f}", flush=True)
    model.load_state_dict(average)


def train_vae(images: Tensor, seconds: float) -> AutoencoderKL:
    """A quarter of the side and four channels; its scaling factor gives latents unit variance."""
    blocks = 3
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(16, 32, 48),
        norm_num_groups=8,
        layers_per_block=1,
        latent_channels=4,
        mid_block_add_attention=False,
        sample_size=images.shape[2],
    )

    def loss(rows: Tensor) -> Tensor:
        posterior = vae.encode(images[rows]).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        return (decoded - images[rows]).abs().mean() + 1e-5 * posterior.kl().mean()

    train(vae, loss, len(images), seconds, 2e-3)
    with torch.no_grad():
        some = vae.encode(images[torch.randperm(len(images))[:256]]).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1 / some.std()))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Scaled latents of all images."""
    parts = [vae.encode(chunk).latent_dist.mean for chunk in images.split(100)]
    return torch.cat(parts) * vae.config.scaling_factor


def train_dit(
    clean: Tensor, labels: Tensor | None, scheduler: object, seconds: float, patch: int
) -> nn.Module:
    """A DiT over latents, or pixels, [N, C, h, w]; a tenth of the labels is dropped for guidance."""
    classes = 1 if labels is None else int(labels.max()) + 1
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=clean.shape[1],
        out_channels=clean.shape[1],
        num_layers=6,
        sample_size=clean.shape[2],
        patch_size=patch,
        num_embeds_ada_norm=classes,
    )

    def loss(rows: Tensor) -> Tensor:
        sample, noise = clean[rows], torch.randn_like(clean[rows])
        asked = torch.zeros(len(rows), dtype=torch.long) if labels is None else labels[rows]
        if flow:
            sigmas = torch.rand(len(rows))
            noisy = torch.lerp(sample, noise, sigmas.view(-1, 1, 1, 1))
            timesteps, target = sigmas * 1000, noise - sample
        else:
            timesteps = torch.randint(0, 1000, (len(rows),))
            noisy, target = scheduler.add_noise(sample, noise, timesteps), noise
        predicted = model(noisy, timestep=timesteps, class_labels=asked).sample
        return (predicted - target).square().mean()

    model.train()
    train(model, loss, len(clean), seconds, 1e-3)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pixels", action="store_true", help="no autoencoder: patches of pixels")
    parser.add_argument("--flow", action="store_true", help="velocity of a rectified flow instead of noise")
    parser.add_argument("--no-labels", action="store_true", help="a model that takes no classes")
    parser.add_argument("--vae-seconds", type=float, default=120.0)
    parser.add_argument("--seconds", type=float, default=240.0)
    given = parser.parse_args()
    torch.manual_seed(0)
    images, labels = read_images(given.images)
    if given.pixels:
        clean, patch = images, images.shape[2] // 8
    else:
        vae = train_vae(images, given.vae_seconds)
        vae.save_pretrained(given.output / "vae")
        clean, patch = encode(vae, images), 2
    scheduler = FlowMatchEulerDiscreteScheduler() if given.flow else DDPMScheduler(beta_schedule="linear")
    model = train_dit(clean, None if given.no_labels else labels, scheduler, given.seconds, patch)
    model.save_pretrained(given.output / "transformer")
    scheduler.save_pretrained(given.output / "scheduler")


if __name__ == "__main__":
    main()
