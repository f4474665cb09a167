"""A folder of shards is verified before it is trusted, and read by rows, never whole."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from grafting_core.backbones.autoencoder import IdentityAutoencoder, KLAutoencoder
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.weight_files import part_digest
from grafting_core.data import latent_folder
from grafting_core.data.datasets import (
    dataset_of,
    encode_held_out,
    encode_latents,
    load_dataset,
    some_of_each_class,
)
from grafting_core.data.encode import encode_folder
from grafting_core.data.latent_folder import load_latent_folder, read_dataset
from grafting_core.data.latents import Latents, encode_images
from grafting_core.data.npz import BadFile
from grafting_core.data.shards import Shards
from grafting_core.specs.datasets import DatasetCard, DatasetRef, register_datasets
from grafting_core.specs.encoding import EncodeSettings, ShardFile
from grafting_core.testbed.assets import load_autoencoder
from grafting_core.testbed.plugin import ASSETS
from tests.support.other_backbone import CARD as FLAGS
from tests.support.other_backbone import load_backbone as load_flags
from tests.support.pictures import CLASSES, picture_folder

VAE = ASSETS / "autoencoder"
TEN = (*CLASSES, "a", "b", "c", "d", "e")
GRAY = EncodeSettings(
    name="own/gray", image_size=28, channels=1, classes=TEN, held_out=0.25, shard_rows=4, batch_size=100
)
COLOUR = EncodeSettings(name="own/colour", image_size=8, held_out=0.25, shard_rows=5)


@pytest.fixture(scope="module")
def own(backbone: Backbone) -> Backbone:
    """The testbed's, with the digest of its autoencoder."""
    parts = {"autoencoder": part_digest(VAE)}
    return replace(backbone, card=backbone.card.model_copy(update={"parts": parts, "dataset": "own/gray"}))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> DatasetCard:
    folder = tmp_path_factory.mktemp("gray")
    return encode_folder(picture_folder(folder / "images", 5), folder / "set", GRAY, VAE)


@pytest.fixture
def colours(tmp_path: Path) -> DatasetCard:
    return encode_folder(picture_folder(tmp_path / "images"), tmp_path / "set", COLOUR, None)


def test_batches_are_those_of_the_images_encoded_in_memory(own: Backbone, encoded: DatasetCard) -> None:
    """One row differs in low bits by the size of its forward, so values are compared closely."""
    dataset = load_latent_folder(encoded)
    images, labels = dataset.reference_images("x")
    pixels = torch.from_numpy(images.rows(np.arange(images.count))[..., 0])
    memory = Latents.of(own, encode_images(own, pixels, torch.from_numpy(labels), dataset.digest))
    streamed = Latents.of(own, dataset.latents(own, 10**6))
    assert len(streamed) == len(memory) == 30
    for step in (0, 3, 9):
        one, two = (each.batch("finetune", 1, step, 12) for each in (streamed, memory))
        torch.testing.assert_close(one.clean, two.clean, atol=2e-5, rtol=1e-5)
        assert torch.equal(one.noise, two.noise)
        assert torch.equal(one.timesteps, two.timesteps)
        assert torch.equal(one.conditions.by_row["class_labels"], two.conditions.by_row["class_labels"])


def test_a_batch_is_a_function_of_its_arguments_in_every_process(own: Backbone, encoded: DatasetCard) -> None:
    """Each worker of a group opens the folder by itself, and asks for steps in its own order."""
    first, second = (Latents.of(own, load_latent_folder(encoded).latents(own, 20)) for _ in range(2))
    ahead = second.batch("distill", 0, 7, 8)
    assert not torch.equal(ahead.clean, second.batch("distill", 0, 6, 8).clean)
    again = first.batch("distill", 0, 7, 8)
    assert torch.equal(ahead.clean, again.clean)
    assert torch.equal(ahead.noise, again.noise)


def test_subsets_keep_the_proportions_of_classes(own: Backbone, encoded: DatasetCard) -> None:
    dataset = load_latent_folder(encoded)
    some, other = dataset.latents(own, 10), dataset.latents(own, 10, seed=1)
    labels = [each.conditions(torch.arange(10)).by_row["class_labels"] for each in (some, other)]
    assert [each.bincount().tolist() for each in labels] == [[2] * 5] * 2
    drawn = [each.draw(torch.arange(10), torch.Generator().manual_seed(0)) for each in (some, other)]
    assert not torch.equal(*drawn)


