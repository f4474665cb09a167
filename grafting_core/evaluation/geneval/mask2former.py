"""GenEval's detector: Mask2Former by transformers, with the preprocessing and post-processing of mmdet 2.

The post-processing of transformers has another choice of instances and another size of masks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from grafting_core.evaluation.geneval.detections import Detection
from grafting_core.evaluation.geneval.pictures import Picture
from grafting_core.specs.geneval import COCO_CLASSES

LONG_SIDE, SHORT_SIDE, DIVISOR = 1333, 800, 32
PADDING = 128
"""Grey of the padding, before normalising."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
INSTANCES = 100
"""Most instances of an image, over all queries and classes."""
NOT_LOADED = ("criterion.", "model.pixel_level_module.encoder.swin.layernorm.")
"""Parts of transformers' model that take no part in inference and have no weights in the checkpoint."""
Size = tuple[int, int]

OFFICIAL_SWIN: Mapping[str, Any] = {
    "embed_dim": 96,
    "depths": [2, 2, 18, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
}


def build_model(swin: Mapping[str, Any] = OFFICIAL_SWIN, **sizes: Any) -> nn.Module:
    """Mask2Former without weights, by default with the official sizes."""
    stages = [f"stage{place}" for place in range(1, 5)]
    backbone = SwinConfig(**swin, drop_path_rate=0.0, out_features=stages)
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=len(COCO_CLASSES), **sizes)
    model: nn.Module = Mask2FormerForUniversalSegmentation(config)
    return model.eval().requires_grad_(False)


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load all weights of a model. Raises ValueError for missing, additional or misshapen tensors."""
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.startswith(NOT_LOADED)]
    extra = [name for name in state if name not in own]
    misshapen = [name for name in state if name in own and state[name].shape != own[name].shape]
    problems = {"missing": missing, "not part of the model": extra, "of another shape": misshapen}
    said = [
        f"{len(names)} tensors are {what}, such as {names[0]}" for what, names in problems.items() if names
    ]
    if said:
        raise ValueError(f"the weights are not those of the detector: {'; '.join(said)}")
    model.load_state_dict(dict(state), strict=False)
    return model


class Mask2FormerDetector:
    """Detector of COCO's classes; images are processed one at a time, as their sizes may differ."""

    classes = COCO_CLASSES

    def __init__(self, model: nn.Module, minimum: float = 0.0) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._minimum = minimum
        """Class probability that an instance must exceed; its score is never higher."""

    def detect(self, pictures: Sequence[Picture]) -> list[list[Detection]]:
        return [self._detect(torch.from_numpy(np.array(picture.pixels))) for picture in pictures]

    @torch.no_grad()
    def _detect(self, pixels_HWC: Tensor) -> list[Detection]:
        original = (pixels_HWC.shape[0], pixels_HWC.shape[1])
        inputs, resized = network_input(pixels_HWC)
        with exact_float32():
            output = self._model(pixel_values=inputs.to(self._device))
            return instances(
                output.class_queries_logits[0].float(),
                output.masks_queries_logits[0].float(),
                ((inputs.shape[2], inputs.shape[3]), resized, original),
                self._minimum,
            )


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switch off TF32 in products and convolutions: it has been seen to lower the detector's scores."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def network_input(pixels_HWC: Tensor) -> tuple[Tensor, Size]:
    """Normalised input [1, 3, H, W] for a uint8 image, and the size of the image in it, at its top left.

    The image is scaled to fit 1333 x 800 and padded with grey to multiples of 32. Scaling is bilinear without
    antialiasing and rounds to 8 bits, as OpenCV does.
    """
    size = fitting_size(pixels_HWC.shape[0], pixels_HWC.shape[1])
    image = pixels_HWC.permute(2, 0, 1)[None].float()
    scaled = interpolate(image, size=size, mode="bilinear", align_corners=False).round().clamp(0, 255)
    bottom, right = (-side % DIVISOR for side in size)
    padded = pad(scaled, (0, right, 0, bottom), value=PADDING)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (padded - mean) / std, size


def fitting_size(height: int, width: int) -> Size:
    """Largest size of the same shape whose long side is at most 1333 and whose short side at most 800."""
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def instances(
    class_logits_QC: Tensor, mask_logits_QHW: Tensor, sizes: tuple[Size, Size, Size], minimum: float = 0.0
) -> list[Detection]:
    """Instances of an image by its queries; sizes are those of the padded, the scaled and the own image.

    The instances are the 100 most probable pairs of query and class, so that a query may give several. The
    score is the class probability times the mean probability within the mask.
    """
    scores_QC = class_logits_QC.softmax(-1)[:, :-1]
    classes = scores_QC.shape[1]
    best = scores_QC.flatten().topk(min(INSTANCES, scores_QC.numel()))
    chosen = best.values > minimum
    scores, labels = best.values[chosen], best.indices[chosen] % classes
    queries, places = (best.indices[chosen] // classes).unique(return_inverse=True)
    masks = [_mask(mask_logits_QHW[query], sizes) for query in queries.tolist()]
    found = list[Detection]()
    for score, label, place in zip(scores, labels.tolist(), places.tolist(), strict=True):
        mask_HW, mean, box = masks[place]
        found.append(Detection(COCO_CLASSES[label], box, float(score * mean), mask_HW))
    return found


def _mask(logits_HW: Tensor, sizes: tuple[Size, Size, Size]) -> tuple[Any, Tensor, tuple[float, ...]]:
    """Mask in the image's own size, the mean probability within it, and its box; all zero if it is empty."""
    padded, scaled, own = sizes
    whole = interpolate(logits_HW[None, None], size=padded, mode="bilinear", align_corners=False)
    image = whole[..., : scaled[0], : scaled[1]]
    logits = interpolate(image, size=own, mode="bilinear", align_corners=False)[0, 0]
    mask = logits > 0
    mean = (logits.sigmoid() * mask).sum() / (mask.sum() + 1e-6)
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if not len(rows):
        return mask.cpu().numpy(), mean, (0.0, 0.0, 0.0, 0.0)
    ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return mask.cpu().numpy(), mean, tuple(float(end) for end in ends)
