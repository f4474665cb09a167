"""Pictures of classes that can be told apart, drawn with numpy, in files as people have them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 70, 230], [230, 210, 50], [150, 60, 190]], np.uint8)
CLASSES = ("apple", "leaf", "sea", "sun", "plum")


def drawn(label: int, seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    """A noisy gray ground with a bright square of the class's colour, uint8 [H, W, 3]."""
    rng = np.random.default_rng((label, seed))
    picture = rng.integers(60, 110, (height, width, 3), dtype=np.uint8)
    side = min(height, width) // 2
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    picture[top : top + side, left : left + side] = COLOURS[label] - rng.integers(0, 30, 3, dtype=np.uint8)
    return picture


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def picture_folder(folder: Path, classes: int = 3, each: int = 8, height: int = 20, width: int = 24) -> Path:
    """One folder a class, with `each` pictures."""
    for label in range(classes):
        place = folder / CLASSES[label]
        place.mkdir(parents=True)
        for number in range(each):
            (place / f"{number:03d}.png").write_bytes(png(drawn(label, number, height, width)))
    return folder


def picture_tars(folder: Path, classes: int = 3, each: int = 8, shards: int = 2) -> Path:
    """Tars as webdataset writes them; labels in `.cls`, or in `.json` in every second shard."""
    folder.mkdir(parents=True)
    samples = [(number, label) for number in range(each) for label in range(classes)]
    for shard in range(shards):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as archive:
            for number, label in samples[shard::shards]:
                key = f"{label}_{number:03d}"
                named = (
                    ("json", json.dumps({"label": label}).encode()) if shard % 2 else ("cls", b"%d" % label)
                )
                for suffix, content in (("png", png(drawn(label, number))), named):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


def picture_parquet(file: Path, classes: int = 3, each: int = 8, names: bool = True) -> Path:
    """Images as Hugging Face stores them, several row groups, and the classes' names in the schema."""
    import pyarrow as pa
    from pyarrow import parquet

    samples = [(number, label) for number in range(each) for label in range(classes)]
    images = [{"bytes": png(drawn(label, number)), "path": None} for number, label in samples]
    table = pa.table({"image": images, "label": [label for _, label in samples]})
    features = {"label": {"names": list(CLASSES[:classes]), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = table.replace_schema_metadata(metadata if names else {})
    parquet.write_table(table, file, row_group_size=7)
    return file
