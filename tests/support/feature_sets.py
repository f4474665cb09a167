"""Feature matrices for tests of metrics."""

import numpy as np


def features(count: int, dims: int, seed: int = 0) -> np.ndarray:
    """Make correlated float64 features with a mean other than zero."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dims)) @ rng.normal(size=(dims, dims)) + rng.normal(size=dims)
