"""GenEval's rules: each by hand-made boxes, and all against a second implementation."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from grafting_core.evaluation.geneval.detections import Detection, kept_detections, overlap
from grafting_core.evaluation.geneval.rules import relations, verdict_of
from grafting_core.specs.geneval import COCO_CLASSES, COLORS, RELATIONS, GenEvalRules, PromptSpec
from tests.support.geneval_scorer import score_image

CLASSES = ("dog", "cat", "teddy bear")


def prompt(*include: dict[str, Any], tag: str = "two_object", **more: Any) -> PromptSpec:
    line = {"tag": tag, "include": [{"count": 1, **entry} for entry in include], "prompt": "a photo", **more}
    return PromptSpec.model_validate_json(json.dumps(line))


def at(
    x: float, y: float, name: str = "dog", score: float = 0.9, side: float = 100, **more: Any
) -> Detection:
    """Square box around a centre."""
    half = side / 2
    return Detection(name, (x - half, y - half, x + half, y + half), score, **more)


def own_color(_: str, objects: Sequence[Detection]) -> list[str]:
    return [str(each.color) for each in objects]


def judged(spec: PromptSpec, *detections: Detection, **rules: Any) -> tuple[bool, str]:
    used = GenEvalRules(**rules)
    found = kept_detections(detections, CLASSES, spec.tag == "counting", used)
    return verdict_of(spec, found, own_color, used)


DOG, CAT = {"class": "dog"}, {"class": "cat"}


def test_an_object_counts_only_above_the_threshold_compared_in_float32() -> None:
    assert judged(prompt(DOG), at(0, 0, score=0.3)) == (False, "expected dog>=1, found 0")
    above = float(np.nextafter(np.float32(0.3), np.float32(1)))
    assert judged(prompt(DOG), at(0, 0, score=above)) == (True, "")
    assert 0.3 < 0.300000001 < above
    assert judged(prompt(DOG), at(0, 0, score=0.300000001))[0] is False


def test_counting_has_a_higher_threshold() -> None:
    spec = prompt({"class": "dog", "count": 2}, tag="counting", exclude=[{"class": "dog", "count": 3}])
    two = [at(0, 0, score=0.95), at(300, 0, score=0.91)]
    assert judged(spec, *two) == (True, "")
    assert judged(spec, *two, at(600, 0, score=0.9)) == (True, "")
    assert judged(spec, *two, at(600, 0, score=0.92)) == (False, "expected dog<3, found 3")
    assert judged(spec, two[0], at(300, 0, score=0.9)) == (False, "expected dog>=2, found 1")


def test_both_objects_of_a_pair_are_needed_and_every_missing_one_is_named() -> None:
    assert judged(prompt(DOG, CAT), at(0, 0), at(200, 0, "cat")) == (True, "")
    assert judged(prompt(DOG, CAT), at(0, 0, "teddy bear")) == (
        False,
        "expected dog>=1, found 0\nexpected cat>=1, found 0",
    )


def test_more_objects_than_required_do_no_harm_unless_they_are_excluded() -> None:
    assert judged(prompt(DOG), at(0, 0), at(200, 0), at(400, 0)) == (True, "")
    spec = prompt(DOG, exclude=[{"class": "cat", "count": 1}, {"class": "dog", "count": 2}])
    assert judged(spec, at(0, 0)) == (True, "")
    assert judged(spec, at(0, 0), at(200, 0), at(0, 200, "cat")) == (
        False,
        "expected cat<1, found 1\nexpected dog<2, found 2",
    )


def test_the_colour_is_that_of_the_most_confident_boxes() -> None:
    red, blue = at(0, 0, score=0.9, color="red"), at(200, 0, score=0.8, color="blue")
    assert judged(prompt({"class": "dog", "color": "red"}, tag="colors"), blue, red) == (True, "")
    assert judged(prompt({"class": "dog", "color": "blue"}, tag="colors"), blue, red) == (
        False,
        "expected blue dog>=1, found 0 blue; and 1 red",
    )


def test_every_required_box_needs_the_colour_and_the_reason_lists_all_that_were_seen() -> None:
    spec = prompt({"class": "dog", "color": "red", "count": 3}, tag="colors")
    boxes = [at(200 * place, 0, color=color) for place, color in enumerate(("white", "red", "orange"))]
    assert judged(spec, *boxes) == (
        False,
        "expected red dog>=3, found 1 red; and 1 red, 1 orange, 1 white",
    )


def test_position_is_not_checked_where_the_colour_is_wrong() -> None:
    spec = prompt(CAT, {"class": "dog", "color": "red", "position": ["left of", 0]}, tag="position")
    cat = at(0, 0, "cat")
    assert judged(spec, cat, at(500, 0, color="blue")) == (
        False,
        "expected red dog>=1, found 0 red; and 1 blue",
    )
    assert judged(spec, cat, at(500, 0, color="red")) == (
        False,
        "expected dog left of target, found right of target",
    )
    assert judged(spec, cat, at(-500, 0, color="red")) == (True, "")


def test_a_target_that_was_not_matched_is_named() -> None:
    spec = prompt(CAT, {"class": "dog", "position": ["above", 0]}, tag="position")
    assert judged(spec, at(0, 0)) == (False, "expected cat>=1, found 0\nno target for dog to be above")
    colored = prompt(
        {"class": "cat", "color": "red"}, {"class": "dog", "position": ["above", 0]}, tag="position"
    )
    assert judged(colored, at(0, 0, "cat", color="blue"), at(0, -500)) == (
        False,
        "expected red cat>=1, found 0 red; and 1 blue\nno target for dog to be above",
    )


@pytest.mark.parametrize(
    ("x", "y", "seen"),
    [
        (-200, 0, ("left of",)),
        (200, 0, ("right of",)),
        (0, -200, ("above",)),
        (0, 200, ("below",)),
        (200, 200, ("right of", "below")),
        (-200, -200, ("left of", "above")),
        (0, 0, ()),
        (19, 0, ()),
        (40, 0, ()),  # reduced to 20 of 40: a half is not more than a half
        (41, 0, ("right of",)),
        (200, 40, ("right of",)),
    ],
)
def test_a_relation_is_the_reduced_offset_as_a_share_of_the_whole(x: int, y: int, seen: tuple) -> None:
    assert relations(at(x, y).corners, at(0, 0).corners) == seen


def test_no_relation_leaves_two_spaces_and_two_are_joined() -> None:
    spec = prompt(CAT, {"class": "dog", "position": ["above", 0]}, tag="position")
    assert judged(spec, at(0, 0, "cat"), at(5, 0)) == (
        False,
        "expected dog above target, found  target",
    )
    assert judged(spec, at(0, 0, "cat"), at(300, 300)) == (
        False,
        "expected dog above target, found right of and below target",
    )


def test_every_subject_must_relate_to_every_target_and_the_first_failure_is_the_reason() -> None:
    entry = {"class": "dog", "count": 2, "position": ["right of", 0]}
    spec = prompt({"class": "cat", "count": 2}, entry, tag="position")
    cats = [at(0, 0, "cat", 0.9), at(1000, 0, "cat", 0.8)]
    assert judged(spec, *cats, at(2000, 0), at(2500, 0)) == (True, "")
    assert judged(spec, *cats, at(500, 0), at(500, 900)) == (
        False,
        "expected dog right of target, found below target",
    )
    assert judged(spec, *cats, at(500, 900, score=0.5), at(500, 0)) == (
        False,
        "expected dog right of target, found left of target",
    )


def test_of_equal_scores_the_later_row_is_the_more_confident() -> None:
    spec = prompt({"class": "dog", "color": "red"}, tag="colors")
    assert judged(spec, at(0, 0, color="blue"), at(300, 0, color="red")) == (True, "")
    assert judged(spec, at(300, 0, color="red"), at(0, 0, color="blue"))[0] is False


def test_at_most_sixteen_of_a_class_are_kept_and_reasons_count_those() -> None:
    many = [at(150 * place, 0, score=0.95) for place in range(19)]
    spec = prompt(DOG, tag="counting", exclude=[{"class": "dog", "count": 2}])
    assert judged(spec, *many) == (False, "expected dog<2, found 16")
    assert judged(prompt({"class": "dog", "count": 17}), *many) == (False, "expected dog>=17, found 16")


def test_identical_boxes_count_twice_unless_overlaps_are_dropped() -> None:
    same = [at(0, 0, score=0.95), at(0, 0, score=0.93)]
    spec = prompt({"class": "dog", "count": 2})
    assert judged(spec, *same) == (True, "")
    assert judged(spec, *same, max_overlap=0.9) == (False, "expected dog>=2, found 1")


def test_the_cap_comes_before_overlaps_are_dropped() -> None:
    stacked = [at(0, 0, score=0.9) for _ in range(16)]
    spec = prompt({"class": "dog", "count": 2})
    assert judged(spec, *stacked, at(900, 0, score=0.5), max_overlap=0.5) == (
        False,
        "expected dog>=2, found 1",
    )


def test_overlap_adds_a_pixel_to_every_side() -> None:
    first, second = Detection("dog", (0, 0, 9, 9), 1), Detection("dog", (5, 0, 14, 9), 1)
    assert overlap(first, second) == np.float32(50 / 150)
    assert overlap(first, Detection("dog", (10, 0, 19, 9), 1)) == 0
    assert overlap(first, Detection("dog", (9, 0, 18, 9), 1)) == np.float32(10 / 190)


def test_a_box_is_dropped_from_the_limit_on_but_not_below_it() -> None:
    pair = [Detection("dog", (0, 0, 9, 9), 0.9), Detection("dog", (5, 0, 14, 9), 0.8)]
    spec = prompt({"class": "dog", "count": 2})
    assert judged(spec, *pair, max_overlap=0.34)[0] is True
    assert judged(spec, *pair, max_overlap=0.33)[0] is False


def test_classes_are_listed_in_the_detectors_order_and_empty_ones_are_left_out() -> None:
    found = kept_detections([at(0, 0, "teddy bear"), at(0, 0), at(9, 9, score=0.4)], CLASSES)
    assert [(name, [each.score for each in boxes]) for name, boxes in found.items()] == [
        ("dog", [0.9, 0.4]),
        ("teddy bear", [0.9]),
    ]


def test_colours_are_determined_only_where_one_is_required_and_enough_objects_are_found() -> None:
    calls = list[tuple[str, int]]()

    def colors(name: str, objects: Sequence[Detection]) -> list[str]:
        calls.append((name, len(objects)))
        return ["red"] * len(objects)

    spec = prompt({"class": "dog", "color": "red", "count": 2}, {"class": "cat", "color": "red"})
    verdict_of(spec, {"dog": [at(0, 0)] * 3, "cat": []}, colors)
    assert calls == [("dog", 2)]


def random_case(rng: random.Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A prompt of any task and detections with ties, many of a class, and edges of every rule."""
    tag = rng.choice(("single_object", "two_object", "counting", "colors", "position", "color_attr"))
    names = rng.sample(CLASSES, 2 if tag in ("two_object", "position", "color_attr") else 1)
    include = [{"class": name, "count": rng.choice((1, 1, 1, 2, 3))} for name in names]
    if tag in ("colors", "color_attr") or rng.random() < 0.2:
        for entry in include:
            entry["color"] = rng.choice(COLORS[:3])
    if len(include) == 2 and (tag == "position" or rng.random() < 0.2):
        include[1]["position"] = [rng.choice(RELATIONS), 0]
    metadata: dict[str, Any] = {"tag": tag, "include": include, "prompt": "a photo"}
    if tag == "counting" or rng.random() < 0.3:
        metadata["exclude"] = [{"class": rng.choice(CLASSES), "count": rng.randint(1, 4)}]
    scores = (0.29, 0.3, 0.31, 0.5, 0.9, 0.91, 0.97)
    rows = []
    for _ in range(rng.choice((0, 1, 2, 3, 4, 6, 9, 40))):
        x, y, width, height = (rng.randrange(0, 2048) / 4 for _ in range(4))
        score = rng.choice(scores) if rng.random() < 0.5 else rng.random() ** 0.3
        box = [x, y, x + width / 2, y + height / 2]
        colour = rng.choice(COLORS[:3])
        rows.append({"class": rng.choice(CLASSES), "box": box, "score": score, "colour": colour})
    return metadata, rows


