"""ANALYZE: measure a backbone itself and publish its profile with a picture."""

from grafting_core.analysis.profile import STATISTICS_IMAGES, measure_profile
from grafting_core.specs.analysis import AnalysisSpec
from grafting_core.specs.profile import BackboneProfile
from grafting_core.storage.artifacts import keep_published, publish, read_published
from workers.contract import StageReport
from workers.stages.context import Context


def run(context: Context) -> StageReport:
    """Measure unless this very profile is published already. One process does it; the others wait."""
    asked = context.work
    assert isinstance(asked, AnalysisSpec)
    folder = f"profiles/{asked.backbone.digest}/{asked.digest}"
    reused = keep_published(context.storage, folder)
    if not reused and context.group.leads:
        _measure(context, asked, folder)
    context.group.barrier()
    profile = BackboneProfile.model_validate_json(read_published(context.storage, folder))
    return StageReport(
        stage="analyze",
        key=asked.digest,
        artifacts={name: f"{folder}/{name}" for name in ("profile.json", "profile.png")},
        metrics=_metrics(profile),
        stop_cause="reused" if reused else "completed",
    )


def _measure(context: Context, asked: AnalysisSpec, folder: str) -> None:
    """Imported here: nothing else draws, and the drawing library is a tenth of a worker's imports."""
    from grafting_core.analysis.figure import draw_profile  # noqa: PLC0415

    profile = measure_profile(
        context.backbone,
        asked,
        context.latents(STATISTICS_IMAGES),
        observer=context.observer("analyze", asked.digest),
        checkpoints=context.checkpoints(asked.digest),
    )
    card = {"key": asked.digest, "asked": asked.model_dump(mode="json")}
    files = {"profile.png": draw_profile(profile)}
    publish(context.storage, folder, "profile.json", profile.model_dump_json().encode(), card, files)


def _metrics(profile: BackboneProfile) -> dict[str, float]:
    locality = {
        f"locality_{row.band}/block {block}": mass
        for row in profile.locality
        for block, mass in enumerate(row.blocks)
    }
    return locality | {f"variance/{row.site}": row.variance for row in profile.statistics}
