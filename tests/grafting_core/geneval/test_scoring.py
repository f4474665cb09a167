"""A folder is scored whole, an interrupted run goes on, and what cannot be scored is said before."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from grafting_core.data.npz import BadFile
from grafting_core.evaluation.geneval.cli import ProgressLines, answer
from grafting_core.evaluation.geneval.judge import DetectedColors, DetectionJudge
from grafting_core.evaluation.geneval.prompt_file import PromptSet, read_prompts
from grafting_core.evaluation.geneval.results import read_results, summary_of
from grafting_core.evaluation.geneval.sample_folder import read_sample_folder, sample_file
from grafting_core.evaluation.geneval.scoring import (
    ScoredImage,
    VerdictFile,
    result_rows,
    score_images,
    scores_of,
)
from grafting_core.specs.geneval import TASKS, GenEvalRequest
from grafting_core.specs.prompt_judges import PROMPT_JUDGES, SETTING
from tests.support.geneval_blobs import BLOBS, BlobDetector, blob_judge, blob_set

ROOT = Path(__file__).parents[3]
WRONG = ((0, 0), (0, 1), (5, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two prompts a task with four images; three images are wrong."""
    return blob_set(tmp_path, wrong=WRONG)


@pytest.fixture
def prompts(folder: Path) -> PromptSet:
    return read_prompts(folder.parent / "prompts.jsonl")


def counting_judge() -> tuple[DetectionJudge, BlobDetector]:
    detector = BlobDetector()
    return DetectionJudge("blobs", detector, DetectedColors(), {}), detector


def score(
    folder: Path, prompts: PromptSet, judge: DetectionJudge, partial: bool = False
) -> list[ScoredImage]:
    verdicts = VerdictFile(folder.parent / "verdicts")
    return score_images(read_sample_folder(folder, prompts, partial=partial), prompts, judge, verdicts)


def test_scores_rows_and_summary_of_a_folder(folder: Path, prompts: PromptSet) -> None:
    scored = score(folder, prompts, blob_judge())
    assert [(one.sample.prompt, one.sample.number) for one in scored if not one.verdict.correct] == [*WRONG]
    scores = scores_of(read_sample_folder(folder, prompts), scored, prompts, blob_judge())
    assert {task: (one.score, one.images, one.prompts) for task, one in scores.tasks.items()} == {
        task: ({"single_object": 0.75, "counting": 0.875}.get(task, 1.0), 8, 2) for task in TASKS
    }
    assert scores.overall == pytest.approx((0.75 + 0.875 + 4) / 6)
    assert (scores.complete, scores.right_prompts, scores.notes) == (True, 1, ())
    assert scores.prompts_sha256 == prompts.sha256
    rows = result_rows(scored, prompts)
    assert rows[0].filename == str(sample_file(folder, 0, 0))
    assert rows[0].reason == "expected dog>=1, found 0"
    assert "single_object    = 75.00% (6 / 8)" in summary_of(rows)
    assert "% correct images: 93.75%" in summary_of(rows)


def test_an_interrupted_run_goes_on_where_it_was(folder: Path, prompts: PromptSet) -> None:
    judge, detector = counting_judge()
    seen = list[int]()

    def stop(done: int, total: int, what: str) -> None:
        seen.append(done)
        if done == 20:
            raise KeyboardInterrupt

    listed, verdicts = read_sample_folder(folder, prompts), folder.parent / "verdicts"
    with pytest.raises(KeyboardInterrupt):
        score_images(listed, prompts, judge, VerdictFile(verdicts), 4, stop)
    assert (detector.images, seen[-1]) == (20, 20)
    text = verdicts.read_text()
    verdicts.write_text(text[:-30])  # the last line was being written
    whole = score_images(listed, prompts, judge, VerdictFile(verdicts), 4)
    assert detector.images == 20 + 28 + 1
    assert whole == score_images(listed, prompts, blob_judge(), VerdictFile(folder.parent / "new"), 7)
    score_images(listed, prompts, judge, VerdictFile(verdicts), 4)
    assert detector.images == 49


def test_changed_images_and_other_judges_are_judged_anew(folder: Path, prompts: PromptSet) -> None:
    judge, detector = counting_judge()
    score(folder, prompts, judge)
    detector.images = 0
    sample_file(folder, 0, 0).write_bytes(sample_file(folder, 0, 2).read_bytes())
    assert score(folder, prompts, judge)[0].verdict.correct is True
    assert detector.images == 0  # the same bytes were judged for the same prompt
    Image.new("RGB", (64, 64), "white").save(sample_file(folder, 0, 0))
    assert score(folder, prompts, judge)[0].verdict.correct is False
    assert detector.images == 1
    other = DetectionJudge("blobs", detector, DetectedColors(), {"detector": "0" * 64})
    score(folder, prompts, other)
    assert detector.images == 1 + 48


def test_transparent_images_are_scored_by_their_hidden_colours_and_noted(
    folder: Path, prompts: PromptSet
) -> None:
    file = sample_file(folder, 2, 0)
    with Image.open(file) as image:
        clear = image.convert("RGBA")
    clear.putalpha(0)
    clear.save(file)
    scored = score(folder, prompts, blob_judge())
    scores = scores_of(read_sample_folder(folder, prompts), scored, prompts, blob_judge())
    assert scores.tasks["two_object"].score == 1
    assert scores.notes == (
        "1 of 48 pictures have transparent pixels; alpha was dropped and the colours kept",
    )
    assert score(folder, prompts, blob_judge()) == scored  # the note is kept with the verdict


