"""All captions of the testbed: six tasks of GenEval over its classes, colours and relations.

The language is finite (about 150,000 captions), so a caption is a row number, and the tokens and the required
objects of a batch of captions are looked up in tables.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grafting_core.testbed.emoji.vocabulary import (
    CLASSES,
    COLOURS,
    NATURAL,
    NUMBERS,
    RELATIONS,
    TASKS,
    plural,
    with_article,
)

MAX_OBJECTS = 4
SHARES = (0.08, 0.18, 0.2, 0.1, 0.24, 0.2)
"""Share of every task among training captions: hard ones have the largest shares."""


@dataclass(frozen=True)
class Caption:
    """Required content of an image: objects by class and colour, and the second's position to the first."""

    task: str
    text: str
    classes: tuple[int, ...]
    colours: tuple[int, ...]
    relation: int | None = None

    def metadata(self) -> dict[str, Any]:
        """The caption as a line of GenEval's metadata file."""
        if self.task == "counting":
            name, count = CLASSES[self.classes[0]], len(self.classes)
            include: list[dict[str, Any]] = [{"class": name, "count": count}]
            exclude = [{"class": name, "count": count + 1}]
            return {"tag": self.task, "include": include, "exclude": exclude, "prompt": self.text}
        include = [self._included(index) for index in range(len(self.classes))]
        if self.relation is not None:
            include[1]["position"] = [RELATIONS[self.relation], 0]
        return {"tag": self.task, "include": include, "prompt": self.text}

    def _included(self, index: int) -> dict[str, Any]:
        entry: dict[str, Any] = {"class": CLASSES[self.classes[index]], "count": 1}
        if self.colours[index] != NATURAL:
            entry["color"] = COLOURS[self.colours[index]]
        return entry


def _plain(task: str, first: int, second: int | None = None) -> Caption:
    chosen = (first,) if second is None else (first, second)
    words = " and ".join(with_article(CLASSES[index]) for index in chosen)
    return Caption(task, f"a photo of {words}", chosen, (NATURAL,) * len(chosen))


def _coloured(task: str, classes: tuple[int, ...], colours: tuple[int, ...]) -> Caption:
    pairs = zip(classes, colours, strict=True)
    words = " and ".join(with_article(f"{COLOURS[colour]} {CLASSES[index]}") for index, colour in pairs)
    return Caption(task, f"a photo of {words}", classes, colours)


def _counted(index: int, count: int) -> Caption:
    text = f"a photo of {NUMBERS[count]} {plural(CLASSES[index])}"
    return Caption("counting", text, (index,) * count, (NATURAL,) * count)


def _placed(reference: int, subject: int, relation: int) -> Caption:
    subject_words, reference_words = with_article(CLASSES[subject]), with_article(CLASSES[reference])
    text = f"a photo of {subject_words} {RELATIONS[relation]} {reference_words}"
    return Caption("position", text, (reference, subject), (NATURAL, NATURAL), relation)


def all_captions() -> Iterator[Caption]:
    """Every caption once, task by task in GenEval's order."""
    indices, colours = range(len(CLASSES)), range(len(COLOURS))
    pairs = list(permutations(indices, 2))
    yield from (_plain("single_object", index) for index in indices)
    yield from (_plain("two_object", *pair) for pair in pairs)
    yield from (_counted(index, count) for index in indices for count in NUMBERS)
    yield from (_coloured("colors", (index,), (colour,)) for index in indices for colour in colours)
    yield from (_placed(*pair, relation) for pair in pairs for relation in range(len(RELATIONS)))
    tints = list(permutations(colours, 2))
    yield from (_coloured("color_attr", pair, tint) for pair in pairs for tint in tints)


@cache
def captions() -> tuple[Caption, ...]:
    """All captions by row number."""
    return tuple(all_captions())


@dataclass(frozen=True)
class SceneTable:
    """Required objects of every caption, by row; unused places hold -1 (classes) and NATURAL (colours)."""

    classes: Tensor
    colours: Tensor
    counts: Tensor
    relations: Tensor
    """Index of the relation; -1 if the caption has none."""
    starts: tuple[int, ...]
    """First row of every task, and the number of rows."""

    def draw(self, count: int, generator: torch.Generator, shares: Sequence[float] = SHARES) -> Tensor:
        """Rows [count]: a task by its share, then a caption of it uniformly; sorted by number of objects."""
        tasks = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)
        starts = torch.tensor(self.starts)
        sizes = starts.diff()[tasks]
        within = torch.rand(count, generator=generator, dtype=torch.float64) * sizes
        rows = starts[tasks] + within.long()
        return rows[self.counts[rows].argsort(descending=True, stable=True)]


@cache
def scene_table() -> SceneTable:
    """The table of all captions."""
    rows = captions()
    classes = np.full((len(rows), MAX_OBJECTS), -1)
    colours = np.full((len(rows), MAX_OBJECTS), NATURAL)
    for row, caption in enumerate(rows):
        classes[row, : len(caption.classes)] = caption.classes
        colours[row, : len(caption.colours)] = caption.colours
    tasks = np.array([TASKS.index(caption.task) for caption in rows])
    relations = torch.tensor([-1 if caption.relation is None else caption.relation for caption in rows])
    starts = (*(int(start) for start in np.searchsorted(tasks, range(len(TASKS)))), len(rows))
    counts = torch.from_numpy((classes >= 0).sum(1))
    return SceneTable(torch.from_numpy(classes), torch.from_numpy(colours), counts, relations, starts)


def geneval_rows(seed: int, per_task: int = 100) -> list[int]:
    """Rows of a benchmark: every class once, `per_task` different draws of each other task."""
    rng = random.Random(seed)  # noqa: S311 - a benchmark, no secret
    starts = scene_table().starts
    chosen = list(range(starts[1]))
    for first, end in pairwise(starts[1:]):
        drawn = [rng.randrange(first, end) for _ in range(per_task)]
        chosen.extend(dict.fromkeys(drawn))
    return chosen
