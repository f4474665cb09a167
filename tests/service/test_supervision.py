"""One folder, one lab: who holds the lock is the lab, and nothing but its own processes is ended."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.cli import local_lab
from service.cli.console import Refused
from service.cli.discovery import LabBusy, lock
from service.lab.address import LabAddress, read_address, write_address
from service.lab.parts import BACK_OFF, Part, shorten
from service.lab.ports import Claims
from service.lab.processes import MARK, end_politely, mark_of
from service.lab.scratch import make_scratch, remove_scratch
from service.lab.supervisor import StartFailed, Supervisor
from service.local_keys import find_key, first_key, note_lab
from service.locking import holder, is_held
from tests.support.supervised_lab import NAMES, WAIT, left, supervised, until, waiting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "lab"
    made.mkdir()
    return made


@pytest.fixture
def bystander() -> "subprocess.Popen[bytes]":
    """A process that has nothing to do with any lab."""
    with subprocess.Popen(WAIT) as process:
        yield process
        process.kill()


def part(lab: Supervisor, name: str) -> Part:
    return next(each for each in lab.parts if each.name == name)


def test_a_killed_supervisor_takes_its_lab_with_it(folder: Path) -> None:
    with supervised(folder) as (process, address):
        assert len(left(folder)) == len(NAMES) + 1
        assert Path(address.scratch).is_dir()
        process.kill()
        until(lambda: not left(folder))
        until(lambda: not Path(address.scratch).exists())
        until(lambda: read_address(folder) is None)


def test_a_note_of_another_process_s_number_is_not_believed(
    folder: Path, bystander: "subprocess.Popen[bytes]"
) -> None:
    write_address(folder, LabAddress("http://127.0.0.1:1", "", "", bystander.pid))
    (folder / "lab.lock").write_text(str(bystander.pid))
    with pytest.raises(Refused, match="no lab is running"):
        local_lab.down_command(folder)
    assert bystander.poll() is None
    assert not is_held(folder)
    lock(folder).close()


@pytest.mark.parametrize("named", ["link", "dots", "renamed"])
def test_a_folder_is_the_same_by_every_name(folder: Path, named: str) -> None:
    with supervised(folder) as (process, _):
        if named == "link":
            other = folder.with_name("link")
            other.symlink_to(folder)
        elif named == "dots":
            other = folder / "logs" / ".."
        else:
            other = folder.rename(folder.with_name("renamed"))
        with pytest.raises(LabBusy, match=f"already running on .* \\(process {process.pid}\\)"):
            lock(other)
        local_lab.down_command(other)
        process.wait(10)
        assert left(other) == []


def test_a_supervisor_that_ignores_sigterm_is_ended_by_force(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_lab, "DOWN_SECONDS", 1.0)
    with supervised(folder, "deaf") as (process, address):
        local_lab.down_command(folder)
        process.wait(10)
        assert left(folder) == []
        assert not Path(address.scratch).exists()
    assert "by force" in capsys.readouterr().out


def test_strays_without_a_supervisor_are_ended_by_down(folder: Path) -> None:
    stray = subprocess.Popen(WAIT, env={**os.environ, MARK: mark_of(folder)})
    local_lab.down_command(folder)
    stray.wait(10)


def test_a_folder_that_is_held_is_refused_by_every_name(folder: Path) -> None:
    held = lock(folder)
    try:
        assert is_held(folder)
        assert holder(folder) is None  # ourselves
        link = folder.with_name("link")
        link.symlink_to(folder)
        with pytest.raises(LabBusy):
            lock(link)
    finally:
        held.close()
    assert not is_held(folder)


def test_strays_are_ended_before_ports_are_chosen(folder: Path) -> None:
    port = Claims().claim()
    listen = f"import socket, time; s = socket.create_server(('127.0.0.1', {port}));"
    program = f"{listen} print(1, flush=True); time.sleep(600)"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, MARK: mark_of(folder)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as stray:
        assert stray.stdout is not None
        stray.stdout.readline()
        lab = waiting(folder, port)
        try:
            assert lab.address.url == f"http://127.0.0.1:{port}"
        finally:
            lab.stop()
        stray.wait(10)


def test_labs_that_start_together_share_no_port(tmp_path: Path) -> None:
    port = Claims().claim()
    labs = [waiting(tmp_path / name, port) for name in ("one", "two", "three")]
    try:
        taken = [claimed for lab in labs for claimed in lab._claims._held]
        assert len(taken) == len(set(taken))
        urls = [lab.address.url for lab in labs]
        assert len(set(urls)) == 3
        assert urls[0] == f"http://127.0.0.1:{port}"
        assert len({lab.address.lab_id for lab in labs}) == 3
    finally:
        for lab in labs:
            lab.stop()


RACE = """
import json, sys
from pathlib import Path
from tests.support.supervised_lab import waiting
print("imported", flush=True)
sys.stdin.readline()
lab = waiting(Path(sys.argv[1]), int(sys.argv[2]))
print(json.dumps([lab.address.url, *lab._claims._held]), flush=True)
sys.stdin.readline()
lab.stop()
"""


def test_processes_that_choose_at_the_same_moment_share_no_port(tmp_path: Path) -> None:
    port = Claims().claim()
    command, pipe = [sys.executable, "-c", RACE], subprocess.PIPE
    racers = [
        subprocess.Popen([*command, str(tmp_path / name), str(port)], stdin=pipe, stdout=pipe, text=True)
        for name in "abcd"
    ]
    for _ in range(2):  # the first lines say that all has been imported
        told = [racer.stdout.readline() for racer in racers if racer.stdout]
        for racer in racers:
            print("go", file=racer.stdin, flush=True)
    assert [racer.wait(30) for racer in racers] == [0] * 4
    chosen = [json.loads(line) for line in told]
    ports = [each for _, *held in chosen for each in held]
    assert len(ports) == len(set(ports)) >= 4 * 5
    assert len({url for url, *_ in chosen}) == 4
    assert f"http://127.0.0.1:{port}" in {url for url, *_ in chosen}


def test_the_loss_of_a_port_is_told_to_all_who_ask_there(folder: Path) -> None:
    lab = waiting(folder)
    show = "import os, time; print(os.environ['GRAFTLAB_RAY_DASHBOARD'], flush=True); time.sleep(600)"
    part(lab, "scheduler").command = [sys.executable, "-c", show]
    try:
        lab.start()
        before = lab.address
        log = part(lab, "scheduler").log(lab.logs)
        until(lambda: before.ray_dashboard in log.read_text())
        port = int(before.ray_dashboard.rsplit(":", 1)[1])
        with socket.create_server(("127.0.0.1", port)):
            ray = part(lab, "ray").process
            assert ray is not None
            ray.kill()
            until(lambda: lab.reconcile() or lab.address != before)
            assert lab.address.ray_dashboard != before.ray_dashboard
            assert read_address(folder) == lab.address
            until(lambda: lab.reconcile() or log.read_text().splitlines()[-1] == lab.address.ray_dashboard)
        port = lab.address.ray_dashboard.rsplit(":", 1)[1]
        assert f"--dashboard-port={port}" in part(lab, "ray").command
    finally:
        lab.stop()


def test_what_fails_in_the_supervisor_is_tried_again(folder: Path) -> None:
    lab = waiting(folder)
    try:
        lab.start()
        until(lambda: len(list(lab.logs.iterdir())) == len(NAMES))
        for file in lab.logs.iterdir():
            file.unlink()
        lab.logs.rmdir()
        lab.logs.write_text("a file where the folder of the logs was")
        api = part(lab, "api")
        assert api.process is not None
        first = api.process.pid
        api.process.kill()
        until(lambda: lab.reconcile() or api.restarts > 0)
        lab.logs.unlink()
        until(lambda: lab.reconcile() or (api.process.pid != first and api.process.poll() is None))
        assert api.log(lab.logs).exists()
    finally:
        lab.stop()


def test_a_part_that_dies_at_once_is_told_with_its_last_words(folder: Path) -> None:
    lab = waiting(folder)
    part(lab, "scheduler").command = [sys.executable, "-c", "raise ValueError('no such colour')"]
    try:
        lab.start()
        with pytest.raises(
            StartFailed, match=r"scheduler ended with code 1: ValueError: no such colour; see"
        ):
            lab.wait_ready(120)
    finally:
        lab.stop()


def test_a_lab_goes_on_without_mlflow_and_says_so(folder: Path) -> None:
    lab = waiting(folder)
    part(lab, "mlflow").command = [sys.executable, "-c", "raise SystemExit('out of date')"]
    try:
        lab.start()
        until(lambda: part(lab, "mlflow").has_ended)
        lab._check_parts()
        (said,) = lab.without()
        assert said.startswith("mlflow does not run: out of date; runs continue")
        assert "graft tracking rebuild" in said
    finally:
        lab.stop()


def test_a_restart_of_one_part_changes_nothing_of_the_others(folder: Path) -> None:
    lab = waiting(folder)
    try:
        before = lab.agent_port
        lab._renew_ports(part(lab, "mlflow"))
        assert lab.agent_port == before
        lab._renew_ports(part(lab, "ray"))
        assert lab.agent_port != before
    finally:
        lab.stop()


def test_an_optional_part_that_keeps_dying_is_tried_once_a_minute() -> None:
    tracking = Part("tracking", WAIT, restarts=len(BACK_OFF))
    tracking.put_off()
    assert tracking.due > time.monotonic() + 50


def test_what_lies_in_the_folder_is_closed_to_others(folder: Path) -> None:
    folder.chmod(0o777)
    (folder / "logs").mkdir(mode=0o755)
    (folder / "storage").mkdir(mode=0o755)
    files = [folder / "graftlab.db", folder / "admin-key", folder / "logs" / "api.log"]
    for file in files[1:]:
        file.write_text("x")
        file.chmod(0o644)
    (folder / "outside").symlink_to(folder.parent)
    before = folder.parent.stat().st_mode
    lab = waiting(folder)
    try:
        lab.start()
        modes = {each: stat.S_IMODE(each.lstat().st_mode) for each in (folder, *folder.rglob("*"))}
        loose = {each.name for each, mode in modes.items() if mode & 0o077 and not each.is_symlink()}
        assert loose == set()
        assert stat.S_IMODE(Path(lab.address.scratch).stat().st_mode) == 0o700
        assert folder.parent.stat().st_mode == before
    finally:
        lab.stop()


def test_the_scratch_folder_is_new_and_only_such_a_one_is_removed(tmp_path: Path) -> None:
    mine, other = make_scratch(), make_scratch()
    assert mine != other
    link = mine.with_name(f"{mine.name}-link")
    link.symlink_to(other)
    kept = tmp_path / "graftlab-x"
    kept.mkdir()
    for noted in (str(link), str(kept), "/tmp/../etc", ""):
        remove_scratch(noted)
    assert link.is_symlink()
    assert other.is_dir()
    assert kept.is_dir()
    link.unlink()
    remove_scratch(str(mine))
    remove_scratch(str(other))
    assert not mine.exists()
    assert not other.exists()


def test_a_log_that_grows_is_cut_under_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 100)
        shorten(log, 100)
        writer.write(b"new\n")
    assert log.read_text() == "new\n"
    assert (tmp_path / "api.log.1").read_text() == "old\n" * 100
    shorten(log, 100)
    assert log.read_text() == "new\n"


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    end_politely(process, 0.5)
    assert process.returncode == -signal.SIGKILL


def test_a_key_is_shown_to_a_lab_that_runs_and_to_nobody_who_took_its_port(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GRAFTLAB_HOME", str(tmp_path / "home"))
    secret = first_key(folder)
    note_lab("http://127.0.0.1:1234", folder)
    assert find_key("http://127.0.0.1:1234") is None
    held = lock(folder)
    assert find_key("http://127.0.0.1:1234") == secret
    held.close()
    assert find_key("http://127.0.0.1:1234") is None
