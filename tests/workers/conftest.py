"""Evaluations of tests look at the clock briefly."""

import pytest


@pytest.fixture(autouse=True)
def brief_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grafting_core.evaluation.cost.SECONDS", 0.0)
