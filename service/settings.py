"""Where things are and how patient the lab is; every field can be set as GRAFTLAB_<NAME>."""

import os
import sys
from pathlib import Path
from urllib.parse import quote, unquote

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.local_keys import MLFLOW_FILE
from service.webhook_hosts import parse_entry

POSTGRESQL = "postgresql+psycopg"
SHORT_NAMES = ("postgres", "postgresql")
"""As hosts of databases and other tools write it; the driver is always ours."""


class Settings(BaseSettings):
    """Defaults are the embedded lab on loopback."""

    model_config = SettingsConfigDict(env_prefix="GRAFTLAB_", extra="ignore")

    data_dir: Path = Path("graftlab-data")
    """Folder of databases, storage, logs and secrets of the lab."""
    database_url: str = ""
    """The service's database, SQLite or PostgreSQL; empty: `graftlab.db` in the data folder."""
    optuna_url: str = ""
    """Optuna's own database, never the service's: both have a table `alembic_version`."""
    storage: str = ""
    """For artifacts and events: a folder or an fsspec URI; empty: `storage` in the data folder."""
    ray_dashboard: str = "http://127.0.0.1:8265"
    """Address of Ray's dashboard, which takes jobs."""
    ray_token_file: Path | None = None
    """File with the cluster's token; else Ray's own variable `RAY_AUTH_TOKEN`."""
    mlflow_url: str = "http://127.0.0.1:5000/mlflow"
    """Of MLflow's server, with the path under which it answers; the lab shows it under `/mlflow/`."""
    mlflow_bind: str = "127.0.0.1"
    """The address that the lab's own MLflow server listens on, at the port of `mlflow_url`."""
    host: str = "127.0.0.1"
    """Of the API. Ray and MLflow of the embedded lab listen on loopback whatever this says."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Of the API and pages; 0: any free port."""
    listen_fd: int | None = None
    """A socket that listens already, handed over by whoever started this process; then `port` is its port."""
    lab_id: str = ""
    """Told by `/healthz`, so that a supervisor knows that its own lab answers."""
    allowed_hosts: list[str] = ["127.0.0.1", "localhost", "[::1]"]
    """Host headers that the API answers to; `host` is added."""
    api_processes: int = Field(default=1, ge=1)
    """Processes that answer requests. Several count requests, connections and metrics together."""
    requests_per_second: float = Field(default=100.0, gt=0)
    """That one key, or one address without a valid key, may send in the long run; all processes count."""
    requests_burst: int = Field(default=400, ge=1)
    """How many of these may come at once."""
    worker_python: str = sys.executable
    """The Python that starts attempts on the cluster."""
    cpus: int = Field(default_factory=lambda: cores())
    """CPUs that running attempts may ask for together."""
    gpus: int = 0
    """GPUs that running attempts may ask for together."""

    webhook_hosts: list[str] = []
    """Hosts, `host` or `host:port`, that webhooks may call; where there is none, webhooks are off."""
    webhook_timeout_seconds: float = Field(default=10.0, gt=0)
    """For one delivery, from the look-up of the name to the status of the answer."""
    webhook_retry_seconds: float = Field(default=5.0, ge=0)
    """After the first attempt; four times as long after each further one, six hours at most."""
    webhook_attempts: int = Field(default=8, ge=1)
    """After the last of them a delivery has failed and stays to be looked at."""
    webhook_days: float = Field(default=30.0, ge=0)
    """How long deliveries that have ended stay to be looked at."""

    round_seconds: float = 1.0
    """The longest wait between two rounds; what is recorded meanwhile ends it."""
    lead_seconds: float = 15.0
    """How long a scheduler, or the process of the studies, leads without renewing."""
    study_step_seconds: float = Field(default=1800.0, gt=0)
    """How long one step of a study, such as a proposal, may take; then the study fails and can be resumed."""
    silence_seconds: float = 60.0
    """An attempt whose heartbeat has not changed for this long is lost."""
    start_seconds: float = 900.0
    """An attempt that has shown no heartbeat for this long never started."""
    cancel_grace_seconds: float = 30.0
    """Between a request to cancel or pause and the attempt's end by force."""
    hold_line_seconds: float = 600.0
    """A run that has waited longer is not overtaken by smaller ones of its own or lower priorities."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints of a stage."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of a stage's newest stay until its run ends; then the newest intact one does."""
    keep_best: bool = False
    """Whether the checkpoint with the lowest loss stays as well, where a stage has one."""
    checkpoint_days: float = Field(default=30.0, ge=0)
    """So long after a run's end all go, and a retry begins the stage anew; `inf`: the last ones stay."""
    warm_seconds: float = Field(default=60.0, ge=0)
    """How long a worker group waits for another run of the same backbone and resources; 0: it does not."""
    retry_seconds: float = 2.0
    """Pause before the second attempt; it doubles with each further one, ten minutes at most."""
    max_attempts: int = 5
    """Attempts of a run that count against it before it fails."""

    @field_validator("webhook_hosts")
    @classmethod
    def _are_hosts(cls, given: list[str]) -> list[str]:
        for entry in given:
            parse_entry(entry)
        return given

    def model_post_init(self, context: object) -> None:
        self.data_dir = self.data_dir.expanduser().absolute()
        self.database_url = _spelt_out(self.database_url) or sqlite_url(self.data_dir / "graftlab.db")
        self.optuna_url = _spelt_out(self.optuna_url) or sqlite_url(self.data_dir / "optuna.db")
        self.storage = self.storage or str(self.data_dir / "storage")
        if "://" not in self.storage:
            self.storage = str(Path(self.storage).expanduser().absolute())
        self.host = "127.0.0.1" if self.host == "localhost" else self.host
        own = f"[{self.host}]" if ":" in self.host else self.host
        if own not in (*self.allowed_hosts, "0.0.0.0", "[::]"):  # noqa: S104 - told apart, not bound
            self.allowed_hosts = [*self.allowed_hosts, own]

    def mlflow_token(self) -> str | None:
        """What MLflow's server asks for: the data folder's secret, or MLflow's own variable."""
        try:
            return (self.data_dir / MLFLOW_FILE).read_text().strip()
        except OSError:
            return os.environ.get("MLFLOW_TRACKING_TOKEN")

    def ray_token(self) -> str | None:
        """The cluster's token, from its file or Ray's own variable."""
        if self.ray_token_file and self.ray_token_file.exists():
            return self.ray_token_file.read_text().strip()
        return os.environ.get("RAY_AUTH_TOKEN")


