"""Registering reads what it was given and nothing else, and takes no more disk than its owner may use."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grafting_core.data import encode
from grafting_core.specs.datasets import register_datasets
from grafting_core.specs.encoding import EncodeSettings
from grafting_core.specs.registration import HubSource
from grafting_core.storage.storage import Storage
from grafting_core.testbed.plugin import ASSETS
from grafting_core.training.observer import StopRequested
from tests.support.hub_server import hub_of
from tests.support.pictures import picture_folder
from tests.support.registering_stage import context, registered, ticket
from workers.stages import intake
from workers.stages.hub import download
from workers.stages.intake import BadInput, Roots
from workers.stages.register import run

PIXELS = {
    "what": "dataset",
    "action": "encode",
    "vae": "none",
    "encode": EncodeSettings(name="mine", image_size=16, held_out=0, shard_rows=4),
}
NET = HubSource(repository="ann/net", revision="main")


@pytest.fixture(autouse=True)
def _nothing_registered() -> Iterator[None]:
    yield
    register_datasets(())


def nothing_is_left(tmp_path: Path) -> bool:
    storage = Storage(str(tmp_path / "storage"))
    return storage.names("registry/datasets") == storage.names("registry/staging") == []


@pytest.mark.parametrize("whole", [False, True])
def test_images_exchanged_for_links_while_they_are_encoded_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """After the check of links and the listing, a file or its folder leads to somebody else's images."""
    source = picture_folder(tmp_path / "models" / "pictures", classes=2, each=6)
    theirs = picture_folder(tmp_path / "theirs", classes=2, each=6)
    encoded = encode.Encoding._append

    def exchanging(self: Any, *given: Any) -> None:
        encoded(self, *given)
        last = source / "leaf" if whole else source / "leaf" / "005.png"
        if not last.is_symlink():
            shutil.rmtree(last) if whole else last.unlink()
            last.symlink_to(theirs / last.relative_to(source))

    monkeypatch.setattr(encode.Encoding, "_append", exchanging)
    message = "leads to a place that may not be read" if whole else "it is a link"
    with pytest.raises(BadInput, match=message):
        registered(tmp_path, source, **PIXELS)
    assert nothing_is_left(tmp_path)


def test_a_config_exchanged_for_a_link_is_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "models" / "mine"
    for part in ("transformer", "autoencoder"):
        shutil.copytree(ASSETS / part, source / part)
    secret = tmp_path / "secret.json"
    secret.write_text('{"_class_name": "the-secret"}')
    config = source / "transformer" / "config.json"
    looked = intake.list_files

    def exchanging(folder: Path, roots: Roots | None) -> Any:
        found = looked(folder, roots)
        config.unlink()
        config.symlink_to(secret)
        return found

    monkeypatch.setattr("workers.stages.registering.list_files", exchanging)
    with pytest.raises(BadInput, match="does not register") as caught:
        registered(tmp_path, source)
    assert "the-secret" not in str(caught.value)


def test_images_that_would_exceed_the_quota_are_not_encoded(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "models" / "pictures", classes=2, each=6)
    with pytest.raises(BadInput, match=r"12 images would have [\d,]+ bytes; at most 5,000 are allowed"):
        registered(tmp_path, source, **PIXELS, max_bytes=5_000)
    assert nothing_is_left(tmp_path)
    made = registered(tmp_path, source, **PIXELS, max_bytes=20_000).registered
    assert made is not None
    assert 12 * 3 * 16**2 < made.size < 20_000


def test_an_autoencoder_that_encodes_counts_as_well(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "models" / "pictures", classes=2, each=6)
    vae = shutil.copytree(ASSETS / "autoencoder", tmp_path / "models" / "vae")
    with pytest.raises(BadInput, match=r"its files have [\d,]+ bytes; its owner may register 20,000 more"):
        registered(tmp_path, source, **{**PIXELS, "vae": str(vae)}, max_bytes=20_000)
    assert nothing_is_left(tmp_path)


