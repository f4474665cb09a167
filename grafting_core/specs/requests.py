"""Requests for evaluation without a lab: a model or samples of any project, against any reference."""

from typing import Annotated, Literal

from pydantic import Discriminator, TypeAdapter

from grafting_core.specs.base import Frozen
from grafting_core.specs.features import FeatureSource
from grafting_core.specs.plans import EvaluationProtocol


class EvaluateRequest(Frozen):
    """Evaluate `subject`: a diffusers folder, a published model, a backbone's name, or a set of images."""

    kind: Literal["evaluate"] = "evaluate"
    subject: str
    protocol: EvaluationProtocol
    is_preset: bool = False
    """Whether nobody chose the protocol's settings, so that the model's card decides some of them."""
    reference: str | None = None
    """File, folder of images or backbone name; None: the subject's own backbone."""
    source: FeatureSource | None = None


class ReferenceRequest(Frozen):
    """Make a reference of a set of images and write it to `output`."""

    kind: Literal["make"] = "make"
    images: str
    feature_network: str
    output: str
    source: FeatureSource | None = None


class ShowRequest(Frozen):
    """Describe the content of a reference file."""

    kind: Literal["show"] = "show"
    file: str


Request = Annotated[EvaluateRequest | ReferenceRequest | ShowRequest, Discriminator("kind")]
REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


class ReferenceView(Frozen):
    """Description of a reference.

    `digest` is the one in fingerprints; None if the file has no card and so does not name its network.
    """

    name: str
    feature_network: str | None
    digest: str | None
    statistics_of: int | None
    dims: int
    spatial_dims: int | None
    features_kept: int | None
    notes: tuple[str, ...] = ()
    """Warnings about the images that it was made of."""
