"""Sources of images read only what they may, a little at a time, and refuse labels that would mislead."""

import json
import os
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import save

from grafting_core.data.encode import Encoding, encode_folder
from grafting_core.data.labels import read_labels
from grafting_core.data.npz import BadFile
from grafting_core.data.opening import Access
from grafting_core.data.shard_writer import ShardWriter
from grafting_core.data.sources.table import open_source
from grafting_core.specs.encoding import EncodeSettings
from tests.support.pictures import drawn, picture_folder, picture_parquet, picture_tars, png

SMALL = EncodeSettings(name="shapes", image_size=16, held_out=0.25, shard_rows=4, batch_size=3)
NO_LABELS = SMALL.model_copy(update={"conditions": "none"})


def below(root: Path) -> Access:
    """Only files under this folder."""
    return Access(lambda path: path.is_relative_to(root.resolve()))


def exchanged_file(root: Path, secret: Path) -> None:
    """One image, tar or parquet file becomes a link out of the root."""
    file = sorted(file for file in root.rglob("*") if file.is_file())[0]
    other = next(each for each in secret.rglob("*") if each.suffix == file.suffix)
    file.unlink()
    file.symlink_to(other)


def exchanged_folder(root: Path, secret: Path) -> None:
    """The folder of the images becomes a link out of the root."""
    shutil.rmtree(root / "images")
    (root / "images").symlink_to(secret / "images")


