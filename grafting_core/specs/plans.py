"""Settings of the three stages. Defaults are the paper's; `presets` has smaller ones."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from grafting_core.specs.base import Frozen
from grafting_core.specs.datasets import DatasetRef
from grafting_core.specs.dims import Slot
from grafting_core.specs.private_names import Replaced

Steps = Annotated[int, Field(ge=0, le=10_000_000)]
PositiveSteps = Annotated[int, Field(ge=1, le=10_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Seed of 32 bits: CPU generators use only the low 32 bits, so larger seeds could collide."""

Loss = Literal["l1", "l2", "huber", "nmse"]
Schedule = Literal["constant", "cosine"]
SamplerName = Literal["ddpm", "ddim", "dpm_solver", "flow_euler"]
Spacing = Literal["linspace", "leading", "trailing"]
NoiseLevel = Annotated[float, Field(ge=0, le=1000)]
MicroBatch = Annotated[int, Field(ge=1, le=4_096)]


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] >= interval[1]:
        raise PydanticCustomError("greater_than_before", "should be [low, high] with low < high")
    return interval


GuidanceInterval = Annotated[tuple[NoiseLevel, NoiseLevel], AfterValidator(_rising)]
Features = Literal["fresh", "stored"]
Precision = Literal["float32", "bfloat16"]


class DistillPlan(Frozen):
    """Stage 1: each new operator is trained to match the old one on the unedited model's activations.

    Loss by slot is the best of the paper (section 3.3, Table 1): L1 for attention, L2 for MLP. `steps` 25,000
    at batch size 64 are the paper's 200 epochs over 8,000 images. `features` "fresh" draws new noise for
    every batch; "stored" is the paper's recipe: noise is drawn once per image and the features are cached. An
    operator stops early if the mean loss of `patience` steps is not below the lowest such mean before.
    `precision` is that of teacher and operators; weights and optimiser stay in float32. `init_seed` seeds the
    operators' initial weights (by default `seed` does); `seed` seeds images and noise.
    """

    added: ClassVar[frozenset[str]] = frozenset({"dataset", "subset_seed"})
    steps: Steps = 25_000
    batch_size: BatchSize = 64
    learning_rate: LearningRate = 1e-4
    schedule: Schedule = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 10.0
    attention_loss: Loss = "l1"
    mlp_loss: Loss = "l2"
    images: Annotated[int, Field(ge=1, le=10**9)] = 8_000
    subset_seed: Seed = 0
    """Which images of the data set these are, in the proportions of the classes."""
    held_out: Annotated[int, Field(ge=8, le=65_536)] = 256
    features: Features = "fresh"
    precision: Precision = "float32"
    patience: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    seed: Seed = 0
    init_seed: Seed | None = None
    dataset: DatasetRef | None = None
    """Training data; None: the data set on the backbone's card."""

    @property
    def stream(self) -> tuple[str | int, ...]:
        """Settings that determine the batches and held-out draws; equal for all operators of one pass."""
        data = self.dataset.digest if self.dataset else ""
        images = self.images, self.subset_seed, self.held_out
        return self.features, self.precision, self.batch_size, *images, self.seed, data

    @property
    def first_weights_seed(self) -> int:
        return self.seed if self.init_seed is None else self.init_seed

    def loss_for(self, slot: Slot) -> Loss:
        return self.attention_loss if slot == "attention" else self.mlp_loss


class FinetunePlan(Frozen):
    """Stage 2: the whole grafted network is trained on the denoising objective (paper section 3.1, Eq. 1).

    `steps` 0 skips the stage. EMA weights are evaluated; the decay warms up as
    min(ema_decay, (1 + step) / (10 + step)). `precision` is that of forward and backward; weights, optimiser
    and EMA stay in float32.
    """

    added: ClassVar[frozenset[str]] = frozenset({"precision", "dataset", "subset_seed"})
    steps: Steps = 50_000
    batch_size: BatchSize = 256
    learning_rate: LearningRate = 1e-4
    schedule: Schedule = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 1_000
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    precision: Precision = "float32"
    images: Annotated[int, Field(ge=1, le=10**9)] = 128_000
    subset_seed: Seed = 0
    """Which images of the data set these are, in the proportions of the classes."""
    seed: Seed = 0
    dataset: DatasetRef | None = None
    """Training data; None: the data set on the backbone's card."""


