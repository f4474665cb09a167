"""Templates of the pages, with their filters and functions."""

from pathlib import Path

from fastapi.templating import Jinja2Templates

from grafting_core.specs.backbone import backbone_cards
from service.formatting import duration, engineering, percent
from service.web.pictures import design_map

HERE = Path(__file__).parent
templates = Jinja2Templates(HERE / "templates")
templates.env.filters |= {"engineering": engineering, "percent": percent, "duration": duration}
templates.env.globals["map_of"] = lambda spec: design_map(
    spec, backbone_cards()[spec.design.backbone.name].depth
)
