"""How hard the model is tried: a few examples on each run, many where GRAFTLAB_MODEL_EXAMPLES says so."""

import os

import pytest


@pytest.fixture(scope="session")
def model_examples() -> int:
    return int(os.environ.get("GRAFTLAB_MODEL_EXAMPLES", "8"))
