"""Damaged or unusable DiT folders are refused, and the message names what is wrong."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grafting_core.backbones.registered import load_registered, read_card
from grafting_core.data.image_sets import open_images
from grafting_core.data.npz import BadFile
from tests.support.diffusers_folders import (
    SAFETENSORS,
    State,
    change_config,
    change_weights,
    random_transformer,
    write_folder,
)

CPU = torch.device("cpu")


def as_bin(folder: Path) -> None:
    torch.save(random_transformer().state_dict(), folder / "transformer" / "diffusion_pytorch_model.bin")
    (folder / "transformer" / SAFETENSORS).unlink()


class Evil:
    """Its pickle would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def pickled(folder: Path, name: str = "diffusion_pytorch_model.bin") -> None:
    (folder / SAFETENSORS).unlink()
    (folder / name).write_bytes(pickle.dumps({"weight": Evil()}))


def zipped_pickle(folder: Path) -> None:
    (folder / SAFETENSORS).unlink()
    torch.save({"weight": Evil()}, folder / "diffusion_pytorch_model.bin")


def truncated(folder: Path) -> None:
    file = folder / SAFETENSORS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def truncated_bin(folder: Path) -> None:
    as_bin(folder.parent)
    file = folder / "diffusion_pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_shard_less(folder: Path) -> None:
    (folder / SAFETENSORS).unlink()
    random_transformer().save_pretrained(folder, max_shard_size="300KB")
    sorted(folder.glob("*-of-*.safetensors"))[1].unlink()


def pointer(folder: Path) -> None:
    (folder / SAFETENSORS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def first(edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        def edited(state: State) -> State:
            name = min(state)
            return {**state, name: edit(state[name])}

        change_weights(folder, edited)

    return change


def nested(folder: Path) -> None:
    (folder / SAFETENSORS).unlink()
    torch.save({"state_dict": random_transformer().state_dict()}, folder / "diffusion_pytorch_model.bin")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle": (pickled, "a pickle of more than tensors, which is never opened"),
    "a pickle in a zip": (zipped_pickle, r"a pickle of more than tensors, which is never opened\): it names"),
    "a pickle named safetensors": (
        lambda folder: pickled(folder, SAFETENSORS),
        "not a whole safetensors file .truncated, or another format",
    ),
    "a bin named safetensors": (
        lambda folder: torch.save(random_transformer().state_dict(), folder / SAFETENSORS),
        "not a whole safetensors file",
    ),
    "half a file": (truncated, "not a whole safetensors file"),
    "half a bin": (truncated_bin, "not a whole file of weights"),
    "an empty file": (lambda folder: (folder / SAFETENSORS).write_bytes(b""), "not a whole safetensors file"),
    "no file": (lambda folder: (folder / SAFETENSORS).unlink(), "has no weights"),
    "a shard less": (one_shard_less, "lacks shard 2 of"),
    "a pointer": (pointer, "Git LFS pointer"),
    "more than tensors": (nested, "does not hold tensors by name alone"),
    "not a number": (first(lambda t: torch.full_like(t, float("nan"))), "not finite numbers"),
    "infinite": (first(lambda t: torch.full_like(t, float("inf"))), "not finite numbers"),
    "whole numbers": (first(lambda t: t.to(torch.int8)), "stored as torch.int8; floats are needed"),
    "another shape": (first(lambda t: torch.zeros(3)), "has in another shape"),
    "a tensor less": (
        lambda folder: change_weights(folder, lambda state: dict(sorted(state.items())[1:])),
        "lacks ",
    ),
    "a tensor more": (
        lambda folder: change_weights(folder, lambda state: {**state, "x": torch.zeros(1)}),
        "has unexpected x",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
    "half a config": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    "a list as config": (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
    "another class": (
        lambda folder: change_config(folder, _class_name="FluxTransformer2DModel"),
        "holds a FluxTransformer2DModel",
    ),
    "another depth": (lambda folder: change_config(folder, num_layers=4), "lacks transformer_blocks.3"),
    "another width": (lambda folder: change_config(folder, attention_head_dim=8), "in another shape"),
    "a width in words": (lambda folder: change_config(folder, attention_head_dim="16"), "attention_head_dim"),
    "a width of nothing": (lambda folder: change_config(folder, attention_head_dim=0), "attention_head_dim"),
    "countless layers": (lambda folder: change_config(folder, num_layers=10**9), "num_layers"),
    "a grid with a rest": (lambda folder: change_config(folder, patch_size=3), "no multiple of patch_size"),
    "countless tokens": (lambda folder: change_config(folder, sample_size=16_000), "at most 256"),
    "another activation": (lambda folder: change_config(folder, activation_fn="geglu"), "activation_fn"),
    "dropout": (lambda folder: change_config(folder, dropout=0.1), "dropout"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_transformer_that_cannot_be_used_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path)
    before = load_registered(read_card(folder, name="mine"), CPU).card
    damage(folder / "transformer")
    for reading in (lambda: read_card(folder, name="mine"), lambda: load_registered(before, CPU)):
        with pytest.raises(ValueError, match=message):
            reading()
    assert "run" not in capsys.readouterr().out


VAE_BROKEN = [
    "a pickle",
    "a pickle in a zip",
    "a pickle named safetensors",
    "half a file",
    "no file",
    "a pointer",
    "not a number",
    "another shape",
    "a tensor less",
    "a tensor more",
    "half a config",
]


@pytest.mark.parametrize("name", VAE_BROKEN)
def test_an_autoencoder_that_cannot_be_used_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path)
    damage, message = BROKEN[name]
    damage(folder / "vae")
    with pytest.raises(ValueError, match=message):
        read_card(folder, name="mine")


def test_a_folder_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)

    def touch(done: int, total: int, what: str) -> None:
        if done == 2:
            change_config(folder / "vae", note="changed")

    with pytest.raises(ValueError, match="was changed while it was read"):
        read_card(folder, name="mine", progress=touch)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        read_card(tmp_path, name="mine")


def test_a_subject_that_is_missing_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="nothing does not exist"):
        open_images(tmp_path / "nothing")
