"""A lab in which ann keeps a backbone, a data set and a feature network private, and works with them.

Every name, path and licence of theirs has the word `VEILED` in it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from grafting_core.backbones.imported_scions import publish_operator
from grafting_core.specs.backbone import BackboneCard, card_named
from grafting_core.specs.budget import Usage
from grafting_core.specs.canonical import digest
from grafting_core.specs.datasets import DatasetCard
from grafting_core.specs.edits import ReplaceOperator
from grafting_core.specs.experiment import ExperimentSpec, fingerprint_of, scions_of
from grafting_core.specs.features import FeatureCard
from grafting_core.specs.operators.hyena import HyenaX
from grafting_core.specs.profile import BackboneProfile
from grafting_core.specs.registration import Registered, RegistrationSpec, What
from grafting_core.specs.results import EvaluationReport
from grafting_core.specs.site import GraftSite
from grafting_core.storage.artifacts import publish
from grafting_core.storage.bank import Bank
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.study_tables import StudyRow, TrialRow
from service.db.tables import RunRow
from service.domain.attempt_events import apply_event
from service.domain.run_queries import spec_of, work_of
from service.domain.studies import move
from service.domain.study_report_paths import REPORT_FILES, report_folder
from service.domain.submission import submit
from service.settings import Settings
from tests.support.bank import deposit
from tests.support.builders import document, study_document
from tests.support.clients import as_user
from tests.support.registering import forget_registered
from tests.support.runs import STARTED, begin, event
from workers.contract import (
    AttemptFailed,
    AttemptStopped,
    AttemptSucceeded,
    EventBody,
    PartProgress,
    Progress,
    StageDone,
    StageReport,
    attempt_folder,
)

VEILED = "veiled"
LICENCE = f"{VEILED}-1.0"
SPOKEN = f"{VEILED}-dit, of /home/ann/{VEILED}-folder under {LICENCE}"
"""What workers and their libraries write into logs and messages."""
NAMES: Mapping[What, str] = {
    "backbone": f"{VEILED}-dit",
    "dataset": f"{VEILED}-pictures",
    "features": f"ann/{VEILED}-judge",
}
SETTINGS = {"samples": 40, "sampling_steps": 3, "micro_batch": 10}
JUDGED = {"evaluate": {**SETTINGS, "feature_network": NAMES["features"]}}


@dataclass(frozen=True)
class PrivateLab:
    """The lab, with the ids that addresses of its routes may contain."""

    admin: TestClient
    ann: TestClient
    bob: TestClient
    runs: dict[str, str]
    """Run by what it does."""
    study: str
    scions: tuple[str, ...]
    """One that was distilled and one that was imported."""
    digests: tuple[str, ...]


@contextmanager
def private_lab(admin: TestClient, settings: Settings, database: Database) -> Iterator[PrivateLab]:
    """Fill an empty lab. Nothing is registered in this process afterwards."""
    ann, bob = as_user(admin, "ann", registers=True), as_user(admin, "bob", registers=True)
    try:
        yield _filled(admin, ann, bob, settings, database)
    finally:
        forget_registered()


def _filled(
    admin: TestClient, ann: TestClient, bob: TestClient, settings: Settings, database: Database
) -> PrivateLab:
    cards = private_cards()
    runs = {}
    with database.writing() as session:
        for card in (*cards, *public_cards(cards)):
            runs[f"registers {card.name}"] = register_card(session, settings, card)
    asked = {
        name: ann.post(f"/api/v1/{path}", json=body).json()["run_id"] for name, (path, body) in WORK.items()
    }
    study = ann.post(
        "/api/v1/studies",
        json=study_document(name=f"search of {NAMES['backbone']}", backbone=NAMES["backbone"], **JUDGED),
    ).json()
    storage = Storage(settings.storage)
    with database.writing() as session:
        distilled = _carried_out(session, settings, storage, asked)
        _reported(session, storage, session.get_one(StudyRow, study["study_id"]))
    scions = (distilled, _imported(Bank(storage), cards[0], runs))
    digests = tuple(card.digest for card in cards)
    return PrivateLab(admin, ann, bob, {**runs, **asked}, study["study_id"], scions, digests)


WORK: Mapping[str, tuple[str, dict[str, Any]]] = {
    "succeeds": (
        "experiments",
        document(name=f"a, {NAMES['backbone']}", backbone=NAMES["backbone"], layers=[1], **JUDGED),
    ),
    "fails": ("experiments", document(name="b", backbone=NAMES["backbone"], layers=[2], **JUDGED)),
    "stops": (
        "experiments",
        document(name=f"c ({NAMES['backbone']})", backbone=NAMES["backbone"], layers=[3], **JUDGED),
    ),
    "waits": (
        "experiments",
        document(name=f"another {NAMES['backbone']}", backbone=NAMES["backbone"], layers=[4], **JUDGED),
    ),
    "runs": ("experiments", document(name="e", backbone=NAMES["backbone"], layers=[5], **JUDGED)),
    "analyses": ("analyses", {"backbone": NAMES["backbone"]}),
    "waits to analyse": ("analyses", {"backbone": NAMES["backbone"], "seed": 1}),
}


def private_cards() -> tuple[BackboneCard, DatasetCard, FeatureCard]:
    """The testbed's backbone under another name, and what it is trained on and judged by."""
    testbed = card_named("testbed/dit-fashion")
    assert testbed is not None
    side = testbed.dims.grid[0] * testbed.patch_size
    data = DatasetCard(
        name=NAMES["dataset"],
        digest=digest("pictures"),
        shape=(testbed.latent_channels, side, side),
        image_size=(28, 28),
        training=1000,
        held_out=100,
        classes=tuple(str(label) for label in range(testbed.num_classes)),
        licence=LICENCE,
    )
    judge = FeatureCard(
        name=NAMES["features"],
        digest=digest("judge"),
        kind="classifier",
        dims=8,
        dataset=data.ref,
        licence=LICENCE,
    )
    own = {"name": NAMES["backbone"], "digest": digest("dit"), "dataset": data.name, "licence": LICENCE}
    return testbed.model_copy(update={**own, "feature_network": judge.name, "parts": {}}), data, judge


