"""A large lab: many runs, a long queue, one run with many events, studies, scions, keys and webhooks.

It is copied by SQL from rows that the service itself has written, so it takes seconds and has realistic
content.
"""

import json
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from benchmarks.lab_under_load import DESIGN, analyse, copy
from grafting_core.specs.backbone import card_of
from grafting_core.specs.budget import Usage
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.experiment import ExperimentSpec, scions_of
from grafting_core.specs.results import Hardware, Latency, MeasuredCost, Parameters
from grafting_core.specs.scions import ScionCard
from grafting_core.specs.studies.parsing import parse_study
from grafting_core.storage.bank import Bank
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.registry_tables import RegisteredRow
from service.db.study_tables import StudyRow, StudyRunRow, TrialRow
from service.db.tables import AccountRow, AttemptRow, EventRow, KeyRow, RunRow, StageRow, TrackingRow, now
from service.db.webhook_tables import DeliveryRow, WebhookRow
from service.domain.check_jobs import begin
from service.domain.run_lifecycle import transition
from service.domain.run_queries import spec_of
from service.domain.studies import create_study
from service.domain.submission import submit
from workers.contract import AttemptStarted, Event, Progress, StageReport, attempt_folder

OWNERS, NAMES, PROTOCOLS, STUDY_RUNS, TRIALS = 100, 1_000, 7, 6, 40
STUDY = {
    "name": "grown",
    "backbone": "testbed/dit-fashion",
    "space": {"attention": ["keep", "hyena_x"], "groups": {"attention": [[1], [3], [5], [7]]}},
    "objectives": [{"minimize": "fid40"}],
    "screening": {"trials": 6, "rungs": ["loss_gap", "fid20"], "reduction": 2, "loss_draws": 64},
    "promote": 2,
    "baselines": [],
    "distill": {"steps": 6, "batch_size": 16, "held_out": 16, "images": 200},
    "finetune": {"steps": 8, "batch_size": 16, "images": 200},
    "evaluate": {"samples": 40, "sampling_steps": 3, "micro_batch": 10},
}
ENDINGS = (
    "CASE n.i % 10 WHEN 0 THEN 'STOPPED' WHEN 1 THEN 'FAILED' WHEN 2 THEN 'CANCELLED' ELSE 'SUCCEEDED' END"
)
REASONS = "CASE WHEN n.i % 10 < 2 THEN 'diverged' END"
OWNER = f"'user' || CAST(n.i % {OWNERS} AS TEXT)"
PROTOCOL = f"'protocol ' || CAST(n.i % {PROTOCOLS} AS TEXT)"
NAME = f"'design ' || CAST(n.i % {NAMES} AS TEXT)"


@dataclass(frozen=True)
class Size:
    """Number of rows of each kind."""

    runs: int = 100_000
    queued: int = 10_000
    events: int = 100_000
    """Number of events of one run."""
    others: int = 1_000
    """Number of studies, scions, keys, accounts, webhooks, and deliveries of one webhook."""


@dataclass(frozen=True)
class Grown:
    """Ids in the large lab that requests can use."""

    ended: str
    """A run that has succeeded."""
    eventful: str
    """The running run with many events."""
    queued: str
    middle: str
    """The run in the middle of all ended ones."""
    study: str
    scion: str
    protocol: str
    webhook: int
    check: str


def grow(database: Database, storage: Storage, size: Size) -> Grown:
    """Fill an empty lab."""
    with database.writing() as session:
        done = _succeeded(session, storage)
        _copies_of(session, done, size.runs, "0b", state=ENDINGS, reason=REASONS)
        queued = submit(session, parse_submission(DESIGN), "digest", None)
        queued.forecast = {"device_seconds": 60.0, "low": 30.0, "high": 90.0, "runs": 9}
        session.flush()
        _copies_of(session, queued, size.queued, "1q", precedence="n.i % 3 - 1")
    with database.writing() as session:
        eventful = _eventful(session, size.events)
        study = _studies(session, size)
        webhook = _others(session, size, done)
        check = begin(session, database.clock(session), quick=True)[0].id
    scion = _scions(storage, spec_of(done), size.others)
    analyse(database)
    return Grown(
        ended=done.id,
        eventful=eventful,
        queued=f"1q{10_000_000 + size.queued // 2}",
        middle=f"0b{10_000_005 + size.runs // 20 * 10}",
        study=study,
        scion=scion,
        protocol=f"protocol {(5 + size.runs // 20 * 10) % PROTOCOLS}",
        webhook=webhook,
        check=check,
    )


