"""Choice of the source for a path."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from grafting_core.data.npz import BadFile
from grafting_core.data.opening import ALL_FILES, Access
from grafting_core.data.sources.base import ImageSource
from grafting_core.data.sources.folder import FolderSource
from grafting_core.data.sources.parquet import ParquetSource
from grafting_core.data.sources.tar import TarSource
from grafting_core.specs.encoding import EncodeSettings

SHARDED: Mapping[str, Callable[[Sequence[Path], EncodeSettings, Access], ImageSource]] = {
    ".tar": TarSource,
    ".parquet": ParquetSource,
}


def open_source(path: Path, settings: EncodeSettings, access: Access = ALL_FILES) -> ImageSource:
    """Open a folder of images, tars or parquet files, or one such file. Raises BadFile for anything else.

    Only files that `access` admits are read.
    """
    if not path.exists():
        raise BadFile(f"{path} does not exist")
    files = access.files_of(path) if path.is_dir() else [path]
    for suffix, kind in SHARDED.items():
        shards = [file for file in files if file.suffix == suffix]
        if shards:
            return kind(shards, settings, access)
    if not path.is_dir():
        raise BadFile(f"{path} is neither a folder of images nor a .tar or .parquet file")
    return FolderSource(path, settings, access)
