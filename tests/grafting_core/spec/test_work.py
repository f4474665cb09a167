"""Everything the cluster carries out is told apart by its kind."""

import json

import pytest

from grafting_core.spec.analysis import AnalysisSpec
from grafting_core.spec.backbone import backbone_cards
from grafting_core.spec.work import WORK, as_graft, protocol_of
from tests.builders import experiment

ANALYSIS = AnalysisSpec(name="look", backbone=backbone_cards()["testbed/dit-fashion"].ref, bands=(6,))


@pytest.mark.parametrize("work", [experiment(), ANALYSIS])
def test_work_of_every_kind_survives_json(work: object) -> None:
    text = json.dumps(WORK.dump_python(work, mode="json"))  # type: ignore[arg-type]  # one of the kinds
    assert WORK.validate_json(text) == work


def test_only_a_graft_is_a_graft_and_has_a_protocol() -> None:
    assert as_graft(experiment()) == experiment()
    assert protocol_of(experiment())
    assert protocol_of(ANALYSIS) == ""
    with pytest.raises(ValueError, match="analysis work, not a graft"):
        as_graft(ANALYSIS)


def test_the_digest_of_an_analysis_names_what_is_measured_and_nothing_else() -> None:
    assert ANALYSIS.digest == ANALYSIS.model_copy(update={"name": "other"}).digest
    assert ANALYSIS.digest != ANALYSIS.model_copy(update={"bands": (7,)}).digest
