"""Values of plain YAML scalars: YAML 1.2's core schema, with JSON's numbers and a few more.

| written | value |
|---|---|
| `3e-4`, `1E5`, `.5`, `5.`, `+5` | numbers |
| `0x1f`, `0o17` | numbers, hexadecimal and octal |
| `0100`, `1:30:00`, `1_000`, `0b101` | refused: YAML 1.1 reads them as numbers that people do not expect |
| `true`, `false`, and YAML 1.1's `yes`, `no`, `on`, `off` | truth values |
| `null`, `~`, nothing | null |
| `2026-01-31` | text |
"""

import re

MAX_NUMBER_CHARACTERS = 100
"""Limit for a number as written; no field needs more."""

NULLS = frozenset(("", "~", "null", "Null", "NULL"))
TRUTHS = {
    spelt: value
    for word, value in (
        ("true", True),
        ("yes", True),
        ("on", True),
        ("false", False),
        ("no", False),
        ("off", False),
    )
    for spelt in (word, word.capitalize(), word.upper())
}
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
DECIMAL = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
RADIX = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
REFUSED = (
    (
        re.compile(r"[-+]?0[0-9_]+(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"),
        "starts with a zero, which some readers take for octal; remove the zero, or write 0o for octal",
    ),
    (
        re.compile(r"[-+]?[0-9][0-9_]*(?::[0-9_]+)+(?:\.[0-9_]*)?"),
        "is a base-60 number for some readers; write it in seconds",
    ),
    (re.compile(r"[-+]?0b[01_]+"), "is binary, which YAML 1.2 does not have; write it as a decimal number"),
    (
        re.compile(r"[-+]?(?:0x[0-9a-fA-F_]+|[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?)"),
        "is not how YAML 1.2 writes a number; remove underscores and the sign of hexadecimal numbers",
    ),
)


def scalar(text: str) -> str | int | float | bool | None:
    """Value of an unquoted scalar. Raises ValueError with the reason for ambiguous numbers."""
    if text in NULLS:
        return None
    if text in TRUTHS:
        return TRUTHS[text]
    if text[0] not in "+-.0123456789":
        return text
    if RADIX.fullmatch(text):
        _check_length(text)
        return int(text, 0)
    if DECIMAL.fullmatch(text):
        return number(text)
    if INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    for pattern, reason in REFUSED:
        if pattern.fullmatch(text):
            raise ValueError(f"{_short(text)} {reason}; quote it to mean text")
    return text


def number(text: str) -> int | float:
    """A number as JSON writes it. Raises ValueError if it is too long."""
    _check_length(text)
    return int(text) if INTEGER.fullmatch(text) else float(text)


def _check_length(text: str) -> None:
    if len(text) > MAX_NUMBER_CHARACTERS:
        limit = f"at most {MAX_NUMBER_CHARACTERS} are allowed"
        raise ValueError(f"{_short(text)} has {len(text):,} characters; {limit}")


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:20]}..."
