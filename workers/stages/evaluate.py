"""EVALUATE: sample in chunks of fixed indices, store features by chunk, compute metrics from all chunks."""

import copy

from safetensors.torch import load
from torch import nn

from grafting_core.backbones.shared_embedders import load_unique_state
from grafting_core.data.datasets import dataset_of
from grafting_core.evaluation.cost import hardware_of, measure_cost
from grafting_core.evaluation.evaluate import (
    compute_report,
    denoising_loss_of,
    evaluate_chunk,
    feature_network_for,
    recognises,
    training_reference,
)
from grafting_core.evaluation.features.base import FeatureNetwork
from grafting_core.evaluation.oracle import FEWEST, oracle_report
from grafting_core.evaluation.reference import Reference, unpacked
from grafting_core.evaluation.sample_grid import sample_grid
from grafting_core.specs.cost import design_cost, grafted_params
from grafting_core.specs.experiment import evaluation_key, finetune_key, fingerprint_of, oracle_path
from grafting_core.specs.results import EvaluationReport, MeasuredCost
from grafting_core.storage.artifacts import keep_published, publish, read_card, read_file, read_published
from grafting_core.storage.checksums import read_with_digest, write_with_digest
from grafting_core.surgery.operate import operate
from grafting_core.training.observer import StopRequested
from workers.contract import StageReport
from workers.stages.context import Context
from workers.stages.feature_chunks import Chunks
from workers.stages.sample_export import SampleExport

MICRO_BATCHES_A_CHUNK = 2


def run(context: Context) -> StageReport:
    """Evaluate unless this evaluation is already published."""
    key = evaluation_key(context.spec)
    folder = f"evaluations/{key}"
    export = SampleExport(context.storage, key, context.spec.evaluate, context.spec.keep_samples)
    if context.group.leads:
        export.set_aside_damaged()
    context.group.barrier()
    reused = context.keep_published(folder) and export.complete
    if not reused:
        _evaluate(context, key, export)
    context.group.barrier()
    report = read_file(context.storage, folder, "report.json", EvaluationReport)
    return StageReport(
        stage="evaluate",
        key=key,
        artifacts={
            "samples.png": f"{folder}/samples.png",
            "report.json": f"{folder}/report.json",
            **export.artifacts,
        },
        metrics=read_card(context.storage, folder)["metrics"],
        intervals=report.intervals,
        notes=report.warnings,
        cost=_known_cost(context, key),
        stop_cause="reused" if reused else "completed",
        made_by={"evaluation": context.maker(folder)} if reused else {},
    )


def _evaluate(context: Context, key: str, export: SampleExport) -> None:
    graft = graft_of(context)
    sample(context, key, graft, export)
    context.group.barrier()
    if context.group.leads:
        export.finish(context.backbone.card.num_classes)
        report = _report(context, key)
        _measure_cost(context, key, graft)
        card = {
            "key": key,
            "metrics": {**report.values, **_losses(context, graft), **_costs(context)},
            "fingerprint": report.fingerprint.model_dump(mode="json"),
            "made_by": context.ticket.run_id,
        }
        files = {"report.json": report.model_dump_json().encode()}
        publish(context.storage, f"evaluations/{key}", "samples.png", _sheet(context, graft), card, files)


def graft_of(context: Context) -> nn.Module:
    """The finetuned graft on a copy of the teacher, or the teacher itself if the design changes nothing."""
    design = context.spec.design
    if design.is_teacher:
        return context.backbone.transformer
    network = copy.deepcopy(context.backbone.transformer)
    operate(context.backbone.with_transformer(network), design)
    published = read_published(context.storage, f"models/{finetune_key(context.spec)}")
    load_unique_state(network, load(published))
    return network.requires_grad_(False).eval()


def _sheet(context: Context, network: nn.Module) -> bytes:
    backbone, protocol = context.backbone, context.spec.evaluate
    teacher = sample_grid(backbone, backbone.transformer, protocol)
    return teacher.render_comparison(sample_grid(backbone, network, protocol), context.spec.name)


