"""Step curves of a study's report: quality against time per image, by number of sampling steps."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import plotly.graph_objects as go

from service.schemas.studies import StudyDetail, StudyRun
from service.studies.step_curves import Point, curve_points, sampled_runs

BACKBONE = "the backbone"
SECONDS, SHARE = "seconds per image", "FLOPs per image, relative to the backbone's at the protocol's steps"
Curves = Mapping[str, list[StudyRun]]


def curves(detail: StudyDetail) -> Curves:
    """Return finished evaluations of the backbone and of the best promoted design, most steps first."""
    by_name: dict[str, list[StudyRun]] = {BACKBONE: []}
    if detail.best_trial is not None:
        by_name[_best(detail)] = []
    for point, run in sampled_runs(detail).items():
        name = _curve(detail, point)
        if name is not None and run.quality is not None:
            by_name[name].append(run)
    return {name: sorted(runs, key=lambda run: -(run.sampling_steps or 0)) for name, runs in by_name.items()}


def _best(detail: StudyDetail) -> str:
    return f"the best promoted design, trial {detail.best_trial}"


def _curve(detail: StudyDetail, point: Point) -> str | None:
    """Return the name of the curve that a point is on, or None."""
    if point.trial is None:
        return BACKBONE
    return _best(detail) if point.trial == detail.best_trial else None


def unmeasured(detail: StudyDetail) -> list[Point]:
    """Return the points of the curves that have no quality."""
    sampled = sampled_runs(detail)
    return [point for point in curve_points(detail) if point not in sampled or sampled[point].quality is None]


def axis(shown: Curves) -> str:
    """Choose the axis: seconds if all points were timed on one machine, else FLOPs."""
    runs = [run for curve in shown.values() for run in curve]
    timed = all(run.seconds_per_image is not None for run in runs)
    return SECONDS if timed and len({run.hardware for run in runs}) == 1 else SHARE


def cost_of(detail: StudyDetail, run: StudyRun, by: str) -> float:
    """Return the cost of an image of this evaluation, in the unit of the axis."""
    if by == SECONDS:
        return float(run.seconds_per_image or 0.0)
    return float(run.flops or 0.0) / detail.spec.space.base_flops


def rival(detail: StudyDetail, shown: Curves, run: StudyRun) -> StudyRun | None:
    """Return the backbone's best evaluation that costs no more per image than `run`."""
    by = axis(shown)
    most = cost_of(detail, run, by)
    cheaper = [other for other in shown[BACKBONE] if cost_of(detail, other, by) <= most]
    return min(cheaper, key=lambda other: other.quality or 0.0, default=None)


def step_rows(detail: StudyDetail) -> list[list[str]]:
    """Return a row for every point of the curves, measured or not. The first row is the head."""
    shown = curves(detail)
    rows = [_row(detail, shown, name, run) for name, runs in shown.items() for run in runs]
    sampled = sampled_runs(detail)
    for point in unmeasured(detail):
        state = sampled[point].state.lower() if point in sampled else "not measured"
        rows.append([_curve(detail, point) or "", str(point.steps), state, "-", "-", "-", "-"])
    last = "the backbone at no more " + ("seconds" if axis(shown) == SECONDS else "FLOPs")
    return [["sampled", "steps", detail.quality, "FLOPs per image", SECONDS, "measured on", last], *rows]


def _row(detail: StudyDetail, shown: Curves, name: str, run: StudyRun) -> list[str]:
    seconds = "not measured" if run.seconds_per_image is None else f"{run.seconds_per_image:.4g}"
    other = None if name == BACKBONE else rival(detail, shown, run)
    return [
        name,
        str(run.sampling_steps),
        f"{run.quality:.4g}",
        f"{cost_of(detail, run, SHARE):.3f}x",
        seconds,
        run.hardware or "-",
        "-" if other is None else f"{other.quality:.4g} in {other.sampling_steps} steps",
    ]


def step_remarks(detail: StudyDetail) -> list[str]:
    """Say where the backbone with fewer steps is better than the graft, and what was not measured."""
    notes, shown = [], curves(detail)
    runs = [] if detail.best_trial is None else shown[_best(detail)]
    pairs = [(run, other) for run in runs if (other := rival(detail, shown, run)) is not None]
    if pairs:
        beaten = [str(run.sampling_steps) for run, other in pairs if _quality(other) < _quality(run)]
        unit = "seconds" if axis(shown) == SECONDS else "FLOPs"
        where = f"at {' and '.join(beaten)} steps" if beaten else "nowhere"
        notes.append(
            f"The backbone in fewer steps has better quality for no more {unit} per image than the best "
            f"promoted design {where}, of the {len(pairs)} numbers of steps at which both can be compared."
        )
    return [*notes, *_gaps(detail)]


def _gaps(detail: StudyDetail) -> list[str]:
    points, missing = curve_points(detail), unmeasured(detail)
    if not points:
        return ["Step curves were not measured: the study has no step curve, or no finished design."]
    if not missing:
        return []
    spent = detail.spec.budget.exceeded_by(detail.spend)
    reason = f"the study's budget ({spent}) was spent" if spent else "their runs did not succeed"
    names = "; ".join(point.label for point in missing)
    return [f"Of {len(points)} points of the step curves {len(missing)} are missing, as {reason}: {names}."]


def _quality(run: StudyRun) -> float:
    return float(run.quality or 0.0)


def steps_figure(detail: StudyDetail) -> Any:
    """Plot interactively; None if neither curve has two points."""
    shown = curves(detail)
    if max(map(len, shown.values())) < 2:
        return None
    by, figure = axis(shown), go.Figure()
    for name, runs in shown.items():
        figure.add_trace(
            go.Scatter(
                x=[cost_of(detail, run, by) for run in runs],
                y=[run.quality for run in runs],
                text=[str(run.sampling_steps) for run in runs],
                mode="lines+markers+text",
                textposition="top center",
                name=name,
            )
        )
    figure.update_layout(xaxis_title=by, yaxis_title=detail.quality)
    return figure


def steps_picture(detail: StudyDetail) -> Any:
    """Plot the same as a picture."""
    shown = curves(detail)
    if max(map(len, shown.values())) < 2:
        return None
    by, (picture, axes) = axis(shown), plt.subplots()
    for name, runs in shown.items():
        costs = [cost_of(detail, run, by) for run in runs]
        axes.plot(costs, [run.quality for run in runs], marker="o", label=name)
        for cost, run in zip(costs, runs, strict=True):
            axes.annotate(str(run.sampling_steps), (cost, run.quality), fontsize=7)
    axes.set_xlabel(by)
    axes.set_ylabel(detail.quality)
    axes.legend(fontsize=7)
    return picture
