"""A folder becomes a revision of the lab's own: copied, checked, published whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grafting_core.backbones.registry import load_backbone
from grafting_core.specs.backbone import BACKBONES, register_cards
from grafting_core.specs.registration import Registry, registry_folder
from grafting_core.storage.artifacts import damage
from grafting_core.storage.folders import local_folder
from grafting_core.storage.storage import Storage
from grafting_core.testbed.plugin import ASSETS
from grafting_core.training.observer import StopRequested
from tests.support.registering_stage import context, registered, ticket
from tests.support.stages import events_of
from workers.contract import StageDone, StageStarted, Stop, attempt_folder
from workers.failures import classify
from workers.group import _serve, single_process
from workers.registered import make_known
from workers.stages import intake
from workers.stages.intake import BadInput, Roots, SourceFile
from workers.stages.register import run

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A pipeline's folder under the only root."""
    folder = tmp_path / "models" / "mine"
    for part in ("transformer", "autoencoder"):
        shutil.copytree(ASSETS / part, folder / part)
    (folder / "notes.md").write_text("not taken along")
    return folder


@pytest.fixture(autouse=True)
def _nothing_registered() -> Any:
    yield
    register_cards(())


def test_a_backbone_is_copied_checked_and_can_be_loaded_from_the_copy(tmp_path: Path, source: Path) -> None:
    report = registered(tmp_path, source, licence="MIT")
    assert report.registered is not None
    card = report.registered.backbone
    assert card is not None
    assert (card.name, card.depth, card.dims.grid, card.licence) == ("mine", 8, (7, 7), "MIT")
    storage = Storage(str(tmp_path / "storage"))
    folder = registry_folder("backbone", card.digest)
    assert damage(storage, folder) is None
    kept = local_folder(storage, folder)
    assert not (kept / "notes.md").exists()
    assert not storage.names("registry/staging")
    taken = [file for file in source.rglob("*") if file.is_file() and file.suffix != ".md"]
    assert report.registered.size == sum(file.stat().st_size for file in taken)
    shutil.rmtree(source)
    make_known(storage, Registry(backbones=(card,)))
    loaded = load_backbone("mine")
    own = load_backbone("testbed/dit-fashion").transformer.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in loaded.transformer.state_dict().items())
    assert loaded.card.digest == card.digest


def test_the_same_files_again_are_found_and_not_written_again(tmp_path: Path, source: Path) -> None:
    first = registered(tmp_path, source)
    again = registered(tmp_path, source)
    assert (first.stop_cause, again.stop_cause) == ("completed", "reused")
    assert again.registered == first.registered


def test_an_attempt_carries_it_out_without_any_backbone(tmp_path: Path, source: Path) -> None:
    given = ticket(tmp_path, source)
    _serve(given, 0.0, single_process(given.work))
    bodies = [event.body for event in events_of(tmp_path / "storage")]
    phases = [body for body in bodies if isinstance(body, StageStarted)]
    assert len(phases) == 3  # copied, checked, verified
    assert phases[0].total_steps == sum(
        file.stat().st_size for file in source.rglob("*") if file.suffix in (".json", ".safetensors")
    )
    [done] = [body.report for body in bodies if isinstance(body, StageDone)]
    assert done.registered is not None
    assert BACKBONES.entries.keys() == {"testbed/dit-fashion", "dit-xl-2-256"}


