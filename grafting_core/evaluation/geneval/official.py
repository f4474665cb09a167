"""The published GenEval evaluator, from weights that the administrator names."""

from pathlib import Path

import torch

from grafting_core.evaluation.geneval.clip_colors import load_clip_colors
from grafting_core.evaluation.geneval.judge import DetectionJudge
from grafting_core.evaluation.geneval.mask2former import Mask2FormerDetector, build_model, fill
from grafting_core.evaluation.geneval.mmdet_weights import converted, read_checkpoint
from grafting_core.evaluation.geneval.self_test import check_colors, check_detector
from grafting_core.specs.features import digest_of_path
from grafting_core.specs.geneval import OFFICIAL_RULES
from grafting_core.specs.prompt_judges import OFFICIAL, Sources

DETECTOR = "743b7d99"
"""Beginning of the SHA-256 of mmdet's mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756."""
CLIP_WEIGHTS = {
    "model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
}
"""SHA-256 of the files of openai/clip-vit-large-patch14."""


def load_official(name: str, sources: Sources, device: torch.device | str = "cpu") -> DetectionJudge:
    """Load detector and colours, and test both on known images.

    The weights are verified before. Raises ValueError for weights of another model, and for a failed test.
    """
    detector_file, clip_folder = Path(sources["detector"].path), Path(sources["clip"].path)
    model = fill(build_model(), converted(read_checkpoint(detector_file))).to(device)
    detector = Mask2FormerDetector(model, OFFICIAL_RULES.threshold)
    colors = load_clip_colors(clip_folder, device)
    check_detector(detector)
    check_colors(colors)
    precision = "float16" if torch.device(device).type == "cuda" else "float32"
    return DetectionJudge(
        evaluator_name(sources, precision),
        detector,
        colors,
        {part: source.sha256 for part, source in sources.items()},
        options={"clip_precision": precision, "tf32": "off"},
    )


def evaluator_name(sources: Sources, precision: str) -> str:
    """Name in the fingerprint: the published evaluator's for its weights and precision, else another."""
    clip = Path(sources["clip"].path)
    same_clip = all(digest_of_path(clip / file) == digest for file, digest in CLIP_WEIGHTS.items())
    if same_clip and sources["detector"].sha256.startswith(DETECTOR):
        return OFFICIAL if precision == "float16" else f"{OFFICIAL}-{precision}"
    detector, colors = (sources[part].sha256[:8] for part in ("detector", "clip"))
    return f"geneval-mask2former-{detector}-clip-{colors}-{precision}"
