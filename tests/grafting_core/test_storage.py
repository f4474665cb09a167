"""Files are whole or absent, and paths stay inside."""

import errno
import os
from pathlib import Path

import pytest

from grafting_core.storage.storage import Storage


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\0b", "a\\b"])
def test_paths_cannot_leave_the_root(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="not a path inside the storage"):
        Storage(str(tmp_path)).write_bytes(path, b"")


def test_names_are_sorted_and_a_missing_folder_is_empty(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("b", "a"):
        storage.write_bytes(f"folder/{name}", b"x")
    assert storage.names("folder") == ["a", "b"]
    assert storage.names("nowhere") == []


def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes("file", b"new")
    assert storage.read_bytes("file") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_object_store_serves_as_well() -> None:
    storage = Storage("memory://graftlab-test")
    storage.write_bytes("a/b", b"content")
    assert storage.read_bytes("a/b") == b"content"
    assert storage.names("a") == ["b"]
    assert not storage.is_local
