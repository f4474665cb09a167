"""Settings of the lab; every field can be set as GRAFTLAB_<NAME>."""

import os
import sys
from pathlib import Path
from urllib.parse import quote, unquote

import psutil
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.local_keys import MLFLOW_FILE
from service.webhook_hosts import parse_entry

POSTGRESQL = "postgresql+psycopg"
SHORT_NAMES = ("postgres", "postgresql")
"""Schemes that database hosts and other tools write; the driver is always psycopg."""


class Settings(BaseSettings):
    """Settings; the defaults are the embedded lab on loopback."""

    model_config = SettingsConfigDict(env_prefix="GRAFTLAB_", extra="ignore")

    data_dir: Path = Path("graftlab-data")
    """Folder of databases, storage, logs and secrets of the lab."""
    database_url: str = ""
    """Database of the service, SQLite or PostgreSQL; empty: `graftlab.db` in the data folder."""
    optuna_url: str = ""
    """Database of Optuna; it must differ from the service's, as both have a table `alembic_version`."""
    storage: str = ""
    """Storage of artifacts and events, a folder or an fsspec URI; empty: `storage` in the data folder."""
    ray_dashboard: str = "http://127.0.0.1:8265"
    """Address of Ray's dashboard, which accepts jobs."""
    ray_token_file: Path | None = None
    """File with the cluster's token; without it, Ray's own variable `RAY_AUTH_TOKEN` is used."""
    mlflow_url: str = "http://127.0.0.1:5000/mlflow"
    """Address of MLflow's server, with the path under which it answers; the lab serves it under
    `/mlflow/`.
    """
    mlflow_bind: str = "127.0.0.1"
    """Address that the lab's own MLflow server listens on, at the port of `mlflow_url`."""
    host: str = "127.0.0.1"
    """Address that the API listens on. Ray and MLflow of the embedded lab always listen on loopback."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the API and pages; 0: any free port."""
    listen_fd: int | None = None
    """Descriptor of a listening socket inherited from the parent process; then `port` is its port."""
    lab_id: str = ""
    """Id of this start of the lab, shown by `/healthz`, by which a supervisor recognises its own lab."""
    allowed_hosts: list[str] = ["127.0.0.1", "localhost", "[::1]"]
    """Host headers that the API answers to; `host` is added."""
    api_processes: int = Field(default=1, ge=1)
    """Number of processes that answer requests. They count requests, connections and metrics together."""
    requests_per_second: float = Field(default=100.0, gt=0)
    """Requests per second allowed in the long run to one key, or to one address without a valid key."""
    requests_burst: int = Field(default=400, ge=1)
    """Requests allowed at once."""
    worker_python: str = sys.executable
    """Python interpreter that starts attempts on the cluster."""
    cpus: int = Field(default_factory=lambda: cores())
    """CPUs that running attempts may use together."""
    gpus: int = 0
    """GPUs that running attempts may use together."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory, in GB, that the workers of a run without GPUs share; a graft that cannot fit is refused.

    Unset: not checked; `graft up` sets the memory of its machine.
    """
    gpu_memory_gb: float | None = Field(default=None, gt=0)
    """Memory of one GPU, in GB, for the same check of runs on GPUs. Unset: not checked."""

    import_roots: list[Path] = []
    """Folders of the lab's machine from which backbones, data sets and feature networks may be registered.

    None: nothing is registered by path. `graft up` on loopback allows its user's home folder instead.
    """

    webhook_hosts: list[str] = []
    """Hosts, `host` or `host:port`, that webhooks may call; if empty, webhooks are off."""
    webhook_timeout_seconds: float = Field(default=10.0, gt=0)
    """Time limit of one delivery, from resolving the name to the status of the answer."""
    webhook_retry_seconds: float = Field(default=5.0, ge=0)
    """Wait after the first failed attempt; four times as long after each further one, at most six hours."""
    webhook_attempts: int = Field(default=8, ge=1)
    """Number of attempts after which a delivery has failed."""
    webhook_days: float = Field(default=30.0, ge=0)
    """Days for which ended deliveries are kept."""

    round_seconds: float = 1.0
    """Longest wait between two rounds; a recorded change ends the wait early."""
    lead_seconds: float = 15.0
    """Time for which a scheduler, or the process of the studies, leads without renewing its lease."""
    study_step_seconds: float = Field(default=1800.0, gt=0)
    """Time limit of one step of a study, such as a proposal; beyond it the study fails and can be resumed."""
    silence_seconds: float = 60.0
    """An attempt whose heartbeat has not changed for this long counts as lost."""
    start_seconds: float = 900.0
    """An attempt that has shown no heartbeat for this long counts as never started."""
    cancel_grace_seconds: float = 30.0
    """Time between a request to cancel or pause and the attempt's end by force."""
    hold_line_seconds: float = 600.0
    """A run that has waited longer is not overtaken by smaller ones of its own or lower priorities."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints of a stage."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of a stage's newest checkpoints kept until its run ends; then only the newest intact one is
    kept.
    """
    keep_best: bool = False
    """Whether the checkpoint with the lowest loss is kept too, if a stage has one."""
    checkpoint_days: float = Field(default=30.0, ge=0)
    """Days after a run's end until all checkpoints are deleted and a retry starts over; `inf` keeps the last
    ones.
    """
    export_days: float = Field(default=30.0, ge=0)
    """Days for which the folder of an export is kept after its run has ended; `inf` keeps it."""
    warm_seconds: float = Field(default=60.0, ge=0)
    """Time for which a worker group waits for another run of the same backbone and resources; 0: not at
    all.
    """
    retry_seconds: float = 2.0
    """Pause before the second attempt; it doubles with each further one, at most ten minutes."""
    max_attempts: int = 5
    """Number of failed attempts after which a run fails; attempts that are not the run's fault do not
    count.
    """

    @field_validator("webhook_hosts")
    @classmethod
    def _are_hosts(cls, hosts: list[str]) -> list[str]:
        for entry in hosts:
            parse_entry(entry)
        return hosts

    def model_post_init(self, context: object) -> None:
        self.data_dir = self.data_dir.expanduser().absolute()
        self.database_url = _spelt_out(self.database_url) or sqlite_url(self.data_dir / "graftlab.db")
        self.optuna_url = _spelt_out(self.optuna_url) or sqlite_url(self.data_dir / "optuna.db")
        self.storage = self.storage or str(self.data_dir / "storage")
        if "://" not in self.storage:
            self.storage = str(Path(self.storage).expanduser().absolute())
        if self.import_roots:  # a field that is assigned counts as set
            self.import_roots = [root.expanduser().absolute() for root in self.import_roots]
        self.host = "127.0.0.1" if self.host == "localhost" else self.host
        own = f"[{self.host}]" if ":" in self.host else self.host
        if own not in (*self.allowed_hosts, "0.0.0.0", "[::]"):  # noqa: S104 - compared, not bound
            self.allowed_hosts = [*self.allowed_hosts, own]

    def mlflow_token(self) -> str | None:
        """Return the secret of MLflow's server: the data folder's, or MLflow's own variable."""
        try:
            return (self.data_dir / MLFLOW_FILE).read_text().strip()
        except OSError:
            return os.environ.get("MLFLOW_TRACKING_TOKEN")

    def ray_token(self) -> str | None:
        """Return the cluster's token, from its file or Ray's own variable."""
        if self.ray_token_file and self.ray_token_file.exists():
            return self.ray_token_file.read_text().strip()
        return os.environ.get("RAY_AUTH_TOKEN")


