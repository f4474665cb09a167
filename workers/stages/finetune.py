"""FINETUNE: train the whole grafted network; its EMA weights are published."""

import copy

from safetensors.torch import save

from grafting_core.specs.experiment import finetune_key
from grafting_core.storage.artifacts import publish, read_card
from grafting_core.surgery.operate import operate
from grafting_core.training.finetune import finetune
from workers.checkpoints import SharedCheckpoints
from workers.contract import StageReport
from workers.stages.context import Context
from workers.stages.distill import load_modules


def run(context: Context) -> StageReport:
    """Finetune unless this model is already published."""
    key = finetune_key(context.spec)
    reused = context.keep_published(f"models/{key}")
    if not reused:
        _finetune(context, key)
    context.scions.clear()
    context.group.barrier()
    return StageReport(
        stage="finetune",
        key=key,
        artifacts={"model": f"models/{key}/model.safetensors"},
        metrics=read_card(context.storage, f"models/{key}")["metrics"],
        stop_cause="reused" if reused else "completed",
        made_by={"model": context.maker(f"models/{key}")} if reused else {},
    )


def _finetune(context: Context, key: str) -> None:
    spec, backbone, share = context.spec, context.backbone, context.group.share
    # Training changes every block in place; later stages need the teacher unchanged.
    graft = backbone.with_transformer(copy.deepcopy(backbone.transformer))
    operate(graft, spec.design, load_modules(context))
    context.scions.clear()
    weights = finetune(
        graft,
        spec.finetune,
        context.latents(spec.finetune.images, spec.finetune.dataset, spec.finetune.subset_seed),
        observer=context.observer("finetune", key),
        checkpoints=SharedCheckpoints(context.checkpoints(key), share.rank),
        parallel=context.group.parallel,
        share=share,
        accumulation_steps=context.ticket.accumulation_steps,
    )
    if context.group.leads:
        card = {
            "key": key,
            "design": spec.design.model_dump(mode="json"),
            "metrics": {},
            "accumulation_steps": context.ticket.accumulation_steps,
            "workers": share.world,
            "made_by": context.ticket.run_id,
        }
        publish(context.storage, f"models/{key}", "model.safetensors", save(weights), card)
