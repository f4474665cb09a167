"""Start the lab's processes, keep them running, and end them."""

import logging
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from service.domain.tracking_endpoints import PREFIX
from service.lab.address import LabAddress, forget_address, read_address, write_address
from service.lab.environment import environment_of
from service.lab.guardian import DONE
from service.lab.import_roots import as_setting, import_roots
from service.lab.modes import close_to_others, write_secret
from service.lab.parts import OPTIONAL, Part, shorten
from service.lab.ports import LOOPBACK, Claims, is_address, is_free, listen, listeners
from service.lab.processes import (
    GUARDIAN,
    INSTANCE,
    MARK,
    PART,
    descends,
    end_politely,
    end_strays,
    mark_of,
)
from service.lab.scratch import make_scratch, remove_scratch
from service.local_keys import first_key, forget_lab, mlflow_token, note_lab
from service.settings import memory_of_machine, mlflow_database
from service.startup import (
    CannotStart,
    check_database,
    check_packages,
    check_storage,
    checked_settings,
)

log = logging.getLogger("graftlab.supervisor")
STOP_ORDER = ("api", "studies", "scheduler", "tracking", "mlflow", "ray")
AGENT_SECONDS = 120.0
"""Time limit for Ray's job agent to listen, on a busy machine."""
RAY_TRIES = 2
"""Number of tries: a cluster that ends during the start may have lost one of its many ports to another
program.
"""
STEADY_SECONDS = 60.0
"""Running time after which a part's restarts are counted from zero."""
LOG_SECONDS = 10.0
"""Time between two checks of the logs' lengths."""


class StartFailed(Exception):
    """A part of the lab did not become ready."""


