"""Files of strangers: good ones round trip, bad ones are refused by name before they can do harm."""

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from grafting_core.data import npz
from grafting_core.data.image_sets import ArrayImages, ImageFolder, SampleFile, open_images
from grafting_core.data.npz import BadFile, NpzFile
from grafting_core.evaluation.features.base import concat, extract
from grafting_core.evaluation.features.table import load_network
from grafting_core.evaluation.metrics.frechet import frechet_of_rows
from grafting_core.evaluation.metrics.report import compute_metrics
from grafting_core.evaluation.reference import load_reference, make_reference
from grafting_core.specs.plans import EvaluationProtocol

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (12, 28, 28, 3), dtype=np.uint8)


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def collected(images) -> np.ndarray:
    return np.concatenate(list(images.batches(5)))


def test_a_sample_file_written_by_hand_is_read_in_order(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        file = tmp_path / f"{save.__name__}.npz"
        save(file, PICTURES)
        found = open_images(file)
        assert (found.count, found.size) == (12, (28, 28))
        assert np.array_equal(collected(found), PICTURES)


def test_a_folder_of_pictures_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    for index, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{index:02d}.png")
    assert np.array_equal(collected(open_images(tmp_path)), PICTURES)


def test_a_picture_turned_by_exif_is_turned_back(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.zeros((8, 20, 3), np.uint8)
    for name in "ab":
        Image.fromarray(wide).save(tmp_path / f"{name}.jpg", exif=exif)
    assert open_images(tmp_path).size == (20, 8)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PICTURES.astype(np.float32), "float32 12 x 28 x 28 x 3"),
        (PICTURES[..., 0], "uint8 12 x 28 x 28 at"),
        (PICTURES[:1], "has 1 images"),
        (np.zeros((2, 3000, 2, 3), np.uint8), "sides up to 2048"),
        (np.asfortranarray(PICTURES), "Fortran order"),
        (np.array([{"a": 1}, None], dtype=object), "never unpickled"),
    ],
    ids=["floats", "gray", "one", "huge", "fortran", "objects"],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        open_images(saved(tmp_path / "x.npz", arr_0=array))


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "x.npz", arr_0=np.array([Trap()], dtype=object))
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Trap()))
    for name in "xy":
        with pytest.raises(BadFile):
            open_images(tmp_path / f"{name}.npz")
    assert not (tmp_path / "sprung").exists()


def test_truncated_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.npz", arr_0=PICTURES).read_bytes()
    file = tmp_path / "x.npz"
    for content in (b"", b"not a zip", whole[: len(whole) // 2], whole[:-30]):
        file.write_bytes(content)
        with pytest.raises(BadFile, match=r"not an \.npz file"):
            open_images(file)
    file.write_bytes(whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:])
    with pytest.raises(BadFile, match="damaged"):
        collected(open_images(file))
    for path in (tmp_path / "none.npz", tmp_path / "x.txt"):
        with pytest.raises(BadFile):
            open_images(path)
    with pytest.raises(BadFile, match="has no array 'arr_0'; it has images"):
        open_images(saved(file, images=PICTURES))


def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 99, 99, 3)}
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + b"\0" * 10)
    with pytest.raises(BadFile, match="has 10 bytes at 'arr_0', not"):
        open_images(tmp_path / "x.npz")


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "SMALL_BYTES", 2**20)
    np.savez_compressed(tmp_path / "x.npz", np.zeros((2000, 28, 28, 3), np.uint8))
    with pytest.raises(BadFile, match="zip bomb"):
        open_images(tmp_path / "x.npz")
    monkeypatch.setattr(npz, "MAX_ARRAY_BYTES", 100)
    with (
        NpzFile(saved(tmp_path / "y.npz", a=np.zeros(50))) as arrays,
        pytest.raises(BadFile, match="at once"),
    ):
        arrays.read("a")


