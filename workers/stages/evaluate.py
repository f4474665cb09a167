"""EVALUATE: samples in chunks of fixed indices, features kept by chunk, figures from all of them."""

import copy
import io

import numpy as np
from safetensors.torch import load
from torch import nn

from grafting_core.evaluation import EvaluatedChunk, denoising_loss_of, evaluate_chunk, finish
from grafting_core.observing import StopRequested
from grafting_core.published import publish, read_card, read_published
from grafting_core.sheet import sample_sheet
from grafting_core.spec.experiment import evaluation_key, finetune_key
from grafting_core.spec.planning import design_cost
from grafting_core.storage import Storage
from grafting_core.surgery import operate
from workers.contract import StageReport
from workers.kept_samples import KeptSamples
from workers.stages.context import Context

MICRO_BATCHES_A_CHUNK = 2
LOSS_IMAGES = 1_000


def run(context: Context) -> StageReport:
    """Evaluate unless this very evaluation is published already."""
    key = evaluation_key(context.spec)
    kept = KeptSamples(context.storage, key, context.spec.evaluate, context.spec.keep_samples)
    reused = context.finds(f"evaluations/{key}") and kept.complete
    if not reused:
        _evaluate(context, key, kept)
    context.group.barrier()
    return StageReport(
        stage="evaluate",
        key=key,
        artifacts={"samples.png": f"evaluations/{key}/samples.png", **kept.artifacts},
        metrics=read_card(context.storage, f"evaluations/{key}")["metrics"],
        stop_cause="reused" if reused else "completed",
        made_by={"evaluation": context.maker(f"evaluations/{key}")} if reused else {},
    )


def _evaluate(context: Context, key: str, kept: KeptSamples) -> None:
    network = _network(context)
    _sample(context, key, network, kept)
    context.group.barrier()
    if context.group.leads:
        kept.finish(context.backbone.card.num_classes)
        metrics = _metrics(context, key, network)
        protocol = context.spec.evaluate.model_dump(mode="json")
        card = {"key": key, "metrics": metrics, "protocol": protocol, "made_by": context.ticket.run_id}
        publish(context.storage, f"evaluations/{key}", "samples.png", _sheet(context, network), card)


def _network(context: Context) -> nn.Module:
    """The finetuned graft beside the untouched teacher, or the teacher itself."""
    design = context.spec.design
    if design.is_teacher:
        return context.backbone.transformer
    network = copy.deepcopy(context.backbone.transformer)
    operate(network, design.edits, context.backbone.card.dims, pairs=design.pairs)
    network.load_state_dict(load(read_published(context.storage, f"models/{finetune_key(context.spec)}")))
    return network.requires_grad_(False).eval()


def _sheet(context: Context, network: nn.Module) -> bytes:
    backbone, protocol = context.backbone, context.spec.evaluate
    teacher = sample_sheet(backbone, backbone.transformer, protocol)
    return teacher.beside(sample_sheet(backbone, network, protocol), context.spec.name)


def _sample(context: Context, key: str, network: nn.Module, kept: KeptSamples) -> None:
    """Each rank its chunks; those already there from an earlier attempt are kept."""
    protocol, share = context.spec.evaluate, context.group.share
    observer = context.observer("evaluate", key)
    size = protocol.micro_batch * MICRO_BATCHES_A_CHUNK
    mine = range(share.rank * size, protocol.samples, share.world * size)
    folder = _chunk_folder(context, key)
    missing = [
        first
        for first in mine
        if not (context.storage.exists(_chunk_path(folder, first)) and kept.has(first))
    ]
    observer.progress(missing[0] if missing else protocol.samples, protocol.samples, {})
    for first in missing:
        count = min(size, protocol.samples - first)
        chunk = evaluate_chunk(context.backbone, network, protocol, first, count, kept.add)
        context.storage.write_bytes(_chunk_path(folder, first), _packed(chunk))
        observer.progress(first + count, protocol.samples, {})
        if observer.stop_requested():
            raise StopRequested


def _chunk_folder(context: Context, key: str) -> str:
    """Chunks are anybody's, but for a run that wants all fresh."""
    if context.spec.fresh:
        return f"runs/{context.ticket.run_id}/chunks/{key}"
    return f"evaluations/{key}/chunks"


def _chunk_path(folder: str, first: int) -> str:
    return f"{folder}/{first:08d}.npz"


def _packed(chunk: EvaluatedChunk) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, features=chunk.features, asked=chunk.asked, recognised=chunk.recognised)
    return buffer.getvalue()


def _unpacked(storage: Storage, folder: str, name: str) -> EvaluatedChunk:
    raw = io.BytesIO(storage.read_bytes(f"{folder}/{name}"))
    with np.load(raw, allow_pickle=False) as arrays:
        first = int(name.removesuffix(".npz"))
        return EvaluatedChunk(first, arrays["features"], arrays["asked"], arrays["recognised"])


def _metrics(context: Context, key: str, network: nn.Module) -> dict[str, float]:
    spec, storage = context.spec, context.storage
    latents = context.latents(LOSS_IMAGES)
    loss, teacher_loss = (
        denoising_loss_of(each, latents) for each in (network, context.backbone.transformer)
    )
    folder = _chunk_folder(context, key)
    chunks = (_unpacked(storage, folder, name) for name in storage.names(folder))
    cost = design_cost(spec, context.backbone.card)
    return {
        **finish(chunks, context.backbone.reference, spec.evaluate),
        "denoising_loss": loss,
        "loss_gap": loss - teacher_loss,
        "num_params": float(cost.num_params),
        "flops_per_image": float(cost.flops_per_image),
        "flops_per_forward": float(cost.flops_per_forward),
    }
