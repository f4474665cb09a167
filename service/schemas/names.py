"""Types of fields whose content depends on which registered things the reader may know of.

A response that is made for a reader has the names of others' private things replaced from the start, wherever
it is shown. Clients hide nothing, so they parse what the service sent.
"""

from functools import partial
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel

from grafting_core.specs.private_names import as_shown, shown_metric, shown_name

S = TypeVar("S", bound=BaseModel)

BackboneName = Annotated[str, AfterValidator(partial(shown_name, "backbone"))]
MetricName = Annotated[str, AfterValidator(shown_metric)]
Metrics = dict[MetricName, float]
Intervals = dict[MetricName, tuple[float, float]]
Shown = Annotated[S, AfterValidator(as_shown)]
"""A stored document inside a response."""
