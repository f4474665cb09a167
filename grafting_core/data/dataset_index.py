"""`index.json` and `card.json` of a data set's folder."""

import hashlib
import json
from pathlib import Path

from pydantic import ValidationError

from grafting_core.data.npz import BadFile
from grafting_core.specs.datasets import DatasetCard
from grafting_core.specs.encoding import DatasetIndex, Shards

INDEX, CARD = "index.json", "card.json"
MAX_INDEX_BYTES = 2**26


def read_index(card: DatasetCard) -> tuple[Path, DatasetIndex]:
    """Folder and index of a card. Raises BadFile if they are missing or of another revision."""
    if card.folder is None:
        raise BadFile(f"data set {card.name!r} has no files on this machine")
    folder = Path(card.folder)
    content = read_index_bytes(folder)
    found = hashlib.sha256(content).hexdigest()
    if found != card.digest:
        raise BadFile(f"{folder} contains the data set {found[:12]}; {card.name} is {card.digest[:12]}")
    return folder, parsed_index(folder, content)


def read_index_bytes(folder: Path) -> bytes:
    """Read `index.json`. Raises BadFile if it is missing or too large."""
    file = folder / INDEX
    if not file.is_file() or file.is_symlink():
        raise BadFile(
            f"{folder} is no data set: it has no {INDEX}. `graft dataset encode` makes one of images"
        )
    if file.stat().st_size > MAX_INDEX_BYTES:
        raise BadFile(f"{file} has {file.stat().st_size} bytes; up to {MAX_INDEX_BYTES} are supported")
    return file.read_bytes()


def parsed_index(folder: Path, content: bytes) -> DatasetIndex:
    """Parse an index. Raises BadFile naming the first error."""
    try:
        return DatasetIndex.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "/".join(str(part) for part in first["loc"])
        raise BadFile(f"{folder / INDEX} is no index of a data set: {where} {first['msg']}") from error


def card_of_index(index: DatasetIndex, content: bytes, name: str, licence: str | None) -> DatasetCard:
    """Card of a data set; `content` are the bytes of the index."""
    return DatasetCard(
        name=name,
        digest=hashlib.sha256(content).hexdigest(),
        shape=index.shape,
        image_size=index.image_size,
        channels=index.channels,
        training=_rows(index.training),
        held_out=_rows(index.held_out),
        conditions=index.conditions,
        classes=index.classes,
        autoencoder=index.autoencoder,
        scale=index.scale,
        shift=index.shift,
        size=sum(shard.size for shard in index.shards),
        licence=licence,
    )


def _rows(shards: Shards) -> int:
    return sum(shard.rows for shard in shards)


def stored_card(folder: Path) -> DatasetCard | None:
    """Content of `card.json`, None if there is none. Raises BadFile if it cannot be read."""
    file = folder / CARD
    if not file.is_file():
        return None
    try:
        return DatasetCard.model_validate_json(file.read_bytes())
    except (ValidationError, json.JSONDecodeError) as error:
        raise BadFile(f"{file} is no card of a data set: {str(error)[:200]}") from error
