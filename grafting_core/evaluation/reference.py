"""References that samples are compared with: statistics of a whole image set and features of a part.

Files are `.npz` with ADM's names (`mu`, `sigma`, `mu_s`, `sigma_s`) and in addition `features`, `labels`,
`count` and `card`. ADM's own files (with `arr_0`) are read too; features are computed from their images.
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
from grafting_core.evaluation.features.base import FeatureNetwork, Features, Rows, concat, extract
from grafting_core.evaluation.metrics.frechet import Gaussian
from grafting_core.evaluation.metrics.moments import Floats, Moments, finite_rows
from grafting_core.evaluation.metrics.prdc import Manifold
from grafting_core.specs.base import Frozen
from grafting_core.specs.features import Sha256

KEPT = 10_000
"""Rows kept for precision, coverage and KID: the number of images in ADM's references."""
MICRO_BATCH = 50
FEWEST = 6
NEAREST = "neighbour_distances"
"""Older files have `nearest`, with other rounding; it is ignored and the distances are recomputed."""
Labels = npt.NDArray[np.int64]


class ReferenceCard(Frozen):
    """Origin of a reference; its digest covers the arrays."""

    name: str
    feature_network: str
    feature_digest: Sha256
    images: int | None = None
    """Number of images in the statistics; None if the file does not say (ADM's)."""
    pixels: Sha256 | None = None


@dataclass(frozen=True)
class Reference:
    """Statistics [D] and, if the network has them, spatial ones [S]; features [M, D] of some images."""

    card: ReferenceCard
    pool: Gaussian
    spatial: Gaussian | None = None
    rows: Rows | None = None
    labels: Labels | None = None

    nearest: Floats | None = None
    """Neighbour distances of the kept rows, if the file has them."""
    notes: tuple[str, ...] = ()
    """Warnings about the images that it was made of; not stored, not part of the digest."""

    @cached_property
    def manifold(self) -> Manifold | None:
        """The kept rows with their neighbour distances, computed once for all comparisons."""
        if self.rows is None or len(self.rows) < FEWEST:
            return None
        if self.nearest is not None:
            return Manifold(torch.from_numpy(finite_rows(self.rows)), torch.from_numpy(self.nearest))
        return Manifold.of(self.rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the network's digest and every array: equal digests give equal metrics."""
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
        """Content of a file that `load_reference` reads back with the same digest."""
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
    """Compute a reference of images. Raises BadFile, or ValueError naming images without finite features."""
    digest, parts = PixelDigest(), []
    for batch in reported(images, MICRO_BATCH):
        digest.update(batch)
        parts.append(extract(network, batch, MICRO_BATCH))
    features = concat(parts)
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
    """Reference from the result of `packed`. Raises BadFile, also if another network made it."""
    with NpzFile(Path(name), io.BytesIO(raw)) as arrays:
        return _own(arrays, network)


def load_reference(path: Path, network: FeatureNetwork) -> Reference:
    """Reference from a file of ours, made with this network, or in ADM's format (at least `mu` and `sigma`).

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
    """Reference from the result of `packed`, made with any network. Raises BadFile."""
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
    """Card of a file of ours. Raises BadFile for other files."""
    try:
        return ReferenceCard.model_validate_json(arrays.read("card").tobytes())
    except (ValueError, json.JSONDecodeError) as error:
        raise BadFile(f"{arrays.path} has an unreadable card: {str(error)[:200]}") from error


def _gaussian(arrays: NpzFile, suffix: str, path: Path, count: int | None = None) -> Gaussian:
    names = [f"mu{suffix}", f"sigma{suffix}"]
    missing = [name for name in names if name not in arrays.names]
    if missing:
        raise BadFile(
            f"{path} has no {missing[0]!r}; it needs both mu and sigma, and mu_s and sigma_s only together"
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
        raise BadFile(f"{path}: {name!r} has values that are not finite numbers")
    return array.astype(np.float64)


def _features_of_images(path: Path, network: FeatureNetwork) -> Features:
    images = SampleFile(path)
    return concat(extract(network, batch, MICRO_BATCH) for batch in images.batches(MICRO_BATCH))


def _check_dims(path: Path, pool: Gaussian, rows: Rows) -> None:
    if rows.ndim != 2 or rows.shape[1] != pool.dims:
        raise BadFile(f"{path} has statistics of {pool.dims} features, but features of shape {rows.shape}")
