"""Images nobody prepared become a data set: the same files however the work is cut, and nothing else."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grafting_core.data import encode
from grafting_core.data.cropping import centre_square
from grafting_core.data.encode import Encoding, encode_folder
from grafting_core.data.encoders import Encoder, load_encoder
from grafting_core.data.latent_folder import LatentFolder, load_latent_folder, read_dataset
from grafting_core.data.npz import BadFile
from grafting_core.data.progress import StopRequested
from grafting_core.data.subsets import stratified
from grafting_core.specs.encoding import EncodeSettings
from grafting_core.testbed.plugin import ASSETS
from tests.support.pictures import (
    CLASSES,
    drawn,
    picture_folder,
    picture_parquet,
    picture_tars,
    png,
)

SMALL = EncodeSettings(name="shapes", image_size=16, held_out=0.25, shard_rows=4, batch_size=3)
GRAY = SMALL.model_copy(update={"image_size": 28, "channels": 1, "reference": 9})


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """The testbed's: gray 28 x 28 to 4 x 7 x 7."""
    return load_encoder(ASSETS / "autoencoder")


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_class_folders_become_pixels_with_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images")
    card = encode_folder(source, tmp_path / "set", SMALL, None)
    assert (card.name, card.shape, card.image_size) == ("shapes", (3, 16, 16), (16, 16))
    assert (card.training, card.held_out, card.classes) == (18, 6, CLASSES[:3])
    assert (card.autoencoder, card.scale, card.conditions) == (None, 1.0, "labels")
    found = load_latent_folder(card)
    images, labels = found.reference_images("x")
    kept, kept_labels = found.held_out_reference("y")
    assert np.bincount(labels).tolist() == [6, 6, 6]
    assert np.bincount(kept_labels).tolist() == [2, 2, 2]
    every = [centre_square(drawn(label, number), 16) for label in range(3) for number in range(8)]
    held_out = stratified(np.repeat([0, 1, 2], 8), 0.25, 0)
    assert np.array_equal(np.concatenate(list(kept.batches(4))), np.stack(every)[held_out])
    training = np.delete(np.stack(every), held_out, axis=0)
    assert np.array_equal(np.concatenate(list(images.batches(5))), training)
    assert np.array_equal(images.rows(np.array([17, 0, 3])), training[[17, 0, 3]])
    assert sorted(file.name for file in (tmp_path / "set").iterdir()) == [
        "card.json",
        "encoding.json",
        "held_out-00000.safetensors",
        "held_out-00001.safetensors",
        "index.json",
        *(f"training-{number:05d}.safetensors" for number in range(5)),
    ]


def test_tars_and_parquet_give_the_same_samples_as_folders(tmp_path: Path) -> None:
    """Their order differs, so pictures are compared class by class."""
    sources = {
        "folder": picture_folder(tmp_path / "images"),
        "tars": picture_tars(tmp_path / "tars"),
        "parquet": picture_parquet(tmp_path / "x.parquet"),
    }
    seen, classes = {}, {}
    for name, source in sources.items():
        settings = SMALL.model_copy(update={"held_out": 0})
        found = load_latent_folder(encode_folder(source, tmp_path / f"set-{name}", settings, None))
        images, labels = found.reference_images("x")
        pixels = np.concatenate(list(images.batches(50)))
        seen[name] = {(int(label), pixel.tobytes()) for label, pixel in zip(labels, pixels, strict=True)}
        classes[name] = found.card.classes
    assert seen["folder"] == seen["tars"] == seen["parquet"]
    assert len(seen["folder"]) == 24
    assert classes == {"folder": CLASSES[:3], "tars": ("0", "1", "2"), "parquet": CLASSES[:3]}


