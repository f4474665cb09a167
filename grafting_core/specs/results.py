"""What an evaluation yields: figures with intervals, by class too, and everything that they depend on."""

from typing import ClassVar, Literal

from grafting_core.specs.base import Frozen
from grafting_core.specs.canonical import digest
from grafting_core.specs.plans import EvaluationProtocol


class ProtocolFingerprint(Frozen):
    """How quality was measured. Figures under different fingerprints are never ranked together."""

    recipe: int
    """Version of the evaluating code's arithmetic."""
    subject: str
    """Digest of the backbone whose designs are compared; of nothing (empty) for samples of unknown origin."""
    protocol: EvaluationProtocol
    feature_network: str | None
    """SHA-256 of its weights; None where they are not at hand."""
    reference: str
    """Digest of what the samples are compared with."""
    held_out: str | None = None
    """Digest of the held-out images on which losses are measured; None where none are."""

    added: ClassVar[frozenset[str]] = frozenset({"held_out"})

    @property
    def digest(self) -> str:
        return digest(self)


class ClassFigures(Frozen):
    """Samples asked to be of one class."""

    label: int
    samples: int
    accuracy: float | None = None
    """Share that the feature network recognises as the class."""
    kid: float | None = None
    """Kernel distance to the reference images of the class: unbiased, so fit for few samples."""


class EvaluationReport(Frozen):
    """One evaluation: `values` by full metric name, 95 % `intervals` for those that have one."""

    fingerprint: ProtocolFingerprint
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    warnings: tuple[str, ...] = ()
    classes: tuple[ClassFigures, ...] = ()
    samples_digest: str
    """SHA-256 over the SHA-256 of every image in order: equal digests, equal images."""
    made_with: dict[str, str] = {}
    """Versions of the software; shown, but no part of the fingerprint."""


class Hardware(Frozen):
    """What a latency was measured on; `digest` is the hardware fingerprint."""

    device: str
    processor: str
    cores: int
    threads: int
    memory_gib: int
    torch: str
    driver: str | None = None
    dtype: str = "float32"

    @property
    def digest(self) -> str:
        return digest(self)


class Latency(Frozen):
    """Seconds of one forward at a batch size, interleaved with the teacher's; ratio below 1 is faster."""

    batch: int
    pairs: int
    median: float
    low: float
    high: float
    """20 and 80 % of the measurements."""
    teacher_median: float
    ratio: float
    ratio_low: float
    ratio_high: float
    """95 % by bootstrap over the pairs."""

    @property
    def verdict(self) -> Literal["faster", "slower", "no difference"]:
        """A speed-up whose interval includes 1 is none."""
        if self.ratio_high < 1:
            return "faster"
        return "slower" if self.ratio_low > 1 else "no difference"


class Parameters(Frozen):
    """Counts of a network's parameters, shared ones once."""

    total: int
    trainable: int
    """What stage 2 trains."""
    grafted: int
    """In operators that were put in."""
    embedding: int
    """In timestep and label embedders, which diffusers' DiT repeats in every block."""
    buffers: int


class MeasuredCost(Frozen):
    """What a network costs, by formula and by clock. Only costs of equal hardware are ever compared."""

    hardware: Hardware
    parameters: Parameters
    flops_per_forward: int
    flops_per_image: int
    latencies: tuple[Latency, ...]
    cold_start_seconds: float
    """The very first forward."""
    images_per_second: float
    teacher_images_per_second: float
    """Sampled and decoded, under the evaluation's own protocol."""
    peak_bytes: int
    """Allocated at most during one forward of the larger batch, beyond weights and inputs."""

    @property
    def macs_per_forward(self) -> int:
        return self.flops_per_forward // 2

    @property
    def macs_per_image(self) -> int:
        return self.flops_per_image // 2
