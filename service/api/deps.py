"""What routes are given: the application's database, storage and settings."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from grafting_core.storage import Storage
from service.settings import Settings
from service.store.engine import Database


@dataclass(frozen=True)
class Lab:
    """Everything a route may touch."""

    settings: Settings
    database: Database
    storage: Storage


def _lab(request: Request) -> Lab:
    lab: Lab = request.app.state.lab
    return lab


LabDep = Annotated[Lab, Depends(_lab)]
