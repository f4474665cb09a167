"""Feature matrices for tests of metrics."""

import numpy as np


def features(count: int, dims: int, seed: int = 0) -> np.ndarray:
    """Correlated, off centre, float64."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dims)) @ rng.normal(size=(dims, dims)) + rng.normal(size=dims)