def test_a_file_that_grows_is_copied_to_its_listed_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"x" * 10)
    [listed] = intake.list_files(tmp_path, Roots([str(tmp_path)]))
    written: list[int] = []
    checked = intake.check_unchanged

    def growing(listed_file: Any, descriptor: int) -> None:
        checked(listed_file, descriptor)
        file.write_bytes(b"x" * 1_000_000)

    def sized(source: Any, copy: Any, size: int) -> None:
        copied(source, copy, size)
        written.append(copy.tell())

    copied = intake.copy_bytes
    monkeypatch.setattr(intake, "check_unchanged", growing)
    monkeypatch.setattr(intake, "copy_bytes", sized)
    with pytest.raises(BadInput, match="changed while it was read"):
        intake.copy_files([listed], tmp_path / "copy", Roots([str(tmp_path)]), lambda done, total: None)
    assert written == [10]


def test_what_killed_attempts_have_left_on_a_worker_is_deleted_after_a_week(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "local"))
    week, staging = 7 * 86_400, tmp_path / "local" / "graftlab-staging"
    for name, age in (("old", week + 60), ("new", week - 60), ("r1", week + 60)):
        (staging / name / "content").mkdir(parents=True)
        os.utime(staging / name, (time.time() - age,) * 2)
    source = picture_folder(tmp_path / "models" / "pictures", classes=2, each=6)
    given = ticket(tmp_path, source, **PIXELS).model_copy(update={"storage": "memory://bounds"})
    assert run(context(given)).registered is not None
    assert [folder.name for folder in staging.iterdir()] == ["new"]


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    files = {"config.json": b"{}", "model.safetensors": b"w" * 1000, "old.bin": b"p", "notes.md": b"n"}
    with hub_of(files) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_a_revision_of_the_hub_is_downloaded_once_and_file_by_file(tmp_path: Path, net: Any) -> None:
    told: list[tuple[int, int, str]] = []
    tell = lambda done, total, what: told.append((done, total, what))  # noqa: E731
    with pytest.raises(StopRequested):
        download(NET, tmp_path / "hub", tell, stopped=lambda: bool(told))
    assert net.fetched == ["config.json"]
    download(NET, tmp_path / "hub", tell, max_bytes=1002)
    assert net.fetched == ["config.json", "model.safetensors"]
    assert (tmp_path / "hub" / "model.safetensors").read_bytes() == b"w" * 1000
    assert told[-1] == (1002, 1002, "downloaded")
    assert {name for name in ("old.bin", "notes.md") if (tmp_path / "hub" / name).exists()} == set()
    [listed] = [each for each in intake.list_files(tmp_path / "hub", None) if each.name != "config.json"]
    intake.copy_files([listed], tmp_path / "copy", None, lambda done, total: None)
    assert (tmp_path / "copy" / "model.safetensors").stat().st_ino == listed.inode


def test_what_exceeds_the_quota_is_not_downloaded(tmp_path: Path, net: Any) -> None:
    work: dict[str, Any] = {"path": None, "hub": NET, "max_bytes": 1001}
    with pytest.raises(BadInput, match="ann/net@main has 1,002 bytes; its owner may register 1,001 more"):
        run(context(ticket(tmp_path, tmp_path, **work)))
    assert net.fetched == []
    assert nothing_is_left(tmp_path)


def test_a_hub_that_lies_about_sizes_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a.safetensors": b"a" * 900, "b.safetensors": b"b" * 900}
    with hub_of(files, dict.fromkeys(files, 10)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(BadInput, match="has 900 bytes; its owner may register 100 more"):
            download(NET, tmp_path / "hub", lambda done, total, what: None, max_bytes=100)
    assert hub.fetched == ["a.safetensors"]
    with hub_of({"../a.json": b"{}"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(BadInput, match=r"a file named '\.\./a\.json'"):
            download(NET, tmp_path / "hub", lambda done, total, what: None)
    assert hub.fetched == []