def sample(context: Context, key: str, graft: nn.Module, export: SampleExport) -> None:
    """Sample this rank's chunks; those of an earlier attempt are reused."""
    protocol, share = context.spec.evaluate, context.group.share
    observer, chunks = context.observer("evaluate", key), Chunks(context.storage, key)
    network = feature_network_for(context.backbone, protocol)
    size = protocol.micro_batch * MICRO_BATCHES_A_CHUNK
    mine = range(share.rank * size, protocol.samples, share.world * size)
    missing = [first for first in mine if not (chunks.has(first) and export.has(first))]
    observer.progress(missing[0] if missing else protocol.samples, protocol.samples, {})
    for first in missing:
        count = min(size, protocol.samples - first)
        chunks.add(evaluate_chunk(context.backbone, graft, protocol, first, count, export.add, network))
        observer.progress(first + count, protocol.samples, {})
        if observer.stop_requested():
            raise StopRequested


def _report(context: Context, key: str) -> EvaluationReport:
    network = feature_network_for(context.backbone, context.spec.evaluate)
    reference = reference_of(context, network)
    known = recognises(context.backbone, network, context.spec.evaluate.dataset)
    _publish_oracle(context, network, reference, known)
    chunks = Chunks(context.storage, key).all()
    return compute_report(chunks, reference, fingerprint_of(context.spec), known)


def reference_of(context: Context, network: FeatureNetwork) -> Reference:
    """Reference of the protocol's or the backbone's data set, made once for all designs compared with it."""
    folder = f"references/{fingerprint_of(context.spec).reference}"
    if not keep_published(context.storage, folder):
        made = training_reference(context.backbone.card, network, context.spec.evaluate.dataset)
        publish(context.storage, folder, "reference.npz", made.packed(), made.card.model_dump(mode="json"))
    return unpacked(read_published(context.storage, folder), network)


def _publish_oracle(context: Context, network: FeatureNetwork, reference: Reference, known: bool) -> None:
    """Write the metrics of held-out real images, once for all designs evaluated under this protocol."""
    protocol, path = context.spec.evaluate, oracle_path(fingerprint_of(context.spec))
    dataset = dataset_of(context.backbone.card, protocol.dataset)
    if read_with_digest(context.storage, path, EvaluationReport) is not None:
        return
    held_out = dataset.held_out_reference(dataset.name)
    if held_out is not None and held_out[0].count >= FEWEST:
        report = oracle_report(dataset, network, protocol, known, reference)
        write_with_digest(context.storage, path, report)


def _losses(context: Context, graft: nn.Module) -> dict[str, float]:
    latents, teacher = context.held_out(context.spec.evaluate.dataset), context.backbone
    loss, teacher_loss = (
        denoising_loss_of(model, latents) for model in (teacher.with_transformer(graft), teacher)
    )
    return {"denoising_loss": loss, "loss_gap": loss - teacher_loss}


def _costs(context: Context) -> dict[str, float]:
    cost = design_cost(context.spec, context.backbone.card)
    return {
        "num_params": float(cost.num_params),
        "flops_per_image": float(cost.flops_per_image),
        "macs_per_image": float(cost.flops_per_image // 2),
        "flops_per_forward": float(cost.flops_per_forward),
        "macs_per_forward": float(cost.flops_per_forward // 2),
    }


def _measure_cost(context: Context, key: str, graft: nn.Module) -> None:
    """Measure cost by clock, once per kind of hardware; metrics, equal on all hardware, are kept apart."""
    if _known_cost(context, key) is not None:
        return
    spec, backbone = context.spec, context.backbone
    cost = design_cost(spec, backbone.card)
    measured = measure_cost(
        backbone,
        graft,
        grafted_params(spec.design, backbone.card),
        spec.evaluate,
        cost.flops_per_forward,
        cost.flops_per_image,
    )
    write_with_digest(context.storage, _cost_path(context, key), measured)


def _known_cost(context: Context, key: str) -> MeasuredCost | None:
    return read_with_digest(context.storage, _cost_path(context, key), MeasuredCost)


def _cost_path(context: Context, key: str) -> str:
    hardware = hardware_of(context.backbone.device, context.spec.evaluate.precision)
    return f"costs/{key}/{hardware.digest}.json"
