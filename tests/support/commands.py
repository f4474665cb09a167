"""The command line called in this process, and a lab that it talks to, which carries out what is queued."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from grafting_core.specs.backbone import register_cards
from service.cli.main import main
from service.client import GraftlabClient
from service.db.engine import Database
from service.local_keys import first_key
from service.settings import Settings
from tests.support.api_server import serving
from tests.support.registering import InProcess

Graft = Callable[..., tuple[int, str, str]]
"""Words of a command -> exit code, standard output, standard error."""


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Graft:
    """Call the command line with these words."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["graft", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


@contextmanager
def serving_lab(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GraftlabClient]:
    """A lab that carries out what is queued, round after round."""
    ended = threading.Event()

    def work() -> None:
        worker = InProcess(settings, database)
        while not ended.wait(0.1):
            worker.round()

    with serving(settings) as port:
        monkeypatch.setenv("GRAFTLAB_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("GRAFTLAB_KEY", first_key(settings.data_dir))
        thread = threading.Thread(target=work)
        thread.start()
        yield GraftlabClient(f"http://127.0.0.1:{port}")
        ended.set()
        thread.join()
    register_cards(())
