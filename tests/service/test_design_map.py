"""The map of a design on a run's page: what every site holds, and which of them the design edits."""

from grafting_core.specs.edits import ReplaceOperator
from grafting_core.specs.site import GraftSite
from service.web.pictures import Cell, design_map
from tests.support.builders import experiment, replacement


def test_sites_hold_what_the_design_puts_there_else_what_the_backbone_had() -> None:
    spec = experiment(kind="hyena_x", layers=[1])
    before: list[ReplaceOperator] = [
        replacement("mamba2", 0),
        replacement("mha", 1),
        replacement("conv_mlp", 2),
    ]
    attention, mlp = design_map(spec, 3, before)
    assert attention == [
        Cell(0, "attention", "mamba2", grafted=False),
        Cell(1, "attention", "hyena_x", grafted=True),
        Cell(2, "attention", "mha", grafted=False),
    ]
    assert [cell.kind for cell in mlp] == ["mlp", "mlp", "conv_mlp"]
    assert [cell.grafted for row in design_map(spec, 3) for cell in row] == [False, True, *[False] * 4]
    assert spec.design.edits[0].site == GraftSite(block=1, slot="attention")