def png(width: int, height: int) -> bytes:
    """A header that claims any size, with hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(100)), b"IEND")
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_pictures_that_are_not_what_they_seem_are_refused(tmp_path: Path) -> None:
    gif = io.BytesIO()
    Image.fromarray(PICTURES[0]).save(gif, "GIF")
    cases = {
        "bomb": (png(65_000, 65_000), "large|sides"),
        "wide": (png(4_000, 10), "sides up to 2048"),
        "empty": (b"", "not a PNG image"),
        "gif": (gif.getvalue(), "not a PNG image"),
    }
    for name, (content, message) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.png").write_bytes(content)
        with pytest.raises(BadFile, match=message):
            open_images(folder)
    with pytest.raises(BadFile, match="has no images"):
        open_images(tmp_path.joinpath("none").mkdir() or tmp_path / "none")


def test_pictures_of_another_size_and_truncated_ones_are_named(tmp_path: Path) -> None:
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    Image.fromarray(PICTURES[0][:20]).save(tmp_path / "b.png")
    with pytest.raises(BadFile, match=r"b\.png is 28 x 20, not 28 x 28"):
        collected(open_images(tmp_path))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-400])
    with pytest.raises(BadFile, match=r"b\.png cannot be read"):
        collected(open_images(tmp_path))


def test_links_out_of_a_folder_are_left_alone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out.png"
    inside.mkdir()
    Image.fromarray(PICTURES[0]).save(outside)
    for name in "ab":
        Image.fromarray(PICTURES[1]).save(inside / f"{name}.png")
    (inside / "c.png").symlink_to(outside)
    assert ImageFolder(inside).count == 2


def test_a_reference_round_trips_and_knows_its_network(tmp_path: Path) -> None:
    network = load_network("fashion-cnn")
    made = make_reference(ArrayImages("twelve", PICTURES), network, np.arange(12) % 3)
    file = tmp_path / "reference.npz"
    file.write_bytes(made.packed())
    loaded = load_reference(file, network)
    assert loaded.digest == made.digest
    assert loaded.card == made.card
    assert np.array_equal(loaded.labels, np.arange(12) % 3)
    again = make_reference(SampleFile(saved(tmp_path / "s.npz", arr_0=PICTURES)), network)
    assert again.card.pixels == made.card.pixels
    network.digest = "0" * 64
    with pytest.raises(BadFile, match="was made with fashion-cnn"):
        load_reference(file, network)


def test_a_reference_in_adms_format_gives_its_statistics(tmp_path: Path) -> None:
    network = load_network("fashion-cnn")
    found = extract(network, PICTURES, 6)
    moments = {
        name + suffix: value
        for suffix, rows in (("", found.pool), ("_s", found.spatial))
        for name, value in (("mu", rows.mean(axis=0)), ("sigma", np.cov(rows, rowvar=False)))
    }
    file = saved(tmp_path / "VIRTUAL.npz", arr_0=PICTURES, **moments)
    loaded = load_reference(file, network)
    assert np.array_equal(loaded.pool.mean, moments["mu"])
    assert loaded.rows.shape == (12, 128)
    assert frechet_of_rows(loaded.pool, found.pool) == pytest.approx(0, abs=1e-4)
    del moments["mu_s"]
    with pytest.raises(BadFile, match="no 'mu_s'"):
        load_reference(saved(file, arr_0=PICTURES, **moments), network)
    moments |= {"mu_s": np.full(343, np.nan)}
    with pytest.raises(BadFile, match="'mu_s' has values that are not finite"):
        load_reference(saved(file, arr_0=PICTURES, **moments), network)
    moments |= {"mu_s": np.zeros(5)}
    with pytest.raises(BadFile, match="do not fit together"):
        load_reference(saved(file, arr_0=PICTURES, **moments), network)


def test_features_that_are_not_finite_name_their_samples() -> None:
    class Broken:
        name, digest = "broken", "0" * 64
        device = load_network("fashion-cnn").device

        def __call__(self, images: Tensor) -> tuple[Tensor, None, None]:
            pool = images.float().mean(dim=(1, 2))
            return pool.masked_fill(pool == pool.max(), float("nan")), None, None

    with pytest.raises(ValueError, match=r"features of samples \[11\] are not finite \(1 in all\)"):
        make_reference(ArrayImages("x", PICTURES), Broken(), kept=4)
    assert len(concat([extract(Broken(), PICTURES, 5)])) == 12


def folder_of(tmp_path: Path, **pictures: Image.Image) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, picture in pictures.items():
        picture.save(folder / name.replace("_", "."))
    return folder


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_gray_of_16_bits_is_scaled_to_8_and_said(tmp_path: Path, mode: str) -> None:
    wide = np.array([[0, 128, 129, 257], [32_768, 65_407, 65_406, 65_535]], np.uint16)
    picture = Image.frombytes(mode, (4, 2), wide.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    images = open_images(folder_of(tmp_path, a_png=picture, b_png=picture))
    expected = np.floor(wide / 65_535 * 255 + 0.5)
    assert (collected(images)[0] == expected[..., None]).all()
    assert any("2 of 2 pictures of 16 bits were scaled to 8" in note for note in images.notes)


def test_colours_of_16_bits_are_refused_by_name(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    parts = (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(13)), b"IEND")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(BadFile, match=r"a\.png has 16 bits per colour.*b\.png has 16 bits"):
        open_images(tmp_path)


def with_transparent(mode: str) -> tuple[Image.Image, np.ndarray, dict]:
    """A picture that is transparent in places, its colours, and what else it is saved with."""
    gray, colour = Image.new("L", (4, 4), 77), Image.new("RGB", (4, 4), (200, 10, 30))
    alpha = Image.new("L", (4, 4), 255)
    alpha.putpixel((0, 0), 0)
    if mode == "LA":
        return Image.merge("LA", (gray, alpha)), np.full((4, 4, 3), 77), {}
    if mode == "RGBA":
        return Image.merge("RGBA", (*colour.split(), alpha)), np.array(colour), {}
    if mode == "P with tRNS":
        palette = colour.quantize(2)
        return palette, np.array(palette.convert("RGB")), {"transparency": palette.getpixel((0, 0))}
    if mode == "L with tRNS":
        return gray, np.full((4, 4, 3), 77), {"transparency": 77}
    return colour, np.array(colour), {"transparency": (200, 10, 30)}


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P with tRNS", "L with tRNS", "RGB with tRNS"])
def test_alpha_is_dropped_and_said(tmp_path: Path, mode: str) -> None:
    picture, expected, saving = with_transparent(mode)
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name, **saving)
    images = open_images(tmp_path)
    assert (collected(images)[0] == expected).all()
    assert any("2 of 2 pictures have transparent pixels" in note for note in images.notes)


def test_webp_with_alpha_keeps_its_colours_and_says_so(tmp_path: Path) -> None:
    picture = with_transparent("RGBA")[0]
    for name in ("a.webp", "b.webp"):
        picture.save(tmp_path / name, lossless=True, exact=True)
    images = open_images(tmp_path)
    assert (collected(images)[0] == np.array(picture)[..., :3]).all()
    assert any("alpha was dropped" in note for note in images.notes)


def test_opaque_alpha_and_plain_pictures_need_no_note(tmp_path: Path) -> None:
    opaque = Image.new("RGBA", (4, 4), (1, 2, 3, 255))
    images = open_images(folder_of(tmp_path, a_png=opaque, b_png=opaque.convert("RGB")))
    collected(images)
    assert images.notes == ()


def test_cmyk_and_animations_are_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4)).save(tmp_path / "a.jpg")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "b.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(BadFile, match=r"2 of 2 pictures.*a\.jpg has the mode CMYK.*b\.webp is an animation"):
        open_images(tmp_path)


def test_what_is_passed_over_is_counted_with_its_reason(tmp_path: Path) -> None:
    plain = Image.fromarray(PICTURES[0])
    folder = folder_of(tmp_path, a_png=plain, b_png=plain, c_bmp=plain, d_tif=plain)
    for inner in (".ipynb_checkpoints", "more"):
        (folder / inner).mkdir()
        plain.save(folder / inner / "x.png")
    (folder / ".hidden.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "e.png").symlink_to(folder / "a.png")
    images = open_images(folder)
    assert [file.name for file in images.files] == ["a.png", "b.png", "x.png"]
    [note] = images.notes
    for part in ("1 .bmp", "1 .tif", "1 in hidden folders", "1 hidden files", "1 links"):
        assert part in note
    for name in ("a.png", "b.png"):
        (folder / name).unlink()
    (folder / "more" / "x.png").unlink()
    with pytest.raises(BadFile, match=r"has no images.*skipped: .*1 links"):
        open_images(folder)


def test_all_bad_pictures_are_named_at_once_from_their_headers(tmp_path: Path) -> None:
    for index in range(30):
        Image.fromarray(PICTURES[0]).save(tmp_path / f"{index:02d}.png")
    for index in range(15):
        (tmp_path / f"{index:02d}.png").write_bytes(b"nonsense")
    with pytest.raises(BadFile, match=r"15 of 30 pictures: .*00\.png is not a PNG.*09\.png.*; and 5 more$"):
        open_images(tmp_path)


def test_a_turned_picture_is_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in "ab":
        Image.fromarray(PICTURES[0]).save(tmp_path / f"{name}.png", exif=exif)
    images = open_images(tmp_path)
    assert np.array_equal(collected(images)[0], PICTURES[0][::-1, ::-1])
    assert any("turned upright by their EXIF" in note for note in images.notes)


def test_statistics_alone_give_fid_and_say_what_they_cannot_give(tmp_path: Path) -> None:
    network = load_network("fashion-cnn")
    found = extract(network, PICTURES, 6)
    pool = found.pool
    file = saved(tmp_path / "x.npz", mu=pool.mean(axis=0), sigma=np.cov(pool, rowvar=False))
    protocol = EvaluationProtocol(samples=12, feature_network="fashion-cnn", micro_batch=6)
    figures = compute_metrics(load_reference(file, network), found, protocol)
    assert figures.values["fid12/fashion-cnn"] == pytest.approx(0, abs=1e-4)
    assert not {"kid12/fashion-cnn", "sfid12/fashion-cnn"} & figures.values.keys()
    notes = " ".join(figures.warnings)
    assert "no KID, precision, recall, density and coverage" in notes
    assert "no sFID" in notes
    with pytest.raises(BadFile, match="no 'sigma'"):
        load_reference(saved(file, mu=pool.mean(axis=0)), network)


@pytest.mark.parametrize("count", [2, 5])
def test_a_reference_of_a_few_images_gets_a_note(count: int) -> None:
    network = load_network("fashion-cnn")
    reference = make_reference(ArrayImages("few", PICTURES[:count]), network)
    protocol = EvaluationProtocol(samples=12, feature_network="fashion-cnn", micro_batch=6)
    warnings = compute_metrics(reference, extract(network, PICTURES, 6), protocol).warnings
    assert any(f"the reference has {count} images for 128 features" in note for note in warnings)
    assert any("neighbours and KID need at least 6" in note for note in warnings)
