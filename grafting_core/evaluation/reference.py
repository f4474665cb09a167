"""What samples are compared with: statistics of a whole set, features of some of it, made once and kept.

Files are `.npz` with ADM's names (`mu`, `sigma`, `mu_s`, `sigma_s`) and, beyond them, `features`, `labels`,
`count` and `card`. ADM's own files (with `arr_0`) are read too; their features are made from their images.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from grafting_core.data.image_sets import ImageSet, PixelDigest, SampleFile, reported
from grafting_core.data.npz import BadFile, NpzFile
from grafting_core.evaluation.features.base import FeatureNetwork, Features, Rows, extract, joined
from grafting_core.evaluation.metrics.frechet import Gaussian
from grafting_core.evaluation.metrics.moments import Floats, Moments, finite_rows
from grafting_core.evaluation.metrics.prdc import Manifold
from grafting_core.specs.base import Frozen
from grafting_core.specs.features import Sha256

KEPT = 10_000
"""Rows whose features are kept for precision, coverage and KID: as many as ADM's references have images."""
MICRO_BATCH = 50
FEWEST = 6
NEAREST = "neighbour_distances"
"""Files of older versions hold `nearest`, rounded otherwise than verdicts are: it is made anew for them."""
Labels = npt.NDArray[np.int64]


class ReferenceCard(Frozen):
    """Where a reference comes from; its digest covers the arrays themselves."""

    name: str
    feature_network: str
    feature_digest: Sha256
    images: int | None = None
    """How many the statistics are of; None where the file does not say (ADM's)."""
    pixels: Sha256 | None = None


@dataclass(frozen=True)
class Reference:
    """Statistics [D] and, where the network gives them, spatial ones [S]; features [M, D] of some images."""

    card: ReferenceCard
    pool: Gaussian
    spatial: Gaussian | None = None
    rows: Rows | None = None
    labels: Labels | None = None

    nearest: Floats | None = None
    """Neighbour distances of the kept rows, where the file has them."""
    notes: tuple[str, ...] = ()
    """What to be wary of in the images that it was made of; kept in no file, part of no digest."""

    @cached_property
    def manifold(self) -> Manifold | None:
        """The kept rows with their neighbour distances, made once for all that is compared with them."""
        if self.rows is None or len(self.rows) < FEWEST:
            return None
        if self.nearest is not None:
            return Manifold(torch.from_numpy(finite_rows(self.rows)), torch.from_numpy(self.nearest))
        return Manifold.of(self.rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the network's digest and every array: equal digests, equal figures."""
        hashed = hashlib.sha256(self.card.feature_digest.encode())
        for name, array in sorted(self._arrays().items()):
            hashed.update(f"{name}{array.dtype.str}{array.shape}".encode())
            hashed.update(np.ascontiguousarray(array).tobytes())
        return hashed.hexdigest()

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        spatial = self.spatial
        found = {
            "mu": self.pool.mean,
            "sigma": self.pool.covariance,
            "mu_s": spatial.mean if spatial else None,
            "sigma_s": spatial.covariance if spatial else None,
            "features": self.rows,
            "labels": self.labels,
        }
        return {name: array for name, array in found.items() if array is not None}

    def packed(self) -> bytes:
        """The bytes of a file that `load_reference` reads back to the same digest."""
        card = np.frombuffer(self.card.model_dump_json().encode(), np.uint8)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"card": card, **self._arrays()}
        if self.manifold is not None:
            arrays[NEAREST] = self.manifold.nearest.cpu().numpy()
        np.savez(buffer, **arrays)
        return buffer.getvalue()


def make_reference(
    images: ImageSet, network: FeatureNetwork, labels: Labels | None = None, kept: int = KEPT
) -> Reference:
    """Look at every image once. Raises BadFile, or ValueError naming images whose features are not finite."""
    digest, parts = PixelDigest(), []
    for batch in reported(images, MICRO_BATCH):
        digest.take(batch)
        parts.append(extract(network, batch, MICRO_BATCH))
    features = joined(parts)
    card = ReferenceCard(
        name=images.name,
        feature_network=network.name,
        feature_digest=network.digest,
        images=images.count,
        pixels=digest.hexdigest(),
    )
    chosen = np.unique(np.linspace(0, images.count - 1, min(kept, images.count)).round().astype(int))
    return Reference(
        card,
        Gaussian.of(Moments.of(features.pool)),
        None if features.spatial is None else Gaussian.of(Moments.of(features.spatial)),
        features.pool[chosen],
        None if labels is None else labels[chosen],
        notes=tuple(f"reference: {note}" for note in images.notes),
    )