def public_cards(
    private: tuple[BackboneCard, DatasetCard, FeatureCard],
) -> tuple[BackboneCard, FeatureCard]:
    """A backbone and a network of ann's that all may use, whose cards refer to what they may not know."""
    backbone, _, judge = private
    open_own = {"licence": "MIT"}
    return (
        backbone.model_copy(update={"name": "open-dit", "digest": digest("open dit"), **open_own}),
        judge.model_copy(update={"name": "open-judge", "digest": digest("open judge"), **open_own}),
    )


def analysed(session: Session, settings: Settings, run_id: str) -> None:
    """End an analysis with the profile that the lab has of these weights and settings."""
    run = session.get_one(RunRow, run_id)
    report = _profile_report(run)
    _apply(session, settings, run, StageDone(report=report), AttemptSucceeded(spend=Usage()))


def register_card(
    session: Session,
    settings: Settings,
    card: BackboneCard | DatasetCard | FeatureCard,
    owner: str = "ann",
) -> str:
    """Register a card, the way that the events of its run would."""
    made = Registered.of(card, 1000)
    work = RegistrationSpec(
        what=made.what,
        name=card.name,
        path=f"/home/ann/{card.name}",
        licence=card.licence,
        private=VEILED in card.name,
        dataset=card.dataset if isinstance(card, FeatureCard) else None,
        trained_on=card.dataset if isinstance(card, BackboneCard) else None,
    )
    run = submit(session, work, "digest", None, owner=owner)
    report = StageReport(stage="register", key="k", registered=made, notes=(SPOKEN,))
    _apply(session, settings, run, StageDone(report=report), AttemptSucceeded(spend=Usage()))
    return run.id


def _apply(session: Session, settings: Settings, run: RunRow, *bodies: EventBody) -> None:
    begin(session, run)
    for seq, body in enumerate((STARTED, *bodies), 1):
        assert apply_event(session, settings, event(run, seq, body))


