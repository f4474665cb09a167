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


@pytest.mark.parametrize("pattern", TERMS)
def test_the_term_of_the_field_is_used(pattern: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in PRODUCT
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(rf"\b({pattern})\b", line.lower())
    ]
    assert found == [], f"say {TERMS[pattern]!r}"
