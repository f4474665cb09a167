"""The package without extras is the client and the command line; what else needs more says so."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.local_keys import first_key
from service.settings import Settings
from tests.support.api_server import serving

ROOT = Path(__file__).parents[2]
ABSENT = ("torch", "ray", "mlflow", "sqlalchemy", "fastapi", "diffusers", "numpy")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the base package alone; gives its folder of programs."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    source = folder / "source"  # pip builds in the folder that it installs from
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "tests", "graftlab-*", "build"))
    words = [str(folder / "bin" / "pip"), "install", "-q", "-c", str(ROOT / "constraints.txt"), str(source)]
    subprocess.run(words, check=True, capture_output=True)
    return folder / "bin"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """An application on a real socket: its address and the admin's key."""
    settings = Settings(data_dir=tmp_path, database_url=f"sqlite:///{tmp_path}/graftlab.db")
    with serving(settings) as port:
        yield f"http://127.0.0.1:{port}", first_key(tmp_path)


def graft(installed: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GRAFTLAB_KEY")
    }
    return subprocess.run(
        [str(installed / "graft"), *words], capture_output=True, text=True, env=inherited | environment
    )


@pytest.mark.large
def test_the_base_package_submits_and_lists(installed: Path, lab: tuple[str, str]) -> None:
    url, key = lab
    design = str(ROOT / "examples" / "window-half.yaml")
    sent = graft(installed, "submit", design, "--url", url, GRAFTLAB_KEY=key)
    assert sent.returncode == 0, sent.stderr
    listed = graft(installed, "ls", "--url", url, GRAFTLAB_KEY=key)
    assert "window-half" in listed.stdout


@pytest.mark.large
def test_the_base_package_holds_nothing_that_computes_or_serves(installed: Path) -> None:
    code = f"from importlib.util import find_spec; print([n for n in {ABSENT} if find_spec(n)])"
    found = subprocess.run(
        [str(installed / "python"), "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.large
@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("up", "--data", "lab"), "lab"),
        (("demo", "--data", "lab"), "lab"),
        (("check-operator", "hyena_x"), "core"),
        (("evaluate", "testbed/dit-fashion"), "core"),
    ],
)
def test_a_command_that_needs_an_extra_names_it(
    installed: Path, tmp_path: Path, words: tuple[str, ...], extra: str
) -> None:
    refused = subprocess.run([str(installed / "graft"), *words], capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"pip install 'graftlab[{extra}]'" in refused.stderr.replace("\n", " ")
