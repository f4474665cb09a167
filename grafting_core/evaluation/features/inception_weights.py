"""`inception` from the administrator's weight file: ported weights, or a TorchScript that resizes itself."""

import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from grafting_core.evaluation.features.base import spatial_rows
from grafting_core.evaluation.features.inception import Inception
from grafting_core.evaluation.features.resize import resize_like_tensorflow1
from grafting_core.specs.features import FeatureSource

SIDE = 299


class InceptionNetwork:
    """2048 features, 17 x 17 x 7 spatial ones, 1008 logits without the bias, as in ADM."""

    name = "inception"

    def __init__(self, network: Inception, digest: str) -> None:
        self.network, self.digest = network, digest
        self.device = next(network.parameters()).device

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        resized = resize_like_tensorflow1(images_NHWC.permute(0, 3, 1, 2).float(), SIDE)
        pool, maps = self.network((resized - 128) / 128)
        return pool, spatial_rows(maps), pool @ self.network.fc.weight.T


class ScriptedInception:
    """TorchScript version: `forward(uint8 NCHW, return_features=True)`; it has no spatial features."""

    name = "inception"

    def __init__(self, script: torch.jit.ScriptModule, digest: str, device: torch.device) -> None:
        self.script, self.digest, self.device = script, digest, device

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, None, Tensor]:
        images = images_NHWC.permute(0, 3, 1, 2).contiguous()
        pool: Tensor = self.script(images, return_features=True)
        probabilities: Tensor = self.script(images, no_output_bias=True)
        return pool, None, probabilities.double().clamp_min(1e-300).log()


def load_inception(source: FeatureSource, device: torch.device | str) -> InceptionNetwork | ScriptedInception:
    """Load a file whose digest was checked before. Raises ValueError if it is another network."""
    path = Path(source.path)
    if _is_torchscript(path):
        script = torch.jit.load(path, map_location=device).eval()
        return ScriptedInception(script, source.sha256, torch.device(device))
    network = Inception()
    try:
        network.load_state_dict(_state(path))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} does not hold the 2015-12-05 Inception: {str(error)[:300]}") from error
    return InceptionNetwork(network.to(device).eval().requires_grad_(False), source.sha256)


def _state(path: Path) -> dict[str, Tensor]:
    """Tensors of the file; no code in it is executed."""
    if path.suffix == ".safetensors":
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
