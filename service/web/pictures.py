"""Plots as plain data, which the templates draw as inline SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafting_core.specs.dims import SLOTS, Slot
from grafting_core.specs.edits import ReplaceOperator
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.site import GraftSite
from service.schemas.leaderboard import LeaderboardGroup

WIDTH, HEIGHT, MARGIN = 640, 260, 44


@dataclass(frozen=True)
class Dot:
    """One run in the plot, with its label."""

    x: float
    y: float
    name: str
    label: str
    run_id: str
    is_teacher: bool


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Plane:
    """Dots and axes of a scatter plot."""

    dots: list[Dot]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    margin: int = MARGIN


@dataclass(frozen=True)
class Scale:
    """Linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 1)

    def ticks(self, form: str, scale: float = 1.0, count: int = 4) -> list[Tick]:
        values = [self.low + (self.high - self.low) * i / count for i in range(count + 1)]
        return [Tick(self(value), format(value * scale, form)) for value in values]


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.12 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def quality_against_cost(group: LeaderboardGroup) -> Plane:
    """Plot FID upwards against FLOPs per image to the right: the best is bottom left."""
    x = Scale(*_padded([row.flops_per_image for row in group.rows]), MARGIN + 10, WIDTH - 20)
    y = Scale(*_padded([row.value for row in group.rows]), HEIGHT - MARGIN, 14)
    dots = [
        Dot(x(row.flops_per_image), y(row.value), row.name, f"{row.value:.2f}", row.run_id, row.is_teacher)
        for row in group.rows
    ]
    return Plane(dots, x.ticks(".2f", 1e-9), y.ticks(".2f"))


@dataclass(frozen=True)
class Cell:
    """One site of the backbone with its operator."""

    block: int
    slot: str
    kind: str
    grafted: bool


PRETRAINED: Mapping[Slot, str] = {"attention": "mha", "mlp": "mlp"}
"""Slot -> kind of the operator of a transformer without grafts."""


def design_map(spec: ExperimentSpec, depth: int, before: Sequence[ReplaceOperator] = ()) -> list[list[Cell]]:
    """Return one row per slot and one column per block; the backbone holds the operators `before` already."""
    kinds = {edit.site: edit.operator.kind for edit in spec.design.edits}
    originals = {edit.site: edit.operator.kind for edit in before}
    rows = [[GraftSite(block=block, slot=slot) for block in range(depth)] for slot in SLOTS]
    return [
        [
            Cell(
                site.block,
                site.slot,
                kinds.get(site) or originals.get(site) or PRETRAINED[site.slot],
                site in kinds,
            )
            for site in row
        ]
        for row in rows
    ]


@dataclass(frozen=True)
class Curve:
    """One stage's loss as an SVG path in a box of WIDTH x HEIGHT / 2."""

    stage: str
    path: str
    first: float
    last: float
    steps: int
    width: int = WIDTH
    height: int = HEIGHT // 2


def curves(losses: Mapping[str, Sequence[tuple[int, float]]]) -> list[Curve]:
    """Plot the loss of each training stage over its steps."""
    return [_curve(stage, points) for stage, points in losses.items()]


def _curve(stage: str, points: Sequence[tuple[int, float]]) -> Curve:
    x = Scale(0, points[-1][0], 6, WIDTH - 6)
    y = Scale(*_padded([loss for _, loss in points]), HEIGHT // 2 - 6, 6)
    path = " ".join(
        f"{'L' if index else 'M'}{x(step)} {y(loss)}" for index, (step, loss) in enumerate(points)
    )
    return Curve(stage, path, points[0][1], points[-1][1], points[-1][0])