@dataclass
class Supervisor:
    """The lab of one data folder, whose lock the caller holds."""

    folder: Path
    port: int
    cpus: int
    parts: list[Part] = field(default_factory=list)
    agent_port: int = 0
    """Port of the process through which Ray starts jobs."""
    agent_listens: bool = False

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.settings = checked_settings(data_dir=self.folder)
        self.host = LOOPBACK
        """Address of every part but the API, which listens where the settings say."""
        self.address = LabAddress("", "", "", os.getpid(), secrets.token_hex(8))
        self.mark = ""
        self._claims = Claims()
        self._listening: socket.socket | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._reported: dict[str, str] = {}
        self._logs_seen = 0.0
        self._umask: int | None = None

    def _commands(self) -> dict[str, list[str]]:
        python = sys.executable
        return {
            "ray": self._ray_command(),
            "mlflow": [python, "-P", "-m", "service.processes.mlflow"],
            "api": [python, "-P", "-m", "service.processes.api"],
            "scheduler": [python, "-P", "-m", "service.processes.scheduler"],
            "studies": [python, "-P", "-m", "service.processes.studies"],
            "tracking": [python, "-P", "-m", "service.processes.tracking"],
        }

    def _ray_command(self) -> list[str]:
        """Return Ray's command with newly chosen ports."""
        self.agent_port = self._claims.claim()
        others = ("port", "ray-client-server-port")
        return [
            *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            f"--num-cpus={self.cpus}",
            f"--node-ip-address={self.host}",
            f"--dashboard-host={self.host}",
            f"--dashboard-port={_port(self.address.ray_dashboard)}",
            "--disable-usage-stats",
            f"--temp-dir={Path(self.address.scratch) / 'ray'}",
            f"--dashboard-agent-listen-port={self.agent_port}",
            *(f"--{name}={self._claims.claim()}" for name in others),
        ]

    def environment(self, part: str) -> dict[str, str]:
        """Return the environment of a process of the lab."""
        address = self.address
        return {
            **environment_of(part, self.folder),
            MARK: self.mark,
            PART: part,
            INSTANCE: address.lab_id,
            "GRAFTLAB_DATABASE_URL": self.settings.database_url,
            "GRAFTLAB_OPTUNA_URL": self.settings.optuna_url,
            "GRAFTLAB_STORAGE": self.settings.storage,
            "GRAFTLAB_HOST": self.settings.host,
            "GRAFTLAB_PORT": _port(address.url),
            "GRAFTLAB_RAY_DASHBOARD": address.ray_dashboard,
            "GRAFTLAB_RAY_TOKEN_FILE": str(self._token_file()),
            "GRAFTLAB_MLFLOW_URL": address.mlflow_url,
            "GRAFTLAB_CPUS": str(self.cpus),
            "GRAFTLAB_MEMORY_GB": str(self.settings.memory_gb or memory_of_machine() / 1e9),
            "GRAFTLAB_IMPORT_ROOTS": as_setting(import_roots(self.settings)),
            "RAY_AUTH_TOKEN_PATH": str(self._token_file()),
        }

    def _token_file(self) -> Path:
        return self.folder / "ray-token"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def start(self) -> None:
        """Clean up after a killed predecessor, check what the lab needs, then start every part.

        Raises CannotStart, NoFreePort or OSError; then nothing is left running.
        """
        if not self.parts:
            self.prepare()
        self._watch()
        for part in self.parts:
            self._spawn(part)
        self._write_down()

    def prepare(self) -> None:
        """Prepare everything before the first process.

        Processes of a killed predecessor are ended first: they may hold the ports.
        """
        self._umask = os.umask(0o077)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mark = mark_of(self.folder)
        end_strays(self.mark)
        before = read_address(self.folder)
        if before is not None:
            remove_scratch(before.scratch)
        self._check()
        close_to_others(self.folder)
        if not self._token_file().exists() or not self._token_file().read_text().strip():
            write_secret(self._token_file(), secrets.token_hex(32))
        mlflow_token(self.folder)
        self._choose_addresses()
        self.parts = [Part(name, command) for name, command in self._commands().items()]

    def _check(self) -> None:
        check_packages(sys.executable)
        if not is_address(self.settings.host):
            wrong = f"GRAFTLAB_HOST={self.settings.host} is not an address of this machine"
            raise CannotStart(f"{wrong}; {LOOPBACK} is right for a lab of one machine")
        check_storage(self.settings)
        check_database(self.settings)

    def _choose_addresses(self) -> None:
        bound = self.settings.host
        self._listening = listen(bound, self.port, self._claims)
        shown = {"0.0.0.0": LOOPBACK, "::": "[::1]"}.get(bound, f"[{bound}]" if ":" in bound else bound)  # noqa: S104
        self.address = replace(
            self.address,
            url=f"http://{shown}:{self._listening.getsockname()[1]}",
            mlflow_url=f"http://{self.host}:{self._claims.claim(5000)}{PREFIX}",
            ray_dashboard=f"http://{self.host}:{self._claims.claim(8265)}",
            scratch=str(make_scratch()),
        )

    def _watch(self) -> None:
        """Start the guardian, which ends the other processes if this one is killed."""
        words = (self.mark, self.address.lab_id, str(self.folder))
        self._guardian = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.lab.guardian", *words],
            env=self.environment(GUARDIAN),
            cwd="/",
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _spawn(self, part: Part) -> None:
        listening = self._listening if part.name == "api" else None
        inherited = () if listening is None else (listening.fileno(),)
        descriptor = {} if listening is None else {"GRAFTLAB_LISTEN_FD": str(listening.fileno())}
        part.spawn({**self.environment(part.name), **descriptor}, self.logs, inherited)
        self.agent_listens = self.agent_listens and part.name != "ray"

    def _write_down(self) -> None:
        write_address(self.folder, self.address)
        note_lab(self.address.url, self.folder)

    def reconcile(self) -> None:
        """Restart parts that have died, with growing waits if they keep dying. Failures here are retried."""
        self._try("the guardian", self._restart_guardian)
        self._try("ray's job agent", self._check_agent)
        for part in self.parts:
            self._try(part.name, lambda part=part: self._restart_part(part))  # type: ignore[misc]  # mypy: defaults
        self._try("the logs", self._shorten_logs)

    def _try(self, what: str, step: Callable[[], None]) -> None:
        try:
            step()
            self._reported.pop(what, None)
        except (OSError, psutil.Error) as error:
            if self._reported.get(what) != str(error):
                log.warning("%s: %s; will be tried again", what, error)
            self._reported[what] = str(error)

    def _restart_guardian(self) -> None:
        if self._guardian is not None and self._guardian.poll() is not None:
            self._watch()

    def _restart_part(self, part: Part) -> None:
        if not part.has_ended:
            return
        if not part.due:
            if time.monotonic() - part.started > STEADY_SECONDS:
                part.restarts = 0
            part.put_off()
        elif time.monotonic() >= part.due:
            part.restarts += 1
            part.put_off()  # in case that it cannot be started
            end_strays(self.mark, part.name)
            self._renew_ports(part)
            self._spawn(part)

    def _renew_ports(self, part: Part) -> None:
        """Choose new ports for a part that may have died because one was taken; restart the parts that use
        it.
        """
        before = self.address
        if part.name == "ray":
            port = self._claims.claim(int(_port(before.ray_dashboard)))
            self.address = replace(before, ray_dashboard=f"http://{self.host}:{port}")
            part.command = self._ray_command()
        elif part.name == "mlflow":
            port = self._claims.claim(int(_port(before.mlflow_url)))
            self.address = replace(before, mlflow_url=f"http://{self.host}:{port}{PREFIX}")
        if self.address != before:
            self._write_down()
            users = ("api", "scheduler") if part.name == "ray" else ("api", "tracking")
            for user in self.parts:
                if user.name in users and user.process is not None and not user.has_ended:
                    user.due = time.monotonic()
                    user.process.terminate()

    def _check_agent(self) -> None:
        """Restart a cluster whose job agent did not get its port: it stays up but accepts no jobs."""
        (ray,) = (part for part in self.parts if part.name == "ray")
        if self.agent_listens or ray.process is None or ray.has_ended:
            return
        taken = not is_free(self.agent_port)
        # In this order: if our agent took the port, it listens by now.
        self.agent_listens = any(descends(process, ray.process.pid) for process in listeners(self.agent_port))
        late = time.monotonic() - ray.started > AGENT_SECONDS
        if not self.agent_listens and (taken or late):
            ray.due = time.monotonic()
            end_politely(ray.process)

    def _shorten_logs(self) -> None:
        if time.monotonic() - self._logs_seen < LOG_SECONDS:
            return
        self._logs_seen = time.monotonic()
        for part in self.parts:
            with suppress(FileNotFoundError):
                shorten(part.log(self.logs))

    def wait_ready(self, seconds: float = 300.0) -> None:
        """Wait until all parts but the optional ones are ready. Raises StartFailed naming what is not."""
        end, waiting = time.monotonic() + seconds, "the API does not answer yet"
        while time.monotonic() < end:
            self._check_parts()
            self.reconcile()
            waiting = self._missing()
            if not waiting:
                return
            time.sleep(0.3)
        raise StartFailed(f"not ready after {seconds:.0f} s: {waiting}; see {self.logs}")

    def _check_parts(self) -> None:
        """Raises StartFailed for a required part that ended during the start: a restart would not help."""
        for part in self.parts:
            if part.process is None or not part.has_ended or part.due or part.name in OPTIONAL:
                continue
            if part.name == "ray" and part.restarts < RAY_TRIES - 1:
                continue
            words, code = part.last_words(self.logs), part.process.returncode
            raise StartFailed(f"{part.name} ended with code {code}: {words}; see {part.log(self.logs)}")

    def _missing(self) -> str:
        headers = {"Authorization": f"Bearer {first_key(self.folder)}"}
        try:
            alive = httpx.get(f"{self.address.url}/healthz", timeout=1, trust_env=False).json()
            if alive.get("lab") != self.address.lab_id:
                return f"another program answers at {self.address.url}"
            ready = httpx.get(
                f"{self.address.url}/readyz", headers=headers, timeout=5, trust_env=False
            ).json()
            wrong = [f"{name}: {state}" for name, state in ready["parts"].items() if state != "ok"]
        except (httpx.HTTPError, ValueError, KeyError, AttributeError):
            return "the API does not answer yet"
        if not self.agent_listens:
            wrong.append(f"ray: its job agent does not listen on port {self.agent_port} yet")
        return "; ".join(wrong)

    def without(self) -> list[str]:
        """List the optional parts that do not run, with what to do about it."""
        data = shlex.quote(mlflow_database(self.folder))
        remedy = f"`mlflow db upgrade {data}` updates an older database to this version; move any other"
        remedy += " database away, start the lab again, and `graft tracking rebuild` fills a new one"
        return [
            f"{part.name} does not run: {part.last_words(self.logs)}; runs continue without it. {remedy}"
            for part in self.parts
            if part.name in OPTIONAL and part.has_ended
        ]

    def stop(self) -> None:
        """End all parts in order, first with SIGTERM, then every process with this lab's mark."""
        by_name = {part.name: part for part in self.parts}
        for name in STOP_ORDER:
            if name in by_name:
                end_politely(by_name[name].process)
        if self.mark:
            end_strays(self.mark)
        forget_address(self.folder, self.address.lab_id)
        forget_lab(self.address.url)
        remove_scratch(self.address.scratch)
        if self._listening is not None:
            self._listening.close()
        self._claims.close()
        self._dismiss()
        if self._umask is not None:
            os.umask(self._umask)

    def _dismiss(self) -> None:
        """Tell the guardian that all processes have ended."""
        if self._guardian is None or self._guardian.stdin is None:
            return
        with suppress(OSError):
            self._guardian.stdin.write(DONE)
            self._guardian.stdin.close()
        self._guardian.wait()


def _port(url: str) -> str:
    return str(urlsplit(url).port)
