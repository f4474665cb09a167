"""A backbone is measured once, and its profile is published whole."""

import io
from pathlib import Path

from PIL import Image

from grafting_core.backbones.base import Backbone
from grafting_core.specs.documents.analyses import parse_analysis
from grafting_core.specs.profile import BackboneProfile
from tests.support.stages import context, events_of
from workers.contract import StageDone
from workers.group import PIPELINES

ASKED = parse_analysis(
    {"backbone": "testbed/dit-fashion", "bands": [2, 6, 48], "samples": 4, "sampling_steps": 2}
)


def test_an_analysis_publishes_profile_and_picture_and_is_not_repeated(
    tmp_path: Path, backbone: Backbone
) -> None:
    for run in ("r1", "r2"):
        PIPELINES["analysis"](context(tmp_path, backbone, ASKED, run))
    first, second = (
        event.body.report
        for run in ("r1", "r2")
        for event in events_of(tmp_path, run)
        if isinstance(event.body, StageDone)
    )
    assert (first.stop_cause, second.stop_cause) == ("completed", "reused")
    assert first.metrics == second.metrics
    assert first.spend.flops > 0
    profile = BackboneProfile.model_validate_json((tmp_path / first.artifacts["profile.json"]).read_bytes())
    assert [row.band for row in profile.locality] == [2, 6, 48]
    assert {row.site for row in profile.statistics} == set(backbone.card.sites)
    picture = Image.open(io.BytesIO((tmp_path / first.artifacts["profile.png"]).read_bytes()))
    assert picture.width > 500
