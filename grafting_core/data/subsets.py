"""Subsets of samples in the proportions of the classes."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def stratified(labels: Indices, amount: int | float, seed: int) -> Indices:
    """Ascending indices of that number (int) or share (float) of samples, drawn by seed.

    Each class has its share to within one sample, and smaller subsets are part of larger ones.
    """
    count = round(amount * len(labels)) if isinstance(amount, float) else min(amount, len(labels))
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    places = np.empty(len(labels), np.float64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = shuffled[np.argsort(places[shuffled], kind="stable")]
    return np.sort(order[:count]).astype(np.int64)
