"""Tables of the service's answers."""

from rich.table import Table

from grafting_core.specs.changes import SlotChange
from service.cli.console import escape, out, table
from service.formatting import duration, engineering, percent
from service.schemas.leaderboard import CutShort, Leaderboard, LeaderboardRow
from service.schemas.rung_agreement import LatencyTable
from service.schemas.runs import BackboneView, Forecast, Holding, OperatorView, PlanAnswer, RunDetail, RunView
from workers.contract import PartProgress, StageReport

STATE_STYLES = {
    "SUCCEEDED": "green",
    "STOPPED": "yellow",
    "FAILED": "red",
    "CANCELLED": "yellow",
    "RUNNING": "cyan",
    "STARTING": "cyan",
}


def show_plan(plan: PlanAnswer) -> None:
    """Print the cost compared with the teacher, then the stages."""
    cost = plan.cost
    out.print(f"[bold]{escape(plan.experiment.name)}[/]  {plan.digest[:12]}")
    rows = table("", "design", "teacher", "change", right=("design", "teacher", "change"))
    for label, ours, theirs in (
        ("parameters", cost.num_params, cost.teacher_params),
        ("FLOPs per forward", cost.flops_per_forward, cost.teacher_flops_per_forward),
        ("FLOPs per image", cost.flops_per_image, cost.teacher_flops_per_image),
    ):
        rows.add_row(label, engineering(ours), engineering(theirs), percent(ours / theirs - 1))
    if cost.depth != cost.teacher_depth:
        rows.add_row(
            "depth", str(cost.depth), str(cost.teacher_depth), percent(cost.depth / cost.teacher_depth - 1)
        )
    out.print(rows)
    if cost.changes:
        out.print(changes_table(cost.changes))
    out.print(stages_table(plan))
    for note in plan.notes:
        out.print(f"note: {escape(note)}", soft_wrap=True)
    share = "an unknown share" if plan.share_of_pretraining is None else f"{plan.share_of_pretraining:.2%}"
    out.print(f"total {engineering(plan.total.flops)}FLOPs, {share} of pretraining")
    if plan.forecast:
        out.print(f"expected: {forecast_text(plan.forecast)}")
    if not plan.runnable:
        out.print("the lab has no weights of this backbone: designs for it can be planned but not run")


def stages_table(plan: PlanAnswer) -> Table:
    """Build a table of each stage's cost from scratch, and the part of it that the bank does not cover."""
    right = ("steps", "images", "FLOPs", "new FLOPs")
    rows = table("stage", *right[:3], "the lab has", right[3], right=right)
    held = {holding.stage: holding for holding in plan.holdings}
    for stage in plan.stages:
        spend, holding = stage.spend, held.get(stage.stage)
        figures = [f"{stage.steps:,}", f"{spend.training_images:,}", engineering(spend.flops)]
        new = engineering(holding.new_spend.flops) if holding else "-"
        rows.add_row(stage.stage, *figures, holding_text(holding), new)
    return rows


def holding_text(holding: Holding | None) -> str:
    """Describe a stage's artifacts, such as `3 in the bank, 2 in flight (run 0mwv...), 4 new`."""
    if holding is None:
        return "-"
    names = {"banked": "in the bank", "in_flight": "in flight", "new": "new"}
    counts = {state: sum(value == state for value in holding.states.values()) for state in names}
    runs = f" (run {', '.join(holding.waits_for)})" if holding.waits_for else ""
    return ", ".join(
        f"{count} {names[state]}{runs if state == 'in_flight' else ''}"
        for state, count in counts.items()
        if count
    )


def forecast_text(forecast: Forecast) -> str:
    """Describe a forecast, such as `131 device-s (104 to 150, from 12 runs of this lab)`."""
    interval = f"{forecast.low:.0f} to {forecast.high:.0f}"
    return f"{forecast.device_seconds:.0f} device-s ({interval}, from {forecast.runs} runs of this lab)"


