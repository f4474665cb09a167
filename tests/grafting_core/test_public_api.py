"""The public names of the library, and the page that shows them at work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import grafting_core

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-the-library.md"
HEAVY = ("torch", "diffusers", "ray", "numpy")


def printed(program: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module", ["grafting_core", "grafting_core.specs", "grafting_core.specs.documents.designs"]
)
def test_importing_the_package_loads_no_torch(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert printed(program).strip() == "[]"


@pytest.mark.parametrize("name", grafting_core.EXPORTS)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(grafting_core, name).__doc__
    assert name in dir(grafting_core)


def test_a_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match="load_backbone"):
        grafting_core.graft  # noqa: B018 - looked up for its error


@pytest.mark.large
def test_the_example_of_the_page_runs_and_is_short() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(program.strip().splitlines()) < 40
    shown = printed(program)
    assert "torch.Size([8, 28, 28])" in shown
    assert "fid60/fashion-cnn" in shown
