"""Write a graft as a folder that diffusers loads, and read it."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.diffusers_folder import (
    TRANSFORMER,
    config_of,
    empty_transformer,
    load_folder,
    save_folder,
)
from grafting_core.backbones.dit import silence_label_dropout
from grafting_core.backbones.dit_config import CLASS, GRAFTED_CLASS, DiTConfig, read_json
from grafting_core.backbones.model_card import README
from grafting_core.backbones.scheduler_config import FILE as SCHEDULER
from grafting_core.backbones.shared_embedders import load_unique_state, share_embedders
from grafting_core.backbones.weight_files import CONFIG
from grafting_core.export.code import MODEL, PIPELINE, PIPELINE_CLASS, model_code, module_rows, pipeline_code
from grafting_core.export.readme import model_card
from grafting_core.specs.design import GraftDesign, grafted_card
from grafting_core.specs.documents.written import backbone_comment, design_document, experiment_document
from grafting_core.specs.exports import ExportRecord

DESIGN, INDEX = "design.yaml", "model_index.json"


def load_grafted(folder: Path | str, device: torch.device | str = "cpu") -> Backbone:
    """The graft in an exported folder, without a lab. No code of the folder is run.

    Raises ValueError, which names what is wrong, for a folder that holds something else or is damaged.
    """
    return load_folder(Path(folder), device)


def export_model(
    backbone: Backbone,
    design: GraftDesign,
    state: Mapping[str, Tensor],
    target: Path,
    record: ExportRecord | None = None,
) -> Path:
    """Write a graft to the folder `target`, which must not exist, and return it.

    `backbone` is the one that the design edits, `state` the state dict of its grafted transformer, as a lab
    publishes it or complete. The folder holds config, weights in safetensors, the code of model and pipeline,
    autoencoder, scheduler, a model card and the design. It appears whole or not at all.

    Raises ValueError for a design of another backbone and for operators of other packages, RuntimeError for
    weights that are not the design's, FileExistsError.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; name a folder that does not")
    graft = _grafted(backbone, design, state)
    config = config_of(graft)
    rows = module_rows(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        written = Path(scratch) / "written"
        save_folder(graft, written)
        _write_code(written, config, rows)
        _write_index(written, config)
        _write_texts(written, backbone, design, graft, record or ExportRecord(name=target.name))
        written.rename(target)  # unlike a move, it fails if a folder of that name has appeared
    return target


def _grafted(backbone: Backbone, design: GraftDesign, state: Mapping[str, Tensor]) -> Backbone:
    """The backbone with the design's operators and these weights, on the CPU."""
    card = grafted_card(backbone.card, design)
    config = config_of(Backbone(card, backbone.family, backbone.transformer, backbone.autoencoder))
    transformer = empty_transformer(config)
    _load(transformer, {name: tensor.detach().cpu() for name, tensor in state.items()})
    silence_label_dropout(transformer)
    frozen = transformer.eval().requires_grad_(False)
    return Backbone(card, backbone.family, frozen, backbone.autoencoder)


def _load(transformer: Any, state: dict[str, Tensor]) -> None:
    """Load a complete state dict, or one without the embedders that repeat the first block's."""
    if state.keys() != transformer.state_dict().keys():
        share_embedders(transformer)
    load_unique_state(transformer, state, assign=True)


def _write_code(folder: Path, config: DiTConfig, rows: list[dict[str, Any]]) -> None:
    """Write the model's class next to its weights, name it in the config, and write the pipeline."""
    (folder / f"{PIPELINE}.py").write_text(pipeline_code(), encoding="utf-8")
    if not config.differences:
        return
    (folder / TRANSFORMER / f"{MODEL}.py").write_text(model_code(config), encoding="utf-8")
    file = folder / TRANSFORMER / CONFIG
    _write_json(file, {**read_json(file), "modules": rows, "auto_map": _auto_map()})


def _auto_map() -> dict[str, str]:
    """Class of the model, as diffusers' `AutoModel` looks it up."""
    return {"AutoModel": f"{MODEL}.{GRAFTED_CLASS}"}


def _write_index(folder: Path, config: DiTConfig) -> None:
    """The pipeline's parts; the scheduler is one that `DiTPipeline` can be used with too."""
    scheduler = read_json(folder / SCHEDULER)
    if scheduler["_class_name"] == "DDPMScheduler":
        del scheduler["variance_type"]
        scheduler["_class_name"] = "DDIMScheduler"
        _write_json(folder / SCHEDULER, scheduler)
    grafted = bool(config.differences)
    index: dict[str, Any] = {
        "_class_name": [PIPELINE, PIPELINE_CLASS],
        "_diffusers_version": diffusers.__version__,
        TRANSFORMER: [MODEL, GRAFTED_CLASS] if grafted else ["diffusers", CLASS],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "vae": ["diffusers", "AutoencoderKL"] if (folder / "vae").is_dir() else [None, None],
    }
    _write_json(folder / INDEX, {**index, **({"auto_map": _auto_map()} if grafted else {})})


def _write_texts(
    folder: Path, backbone: Backbone, design: GraftDesign, graft: Backbone, record: ExportRecord
) -> None:
    spec = record.experiment
    document = experiment_document(spec) if spec else design_document(record.name, design)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (folder / DESIGN).write_text(f"{backbone_comment(design.backbone)}\n{text}", encoding="utf-8")
    card = model_card(backbone.card, design, graft.card, record)
    (folder / README).write_text(card, encoding="utf-8")


def _write_json(file: Path, document: dict[str, Any]) -> None:
    file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
