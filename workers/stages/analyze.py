"""ANALYZE: measure a backbone and publish its profile with a figure."""

from grafting_core.analysis.profile import STATISTICS_IMAGES, measure_profile
from grafting_core.specs.analysis import AnalysisSpec
from grafting_core.specs.profile import BackboneProfile
from grafting_core.storage.artifacts import keep_published, publish, read_published
from workers.contract import StageReport
from workers.stages.context import Context


def run(context: Context) -> StageReport:
    """Measure unless this profile is already published. Rank 0 does it; the others wait."""
    spec = context.work
    assert isinstance(spec, AnalysisSpec)
    folder = f"profiles/{spec.backbone.digest}/{spec.digest}"
    reused = keep_published(context.storage, folder)
    if not reused and context.group.leads:
        _measure(context, spec, folder)
    context.group.barrier()
    profile = BackboneProfile.model_validate_json(read_published(context.storage, folder))
    return StageReport(
        stage="analyze",
        key=spec.digest,
        artifacts={name: f"{folder}/{name}" for name in ("profile.json", "profile.png")},
        metrics=_metrics(profile),
        stop_cause="reused" if reused else "completed",
    )


def _measure(context: Context, spec: AnalysisSpec, folder: str) -> None:
    """Measure and publish. The import is here because no other stage draws, and it takes long."""
    from grafting_core.analysis.figure import draw_profile  # noqa: PLC0415

    profile = measure_profile(
        context.backbone,
        spec,
        context.latents(STATISTICS_IMAGES),
        observer=context.observer("analyze", spec.digest),
        checkpoints=context.checkpoints(spec.digest),
    )
    card = {"key": spec.digest, "asked": spec.model_dump(mode="json")}
    files = {"profile.png": draw_profile(profile)}
    publish(context.storage, folder, "profile.json", profile.model_dump_json().encode(), card, files)


def _metrics(profile: BackboneProfile) -> dict[str, float]:
    locality = {
        f"locality_{row.band}/block {block}": mass
        for row in profile.locality
        for block, mass in enumerate(row.blocks)
    }
    return locality | {f"variance/{row.site}": row.variance for row in profile.statistics}
