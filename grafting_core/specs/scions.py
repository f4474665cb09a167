"""Scions: the spec that determines a distilled operator, its key, and its card in the bank."""

from typing import Annotated, Any, Literal

from pydantic import Field

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Usage
from grafting_core.specs.canonical import digest, fields_of, memoized
from grafting_core.specs.design import ParallelPair, Part
from grafting_core.specs.features import Sha256
from grafting_core.specs.plans import DistillPlan, Loss

DISTILL_RECIPE = 4
"""Version of stage 1's arithmetic, raised when it changes so that older scions are not reused."""

PAIR_LOSS: Loss = "l1"
"""Loss of merges, as in the paper (section 6)."""


class _OperatorOfBackbone(Frozen):
    """Base of what identifies an operator in the bank: a part of a backbone's design."""

    backbone: BackboneRef
    part: Part

    @property
    def name(self) -> str:
        """`block 3 attention`."""
        return part_name(self.part)

    @property
    def kind(self) -> str:
        """Operator kind, `hyena_x`; `merge` for a pair."""
        return "merge" if isinstance(self.part, ParallelPair) else self.part.operator.kind

    @property
    def operator(self) -> str:
        """`mlp ratio=3.0, inherited`: the kind with fields that differ from their defaults."""
        if isinstance(self.part, ParallelPair):
            return self.kind
        changed = self.part.operator.model_dump(exclude_defaults=True, exclude={"kind"})
        fields = [f"{name}={value}" for name, value in changed.items()]
        fields += ["inherited"] if self.part.init == "inherit" else []
        return f"{self.kind} {', '.join(fields)}".strip()

    @property
    def label(self) -> str:
        """`block 3 attention hyena_x`."""
        return f"{self.name} {self.kind}"


class ScionSpec(_OperatorOfBackbone):
    """Everything that determines one distilled operator; other edits of its design do not.

    The backbone's digest covers its weights, its autoencoder and the training images; the plan determines
    which images are used, their order and noise, seeds and precision.
    """

    plan: DistillPlan

    @property
    def loss(self) -> Loss:
        if isinstance(self.part, ParallelPair):
            return PAIR_LOSS
        return self.plan.loss_for(self.part.site.slot)

    @property
    def key(self) -> str:
        """Content key: equal keys give equal bytes on equal hardware. Losses of other slots do not enter."""
        return _key(self)

    def determining(self) -> dict[str, Any]:
        """Fields of the plan that enter the key."""
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
    """The site, or `pair 0+1`: the part's name within its design."""
    return str(part.place)


class ImportedScion(_OperatorOfBackbone):
    """An operator that was made elsewhere, by settings that are not known here, and belongs to a backbone.

    Its weights themselves determine its key, which is therefore no key of a plan: no run takes it for what
    its own plan would make.
    """

    origin: Annotated[str, Field(max_length=600)]
    """Where it comes from, such as `dit-xl2-mha-hyena_x-50p-fid2.61/model.pt`."""
    weights: Sha256

    @property
    def key(self) -> str:
        """Equal weights at the same site of the same backbone have equal keys, wherever they come from."""
        content = {"stage": "import", "backbone": self.backbone.digest, "part": self.part}
        return digest({**content, "weights": self.weights})


class Scores(Frozen):
    """Scores of one scion, by name; a file of its own in the bank."""

    values: dict[str, float]


class ScionCard(Frozen):
    """Bank entry that describes a scion. Times are the maker's clock, for display only."""

    key: str
    scion: ScionSpec | ImportedScion
    errors: dict[str, float]
    """Normalised squared error on held-out images: `nmse` overall and by quarter of the timesteps.

    Empty for an imported operator.
    """
    held_out: str | None = None
    """Digest of those images; None for older cards, which used training images under other noise."""
    scores: dict[str, float] = {}
    """`replace_one/...`: effect on the teacher's prediction when only this scion is put in."""
    restored: dict[str, dict[str, float]] = {}
    """Digest of a design -> `restore_one/...`: gain in that design when the original is put back."""
    curve: tuple[tuple[int, float], ...] = ()
    steps: int
    ending: Literal["completed", "plateau"] = "completed"
    reason: str = ""
    spend: Usage
    """Its share of the usage of the pass that made it."""
    made_by: str
    """Run that distilled it."""
    made_at: float
    hardware: str
    file: str
    sha256: str
    size: int

    @property
    def nmse(self) -> float | None:
        """None for an imported operator, which has not been compared with the one that it replaces."""
        return self.errors.get("nmse")
