"""Sampling compared with diffusers' `DiTPipeline`: equal weights, noise, labels, steps and guidance, in one
run.

`python -m benchmarks.sampling [--model testbed dit-b] [--rounds 9] [--threads 1]` prints images per second
of both as medians over interleaved rounds, their ratio with an interval, the largest difference of a pixel
(of 0 to 1), and the time by part. `dit-b` has random weights and a small random decoder. With one thread,
processor time is measured, which other programs on the machine distort less.
"""

import argparse
import copy
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from grafting_core.backbones.autoencoder import KLAutoencoder
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.dit import silence_label_dropout
from grafting_core.backbones.registry import load_backbone
from grafting_core.diffusion.sampling import sample_generators, sample_images, sample_labels, sample_latents
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.plans import EvaluationProtocol

PIPELINE_NULL_LABEL = 1000
TOLERANCE = 1e-4
PROFILES = 3
REST = "the rest"
TESTBED = EvaluationProtocol(
    sampler="ddim",
    sampling_steps=10,
    spacing="trailing",
    guidance_channels="all",
    labels="balanced",
    micro_batch=50,
)
DIT_B = TESTBED.model_copy(update={"sampling_steps": 4, "micro_batch": 4})
PARTS = {
    "linear layers": ("addmm", "linear", "mm"),
    "attention": ("scaled_dot_product",),
    "activations": ("gelu",),
    "decoder": ("convolution", "group_norm", "silu", "upsample"),
    "norms, modulation, gates": ("layer_norm", "mul", "add", "addcmul"),
}
"""Part of the work -> parts of its kernels' names; the first match counts."""


def main() -> None:
    """Parse the command line, measure each model, print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", choices=["testbed", "dit-b"], default=["testbed", "dit-b"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| model | DiTPipeline img/s | ours img/s | ratio | interval | largest difference |")
    print("|---|---|---|---|---|---|")
    rivals = {name: (testbed() if name == "testbed" else dit_b()) for name in given.model}
    for name, rival in rivals.items():
        print(compare(name, rival, given.rounds), flush=True)
    for name, rival in rivals.items():
        print(where_the_time_goes(name, rival), flush=True)


@dataclass(frozen=True)
class Rival:
    """One model in both implementations."""

    backbone: Backbone
    pipeline: Any
    protocol: EvaluationProtocol

    @property
    def count(self) -> int:
        return self.protocol.micro_batch

    def ours(self) -> Tensor:
        return sample_images(self.backbone, self.backbone.transformer, self.protocol, range(self.count))

    def theirs(self) -> Tensor:
        """Return the pipeline's pixels [n, C, H, W] of 0 to 1."""
        labels = sample_labels(self.protocol, self.backbone.card.num_classes, range(self.count))
        pixels: Tensor = self.pipeline(
            labels.tolist(),
            guidance_scale=self.protocol.guidance,
            generator=sample_generators(self.protocol, range(self.count)),
            num_inference_steps=self.protocol.sampling_steps,
            output_type="pt",
        ).images
        return pixels

    @torch.no_grad()
    def difference(self) -> float:
        latents = sample_latents(self.backbone, self.backbone.transformer, self.protocol, range(self.count))
        pixels = self.backbone.autoencoder.decode(latents)
        return (pixels.div(2).add(0.5).clamp(0, 1) - self.theirs()).abs().max().item()


def testbed() -> Rival:
    backbone = load_backbone("testbed/dit-fashion")
    return Rival(backbone, pipeline_of(backbone), TESTBED)


def dit_b() -> Rival:
    """Make a DiT-B/2 at 256 tokens (Peebles & Xie 2023) with a decoder of a few channels."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(12, 64, 4, 8, 12, sample_size=32, patch_size=2)
    silence_label_dropout(transformer)
    known = load_backbone("testbed/dit-fashion")
    dims = BlockDims(width=768, num_heads=12, mlp_ratio=4.0, grid=(16, 16))
    sizes = {"depth": 12, "dims": dims, "patch_size": 2, "num_classes": 1000}
    backbone = replace(
        known,
        card=known.card.model_copy(update=sizes),
        transformer=transformer.eval().requires_grad_(False),
        autoencoder=KLAutoencoder(
            AutoencoderKL(latent_channels=4, block_out_channels=(32,), norm_num_groups=8).eval()
        ),
    )
    return Rival(backbone, pipeline_of(backbone), DIT_B)


def pipeline_of(backbone: Backbone) -> Any:
    """Make diffusers' pipeline on a copy of the weights with the null label where the pipeline expects it."""
    transformer = copy.deepcopy(backbone.transformer)
    for module in transformer.modules():
        if hasattr(module, "embedding_table"):
            module.embedding_table = with_null_label(module.embedding_table)
    scheduler = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, timestep_spacing="trailing"
    )
    assert isinstance(backbone.autoencoder, KLAutoencoder)
    autoencoder = copy.deepcopy(backbone.autoencoder.model)
    pipeline = DiTPipeline(transformer, autoencoder, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def with_null_label(table: nn.Embedding) -> nn.Embedding:
    """Return the labels' embeddings, with the last one repeated at 1000."""
    missing = PIPELINE_NULL_LABEL + 1 - table.num_embeddings
    return nn.Embedding.from_pretrained(torch.cat([table.weight, table.weight[-1:].expand(missing, -1)]))


def compare(name: str, rival: Rival, rounds: int) -> str:
    """Return one line of the table. Raises ValueError if the images differ."""
    difference = rival.difference()
    if difference > TOLERANCE:
        raise ValueError(f"{name}: images differ by {difference}, more than {TOLERANCE}")
    pairs = [(seconds(rival.theirs), seconds(rival.ours)) for _ in range(rounds)]
    theirs, ours = (rival.count / statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [one / other for one, other in pairs]
    low, high = interval(ratios)
    ratio = statistics.median(ratios)
    return (
        f"| {name} | {theirs:.2f} | {ours:.2f} | {ratio:.2f} | {low:.2f} to {high:.2f} | {difference:.0e} |"
    )


def seconds(job: Callable[[], Tensor]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    job()
    return clock() - began


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    """Return the middle 95 % of the median by bootstrap over rounds."""
    dice = random.Random(0)
    medians = sorted(statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws // 40], medians[-draws // 40]


def where_the_time_goes(name: str, rival: Rival) -> str:
    """Return the milliseconds per image by part in both implementations: medians over interleaved rounds."""
    rounds = [(split(rival.theirs, rival.count), split(rival.ours, rival.count)) for _ in range(PROFILES)]
    theirs, ours = (
        {part: statistics.median(one[part] for one in side) for part in (*PARTS, REST)}
        for side in zip(*rounds, strict=True)
    )
    rows = [f"| {part} | {theirs[part]:.2f} | {ours[part]:.2f} |" for part in theirs]
    return "\n".join([f"\n| {name}, ms an image | DiTPipeline | ours |\n|---|---|---|", *rows])


def split(job: Callable[[], Tensor], images: int) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        job()
    total = dict.fromkeys((*PARTS, REST), 0.0)
    for kernel in found.key_averages():
        total[part_of(kernel.key)] += kernel.self_cpu_time_total / 1e3 / images
    return total


def part_of(kernel: str) -> str:
    return next((part for part, names in PARTS.items() if any(n in kernel for n in names)), REST)


if __name__ == "__main__":
    sys.exit(main())
