"""Every module and name that is imported anywhere exists, in programs inside strings and in pages too."""

import re
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = "grafting_core|workers|service|tests|benchmarks"
IMPORT = re.compile(rf"\b(?:from|import) ((?:{PACKAGES})(?:\.\w+)*)(?: import (\w+(?:, \w+)*))?")
PROGRAM = re.compile(r"-m[\", ]+((?:service|workers|grafting_core|benchmarks|tests)(?:\.[a-z]\w*)*)")
SUFFIXES = (".py", ".md", ".toml", ".yaml", ".yml", ".html", "")


FOLDERS = ("grafting_core", "workers", "service", "tests", "benchmarks", "migrations", "docs", "docker")


def texts() -> list[Path]:
    found = [*ROOT.glob("*"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*"))]
    kept = [file for file in found if file.is_file() and file.suffix in SUFFIXES]
    return [file for file in kept if "released" not in file.parts and file.name != "CHANGELOG.md"]


@lru_cache
def source(module: str) -> str | None:
    """Text of a module or of a package's `__init__`, empty without one; None if there is no such module."""
    path = ROOT / module.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file.read_text()
    return "" if path.is_dir() else None


def is_there(module: str, names: str | None) -> bool:
    text = source(module)
    if text is None:
        return False
    return all(
        source(f"{module}.{name}") is not None or re.search(rf"\b{name}\b", text)
        for name in (names or "").split(", ")
        if name
    )


def test_what_is_imported_exists() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in texts()
        for match in IMPORT.finditer(file.read_text())
        if not is_there(match[1], match[2])
    ]
    assert wrong == []


def test_what_is_run_as_a_program_exists() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in texts()
        for match in PROGRAM.finditer(file.read_text())
        if source(match[1]) is None
    ]
    assert wrong == []
