"""Plots of a study, Optuna's own where available, as interactive figures and as pictures."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from optuna.visualization import matplotlib as still

from grafting_core.specs.studies.space import KEEP, MERGED
from service.domain.study_report_paths import FIGURES
from service.schemas.studies import StudyDetail, StudyTrial
from service.studies.finals import costs_shown, finals, front_figure, front_picture
from service.studies.optuna_study import quiet
from service.studies.step_figures import steps_figure, steps_picture

mpl.use("Agg")
BEST_SHOWN = 10


def in_memory(detail: StudyDetail) -> optuna.Study:
    """Build an Optuna study in memory from our tables, for plotting: first rung against cost."""
    quiet()
    metric, parameters = detail.spec.rungs[0].metric, detail.spec.space.parameters
    cost = costs_shown(detail)[0]
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.set_metric_names([metric, cost])
    for trial in detail.trial_rows:
        if metric in trial.screened:
            params = {n: trial.assignment.get(n, "-") for n, labels in parameters.items() if len(labels) > 1}
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    values=[trial.screened[metric], float(getattr(trial, cost))],
                    params=params,
                    distributions={n: CategoricalDistribution((*parameters[n], "-")) for n in params},
                )
            )
    return study


def _screened(detail: StudyDetail) -> list[str]:
    return [f"{detail.spec.rungs[0].metric} in screening", costs_shown(detail)[0]]


def interactive(detail: StudyDetail) -> dict[str, Any]:
    """Return plotly figures by name."""
    study, metric = in_memory(detail), detail.spec.rungs[0].metric
    plots: Mapping[str, Callable[[], Any]] = {
        "history": lambda: visualization.plot_optimization_history(
            study, target=_quality, target_name=metric
        ),
        "pareto": lambda: front_figure(detail),
        "steps": lambda: steps_figure(detail),
        "screening": lambda: visualization.plot_pareto_front(study, target_names=_screened(detail)),
        "parallel": lambda: visualization.plot_parallel_coordinate(
            study, target=_quality, target_name=metric
        ),
        "importances": lambda: visualization.plot_param_importances(
            study, target=_quality, target_name=metric
        ),
        "map": lambda: _map_figure(detail),
    }
    return {name: figure for name in FIGURES if (figure := _plotted(plots[name])) is not None}


def pictures(detail: StudyDetail) -> dict[str, bytes]:
    """Return PNG pictures by name, for pages and Markdown."""
    study, metric = in_memory(detail), detail.spec.rungs[0].metric
    plots: Mapping[str, Callable[[], Any]] = {
        "history": lambda: still.plot_optimization_history(study, target=_quality, target_name=metric),
        "pareto": lambda: front_picture(detail),
        "steps": lambda: steps_picture(detail),
        "screening": lambda: still.plot_pareto_front(study, target_names=_screened(detail)),
        "parallel": lambda: still.plot_parallel_coordinate(study, target=_quality, target_name=metric),
        "importances": lambda: still.plot_param_importances(study, target=_quality, target_name=metric),
        "map": lambda: _map_picture(detail),
    }
    pngs = {}
    for name in FIGURES:
        plt.close("all")
        if _plotted(plots[name]) is not None:
            pngs[name] = _png()
    plt.close("all")
    return pngs


def _plotted(plot: Callable[[], Any]) -> Any:
    """Plot; None if there is too little to plot, for which Optuna raises."""
    try:
        return plot()
    except (ValueError, RuntimeError):
        return None


def _quality(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _png() -> bytes:
    buffer, figure = io.BytesIO(), plt.gcf()
    figure.set_size_inches(9, 4.5)
    figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight")
    return buffer.getvalue()


def best_trials(detail: StudyDetail) -> list[StudyTrial]:
    """Return finished trials by final quality, then the others by the first rung."""
    metric = detail.spec.rungs[0].metric
    done = [trial for trial in detail.trial_rows if trial.final and detail.quality in trial.final]
    rest = [trial for trial in detail.trial_rows if trial not in done and metric in trial.screened]
    done.sort(key=lambda trial: (trial.final or {})[detail.quality])
    rest.sort(key=lambda trial: trial.screened[metric])
    return [*done, *rest]


def best_designs(detail: StudyDetail) -> list[tuple[str, Mapping[str, str]]]:
    """Return names and operators of the best designs: finished runs by final quality, then trials by the
    first rung.

    Baselines without a trial keep every operator.
    """
    trials = {trial.number: trial for trial in detail.trial_rows}
    untouched = {variable.name: KEEP for variable in detail.spec.space.variables}
    done = finals(detail)
    finished_designs = [
        (final.name, untouched if final.run.trial is None else trials[final.run.trial].assignment)
        for final in done
    ]
    finished = {final.run.trial for final in done}
    rest = [trial for trial in best_trials(detail) if trial.number not in finished]
    return [*finished_designs, *((f"trial {trial.number}", trial.assignment) for trial in rest)]


def _map(detail: StudyDetail) -> tuple[list[str], list[str], list[list[str]]]:
    """Return (columns, rows, labels): the operators of the best designs by variable."""
    names = [variable.name for variable in detail.spec.space.variables]
    shown = best_designs(detail)[:BEST_SHOWN]
    cells = [[assignment.get(name, MERGED) for name in names] for _, assignment in shown]
    return names, [name for name, _ in shown], cells


def _codes(cells: list[list[str]]) -> tuple[list[str], list[list[int]]]:
    """Return (labels, numbers): the original first, the others by name."""
    labels = sorted({label for row in cells for label in row} - {KEEP})
    order = [KEEP, *labels]
    return order, [[order.index(label) for label in row] for row in cells]


def _map_figure(detail: StudyDetail) -> Any:
    names, rows, cells = _map(detail)
    if not cells:
        return None
    _, codes = _codes(cells)
    heat = go.Heatmap(z=codes, x=names, y=rows, text=cells, texttemplate="%{text}", showscale=False)
    figure = go.Figure(heat)
    figure.update_layout(title="Operators by layer in the best designs", yaxis_autorange="reversed")
    return figure


def _map_picture(detail: StudyDetail) -> Any:
    names, rows, cells = _map(detail)
    if not cells:
        return None
    labels, codes = _codes(cells)
    figure, axes = plt.subplots()
    colours = plt.get_cmap("Set3", len(labels))
    axes.imshow(np.array(codes), cmap=colours, vmin=-0.5, vmax=len(labels) - 0.5, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours(at)) for at in range(len(labels))]
    axes.legend(handles, labels, bbox_to_anchor=(1.01, 1), loc="upper left", fontsize=7)
    axes.set_title("Operators by layer in the best designs")
    return figure
