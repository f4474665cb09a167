"""GenEval's rules on hand-made boxes, and the intervals of its scores."""

import pytest

from grafting_core.testbed.emoji.detector import Detection, overlap
from grafting_core.testbed.emoji.scoring import judge, relations, summary, wilson_interval

Box = tuple[float, float, float, float]


def seen(name: str, score: float = 0.95, box: Box = (0, 0, 10, 10), colour: str | None = None) -> Detection:
    return Detection(name, colour, box, score)


def line(tag: str, *include: dict[str, object], **more: object) -> dict[str, object]:
    return {"tag": tag, "include": list(include), **more}


DOG = {"class": "dog", "count": 1}


def test_a_score_must_exceed_the_threshold_in_float32() -> None:
    assert not judge(line("single_object", DOG), [seen("dog", 0.3)]).correct
    assert judge(line("single_object", DOG), [seen("dog", 0.30001)]).correct


def test_counting_asks_for_surer_boxes_and_for_no_more() -> None:
    two = line("counting", {"class": "dog", "count": 2}, exclude=[{"class": "dog", "count": 3}])
    assert judge(two, [seen("dog")] * 2).correct
    assert judge(two, [seen("dog"), seen("dog", 0.9)]).reason == "expected dog>=2, found 1"
    assert judge(two, [seen("dog")] * 3).reason == "expected dog<3, found 3"


def test_at_most_sixteen_boxes_of_a_class_count() -> None:
    many = line("counting", DOG, exclude=[{"class": "dog", "count": 2}])
    assert judge(many, [seen("dog")] * 19).reason == "expected dog<2, found 16"


def test_only_the_surest_box_gives_the_colour() -> None:
    red = line("colors", {**DOG, "color": "red"})
    assert judge(red, [seen("dog", 0.5, colour="blue"), seen("dog", 0.8, colour="red")]).correct
    verdict = judge(red, [seen("dog", 0.8, colour="blue"), seen("dog", 0.5, colour="red")])
    assert verdict.reason == "expected red dog>=1, found 0 red; and 1 blue"
    assert judge(red, [seen("dog")]).reason == "expected red dog>=1, found 0 red; and 1 natural"


def test_other_objects_do_no_harm() -> None:
    assert judge(line("single_object", DOG), [seen("cat"), seen("dog", 0.4)]).correct


POSITION = line("position", {"class": "cat", "count": 1}, {**DOG, "position": ["right of", 0]})


def test_the_subject_relates_to_the_earlier_target() -> None:
    cat = seen("cat", box=(0, 0, 10, 10))
    assert judge(POSITION, [cat, seen("dog", box=(30, 0, 40, 10))]).correct
    verdict = judge(POSITION, [cat, seen("dog", box=(0, 30, 10, 40))])
    assert verdict.reason == "expected dog right of target, found below target"


def test_without_a_target_there_is_no_relation() -> None:
    verdict = judge(POSITION, [seen("dog")])
    assert verdict.reason == "expected cat>=1, found 0\nno target for dog to be right of"


def test_where_the_colour_fails_the_position_is_not_looked_at() -> None:
    asked = line(
        "position", {"class": "cat", "count": 1}, {**DOG, "color": "red", "position": ["right of", 0]}
    )
    verdict = judge(asked, [seen("cat"), seen("dog", colour="blue")])
    assert verdict.reason == "expected red dog>=1, found 0 red; and 1 blue"


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((130, 0, 230, 100), {"right of"}),
        ((-130, 0, -30, 100), {"left of"}),
        ((0, 130, 100, 230), {"below"}),
        ((0, -130, 100, -30), {"above"}),
        ((130, 130, 230, 230), {"right of", "below"}),
        ((15, 0, 115, 100), set()),
        ((38, 0, 138, 100), set()),
        ((42, 0, 142, 100), {"right of"}),
        ((0, 0, 100, 100), set()),
    ],
)
def test_relations_of_boxes_a_hundred_wide(box: Box, expected: set[str]) -> None:
    assert relations(seen("a", box=box), seen("b", box=(0, 0, 100, 100))) == expected


def test_overall_is_the_plain_mean_of_the_tasks() -> None:
    scores = summary([("a", True)] * 3 + [("a", False)] + [("b", False)] * 10)
    assert scores["overall"] == 0.375
    assert scores["tasks"]["a"]["score"] == 0.75
    assert scores["tasks"]["b"]["images"] == 10


def test_wilson_s_interval_by_its_textbook_value() -> None:
    low, high = wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson_interval(0, 20)[0] == 0
    assert wilson_interval(20, 20)[1] == 1


def test_overlap_of_boxes() -> None:
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (20, 0, 30, 10)) == 0
