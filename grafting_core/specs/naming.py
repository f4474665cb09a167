"""Names that people give: short, one line, and of characters that can be seen."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

MAX_NAME = 200
BARRED = {
    "Cc": "a control character",
    "Cf": "invisible: it joins, hides or turns text",
    "Cs": "no character",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}
"""Categories of Unicode, and what their characters are."""
FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters and signs that show nothing."""


def unseen(character: str) -> str | None:
    """What is wrong with a character of a name, or None."""
    if character in FILLERS:
        return "invisible"
    return BARRED.get(unicodedata.category(character))


def legible(name: str) -> str:
    """The name as it is. Raises PydanticCustomError where it is blank or holds what cannot be seen."""
    for place, character in enumerate(name):
        wrong = unseen(character)
        if wrong is not None:
            code = f"U+{ord(character):04X}"
            raise PydanticCustomError(
                "string_pattern_name",
                "character {place} is {code}, which is {wrong}; leave it out",
                {"place": place + 1, "code": code, "wrong": wrong},
            )
    if not any(unicodedata.category(character)[0] in "LNPS" for character in name):
        raise PydanticCustomError("string_pattern_name", "a name has at least one letter, digit or sign")
    return name


Name = Annotated[
    str,
    Field(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00-\x1f\x7f]+$"),
    AfterValidator(legible),
]
Word = Annotated[str, Field(max_length=MAX_NAME)]
"""A name of something that the lab has; what it has not is refused by the look-up."""
