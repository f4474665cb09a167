"""Hidden names are replaced where they name a row of their table, in copies for readers and nowhere else."""

import pytest

from grafting_core.specs.backbone import BackboneRef, card_named
from grafting_core.specs.canonical import digest
from grafting_core.specs.datasets import DatasetRef
from grafting_core.specs.experiment import fingerprint_of
from grafting_core.specs.jobs import WORK
from grafting_core.specs.private_names import (
    ANOTHERS,
    as_shown,
    hidden,
    hiding,
    names_hidden,
    shown_metric,
    shown_name,
)
from grafting_core.specs.results import EvaluationReport
from tests.support.builders import experiment

NAMES = frozenset({("backbone", "ann"), ("data set", "SUCCEEDED"), ("feature network", "bob/net")})
SPEC = experiment()
PRIVATE = SPEC.model_copy(
    update={
        "name": "ann",
        "design": SPEC.design.model_copy(update={"backbone": BackboneRef(name="ann", digest="d")}),
        "evaluate": SPEC.evaluate.model_copy(
            update={"feature_network": "bob/net", "dataset": DatasetRef(name="SUCCEEDED", digest="0" * 64)}
        ),
    }
)


def test_names_are_replaced_where_they_name_a_row_of_their_table() -> None:
    with hiding(NAMES):
        shown = as_shown(PRIVATE)
        assert names_hidden(PRIVATE)
        assert not names_hidden(SPEC)
    assert (shown.backbone, shown.evaluate.feature_network) == (
        BackboneRef(name=ANOTHERS, digest="d"),
        ANOTHERS,
    )
    assert shown.evaluate.dataset == DatasetRef(name=ANOTHERS, digest="0" * 64)
    assert (shown.name, shown.distill, shown.finetune) == ("ann", PRIVATE.distill, PRIVATE.finetune)


def test_a_name_that_is_hidden_in_one_table_is_shown_in_the_others() -> None:
    with hiding(NAMES):
        assert shown_name("backbone", "ann") == ANOTHERS
        assert shown_name("data set", "ann") == "ann"
        assert not names_hidden(DatasetRef(name="ann", digest="0" * 64))
    assert shown_name("backbone", "ann") == "ann"


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("fid1k/bob/net", f"fid1k/{ANOTHERS}"),
        ("fid1k/bob/net/adm", f"fid1k/{ANOTHERS}/adm"),
        ("fid1k/inception/adm", "fid1k/inception/adm"),
        ("fid1k/bob", "fid1k/bob"),
        ("loss", "loss"),
        ("loss/block 1 attention", "loss/block 1 attention"),
    ],
)
def test_networks_are_replaced_in_the_names_of_metrics(metric: str, shown: str) -> None:
    with hiding(NAMES):
        assert shown_metric(metric) == shown


def test_metrics_are_replaced_as_keys_too() -> None:
    report = EvaluationReport(
        fingerprint=fingerprint_of(PRIVATE),
        values={"fid40/bob/net": 1.0, "fid40/inception": 2.0},
        intervals={"fid40/bob/net": (0.5, 1.5)},
        samples_digest="s",
    )
    with hiding(NAMES):
        shown = as_shown(report)
    assert shown.values == {f"fid40/{ANOTHERS}": 1.0, "fid40/inception": 2.0}
    assert shown.intervals == {f"fid40/{ANOTHERS}": (0.5, 1.5)}


def test_what_is_stored_hashed_and_sent_keeps_the_names_whoever_asks() -> None:
    stored, named = PRIVATE.model_dump_json(), (PRIVATE.digest, digest(PRIVATE))
    with hiding(NAMES):
        assert PRIVATE.model_dump_json() == stored
        assert (PRIVATE.digest, digest(PRIVATE)) == named
        assert WORK.validate_json(stored) == PRIVATE
    assert "bob/net" in stored


def test_hiding_ends_with_its_block() -> None:
    with hiding(NAMES):
        with hiding(frozenset()):
            assert hidden() == frozenset()
        assert hidden() == NAMES
    assert hidden() == frozenset()


def test_the_schema_of_a_field_is_the_same_for_requests_and_answers() -> None:
    card = card_named("testbed/dit-fashion")
    assert card is not None
    for model in (type(card), EvaluationReport, type(SPEC)):
        assert model.model_json_schema(mode="serialization")["properties"].keys() == (
            model.model_json_schema(mode="validation")["properties"].keys()
        )
    name = DatasetRef.model_json_schema(mode="serialization")["properties"]["name"]
    assert name == {"maxLength": 200, "title": "Name", "type": "string"}
