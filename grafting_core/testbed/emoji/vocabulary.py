"""Vocabulary of the testbed: COCO class names with an emoji each, GenEval's colours, numbers, relations."""

from collections.abc import Mapping

EMOJI: Mapping[str, str] = {
    "bicycle": "🚲",
    "car": "🚗",
    "motorcycle": "🏍",
    "airplane": "✈",
    "bus": "🚌",
    "train": "🚆",
    "truck": "🚚",
    "boat": "⛵",
    "traffic light": "🚦",
    "stop sign": "🛑",
    "bird": "🐦",
    "cat": "🐈",
    "dog": "🐕",
    "horse": "🐎",
    "sheep": "🐑",
    "cow": "🐄",
    "elephant": "🐘",
    "bear": "🐻",
    "zebra": "🦓",
    "giraffe": "🦒",
    "backpack": "🎒",
    "umbrella": "☂",
    "handbag": "👜",
    "kite": "🪁",
    "skateboard": "🛹",
    "cup": "☕",
    "banana": "🍌",
    "apple": "🍎",
    "broccoli": "🥦",
    "carrot": "🥕",
    "pizza": "🍕",
    "donut": "🍩",
    "cake": "🎂",
    "chair": "🪑",
    "couch": "🛋",
    "potted plant": "🪴",
    "toilet": "🚽",
    "laptop": "💻",
    "scissors": "✂",
    "teddy bear": "🧸",
}
"""Half of COCO's 80 classes, in COCO's order: those whose emoji stay distinct when small and tinted."""

CLASSES = tuple(EMOJI)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS: Mapping[int, str] = {2: "two", 3: "three", 4: "four"}
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NATURAL = len(COLOURS)
"""Index of an emoji's own colours, which no caption names."""


def with_article(noun: str) -> str:
    """`a dog`, `an orange umbrella`: article by the first letter, as in GenEval."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(name: str) -> str:
    """GenEval's simple plural, unchanged: an s, after an s es (buses, sheeps, scissorses)."""
    return f"{name}es" if name.endswith("s") else f"{name}s"
