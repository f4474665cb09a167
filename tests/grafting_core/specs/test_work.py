"""Everything the cluster carries out is told apart by its kind."""

import json

import pytest

from grafting_core.specs.documents.analyses import parse_analysis
from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.jobs import WORK, as_graft, protocol_of
from tests.support.builders import experiment

ANALYSIS = parse_analysis({"backbone": "testbed/dit-fashion"})


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


def test_an_analysis_asks_for_the_papers_setting_by_default() -> None:
    assert (ANALYSIS.bands, ANALYSIS.samples, ANALYSIS.sampling_steps) == ((6,), 250, 50)
    assert parse_analysis({"backbone": "dit-xl-2-256"}).bands == (32,)
    assert parse_analysis({"backbone": "dit-xl-2-256", "bands": [8, 2]}).bands == (2, 8)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"backbone": "dit"}, "/backbone"),
        ({"bands": [-1]}, "/bands/0"),
        ({"bands": []}, "/bands"),
        ({"bands": [3, 3]}, "/bands"),
        ({"samples": 0}, "/samples"),
        ({"sampling_steps": 1001}, "/sampling_steps"),
        ({"band": 3}, "/band"),
        ({"seed": 2**32}, "/seed"),
    ],
)
def test_a_bad_analysis_is_refused_with_its_place(changes: dict[str, object], pointer: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_analysis({"backbone": "testbed/dit-fashion", **changes})
    assert caught.value.problems[0].pointer == pointer
