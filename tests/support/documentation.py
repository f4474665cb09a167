"""The documentation's pages: their links, code blocks and commands, and the test of each command."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown import Markdown

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "migrations/README.md")),
)
LANGUAGES = frozenset({"console", "python", "yaml", "toml", "ini", "text"})
"""Languages of code blocks. Commands are only in `console` blocks, each on a line that begins with `$ `."""

LOCAL = ("graft check-operator hyena_x", "python -m service.db.migrate --check")
"""Commands run without a lab in `tests/test_docs.py`."""
PLUG_IN = (
    "pip install --no-deps --no-build-isolation ./my-package",
    "graft check-operator token_shift",
)
"""Commands run in `tests/test_docs.py` on the package that the page describes."""

NOT_RUN = {
    "make demo": "takes ten minutes; `tests/end_to_end/test_demo.py` runs the same command of `graft`",
    "make test": "is what runs this test",
    "make install": "would change the environment that runs the tests",
    "make install-dev": "would change the environment that runs the tests",
    "make format": "would change the working tree",
    "make check": "is a step of its own in continuous integration",
    "make docs": "`tests/test_docs.py` runs its two commands without changing the working tree",
    "git pull": "needs a remote repository",
    "systemctl enable --now graftlab": "needs systemd",
    "docker compose -f docker/compose.yaml up --build": "needs a container engine",
    "export RAY_AUTH_TOKEN=$(openssl rand -hex 32) POSTGRES_PASSWORD=$(openssl rand -hex 16)": (
        "sets variables for the command after it"
    ),
    "export GRAFTLAB_DATABASE_URL=postgresql://graftlab:secret@db.example/graftlab": (
        "needs a server of that name; the tests of the service run on PostgreSQL"
    ),
    **dict.fromkeys(
        (
            "python examples/own_model/draw_images.py models/shapes",
            "python examples/own_model/train_dit.py models/shapes models/dit-shapes",
            "graft dataset encode models/shapes --name shapes --vae models/dit-shapes/vae --size 64 --wait",
            "graft features train shapes --name shapes-judge --wait",
            "graft backbone add dit-shapes models/dit-shapes --dataset shapes --licence MIT --wait",
            "graft submit my-shapes.yaml --wait",
        ),
        "trains a model for minutes; `tests/service/test_registry_commands.py` runs the commands on another",
    ),
    **dict.fromkeys(
        (
            "graft import models/dit-xl2-mha-hyena_x-50p-fid2.61/model.pt --name hyena-x-50p"
            " --vae models/vae --licence Apache-2.0 --wait",
            "graft backbone add dit-xl-2 models/DiT-XL-2-256x256.pt --vae models/vae"
            " --licence CC-BY-NC-4.0 --wait",
        ),
        "needs published weights; `tests/service/test_importing.py` imports files of random ones",
    ),
    "graft evaluate samples.npz --protocol paper --reference VIRTUAL_imagenet256_labeled.npz"
    " --weights inception.pth --sha256 DIGEST": "needs published weights that are not in the repository",
    **dict.fromkeys(
        (
            "graft geneval images --prompts evaluation_metadata.jsonl",
            "graft geneval images --prompts evaluation_metadata.jsonl --baseline teacher-images",
        ),
        "needs published weights; `tests/grafting_core/geneval/test_scoring.py` runs it with another judge",
    ),
}
"""Command -> why no test runs it."""

LAB = {
    "start": ("graft up",),
    "look around": (
        "graft doctor",
        "graft backbones",
        "graft operators",
        "graft open",
        "graft plan my-design.yaml",
        "graft plan attention-and-mlp.yaml",
    ),
    "submit": (
        "graft bank fill examples/fill-attention.yaml",
        "graft submit my-design.yaml --wait",
        "graft submit examples/teacher.yaml --wait",
        "graft submit attention-and-mlp.yaml --wait",
        "graft leaderboard",
        "graft ls",
        "graft queue",
    ),
    "read a run": (
        "graft show RUN",
        "graft logs RUN",
        "graft fetch RUN samples.png",
        "graft fetch RUN samples.npz -o samples.npz",
        "graft fetch RUN samples.csv",
        'curl -fsS -H "Authorization: Bearer $GRAFTLAB_KEY"'
        " $GRAFTLAB_URL/api/v1/runs/RUN/artifacts/evaluate/samples.npz -o again.npz",
    ),
    "evaluate": (
        "graft evaluate samples.npz --reference pictures --protocol protocol.yaml",
        "graft reference make pictures --network fashion-cnn --output reference.npz",
        "graft reference show reference.npz",
        "graft evaluate samples.npz --reference reference.npz --protocol protocol.yaml",
        "graft evaluate graftlab-data/storage/models/MODEL --protocol protocol.yaml",
        "graft export RUN my-graft",
        "graft evaluate my-graft --protocol protocol.yaml",
        "graft analyze testbed/dit-fashion --samples 2 --steps 2 --figure profile.png",
    ),
    "pause": ("graft pause RUN", "graft priority 5 RUN", "graft extend RUN -s 3600", "graft resume RUN"),
    "cancel": ("graft cancel RUN --yes",),
    "retry": ("graft retry RUN", "graft kill RUN --yes"),
    "budgets": (
        "graft budget",
        "graft budget user/ann --device-seconds 3600 --max-running 2",
        "graft budget user/ann",
        "graft budget user/ann --remove device-seconds",
        "graft budget tag/sweep --device-seconds 7200",
    ),
    "bank": (
        "graft bank ls",
        "graft bank ls --kind hyena_x --backbone testbed/dit-fashion",
        "graft bank show KEY",
        "graft bank verify",
        "graft bank gc --older-than 90 --max-mib 500 --dry-run",
    ),
    "begin a study": ("graft study create examples/studies/demo.yaml --wait --export report",),
    "read a study": (
        "graft study ls",
        "graft study show STUDY",
        "graft study best STUDY",
        "graft study export STUDY --folder study-report",
    ),
    "change a study": (
        "graft study extend STUDY --trials 2",
        "graft study pause STUDY",
        "graft study resume STUDY",
        "graft study watch STUDY",
    ),
    "begin the same study": ("graft study create examples/studies/demo.yaml --wait",),
    "stop a study": ("graft study stop STUDY --yes",),
    "keys": (
        "graft keys make alice",
        "graft keys make board --role viewer --days 90",
        "graft keys make guest --sees own",
        "graft keys ls",
    ),
    "revoke a key": (
        "graft keys revoke ID --yes",
        "MLFLOW_TRACKING_URI=$GRAFTLAB_URL/mlflow MLFLOW_TRACKING_TOKEN=$GRAFTLAB_KEY python my_script.py",
        "graft tracking rebuild",
    ),
    "webhooks": (
        "graft webhook add https://ci.example/graft --type run.failed --type run.stopped",
        "graft webhook test HOOK",
        "graft webhook deliveries HOOK",
        "graft webhook ls",
        "graft webhook rm HOOK --yes",
    ),
    "clean": (
        "graft admin gc --dry-run",
        "graft admin gc --yes",
        "graft admin verify --quick --wait",
        "graft admin verify --wait",
        "graft admin verify CHECK",
    ),
    "stop": (
        "graft down",
        "python -m service.db.migrate",
        "tar -czf graftlab-backup.tar.gz graftlab-data",
        "python -c \"import sqlite3; sqlite3.connect('graftlab-data/graftlab.db')"
        ".execute('VACUUM INTO \\'graftlab-backup.db\\'')\"",
        "cp -r graftlab-data/storage graftlab-backup-storage",
    ),
}
"""Commands run in this order on one lab by `tests/end_to_end/test_documented_commands.py`."""


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    page: Path
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        if self.language != "console":
            return []
        return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(.*?)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(page, language.strip(), text) for language, text in found]


def documented_commands() -> set[str]:
    return {command for page in PAGES for block in blocks(page) for command in block.commands}


def first_block(page: str, language: str, number: int = 0) -> str:
    """Return the text of a page's n-th block in a language."""
    return [block for block in blocks(DOCS / page) if block.language == language][number].text


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[str]:
    """Yield the targets of a page's links and pictures within the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in target:
            yield target


def anchors(page: Path) -> set[str]:
    """Return the fragments that MkDocs gives to a page's headings."""
    markdown = Markdown(extensions=["toc", "fenced_code"])
    html = markdown.convert(page.read_text())
    return set(re.findall(r'<h\d id="([^"]+)"', html))
