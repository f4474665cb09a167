"""Judges: what they refuse, what enters their fingerprint, and which weights are accepted."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grafting_core.evaluation.geneval import official
from grafting_core.evaluation.geneval.judge import check_prompts, load_judge
from grafting_core.evaluation.geneval.mask2former import build_model
from grafting_core.evaluation.geneval.pictures import Picture
from grafting_core.evaluation.geneval.prompt_file import read_prompts
from grafting_core.specs.features import FeatureSource
from grafting_core.specs.geneval import GenEvalRules, PromptSpec
from grafting_core.specs.prompt_judges import (
    CLIP_FILES,
    OFFICIAL,
    PROMPT_JUDGES,
    SETTING,
    JudgeKind,
    digest_of_files,
    judge_sources,
)
from tests.support.geneval_blobs import SCENES, blob_judge, blob_set, draw, empty_picture
from tests.support.mmdet_layout import SMALL, random_state
from tests.support.tiny_clip import write_clip

SMALL_SWIN = {"embed_dim": SMALL["width"], "depths": [*SMALL["depths"]], "num_heads": [*SMALL["heads"]]}


def spec(tag: str, name: str = "dog") -> PromptSpec:
    line, _ = SCENES[tag]
    text = json.dumps({"tag": tag, **line, "prompt": f"a photo for {tag}"}).replace('"dog"', json.dumps(name))
    return PromptSpec.model_validate_json(text)


@pytest.mark.parametrize("tag", SCENES)
def test_a_scene_that_shows_its_prompt_is_right_and_an_empty_one_is_wrong(tag: str) -> None:
    image = draw(*SCENES[tag][1])
    picture = Picture(Path("scene.png"), np.asarray(image), image, False)
    right, wrong = blob_judge().verdicts([picture, empty_picture()], [spec(tag), spec(tag)])
    assert (right.correct, right.value, right.reason) == (True, 1, "")
    assert (wrong.correct, wrong.details) == (False, "{}")
    assert "expected dog>=" in wrong.reason


def test_details_hold_the_boxes_that_are_kept() -> None:
    image = draw(("cat", "blue", 40, 40), ("dog", "red", 4, 4))
    (verdict,) = blob_judge().verdicts(
        [Picture(Path("a"), np.asarray(image), image, False)], [spec("colors")]
    )
    score = float(np.float32(0.99))
    assert json.loads(verdict.details) == {"dog": [[4, 4, 14, 14, score]], "cat": [[40, 40, 56, 50, score]]}


def test_prompts_of_classes_that_the_detector_never_saw_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"1 of 2 prompts: prompt 1: blobs does not know the class 'unicorn'"
    ):
        check_prompts(blob_judge(), [spec("colors"), spec("colors", "unicorn")])
    check_prompts(blob_judge(), [spec("colors")])


def test_the_fingerprint_changes_with_rules_and_options() -> None:
    judges = [
        blob_judge(),
        blob_judge(rules=GenEvalRules(threshold=0.5)),
        blob_judge(options={"precision": "float16"}),
    ]
    assert len({judge.digest for judge in judges}) == 3
    assert blob_judge().digest == judges[0].digest


def test_an_unknown_judge_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=f"unknown prompt judge 'geneval3'; use one of {OFFICIAL}"):
        load_judge("geneval3")


def test_a_judge_whose_library_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needing.py").write_text("import a_library_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    PROMPT_JUDGES.register({"needing": JudgeKind(api=1, load="needing:load", summary="")})
    try:
        with pytest.raises(ValueError, match=r"needing needs a_library_that_nobody_has; pip install"):
            load_judge("needing")
    finally:
        PROMPT_JUDGES.register({})


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, dict[str, str]]:
    """Files in the place of both parts of the official judge, and their entries in the settings."""
    detector, clip = tmp_path / "detector.pth", tmp_path / "clip"
    torch.save({"state_dict": random_state()}, detector)
    clip.mkdir()
    for name in CLIP_FILES:
        (clip / name).write_text("{}")
    return {
        "detector": {"path": str(detector), "sha256": hashlib.sha256(detector.read_bytes()).hexdigest()},
        "clip": {"path": str(clip), "sha256": digest_of_files(clip, CLIP_FILES)},
    }


def name_weights(folder: Path, monkeypatch: pytest.MonkeyPatch, document: object) -> None:
    (folder / "judges.json").write_text(json.dumps(document))
    monkeypatch.setenv(SETTING, str(folder / "judges.json"))


def test_weights_that_are_not_named_are_requested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(SETTING, raising=False)
    with pytest.raises(ValueError, match=f"{OFFICIAL} needs weights for detector, clip: .* in {SETTING}"):
        load_judge(OFFICIAL)
    name_weights(tmp_path, monkeypatch, {OFFICIAL: {"detector": {"path": "a", "sha256": "0" * 64}}})
    with pytest.raises(ValueError, match="needs weights for clip"):
        load_judge(OFFICIAL)


def test_settings_that_cannot_be_used_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: dict[str, dict[str, str]]
) -> None:
    for document, said in (
        ([1], "cannot be used"),
        ({OFFICIAL: {"detector": {"path": "a", "sha256": "ABC"}}}, "sha256"),
        ({"geneval3": {}}, f"names 'geneval3'; known: {OFFICIAL}"),
        ({OFFICIAL: {**weights, "vqa": weights["clip"]}}, "has no part 'vqa'; it has detector, clip"),
    ):
        name_weights(tmp_path, monkeypatch, document)
        with pytest.raises(ValueError, match=said):
            judge_sources(OFFICIAL)


def test_missing_weights_and_those_of_another_digest_are_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: dict[str, dict[str, str]]
) -> None:
    name_weights(tmp_path, monkeypatch, {OFFICIAL: weights})
    assert judge_sources(OFFICIAL)["clip"] == FeatureSource(**weights["clip"])
    (tmp_path / "clip" / "tokenizer.json").write_text("not read, so not part of the digest")
    assert set(judge_sources(OFFICIAL)) == {"detector", "clip"}
    (tmp_path / "clip" / "merges.txt").write_text("another")
    with pytest.raises(ValueError, match=r"clip: .*clip has SHA-256 \w+, not \w+; it was not loaded"):
        load_judge(OFFICIAL)
    (tmp_path / "clip" / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"clip: .*merges\.txt does not exist"):
        load_judge(OFFICIAL)


def test_weights_of_another_size_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: dict[str, dict[str, str]]
) -> None:
    name_weights(tmp_path, monkeypatch, {OFFICIAL: weights})
    with pytest.raises(ValueError, match=r"the weights are not those of the detector: .* of another shape"):
        load_judge(OFFICIAL)


@pytest.fixture
def small_official(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: dict[str, dict[str, str]]
) -> dict[str, dict[str, str]]:
    """Random weights for both parts, of a small network in the place of the official size."""
    clip = write_clip(tmp_path / "clip")
    weights["clip"]["sha256"] = digest_of_files(clip, CLIP_FILES)
    name_weights(tmp_path, monkeypatch, {OFFICIAL: weights})
    monkeypatch.setattr(official, "build_model", lambda: build_model(SMALL_SWIN))
    return weights


@pytest.mark.large
@pytest.mark.usefixtures("small_official")
def test_random_weights_fail_the_detectors_self_test() -> None:
    with pytest.raises(
        ValueError, match=r"the detector's self-test failed: in grace_hopper\.jpg it finds no"
    ):
        load_judge(OFFICIAL)


def test_the_published_evaluator_is_tested_before_it_gives_a_verdict(
    monkeypatch: pytest.MonkeyPatch, small_official: dict[str, dict[str, str]]
) -> None:
    tested = list[object]()
    monkeypatch.setattr(official, "check_detector", tested.append)
    with pytest.raises(ValueError, match="the colour classifier's self-test failed"):
        load_judge(OFFICIAL)
    monkeypatch.setattr(official, "check_colors", tested.append)
    judge = load_judge(OFFICIAL)
    assert [type(each).__name__ for each in tested[1:]] == ["Mask2FormerDetector", "ClipColors"]
    assert judge.fingerprint.weights == {part: source["sha256"] for part, source in small_official.items()}
    assert judge.fingerprint.options == {"clip_precision": "float32", "tf32": "off"}
    assert judge.name.startswith("geneval-mask2former-")
    assert judge.refusal(spec("colors", "emoji")) is not None
    image = Image.new("RGB", (400, 8), "red")
    picture = Picture(Path("red.png"), np.asarray(image), image, False)
    (verdict,) = judge.verdicts([picture], [spec("single_object")])
    assert (verdict.correct, verdict.reason) == (False, "expected dog>=1, found 0")


def test_only_the_published_weights_and_precision_carry_the_published_name(
    monkeypatch: pytest.MonkeyPatch, weights: dict[str, dict[str, str]]
) -> None:
    sources = {part: FeatureSource(**source) for part, source in weights.items()}
    other = official.evaluator_name(sources, "float16")
    assert (
        other
        == f"geneval-mask2former-{sources['detector'].sha256[:8]}-clip-{sources['clip'].sha256[:8]}-float16"
    )
    clip = Path(sources["clip"].path)
    monkeypatch.setattr(official, "DETECTOR", sources["detector"].sha256[:8])
    assert official.evaluator_name(sources, "float16") == other
    digests = {name: digest_of_files(clip / name, ()) for name in official.CLIP_WEIGHTS}
    monkeypatch.setattr(official, "CLIP_WEIGHTS", digests)
    assert official.evaluator_name(sources, "float16") == OFFICIAL
    assert official.evaluator_name(sources, "float32") == f"{OFFICIAL}-float32"


def test_a_set_of_scenes_has_a_prompt_file_that_fits(tmp_path: Path) -> None:
    blob_set(tmp_path)
    assert len(read_prompts(tmp_path / "prompts.jsonl")) == 12