def test_other_seeds_select_other_images_as_evenly() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    first, second, third = (some_of_each_class(labels, 6, seed) for seed in (0, 1, 2))
    assert first.tolist() == [0, 1, 4, 5, 8, 9]
    assert all(labels[chosen].bincount().tolist() == [2, 2, 2] for chosen in (first, second, third))
    assert len({tuple(chosen.tolist()) for chosen in (first, second, third)}) == 3
    assert some_of_each_class(labels, 6, 1).tolist() == second.tolist()


def test_the_subset_of_a_plan_is_that_of_its_seed(backbone: Backbone, latents: Latents) -> None:
    """A data set of the table, read as a stage reads it."""
    other = encode_latents(backbone, 200, seed=1)
    rows = torch.arange(200)
    drawn = [each.dataset.draw(rows, torch.Generator().manual_seed(0)) for each in (latents, other)]
    assert len(other) == len(latents) == 200
    assert not torch.equal(*drawn)


def test_held_out_samples_are_none_of_the_training(own: Backbone, encoded: DatasetCard) -> None:
    dataset = load_latent_folder(encoded)
    held_out, training = dataset._held_out.all("mean"), dataset._training.all("mean")
    assert (len(held_out), len(training)) == (10, 30)
    distances = np.abs(held_out[:, None] - training[None]).max(axis=(2, 3, 4))
    assert distances.min() > 0.01
    assert len(dataset.held_out(own)) == 10


def test_pixels_are_latents_of_backbones_without_autoencoder(colours: DatasetCard) -> None:
    backbone = load_flags(FLAGS, torch.device("cpu"))
    dataset = load_latent_folder(colours)
    latents = Latents.of(backbone, dataset.latents(backbone, 18))
    rows, batch = latents.rows("finetune", 0, 0, 5), latents.batch("finetune", 0, 0, 5)
    images, labels = dataset.reference_images("x")
    expected = torch.from_numpy(images.rows(rows.numpy())).float() / 127.5 - 1
    torch.testing.assert_close(batch.clean.permute(0, 2, 3, 1), expected)
    assert batch.conditions.by_row["class_labels"].tolist() == labels[rows].tolist()
    assert isinstance(backbone.autoencoder, IdentityAutoencoder)


def test_a_large_data_set_of_pixels_is_compared_by_a_part_of_it(
    colours: DatasetCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, labels = load_latent_folder(colours).reference_images("x")
    monkeypatch.setattr(latent_folder, "MOST_IMAGES", 6)
    part, some = load_latent_folder(colours).reference_images("x")
    assert (whole.count, part.count, np.bincount(some).tolist()) == (18, 6, [2, 2, 2])
    every = whole.rows(np.arange(18))
    for image, label in zip(part.rows(np.arange(6)), some, strict=True):
        assert labels[[np.array_equal(image, each) for each in every]].tolist() == [label]


def test_a_data_set_without_labels_gives_a_backbone_without_classes_the_label_0(tmp_path: Path) -> None:
    settings = COLOUR.model_copy(update={"conditions": "none"})
    card = encode_folder(picture_folder(tmp_path / "images"), tmp_path / "set", settings, None)
    flags = load_flags(FLAGS, torch.device("cpu"))
    unlabelled = replace(flags, card=FLAGS.model_copy(update={"num_classes": 0}))
    latents = load_latent_folder(card).latents(unlabelled, 5)
    assert latents.conditions(torch.arange(5)).by_row["class_labels"].tolist() == [0] * 5
    with pytest.raises(ValueError, match="it has no classes; the backbone takes 3"):
        load_latent_folder(card).latents(flags, 5)


def test_labels_of_a_data_set_are_left_out_for_a_backbone_without_classes(colours: DatasetCard) -> None:
    flags = load_flags(FLAGS, torch.device("cpu"))
    unlabelled = replace(flags, card=FLAGS.model_copy(update={"num_classes": 0}))
    latents = load_latent_folder(colours).latents(unlabelled, 18)
    assert latents.conditions(torch.arange(18)).by_row["class_labels"].tolist() == [0] * 18


class Rescaled(KLAutoencoder):
    scale = 0.5


def with_card(backbone: Backbone, **changes: Any) -> Backbone:
    return replace(backbone, card=backbone.card.model_copy(update=changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: with_card(b, latent_channels=8), "samples are 4 x 7 x 7; the backbone takes 8 x 7 x 7"),
        (lambda b: with_card(b, parts={"autoencoder": "e" * 64}), "the backbone's is eeeeeeeeeeee"),
        (lambda b: with_card(b, parts={}), "the backbone's is unknown: its card names no digest"),
        (lambda b: with_card(b, num_classes=7), "it has 10 classes; the backbone takes 7"),
        (
            lambda b: replace(b, autoencoder=Rescaled(load_autoencoder())),
            r"autoencoder shifts by 0 and scales",
        ),
        (lambda b: replace(b, autoencoder=IdentityAutoencoder()), "the backbone takes pixels"),
    ],
    ids=["shape", "autoencoder", "unknown", "classes", "scale", "pixels"],
)
def test_latents_of_another_kind_are_refused_naming_both(
    own: Backbone, encoded: DatasetCard, change: Callable[[Backbone], Backbone], message: str
) -> None:
    dataset = load_latent_folder(encoded)
    for draw in (lambda b: dataset.latents(b, 10), dataset.held_out):
        with pytest.raises(ValueError, match=message) as refused:
            draw(change(own))
        assert "data set 'own/gray' does not fit backbone 'testbed/dit-fashion'" in str(refused.value)