def warmup_notes(**plans: DistillPlan | FinetunePlan) -> tuple[str, ...]:
    """A warning for every plan, named by keyword, whose warm-up is longer than its training."""
    return tuple(
        f"{name}.warmup_steps is {plan.warmup_steps:,} of {plan.steps:,} steps: "
        f"the learning rate never reaches {plan.learning_rate:g}"
        for name, plan in plans.items()
        if 0 < plan.steps < plan.warmup_steps
    )


class EvaluationProtocol(Frozen):
    """Stage 3: everything that quality metrics depend on. Its digest groups the leaderboard.

    `sampler` "ddpm" is the ancestral sampler with learned-range variance (paper section 2), "ddim" and
    "dpm_solver" (DPM-Solver++, second order) are deterministic, "flow_euler" integrates rectified flows; the
    backbone's objective decides which of them can be used. `spacing` selects which of the 1000 timesteps are
    used; "linspace" is ADM's. Noise and label of sample i depend only on (seed, i).

    `pipeline` "lab" computes steps and guidance from constants in float64 and a faster forward; "diffusers"
    samples with diffusers' schedulers as the pipeline of an export does, to the same bits.
    """

    added: ClassVar[frozenset[str]] = frozenset({"precision", "feature_digest", "dataset", "pipeline"})
    samples: Annotated[int, Field(ge=2, le=1_000_000)] = 50_000
    sampler: SamplerName = "ddpm"
    sampling_steps: Annotated[int, Field(ge=1, le=1000)] = 250
    spacing: Spacing = "linspace"
    pipeline: Literal["lab", "diffusers"] = "lab"
    guidance: Annotated[float, Field(ge=1, le=100)] = 1.5
    guidance_channels: Literal["all", "first_3"] = "first_3"
    guidance_interval: GuidanceInterval | None = None
    """Guide only where low < sigma <= high (Kynkaanniemi et al. 2024), sigma = sqrt((1 - abar) / abar), which
    is 0.01 at timestep 0 and 157 at 999. None: everywhere. Unguided steps cost half."""
    labels: Literal["uniform", "balanced"] = "uniform"
    feature_network: Annotated[str, Field(max_length=200), Replaced("feature network")] = "inception"
    mode: Literal["exact", "adm"] = "exact"
    """`adm` reproduces the guided-diffusion evaluator with float16 distances; `exact` uses float64."""
    micro_batch: MicroBatch = 50
    """Batch size of every forward. It changes the low bits of results, so it belongs to the protocol."""
    precision: Precision = "float32"
    """Precision of the network's forwards; samplers, decoder and feature network stay in float32."""
    feature_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$", max_length=64)] | None = None
    """SHA-256 of the feature network's weights; None for weights shipped with the package.

    Set at submission, so that other weights under the same name give another protocol.
    """
    seed: Seed = 0
    dataset: DatasetRef | None = None
    """Data set with the reference images; None: the data set on the backbone's card."""

    @property
    def fid_name(self) -> str:
        """Name of the metric that ranks designs, such as `fid1k/inception`."""
        return counted("fid", self.samples, self.feature_network, self.mode)


def counted(metric: str, samples: int, feature_network: str, mode: str = "exact") -> str:
    """Metric name with its sample count, `fid50k/inception/adm`: FIDs of few samples are biased."""
    count = f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)
    return f"{metric}{count}/{feature_network}" + ("" if mode == "exact" else f"/{mode}")
