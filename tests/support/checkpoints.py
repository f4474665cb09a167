"""Checkpoints as the original code and released grafts have them, small: two blocks of the size S."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.support.diffusers_folders import random_autoencoder
from tests.support.original_dit import State, random_state

SMALL = 384
RELEASED = "dit-xl2-mha-hyena_x-50p-fid2.61"
HYENA = {(1, "attn"): "hyena_x"}


class RunsCode:
    """Unpickling it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def small_state(grafts: Mapping[tuple[int, str], str] | None = None) -> State:
    """Two blocks, by default unedited."""
    return random_state(2, grafts, width=SMALL)


def save_checkpoint(file: Path, document: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(document, file)
    return file


def save_vae(folder: Path) -> Path:
    """An autoencoder for four latent channels."""
    random_autoencoder().save_pretrained(folder)
    return folder
