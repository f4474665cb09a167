"""DISTILL: every scion the design needs and the bank does not have, in one pass of the teacher."""

from safetensors.torch import load, save
from torch import nn

from grafting_core.distillation import ScionResult, distill, replacement_candidate
from grafting_core.operators.catalog import build
from grafting_core.optimisation import Diverged
from grafting_core.spec.canonical import digest
from grafting_core.spec.design import ReplaceOperator
from grafting_core.spec.experiment import scion_keys
from grafting_core.spec.site import GraftSite
from grafting_core.storage import Storage
from workers.contract import StageReport
from workers.published import is_published, publish, read_card, read_published
from workers.stages.context import Context


def run(context: Context) -> StageReport:
    """Distil what is missing, each rank its share, and report the errors of all scions of the design.

    Raises Diverged, once the others are published, where one of them did.
    """
    keys = scion_keys(context.spec)
    missing = [
        edit
        for edit in context.spec.design.edits
        if not is_published(context.storage, f"scions/{keys[str(edit.site)]}")
    ]
    own = missing[context.group.share.rank :: context.group.share.world]
    if own:
        _distil(context, own, keys)
    context.group.barrier()
    return _report(context, keys, reused=not missing)


def _distil(context: Context, edits: list[ReplaceOperator], keys: dict[str, str]) -> None:
    plan = context.spec.distill
    by_key = {keys[str(edit.site)]: edit for edit in edits}
    pass_key = digest({"pass": list(by_key)})
    results = distill(
        context.backbone,
        [replacement_candidate(edit, plan, key) for key, edit in by_key.items()],
        context.latents(plan.images),
        observer=context.pass_observer("distill", pass_key),
        checkpoints=context.checkpoints(pass_key),
        done=lambda candidate, result: _keep(context, by_key[candidate.key], candidate.key, result),
    )
    bad = [f"{by_key[key].site}: {result.reason}" for key, result in results.items() if result.diverged]
    if bad:
        raise Diverged(f"distillation of {'; '.join(bad)}")


def _keep(context: Context, edit: ReplaceOperator, key: str, result: ScionResult) -> None:
    if not result.diverged:
        _publish(context, edit, key, result)


def _publish(context: Context, edit: ReplaceOperator, key: str, result: ScionResult) -> None:
    card = {"key": key, "edit": edit.model_dump(mode="json"), "errors": result.errors, "curve": result.curve}
    publish(context.storage, f"scions/{key}", "operator.safetensors", save(result.state), card)


def _report(context: Context, keys: dict[str, str], reused: bool) -> StageReport:
    metrics = {
        f"{name}/{site}": value
        for site, key in keys.items()
        for name, value in published_errors(context.storage, key).items()
    }
    return StageReport(
        stage="distill",
        key=digest(keys),
        artifacts={site: f"scions/{key}/operator.safetensors" for site, key in keys.items()},
        metrics=metrics,
        stop_cause="reused" if reused else "completed",
    )


def published_errors(storage: Storage, key: str) -> dict[str, float]:
    """Held-out errors on a scion's card."""
    from_card: dict[str, float] = read_card(storage, f"scions/{key}")["errors"]
    return from_card


def load_scions(context: Context) -> dict[GraftSite, nn.Module]:
    """The design's distilled operators, built and filled with their weights."""
    keys = scion_keys(context.spec)
    return {edit.site: _load(context, edit, keys[str(edit.site)]) for edit in context.spec.design.edits}


def _load(context: Context, edit: ReplaceOperator, key: str) -> nn.Module:
    operator = build(edit.operator, context.backbone.card.dims)
    operator.load_state_dict(load(read_published(context.storage, f"scions/{key}")))
    return operator