def nan(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    next(each for each in state.values() if each.is_floating_point()).view(-1)[0] = float("nan")
    save_file(state, folder / WEIGHTS)


def truncated(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")


def empty(folder: Path) -> None:
    for part in ("transformer", "autoencoder"):
        shutil.rmtree(folder / part)


def out_of_the_root(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(ASSETS / WEIGHTS)


def folder_out_of_the_root(folder: Path) -> None:
    shutil.rmtree(folder / "autoencoder")
    (folder / "autoencoder").symlink_to(ASSETS / "autoencoder")


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "transformer" / "more.safetensors")


def other_depth(folder: Path) -> None:
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_layers": 3}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nan, "not finite"),
        (truncated, "safetensors"),
        (pickled, "safetensors"),
        (empty, "holds none of the files"),
        (out_of_the_root, "does not register"),
        (folder_out_of_the_root, "does not register"),
        (a_pipe, "no regular file"),
        (other_depth, "has unexpected"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_what_cannot_be_registered_is_named_and_leaves_nothing(
    tmp_path: Path, source: Path, spoil: Any, message: str
) -> None:
    spoil(source)
    with pytest.raises(BadInput, match=message) as caught:
        registered(tmp_path, source)
    assert classify(caught.value) == ("bad_input", " ".join(str(caught.value).split())[:500])
    assert "staging" not in str(caught.value)
    storage = Storage(str(tmp_path / "storage"))
    assert storage.names("registry/backbones") == storage.names("registry/staging") == []


def test_the_labs_own_folders_are_closed_wherever_a_link_comes_from(tmp_path: Path, source: Path) -> None:
    given = ticket(tmp_path, source).model_copy(
        update={"import_roots": (str(tmp_path),), "closed_folders": (str(tmp_path / "storage"),)}
    )
    secret = tmp_path / "storage" / "secret.json"
    secret.parent.mkdir()
    secret.write_text("{}")
    (source / "transformer" / "more.json").symlink_to(secret)
    with pytest.raises(BadInput, match="does not register"):
        run(context(given))


def test_links_within_the_roots_are_followed(tmp_path: Path, source: Path) -> None:
    """As the cache of the hub has them: every file is a link to a blob."""
    blobs = tmp_path / "models" / "blobs"
    blobs.mkdir()
    for number, file in enumerate(each for each in list(source.rglob("*")) if each.is_file()):
        shutil.move(file, blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert registered(tmp_path, source).registered is not None


def test_a_folder_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copying(file: SourceFile, target: Path, roots: Any) -> None:
        copy(file, target, roots)
        (source / "transformer" / "config.json").write_text("{}")

    copy = intake._copy
    monkeypatch.setattr(intake, "_copy", copying)
    with pytest.raises(BadInput, match="changed while it was read"):
        registered(tmp_path, source)
    assert Storage(str(tmp_path / "storage")).names("registry") == ["staging"]


def test_a_file_exchanged_between_looking_and_opening_is_not_read(tmp_path: Path, source: Path) -> None:
    roots = Roots([str(tmp_path / "models")])
    files = intake.list_files(source, roots)
    weights = next(file for file in files if file.name == WEIGHTS)
    Path(weights.path).unlink()
    Path(weights.path).symlink_to(ASSETS / WEIGHTS)
    with pytest.raises(BadInput, match="cannot be read"):
        intake.copy_files([weights], tmp_path / "copy", roots, lambda done, total: None)
    Path(weights.path).unlink()
    shutil.copyfile(ASSETS / WEIGHTS, weights.path)
    with pytest.raises(BadInput, match="changed while it was read"):
        intake.copy_files([weights], tmp_path / "copy", roots, lambda done, total: None)
    assert not list((tmp_path / "copy").rglob("*.safetensors"))


def test_a_stopped_attempt_is_gone_on_with(tmp_path: Path, source: Path, monkeypatch: Any) -> None:
    first = ticket(tmp_path, source)
    storage = Storage(first.storage)
    copied: list[str] = []

    def copying(file: SourceFile, target: Path, roots: Any) -> None:
        copied.append(file.name)
        copy(file, target, roots)
        storage.write_model(f"{attempt_folder('r1', 1)}/stop", Stop(reason="user_request"))

    copy = intake._copy
    monkeypatch.setattr(intake, "_copy", copying)
    monkeypatch.setattr("workers.observer.STOP_CHECK_SECONDS", 0.0)
    with pytest.raises(StopRequested):
        run(context(first))
    assert len(copied) == 1
    assert run(context(ticket(tmp_path, source, attempt=2))).registered is not None
    assert len(copied) == len(set(copied)) == 4


def test_what_is_larger_than_the_quota_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(BadInput, match="may register 1,000 more"):
        registered(tmp_path, source, max_bytes=1000)


def test_damage_is_found_by_verifying_and_mended_by_registering_again(tmp_path: Path, source: Path) -> None:
    made = registered(tmp_path, source).registered
    assert made is not None
    subject = {"action": "verify", "subject": made.card.digest, "path": None}
    assert registered(tmp_path, source, **subject).metrics == {"bytes": float(made.size)}
    storage = Storage(str(tmp_path / "storage"))
    weights = local_folder(storage, registry_folder("backbone", made.card.digest)) / WEIGHTS
    truncated(weights.parent.parent)
    with pytest.raises(BadInput, match=r"mine is damaged: .*does not match its card"):
        registered(tmp_path, source, **subject)
    assert registered(tmp_path, source).stop_cause == "completed"
    assert registered(tmp_path, source, **subject).metrics == {"bytes": float(made.size)}


def test_storage_elsewhere_is_fetched_once_and_verified(
    tmp_path: Path, source: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "local"))
    (tmp_path / "local").mkdir()
    given = ticket(tmp_path, source)
    given = given.model_copy(update={"storage": "memory://registering"})
    report = run(context(given))
    assert report.registered is not None
    storage = Storage(given.storage)
    folder = registry_folder("backbone", report.registered.card.digest)
    assert damage(storage, folder) is None
    kept = local_folder(storage, folder)
    assert (kept / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    storage.delete(f"{folder}/content/{WEIGHTS}")
    assert local_folder(storage, folder) == kept
