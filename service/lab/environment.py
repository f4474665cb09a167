"""What the processes of a lab see of the user's environment, and what they are told whatever it says."""

import os
import tempfile
from pathlib import Path

from service.direct import clear_mlflow, reach_directly

NOT_INHERITED = ("GRAFTLAB_KEY", "GRAFTLAB_URL", "PYTHONSTARTUP", "PYTHONHOME")
FOREIGN = ("RAY_", "OMP_", "MKL_", "OPENBLAS_")
"""Beginnings of what would tell our cluster to join another one, or our workers to use other CPUs."""
PATHS = ("GRAFTLAB_FEATURE_NETWORKS",)
"""Files that may be named as seen from the user's folder; parts start in another one."""
RAY_LOG_BYTES = 20 * 2**20


def environment_of(part: str, folder: Path) -> dict[str, str]:
    """The user's environment for a part of the lab of this data folder."""
    inherited = {
        name: str(Path(value).absolute()) if name in PATHS and value else value
        for name, value in os.environ.items()
        if name not in NOT_INHERITED and not name.startswith(FOREIGN)
    }
    clear_mlflow(inherited)
    reach_directly(inherited)
    # Ray tells its workers how many threads they may use; what only serves needs one.
    threads = {} if part == "ray" else {"OMP_NUM_THREADS": "1"}
    return {
        **inherited,
        **_absolute_pythonpath(),
        **threads,
        **FOR_RAY,
        "HOME": _home(folder),
        "GRAFTLAB_DATA_DIR": str(folder),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that nothing here asks for
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }


FOR_RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray takes loopback for a mistake and listens on all addresses, unless it may not be a cluster.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray tells its figures, with ids of runs in them, to whoever asks. Those of its dashboard cannot be
    # turned off, but no port can be opened under this number.
    "RAY_enable_metrics_collection": "0",
    "DASHBOARD_METRIC_PORT": "65536",
    "RAY_ROTATION_MAX_BYTES": str(RAY_LOG_BYTES),
    "RAY_ROTATION_BACKUP_COUNT": "2",
}


def _home(fallback: Path) -> str:
    """The user's home folder if programs can write there, else the fallback: some parts insist on one."""
    try:
        home = Path.home()
        with tempfile.TemporaryFile(dir=home):
            return str(home)
    except (OSError, RuntimeError):
        return str(fallback)


def _absolute_pythonpath() -> dict[str, str]:
    """PYTHONPATH for processes that start in another folder; an empty entry would be that folder."""
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {"PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in entries)}