def test_an_incomplete_set_has_tasks_but_no_overall_score(folder: Path, prompts: PromptSet) -> None:
    sample_file(folder, 3, 1).unlink()
    listed = read_sample_folder(folder, prompts, partial=True)
    scored = score(folder, prompts, blob_judge(), partial=True)
    scores = scores_of(listed, scored, prompts, blob_judge())
    assert (scores.complete, scores.overall, scores.interval) == (False, None, None)
    assert scores.tasks["two_object"].images == 7
    assert scores.notes == ("incomplete: 1 prompts lack images, so there is no overall score",)


def test_a_prompt_file_without_a_task_has_no_overall_score(tmp_path: Path) -> None:
    folder = blob_set(tmp_path, prompts=1)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()[:5]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "00005").rename(tmp_path / "away")
    prompts = read_prompts(tmp_path / "prompts.jsonl")
    scored = score(folder, prompts, blob_judge())
    scores = scores_of(read_sample_folder(folder, prompts), scored, prompts, blob_judge())
    assert scores.overall is None
    assert scores.notes == ("incomplete: no images of color_attr, so there is no overall score",)


def test_a_file_that_is_no_image_is_named(folder: Path, prompts: PromptSet) -> None:
    sample_file(folder, 1, 1).write_bytes(b"nothing")
    with pytest.raises(BadFile, match=r"00001/samples/0001\.png is not a PNG image"):
        score(folder, prompts, blob_judge())


def test_progress_says_how_long_the_rest_takes(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.0, 10.0, 11.0, 40.0])
    progress = ProgressLines("images", lambda: next(times))
    for done in (1, 10, 11, 100):
        progress(done, 100, "images")
    assert capsys.readouterr().err.splitlines() == [
        "scored 10 of 100 images of images, about 2 min left",
        "scored 100 of 100 images of images",
    ]


@pytest.fixture
def blobs() -> Iterator[None]:
    """The judge of blobs in this process."""
    PROMPT_JUDGES.register({"blobs": BLOBS})
    yield
    PROMPT_JUDGES.register({})


def request(folder: Path, **options: Any) -> GenEvalRequest:
    prompts = str(folder.parent / "prompts.jsonl")
    return GenEvalRequest(images=str(folder), prompts=prompts, judge="blobs", **options)


@pytest.mark.usefixtures("blobs")
def test_a_baseline_is_scored_too_and_compared_image_by_image(folder: Path, tmp_path: Path) -> None:
    baseline, output = blob_set(tmp_path, "teacher"), tmp_path / "out.jsonl"
    view = answer(request(folder, baseline=str(baseline), output=str(output)))
    assert view.baseline is not None
    assert view.comparison is not None
    assert view.comparison.overall is not None
    assert view.baseline.overall == 1
    assert view.comparison.overall.difference == pytest.approx(0.9375 - 1)
    colors = view.comparison.tasks["colors"]
    assert (colors.difference, colors.verdict) == (0, "cannot be told apart")
    assert (view.results, len(read_results(output))) == (str(output), 48)
    assert not (folder / "results.jsonl").exists()


@pytest.mark.usefixtures("blobs")
def test_a_partial_set_is_refused_unless_it_is_requested_and_called_incomplete(folder: Path) -> None:
    sample_file(folder, 0, 3).unlink()
    with pytest.raises(BadFile, match="prompt 0 has 3 of 4 images"):
        answer(request(folder))
    assert not (folder / "results.jsonl").exists()
    view, again = (answer(request(folder, partial=True)) for _ in range(2))
    assert again == view  # the files of the first run are no part of the set
    last = "Overall score (avg. over tasks): none, the set is incomplete"
    assert view.summary.splitlines()[-1] == last
    assert answer(request(folder, partial=True, images_per_prompt=5)).scores.overall is None


@pytest.mark.usefixtures("blobs")
def test_prompts_are_checked_before_the_first_image(folder: Path) -> None:
    file = folder.parent / "prompts.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(BadFile, match="line 13 repeats line 1"):
        answer(request(folder))
    for path in folder.glob("*/metadata.jsonl"):
        path.write_text(path.read_text().replace('"cat"', '"lion"'))
    file.write_text("\n".join(line.replace('"cat"', '"lion"') for line in lines))
    with pytest.raises(ValueError, match="6 of 12 prompts: prompt 2: blobs does not know the class 'lion'"):
        answer(request(folder))
    assert not (folder / "results.jsonl.verdicts").exists()


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A package with an entry point of a judge, as pip would leave it."""
    info = tmp_path / "packages" / "blobs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: blobs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[graftlab.prompt_judges]\nblobs = tests.support.geneval_blobs:BLOBS\n"
    )
    return info.parent


def graft(plugin: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = f"{plugin}{os.pathsep}{ROOT}"
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    environment.pop(SETTING, None)
    command = [sys.executable, "-m", "service.cli.main", "geneval", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_command_scores_with_the_judge_of_another_package(
    folder: Path, plugin: Path, tmp_path: Path
) -> None:
    baseline = blob_set(tmp_path, "teacher")
    options = ("--prompts", tmp_path / "prompts.jsonl", "--judge", "blobs", "--baseline", baseline)
    done = graft(plugin, folder, *options)
    assert done.returncode == 0, done.stderr
    assert f"scored 48 of 48 images of {folder}" in done.stderr
    assert done.stdout.startswith(summary_of(read_results(folder / "results.jsonl")))
    for shown in ("0.9375", "-0.0625", "cannot be told apart", "evaluator blobs"):
        assert shown in done.stdout


def test_the_command_names_the_weights_that_it_lacks(folder: Path, plugin: Path, tmp_path: Path) -> None:
    done = graft(plugin, folder, "--prompts", tmp_path / "prompts.jsonl")
    assert done.returncode == 2
    assert "geneval@mmdet2 needs weights for detector, clip" in done.stderr