def unpacked(raw: bytes, network: FeatureNetwork, name: str = "reference") -> Reference:
    """What `packed` made. Raises BadFile, also where it was made with another network."""
    with NpzFile(Path(name), io.BytesIO(raw)) as arrays:
        return _own(arrays, network)


def load_reference(path: Path, network: FeatureNetwork) -> Reference:
    """A file of ours, made with this very network, or one in ADM's format; `mu` and `sigma` are enough.

    Raises BadFile.
    """
    with NpzFile(path) as arrays:
        if "card" in arrays.names:
            return _own(arrays, network)
        if "mu" not in arrays.names:
            return make_reference(SampleFile(path), network)
        has_images, has_spatial = "arr_0" in arrays.names, bool({"mu_s", "sigma_s"} & set(arrays.names))
        pool = _gaussian(arrays, "", path)
        spatial = _gaussian(arrays, "_s", path) if has_spatial else None
    card = ReferenceCard(name=path.name, feature_network=network.name, feature_digest=network.digest)
    rows = _features_of_images(path, network).pool if has_images else None
    if rows is not None:
        _check_dims(path, pool, rows)
    return Reference(card, pool, spatial, rows)


def _own(arrays: NpzFile, network: FeatureNetwork) -> Reference:
    card = read_card(arrays)
    if card.feature_digest != network.digest:
        made = f"{card.feature_network} {card.feature_digest[:12]}"
        raise BadFile(f"{arrays.path} was made with {made}, not with {network.name} {network.digest[:12]}")
    return read_own(arrays)


def read_own(arrays: NpzFile) -> Reference:
    """What `packed` made, whatever network it was made with. Raises BadFile."""
    card, path = read_card(arrays), arrays.path
    spatial = _gaussian(arrays, "_s", path, card.images) if "mu_s" in arrays.names else None
    pool = _gaussian(arrays, "", path, card.images)
    rows = arrays.read("features").astype(np.float32) if "features" in arrays.names else None
    labels = arrays.read("labels").astype(np.int64) if "labels" in arrays.names else None
    if rows is not None:
        _check_dims(path, pool, rows)
    nearest = _finite(arrays, NEAREST, path) if NEAREST in arrays.names else None
    return Reference(card, pool, spatial, rows, labels, nearest)


def read_card(arrays: NpzFile) -> ReferenceCard:
    """Raises BadFile where the file is none of ours."""
    try:
        return ReferenceCard.model_validate_json(arrays.read("card").tobytes())
    except (ValueError, json.JSONDecodeError) as error:
        raise BadFile(f"{arrays.path} has an unreadable card: {str(error)[:200]}") from error


def _gaussian(arrays: NpzFile, suffix: str, path: Path, count: int | None = None) -> Gaussian:
    names = [f"mu{suffix}", f"sigma{suffix}"]
    missing = [name for name in names if name not in arrays.names]
    if missing:
        raise BadFile(
            f"{path} has no {missing[0]!r}; mu and sigma belong together, and so do mu_s and sigma_s"
        )
    mean, covariance = (_finite(arrays, name, path) for name in names)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise BadFile(
            f"{path}: {names[0]} {mean.shape} and {names[1]} {covariance.shape} do not fit together"
        )
    return Gaussian(mean, covariance, count)


def _finite(arrays: NpzFile, name: str, path: Path) -> Floats:
    array = arrays.read(name)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise BadFile(f"{path}: {name!r} is not finite numbers throughout")
    return array.astype(np.float64)


def _features_of_images(path: Path, network: FeatureNetwork) -> Features:
    images = SampleFile(path)
    return joined(extract(network, batch, MICRO_BATCH) for batch in images.batches(MICRO_BATCH))


def _check_dims(path: Path, pool: Gaussian, rows: Rows) -> None:
    if rows.ndim != 2 or rows.shape[1] != pool.dims:
        raise BadFile(f"{path} has statistics of {pool.dims} features, and features of shape {rows.shape}")