def changes_table(changes: tuple[SlotChange, ...]) -> Table:
    """Build a table of the changes of each slot, over all blocks, in the columns of the paper's Table 4."""
    rows = table("slot", "operator FLOPs", "feature FLOPs", "parameters")
    for change in changes:
        shown = [change.operator_flops, change.feature_flops, change.num_params]
        rows.add_row(change.slot, *("-" if value is None else f"{value:+.2%}" for value in shown))
    return rows


def runs_table(runs: list[RunView]) -> Table:
    """Build a table with one line per run."""
    rows = table("run", "name", "state", "stage", "left", "device-s", right=("left", "device-s"))
    for run in runs:
        rows.add_row(
            run.id, escape(run.name), state_text(run), stage_text(run), left_text(run), seconds_text(run)
        )
    return rows


def state_text(run: RunView) -> str:
    return f"[{STATE_STYLES.get(run.state, 'default')}]{run.state}[/]"


def stage_text(run: RunView) -> str:
    """Return the stage with its step, such as `finetune 120/300`, or the reason why the run ended."""
    if run.progress:
        return f"{run.progress.stage} {run.progress.step}/{run.progress.total_steps}"
    return run.reason or ""


def left_text(run: RunView) -> str:
    return duration(run.progress.seconds_left) if run.progress else ""


def seconds_text(run: RunView) -> str:
    return f"{run.spend.device_seconds:.0f}"


def show_run(run: RunDetail, lab: str) -> None:
    """Print everything about one run; `lab` is the lab's address."""
    out.print(f"[bold]{escape(run.name)}[/]  {run.id}  {state_text(run)}  {stage_text(run)}")
    if run.message:
        out.print(f"  {escape(run.message)}")
    about = f"backbone {run.backbone}" if run.backbone else run.kind
    out.print(f"  {about}, attempt {run.attempt}, digest {run.experiment_digest[:12]}")
    if run.kind == "graft":
        for edit in run.experiment.design.edits:
            out.print(f"  {edit.site}: {escape(str(edit.operator))}")
        for pair in run.experiment.design.pairs:
            out.print(f"  {pair}: in parallel")
    if run.parts:
        out.print(parts_table(run.parts))
    for report in run.stages:
        spend = report.spend
        used = f"{spend.device_seconds:.0f} device-s, {engineering(spend.flops)}FLOPs"
        out.print(f"  {report.stage}: {report.stop_cause}{_provenance(report)}, {used}")
        for note in report.notes:
            out.print(f"    {escape(note)}")
    if run.forecast:
        out.print(f"  forecast {forecast_text(run.forecast)}; used {run.spend.device_seconds:.0f}")
    for name, value in run.metrics.items():
        out.print(f"  {name} = {value:,.6g}")
    if run.mlflow_error:
        out.print(f"  not in MLflow: {escape(run.mlflow_error)}", soft_wrap=True)
    if run.mlflow_url:
        out.print(f"  in MLflow: {lab}{run.mlflow_url}", soft_wrap=True)


def parts_table(parts: list[PartProgress]) -> Table:
    """Build a table with one line per operator that the run is distilling."""
    rows = table("operator", "step", "loss", "left", "", right=("step", "loss", "left"))
    for part in parts:
        loss = "-" if part.loss is None else f"{part.loss:.4f}"
        ended = f"{part.ending}: {part.reason}" if part.reason else part.ending or ""
        left = "" if part.ending else duration(part.seconds_left)
        rows.add_row(part.name, f"{part.step}/{part.total_steps}", loss, left, escape(ended))
    return rows


def _provenance(report: StageReport) -> str:
    """Name the runs that made the reused artifacts, such as ` (3 made by run 0mw...)`."""
    makers = sorted(set(report.made_by.values()))
    return f" ({len(report.made_by)} made by run {', '.join(makers)})" if makers else ""


LEADERBOARD_FIGURES = (
    *("FID", "change", "params", "change ", "FLOPs/image", "change  "),
    *("made for, device-s", "of pretraining", "paid", "saved"),
)
"""Columns of `_leaderboard_figures`; the spaces keep the names apart."""


