"""A lab among other users and programs of its machine."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service.client import GraftlabClient
from service.lab.address import LabAddress, read_address
from service.lab.processes import MARK, mark_of
from service.local_keys import first_key
from tests.support.builders import document
from tests.support.supervised_lab import left, until

GRAFT = (str(Path(sys.executable).parent / "graft"),)
HEEDING = ("env", "--default-signal=HUP")
"""Whoever runs these tests may have ignored it, as `nohup` does; a lab would do so, too."""
OTHER_USER = Path(__file__).parents[1] / "support" / "other_user.py"
SHADOWS = ("random.py", "queue.py", "inspect.py", "secrets.py", "select.py", "profile.py")
pytestmark = [pytest.mark.timeout(600), pytest.mark.large]


@pytest.fixture(scope="module")
def odd_folder() -> Iterator[Path]:
    """A data folder that was there before, open to all, in a place that all can reach, oddly named.

    Beside it lie modules that are called like those of Python's own library.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        for name in SHADOWS:
            (Path(place) / name).write_text("raise RuntimeError('a module of the working folder')")
        folder = Path(place) / "my lab ü?100%#1"
        folder.mkdir()
        folder.chmod(0o777)
        yield folder


@pytest.fixture(scope="module")
def lab(odd_folder: Path) -> Iterator[LabAddress]:
    """Started from a folder full of shadows, with settings of another lab and another cluster around."""
    foreign = {"GRAFTLAB_KEY": "glk_of_another_lab", "RAY_ADDRESS": "127.0.0.1:9", "OMP_NUM_THREADS": "64"}
    environment = {**os.environ, **foreign, "HOME": "/proc"}
    words = ("up", "--data", odd_folder.name, "--port", "0", "--cpus", "2")
    printed = odd_folder.parent / "printed"
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [*HEEDING, *GRAFT, *words], stdout=file, stderr=file, cwd=odd_folder.parent, env=environment
        )
    try:
        until(lambda: "Ctrl-C" in printed.read_text() or process.poll() is not None, 320)
        address = read_address(odd_folder)
        assert address, printed.read_text()
        yield address
    finally:
        began = process.poll() is None
        process.send_signal(signal.SIGHUP)
        try:
            assert not began or process.wait(120) == 130
        finally:
            process.kill()  # its guardian ends the rest
        assert left(odd_folder) == []
        assert address is None or not Path(address.scratch).exists()


@pytest.fixture(scope="module")
def done(lab: LabAddress, odd_folder: Path) -> str:
    """A run that has succeeded."""
    client = GraftlabClient(lab.url, key=first_key(odd_folder))
    run_id = client.submit(document(name="walls-have-ears")).run_id
    until(lambda: client.run(run_id).ended_at is not None, 240)
    assert client.run(run_id).state == "SUCCEEDED", client.run(run_id).message
    return run_id


def _processes(folder: Path) -> list[psutil.Process]:
    """With those whose environment is overwritten by their title."""
    mark, found = mark_of(folder), {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
        except (psutil.Error, OSError):
            continue
    return list(found.values())


def _listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    ours = {process.pid for process in processes}
    return {
        (socket.laddr.ip, socket.laddr.port)
        for socket in psutil.net_connections("inet")
        if socket.pid in ours and (socket.status == psutil.CONN_LISTEN or (socket.type == 2 and socket.laddr))
    }


def test_everything_listens_on_loopback_alone(lab: LabAddress, done: str, odd_folder: Path) -> None:
    found = _listening(_processes(odd_folder))
    assert len(found) > 8
    assert {ip for ip, _ in found} <= {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_reaches_nothing(lab: LabAddress, done: str, odd_folder: Path, tmp_path: Path) -> None:
    processes = _processes(odd_folder)
    pids = {process.pid for process in processes}
    paths = {
        str(socket.laddr) for socket in psutil.net_connections("unix") if socket.pid in pids and socket.laddr
    }
    folders = [odd_folder, Path(lab.scratch)]
    inside = [path for folder in folders for path in folder.rglob("*")]
    files = [file for file in inside if file.is_file()]
    assert any(done in str(file) for file in files)
    assert any("session_latest" in path for path in paths) or any("plasma" in path for path in paths)
    credentials = [first_key(odd_folder), (odd_folder / "ray-token").read_text()]
    stolen = tmp_path.with_name("stolen")
    probes = {
        "folders": [str(folder) for folder in (*folders, *(path for path in inside if path.is_dir()))],
        "files": [str(file) for file in files],
        "pids": sorted(pids),
        "sockets": sorted(paths),
        "ports": sorted({port for _, port in _listening(processes)}),
        "secrets": [*credentials, done, "walls-have-ears", str(odd_folder)],
        "credentials": credentials,
        "theft": f"cp '{odd_folder}/admin-key' '{stolen}'",
    }
    (tmp_path / "probes.json").write_text(json.dumps(probes))
    command = [sys.executable, str(OTHER_USER), str(tmp_path / "probes.json")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == []
    assert not stolen.exists()
    search = f"{lab.mlflow_url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert httpx.get(search, trust_env=False).status_code == 401


def test_everything_lies_in_the_folder_however_it_is_called(
    lab: LabAddress, done: str, odd_folder: Path
) -> None:
    assert {each.name for each in odd_folder.parent.iterdir()} == {*SHADOWS, odd_folder.name, "printed"}
    assert {"graftlab.db", "mlflow.db", "storage", "logs"} <= {each.name for each in odd_folder.iterdir()}
    client = GraftlabClient(lab.url, key=first_key(odd_folder))
    until(lambda: client.run(done).mlflow_url is not None)


def test_tools_work_beside_modules_that_shadow_python_s(odd_folder: Path) -> None:
    words = ("check-operator", "mamba2")
    told = subprocess.run([*GRAFT, *words], capture_output=True, text=True, cwd=odd_folder.parent)
    assert told.returncode == 0, told.stderr
