"""Profiles of backbones, found by the digest of the backbone."""

from contextlib import suppress

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.profile import BackboneProfile, default_band
from grafting_core.storage.artifacts import CorruptArtifact, read_file
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.tables import ExperimentRow, RunRow, StageRow


def newest_profile(session: Session, storage: Storage, backbone_digest: str) -> BackboneProfile | None:
    """Return the profile of the latest finished analysis of exactly these weights; None if there is none."""
    # A profile is stored under the digest of the analysis that made it, by which its run is found.
    keys = storage.names(f"profiles/{backbone_digest}")
    query = (
        select(StageRow.report)
        .join(RunRow, RunRow.id == StageRow.run_id)
        .join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id)
        .where(ExperimentRow.digest.in_(keys), StageRow.stage == "analyze", RunRow.state == "SUCCEEDED")
        .order_by(RunRow.id.desc())
    )
    for report in session.scalars(query):
        folder, _, name = report["artifacts"]["profile.json"].rpartition("/")
        with suppress(FileNotFoundError, CorruptArtifact, ValueError):
            return read_file(storage, folder, name, BackboneProfile)
    return None


def completed_card(database: Database, storage: Storage, card: BackboneCard) -> BackboneCard:
    """Add the measured locality, which `top_local` and `low_local` rank by, to a card that has none."""
    if card.locality is not None:
        return card
    with database.reading() as session:
        profile = newest_profile(session, storage, card.digest)
    if profile is None:
        return card
    usual = default_band(card.dims.num_tokens)
    row = min(profile.locality, key=lambda row: abs(row.band - usual))
    return card.model_copy(update={"locality": row.blocks, "locality_band": row.band})
