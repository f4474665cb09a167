"""Score a folder of images: `python -m grafting_core.evaluation.geneval.cli REQUEST`.

REQUEST is the JSON of a `GenEvalRequest`; prints one JSON document. Exit code 2 and `{"refused": ...}`: bad
input.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from grafting_core.evaluation.geneval.judge import PromptJudge, check_prompts, load_judge
from grafting_core.evaluation.geneval.prompt_file import PromptSet, read_prompts
from grafting_core.evaluation.geneval.results import summary_of, write_results
from grafting_core.evaluation.geneval.sample_folder import SampleFolder, read_sample_folder
from grafting_core.evaluation.geneval.scores import compare
from grafting_core.evaluation.geneval.scoring import (
    ScoredImage,
    VerdictFile,
    outcomes_of,
    result_rows,
    score_images,
    scores_of,
)
from grafting_core.specs.geneval import GenEvalRequest, GenEvalView

REPORT_SECONDS = 2.0
"""Least time between two lines of progress."""


class ProgressLines:
    """Progress on standard error: how many images are scored, and how long the others will take."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._start = self._last = clock()

    def __call__(self, done: int, total: int, kind: str) -> None:
        now = self._clock()
        if done < total and now - self._last < REPORT_SECONDS:
            return
        self._last = now
        left = (now - self._start) / done * (total - done)
        remaining = f", about {_duration(left)} left" if done < total else ""
        print(f"scored {done} of {total} {kind} of {self._what}{remaining}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"


def answer(request: GenEvalRequest) -> GenEvalView:
    """Score the folder, and compare it with the baseline if there is one.

    Everything that can be checked is checked before the judge is loaded. Raises ValueError for bad input.
    """
    prompts = read_prompts(Path(request.prompts))
    folder = _folder(request, request.images, prompts)
    baseline = _folder(request, request.baseline, prompts) if request.baseline else None
    output = Path(request.output) if request.output else Path(request.images) / "results.jsonl"
    verdicts = VerdictFile(output.with_name(f"{output.name}.verdicts"))
    judge = load_judge(request.judge, "cuda" if torch.cuda.is_available() else "cpu")
    check_prompts(judge, prompts.prompts)

    def scored(images: SampleFolder, name: str) -> list[ScoredImage]:
        progress = ProgressLines(name)
        return score_images(images, prompts, judge, verdicts, request.micro_batch, progress)

    own = scored(folder, request.images)
    write_results(output, result_rows(own, prompts))
    other = scored(baseline, str(request.baseline)) if baseline else None
    view = _view(folder, own, prompts, judge, output)
    return (
        view if baseline is None or other is None else _compared(view, own, baseline, other, prompts, judge)
    )


def _folder(request: GenEvalRequest, folder: str, prompts: PromptSet) -> SampleFolder:
    return read_sample_folder(Path(folder), prompts, request.images_per_prompt, request.partial)


def _view(
    folder: SampleFolder, scored: list[ScoredImage], prompts: PromptSet, judge: PromptJudge, output: Path
) -> GenEvalView:
    scores = scores_of(folder, scored, prompts, judge)
    summary = summary_of(result_rows(scored, prompts), scores.complete)
    return GenEvalView(scores=scores, summary=summary, results=str(output))


def _compared(
    view: GenEvalView,
    own: list[ScoredImage],
    folder: SampleFolder,
    other: list[ScoredImage],
    prompts: PromptSet,
    judge: PromptJudge,
) -> GenEvalView:
    baseline = scores_of(folder, other, prompts, judge)
    complete = view.scores.complete and baseline.complete
    comparison = compare(outcomes_of(own, prompts), outcomes_of(other, prompts), complete)
    return view.model_copy(update={"baseline": baseline, "comparison": comparison})


def main() -> int:
    """Print the answer, or the reason for refusal, as one JSON document; returns the exit code."""
    request = GenEvalRequest.model_validate_json(sys.argv[1])
    try:
        view = answer(request)
    except (ValueError, OSError) as error:
        print(json.dumps({"refused": " ".join(str(error).split())}))
        return 2
    print(view.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