def _succeeded(session: Session, storage: Storage) -> RunRow:
    """Make a run that went through all stages, with its log and the file that its report names."""
    run = submit(session, parse_submission(DESIGN), "digest", None)
    run.attempt = 1
    session.add(AttemptRow(run_id=run.id, number=1, ended_at=now(), device_seconds=60.0, flops=1e15))
    session.add(TrackingRow(run_id=run.id, last_seq=4, closed=True))
    picture = f"evaluations/{run.id}/samples.png"
    storage.write_bytes(picture, b"\x89PNG" + bytes(20_000))
    storage.write_bytes(f"{attempt_folder(run.id, 1)}/log.txt", b"a line of the log\n" * 5_000)
    for stage in ("distill", "finetune", "evaluate"):
        report = _report(stage, run.id, picture)
        session.add(StageRow(run_id=run.id, stage=stage, attempt=1, report=report.model_dump(mode="json")))
    session.flush()
    for state in ("STARTING", "RUNNING", "SUCCEEDED"):
        transition(session, run, state)  # type: ignore[arg-type]  # these are states
    session.flush()
    return run


def _report(stage: str, key: str, picture: str) -> StageReport:
    if stage != "evaluate":
        return StageReport(stage=stage, key=key)  # type: ignore[arg-type]  # these are stages
    metrics = {
        "fid1k/fashion-cnn": 20.0,
        "fid40/fashion-cnn": 30.0,
        "loss_gap": 0.1,
        "num_params": 1_634_304.0,
        "flops_per_image": 2.7e11,
    }
    return StageReport(
        stage="evaluate", key=key, metrics=metrics, cost=_cost(), artifacts={"samples.png": picture}
    )


def _cost() -> MeasuredCost:
    latency = {"pairs": 9, "median": 0.01, "low": 0.01, "high": 0.02, "teacher_median": 0.01, "ratio": 1.0}
    return MeasuredCost(
        hardware=Hardware(device="cpu", processor="one", cores=2, threads=1, memory_gib=8, torch="2"),
        parameters=Parameters(total=9, trainable=9, grafted=1, embedding=1, buffers=0),
        flops_per_forward=10,
        flops_per_image=100,
        latencies=tuple(Latency(batch=n, ratio_low=0.9, ratio_high=1.1, **latency) for n in (1, 16)),
        cold_start_seconds=1.0,
        images_per_second=5.0,
        teacher_images_per_second=5.0,
        peak_bytes=1000,
    )


def _copies_of(session: Session, run: RunRow, count: int, prefix: str, **changes: str) -> None:
    """Copy a run with everything that belongs to it, with many owners and names."""
    ids = f"'{prefix}' || CAST(10000000 + n.i AS TEXT)"
    first = 10_000_000 * (1 + ord(prefix[0]) % 8)
    numbers, row = f"{first} + n.i", f"id = '{run.id}'"
    kept = {"digest": ids, "owner": OWNER, "name": NAME, "protocol_digest": PROTOCOL}
    kept_once = {"id": numbers, "idempotency_key": "NULL"}
    copy(session, "experiments", f"id = {run.experiment_id}", count, **kept_once, **kept)
    copy(session, "runs", row, count, id=ids, experiment_id=numbers, owner=OWNER, name=NAME, **changes)
    theirs = f"run_id = '{run.id}'"
    for table in ("attempts", "stage_reports", "run_dependencies", "tracking_cursors"):
        copy(session, table, theirs, count, run_id=ids)
    copy(session, "events", theirs, count, id="", run_id=ids)
    value = "5 + (n.i * 7919 % 100003) / 1000.0"
    ranked = f"{theirs} AND n.i % 10 > 2"
    copy(session, "leaderboard_entries", ranked, count, run_id=ids, value=value, **kept)


def _eventful(session: Session, count: int) -> str:
    """Make a running run with this many progress events."""
    run = submit(session, parse_submission(DESIGN), "digest", None)
    run.attempt = 1
    session.add(AttemptRow(run_id=run.id, number=1))
    for state in ("STARTING", "RUNNING"):
        transition(session, run, state)  # type: ignore[arg-type]  # these are states
    session.flush()
    first = run.last_event + 1
    rows = [
        {"run_id": run.id, "seq": first + number, "at": now(), "kind": "attempt", "body": body}
        for number, body in enumerate(_told(run.id, count))
    ]
    session.execute(insert(EventRow), rows)
    run.last_event, run.stage, run.step, run.total_steps = first + count - 1, "finetune", count, count + 1
    return run.id


def _told(run_id: str, count: int) -> list[dict[str, object]]:
    started = AttemptStarted(host="here", pid=1, device="cpu")
    first = Event(run_id=run_id, attempt=1, seq=1, at=0.0, body=started).model_dump(mode="json")
    spread = Progress(stage="finetune", step=0, total_steps=count, values={"loss": 0.5})
    event = Event(run_id=run_id, attempt=1, seq=1, at=0.0, body=spread).model_dump(mode="json")
    further = (
        {**event, "seq": number, "body": {**event["body"], "step": number, "values": {"loss": 1 / number}}}
        for number in range(2, count + 1)
    )
    return [first, *further]


