"""Every file that is read back is verified: what was damaged is made anew, and nothing differs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from grafting_core.backbones.base import Backbone
from grafting_core.specs.experiment import ExperimentSpec, evaluation_key, finetune_key, fingerprint_of
from grafting_core.specs.screening import Screened
from grafting_core.storage.checksums import read_with_digest, write_with_digest
from grafting_core.storage.storage import Storage
from tests.support.builders import experiment
from tests.support.stages import context, crash_at
from workers.group import run_stages
from workers.stages.feature_chunks import Chunks

pytestmark = pytest.mark.large

Harm = Callable[[bytes], bytes]


def flip(content: bytes) -> bytes:
    """One bit, in the middle."""
    middle = len(content) // 2
    return bytes([*content[:middle], content[middle] ^ 1, *content[middle + 1 :]])


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


@pytest.fixture(scope="module")
def spec() -> ExperimentSpec:
    return experiment(keep_samples=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone, spec: ExperimentSpec) -> Path:
    """The storage of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run_stages(context(folder, backbone, spec))
    return folder


def results(folder: Path, spec: ExperimentSpec) -> dict[str, bytes]:
    """All that the run yields and that does not depend on the clock."""
    key = evaluation_key(spec)
    names = [
        f"evaluations/{key}/{name}" for name in ("report.json", "samples.png", "samples.npz", "samples.csv")
    ]
    names += [f"models/{finetune_key(spec)}/model.safetensors"]
    names += [f"references/{fingerprint_of(spec).reference}/reference.npz"]
    return {name: (folder / name).read_bytes() for name in names}


def files(spec: ExperimentSpec) -> dict[str, str]:
    """What a later run of the same design reads back."""
    evaluation, model = f"evaluations/{evaluation_key(spec)}", f"models/{finetune_key(spec)}"
    reference = f"references/{fingerprint_of(spec).reference}"
    names = ("report.json", "samples.png", "samples.npz", "samples.csv", "samples.json", "card.json")
    found = {name: f"{evaluation}/{name}" for name in names}
    found |= {"model": f"{model}/model.safetensors", "model card": f"{model}/card.json"}
    return found | {"reference": f"{reference}/reference.npz", "reference card": f"{reference}/card.json"}


FLIPPED = ("report.json", "samples.png", "samples.csv", "samples.json", "model card", "reference")
CUT = ("samples.npz", "card.json", "model", "reference card")


@pytest.mark.parametrize(
    ("what", "harm"), [*((what, flip) for what in FLIPPED), *((what, cut) for what in CUT)]
)
def test_a_damaged_result_is_made_anew_and_is_the_same(
    tmp_path: Path, backbone: Backbone, spec: ExperimentSpec, undisturbed: Path, what: str, harm: Harm
) -> None:
    folder = tmp_path / "storage"
    shutil.copytree(undisturbed, folder)
    damaged = folder / files(spec)[what]
    damaged.write_bytes(harm(damaged.read_bytes()))
    if what.startswith("reference"):  # it is read by whoever evaluates anew
        (folder / files(spec)["card.json"]).unlink()
    run_stages(context(folder, backbone, spec, run="r2"))
    assert results(folder, spec) == results(undisturbed, spec)


@pytest.mark.parametrize("harm", [flip, cut, empty])
@pytest.mark.parametrize("part", ["chunks", "images"])
def test_a_damaged_part_of_an_evaluation_fails_no_later_attempt(
    tmp_path: Path, backbone: Backbone, spec: ExperimentSpec, undisturbed: Path, part: str, harm: Harm
) -> None:
    folder = tmp_path / "storage"
    shutil.copytree(undisturbed, folder)
    evaluation = folder / f"evaluations/{evaluation_key(spec)}"
    shutil.rmtree(evaluation)
    with crash_at(20, spec.evaluate.samples):
        run_stages(context(folder, backbone, spec, run="r2"))
    [left] = sorted((evaluation / part).iterdir())
    left.write_bytes(harm(left.read_bytes()))
    run_stages(context(folder, backbone, spec, run="r2", attempt=2))
    assert results(folder, spec) == results(undisturbed, spec)


def test_a_chunk_that_is_damaged_after_it_was_looked_at_is_refused_not_used(
    tmp_path: Path, undisturbed: Path, spec: ExperimentSpec
) -> None:
    folder = tmp_path / "storage"
    shutil.copytree(undisturbed, folder)
    storage, key = Storage(str(folder)), evaluation_key(spec)
    chunks = Chunks(storage, key)
    path = f"evaluations/{key}/chunks/{storage.names(f'evaluations/{key}/chunks')[0]}"
    storage.write_bytes(path, flip(storage.read_bytes(path)))
    with pytest.raises(ValueError, match="does not match its digest"):
        chunks.all()
    assert not chunks.has(0)
    assert storage.exists(f"{path}.damaged")


@pytest.mark.parametrize("harm", [flip, cut, empty])
def test_a_small_document_vouches_for_itself(tmp_path: Path, harm: Harm) -> None:
    storage = Storage(str(tmp_path))
    write_with_digest(storage, "a.json", Screened(value=12.25, seconds=1.5))
    assert read_with_digest(storage, "a.json", Screened) == Screened(value=12.25, seconds=1.5)
    storage.write_bytes("a.json", harm(storage.read_bytes("a.json")))
    assert read_with_digest(storage, "a.json", Screened) is None
    assert storage.exists("a.json.damaged")
    storage.write_model("old.json", Screened(value=1.0, seconds=0.0))
    assert read_with_digest(storage, "old.json", Screened) == Screened(value=1.0, seconds=0.0)
