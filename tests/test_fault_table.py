"""The table of known faults is whole: every fault has a test that exists, or says where it stands."""

import ast
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FAULTS: list[dict[str, Any]] = tomllib.loads((ROOT / "tests" / "faults.toml").read_text())["fault"]
NUMBERS = {1: range(1, 49), 2: range(1, 8)}
SECTIONS = range(1, 13)
"""Of the third list, whose faults are known by section and first words."""


@cache
def functions(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("number", NUMBERS)
def test_no_number_is_missing_or_told_twice(number: int) -> None:
    told = [fault["number"] for fault in FAULTS if fault["list"] == number]
    assert sorted(told) == list(NUMBERS[number])


def test_no_section_is_missing() -> None:
    told = [(fault["section"], fault["words"]) for fault in FAULTS if fault["list"] == 3]
    assert {section for section, _ in told} == set(SECTIONS)
    assert len(told) == len(set(told))


def test_every_fault_has_tests_or_a_reason() -> None:
    wrong = [fault for fault in FAULTS if bool(fault.get("tests")) == bool(fault.get("reason"))]
    assert not wrong


def test_every_test_that_is_named_exists() -> None:
    named = {test for fault in FAULTS for test in fault.get("tests", [])}
    missing = []
    for test in sorted(named):
        file, _, function = test.partition("::")
        path = ROOT / file
        if not path.is_file() or function not in functions(path):
            missing.append(test)
    assert not missing
