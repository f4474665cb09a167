"""What enters a key: everything that determines the bytes, nothing that an environment changes afterwards."""

import json
from pathlib import Path
from typing import ClassVar

import pytest

from grafting_core.specs.base import Frozen
from grafting_core.specs.canonical import digest
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.experiment import ExperimentSpec, evaluation_key, finetune_key, scion_keys
from grafting_core.specs.features import SETTING
from grafting_core.specs.plans import EvaluationProtocol, FinetunePlan
from tests.support.builders import document, experiment


class Before(Frozen):
    steps: int = 5


class After(Before):
    added: ClassVar[frozenset[str]] = frozenset({"precision"})
    precision: str = "float32"


class Around(Frozen):
    plan: Before


def test_a_field_that_was_added_enters_no_digest_while_it_has_its_default() -> None:
    assert digest(After()) == digest(Before())
    assert digest(Around(plan=After())) == digest(Around(plan=Before()))
    assert digest(After(precision="bfloat16")) != digest(Before())


def test_the_precision_of_every_stage_is_in_its_key() -> None:
    plain = experiment()
    half = {stage: experiment(**{stage: {"precision": "bfloat16"}}) for stage in ("finetune", "evaluate")}
    assert finetune_key(half["finetune"]) != finetune_key(plain)
    assert scion_keys(half["finetune"]) == scion_keys(plain)
    assert finetune_key(half["evaluate"]) == finetune_key(plain)
    assert evaluation_key(half["evaluate"]) != evaluation_key(plain)
    assert FinetunePlan().precision == EvaluationProtocol().precision == "float32"


def named(folder: Path, monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    """Weights of `inception` with this digest are at hand."""
    file = folder / "networks.json"
    file.write_text(json.dumps({"inception": {"path": str(folder / "w.pth"), "sha256": sha256}}))
    monkeypatch.setenv(SETTING, str(file))


JUDGED_ELSEWHERE = document(evaluate={"feature_network": "inception", "samples": 40})


def test_weights_exchanged_later_are_another_protocol_and_change_no_spec_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(tmp_path, monkeypatch, "ab" * 32)
    spec = parse_submission(JUDGED_ELSEWHERE)
    stored, first = spec.model_dump_json(), spec.digest
    named(tmp_path, monkeypatch, "cd" * 32)
    assert ExperimentSpec.model_validate_json(stored).digest == first
    assert ExperimentSpec.model_validate_json(stored).model_copy(update={"name": "another"}).digest == first
    assert parse_submission(JUDGED_ELSEWHERE).digest != first


def test_weights_that_are_asked_for_and_not_here_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(tmp_path, monkeypatch, "ab" * 32)
    asked = {"feature_network": "inception", "feature_digest": "cd" * 32}
    with pytest.raises(SpecError, match="the lab's inception has the digest ab"):
        parse_submission(document(evaluate=asked))
    with pytest.raises(SpecError, match="digest of the package"):
        parse_submission(document(evaluate={"feature_digest": "cd" * 32}))
