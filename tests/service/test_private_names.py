"""Names of private things are replaced where they stand for them, and nowhere else."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from grafting_core.specs.plugins import hide
from service.domain.visibility import ANOTHERS, without_private_names


class Anything(BaseModel):
    """A view of any fields."""

    fields: dict[str, Any]


@pytest.fixture(autouse=True)
def _hidden() -> Iterator[None]:
    hide(frozenset({("data set", "SUCCEEDED"), ("backbone", "ann"), ("feature network", "bob/net")}))
    yield
    hide(frozenset())


def shown(**fields: Any) -> dict[str, Any]:
    return without_private_names(Anything(fields=fields)).fields


def test_a_private_name_that_is_a_word_of_ours_changes_no_other_field() -> None:
    fields = {"state": "SUCCEEDED", "owner": "ann", "name": "ann", "runs": [{"state": "SUCCEEDED"}]}
    assert shown(**fields) == fields


def test_private_names_are_replaced_in_the_fields_that_name_things() -> None:
    fields = {"backbone": "ann", "plan": {"dataset": {"name": "SUCCEEDED", "digest": "d"}}}
    assert shown(**fields) == {"backbone": ANOTHERS, "plan": {"dataset": {"name": ANOTHERS, "digest": "d"}}}


def test_private_networks_are_replaced_in_the_names_of_metrics() -> None:
    fields = {"metrics": {"fid1k/bob/net": 1.0, "fid1k/inception": 2.0}, "metric": "fid1k/bob/net/adm"}
    assert shown(**fields) == {
        "metrics": {f"fid1k/{ANOTHERS}": 1.0, "fid1k/inception": 2.0},
        "metric": f"fid1k/{ANOTHERS}/adm",
    }
