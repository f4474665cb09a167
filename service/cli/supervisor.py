"""Start the lab's processes, keep them running, and end them and nothing else."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from service.cli.lab import LabAddress, write_address
from service.cli.ports import free_port, listeners
from service.credentials import first_key, forget_lab, mlflow_token, note_lab
from service.direct import clear_mlflow, reach_directly
from service.settings import Settings
from service.tracking.endpoints import PREFIX

MARK = "GRAFTLAB_LAB"
PART = "GRAFTLAB_PART"
"""Every process of a lab inherits both, so that its strays can be told from everybody else's."""
BACK_OFF = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
NOT_INHERITED = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "GRAFTLAB_KEY")
"""Another cluster, and what no part of the lab has a use for."""
STOP_ORDER = ("api", "scheduler", "tracking", "mlflow", "ray")
STOP_SECONDS = 12.0
AGENT_SECONDS = 45.0
"""How long Ray may take until its job agent listens."""


class StartFailed(Exception):
    """A part of the lab did not become ready."""


@dataclass
class Part:
    """One supervised process."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    due: float = 0.0
    started: float = 0.0


@dataclass
class Supervisor:
    """The lab of one data folder."""

    folder: Path
    port: int
    cpus: int
    parts: list[Part] = field(default_factory=list)
    agent_port: int = 0
    """Of the process through which Ray starts jobs."""
    agent_listens: bool = False

    def __post_init__(self) -> None:
        self.folder = self.folder.absolute()
        bind = Settings(data_dir=self.folder)
        self.host = bind.host
        self.address = LabAddress(
            url=f"http://{self.host}:{free_port(self.port)}",
            mlflow_url=f"http://127.0.0.1:{free_port(5000)}{PREFIX}",
            ray_dashboard=f"http://{self.host}:{free_port(8265)}",
            pid=os.getpid(),
        )
        self.parts = [Part(name, command) for name, command in self._commands().items()]

    def _commands(self) -> dict[str, list[str]]:
        python = sys.executable
        return {
            "ray": self._ray_command(),
            "mlflow": [python, "-m", "service.tracking.server"],
            "api": [python, "-m", "service.api"],
            "scheduler": [python, "-m", "service.scheduler"],
            "tracking": [python, "-m", "service.tracking"],
        }

    def _ray_command(self) -> list[str]:
        """With ports chosen anew."""
        self.agent_port = free_port()
        others = ("port", "ray-client-server-port", "metrics-export-port")
        return [
            *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
            f"--num-cpus={self.cpus}",
            f"--node-ip-address={self.host}",
            f"--dashboard-host={self.host}",
            f"--dashboard-port={_port(self.address.ray_dashboard)}",
            "--disable-usage-stats",
            f"--temp-dir={self._ray_folder()}",
            f"--dashboard-agent-listen-port={self.agent_port}",
            *(f"--{name}={free_port()}" for name in others),
        ]

    def _ray_folder(self) -> Path:
        """Short, because socket paths have at most 107 characters."""
        return Path(f"/tmp/graftlab-{os.getuid()}-{self.address.url.rsplit(':', 1)[-1]}")  # noqa: S108 - see above

    def environment(self, part: str) -> dict[str, str]:
        """What every process of the lab is told."""
        ours = {
            MARK: str(self.folder),
            PART: part,
            "GRAFTLAB_DATA_DIR": str(self.folder),
            "GRAFTLAB_HOST": self.host,
            "GRAFTLAB_PORT": _port(self.address.url),
            "GRAFTLAB_RAY_DASHBOARD": self.address.ray_dashboard,
            "GRAFTLAB_RAY_TOKEN_FILE": str(self._token_file()),
            "GRAFTLAB_MLFLOW_URL": self.address.mlflow_url,
            "GRAFTLAB_CPUS": str(self.cpus),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_file()),
            "RAY_TRAIN_V2_ENABLED": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONUNBUFFERED": "1",
        }
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        clear_mlflow(inherited)
        reach_directly(inherited)
        return {**inherited, **ours}

    def _token_file(self) -> Path:
        return self.folder / "ray-token"

    def start(self) -> None:
        """Clear what a killed predecessor left, then start every part."""
        end_strays(self.folder)
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        if not self._token_file().exists():
            self._token_file().touch(mode=0o600)
            self._token_file().write_text(secrets.token_hex(32))
        mlflow_token(self.folder)
        for part in self.parts:
            self._spawn(part)
        write_address(self.folder, self.address)
        note_lab(self.address.url, self.folder)

    def _spawn(self, part: Part) -> None:
        with (self.folder / "logs" / f"{part.name}.log").open("ab") as log:
            part.process = subprocess.Popen(
                part.command,
                env=self.environment(part.name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        part.due, part.started = 0.0, time.monotonic()
        self.agent_listens = self.agent_listens and part.name != "ray"

    def tend(self) -> None:
        """Restart what has died, later and later where it keeps dying."""
        self._tend_agent()
        for part in self.parts:
            if part.process is None or part.process.poll() is None:
                continue
            if not part.due:
                part.due = time.monotonic() + BACK_OFF[min(part.restarts, len(BACK_OFF) - 1)]
            elif time.monotonic() >= part.due:
                part.restarts += 1
                end_strays(self.folder, part.name)
                if part.name == "ray":  # it may have ended because somebody has one of its ports
                    part.command = self._ray_command()
                self._spawn(part)

    def _tend_agent(self) -> None:
        """Start a cluster anew whose job agent could not have its port: it stays up and takes no jobs."""
        (ray,) = (part for part in self.parts if part.name == "ray")
        if self.agent_listens or ray.process is None or ray.process.poll() is not None:
            return
        self.agent_listens = any(_descends(each, ray.process.pid) for each in listeners(self.agent_port))
        if not self.agent_listens and time.monotonic() - ray.started > AGENT_SECONDS:
            _end(ray.process)

    def wait_ready(self, seconds: float = 150.0) -> None:
        """Until API, scheduler, Ray and MLflow answer. Raises StartFailed naming what does not."""
        end, waiting = time.monotonic() + seconds, "the API does not answer yet"
        while time.monotonic() < end:
            self.tend()
            waiting = self._missing()
            if not waiting:
                return
            time.sleep(0.3)
        raise StartFailed(f"not ready after {seconds:.0f} s: {waiting}; see {self.folder / 'logs'}")

    def _missing(self) -> str:
        try:
            headers = {"Authorization": f"Bearer {first_key(self.folder)}"}
            ready = httpx.get(
                f"{self.address.url}/readyz", headers=headers, timeout=5, trust_env=False
            ).json()
            wrong = [f"{name}: {state}" for name, state in ready["parts"].items() if state != "ok"]
        except (httpx.HTTPError, ValueError):
            return "the API does not answer yet"
        try:
            httpx.get(f"{self.address.mlflow_url}/health", timeout=5, trust_env=False).raise_for_status()
        except httpx.HTTPError:
            wrong.append("mlflow: does not answer yet")
        if not self.agent_listens:
            wrong.append(f"ray: its job agent does not listen on port {self.agent_port} yet")
        return "; ".join(wrong)

    def stop(self) -> None:
        """End all parts in order, politely, then whatever carries this lab's mark."""
        by_name = {part.name: part for part in self.parts}
        for name in STOP_ORDER:
            _end(by_name[name].process)
        end_strays(self.folder)
        (self.folder / "lab.json").unlink(missing_ok=True)
        forget_lab(self.address.url)
        shutil.rmtree(self._ray_folder(), ignore_errors=True)


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_strays(folder: Path, part: str | None = None) -> None:
    """Kill processes that carry the mark of this data folder (and part), other than ourselves."""
    strays = [process for process in psutil.process_iter() if _carries(process, folder, part)]
    for process in strays:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(strays, timeout=5)


def _carries(process: psutil.Process, folder: Path, part: str | None) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return False
    return environment.get(MARK) == str(folder.absolute()) and part in (None, environment.get(PART))


def _descends(process: psutil.Process, ancestor: int) -> bool:
    """The agent has a title where its environment was, and thus carries no mark."""
    try:
        return ancestor in {parent.pid for parent in process.parents()}
    except psutil.Error:
        return False


def _port(url: str) -> str:
    return url.rsplit(":", 1)[-1]
