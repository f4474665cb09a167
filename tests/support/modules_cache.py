"""Where diffusers copies the code of folders that it trusts."""

from pathlib import Path

import pytest


def modules_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be this folder, which is importable, for one test."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(folder))
    monkeypatch.syspath_prepend(str(folder))
