"""The latency table: seconds of an operator in its place in a backbone, on one kind of device.

A row is measured on whole forwards: the backbone with the operator in every block of a slot, the backbone
itself and the backbone with nothing in that slot, in turn. So it holds what the operator takes among its
neighbours, caches and all, and a design's forward is the backbone's plus what each of its items adds.
"""

from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.backbone import BackboneCard, BackboneRef, backbone_cards
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest, fields_of
from grafting_core.specs.experiment import Resources
from grafting_core.specs.operators import OperatorSpec
from grafting_core.specs.operators.base import operator_label
from grafting_core.specs.plans import MicroBatch, Precision
from grafting_core.specs.results import Hardware

LATENCY_RECIPE = 1
"""Bumped when the way of measuring changes."""
MOST_ROUNDS = 60
"""Of interleaved forwards a row; fewer do where they agree, or are slow."""
Place = Literal["attention", "mlp", "pairs", "rest"]


class TimedPart(Frozen):
    """What a row times: an operator in its slot, the merge of a pair, or all that is no operator (`rest`)."""

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
        """How many times it stands in the network that is measured."""
        return {"pairs": card.depth // 2, "rest": 1}.get(self.place, card.depth)


class LatencySpec(Frozen):
    """Parts to have in the table for one backbone, batch, precision and kind of device."""

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
        """Names what is measured and on what: threads, and whether there is a GPU, enter."""
        asked = fields_of(self, exclude={"name", "budget", "resources"})
        threads, gpu = self.resources.cpus_per_worker, self.resources.gpus_per_worker > 0
        return digest({"latency": asked, "recipe": LATENCY_RECIPE, "threads": threads, "gpu": gpu})

    def row_key(self, part: TimedPart, hardware: Hardware) -> str:
        """Names one row, whichever study or backbone of these sizes asks for it; weights do not enter."""
        card = backbone_cards()[self.backbone.name]
        sizes = ("dims", "depth", "patch_size", "latent_channels", "num_classes")
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
    """One part in its place. `seconds` is one occurrence's, in a forward of `batch` samples.

    Of a pair it is what the merge adds to the two blocks, which may be negative.
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
    """Of what stands there in the backbone, in the same rounds."""
    whole: Seconds
    """Of the backbone's forward, in the same rounds."""
    extra: float
    """What one occurrence in place of the original adds to a forward, as a share of the backbone's."""
    extra_low: float
    extra_high: float
    """95 % by bootstrap over the rounds."""
    made_by: str = ""
    """The run."""
    made_at: float = 0.0

    @property
    def name(self) -> str:
        """`mlp mlp(ratio=3)`: unique among the rows of one table."""
        return self.part.name


def row_path(key: str) -> str:
    """Where a row is kept, relative to the storage root."""
    return f"latencies/{key}.json"
