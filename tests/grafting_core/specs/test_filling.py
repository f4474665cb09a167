"""A fill is sites times operators, under the rules of designs, with the keys that designs will ask for."""

from pathlib import Path
from typing import Any

import pytest

from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.documents.fills import parse_fill
from grafting_core.specs.documents.parsing import read_document
from grafting_core.specs.experiment import scion_keys
from tests.support.builders import OFFER, experiment, fill_document


def test_every_operator_at_every_site_once() -> None:
    spec = parse_fill(fill_document(OFFER, OFFER))
    assert [scion.label for scion in spec.scions] == [
        "block 1 attention hyena_x",
        "block 3 attention hyena_x",
        "block 1 attention window_attention",
        "block 3 attention window_attention",
    ]


def test_the_example_is_sixteen_scions() -> None:
    text = (Path(__file__).parents[3] / "examples" / "fill-attention.yaml").read_text()
    assert len(parse_fill(read_document(text)).scions) == 16


def test_designs_find_what_was_filled() -> None:
    filled = {scion.key for scion in parse_fill(fill_document()).scions}
    assert set(scion_keys(experiment(kind="hyena_x", layers=[1, 3])).values()) < filled


def test_the_digest_names_the_set_whatever_the_order() -> None:
    turned = {**OFFER, "with": OFFER["with"][::-1]}
    assert parse_fill(fill_document()).digest == parse_fill(fill_document(turned, name="other")).digest
    assert parse_fill(fill_document()).digest != parse_fill(fill_document({**OFFER, "layers": [1]})).digest


@pytest.mark.parametrize(
    ("offer", "pointer"),
    [
        ({"layers": [9]}, "/offers/1/layers"),
        ({"with": [{"kind": "hyena_x"}, {"kind": "mlp"}]}, "/offers/1/with/1/kind"),
        ({"with": [{"kind": "window_attention", "radius": 0.5}]}, "/offers/1/with/0/radius"),
        ({"with": [{"kind": "hyenax"}]}, "/offers/1/with/0/kind"),
        ({"with": []}, "/offers/1/with"),
    ],
)
def test_problems_point_into_the_users_document(offer: dict[str, Any], pointer: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_fill(fill_document(OFFER, {**OFFER, **offer}))
    assert [problem.pointer for problem in caught.value.problems] == [pointer]


def test_a_fill_offers_something() -> None:
    with pytest.raises(SpecError):
        parse_fill({"backbone": "testbed/dit-fashion", "offers": []})
    with pytest.raises(SpecError, match="unknown backbone"):
        parse_fill(fill_document(backbone="testbed/dit-fashio"))
