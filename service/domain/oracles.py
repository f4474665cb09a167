"""Oracle lines of the leaderboard: metrics of held-out real images, what a perfect model would reach."""

from functools import lru_cache

from grafting_core.specs.experiment import oracle_path
from grafting_core.specs.results import EvaluationReport
from grafting_core.storage.checksums import parse_with_digest
from grafting_core.storage.storage import Storage
from service.schemas.leaderboard import Leaderboard, LeaderboardGroup, Oracle


def with_oracles(storage: Storage, board: Leaderboard) -> Leaderboard:
    """Add to each group the metric of its data set's held-out images, where a run has computed it."""
    return board.model_copy(update={"groups": [_with_oracle(storage, group) for group in board.groups]})


def _with_oracle(storage: Storage, group: LeaderboardGroup) -> LeaderboardGroup:
    path = oracle_path(group.fingerprint) if group.fingerprint else None
    if path is None or not storage.exists(path):
        return group
    report = _report(storage, path)
    return group.model_copy(update={"oracle": _oracle(report) if report else None})


@lru_cache(maxsize=256)
def _report(storage: Storage, path: str) -> EvaluationReport | None:
    """Read one; its path names all that determined it. None if the file is damaged."""
    try:
        return parse_with_digest(storage.read_bytes(path), EvaluationReport)
    except ValueError:
        return None


def _oracle(report: EvaluationReport) -> Oracle:
    protocol = report.fingerprint.protocol
    return Oracle(
        metric=protocol.fid_name,
        value=report.values[protocol.fid_name],
        interval=report.intervals.get(protocol.fid_name),
        images=protocol.samples,
    )
