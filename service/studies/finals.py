"""Finished runs of a study and its baselines: final quality against each stated cost and against time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from grafting_core.specs.studies.selection import fronts
from service.domain.study_queries import FINISHING
from service.schemas.studies import StudyDetail, StudyRun

Kind = tuple[str, str, str]
KINDS: tuple[Kind, ...] = (("design", "o", "circle"), ("baseline", "s", "square"))
"""Kind of a point, with its marker in either library."""


@dataclass(frozen=True)
class Final:
    """One finished run, and whether no other finished run is better in all objectives."""

    run: StudyRun
    name: str
    quality: float
    on_front: bool

    @property
    def kind(self) -> str:
        return "baseline" if self.run.role == "baseline" else "design"


def name_of(run: StudyRun) -> str:
    """Name a run in tables: `trial 7`, `trial 7 (greedy)`, or the baseline's name if it has no trial."""
    if run.trial is None:
        return run.label
    return f"trial {run.trial} ({run.label})" if run.role == "baseline" else f"trial {run.trial}"


def finals(detail: StudyDetail) -> list[Final]:
    """Return finished runs, best quality first."""
    done = [run for run in detail.runs if run.role in FINISHING and run.quality is not None]
    points = [
        (run.quality or 0.0, *(float(getattr(run, cost)) for cost in detail.spec.costs)) for run in done
    ]
    front = set(fronts(points)[0]) if points else set()
    rated = [Final(run, name_of(run), run.quality or 0.0, at in front) for at, run in enumerate(done)]
    return sorted(rated, key=lambda final: final.quality)


def costs_shown(detail: StudyDetail) -> tuple[str, ...]:
    """Return the costs to plot final quality against: the stated ones, or FLOPs if there is none."""
    return detail.spec.costs or ("flops",)


def _share(detail: StudyDetail, run: StudyRun, cost: str) -> float:
    return float(getattr(run, cost)) / float(getattr(detail.spec.space, f"base_{cost}"))


def front_figure(detail: StudyDetail) -> Any:
    """Plot interactively; None if nothing is finished."""
    done, costs = finals(detail), costs_shown(detail)
    if not done:
        return None
    figure = make_subplots(cols=len(costs), shared_yaxes=True)
    for column, cost in enumerate(costs, 1):
        for kind, _, symbol in KINDS:
            some = [final for final in done if final.kind == kind]
            figure.add_trace(
                go.Scatter(
                    x=[_share(detail, final.run, cost) for final in some],
                    y=[final.quality for final in some],
                    text=[final.name for final in some],
                    mode="markers+text",
                    textposition="top center",
                    marker={"symbol": symbol, "size": 9},
                    name=kind,
                    showlegend=column == 1,
                ),
                row=1,
                col=column,
            )
        figure.update_xaxes(title_text=f"{cost}, relative to the backbone", row=1, col=column)
    figure.update_yaxes(title_text=detail.quality, row=1, col=1)
    return figure


def front_picture(detail: StudyDetail) -> Any:
    """Plot the same as a picture."""
    done, costs = finals(detail), costs_shown(detail)
    if not done:
        return None
    picture, panels = plt.subplots(1, len(costs), sharey=True, squeeze=False)
    for axes, cost in zip(panels[0], costs, strict=True):
        _draw(axes, [(final, _share(detail, final.run, cost)) for final in done])
        axes.set_xlabel(f"{cost}, relative to the backbone")
    panels[0][0].set_ylabel(detail.quality)
    panels[0][0].legend(fontsize=7)
    return picture


def _draw(axes: Any, placed: Sequence[tuple[Final, float]]) -> None:
    """Draw every run at its cost and quality, with its name; those on the front in bold."""
    for kind, marker, _ in KINDS:
        some = [(place, final.quality) for final, place in placed if final.kind == kind]
        axes.scatter([x for x, _ in some], [y for _, y in some], marker=marker, label=kind)
    for final, place in placed:
        weight = "bold" if final.on_front else "normal"
        axes.annotate(final.name, (place, final.quality), fontsize=7, fontweight=weight)