@pytest.mark.parametrize("max_overlap", [1.0, 0.5])
def test_all_verdicts_and_reasons_agree_with_a_second_implementation(max_overlap: float) -> None:
    rng = random.Random(20)
    outcomes = set[tuple[str, bool, str]]()
    for _ in range(1_500):
        metadata, rows = random_case(rng)
        boxes = [
            Detection(row["class"], tuple(row["box"]), row["score"], color=row["colour"]) for row in rows
        ]
        spec = PromptSpec.model_validate_json(json.dumps(metadata))
        ours = judged(spec, *boxes, max_overlap=max_overlap)
        assert ours == score_image(metadata, rows, max_overlap), (metadata, rows)
        outcomes.add((spec.tag, ours[0], ours[1].split()[0] if ours[1] else ""))
    # Every task has right and wrong images, so that agreement says something.
    assert {(tag, right) for tag, right, _ in outcomes} == {
        (tag, right)
        for tag in ("single_object", "two_object", "counting", "colors", "position", "color_attr")
        for right in (True, False)
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"include": []}, "at least 1"),
        ({"include": [{"class": "dog", "count": 0}]}, "greater than or equal to 1"),
        ({"include": [{"class": "dog", "count": 1, "color": "teal"}]}, "'red', 'orange'"),
        ({"include": [{"class": "dog", "count": 1, "position": ["under", 0]}]}, "'left of', 'right of'"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "an earlier entry"),
        ({"exclude": [{"class": "dog", "count": 0}]}, "greater than or equal to 1"),
        ({"tag": "colours"}, "'single_object', 'two_object'"),
        (
            {"include": [{"class": "dog", "count": 1, "color": each} for each in ("red", "blue")]},
            "dog is required in red and in blue",
        ),
    ],
)
def test_a_prompt_that_no_image_could_meet_or_that_breaks_the_official_tool_is_refused(
    line: dict[str, Any], said: str
) -> None:
    valid = {"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
    with pytest.raises(ValueError, match=said):
        PromptSpec.model_validate_json(json.dumps({**valid, **line}))


def test_there_are_eighty_classes_with_genevals_names_in_cocos_order() -> None:
    assert (len(COCO_CLASSES), COCO_CLASSES[0], COCO_CLASSES[-1]) == (80, "person", "toothbrush")
    assert COCO_CLASSES[64:67] == ("computer mouse", "tv remote", "computer keyboard")
    assert len(set(COCO_CLASSES)) == 80
