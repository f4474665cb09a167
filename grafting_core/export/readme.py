"""The model card of an exported graft."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from grafting_core.backbones.model_card import MOST_ORIGIN
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.exports import ExportRecord
from grafting_core.specs.operators.base import operator_label

UNKNOWN = "not stated"
SPECIAL = re.compile(r"([\\`*\[\]<>|])")


def model_card(card: BackboneCard, design: GraftDesign, graft: BackboneCard, record: ExportRecord) -> str:
    """Markdown with the fields that model hubs read.

    `card` is the backbone's, `graft` that of the result.
    """
    parts = [
        f"# {_plain(record.name)}",
        _summary(card, design, graft),
        _use(card, graft),
        _design(design),
        *_figures(record),
        _lineage(card, design, record),
        _licences(card, record),
    ]
    return f"---\n{_front_matter(card, design, record)}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(card: BackboneCard, design: GraftDesign, record: ExportRecord) -> str:
    licence, dataset = record.licence or card.licence, _dataset(card, record)
    fields: dict[str, Any] = {
        **({"license": licence} if licence else {}),
        "library_name": "diffusers",
        "base_model": card.name,
        **({"datasets": [dataset]} if dataset else {}),
        "tags": ["graft", card.family],
        "graft": {
            "origin": _origin(card, record),
            "feature_network": _feature_network(card, record),
            **({"dataset": dataset} if dataset else {}),
        },
    }
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _origin(card: BackboneCard, record: ExportRecord) -> str:
    """Where the graft comes from, and where its backbone does: their licences, which the graft's own licence
    takes the place of on its card, stay known.
    """
    run = f", run {record.run}" if record.run else ""
    graft = f"{record.name}, a graft of {card.name} {card.digest[:12]} ({card.licence or UNKNOWN}){run}"
    return f"{graft}; {card.origin}"[:MOST_ORIGIN] if card.origin else graft


def _plain(text: str) -> str:
    """A name as Markdown on one line, without the meaning that its signs would have there."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _summary(card: BackboneCard, design: GraftDesign, graft: BackboneCard) -> str:
    changed = [f"{_count(design.edits, 'operator')} replaced"] if design.edits else []
    changed += [f"{_count(design.pairs, 'pair')} of blocks in parallel"] if design.pairs else []
    height, width = (side * card.patch_size for side in card.dims.grid)
    what = " and ".join(changed) or "nothing replaced"
    return (
        f"A graft of the diffusion transformer {_plain(card.name)}, with {what}: "
        f"{graft.depth} blocks of width {card.dims.width}, {graft.num_params:,} parameters "
        f"({card.num_params:,} before), latents of {card.latent_channels} x {height} x {width}, "
        f"{card.num_classes} classes."
    )


def _count(listed: Sequence[object], noun: str) -> str:
    return f"{len(listed)} {noun}{'' if len(listed) == 1 else 's'}"


def _use(card: BackboneCard, graft: BackboneCard) -> str:
    labels = "[0, 1]" if card.num_classes > 1 else "[0, 0]"
    note = ""
    if graft.arithmetic == "original":
        note = (
            "\n\nIt has the arithmetic of the original DiT implementation (timestep frequencies, an epsilon, "
            "guidance of three channels), which its class and its pipeline carry along. `DiTPipeline` with "
            "guidance is refused."
        )
    return f"""## Use

With diffusers alone; the code of the operators is in this folder:

```python
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("PATH OF THIS FOLDER", trust_remote_code=True)
images = pipeline(class_labels={labels}, num_inference_steps=50).images
```

With Graftlab, to evaluate it, to finetune it or to graft on it:

```python
from grafting_core import load_grafted
backbone = load_grafted("PATH OF THIS FOLDER")
transformer = backbone.transformer
```{note}"""


def _design(design: GraftDesign) -> str:
    rows = [f"| {edit.site} | {operator_label(edit.operator)} |" for edit in design.edits]
    rows += [f"| blocks {pair.first} and {pair.first + 1} | in parallel, merged |" for pair in design.pairs]
    table = "\n".join(["| place | operator |", "|---|---|", *rows])
    return f"## Design\n\n`design.yaml` repeats it in a lab that has the backbone.\n\n{table}"


def _figures(record: ExportRecord) -> Iterator[str]:
    if not record.figures:
        return
    rows = []
    for name, value in record.figures.items():
        low, high = record.intervals.get(name, (None, None))
        rows.append(f"| {name} | {value!r} | {'' if low is None else f'{low:.4g} to {high:.4g}'} |")
    text = "\n".join(["| metric | value | 95 % interval |", "|---|---|---|", *rows])
    if record.experiment is not None:
        protocol = record.experiment.evaluate
        text += (
            f"\n\nOf {protocol.samples:,} samples: {protocol.sampler}, {protocol.sampling_steps} steps, "
            f"guidance {protocol.guidance:g} ({protocol.guidance_channels.replace('_', ' ')} channels), seed "
            f"{protocol.seed}, feature network {protocol.feature_network}."
        )
    yield f"## Figures\n\n{text}"


def _lineage(card: BackboneCard, design: GraftDesign, record: ExportRecord) -> str:
    lines = [f"- Backbone: {_plain(card.name)}, digest `{card.digest}`"]
    lines += [f"- Origin of the backbone: {_plain(card.origin)}"] if card.origin else []
    before = [f"{operator_label(edit.operator)} at {edit.site}" for edit in card.edits]
    before += [str(pair) for pair in card.pairs]
    lines += [f"- Grafts that the backbone had before: {', '.join(before)}"] if before else []
    lines += [f"- Data: {_plain(dataset)}"] if (dataset := _dataset(card, record)) else []
    lines += [f"- Run: {record.run}"] if record.run else []
    lines += [f"- Model: `{record.model_key}`"] if record.model_key else []
    lines += [f"- Scion of {place}: `{key}`" for place, key in record.scions.items()]
    return "\n".join(["## Lineage", "", *lines])


def _licences(card: BackboneCard, record: ExportRecord) -> str:
    lines = [f"- Backbone {_plain(card.name)}: {_plain(card.licence or UNKNOWN)}"]
    dataset = _dataset(card, record)
    lines += [f"- Data {_plain(dataset)}: {_plain(record.dataset_licence or UNKNOWN)}"] if dataset else []
    lines += [f"- This graft: {_plain(record.licence)}"] if record.licence else []
    return "\n".join(["## Licences", "", *lines])


def _dataset(card: BackboneCard, record: ExportRecord) -> str | None:
    named = record.experiment.evaluate.dataset if record.experiment else None
    return named.name if named else card.dataset


def _feature_network(card: BackboneCard, record: ExportRecord) -> str:
    return record.experiment.evaluate.feature_network if record.experiment else card.feature_network
