"""GenEval's prompts, rules and results as data (Ghosh et al. 2023, arXiv 2310.11513)."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from grafting_core.specs.base import Frozen
from grafting_core.specs.features import Sha256

Task = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
Relation = Literal["left of", "right of", "above", "below"]
Color = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
Interval = tuple[float, float]

TASKS: tuple[Task, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")
COLORS: tuple[Color, ...] = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "black", "white"),
)
COCO_CLASSES: tuple[str, ...] = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog"),
    *("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag"),
    *("tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat"),
    *("baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork"),
    *("knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog"),
    *("pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv"),
    *("laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven"),
    *("toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    "toothbrush",
)
"""Classes of the official detector in the order of its outputs; three have GenEval's own names."""


class _Objects(Frozen):
    """Objects of a class; `class` is a keyword, so the field has a trailing underscore."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    class_: Annotated[str, Field(alias="class", min_length=1)]
    count: Annotated[int, Field(ge=1)]


class Included(_Objects):
    """Objects that an image must contain, at least `count` of them."""

    color: Color | None = None
    """Colour of each of them."""
    position: tuple[Relation, Annotated[int, Field(ge=0)]] | None = None
    """Relation of each of them to the objects of an earlier entry, and that entry's index."""


class Excluded(_Objects):
    """Objects of which an image must contain fewer than `count`."""


class PromptSpec(Frozen):
    """A line of `evaluation_metadata.jsonl`: a caption and what an image of it must contain."""

    tag: Task
    include: Annotated[tuple[Included, ...], Field(min_length=1)]
    exclude: tuple[Excluded, ...] = ()
    prompt: str

    @model_validator(mode="after")
    def _check(self) -> "PromptSpec":
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")
        colors = dict[str, str]()
        for index, entry in enumerate(self.include):
            if entry.position is not None and entry.position[1] >= index:
                raise ValueError(
                    f"include[{index}] is placed relative to include[{entry.position[1]}]; "
                    "a position refers to an earlier entry"
                )
            # The same most confident boxes are evaluated for both entries, so no image would be right.
            if entry.color and colors.setdefault(entry.class_, entry.color) != entry.color:
                raise ValueError(
                    f"{entry.class_} is required in {colors[entry.class_]} and in {entry.color}; "
                    "the rules know one colour for a class"
                )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that is named, once."""
        return tuple(dict.fromkeys(entry.class_ for entry in (*self.include, *self.exclude)))

    def line(self) -> str:
        """JSON of the official prompt file: its order of fields, none that are not used."""
        fields = self.model_dump(mode="json", exclude_none=True, exclude={"exclude"})
        line = {"tag": self.tag, "include": fields["include"]}
        if self.exclude:
            line["exclude"] = [entry.model_dump(mode="json") for entry in self.exclude]
        return json.dumps({**line, "prompt": self.prompt})


class GenEvalRules(Frozen):
    """Constants of the rules; the defaults are the official tool's."""

    threshold: float = 0.3
    """Score that a detection must exceed, compared in float32."""
    counting_threshold: float = 0.9
    """The same for prompts of the task `counting`."""
    max_objects: Annotated[int, Field(ge=1)] = 16
    """Most detections of a class that are kept."""
    max_overlap: float = 1.0
    """Intersection over union from which the less confident of two boxes is dropped; 1.0 drops none."""
    position_threshold: float = 0.1
    """Share of both objects' sizes by which their offset is reduced before a relation is determined."""


OFFICIAL_RULES = GenEvalRules()


class JudgeFingerprint(Frozen):
    """Everything about a judge that determines its verdicts; scores of different ones are not compared."""

    evaluator: str
    """Name of the published evaluator, or another name if weights or semantics differ from it."""
    weights: Mapping[str, Sha256]
    """Part of the judge -> digest of its weights."""
    rules: GenEvalRules | None = None
    options: Mapping[str, str] = {}
    """Further settings that change verdicts, such as the precision."""


class TaskScore(Frozen):
    """Share of right images of a task."""

    score: float
    interval: Interval
    """95 % interval for other prompts of the same kind; images of one prompt are not independent."""
    images: int
    prompts: int


class GenEvalScores(Frozen):
    """Scores of one set of images."""

    fingerprint: JudgeFingerprint
    prompts_sha256: Sha256
    complete: bool
    """Whether every prompt has its number of images, and every task has prompts."""
    overall: float | None
    """Unweighted mean of the six tasks; None if the set is incomplete."""
    interval: Interval | None
    tasks: Mapping[str, TaskScore]
    right_prompts: float
    """Share of prompts with at least one right image."""
    notes: tuple[str, ...] = ()


class Difference(Frozen):
    """Score of a model minus that of a baseline on the same prompts and seeds."""

    difference: float
    interval: Interval
    """95 % interval by a bootstrap over prompts."""

    @property
    def verdict(self) -> Literal["higher", "lower", "cannot be told apart"]:
        """What the interval says of the model's score."""
        if self.interval[0] > 0:
            return "higher"
        return "lower" if self.interval[1] < 0 else "cannot be told apart"


class PairedComparison(Frozen):
    """Differences of two models over the same images by prompt and number."""

    overall: Difference | None
    """None if either set is incomplete."""
    tasks: Mapping[str, Difference]


class GenEvalRequest(Frozen):
    """Request to score a folder in the official layout."""

    images: str
    prompts: str
    judge: str
    images_per_prompt: Annotated[int, Field(ge=1)] = 4
    baseline: str | None = None
    """Folder of another model's images with the same prompts and seeds."""
    output: str | None = None
    """File of the results; None: `results.jsonl` in the folder of images."""
    partial: bool = False
    """Score a set that lacks images, and call it incomplete."""
    micro_batch: Annotated[int, Field(ge=1)] = 4


class GenEvalView(Frozen):
    """Answer to a request."""

    scores: GenEvalScores
    summary: str
    """Lines as the official tool prints them."""
    results: str
    """File with one line for each image."""
    baseline: GenEvalScores | None = None
    comparison: PairedComparison | None = None
