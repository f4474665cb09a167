"""A scion: what determines a distilled operator, the key that follows, and the card it is filed under."""

from typing import Any, Literal

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Usage
from grafting_core.specs.canonical import digest, fields_of, memoized
from grafting_core.specs.design import ParallelPair, Part
from grafting_core.specs.plans import DistillPlan, Loss

DISTILL_RECIPE = 4
"""Bumped when stage 1's arithmetic changes, so that old scions are not mistaken for new ones."""

PAIR_LOSS: Loss = "l1"
"""Of merges, as the paper has it (section 6)."""


class ScionSpec(Frozen):
    """Everything that determines one distilled operator, and nothing else: other edits of a design do not.

    The backbone's digest covers its weights, its autoencoder and the training images at hand; which of them
    are seen, in which order and under which noise, is in the plan, as are seeds and precision.
    """

    backbone: BackboneRef
    part: Part
    plan: DistillPlan

    @property
    def name(self) -> str:
        """`block 3 attention`."""
        return part_name(self.part)

    @property
    def kind(self) -> str:
        """`hyena_x`; of a pair, `merge`."""
        return "merge" if isinstance(self.part, ParallelPair) else self.part.operator.kind

    @property
    def operator(self) -> str:
        """`mlp ratio=3.0, inherited`: the kind with the fields that are not its defaults."""
        if isinstance(self.part, ParallelPair):
            return self.kind
        fields = self.part.operator.model_dump(exclude_defaults=True, exclude={"kind"})
        told = [f"{name}={value}" for name, value in fields.items()]
        told += ["inherited"] if self.part.init == "inherit" else []
        return f"{self.kind} {', '.join(told)}".strip()

    @property
    def label(self) -> str:
        """`block 3 attention hyena_x`."""
        return f"{self.name} {self.kind}"

    @property
    def loss(self) -> Loss:
        if isinstance(self.part, ParallelPair):
            return PAIR_LOSS
        return self.plan.loss_for(self.part.site.slot)

    @property
    def key(self) -> str:
        """Same key, same bytes on the same class of hardware. Losses of other slots do not enter."""
        return _key(self)

    def determining(self) -> dict[str, Any]:
        """What of the plan enters the key."""
        plan = fields_of(self.plan, exclude={"attention_loss", "mlp_loss", "init_seed"})
        return {**plan, "loss": self.loss, "first_weights_seed": self.plan.first_weights_seed}


@memoized
def _key(scion: ScionSpec) -> str:
    return digest(
        {
            "stage": "distill",
            "recipe": DISTILL_RECIPE,
            "backbone": scion.backbone.digest,
            "part": scion.part,
            "plan": scion.determining(),
        }
    )


def part_name(part: Part) -> str:
    """The site, or `pair 0+1`; what a part is called within its design."""
    return str(part) if isinstance(part, ParallelPair) else str(part.site)


class ScionCard(Frozen):
    """What the bank says of a scion without opening it. Times are the maker's clock, for display only."""

    key: str
    scion: ScionSpec
    errors: dict[str, float]
    """Normalised squared error on held-out images: `nmse` and by quarter of the timesteps."""
    held_out: str | None = None
    """Digest of those images; None: the training images under other noise, as earlier versions measured."""
    scores: dict[str, float] = {}
    """`replace_one/...`: what it does to the teacher's prediction, alone in its place."""
    restored: dict[str, dict[str, float]] = {}
    """Digest of a design -> `restore_one/...`: what is gained in that design by putting the original back."""
    curve: tuple[tuple[int, float], ...] = ()
    steps: int
    ending: Literal["completed", "plateau"] = "completed"
    reason: str = ""
    spend: Usage
    """Its share of the pass that made it."""
    made_by: str
    """The run."""
    made_at: float
    hardware: str
    file: str
    sha256: str
    size: int

    @property
    def nmse(self) -> float:
        return self.errors["nmse"]
