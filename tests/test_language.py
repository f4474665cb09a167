"""Words of a private language do not come back: the field has a term for each of them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = [
    file
    for folder in ("grafting_core", "workers", "service", "docs")
    for file in sorted((ROOT / folder).rglob("*"))
    if file.suffix in (".py", ".html", ".md", ".j2", ".js")
]
TERMS = {
    "apprentices?": "student",
    "pupils?": "student",
    "hindmost": "the student at the lowest step",
    "lessons?": "teacher features",
    "shel(f|ves)": "feature cache",
    "graduat(e|es|ed)": "finish",
    "visitors?": "hook",
    "twin": "copy",
    "unhooked": "without hooks",
    "looker": "feature network",
    "vouch(es|ed|ing)?": "hold the digest of",
    "sealed": "with checksum",
    "brake": "stop condition",
    "climb(s|ed|ing)?": "be promoted",
    "turn and turn about": "interleaved",
    "wish(es|ed)?": "request",
    "standings?": "leaderboard entry",
    "postman": "delivery worker",
    "tender|tending|tended": "reconciler, reconcile",
    "housekeep(er|ing)?": "clean-up",
    "keep_house": "clean-up",
    "swept": "prune",
    "at the door": "at submission",
    "lets? go": "delete",
    "goes? home": "exit",
    "foresee|foreseen": "forecast",
}


PLAIN = {
    "asked": "requested, needed, sent",
    "beside": "next to, in addition to",
    "told": "sent, shown, named",
    "wanted": "needed, expected",
    "whoever": "the reader, the caller, the user",
}
"""Plain words that hide who does what; the packages that are free of them stay so."""
PLAIN_FILES = [file for file in PRODUCT if file.relative_to(ROOT).parts[0] in ("service", "docs")]


def _uses(pattern: str, files: list[Path]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(rf"\b({pattern})\b", line.lower())
    ]


@pytest.mark.parametrize("pattern", TERMS)
def test_the_term_of_the_field_is_used(pattern: str) -> None:
    assert _uses(pattern, PRODUCT) == [], f"say {TERMS[pattern]!r}"


@pytest.mark.parametrize("pattern", PLAIN)
def test_the_plain_word_is_used(pattern: str) -> None:
    assert _uses(pattern, PLAIN_FILES) == [], f"say {PLAIN[pattern]!r}"