def show_leaderboard(board: Leaderboard) -> None:
    """Print one table per evaluation protocol, then the runs that stopped early."""
    if not board.groups:
        out.print("no run has finished yet")
    for group in board.groups:
        protocol = group.protocol
        how = f"{protocol.samples} samples, {protocol.sampler} {protocol.sampling_steps}"
        licence = f", licence {escape(group.licence)}" if group.licence else ""
        what = f"{group.metric}, {how}, guidance {protocol.guidance}{licence}"
        out.print(f"\n[bold]{group.backbone}[/]  {what}")
        rows = table("#", "design", *LEADERBOARD_FIGURES, "first by", right=LEADERBOARD_FIGURES)
        for row in group.rows:
            design = escape(row.name) + (" (teacher)" if row.is_teacher else "")
            first_by = escape(row.first.owner) if row.first else "-"
            rows.add_row(row.ranks, design, *_leaderboard_figures(row), first_by)
        if group.oracle:
            value = f"{group.oracle.value:.3f}"
            rows.add_row("", f"{group.oracle.images} held-out real images ({group.oracle.metric})", value)
        out.print(rows)
        if any(row.tied for row in group.rows):
            out.print("a range of ranks: these values do not differ significantly (intervals of 95 %)")
    _show_cut_short(board.cut_short)


def _leaderboard_figures(row: LeaderboardRow) -> tuple[str, ...]:
    return (
        f"{row.value:.3f}",
        percent(row.value_change),
        engineering(row.num_params),
        percent(row.params_change),
        engineering(row.flops_per_image),
        percent(row.flops_change),
        f"{row.made.device_seconds:.0f}" if row.made else "-",
        "-" if row.share_of_pretraining is None else f"{row.share_of_pretraining:.2%}",
        f"{row.spend.device_seconds:.0f}",
        f"{row.saved.device_seconds:.0f}" if row.saved else "-",
    )


def _show_cut_short(runs: list[CutShort]) -> None:
    if not runs:
        return
    out.print("\n[bold]stopped early[/]  not ranked, but kept")
    rows = table("run", "design", "why", "reached", "rungs", "device-s", right=("device-s",))
    for run in runs:
        rungs = ", ".join(f"{name} {value:.4g}" for name, value in run.rungs.items())
        seconds = f"{run.spend.device_seconds:.0f}"
        rows.add_row(run.run_id, escape(run.name), run.reason, run.reached, rungs or "-", seconds)
    out.print(rows)


def show_operators(operators: list[OperatorView]) -> None:
    """Print the operators to graft, with their cost at the dims of DiT-XL/2."""
    rows = table("kind", "slots", "params", "FLOPs (operator)", "FLOPs (features)", "fields", "summary")
    for view in operators:
        cost = [engineering(value) for value in (view.num_params, view.operator_flops, view.feature_flops)]
        rows.add_row(view.kind, ", ".join(view.slots), *cost, ", ".join(view.fields), escape(view.summary))
    out.print(rows)


def show_latencies(latencies: LatencyTable) -> None:
    """Print one row per part and device: its seconds, and the change of a forward's time against the
    original.
    """
    columns = ("tokens", "width", "batch", "ms", "adds")
    rows = table("part", *columns, "95 %", "precision", "device", "threads", right=columns)
    for row in latencies.rows:
        sizes = [str(size) for size in (row.tokens, row.width, row.batch)]
        interval = f"{row.extra_low:+.2%} to {row.extra_high:+.2%}"
        figures = [f"{1e3 * row.seconds.median:.3f}", f"{row.extra:+.2%}", interval]
        hardware = row.hardware
        device = hardware.processor if hardware.device == "cpu" else hardware.device
        rows.add_row(escape(row.name), *sizes, *figures, row.precision, escape(device), str(hardware.threads))
    out.print(rows)


def show_backbones(backbones: list[BackboneView]) -> None:
    """Print the backbones to graft onto."""
    rows = table("name", "depth", "width", "tokens", "params", "FLOPs", "licence", "runnable")
    for view in backbones:
        sizes = [str(size) for size in (view.depth, view.width, view.num_tokens)]
        cost = [engineering(view.num_params), engineering(view.forward_flops)]
        runs = "yes" if view.runnable else "plan only"
        rows.add_row(view.name, *sizes, *cost, escape(view.licence or ""), runs)
    out.print(rows)