def cores() -> int:
    """Return the number of CPUs this process may use; in containers and batch jobs fewer than the machine
    has.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        granted = -(-int(quota) // int(period))
    except (OSError, ValueError):  # no limit, which is written "max", or no such file
        return allowed
    return max(1, min(allowed, granted))


def memory_of_machine() -> int:
    """Return the bytes of memory this process may use; in containers fewer than the machine has."""
    total: int = psutil.virtual_memory().total
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no limit, which is written "max", or no such file
        return total


def sqlite_url(file: Path) -> str:
    """Return the URL of a database file, whatever characters its path has."""
    return f"sqlite:///{quote(str(file))}"


def mlflow_database(folder: Path) -> str:
    """Return the URL of MLflow's database. It names the driver: without it MLflow creates a folder."""
    return f"sqlite+pysqlite{sqlite_url(folder / 'mlflow.db').removeprefix('sqlite')}"


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite database; None for one in memory."""
    path, _, parameters = url.partition("://")[2].removeprefix("/").partition("?")
    path = unquote(path)
    if path.startswith("file:"):
        path = unquote(path.removeprefix("file:"))  # SQLite decodes these as an address once more
    return None if path in ("", ":memory:") or "mode=memory" in parameters else Path(path)


def _spelt_out(url: str) -> str:
    """Return the URL with our driver and an absolute path."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in SHORT_NAMES:
        return f"{POSTGRESQL}://{rest}"
    if scheme.startswith("sqlite") and "?" not in rest and (file := sqlite_file(url)):
        return sqlite_url(file.expanduser().absolute())
    return url
