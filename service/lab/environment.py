"""Environment of the lab's processes: what they inherit from the user, and what is set for them."""

import os
import tempfile
from pathlib import Path

from service.direct import clear_mlflow, reach_directly

NOT_INHERITED = ("GRAFTLAB_KEY", "GRAFTLAB_URL", "PYTHONSTARTUP", "PYTHONHOME")
FOREIGN = ("RAY_", "OMP_", "MKL_", "OPENBLAS_")
"""Prefixes of variables that would make the cluster join another, or workers use other CPUs."""
PATHS = ("GRAFTLAB_FEATURE_NETWORKS",)
"""Variables with files relative to the user's folder; the parts start in another one."""
RAY_LOG_BYTES = 20 * 2**20


def environment_of(part: str, folder: Path) -> dict[str, str]:
    """Return the environment of a part of the lab of this data folder."""
    inherited = {
        name: str(Path(value).absolute()) if name in PATHS and value else value
        for name, value in os.environ.items()
        if name not in NOT_INHERITED and not name.startswith(FOREIGN)
    }
    clear_mlflow(inherited)
    reach_directly(inherited)
    # Ray sets its workers' number of threads; processes that only serve need one.
    threads = {} if part == "ray" else {"OMP_NUM_THREADS": "1"}
    return {
        **inherited,
        **_absolute_pythonpath(),
        **threads,
        **FOR_RAY,
        "HOME": _home(folder),
        "GRAFTLAB_DATA_DIR": str(folder),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that the lab does not use
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }


FOR_RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray takes loopback for a mistake and listens on all addresses, unless it may not be a cluster.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray shows its metrics, with ids of runs in them, to every caller. Those of its dashboard cannot be
    # turned off, but no port can be opened under this number.
    "RAY_enable_metrics_collection": "0",
    "DASHBOARD_METRIC_PORT": "65536",
    "RAY_ROTATION_MAX_BYTES": str(RAY_LOG_BYTES),
    "RAY_ROTATION_BACKUP_COUNT": "2",
}


def _home(fallback: Path) -> str:
    """Return the user's home folder if it is writable, else the fallback: some parts need one."""
    try:
        home = Path.home()
        with tempfile.TemporaryFile(dir=home):
            return str(home)
    except (OSError, RuntimeError):
        return str(fallback)


def _absolute_pythonpath() -> dict[str, str]:
    """Return PYTHONPATH with absolute entries, as parts start in another folder, where empty ones would
    point.
    """
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {"PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in entries)}