MAKERS: dict[str, Callable[[Path], Path]] = {
    "folder": picture_folder,
    "tars": picture_tars,
    "parquet": lambda folder: (folder.mkdir(parents=True), picture_parquet(folder / "x.parquet"))[1].parent,
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("exchange", [exchanged_file, exchanged_folder])
def test_files_exchanged_for_links_after_listing_are_not_read(
    tmp_path: Path, kind: str, exchange: Callable[[Path, Path], None]
) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    source = MAKERS[kind](root / "images")
    MAKERS[kind](secret / "images")
    listed = open_source(source, NO_LABELS, below(root))
    with listed.open(0) as picture:
        assert picture.size == (24, 20)
    exchange(root, secret)
    with pytest.raises(BadFile, match=r"it is a link|may not be read"), listed.open(0):
        pass
    if exchange is exchanged_folder:
        with pytest.raises(BadFile, match="may not be read"):
            open_source(source, NO_LABELS, below(root))


def test_a_labels_file_in_an_exchanged_folder_is_not_read(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    for place in (root / "labels", secret):
        place.mkdir(parents=True)
        (place / "l.csv").write_text("file,label\na.png,1\n")
    assert read_labels(root / "labels" / "l.csv", below(root)) == {"a.png": 1}
    shutil.rmtree(root / "labels")
    (root / "labels").symlink_to(secret)
    with pytest.raises(BadFile, match="leads to a place that may not be read"):
        read_labels(root / "labels" / "l.csv", below(root))


def test_pipes_and_deep_folders_end_in_a_sentence(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images", classes=1, each=2)
    os.mkfifo(source / "apple" / "pipe.png")
    with pytest.raises(BadFile, match=r"pipe\.png is no regular file"):
        encode_folder(source, tmp_path / "set", SMALL.model_copy(update={"classes": ("apple",)}), None)
    deep = tmp_path / "deep" / "/".join("a" * 70)
    deep.mkdir(parents=True)
    with pytest.raises(BadFile, match="nested deeper than the 64 folders"):
        open_source(tmp_path / "deep", NO_LABELS)


def repeated_rows(file: Path, rows: int, size: int = 10) -> Path:
    """A small file that says one image in every row."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([b"x" * size]))
    parquet.write_table(pa.table({"image": column.cast(pa.binary()) if size < 100 else column}), file)
    return file


def test_rows_of_parquet_are_counted_before_they_are_listed(tmp_path: Path, monkeypatch) -> None:
    file = repeated_rows(tmp_path / "x.parquet", 3_000_000)
    assert file.stat().st_size < 100_000
    tracemalloc.start()
    source = open_source(file, NO_LABELS)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source.names) == 3_000_000
    assert source.names[-1 + len(source.names)] == "x.parquet row 2999999"
    assert held < 10_000_000
    monkeypatch.setattr("grafting_core.data.sources.base.MAX_COUNT", 1_000_000)
    with pytest.raises(BadFile, match=r"has [13][0-9]+ images; 2 to 1000000 are supported"):
        open_source(file, NO_LABELS)


def test_one_image_in_many_rows_of_parquet_is_read_a_few_times_only(tmp_path: Path) -> None:
    """10,000 rows of a million bytes would take 10 GB."""
    source = open_source(repeated_rows(tmp_path / "x.parquet", 10_000, 2**20), NO_LABELS)
    before = pa.total_allocated_bytes()
    assert len(source._value(20)) == 2**20
    assert pa.total_allocated_bytes() - before < 2**26


def test_long_labels_of_parquet_are_refused(tmp_path: Path) -> None:
    labels = pa.array(["a" * 300] * 4)
    parquet.write_table(pa.table({"image": [png(drawn(0, 0))] * 4, "label": labels}), tmp_path / "x.parquet")
    with pytest.raises(BadFile, match="a label has more than 200 bytes"):
        open_source(tmp_path / "x.parquet", SMALL)


def test_names_are_labels_of_parquet_in_alphabetical_order(tmp_path: Path) -> None:
    images = [png(drawn(0, number)) for number in range(4)]
    table = pa.table({"image": images, "label": ["sun", "leaf", "sun", "apple"]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    source = open_source(tmp_path / "x.parquet", SMALL)
    assert (source.classes, source.labels) == (("apple", "leaf", "sun"), [2, 1, 2, 0])
    parquet.write_table(pa.table({"image": images, "label": [0.5] * 4}), tmp_path / "x.parquet")
    with pytest.raises(BadFile, match=r"row 0 has the label 0\.5; a whole number or a name is needed"):
        open_source(tmp_path / "x.parquet", SMALL)


def test_parquet_files_of_other_columns_or_classes_are_refused_by_name(tmp_path: Path) -> None:
    picture_parquet(tmp_path / "a.parquet")
    picture_parquet(tmp_path / "b.parquet", classes=2)
    with pytest.raises(BadFile, match=r"a\.parquet names the classes apple, leaf, sea, but .*b\.parquet"):
        open_source(tmp_path, SMALL)
    named = SMALL.model_copy(update={"classes": ("x", "y", "z")})
    assert len(open_source(tmp_path, named).names) == 40
    table = parquet.read_table(tmp_path / "a.parquet").rename_columns(["img", "label"])
    parquet.write_table(table, tmp_path / "b.parquet")
    for settings in (SMALL, named, NO_LABELS):
        with pytest.raises(BadFile, match=r"a\.parquet has the columns image.*b\.parquet has img"):
            open_source(tmp_path, settings)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("0", "1", "3"), "folder 3, but not 2"),
        (("2", "3"), "folder 3, but not 1"),
        (("1", "01"), "folder 1 beside 01|folder 01 beside 1"),
        (("0", "1", "2"), None),
        (("1", "2", "3"), None),
        (("08", "9", "x"), None),
    ],
)
def test_numbered_class_folders_have_no_gaps(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(drawn(number, 0)))
    if message is None:
        assert open_source(tmp_path, SMALL).classes == names
        return
    with pytest.raises(BadFile, match=message):
        open_source(tmp_path, SMALL)
    given = SMALL.model_copy(update={"classes": names})
    assert open_source(tmp_path, given).labels == [names.index(name) for name in sorted(names)]


def test_headers_of_tars_of_any_size_are_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x.png")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**33 - 1
    (tmp_path / "x.tar").write_bytes(member.tobuf())
    os.truncate(tmp_path / "x.tar", 2**33)
    with pytest.raises(BadFile, match="a header of"):
        open_source(tmp_path / "x.tar", NO_LABELS)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"labels": ' + b"[" * 100_000])
def test_nested_json_is_refused(tmp_path: Path, content: bytes) -> None:
    source = picture_folder(tmp_path / "images", classes=1, each=2)
    (source / "l.json").write_bytes(content)
    with pytest.raises(BadFile, match="cannot be read as labels"):
        open_source(source, SMALL.model_copy(update={"labels_file": "l.json"}))


def test_shards_written_in_parts_are_those_of_the_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "std": rng.normal(size=(10, 4, 3, 3)).astype(np.float32),
        "mean": rng.normal(size=(10, 4, 3, 3)).astype(np.float32),
        "labels": rng.integers(0, 9, 10),
        "images": rng.integers(0, 256, (10, 5, 5, 3), dtype=np.uint8),
    }
    writer = ShardWriter(tmp_path, "x.safetensors", 10)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 10)):
        assert not (tmp_path / "x.safetensors").exists()
        writer.append({name: tensor[rows] for name, tensor in tensors.items()})
    made = writer.finish()
    content = (tmp_path / "x.safetensors").read_bytes()
    assert content == save(tensors)
    assert (made.rows, made.size) == (10, len(content))
    writer = ShardWriter(tmp_path, "y.safetensors", 10)
    writer.append({"labels": np.arange(3)})
    with pytest.raises(ValueError, match="has 3 of 10 rows"):
        writer.finish()
    writer.discard()
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_memory_holds_a_batch_of_a_large_shard(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images", classes=2, each=60)
    settings = SMALL.model_copy(update={"image_size": 256, "shard_rows": 200, "held_out": 0})
    tracemalloc.start()
    card = encode_folder(source, tmp_path / "set", settings, None)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert card.size > 120 * 3 * 256**2
    assert held < card.size / 3


def test_what_would_have_too_many_bytes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images")
    whole = encode_folder(source, tmp_path / "whole", SMALL, None)
    with pytest.raises(ValueError, match=r"24 images would have [\d,]+ bytes; at most 18,000 are allowed"):
        encode_folder(source, tmp_path / "set", SMALL, None, max_bytes=18_000)
    assert not (tmp_path / "set").exists()
    same = encode_folder(source, tmp_path / "set", SMALL, None, max_bytes=whole.size + 7 * 512)
    assert same.digest == whole.digest
    total = sum(file.stat().st_size for file in (tmp_path / "set").glob("*.safetensors"))
    encoding = Encoding.begin(source, tmp_path / "whole", SMALL, None)
    assert total <= sum(encoding._bytes_of(chunk) for chunk in encoding.chunks)


def test_batches_of_large_images_are_bounded() -> None:
    with pytest.raises(ValueError, match="a batch of 4096 images of 2048 x 2048 has"):
        EncodeSettings(name="x", image_size=2048, batch_size=4096)
    assert json.loads(EncodeSettings(name="x", batch_size=4096).model_dump_json())["batch_size"] == 4096
