"""Small real things that many tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.registry import load_backbone
from grafting_core.data.datasets import LabelledImages, encode_held_out, encode_latents
from grafting_core.data.latents import Latents
from grafting_core.testbed.assets import load_fashion_mnist
from tests.support.databases import migrated_postgres, migrated_sqlite, postgres_server

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """The testbed itself; tests that operate on it undo what they did."""
    return load_backbone("testbed/dit-fashion")


@pytest.fixture(scope="session")
def dataset() -> LabelledImages:
    """What the testbed is trained on."""
    return load_fashion_mnist()


@pytest.fixture(scope="session")
def latents(backbone: Backbone) -> Latents:
    """Latents of two hundred of its images."""
    return encode_latents(backbone, 200)


@pytest.fixture(scope="session")
def held_out(backbone: Backbone) -> Latents:
    """Latents of its images that no training has seen."""
    return encode_held_out(backbone)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL server's database `postgres`."""
    with postgres_server(tmp_path_factory.mktemp("pg")) as address:
        yield address


@pytest.fixture(scope="session")
def postgres_template(postgres: str) -> str:
    """The name of a migrated database on that server; nobody connects to it."""
    return migrated_postgres(postgres)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, to be copied."""
    return migrated_sqlite(tmp_path_factory.mktemp("migrated"))
