"""The pages are whole: generated parts are current, links resolve, and every command in them is tested."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
import typer

from service.cli.main import app
from service.domain.run_lifecycle import MOVES
from tests.support.documentation import (
    DOCS,
    LAB,
    LANGUAGES,
    LOCAL,
    NOT_RUN,
    PAGES,
    PLUG_IN,
    ROOT,
    anchors,
    blocks,
    documented_commands,
    first_block,
    links,
    prose,
)
from workers.contract import Reason

PLAN = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from service.app import create_app
from service.local_keys import first_key
from service.settings import Settings
folder = Path("data")
headers = {"Authorization": f"Bearer {first_key(folder)}", "Content-Type": "application/yaml"}
client = TestClient(create_app(Settings(data_dir=folder)), "http://127.0.0.1", headers=headers)
answer = client.post("/api/v1/experiments/plan", content=sys.stdin.read())
assert answer.status_code == 200, answer.text
edits = answer.json()["experiment"]["design"]["edits"]
assert [edit["operator"]["kind"] for edit in edits] == ["token_shift", "token_shift"], edits
"""
FOLDERS = (
    *("grafting_core", "workers", "service", "migrations"),
    *("tests", "benchmarks", "docker", "examples", "docs", "faults", "end_to_end"),
)
Done = subprocess.CompletedProcess[str]


def run(command: str, folder: Path, *, packages: Path | None = None, text: str = "") -> Done:
    """A command as a user types it into a shell in a folder."""
    path = os.pathsep.join(str(each) for each in (packages, ROOT) if each)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "PYTHONPATH": path}
    if packages:
        environment["PIP_TARGET"] = str(packages)
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, input=text, capture_output=True, text=True
    )


def test_the_generated_parts_are_current() -> None:
    done = run("python docs/generate.py --check", ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_setting_and_route_is_explained() -> None:
    for page in ("settings.md", "rest.md"):
        text = (DOCS / "reference" / page).read_text()
        assert not re.findall(r"^\| `[A-Z].*\|\s*\|$", text, re.MULTILINE)


def test_the_table_of_states_is_that_of_the_service() -> None:
    text = (DOCS / "architecture.md").read_text().split("## States of a run")[1]
    moves: dict[str, set[str]] = {}
    for states, allowed in re.findall(r"^\| ([`A-Z, ]+) \| (.*) \|$", text, re.MULTILINE):
        moves |= {state: set(re.findall("[A-Z]+", allowed)) for state in re.findall("[A-Z]+", states)}
    assert moves == {state: set(allowed) for state, allowed in MOVES.items()}


def test_every_reason_is_explained() -> None:
    text = (DOCS / "reference" / "events.md").read_text().split("## Reasons")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(get_args(Reason))


def test_the_pages_build_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = run(f"python -m mkdocs build --strict --site-dir {tmp_path / 'site'}", ROOT)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img)\b[^>]*(?:src|href)=\"?(https?:[^\s\">]+)", page.read_text()
        )
        assert not loaded, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_resolves(page: Path) -> None:
    for target in links(page):
        file, _, fragment = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert not fragment or fragment in anchors(found), target


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in links(page)
        if (page.parent / target.partition("#")[0]).resolve() != page
    }
    assert {page for page in PAGES if page not in linked} == {ROOT / "README.md"}


def test_every_code_block_names_its_language() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in LANGUAGES, f"{page}: {block.text}"
            assert block.language != "text" or page.name == "cli.md", f"{page}: {block.text}"
            lines = block.text.splitlines()
            assert block.language != "console" or len(block.commands) == len(lines), f"{page}: {block.text}"


def test_every_command_is_in_one_class() -> None:
    classes = [*LOCAL, *PLUG_IN, *NOT_RUN, *(command for step in LAB.values() for command in step)]
    assert documented_commands() - set(classes) == set()
    assert set(classes) - documented_commands() == set()
    assert len(classes) == len(set(classes))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_the_text_exists(page: Path) -> None:
    """`graft word ...` between backticks is a command of the program, or a group of commands."""
    for words in re.findall(r"`graft ([a-z][^`]*)`", prose(page)):
        command = typer.main.get_command(app)
        for word in words.split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, f"graft {words}"
            command = command.commands[word]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_and_path_in_the_text_exists(page: Path) -> None:
    for module in re.findall(r"`python -m ([\w.]+)", prose(page)):
        assert find_spec(module) is not None, module
    bases = (ROOT, ROOT / "tests") if page.name == "faults.md" else (ROOT,)
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", prose(page)):
        assert any((base / path).exists() for base in bases), path


@pytest.mark.parametrize("command", LOCAL)
def test_a_command_that_needs_no_lab_succeeds(command: str, tmp_path: Path) -> None:
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plug_in_of_the_page_is_installed_and_used(tmp_path: Path) -> None:
    """Its files word for word, installed by pip; checked, and named in a design that the service plans."""
    page = "how-to/add-an-operator.md"
    package = tmp_path / "my-package" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "spec.py").write_text(first_block(page, "python", 0))
    (package / "module.py").write_text(first_block(page, "python", 1))
    (package.parent / "pyproject.toml").write_text(first_block(page, "toml"))
    packages = tmp_path / "packages"
    for command in PLUG_IN:
        done = run(command, tmp_path, packages=packages)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "a token sees -1 to +0" in done.stdout
    (tmp_path / "plan.py").write_text(PLAN)
    done = run("python plan.py", tmp_path, packages=packages, text=first_block(page, "yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