def _carried_out(session: Session, settings: Settings, storage: Storage, runs: Mapping[str, str]) -> str:
    """End the runs, each in its way, with files; return the key of a scion."""
    rows = {name: session.get_one(RunRow, run_id) for name, run_id in runs.items()}
    for row in rows.values():
        storage.write_bytes(f"{attempt_folder(row.id, 1)}/log.txt", f"loading {SPOKEN}".encode())
    spec = spec_of(rows["succeeds"])
    part = PartProgress(name="block 1 attention", step=1, total_steps=2, reason=SPOKEN)
    running = Progress(
        stage="distill",
        step=1,
        total_steps=2,
        values={spec.evaluate.fid_name: 3.0, "loss": 1.0},
        parts=(part,),
    )
    judged = StageDone(report=_evaluation(storage, spec))
    _apply(session, settings, rows["succeeds"], running, judged, AttemptSucceeded(spend=Usage()))
    _apply(session, settings, rows["runs"], running)
    _apply(session, settings, rows["fails"], AttemptFailed(reason="bad_input", message=SPOKEN))
    cut = AttemptStopped(reason="budget_exhausted", spend=Usage())
    _apply(session, settings, rows["stops"], running, judged, cut)
    profiled = StageDone(report=_profile(storage, rows["analyses"]))
    _apply(session, settings, rows["analyses"], profiled, AttemptSucceeded(spend=Usage()))
    return deposit(Bank(storage), scions_of(spec)[0], made_by=rows["succeeds"].id).key


def _imported(bank: Bank, card: BackboneCard, runs: Mapping[str, str]) -> str:
    """Publish an operator as the registration of a checkpoint does; its key."""
    edit = ReplaceOperator(site=GraftSite(block=1, slot="attention"), operator=HyenaX())
    origin, made_by = f"{VEILED}-folder/model.pt", runs[f"registers {card.name}"]
    return publish_operator(bank, card.ref, edit, {"weights": torch.zeros(1)}, origin, made_by)


def _evaluation(storage: Storage, spec: ExperimentSpec) -> StageReport:
    values = {spec.evaluate.fid_name: 5.0}
    report = EvaluationReport(
        fingerprint=fingerprint_of(spec),
        values=values,
        warnings=(f"{spec.evaluate.fid_name}: {SPOKEN}",),
        samples_digest="0" * 64,
    )
    folder, text = f"evaluations/{spec.digest}", report.model_dump_json().encode()
    publish(storage, folder, "report.json", text, {"of": spec.name})
    figures = {**values, "num_params": 100.0, "flops_per_image": 1000.0}
    intervals = {spec.evaluate.fid_name: (4.0, 6.0)}
    return StageReport(
        stage="evaluate",
        key=spec.digest,
        artifacts={"report.json": f"{folder}/report.json"},
        metrics=figures,
        intervals=intervals,
        notes=(SPOKEN,),
    )


def _profile(storage: Storage, run: RunRow) -> StageReport:
    work = work_of(run)
    profile = BackboneProfile(
        backbone=work.backbone, samples=1, sampling_steps=1, seed=0, locality=(), statistics=()
    )
    report = _profile_report(run)
    folder = report.artifacts["profile.json"].rpartition("/")[0]
    publish(storage, folder, "profile.json", profile.model_dump_json().encode(), {})
    return report


def _profile_report(run: RunRow) -> StageReport:
    work = work_of(run)
    path = f"profiles/{work.backbone.digest}/{work.digest}/profile.json"
    return StageReport(stage="analyze", key=work.digest, artifacts={"profile.json": path})


def _reported(session: Session, storage: Storage, study: StudyRow) -> None:
    """End a study with a report, a screened design, what was learned of it, and a message."""
    metric = study.spec["quality"]
    weights = {"trained_on": 3, "leave_one_out_error": 0.1, "weights": {metric: 1.0}}
    study.findings = {"1": weights}
    session.add(
        TrialRow(
            study_id=study.id,
            number=0,
            round=1,
            proposed_by="tpe",
            baselines=[],
            state="finished",
            assignment={},
            design_key="k",
            params=1,
            flops=1.0,
            score=1.0,
            screened={metric: 2.0},
            final={metric: 1.0},
        )
    )
    for name in REPORT_FILES:
        storage.write_bytes(f"{report_folder(study.id)}/{name}", f"{name} of {SPOKEN}".encode())
    move(session, study, "FAILED", SPOKEN)
