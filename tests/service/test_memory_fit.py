"""A graft that cannot fit into a worker's memory is refused at submission, with the setting that would."""

import pytest
from fastapi.testclient import TestClient

from grafting_core.specs.backbone import card_of
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.memory import finetuning_memory
from service.db.engine import Database
from service.db.tables import RunRow
from service.domain.memory_fit import accumulation_that_fits
from service.settings import Settings
from tests.support.builders import document

LARGE_BATCH = {"finetune": {"steps": 10, "batch_size": 1024, "images": 2000}}


def finetuning_gb(accumulation_steps: int) -> float:
    spec = parse_submission(document(**LARGE_BATCH))
    card = card_of(spec.backbone)
    need = finetuning_memory(card, spec.design, spec.finetune, accumulation_steps=accumulation_steps)
    return need.total / 1e9


@pytest.mark.parametrize("steps", [2, 4])
def test_batches_are_split_as_far_as_it_takes(steps: int) -> None:
    """A budget halfway between what this and the half as many parts take."""
    spec = parse_submission(document(**LARGE_BATCH))
    between = (finetuning_gb(steps) + finetuning_gb(steps // 2)) / 2
    assert accumulation_that_fits(Settings(memory_gb=between), spec) == steps
    assert accumulation_that_fits(Settings(memory_gb=100.0), spec) == 1
    assert accumulation_that_fits(Settings(), spec) == 1


def test_workers_share_the_memory_of_the_machine_and_a_gpu_has_its_own() -> None:
    whole = finetuning_gb(1) * 1.01
    spec = parse_submission(document(**LARGE_BATCH, resources={"workers": 1}))
    assert accumulation_that_fits(Settings(memory_gb=whole), spec) == 1
    on_gpu = parse_submission(document(**LARGE_BATCH, resources={"gpus_per_worker": 1}))
    assert accumulation_that_fits(Settings(memory_gb=0.001, gpu_memory_gb=whole), on_gpu) == 1


def test_what_fits_nowhere_is_refused_by_stage() -> None:
    with pytest.raises(SpecError) as refused:
        accumulation_that_fits(Settings(memory_gb=0.01), parse_submission(document()))
    messages = " ".join(problem.message for problem in refused.value.problems)
    assert "distill takes" in messages
    assert "finetune takes" in messages


def test_a_submission_is_refused_and_stores_nothing_or_starts_with_smaller_parts(
    client: TestClient, settings: Settings, database: Database
) -> None:
    settings.memory_gb = 0.01
    answer = client.post("/api/v1/experiments", json=document())
    assert answer.status_code == 422
    assert "take a larger device" in answer.text
    settings.memory_gb = (finetuning_gb(2) + finetuning_gb(1)) / 2
    run_id = client.post("/api/v1/experiments", json=document(**LARGE_BATCH)).json()["run_id"]
    with database.reading() as session:
        assert session.get_one(RunRow, run_id).accumulation_steps == 2
        assert session.query(RunRow).count() == 1
