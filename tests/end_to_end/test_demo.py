"""What `graft demo` says last is so: the lab has stopped, and the printed command shows what it has found."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.lab.address import LabAddress, read_address
from tests.support.supervised_lab import left, until

DEMO = """
import sys
from pathlib import Path
from service.cli import local_lab
local_lab.DEMO_DESIGNS = tuple(sys.argv[2:])
local_lab.demo_command(Path(sys.argv[1]), 0, 2)
"""


@pytest.mark.large
@pytest.mark.timeout(400)
def test_the_command_that_a_demo_ends_with_opens_its_pages(tmp_path: Path) -> None:
    """Of no designs: what they find is asked elsewhere."""
    folder = tmp_path / "my demo"
    words = [sys.executable, "-P", "-c", DEMO, str(folder)]
    told = subprocess.run(words, capture_output=True, text=True, timeout=200, env=_wide())
    assert told.returncode == 0, told.stderr
    during, stopped, after = told.stdout.partition("The lab has stopped")
    (url,) = re.findall(r"pages +(http://\S+?)/login", during)
    assert stopped
    assert "://" not in after
    assert left(folder) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
    (command,) = [line.strip() for line in after.splitlines() if "graft up" in line]
    _open_pages(shlex.split(command), tmp_path, folder)


def _open_pages(command: list[str], place: Path, folder: Path) -> None:
    """What the command prints is a link that opens the pages."""
    graft, *rest = command
    assert graft == "graft"
    printed = place / "printed"
    with printed.open("wb") as file:
        words = [sys.executable, "-P", "-m", "service.cli.main", *rest, "--port", "0", "--cpus", "2"]
        lab = subprocess.Popen(words, stdout=file, stderr=file, env=_wide())
    try:
        until(lambda: "Ctrl-C" in printed.read_text() or lab.poll() is not None, 150)
        found = re.search(r"pages +(http://\S+)", printed.read_text())
        assert found, printed.read_text()
        address = read_address(folder)
        assert isinstance(address, LabAddress)
        assert found.group(1).startswith(address.url)
        with httpx.Client(trust_env=False, follow_redirects=True) as browser:
            assert browser.get(found.group(1)).status_code == 200
            assert "Leaderboard" in browser.get(address.url).text
    finally:
        lab.send_signal(signal.SIGTERM)
        lab.wait(60)


def _wide() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200"}