def test_pixels_are_refused_by_a_backbone_with_an_autoencoder(colours: DatasetCard) -> None:
    flags = load_flags(FLAGS, torch.device("cpu"))
    latent = replace(flags, autoencoder=KLAutoencoder(load_autoencoder()))
    with pytest.raises(ValueError, match="it has pixels; the backbone takes latents"):
        load_latent_folder(colours).latents(latent, 5)


def test_a_registered_data_set_is_found_by_name_and_digest(own: Backbone, encoded: DatasetCard) -> None:
    register_datasets([encoded])
    try:
        assert load_dataset("own/gray").digest == encoded.digest
        assert dataset_of(own.card) is load_dataset("own/gray")
        assert len(encode_latents(own, 12)) == 12
        assert len(encode_held_out(own, encoded.ref)) == 10
        with pytest.raises(ValueError, match=f"has the digest {encoded.digest[:12]} here, not 000000000000"):
            encode_latents(own, 12, DatasetRef(name="own/gray", digest="0" * 64))
        renewed = encoded.model_copy(update={"digest": "1" * 64})
        register_datasets([renewed])
        with pytest.raises(BadFile, match="contains the data set"):
            load_dataset("own/gray")
    finally:
        register_datasets([])
    with pytest.raises(ValueError, match="unknown data set 'own/gray'"):
        load_dataset("own/gray")


def test_a_folder_is_read_back_as_its_card_says(encoded: DatasetCard) -> None:
    assert encoded.folder is not None
    assert read_dataset(Path(encoded.folder)) == encoded
    assert encoded.size == sum(file.stat().st_size for file in Path(encoded.folder).glob("*.safetensors"))
    with pytest.raises(BadFile, match="has no files on this machine"):
        load_latent_folder(encoded.model_copy(update={"folder": None}))


def reindexed(folder: Path, file: str, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change a shard's tensors, and its digest with them: what somebody else's writer might have made."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    content = (folder / file).read_bytes()
    index = json.loads((folder / "index.json").read_text())
    for part in ("training", "held_out", "reference", "held_out_images"):
        for shard in index[part]:
            if shard["file"] == file:
                shard |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "card.json").unlink(missing_ok=True)


def set_value(name: str, value: Any) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].flat[0] = value

    return change


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("training-00000", set_value("mean", np.nan), "mean has numbers that are not finite"),
        ("held_out-00000", set_value("std", -1.0), "standard deviations below 0"),
        ("training-00001", set_value("labels", 10), "has the label 10; there are 10 classes"),
        ("training-00000-images", set_value("labels", -1), "has the label -1"),
        (
            "training-00000",
            lambda t: t.update(mean=t["mean"][:3]),
            "mean is F32 3 x 4 x 7 x 7; the index says",
        ),
        ("training-00000", lambda t: t.update(std=t["std"].astype(np.float64)), "std is F64 4 x"),
        ("training-00000", lambda t: t.update(extra=t["std"]), "contains extra, labels, mean, std"),
        ("training-00000", lambda t: t.pop("std"), "contains labels, mean; labels, mean, std are needed"),
    ],
)
def test_shards_that_are_not_what_they_should_be_are_refused(
    tmp_path: Path, encoded: DatasetCard, file: str, change: Any, message: str
) -> None:
    folder = copied(encoded, tmp_path)
    reindexed(folder, f"{file}.safetensors", change)
    with pytest.raises(BadFile, match=message):
        read_dataset(folder)


def copied(card: DatasetCard, tmp_path: Path) -> Path:
    assert card.folder is not None
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in Path(card.folder).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edited(folder: Path, change: Callable[[dict[str, Any]], Any], file: str = "index.json") -> None:
    document = json.loads((folder / file).read_text())
    change(document)
    (folder / file).write_text(json.dumps(document))


