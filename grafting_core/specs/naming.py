"""Names that users choose: short, on one line, of visible characters."""

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
"""Unicode category -> description of its characters."""
FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and signs that render as nothing."""


def unseen(character: str) -> str | None:
    """Reason why a character is not allowed in a name, or None."""
    if character in FILLERS:
        return "invisible"
    return BARRED.get(unicodedata.category(character))


def legible(name: str) -> str:
    """The name, unchanged. Raises PydanticCustomError if it is blank or has invisible characters."""
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
"""Name of something in the lab; the look-up refuses unknown ones."""
