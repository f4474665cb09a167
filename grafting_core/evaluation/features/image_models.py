"""Image models of transformers and timm as feature networks, from local folders of safetensors."""

import re
from collections.abc import Mapping
from importlib import import_module
from math import isqrt
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from grafting_core.backbones.bounded import CONFIG_ERRORS, TooLarge, bounded, check_numbers
from grafting_core.backbones.dit_config import read_json
from grafting_core.evaluation.features.base import FeatureNetwork, spatial_rows
from grafting_core.evaluation.features.classifier import KIND
from grafting_core.evaluation.features.pixels import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalisation_of,
    normalised,
    resized,
)
from grafting_core.specs.features import LOADERS, FeatureCard, FeatureSource, digest_of_path

Kind = Literal["classifier", "transformers", "timm"]
SPATIAL_CHANNELS = 7
DEFAULT_SIDE = 224
MAX_SIDE = 2_048
"""Of the images that a network takes."""
PROBE = 32
"""Side of the test image that determines a network's sizes."""
INTERPOLATES = ("dinov2", "dinov2_with_registers")
"""Model types that accept images of any size; their preprocessor's size is used."""
INSTALL = "pip install 'graftlab[features]'"


def read_feature_folder(folder: Path, name: str, licence: str | None = None) -> FeatureCard:
    """Card of a folder with a trained classifier, or an image model of transformers or timm.

    The model is loaded and tested on an image. Raises ValueError for weights that are not safetensors, do not
    match the config or are not finite, for remote code, and for a model that does not take images.
    """
    kind = kind_of(folder)
    digest = digest_of_path(folder)
    network = resolve_name(LOADERS[kind])(FeatureSource(path=str(folder), sha256=digest), "cpu")
    pool, spatial, _ = _probed(network, folder)
    return FeatureCard(
        name=name,
        digest=digest,
        kind=kind,
        dims=pool.shape[1],
        spatial=spatial is not None,
        dataset=network.config.dataset if kind == "classifier" else None,
        accuracy=_accuracy(folder) if kind == "classifier" else None,
        size=sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        licence=licence,
        folder=str(folder),
    )