def test_damaged_missing_and_foreign_files_are_refused(tmp_path: Path, encoded: DatasetCard) -> None:
    folder = copied(encoded, tmp_path)
    shard, whole = folder / "training-00002.safetensors", (folder / "training-00002.safetensors").read_bytes()
    card = encoded.model_copy(update={"folder": str(folder)})
    for content in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        shard.write_bytes(content)
        with pytest.raises(BadFile, match=r"training-00002\.safetensors has SHA-256"):
            read_dataset(folder)
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFile, match=r"training-00002\.safetensors cannot be read"):
        load_latent_folder(card)._training.all("mean")
    shard.unlink()
    with pytest.raises(BadFile, match="is missing"):
        read_dataset(folder)
    shard.symlink_to(Path(encoded.folder or "") / shard.name)
    with pytest.raises(BadFile, match="not a regular file"):
        read_dataset(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["training"][0].update(file="../up.safetensors"), "training/0/file String should match"),
        (lambda d: d["training"].append(d["training"][0]), "a shard is named twice"),
        (lambda d: d.update(classes=[]), "a data set with labels needs classes"),
        (lambda d: d.update(autoencoder=None), "latents need the digest of their autoencoder"),
        (lambda d: d.update(format=2), "format Input should be 1"),
        (lambda d: d.update(surprise=1), "surprise Extra inputs are not permitted"),
        (lambda d: d.update(shape=[4, 7, 8]), "mean is F32 4 x 4 x 7 x 7; the index says F32 4 x 4 x 7 x 8"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(
    tmp_path: Path, encoded: DatasetCard, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    folder = copied(encoded, tmp_path)
    edited(folder, change)
    with pytest.raises(BadFile, match=message):
        read_dataset(folder)


def test_a_card_of_another_index_is_refused(tmp_path: Path, encoded: DatasetCard) -> None:
    folder = copied(encoded, tmp_path)
    edited(folder, lambda d: d.update(scale=2.0), "card.json")
    with pytest.raises(BadFile, match=r"card\.json is not the card of index\.json"):
        read_dataset(folder)
    (folder / "card.json").write_text("{}")
    with pytest.raises(BadFile, match="is no card of a data set"):
        read_dataset(folder)
    (folder / "card.json").unlink()
    assert read_dataset(folder).name == "copy"
    (folder / "index.json").write_text("not json")
    with pytest.raises(BadFile, match="is no index of a data set"):
        read_dataset(folder)


def test_rows_are_read_in_any_order_across_shards(tmp_path: Path) -> None:
    values = np.arange(30, dtype=np.float32).reshape(10, 3)
    files = []
    for first, last in ((0, 4), (4, 5), (5, 10)):
        save_file({"x": values[first:last]}, tmp_path / f"{first}.safetensors")
        files.append(ShardFile(file=f"{first}.safetensors", rows=last - first, sha256="0" * 64, size=1))
    shards = Shards(tmp_path, files, {"x": ("F32", (3,))})
    for rows in ([9, 0, 4, 4, 3, 5, 6, 7], [], [1], list(range(10)), list(range(9, -1, -1))):
        assert np.array_equal(shards.read("x", np.array(rows, np.int64)), values[rows])


def test_memory_holds_what_is_drawn_and_not_the_folder(tmp_path: Path) -> None:
    """192 MiB of shards are read by a process that may allocate half of that, and not the whole at once."""
    rows, shape = 8, (24, 256, 256)
    files = []
    for number in range(4):
        file = f"{number}.safetensors"
        save_file({"x": np.full((rows, *shape), number, np.float32)}, tmp_path / file)
        files.append({"file": file, "rows": rows, "sha256": "0" * 64, "size": 1})
    read = (
        "import json, resource, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from grafting_core.data.shards import Shards\n"
        "from grafting_core.specs.encoding import ShardFile\n"
        "used = int(Path('/proc/self/statm').read_text().split()[5]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + 96 * 2**20,) * 2)\n"
        "files = [ShardFile(**each) for each in json.loads(sys.argv[2])]\n"
        f"shards = Shards(Path(sys.argv[1]), files, {{'x': ('F32', {shape})}})\n"
        "print(*(float(shards.read('x', np.array([row, 31 - row])).mean()) for row in range(16)))\n"
        "try:\n"
        "    shards.all('x')\n"
        "except MemoryError:\n"
        "    print('too large')\n"
    )
    command = [sys.executable, "-c", read, str(tmp_path), json.dumps(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*["1.5"] * 16, "too", "large"]
