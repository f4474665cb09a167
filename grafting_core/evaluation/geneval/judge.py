"""Judges of images against prompts: the protocol of plug-ins, and the judge by detections and rules."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from grafting_core.evaluation.geneval.detections import Detection, kept_detections
from grafting_core.evaluation.geneval.pictures import Picture
from grafting_core.evaluation.geneval.rules import verdict_of
from grafting_core.specs.canonical import digest
from grafting_core.specs.geneval import OFFICIAL_RULES, GenEvalRules, JudgeFingerprint, PromptSpec
from grafting_core.specs.prompt_judges import PROMPT_JUDGES, judge_sources


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on an image."""

    value: float
    """1 if the image shows what was requested, 0 if not; other judges may give shares."""
    reason: str = ""
    """What is missing, in words."""
    details: str = "{}"
    """JSON of what the verdict is based on, such as class -> boxes with scores."""

    @property
    def correct(self) -> bool:
        return self.value == 1


class PromptJudge(Protocol):
    """A frozen evaluator of images against prompts.

    `digest` is that of the fingerprint: scores with different ones are never compared.
    """

    name: str
    digest: str
    fingerprint: JudgeFingerprint

    def refusal(self, prompt: PromptSpec) -> str | None:
        """Why images of this prompt cannot be judged, such as an unknown class; None if they can."""

    def verdicts(self, pictures: Sequence[Picture], prompts: Sequence[PromptSpec]) -> list[Verdict]:
        """Verdict on each image against the prompt at the same place."""


class ObjectDetector(Protocol):
    """Detector of objects of known classes, in the order of its outputs."""

    classes: tuple[str, ...]

    def detect(self, pictures: Sequence[Picture]) -> list[list[Detection]]:
        """All detections of each image, of whatever score."""


class ColorClassifier(Protocol):
    """Classifier of the colours of objects."""

    def classify(self, picture: Picture, name: str, objects: Sequence[Detection]) -> list[str]:
        """Colour of each object of a class."""


class DetectedColors:
    """Colours by the detector itself."""

    def classify(self, picture: Picture, name: str, objects: Sequence[Detection]) -> list[str]:
        return [each.color or "" for each in objects]


class DetectionJudge:
    """GenEval's judge with any detector and colour classifier."""

    def __init__(
        self,
        name: str,
        detector: ObjectDetector,
        colors: ColorClassifier,
        weights: Mapping[str, str],
        rules: GenEvalRules = OFFICIAL_RULES,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.rules = name, rules
        self._detector, self._colors = detector, colors
        self.fingerprint = JudgeFingerprint(
            evaluator=name, weights=dict(weights), rules=rules, options=dict(options or {})
        )
        self.digest = digest(self.fingerprint)

    def refusal(self, prompt: PromptSpec) -> str | None:
        unknown = [name for name in prompt.classes if name not in self._detector.classes]
        if not unknown:
            return None
        return f"{self.name} does not know the class {unknown[0]!r} of {prompt.prompt!r}"

    def verdicts(self, pictures: Sequence[Picture], prompts: Sequence[PromptSpec]) -> list[Verdict]:
        found = self._detector.detect(pictures)
        triples = zip(pictures, prompts, found, strict=True)
        return [self._verdict(*triple) for triple in triples]

    def _verdict(self, picture: Picture, prompt: PromptSpec, detections: Sequence[Detection]) -> Verdict:
        counting = prompt.tag == "counting"
        kept = kept_detections(detections, self._detector.classes, counting, self.rules)

        def colors(name: str, objects: Sequence[Detection]) -> Sequence[str]:
            return self._colors.classify(picture, name, objects)

        correct, reason = verdict_of(prompt, kept, colors, self.rules)
        boxes = {name: [each.row() for each in objects] for name, objects in kept.items()}
        return Verdict(float(correct), reason, json.dumps(boxes))


def load_judge(name: str, device: torch.device | str = "cpu") -> PromptJudge:
    """Load a judge with the weights that the administrator names.

    Raises ValueError: unknown name, a missing library, weights that are missing or do not match, or a failed
    self-test.
    """
    kind, sources = PROMPT_JUDGES.find(name), judge_sources(name)
    try:
        load = kind.loader
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs {error.name}; pip install 'graftlab[geneval]' installs it") from error
    judge: PromptJudge = load(name, sources, device)
    return judge


def check_prompts(judge: PromptJudge, prompts: Sequence[PromptSpec], named: int = 10) -> None:
    """Raise ValueError with the prompts, by index, that the judge refuses."""
    refusals = ((index, judge.refusal(prompt)) for index, prompt in enumerate(prompts))
    wrong = [f"prompt {index}: {reason}" for index, reason in refusals if reason]
    if wrong:
        more = f"; and {len(wrong) - named} more" if len(wrong) > named else ""
        raise ValueError(f"{len(wrong)} of {len(prompts)} prompts: {'; '.join(wrong[:named])}{more}")
