"""Compute in units of what a backbone cost to make, where that is known."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func

from grafting_core.specs.backbone import BACKBONES, BackboneCard, BackboneRef, known_card
from service.db.tables import ExperimentRow

_SPEC = ExperimentRow.spec
BACKBONE_DIGEST = func.coalesce(
    _SPEC["design"]["backbone"]["digest"].as_string(),
    _SPEC["scions"][0]["backbone"]["digest"].as_string(),
    _SPEC["backbone"]["digest"].as_string(),
    "",
)
"""Column of an experiment's revision of its backbone; empty for work without one."""


def backbone_of(experiment: ExperimentRow) -> BackboneRef:
    """Revision of the backbone that an experiment names, without parsing the rest of its document."""
    spec: Mapping[str, Any] = experiment.spec
    holder = spec.get("design") or next(iter(spec.get("scions") or ()), spec)
    digest = (holder.get("backbone") or {}).get("digest", "")
    return BackboneRef(name=experiment.backbone, digest=digest)


def card_of_revision(backbone: BackboneRef) -> BackboneCard | None:
    """Card of this revision, also a removed one; of a package's backbone the one that it has now."""
    shipped = BACKBONES.shipped.get(backbone.name)
    return known_card(backbone) or (shipped.card if shipped else None)


def share_of_pretraining(backbone: BackboneRef, flops: float) -> float | None:
    """FLOPs over those of the revision's pretraining; None where nobody knows what that took."""
    card = card_of_revision(backbone)
    return card.share_of_pretraining(flops) if card else None
