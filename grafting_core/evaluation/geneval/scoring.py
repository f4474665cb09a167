"""Score a folder of images; verdicts are kept as they are made, so that an interrupted run goes on."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from grafting_core.data.npz import BadFile
from grafting_core.data.progress import Progress, no_progress
from grafting_core.evaluation.geneval.judge import PromptJudge, Verdict, check_prompts
from grafting_core.evaluation.geneval.pictures import read_picture
from grafting_core.evaluation.geneval.prompt_file import PromptSet
from grafting_core.evaluation.geneval.results import ResultRow
from grafting_core.evaluation.geneval.sample_folder import Sample, SampleFolder
from grafting_core.evaluation.geneval.scores import Outcome, overall_of, right_prompts, task_scores
from grafting_core.specs.features import digest_of_path
from grafting_core.specs.geneval import TASKS, GenEvalScores

TRANSPARENT = "pictures have transparent pixels; alpha was dropped and the colours kept"


@dataclass(frozen=True)
class ScoredImage:
    """An image with its verdict and whether it has transparent pixels."""

    sample: Sample
    verdict: Verdict
    transparent: bool


@dataclass(frozen=True)
class VerdictKey:
    """Everything that determines a verdict: the judge, the prompt and the image's bytes."""

    judge: str
    prompt: str
    image: str


class VerdictFile:
    """Verdicts by their key, one JSON line each, appended as they are made.

    A last line that was cut off by an interruption is ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._verdicts = dict(self._read())

    def get(self, key: VerdictKey) -> tuple[Verdict, bool] | None:
        """Verdict, and whether the image is transparent; None if there is none yet."""
        return self._verdicts.get(key)

    def add(self, rows: Mapping[VerdictKey, tuple[Verdict, bool]]) -> None:
        """Append verdicts. Raises OSError if the file cannot be written."""
        self._verdicts.update(rows)
        with self._path.open("a", encoding="utf-8") as file:
            for key, (verdict, transparent) in rows.items():
                line = {**asdict(key), **asdict(verdict), "transparent": transparent}
                # A line feed before the line: what an interruption left of the last one ends there.
                file.write("\n" + json.dumps(line))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> Iterator[tuple[VerdictKey, tuple[Verdict, bool]]]:
        if not self._path.is_file():
            return
        for line in self._path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
                key = VerdictKey(row["judge"], row["prompt"], row["image"])
                yield key, (Verdict(row["value"], row["reason"], row["details"]), row["transparent"])
            except (ValueError, KeyError, TypeError):
                continue


def score_images(
    folder: SampleFolder,
    prompts: PromptSet,
    judge: PromptJudge,
    verdicts: VerdictFile,
    micro_batch: int = 4,
    progress: Progress = no_progress,
) -> list[ScoredImage]:
    """Verdict on every image, in order; those that the file has are not made again.

    Raises ValueError, before the first image, for prompts that the judge refuses; BadFile for an image that
    cannot be read.
    """
    check_prompts(judge, prompts.prompts)
    scored = list[ScoredImage]()
    for start in range(0, len(folder.samples), micro_batch):
        batch = folder.samples[start : start + micro_batch]
        scored += _scored(batch, prompts, judge, verdicts)
        progress(len(scored), len(folder.samples), "images")
    return scored


def _scored(
    batch: Sequence[Sample], prompts: PromptSet, judge: PromptJudge, verdicts: VerdictFile
) -> list[ScoredImage]:
    keys = [VerdictKey(judge.digest, prompts.metadata[one.prompt], digest_of_path(one.file)) for one in batch]
    new = [(key, one) for key, one in zip(keys, batch, strict=True) if verdicts.get(key) is None]
    if new:
        pictures = [read_picture(one.file) for _, one in new]
        made = judge.verdicts(pictures, [prompts.prompts[one.prompt] for _, one in new])
        pairs = zip(new, made, pictures, strict=True)
        verdicts.add({key: (verdict, picture.transparent) for (key, _), verdict, picture in pairs})
    found = (verdicts.get(key) for key in keys)
    return [ScoredImage(one, *entry) for one, entry in zip(batch, found, strict=True) if entry]


def result_rows(scored: Sequence[ScoredImage], prompts: PromptSet) -> list[ResultRow]:
    """Rows of the results file."""
    return [
        ResultRow(
            filename=str(one.sample.file),
            tag=prompts.prompts[one.sample.prompt].tag,
            prompt=prompts.prompts[one.sample.prompt].prompt,
            correct=one.verdict.correct,
            reason=one.verdict.reason,
            metadata=prompts.metadata[one.sample.prompt],
            details=one.verdict.details,
        )
        for one in scored
    ]


def outcomes_of(scored: Sequence[ScoredImage], prompts: PromptSet) -> list[Outcome]:
    """Values of the images by task and prompt."""
    return [
        Outcome(
            prompts.prompts[one.sample.prompt].tag, one.sample.prompt, one.sample.number, one.verdict.value
        )
        for one in scored
    ]


def scores_of(
    folder: SampleFolder, scored: Sequence[ScoredImage], prompts: PromptSet, judge: PromptJudge
) -> GenEvalScores:
    """Scores with intervals; no overall score for a set that lacks images or whole tasks."""
    if not scored:
        raise BadFile("there are no images to score")
    outcomes = outcomes_of(scored, prompts)
    tasks = task_scores(outcomes)
    absent = [task for task in TASKS if task not in tasks]
    complete = not absent and not folder.missing
    overall, interval = overall_of(tasks) if complete else (None, None)
    return GenEvalScores(
        fingerprint=judge.fingerprint,
        prompts_sha256=prompts.sha256,
        complete=complete,
        overall=overall,
        interval=interval,
        tasks=tasks,
        right_prompts=right_prompts(outcomes),
        notes=(*_incomplete(absent, folder), *folder.notes, *_transparent(scored)),
    )


def _incomplete(absent: Sequence[str], folder: SampleFolder) -> Iterator[str]:
    if folder.missing:
        yield f"incomplete: {len(folder.missing)} prompts lack images, so there is no overall score"
    if absent:
        yield f"incomplete: no images of {', '.join(absent)}, so there is no overall score"


def _transparent(scored: Sequence[ScoredImage]) -> Iterator[str]:
    count = sum(one.transparent for one in scored)
    if count:
        yield f"{count} of {len(scored)} {TRANSPARENT}"
