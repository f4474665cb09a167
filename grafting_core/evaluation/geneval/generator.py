"""Prompts of GenEval's six tasks over any list of classes, from a seed.

With COCO's classes and the official seed these are the official prompts: the draws have the same order.
"""

from collections.abc import Callable, Sequence

import numpy as np

from grafting_core.specs.geneval import COLORS, RELATIONS, Excluded, Included, PromptSpec, Task

OFFICIAL_SEED = 43
NUMBERS = {2: "two", 3: "three", 4: "four"}
PERSON = "person"
"""Class that is never given a colour."""

Make = Callable[[np.random.Generator, Sequence[str]], PromptSpec]


def generate_prompts(
    classes: Sequence[str], seed: int = OFFICIAL_SEED, per_task: int = 100
) -> tuple[PromptSpec, ...]:
    """Every class once, then `per_task` draws of each other task; repeated prompts are dropped.

    Raises ValueError for fewer than two classes that may have a colour, and for repeated or empty names.
    """
    _check(classes, per_task)
    rng = np.random.default_rng(seed)
    order = rng.choice(len(classes), size=len(classes), replace=False)
    made = [single_object(classes[row]) for row in order]
    for make in (_two_object, _counting, _colors, _position, _color_attr):
        made += [make(rng, classes) for _ in range(per_task)]
    return tuple({prompt.prompt: prompt for prompt in reversed(made)}.values())[::-1]


def _check(classes: Sequence[str], per_task: int) -> None:
    if len(_colorable(classes)) < 2:
        raise ValueError(f"{len(classes)} classes are too few; pairs need two besides {PERSON!r}")
    if len(set(classes)) < len(classes) or not all(name.strip() == name and name for name in classes):
        raise ValueError("class names must be different, not empty, and without spaces around them")
    if per_task < 1:
        raise ValueError(f"{per_task} prompts a task were requested; at least 1 is needed")


def with_article(noun: str) -> str:
    """`a dog`, `an orange`: article by the first letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(name: str) -> str:
    """The official plural: an s, and es after an s, also where English has another (sheeps, knifes)."""
    return f"{name}es" if name.endswith("s") else f"{name}s"


def _prompt(task: Task, text: str, *include: Included, exclude: tuple[Excluded, ...] = ()) -> PromptSpec:
    return PromptSpec(tag=task, include=include, exclude=exclude, prompt=f"a photo of {text}")


def single_object(name: str) -> PromptSpec:
    """Prompt for one object of a class."""
    return _prompt("single_object", with_article(name), Included(class_=name, count=1))


def _pair(rng: np.random.Generator, names: Sequence[str]) -> tuple[str, str]:
    first, second = rng.choice(len(names), size=2, replace=False)
    return names[first], names[second]


def _two_object(rng: np.random.Generator, classes: Sequence[str]) -> PromptSpec:
    first, second = _pair(rng, classes)
    text = f"{with_article(first)} and {with_article(second)}"
    return _prompt("two_object", text, Included(class_=first, count=1), Included(class_=second, count=1))


def _counting(rng: np.random.Generator, classes: Sequence[str]) -> PromptSpec:
    name = classes[rng.choice(len(classes))]
    count = int(rng.integers(min(NUMBERS), max(NUMBERS), endpoint=True))
    more = (Excluded(class_=name, count=count + 1),)
    text = f"{NUMBERS[count]} {plural(name)}"
    return _prompt("counting", text, Included(class_=name, count=count), exclude=more)


def _colors(rng: np.random.Generator, classes: Sequence[str]) -> PromptSpec:
    names = _colorable(classes)
    name = names[rng.choice(len(names))]
    color = COLORS[rng.choice(len(COLORS))]
    text = f"{with_article(color)} {name}"
    return _prompt("colors", text, Included(class_=name, count=1, color=color))


def _position(rng: np.random.Generator, classes: Sequence[str]) -> PromptSpec:
    subject, target = _pair(rng, classes)
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    placed = Included(class_=subject, count=1, position=(relation, 0))
    text = f"{with_article(subject)} {relation} {with_article(target)}"
    return _prompt("position", text, Included(class_=target, count=1), placed)


def _color_attr(rng: np.random.Generator, classes: Sequence[str]) -> PromptSpec:
    first, second = _pair(rng, _colorable(classes))
    one, other = (COLORS[row] for row in rng.choice(len(COLORS), size=2, replace=False))
    text = f"{with_article(one)} {first} and {with_article(other)} {second}"
    include = (
        Included(class_=first, count=1, color=one),
        Included(class_=second, count=1, color=other),
    )
    return _prompt("color_attr", text, *include)


def _colorable(classes: Sequence[str]) -> Sequence[str]:
    """All classes but persons; the official draws count from the class after it."""
    if PERSON not in classes:
        return classes
    place = classes.index(PERSON)
    return (*classes[place + 1 :], *classes[:place])