def _studies(session: Session, size: Size) -> str:
    """Copy one study, each copy with its own designs and runs; return the last copy's id."""
    study = create_study(session, parse_study(STUDY), {}, "digest", None, "lab")
    _trials(session, study)
    count = min(size.others, (size.runs - 1) // STUDY_RUNS)
    ids = "'0s' || CAST(10000000 + n.i AS TEXT)"
    copy(session, "studies", f"id = '{study.id}'", count, id=ids, idempotency_key="NULL", owner=OWNER)
    copy(session, "study_trials", f"study_id = '{study.id}'", count, study_id=ids)
    rows = [
        {
            "study_id": f"0s{10_000_001 + number // STUDY_RUNS}",
            "role": "promote",
            "label": str(number % STUDY_RUNS),
            "run_id": f"0b{10_000_001 + number}",
            "trial": number % STUDY_RUNS,
        }
        for number in range(count * STUDY_RUNS)
    ]
    session.execute(insert(StudyRunRow), rows)
    return f"0s{10_000_000 + count}"


def _trials(session: Session, study: StudyRow) -> None:
    """Add one finished trial and TRIALS - 1 copies of it."""
    parameters = parse_study(STUDY).space.parameters
    trial = TrialRow(
        study_id=study.id,
        number=0,
        round=1,
        proposed_by="milp",
        state="DONE",
        assignment={name: labels[-1] for name, labels in parameters.items()},
        design_key="",
        params=9,
        flops=1.0,
        score=0.0,
        screened={"loss_gap": 0.1, "fid20/fashion-cnn": 3.0},
        final={"fid40/fashion-cnn": 2.0},
    )
    session.add(trial)
    session.flush()
    where, numbers = f"study_id = '{study.id}'", {"number": "n.i", "design_key": "CAST(n.i AS TEXT)"}
    copy(session, "study_trials", where, TRIALS - 1, **numbers)


def _others(session: Session, size: Size, run: RunRow) -> int:
    """Make accounts, keys, webhooks and deliveries of one webhook; return that webhook's id."""
    many = range(size.others)
    session.execute(insert(AccountRow), [{"scope": "user", "name": f"user{n}", "limits": {}} for n in many])
    key = {"kind": "key", "prefix": "glk_", "owner": "ann", "role": "viewer", "sees": "own"}
    session.execute(insert(KeyRow), [{**key, "digest": f"{n:064d}"} for n in many])
    hook = {"types": ["run.failed"], "secret": "s", "owner": "lab"}
    session.execute(insert(WebhookRow), [{**hook, "url": f"https://example.org/{n}"} for n in many])
    first = session.scalars(select(WebhookRow.id).order_by(WebhookRow.id)).first()
    delivery = {"type": "run.succeeded", "subject": run.id, "number": 4, "body": "{}", "state": "DELIVERED"}
    session.execute(
        insert(DeliveryRow),
        [{**delivery, "webhook_id": first, "message_id": f"m{n}", "attempts": 1, "due": 0.0} for n in many],
    )
    _registered(session, size, run)
    assert first is not None
    return first


def _registered(session: Session, size: Size, run: RunRow) -> None:
    """Register a tenth as many backbones, each with a digest of its own."""
    card = card_of(spec_of(run).backbone)
    rows = []
    for number in range(size.others // 10):
        own = card.model_copy(update={"name": f"own/{number}", "digest": f"{number:064x}", "weights": None})
        rows.append({"name": own.name, "digest": own.digest, "card": own.model_dump(mode="json")})
    fixed = {"what": "backbone", "revision": 1, "owner": "ann", "run_id": run.id, "state": "ready"}
    session.execute(insert(RegisteredRow), [{**fixed, **row} for row in rows])


def _scions(storage: Storage, spec: ExperimentSpec, count: int) -> str:
    """Store cards without weights, which no page reads."""
    bank, scion = Bank(storage), scions_of(spec)[0]
    card = ScionCard(
        key=scion.key,
        scion=scion,
        errors={"nmse": 1.0},
        steps=1,
        spend=Usage(),
        made_by="0b",
        made_at=0.0,
        hardware="cpu",
        file="operator.safetensors",
        sha256="",
        size=1,
    )
    text = json.loads(card.model_dump_json())
    for number in range(count):
        key = f"{number:064x}"
        path = storage.local_path(f"{bank.folder(key)}/card.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**text, "key": key}))
    return f"{0:064x}"
