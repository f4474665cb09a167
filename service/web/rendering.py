"""Templates of the pages, with their filters and functions."""

from pathlib import Path

from fastapi.templating import Jinja2Templates

from grafting_core.specs.backbone import cards_with_digest
from grafting_core.specs.experiment import ExperimentSpec
from service.formatting import duration, engineering, percent
from service.web.pictures import Cell, design_map

HERE = Path(__file__).parent
templates = Jinja2Templates(HERE / "templates")
templates.env.filters |= {"engineering": engineering, "percent": percent, "duration": duration}


def _map_of(spec: ExperimentSpec) -> list[list[Cell]]:
    """By the digest: the name may be one that the reader does not see."""
    cards = cards_with_digest(spec.design.backbone.digest)
    blocks = [edit.site.block + 1 for edit in spec.design.edits]
    if not cards:
        return design_map(spec, max(blocks, default=0))
    return design_map(spec, cards[0].depth, cards[0].edits)


templates.env.globals["map_of"] = _map_of
