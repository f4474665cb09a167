"""Restrict MLflow's artifacts to one folder, whatever locations its database names."""

from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.file_utils import local_file_uri_to_path


def fix_artifacts(folder: Path) -> None:
    """Make MLflow, in this process, read and write artifacts below this folder only."""

    def inside(uri: str, *args: Any, **more: Any) -> Any:
        place = Path(local_file_uri_to_path(uri)) if uri.startswith(("/", "file:")) else None
        if place is None or not place.resolve().is_relative_to(folder.resolve()):
            raise MlflowException(f"artifacts are kept in the lab's own folder, not at {uri}", BAD_REQUEST)
        return LocalArtifactRepository(uri, *args, **more)

    for scheme in registry.get_registered_artifact_repositories():
        registry.register(scheme, inside)
