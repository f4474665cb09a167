"""Report of a study: its settings, its results, the comparison with the baselines, and the plots."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from plotly.offline import get_plotlyjs

from grafting_core.specs.backbone import known_card
from grafting_core.specs.studies.selection import fronts
from service.domain.study_queries import FINISHING
from service.domain.study_report_paths import FIGURES
from service.schemas.studies import StudyDetail, StudyRun, StudyTrial
from service.studies.figures import best_designs, interactive, pictures
from service.studies.finals import finals, name_of
from service.studies.latency_sections import latency_sections
from service.studies.step_figures import step_remarks, step_rows

TITLES = {
    "pareto": "Quality against cost: the Pareto front",
    "steps": "Step curves: quality against time per image, by number of sampling steps",
    "screening": "Screening: the first rung against cost, before any finetuning",
    "history": "History of screening",
    "parallel": "Parallel coordinates of screening",
    "importances": "Which layers matter in screening",
    "map": "Operators by layer in the best designs",
}
BEST_LISTED = 20
FEW_TOKENS = 600
"""Number of tokens below which attention is too small a part of a block to be worth replacing."""
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(("html.j2",)),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
"""Text is escaped in HTML, not in Markdown."""


def report_files(detail: StudyDetail) -> dict[str, bytes]:
    """Return the files by name: `report.md` with pictures, and `report.html`, which needs no other file."""
    stills = pictures(detail)
    files = {f"{name}.png": content for name, content in stills.items()}
    files["report.md"] = markdown(detail, list(stills)).encode()
    files["report.html"] = page(detail, interactive(detail)).encode()
    return files


def sections(detail: StudyDetail) -> list[tuple[str, list[list[str]]]]:
    """Return (heading, table) pairs; the first row of each table is its head."""
    return [
        ("The study", _facts(detail)),
        ("Best promoted design against the baselines, at the same limits", _baselines(detail)),
        ("Finished designs and baselines", _finished(detail)),
        ("Fewer operations or fewer steps", step_rows(detail)),
        *latency_sections(detail),
        ("Designs", _designs(detail)),
    ]


def remarks(detail: StudyDetail) -> list[str]:
    """Return notes that readers need to interpret the results."""
    notes = [
        "Screening evaluates designs before finetuning: its plots show a baseline only if a trial has the "
        "same design. Final quality decides; its plot shows every finished run.",
        *step_remarks(detail),
    ]
    if detail.spec.latencies:
        notes.append(
            "Predicted latency is the backbone's forward plus the change by each choice according to the "
            "table. Measured latency is the median ratio of interleaved forwards; a promoted design that "
            "exceeds the limit by it does not count. Both hold only for this device, batch and precision."
        )
    card = known_card(detail.spec.backbone)
    if card is not None and card.dims.num_tokens < FEW_TOKENS:
        notes.append(
            f"With {card.dims.num_tokens} tokens attention is a small part of a block: replacing it saves "
            "little, and fewer sampling steps save more. The best layers and the best loss here need not "
            f"be the best on backbones of {FEW_TOKENS} tokens and more."
        )
    return notes


def verdict(detail: StudyDetail) -> str:
    """Say which design is best, and by how much; with several objectives, also which are on the Pareto
    front.
    """
    front = front_of(detail)
    if not front:
        return _winner(detail)
    numbers = ", ".join(str(number) for number in front)
    return f"{_winner(detail)} On the Pareto front of {' and '.join(detail.objectives)}: trials {numbers}."


def front_of(detail: StudyDetail) -> list[int]:
    """Return finished trials that no other finished one dominates; none if quality is the only objective."""
    done = [trial for trial in detail.trial_rows if trial.final and detail.quality in trial.final]
    if not done or not detail.spec.costs:
        return []
    points = [
        ((trial.final or {})[detail.quality], *(float(getattr(trial, cost)) for cost in detail.spec.costs))
        for trial in done
    ]
    return sorted(done[at].number for at in fronts(points)[0])


def _winner(detail: StudyDetail) -> str:
    beyond = {run.run_id for run in detail.runs if run.keeps_latency is False}
    measured = [
        comparison
        for comparison in detail.comparisons
        if comparison.value is not None
        and comparison.baseline != "teacher"
        and comparison.run_id not in beyond
    ]
    if detail.best is None and any(run.role == "promote" and run.run_id in beyond for run in detail.runs):
        return "No promoted design meets the limit on measured latency."
    if detail.best is None or not measured:
        return "There is nothing to compare yet."
    ahead = [comparison for comparison in measured if (comparison.ahead or 0.0) >= 0]
    rival = min(measured, key=lambda comparison: comparison.value or 0.0)
    if len(ahead) == len(measured):
        text = f"The best promoted design ({detail.best:.4g}) is at least as good as every baseline; "
        return text + f"the nearest is {rival.baseline} with {rival.value:.4g}."
    text = f"The baseline {rival.baseline} won with {rival.value:.4g}; the best promoted design has "
    return text + f"{detail.best:.4g}, ahead of {len(ahead)} of {len(measured)} baselines."


def _facts(detail: StudyDetail) -> list[list[str]]:
    limits = ", ".join(f"{limit.cost} <= {limit.of_backbone:.4g}x" for limit in detail.spec.limits) or "none"
    correlation = detail.rank_correlation
    return [
        ["", ""],
        ["state", f"{detail.state.lower()}, phase {detail.phase}, round {detail.round} of {detail.rounds}"],
        ["space", f"{detail.spec.space.size:.4g} designs on {detail.backbone}"],
        ["objectives", ", ".join(detail.objectives)],
        ["limits", limits],
        [
            "sampler",
            f"{detail.sampler['class']}, seed {detail.sampler['seed']}, Optuna {detail.sampler['optuna']}",
        ],
        ["designs", f"{detail.trials} proposed, {detail.screened} screened, {detail.finished} finished"],
        ["device-seconds", f"{detail.spend.device_seconds:.0f}"],
        ["rank correlation", "-" if correlation is None else f"{correlation:.3f} (first rung against final)"],
    ]


def _baselines(detail: StudyDetail) -> list[list[str]]:
    head = ["baseline", detail.quality, "ahead by", "FLOPs", "params"]
    by_id = {run.run_id: run for run in detail.runs}
    rows = []
    for comparison in detail.comparisons:
        run = by_id[comparison.run_id]
        ahead = "-" if comparison.ahead is None else f"{comparison.ahead:+.4g}"
        rows.append([comparison.baseline, _number(comparison.value, run.state), ahead, *_costs(detail, run)])
    compared = {comparison.baseline for comparison in detail.comparisons}
    missing = [name for name in detail.spec.baselines if name not in compared]
    return [head, *rows, *([name, "none at these limits", "-", "-", "-"] for name in missing)]


def _number(value: float | None, state: str) -> str:
    return state.lower() if value is None else f"{value:.4g}"


def _costs(detail: StudyDetail, run: StudyRun) -> list[str]:
    space = detail.spec.space
    return [f"{(run.flops or 0) / space.base_flops:.3f}x", f"{(run.params or 0) / space.base_params:.3f}x"]


def _finished(detail: StudyDetail) -> list[list[str]]:
    screened = detail.spec.rungs[0].metric
    head = ["design", "as", "proposed by", f"{screened} in screening", "predicted", detail.quality]
    trials = {trial.number: trial for trial in detail.trial_rows}
    front = {final.run.run_id for final in finals(detail) if final.on_front}
    rows = []
    shown = [run for run in detail.runs if run.role in FINISHING]
    for run in sorted(shown, key=lambda run: run.quality if run.quality is not None else float("inf")):
        trial = None if run.trial is None else trials[run.trial]
        first = trial.screened.get(screened) if trial else None
        predicted = trial.predicted if trial else None
        rows.append(
            [
                name_of(run),
                run.role,
                _proposed_by(trial) if trial else "-",
                "-" if first is None else f"{first:.4g}",
                "-" if predicted is None else f"{predicted:.4g}",
                _number(run.quality, run.state),
                *_costs(detail, run),
                "-" if run.seconds_per_image is None else f"{run.seconds_per_image:.4g}",
                "yes" if run.run_id in front else "",
            ]
        )
    return [[*head, "FLOPs", "params", "seconds per image", "on the front"], *rows]


def _proposed_by(trial: StudyTrial) -> str:
    """`milp`, or `baseline deep, uniform`."""
    return " ".join((trial.proposed_by, ", ".join(trial.baselines))).strip()


def _designs(detail: StudyDetail) -> list[list[str]]:
    names = [variable.name for variable in detail.spec.space.variables if len(variable.items) > 1]
    shown = best_designs(detail)[:BEST_LISTED]
    rows = [[name, *(assignment.get(n, "merged") for n in names)] for name, assignment in shown]
    return [["design", *names], *rows]


def markdown(detail: StudyDetail, plots: list[str]) -> str:
    """Render the report as Markdown with links to the pictures in the same folder."""
    drawn = [name for name in FIGURES if name in plots]
    return TEMPLATES.get_template("report.md.j2").render(**_content(detail), titles=TITLES, plots=drawn)


def page(detail: StudyDetail, figures: dict[str, Any]) -> str:
    """Render the report as one self-contained HTML file."""
    drawn = {
        TITLES[name]: figure.to_html(full_html=False, include_plotlyjs=False)
        for name, figure in figures.items()
    }
    template = TEMPLATES.get_template("report.html.j2")
    return template.render(**_content(detail), figures=drawn, plotly=get_plotlyjs())


def _content(detail: StudyDetail) -> dict[str, Any]:
    """Return the values that both templates use."""
    return {
        "name": detail.name,
        "verdict": verdict(detail),
        "sections": sections(detail),
        "remarks": remarks(detail),
    }