def kind_of(folder: Path) -> Kind:
    """Kind of model in a folder by its `config.json`. Raises ValueError for an unknown one."""
    config = read_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no safetensors; pickled weights are not loaded")
    if config.get("kind") == KIND:
        return "classifier"
    if "architecture" in config:
        return "timm"
    if "model_type" in config:
        return "transformers"
    raise ValueError(
        f"{folder / 'config.json'} names no image model: those of transformers have a model_type, "
        "those of timm an architecture"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`. Raises ValueError if it is missing, no JSON object, or asks for remote code."""
    file = folder / "config.json"
    try:
        config = read_json(file)
    except ValueError as error:
        raise ValueError(f"{folder} contains no model: {error}") from error
    check_numbers(folder, config)
    if "auto_map" in config:
        raise ValueError(f"{file} asks for remote code (auto_map), which is never executed")
    return config


def _accuracy(folder: Path) -> float | None:
    file = folder / "card.json"
    if not file.is_file():
        return None
    try:
        return FeatureCard.model_validate_json(file.read_bytes()).accuracy
    except ValueError as error:
        raise ValueError(f"{file} is no card of a feature network: {str(error)[:200]}") from error


@torch.no_grad()
def _probed(network: FeatureNetwork, folder: Path) -> tuple[Tensor, Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, PROBE, PROBE, 3), generator=generator, dtype=torch.uint8)
    try:
        found = network(image)
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder} contains a model that takes no images: {str(error)[:300]}") from error
    if found[0].dim() != 2 or not torch.isfinite(found[0]).all():
        raise ValueError(f"{folder} contains a model whose features are not finite vectors")
    return found


def _check_weights(folder: Path, model: nn.Module, missing: set[str]) -> None:
    """Raise ValueError for missing weights, except a pooler's, which is not needed, or ones not finite."""
    needed = sorted(key for key in missing if not key.startswith("pooler."))
    if needed:
        raise ValueError(f"{folder}: the weights are not those of its config.json; they lack {needed[0]}")
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{folder}: weights that are not finite numbers: {broken[0]}")


class TransformersNetwork:
    """Features are the class token of the last layer, or the pooled output of a model without `cls_token`, or
    the mean of its output. Spatial features are the first channels of the maps or patch tokens.
    """

    def __init__(self, model: nn.Module, folder: Path, digest: str, pooled: bool) -> None:
        self.name, self.digest, self.model = folder.resolve().name, digest, model
        self.device = next(model.parameters()).device
        self.side = _side(folder, model.config)
        self.mean, self.std = normalisation_of(folder)
        self._pooled = pooled
        self._token = any("cls_token" in name for name in model.state_dict())

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor | None, None]:
        fitting = resized(images_NHWC, (self.side, self.side)).to(self.device)
        output = self.model(pixel_values=normalised(fitting, self.mean, self.std))
        hidden: Tensor = output.last_hidden_state
        is_map = hidden.dim() == 4
        spatial = spatial_rows(hidden) if is_map else self._patches(hidden)
        pooled = getattr(output, "pooler_output", None) if self._pooled else None
        if self._token and not is_map:
            return hidden[:, 0], spatial, None
        if pooled is not None:
            return pooled.flatten(1), spatial, None
        return hidden.mean(dim=(2, 3) if is_map else 1), spatial, None

    def _patches(self, hidden_BTD: Tensor) -> Tensor:
        """First channels of the patch tokens, which follow class and register tokens."""
        patch, tokens = getattr(self.model.config, "patch_size", None), hidden_BTD.shape[1]
        square = (self.side // patch) ** 2 if isinstance(patch, int) else tokens
        if square >= tokens:
            square = isqrt(tokens) ** 2
        return hidden_BTD[:, tokens - square :, :SPATIAL_CHANNELS].flatten(1)


def load_transformers_model(source: FeatureSource, device: torch.device | str) -> TransformersNetwork:
    """Load an image model by its config. Raises ValueError if the folder contains something else."""
    folder = Path(source.path)
    read_config(folder)
    check_index(folder)
    transformers = _imported("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        # The image tower of a model of images and text.
        config = getattr(config, "vision_config", config)
        with torch.device("meta"), bounded(folder, _stored_shapes(folder)):
            transformers.AutoModel.from_config(config)
        model, info = transformers.AutoModel.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except TooLarge:
        raise
    except (OSError, SafetensorError, *CONFIG_ERRORS) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} contains no image model of transformers: {reason}") from error
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise ValueError(f"{folder} contains a {type(model).__name__}, which takes no images")
    missing = set(info["missing_keys"])
    _check_weights(folder, model, missing | {str(key[0]) for key in info["mismatched_keys"]})
    pooled = not any(key.startswith("pooler.") for key in missing)
    frozen = model.float().to(device).eval().requires_grad_(False)
    return TransformersNetwork(frozen, folder, source.sha256, pooled)


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in a folder's safetensors, from their headers."""
    found = dict[str, tuple[int, ...]]()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return found


def check_index(folder: Path) -> None:
    """Raise ValueError if an index of sharded weights names anything but a file of the folder itself."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = set(read_json(index)["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is no index of weights") from error
        for name in sorted(map(str, names)):
            if name != Path(name).name or not (folder / name).is_file():
                raise ValueError(f"{index} names {name!r}; shards lie in the folder itself")


def _side(folder: Path, config: Any) -> int:
    """Side of the input images by the config or the preprocessor."""
    file = folder / "preprocessor_config.json"
    given = read_json(file) if file.is_file() else {}
    own, cropped = getattr(config, "image_size", None), (given.get("crop_size"), given.get("size"))
    order = (*cropped, DEFAULT_SIDE) if config.model_type in INTERPOLATES else (own, *cropped, DEFAULT_SIDE)
    found = next(side for side in map(_side_of, order) if side is not None)
    return _supported(folder, min(found, _side_of(own) or found))


def _supported(folder: Path, side: int) -> int:
    if side > MAX_SIDE:
        raise ValueError(
            f"{folder} contains a model for images of {side} x {side}; sides up to {MAX_SIDE} work"
        )
    return side


def _side_of(size: Any) -> int | None:
    if isinstance(size, Mapping):
        return _side_of(size.get("height", size.get("shortest_edge")))
    if isinstance(size, list | tuple):
        return _side_of(size[0]) if size else None
    return size if isinstance(size, int) and size > 0 else None


class TimmNetwork:
    """Features are the input of timm's classifier; spatial features its maps or patch tokens."""

    def __init__(self, model: Any, folder: Path, digest: str, pretrained: Mapping[str, Any]) -> None:
        self.name, self.digest, self.model = folder.resolve().name, digest, model
        self.device = next(model.parameters()).device
        side = _side_of(tuple(pretrained.get("input_size", ()))[1:]) or DEFAULT_SIDE
        self.side = _supported(folder, side)
        self.mean = tuple(pretrained.get("mean", IMAGENET_MEAN))
        self.std = tuple(pretrained.get("std", IMAGENET_STD))
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        fitting = resized(images_NHWC, (self.side, self.side)).to(self.device)
        found: Tensor = self.model.forward_features(normalised(fitting, self.mean, self.std))
        pool: Tensor = self.model.forward_head(found, pre_logits=True)
        logits: Tensor | None = self.model.forward_head(found) if self.model.num_classes else None
        if found.dim() == 4:
            last = "NHWC" in str(getattr(self.model, "output_fmt", ""))
            return pool, spatial_rows(found.permute(0, 3, 1, 2) if last else found), logits
        return pool, found[:, self._prefix :, :SPATIAL_CHANNELS].flatten(1), logits


def _plain_arguments(folder: Path, architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Sizes that the config gives to a timm model. Raises ValueError for what would load other files."""
    loading = [name for name in arguments if re.search("checkpoint|pretrained|cache|path|file|url", name)]
    if loading or not re.fullmatch(r"[a-zA-Z0-9_.]+", architecture):
        given = f"model_args.{loading[0]}" if loading else f"architecture {architecture!r}"
        raise ValueError(f"{folder / 'config.json'} has {given}; a plain name and sizes are allowed")
    return arguments


def load_timm_model(source: FeatureSource, device: torch.device | str) -> TimmNetwork:
    """Load a model in timm's hub format: `config.json` and `model.safetensors`. Raises ValueError."""
    folder = Path(source.path)
    config = read_config(folder)
    timm = _imported("timm")
    architecture = str(config.get("architecture"))
    arguments = _plain_arguments(folder, architecture, config.get("model_args") or {})
    if config.get("num_classes") is not None:
        arguments = {**arguments, "num_classes": config["num_classes"]}
    try:
        with bounded(folder, _stored_shapes(folder)):
            model = timm.create_model(architecture, pretrained=False, **arguments)
        info = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    except TooLarge:
        raise
    except (OSError, SafetensorError, *CONFIG_ERRORS) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} contains no image model of timm: {reason}") from error
    _check_weights(folder, model, set(info.missing_keys))
    frozen = model.float().to(device).eval().requires_grad_(False)
    return TimmNetwork(frozen, folder, source.sha256, config.get("pretrained_cfg") or {})


def _imported(library: str) -> Any:
    try:
        return import_module(library)
    except ImportError as error:
        raise ValueError(f"this network needs {library}: {INSTALL}") from error
