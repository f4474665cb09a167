"""Other people's implementations of metrics."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.torch_fidelity import imported_torch_fidelity


@pytest.fixture
def torch_fidelity() -> Iterator[Any]:
    """See `imported_torch_fidelity`."""
    with imported_torch_fidelity() as modules:
        yield modules
