"""Latency sections of a report: the study's latency table, and predicted against measured latency."""

from grafting_core.specs.latency import PartLatency
from service.schemas.studies import StudyDetail, StudyRun
from service.studies.finals import name_of

TABLE_HEAD = (
    "part",
    "tokens",
    "width",
    "batch",
    "device",
    "precision",
    "ms",
    "20 to 80 %",
    "original ms",
    "adds to a forward",
    "95 %",
)
CLOCK_HEAD = ("design", "as", "predicted", "measured", "95 %", "predicted / measured", "keeps the limit")


def latency_sections(detail: StudyDetail) -> list[tuple[str, list[list[str]]]]:
    """Return both sections as (heading, table); none if the study has no table."""
    if not detail.spec.latencies:
        return []
    return [
        ("Latency: predicted and measured", clock_rows(detail)),
        ("Latency table of this study", [list(TABLE_HEAD), *map(_table_row, detail.spec.latencies)]),
    ]


def _table_row(row: PartLatency) -> list[str]:
    seconds, hardware = row.seconds, row.hardware
    device = hardware.processor if hardware.device == "cpu" else hardware.device
    return [
        row.name,
        str(row.tokens),
        str(row.width),
        str(row.batch),
        f"{device}, {hardware.threads} threads",
        row.precision,
        f"{1e3 * seconds.median:.3f}",
        f"{1e3 * seconds.low:.3f} to {1e3 * seconds.high:.3f}",
        f"{1e3 * row.original.median:.3f}",
        f"{row.extra:+.2%}",
        f"{row.extra_low:+.2%} to {row.extra_high:+.2%}",
    ]


def clock_rows(detail: StudyDetail) -> list[list[str]]:
    """Return every finished run with a prediction, fastest measured first; the first row is the head."""
    runs = [run for run in detail.runs if run.latency is not None and run.quality is not None]
    ordered = sorted(runs, key=lambda run: run.measured_latency or float("inf"))
    return [list(CLOCK_HEAD), *map(_clock_row, ordered)]


def _clock_row(run: StudyRun) -> list[str]:
    predicted, measured = run.latency or 0.0, run.measured_latency
    cells = [name_of(run), run.role, f"{predicted:.3f}x"]
    if measured is None:
        return [*cells, "not on this hardware", "-", "-", "-"]
    meets_limit = {True: "yes", False: "no", None: "-"}[run.keeps_latency]
    interval = f"{run.measured_latency_low:.3f} to {run.measured_latency_high:.3f}"
    return [*cells, f"{measured:.3f}x", interval, f"{predicted / measured:.3f}", meets_limit]
