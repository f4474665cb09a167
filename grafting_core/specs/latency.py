"""Latency table: seconds of an operator in its place in a backbone, on one kind of device.

A row is measured on whole forwards, interleaved: the backbone with the operator in every block of a slot,
the backbone itself, and the backbone with nothing in that slot. So it includes effects of the neighbouring
operators, such as caches, and a design's forward is the backbone's plus what each of its items adds.
"""

from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.backbone import BackboneCard, BackboneRef, card_of
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest, fields_of
from grafting_core.specs.experiment import Resources
from grafting_core.specs.operators import OperatorSpec
from grafting_core.specs.operators.base import operator_label
from grafting_core.specs.plans import MicroBatch, Precision
from grafting_core.specs.results import Hardware

LATENCY_RECIPE = 1
"""Version of the measurement, raised when it changes."""
MOST_ROUNDS = 60
"""Largest number of interleaved rounds per row; fewer if they agree, or are slow."""
Place = Literal["attention", "mlp", "pairs", "rest"]


class TimedPart(Frozen):
    """Content of a row: an operator in its slot, the merge of a pair, or all but operators (`rest`)."""

    place: Place
    operator: OperatorSpec | None = None

    @property
    def label(self) -> str:
        """`mlp(ratio=3)`, `parallel pair`, `rest`."""
        if self.operator is not None:
            return operator_label(self.operator)
        return "parallel pair" if self.place == "pairs" else self.place

    @property
    def name(self) -> str:
        """`mlp mlp(ratio=3)`."""
        return self.place if self.operator is None else f"{self.place} {self.label}"

    def sites(self, card: BackboneCard) -> int:
        """Number of occurrences in the network that is measured."""
        return {"pairs": len(card.free_pairs), "rest": 1}.get(self.place, card.depth)


class LatencySpec(Frozen):
    """Parts to time for the latency table of one backbone, batch size, precision and kind of device."""

    kind: Literal["latency"] = "latency"
    name: str
    backbone: BackboneRef
    parts: Annotated[tuple[TimedPart, ...], Field(min_length=1)]
    batch: MicroBatch
    precision: Precision = "float32"
    budget: Budget = Budget()
    resources: Resources = Resources()

    @property
    def digest(self) -> str:
        """Digest of what is measured and on what; it includes threads and whether there is a GPU."""
        fields = fields_of(self, exclude={"name", "budget", "resources"})
        threads, gpu = self.resources.cpus_per_worker, self.resources.gpus_per_worker > 0
        return digest({"latency": fields, "recipe": LATENCY_RECIPE, "threads": threads, "gpu": gpu})

    def row_key(self, part: TimedPart, hardware: Hardware) -> str:
        """Key of one row, shared by all studies and backbones of these sizes; weights do not enter."""
        card = card_of(self.backbone)
        sizes = ["dims", "depth", "patch_size", "latent_channels", "num_classes"]
        sizes += [name for name in ("edits", "pairs") if getattr(card, name)]
        return digest(
            {
                "stage": "latency",
                "recipe": LATENCY_RECIPE,
                "part": part,
                "backbone": {name: getattr(card, name) for name in sizes},
                "batch": self.batch,
                "precision": self.precision,
                "hardware": hardware,
            }
        )


class Seconds(Frozen):
    """Median over rounds of interleaved forwards, and their quantiles at 20 and 80 %."""

    median: float
    low: float
    high: float


class PartLatency(Frozen):
    """Latency of one part. `seconds` is for one occurrence in a forward of `batch` samples.

    For a pair it is the difference between the merged and the two separate blocks, which may be negative.
    """

    key: str
    part: TimedPart
    tokens: int
    width: int
    batch: int
    precision: Precision
    hardware: Hardware
    rounds: int
    seconds: Seconds
    original: Seconds
    """The backbone's own operator in this place, in the same rounds."""
    whole: Seconds
    """The backbone's whole forward, in the same rounds."""
    extra: float
    """Change of the forward by one occurrence in place of the original, as a share of the backbone's."""
    extra_low: float
    extra_high: float
    """95 % bootstrap interval of `extra` over the rounds."""
    made_by: str = ""
    """Run that measured the row."""
    made_at: float = 0.0

    @property
    def name(self) -> str:
        """Name of the part, `mlp mlp(ratio=3)`; unique within one table."""
        return self.part.name


def row_path(key: str) -> str:
    """Path of a row relative to the storage root."""
    return f"latencies/{key}.json"
