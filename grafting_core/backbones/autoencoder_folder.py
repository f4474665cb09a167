"""Autoencoder of a backbone folder: its kind, decoding cost and weights."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from grafting_core.backbones.autoencoder import Autoencoder, IdentityAutoencoder, KLAutoencoder
from grafting_core.backbones.bounded import CONFIG_ERRORS, TooLarge, bounded, check_numbers
from grafting_core.backbones.dit_config import DiTConfig, read_json
from grafting_core.backbones.weight_files import (
    CONFIG,
    OpenWeights,
    check_names,
    files_of,
    find_weights,
    open_weights,
)

FOLDERS = ("vae", "autoencoder")
WEIGHTS = "diffusion_pytorch_model.safetensors"
PIXEL_CHANNELS = (1, 3)
DIFFUSERS_LATENT_CHANNELS = 4
"""Where a config does not say."""


def autoencoder_folder(folder: Path, config: DiTConfig) -> Path | None:
    """Folder of the autoencoder stored with the transformer; None for a transformer on pixels.

    Raises ValueError where latents have no decoder.
    """
    found = _beside(folder)
    if found is not None:
        return found
    if config.in_channels in PIXEL_CHANNELS:
        return None
    raise ValueError(
        f"{folder} has a transformer of {config.in_channels} channels but no decoder; "
        f"add a folder {' or '.join(FOLDERS)}"
    )


def _beside(folder: Path) -> Path | None:
    found = (folder / name for name in FOLDERS if (folder / name / CONFIG).is_file())
    return next(found, None)


def load_kl(folder: Path, device: torch.device) -> Autoencoder:
    """The `AutoencoderKL` of a transformer's pipeline, frozen. Raises ValueError as `read_kl` does."""
    found = _beside(folder)
    if found is None:
        raise ValueError(f"{folder} has no decoder; add a folder {' or '.join(FOLDERS)}")
    return KLAutoencoder(read_kl(found).to(device), found)


def write_kl(autoencoder: KLAutoencoder, target: Path) -> None:
    """Write an autoencoder so that diffusers reads it back.

    One that was loaded from a folder with one safetensors file keeps config and weights to the byte, so that
    data sets that it has encoded go with the copy too. The path that diffusers adds to a config is left out.
    """
    source = autoencoder.folder
    if source is not None and [file.name for file in files_of(source)] == [CONFIG, WEIGHTS]:
        target.mkdir(parents=True)
        for file in files_of(source):
            shutil.copyfile(file, target / file.name)
        return
    autoencoder.model.save_pretrained(target)
    config = read_json(target / CONFIG)
    config.pop("_name_or_path", None)
    (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_identity(folder: Path, device: torch.device) -> Autoencoder:
    return IdentityAutoencoder()


AUTOENCODERS: Mapping[str, Callable[[Path, torch.device], Autoencoder]] = {
    "kl": load_kl,
    "none": load_identity,
}
"""By the kind on a backbone's card; each is given the backbone's folder."""


def read_kl(folder: Path) -> AutoencoderKL:
    """In single precision, whatever it is stored in. Raises ValueError for weights that are not all there."""
    _check_class(folder)
    if index := next(folder.glob("*.index.json"), None):
        raise ValueError(f"{index} splits an autoencoder into shards; store it as one file")
    files = find_weights(folder)
    with open_weights(folder) as weights:
        _check_finite(weights)
    empty_kl(folder)
    try:
        model, info = AutoencoderKL.from_pretrained(
            folder,
            use_safetensors=files.suffix == "safetensors",
            local_files_only=True,
            variant=files.variant,
            # Else accelerate, where it is installed, builds on the meta device, and a missing tensor ends
            # in its own traceback.
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,  # they are named below
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, *CONFIG_ERRORS) as error:
        raise ValueError(f"{folder} holds no AutoencoderKL: {' '.join(str(error).split())[:300]}") from error
    _check_info(folder, info)
    return model.eval().requires_grad_(False)


def check_latents(folder: Path, channels: int) -> None:
    """Raises ValueError for another kind of autoencoder, or one whose latents have other channels."""
    _check_class(folder)
    found = read_json(folder / CONFIG).get("latent_channels", DIFFUSERS_LATENT_CHANNELS)
    if found != channels:
        raise ValueError(f"{folder} has latents of {found} channels; the transformer takes {channels}")


def _check_class(folder: Path) -> None:
    name = read_json(folder / CONFIG).get("_class_name")
    if name != AutoencoderKL.__name__:
        raise ValueError(f"{folder} holds a {name}; an {AutoencoderKL.__name__} is needed")


def _check_finite(weights: OpenWeights) -> None:
    for name in weights.shapes:
        weights.read(name)


def _check_info(folder: Path, info: dict[str, Any]) -> None:
    """As diffusers found names and shapes, of which it translates older ones."""
    expected = dict.fromkeys(info["missing_keys"], (0,))
    found = dict.fromkeys(info["unexpected_keys"], (0,))
    for name, *shapes in info["mismatched_keys"]:
        found[name], expected[name] = tuple(shapes[0]), tuple(shapes[1])
    check_names(folder, expected, found)


def empty_kl(folder: Path) -> AutoencoderKL:
    """The autoencoder without weights. Raises ValueError if it is larger than the weights in the folder."""
    config = read_json(folder / CONFIG)
    check_numbers(folder, config)
    with open_weights(folder) as weights:
        shapes = weights.shapes
    with _named_config(folder), torch.device("meta"), bounded(folder, shapes):
        return AutoencoderKL.from_config(config).eval()


@contextmanager
def _named_config(folder: Path) -> Iterator[None]:
    try:
        yield
    except TooLarge:
        raise
    except CONFIG_ERRORS as error:
        raise ValueError(f"{folder / CONFIG}: {' '.join(str(error).split())[:300]}") from error


def decoder_cost(folder: Path, latent_channels: int, side: int) -> tuple[int, int]:
    """FLOPs and bytes of decoding one latent [C, side, side], counted on a model without weights.

    The bytes are those of the largest layer's input and output, and of a sum in addition. Raises ValueError
    for an autoencoder of another number of channels.
    """
    check_latents(folder, latent_channels)
    model = empty_kl(folder)
    largest = [0]

    def measure(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            largest[0] = max(largest[0], inputs[0].nbytes + 2 * output.nbytes)

    for module in model.decoder.modules():
        module.register_forward_hook(measure)
    # Fused kernels of attention are not counted, matrix products are.
    latents = torch.empty(1, latent_channels, side, side, device="meta")
    with (
        _named_config(folder),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counted,
    ):
        model.decode(latents)
    return int(counted.get_total_flops()), largest[0]
