"""The generator makes the official prompts from COCO's classes, and six tasks from any other list."""

import re
from collections import Counter
from pathlib import Path

import pytest

from grafting_core.evaluation.geneval.generator import generate_prompts
from grafting_core.evaluation.geneval.prompt_file import read_prompts, write_prompts
from grafting_core.specs.geneval import COCO_CLASSES, TASKS

FRUIT = ("apple", "orange", "pear", "cherries")


def test_cocos_classes_and_the_official_seed_give_the_official_counts() -> None:
    """Published: 553 prompts; numbers by task, counts and relations are those of the official file."""
    prompts = generate_prompts(COCO_CLASSES)
    assert Counter(prompt.tag for prompt in prompts) == dict(
        zip(TASKS, (80, 99, 80, 94, 100, 100), strict=True)
    )
    numbers = Counter(prompt.include[0].count for prompt in prompts if prompt.tag == "counting")
    assert numbers == {2: 26, 3: 28, 4: 26}
    relations = Counter(entry.position[0] for p in prompts for entry in p.include if entry.position)
    assert relations == {"below": 28, "right of": 27, "above": 26, "left of": 19}
    assert {prompt.include[0].class_ for prompt in prompts if prompt.tag == "single_object"} == set(
        COCO_CLASSES
    )


def test_prompts_of_the_official_set_are_among_them() -> None:
    texts = {prompt.prompt for prompt in generate_prompts(COCO_CLASSES)}
    assert {"a photo of a bench", "a photo of a suitcase left of a banana"} <= texts
    assert "a photo of a dog right of a teddy bear" in texts
    assert "a photo of a purple wine glass and a black apple" in texts


def test_an_own_list_of_classes_gives_six_tasks_that_the_file_takes(tmp_path: Path) -> None:
    prompts = generate_prompts(FRUIT, seed=1, per_task=12)
    assert {prompt.tag for prompt in prompts} == set(TASKS)
    assert {name for prompt in prompts for name in prompt.classes} == set(FRUIT)
    assert len({prompt.prompt for prompt in prompts}) == len(prompts)
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    assert read_prompts(tmp_path / "prompts.jsonl").prompts == prompts


def test_articles_and_plurals_are_the_official_ones() -> None:
    texts = " / ".join(prompt.prompt for prompt in generate_prompts(FRUIT, seed=1, per_task=60))
    assert "a photo of an apple" in texts
    assert "a photo of a cherries" in texts
    assert re.search(r"(two|three|four) cherrieses", texts)
    assert "an orange pear" in texts


def test_every_prompt_requires_what_its_text_says() -> None:
    for prompt in generate_prompts(FRUIT, seed=2, per_task=40):
        entries = prompt.include
        if prompt.tag == "position":
            target, subject = entries
            assert subject.position is not None
            text = rf"an? {subject.class_} {subject.position[0]} an? {target.class_}"
            assert re.fullmatch(f"a photo of {text}", prompt.prompt)
        elif prompt.tag == "color_attr":
            first, second = entries
            assert first.color != second.color
            assert first.class_ != second.class_
            text = rf"an? {first.color} {first.class_} and an? {second.color} {second.class_}"
            assert re.fullmatch(f"a photo of {text}", prompt.prompt)
        elif prompt.tag == "counting":
            assert prompt.exclude[0].count == entries[0].count + 1
            assert prompt.exclude[0].class_ == entries[0].class_


def test_a_seed_gives_the_same_prompts_and_another_others() -> None:
    assert generate_prompts(FRUIT, 5, 20) == generate_prompts(FRUIT, 5, 20)
    assert generate_prompts(FRUIT, 5, 20) != generate_prompts(FRUIT, 6, 20)


def test_persons_have_no_colour() -> None:
    prompts = generate_prompts(("dog", "person", "cat"), 3, 50)
    coloured = {entry.class_ for prompt in prompts for entry in prompt.include if entry.color}
    assert coloured == {"dog", "cat"}
    assert any("person" in prompt.classes for prompt in prompts if prompt.tag == "two_object")


@pytest.mark.parametrize(
    ("classes", "per_task", "said"),
    [
        (("dog",), 5, "1 classes are too few"),
        (("dog", "person"), 5, "2 classes are too few"),
        (("dog", "dog", "cat"), 5, "must be different"),
        (("dog", "", "cat"), 5, "not empty"),
        (("dog", "cat"), 0, "at least 1"),
    ],
)
def test_classes_that_make_no_prompts_are_refused(classes: tuple[str, ...], per_task: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        generate_prompts(classes, 0, per_task)
