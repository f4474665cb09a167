"""Results of an evaluation: metrics with intervals, overall and by class, and their fingerprint."""

from typing import ClassVar, Literal

from grafting_core.specs.base import Frozen
from grafting_core.specs.canonical import digest
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.private_names import Intervals, Metrics


class ProtocolFingerprint(Frozen):
    """Method of measuring quality. Metrics under different fingerprints are never ranked together."""

    recipe: int
    """Version of the evaluation's arithmetic."""
    subject: str
    """Digest of the backbone whose designs are compared; empty for samples of unknown origin."""
    protocol: EvaluationProtocol
    feature_network: str | None
    """SHA-256 of the feature network's weights; None if they are not available."""
    reference: str
    """Digest of the reference that samples are compared with."""
    held_out: str | None = None
    """Digest of the held-out images for losses; None if there are none."""

    added: ClassVar[frozenset[str]] = frozenset({"held_out"})

    @property
    def digest(self) -> str:
        return digest(self)


class ClassFigures(Frozen):
    """Metrics of the samples with one target class."""

    label: int
    samples: int
    accuracy: float | None = None
    """Share that the feature network classifies as this class."""
    kid: float | None = None
    """Kernel distance to the reference images of the class: unbiased, so usable for few samples."""


class EvaluationReport(Frozen):
    """One evaluation: `values` by full metric name, 95 % `intervals` for those that have one."""

    fingerprint: ProtocolFingerprint
    values: Metrics
    intervals: Intervals = {}
    warnings: tuple[str, ...] = ()
    classes: tuple[ClassFigures, ...] = ()
    samples_digest: str
    """SHA-256 over the SHA-256 of every image in order: equal digests, equal images."""
    made_with: dict[str, str] = {}
    """Software versions; displayed, but not part of the fingerprint."""


class Hardware(Frozen):
    """Hardware of a latency measurement; `digest` is the hardware fingerprint."""

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
    """20 % and 80 % quantiles."""
    teacher_median: float
    ratio: float
    ratio_low: float
    ratio_high: float
    """95 % bootstrap interval of the ratio over the pairs."""

    @property
    def verdict(self) -> Literal["faster", "slower", "no difference"]:
        """Compare by the interval of the ratio: if it includes 1, there is no difference."""
        if self.ratio_high < 1:
            return "faster"
        return "slower" if self.ratio_low > 1 else "no difference"


class Parameters(Frozen):
    """Parameter counts of a network; shared parameters count once."""

    total: int
    trainable: int
    """Parameters that stage 2 trains."""
    grafted: int
    """Parameters of the design's operators and merges."""
    embedding: int
    """Parameters of timestep and label embedders, which diffusers' DiT repeats in every block."""
    buffers: int


class MeasuredCost(Frozen):
    """Cost of a network by formula and by clock. Only costs on equal hardware are compared."""

    hardware: Hardware
    parameters: Parameters
    flops_per_forward: int
    flops_per_image: int
    latencies: tuple[Latency, ...]
    cold_start_seconds: float
    """Seconds of the first forward."""
    images_per_second: float
    teacher_images_per_second: float
    """Images sampled and decoded per second under the evaluation's protocol."""
    peak_bytes: int
    """Peak memory allocated during one forward of the larger batch, beyond weights and inputs."""

    @property
    def macs_per_forward(self) -> int:
        return self.flops_per_forward // 2

    @property
    def macs_per_image(self) -> int:
        return self.flops_per_image // 2