@pytest.mark.parametrize("kind", ["csv", "json", "pairs"])
def test_a_file_names_the_labels(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "images"
    source.mkdir()
    pairs = [(f"{number}.png", number % 2) for number in range(6)]
    for name, label in pairs:
        (source / name).write_bytes(png(drawn(label, 1)))
    named = {
        "csv": ("labels.csv", "file,label\n" + "".join(f"{name},{label}\n" for name, label in pairs)),
        "json": ("labels.json", json.dumps(dict(pairs))),
        "pairs": ("labels.json", json.dumps({"labels": [list(pair) for pair in pairs]})),
    }[kind]
    (source / named[0]).write_text(named[1])
    settings = SMALL.model_copy(update={"labels_file": named[0], "classes": ("even", "odd"), "held_out": 0})
    found = load_latent_folder(encode_folder(source, tmp_path / "set", settings, None))
    assert found.reference_images("x")[1].tolist() == [0, 1] * 3
    assert found.card.classes == ("even", "odd")


def test_without_labels_there_are_none(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images")
    settings = SMALL.model_copy(update={"conditions": "none"})
    found = load_latent_folder(encode_folder(source, tmp_path / "set", settings, None))
    assert (found.card.conditions, found.card.classes) == ("none", ())
    assert found.reference_images("x")[1] is None


def test_latents_are_the_autoencoders_moments_beside_some_of_the_images(
    tmp_path: Path, encoder: Encoder
) -> None:
    source = picture_folder(tmp_path / "images")
    card = encode_folder(source, tmp_path / "set", GRAY, ASSETS / "autoencoder")
    assert (card.shape, card.autoencoder, card.scale) == ((4, 7, 7), encoder.digest, encoder.scale)
    found = load_latent_folder(card)
    images, labels = found.reference_images("x")
    assert (images.count, images.channels, np.bincount(labels).tolist()) == (9, 1, [3, 3, 3])
    training, _ = found._training, found._held_out
    mean, std = training.all("mean"), training.all("std")
    pixels = torch.from_numpy(images.rows(np.arange(9))[..., 0]).float().div(127.5).sub(1).unsqueeze(1)
    expected = encoder.autoencoder.encode(pixels)
    places = stratified(training.all("labels"), 9, 0)
    np.testing.assert_allclose(mean[places], expected[0].numpy(), atol=2e-5)
    np.testing.assert_allclose(std[places], expected[1].numpy(), atol=2e-5)


def test_one_sample_of_the_posterior_may_be_kept_instead(tmp_path: Path, encoder: Encoder) -> None:
    source = picture_folder(tmp_path / "images")
    moments = load_latent_folder(encode_folder(source, tmp_path / "moments", GRAY, encoder))
    settings = GRAY.model_copy(update={"values": "samples"})
    sampled = load_latent_folder(encode_folder(source, tmp_path / "samples", settings, encoder))
    mean, std = moments._training.all("mean"), moments._training.all("std")
    noise = (sampled._training.all("latents") - mean) / std
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.1


@pytest.mark.parametrize("latents", [False, True])
def test_an_interrupted_encoding_goes_on_and_ends_with_equal_files(
    tmp_path: Path, encoder: Encoder, latents: bool
) -> None:
    source, coder = picture_folder(tmp_path / "images"), encoder if latents else None
    settings = GRAY.model_copy(update={"flip": True})
    encode_folder(source, tmp_path / "whole", settings, coder)
    counted, written = [], []

    def stop() -> bool:
        counted.append(1)
        return len(counted) > 6

    with pytest.raises(StopRequested):
        encode_folder(source, tmp_path / "again", settings, coder, stop=stop)
    assert not (tmp_path / "again" / "index.json").exists()
    with pytest.raises(BadFile, match=r"no index\.json"):
        read_dataset(tmp_path / "again")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "again").glob("*.safetensors")}
    assert before
    progress = lambda done, total, what: written.append((done, total, what))  # noqa: E731
    encode_folder(source, tmp_path / "again", settings, coder, progress)
    assert written[0] == (0, 24, "images")
    assert written[-1] == (24, 24, "images")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")
    # Once more is harmless, and does nothing.
    encode_folder(source, tmp_path / "again", settings, coder)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_several_workers_write_the_same_files(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images")
    encode_folder(source, tmp_path / "one", SMALL, None)
    workers = [Encoding.begin(source, tmp_path / "three", SMALL, None) for _ in range(3)]
    workers[2].run(rank=2, world=3)
    with pytest.raises(ValueError, match="training-00000 is not encoded yet"):
        workers[0].finish()
    for rank in (0, 1):
        workers[rank].run(rank=rank, world=3)
    workers[0].finish()
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")


def test_flips_are_drawn_once_and_spare_held_out_images(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images")
    plain = load_latent_folder(encode_folder(source, tmp_path / "plain", SMALL, None))
    settings = SMALL.model_copy(update={"flip": True})
    flipped = load_latent_folder(encode_folder(source, tmp_path / "flipped", settings, None))
    one, two = (found.reference_images("x")[0].rows(np.arange(18)) for found in (plain, flipped))
    mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(one, two, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(one, two, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 4 <= sum(mirrored) <= 14
    held_out = (found.held_out_reference("x")[0].rows(np.arange(6)) for found in (plain, flipped))
    assert np.array_equal(*held_out)


def test_odd_pictures_are_converted_and_counted_or_refused_by_name(tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    plain = drawn(0, 0, 20, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(plain).quantize(16).save(source / "palette.png")
    Image.fromarray(np.dstack([plain, np.full((20, 20), 9, np.uint8)])).save(source / "rgba.png")
    Image.fromarray(plain.mean(axis=2).astype(np.uint16) * 257).save(source / "sixteen.png")
    Image.fromarray(plain).save(source / "turned.jpg", exif=exif, quality=100)
    Image.fromarray(plain[:10, :10]).save(source / "tiny.png")
    Image.fromarray(plain).convert("1").save(source / "bits.png")
    settings = SMALL.model_copy(update={"conditions": "none", "held_out": 0})
    found = load_latent_folder(encode_folder(source, tmp_path / "set", settings, None))
    assert found.index.notes == {
        "have transparent pixels; alpha was dropped and the colours kept": 1,
        "of 16 bits were scaled to 8": 1,
        "were smaller and enlarged": 1,
        "were turned upright by their EXIF orientation": 1,
    }
    shown = found.reference_images("x")[0].rows(np.arange(6))
    names = sorted(file.name for file in source.iterdir())
    turned = shown[names.index("turned.jpg")].astype(int)
    assert np.abs(turned - centre_square(np.rot90(plain, 3), 16)).mean() < 12
    Image.fromarray(plain).convert("CMYK").save(source / "print.jpg")
    with pytest.raises(BadFile, match=r"print\.jpg has the mode CMYK; save it as 8-bit gray or RGB"):
        encode_folder(source, tmp_path / "other", settings, None)
    (source / "print.jpg").write_bytes(b"GIF89a")
    with pytest.raises(BadFile, match=r"print\.jpg is not a JPEG image"):
        encode_folder(source, tmp_path / "third", settings, None)


def test_an_image_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = picture_folder(tmp_path / "images", classes=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(BadFile, match=r"000\.png is too large an image"):
        encode_folder(source, tmp_path / "set", SMALL, None)


def test_a_source_that_changes_is_refused_and_leaves_no_data_set(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images")
    first = sorted(source.rglob("*.png"))[0]

    def change(done: int, total: int, what: str) -> None:
        if done == total:
            first.write_bytes(png(drawn(4, 4)))
            os.utime(first, ns=(1, 1))

    with pytest.raises(BadFile, match="changed while they were read"):
        encode_folder(source, tmp_path / "set", SMALL, None, change)
    assert not (tmp_path / "set" / "index.json").exists()
    with pytest.raises(ValueError, match="an encoding of other images, settings or autoencoder"):
        encode_folder(source, tmp_path / "set", SMALL, None)
    removed = Encoding.begin(source, tmp_path / "third", SMALL, None)
    first.unlink()
    with pytest.raises(BadFile, match=first.name):
        removed.run()


@pytest.mark.parametrize("changes", [{"image_size": 8}, {"seed": 1}, {"flip": True}])
def test_other_settings_are_not_mixed_into_a_folder(tmp_path: Path, changes: dict) -> None:
    source = picture_folder(tmp_path / "images")
    encode_folder(source, tmp_path / "set", SMALL, None)
    with pytest.raises(ValueError, match="of other images, settings or autoencoder"):
        encode_folder(source, tmp_path / "set", SMALL.model_copy(update=changes), None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="contains other files"):
        encode_folder(source, tmp_path / "mine", SMALL, None)


def test_bad_sources_are_refused_with_what_would_be_right(tmp_path: Path) -> None:
    empty, mixed = tmp_path / "empty", picture_folder(tmp_path / "mixed")
    empty.mkdir()
    (mixed / "loose.png").write_bytes(png(drawn(0, 0)))
    (empty / "x.csv").touch()
    known = SMALL.model_copy(update={"classes": ("apple", "leaf")})
    three = picture_folder(tmp_path / "three")
    numbered = picture_tars(tmp_path / "tars")
    cases = [
        (empty, SMALL, r"has no images in the formats \.png.*skipped: 1 \.csv"),
        (tmp_path / "none", SMALL, "does not exist"),
        (mixed, SMALL, r"loose\.png is in no class folder"),
        (three, known, r"sea/000\.png has the class 'sea'; the classes are apple, leaf"),
        (numbered, known, r"2_000\.png has the label 2; there are 2 classes"),
        (three, SMALL.model_copy(update={"labels_file": "../x.csv"}), "outside of"),
        (three, SMALL.model_copy(update={"labels_file": "y.csv"}), r"no file of labels .*y\.csv"),
    ]
    for source, settings, message in cases:
        with pytest.raises(BadFile, match=message):
            encode_folder(source, tmp_path / "set", settings, None)
    assert not (tmp_path / "set").exists()


def test_labels_that_do_not_name_every_image_are_refused(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images", classes=1, each=3)
    names = [f"apple/{number:03d}.png" for number in range(3)]
    settings = SMALL.model_copy(update={"labels_file": "l.csv"})
    for lines, message in (
        (names[:2], r"has no label of apple/002\.png"),
        ([*names, "pear.png"], r"names pear\.png, which is no image"),
        ([*names, names[0]], r"names apple/000\.png twice"),
    ):
        (source / "l.csv").write_text("file,label\n" + "".join(f"{name},0\n" for name in lines))
        with pytest.raises(BadFile, match=message):
            encode_folder(source, tmp_path / "set", settings, None)
    (source / "l.csv").write_text("file,label\nalone\n")
    with pytest.raises(BadFile, match="every line needs a file and a label"):
        encode_folder(source, tmp_path / "set", settings, None)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    tars = picture_tars(tmp_path / "tars", shards=1)
    whole = (tars / "shard-0.tar").read_bytes()
    (tars / "shard-0.tar").write_bytes(whole[:700])
    with pytest.raises(BadFile, match=r"shard-0\.tar"):
        encode_folder(tars, tmp_path / "set", SMALL, None)
    file = picture_parquet(tmp_path / "x.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(BadFile, match="cannot be read as parquet"):
        encode_folder(file, tmp_path / "set", SMALL, None)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = picture_parquet(tmp_path / "x.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(BadFile, match=r"pip install 'graftlab\[parquet\]'"):
        encode_folder(file, tmp_path / "set", SMALL, None)


def test_an_autoencoder_that_is_none_is_refused(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images")
    with pytest.raises(ValueError, match=r"config\.json"):
        encode_folder(source, tmp_path / "set", SMALL, tmp_path)


def test_latents_that_are_not_finite_name_the_image(tmp_path: Path, encoder: Encoder) -> None:
    class Broken:
        pixels_per_cell = 4

        def encode(self, pixels):
            mean = torch.full((len(pixels), 4, 7, 7), float("nan"))
            return mean, mean

    source = picture_folder(tmp_path / "images")
    with pytest.raises(ValueError, match=r"latents of apple/\d+\.png are not finite"):
        encode_folder(source, tmp_path / "set", GRAY, Encoder(Broken(), "0" * 64, 1.0))


def test_stratified_subsets_keep_proportions_and_are_nested() -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 10])
    drawn_60, drawn_15 = stratified(labels, 60, 3), stratified(labels, 0.1, 3)
    assert np.bincount(labels[drawn_60]).tolist() == [40, 16, 4]
    assert np.bincount(labels[drawn_15]).tolist() == [10, 4, 1]
    assert set(drawn_15) <= set(drawn_60)
    assert not np.array_equal(drawn_60, stratified(labels, 60, 4))
    assert len(stratified(labels, 10**6, 0)) == 150
    assert len(stratified(labels, 0, 0)) == 0


def test_the_format_of_files_is_pinned(tmp_path: Path) -> None:
    """A data set of these pictures has this digest on every machine; it may only change with FORMAT."""
    source = picture_folder(tmp_path / "images", height=16, width=16)
    card = encode_folder(source, tmp_path / "set", SMALL, None)
    assert encode.FORMAT == 1
    assert card.digest == "020c0ace0422fcad03db5bf37617566b1eb7784e61776d9b046f65836b518f6e"
    assert isinstance(load_latent_folder(card), LatentFolder)