def cores() -> int:
    """How many this process may use: less than the machine has, in a container or a job of a cluster."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        granted = -(-int(quota) // int(period))
    except (OSError, ValueError):  # no limit, which is written "max", or no such file
        return allowed
    return max(1, min(allowed, granted))


def sqlite_url(file: Path) -> str:
    """The URL of a database file, whatever characters are in its path."""
    return f"sqlite:///{quote(str(file))}"


def mlflow_database(folder: Path) -> str:
    """The URL of MLflow's database. Without its driver MLflow makes a folder of the quoted path."""
    return f"sqlite+pysqlite{sqlite_url(folder / 'mlflow.db').removeprefix('sqlite')}"


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None for one in memory."""
    path, _, parameters = url.partition("://")[2].removeprefix("/").partition("?")
    path = unquote(path)
    if path.startswith("file:"):
        path = unquote(path.removeprefix("file:"))  # SQLite reads these as an address once more
    return None if path in ("", ":memory:") or "mode=memory" in parameters else Path(path)


def _spelt_out(url: str) -> str:
    """With our driver, and a path that is the same from every folder."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in SHORT_NAMES:
        return f"{POSTGRESQL}://{rest}"
    if scheme.startswith("sqlite") and "?" not in rest and (file := sqlite_file(url)):
        return sqlite_url(file.expanduser().absolute())
    return url
