"""The official detector: its weights are converted without remainder, and its results are mmdet's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from grafting_core.evaluation.geneval.detections import Detection
from grafting_core.evaluation.geneval.mask2former import (
    OFFICIAL_SWIN,
    Mask2FormerDetector,
    build_model,
    exact_float32,
    fill,
    fitting_size,
    instances,
    network_input,
)
from grafting_core.evaluation.geneval.mmdet_weights import converted, read_checkpoint
from grafting_core.evaluation.geneval.pictures import Picture, read_picture
from grafting_core.evaluation.geneval.self_test import PERSON, check_detector, photo
from grafting_core.specs.geneval import COCO_CLASSES
from tests.support.mmdet_forward import mmdet_forward
from tests.support.mmdet_layout import OFFICIAL, SMALL, random_state, shapes

SWIN = {"embed_dim": SMALL["width"], "depths": [*SMALL["depths"]], "num_heads": [*SMALL["heads"]]}
Sizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state()


@pytest.fixture(scope="module")
def model(state: dict[str, Tensor]) -> nn.Module:
    return fill(build_model({**SWIN, "window_size": 7}), converted(state))


def test_every_tensor_of_the_official_layout_has_one_place_of_its_shape() -> None:
    """On the meta device: 68.7 million parameters need no memory."""
    with torch.device("meta"):
        own = build_model().state_dict()
        theirs = {name: torch.empty(shape) for name, shape in shapes(**OFFICIAL).items()}
    found = converted(theirs)
    left = {name for name in own if name not in found}
    assert left == {
        "criterion.empty_weight",
        "model.pixel_level_module.encoder.swin.layernorm.weight",
        "model.pixel_level_module.encoder.swin.layernorm.bias",
    }
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in own.items() if name not in left
    }
    assert OFFICIAL_SWIN["depths"] == [*OFFICIAL["depths"]]


def test_no_value_is_lost_or_changed(state: dict[str, Tensor], model: nn.Module) -> None:
    """The sums of squares of all weights agree: tensors are renamed, split and reordered only."""
    theirs = sum(
        float(t.double().square().sum()) for name, t in state.items() if "position_index" not in name
    )
    loaded = converted(state)
    ours = sum(float(model.state_dict()[name].double().square().sum()) for name in loaded)
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("size", [(256, 288), (64, 352)])
def test_the_network_computes_what_mmdet_computes(
    state: dict[str, Tensor], model: nn.Module, size: tuple[int, int]
) -> None:
    """The second size has fewer rows than a window in its last stage."""
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        classes, masks = mmdet_forward(state, pixels, SMALL["depths"], SMALL["heads"])
        ours = model(pixel_values=pixels)
    assert float(classes.std()) > 0.1
    torch.testing.assert_close(ours.class_queries_logits, classes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.masks_queries_logits, masks, atol=1e-3, rtol=1e-4)


def test_weights_of_another_model_are_refused_with_a_name(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"2 of 3 tensors are not those of mmdet's.*neck\.conv"):
        converted(
            {
                "neck.conv.weight": torch.ones(1),
                "bbox_head.x": torch.ones(1),
                "backbone.norm0.bias": torch.ones(1),
            }
        )
    small = build_model({**SWIN, "window_size": 7})
    lacking = {name: tensor for name, tensor in converted(state).items() if name != "class_predictor.bias"}
    with pytest.raises(ValueError, match=r"1 tensors are missing, such as class_predictor\.bias"):
        fill(small, lacking)
    with pytest.raises(ValueError, match=r"1 tensors are of another shape, such as class_predictor\.weight"):
        fill(small, {**converted(state), "class_predictor.weight": torch.ones(3, 3)})


def test_a_checkpoint_is_read_without_executing_it(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "mask2former.pth"
    torch.save({"meta": {"epoch": 50, "CLASSES": COCO_CLASSES}, "state_dict": state}, file)
    assert read_checkpoint(file).keys() == state.keys()
    torch.save({"state_dict": Path("/tmp")}, file)
    with pytest.raises(ValueError, match="no checkpoint of tensors"):
        read_checkpoint(file)
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="no checkpoint of tensors"):
        read_checkpoint(file)
    torch.save({"state_dict": {"epoch": 3}}, file)
    with pytest.raises(ValueError, match="has no state_dict of tensors"):
        read_checkpoint(file)


def mmdet_instances(
    logits: Tensor, masks: Tensor, sizes: Sizes
) -> list[tuple[int, float, list[int], np.ndarray]]:
    """A second implementation in numpy: every step on all 100 instances, as mmdet orders them."""
    padded, scaled, own = sizes
    full = interpolate(masks[:, None], size=padded, mode="bilinear", align_corners=False)[:, 0]
    full = interpolate(
        full[:, None, : scaled[0], : scaled[1]], size=own, mode="bilinear", align_corners=False
    )
    numbers = full[:, 0].double().numpy()
    exponentials = np.exp(logits.double().numpy())
    scores = (exponentials / exponentials.sum(1, keepdims=True))[:, :-1]
    rows = []
    for place in np.argsort(-scores, axis=None, kind="stable")[:100]:
        query, label = divmod(int(place), scores.shape[1])
        inside = numbers[query] > 0
        probability = 1 / (1 + np.exp(-numbers[query]))
        score = scores[query, label] * probability[inside].sum() / (inside.sum() + 1e-6)
        y, x = np.nonzero(inside)
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(y) else [0, 0, 0, 0]
        rows.append((label, score, [int(side) for side in box], inside))
    return rows


@pytest.mark.parametrize("seed", range(6))
def test_post_processing_agrees_with_a_second_implementation(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, classes = (100, 80) if seed < 3 else (3, 5)
    logits = 3 * torch.randn(queries, classes + 1, generator=generator)
    masks = torch.randn(queries, 8, 12, generator=generator) - seed / 3
    masks[1] = -1  # an empty mask: box 0 and score 0
    sizes = ((64, 96), (50, 81), (int(30 + seed), 47))
    ours, theirs = instances(logits, masks, sizes), mmdet_instances(logits, masks, sizes)
    assert len(ours) == len(theirs) == min(100, queries * classes)
    for found, (label, score, box, mask) in zip(ours, theirs, strict=True):
        assert found.name == COCO_CLASSES[label]
        assert found.score == pytest.approx(score, rel=1e-4, abs=1e-9)
        assert found.box == tuple(box)
        np.testing.assert_array_equal(found.mask, mask)


def test_one_query_gives_several_classes_and_an_empty_mask_scores_zero() -> None:
    logits = torch.zeros(2, 81)
    logits[0, [0, 16]] = 10
    logits[1, 2] = 20
    masks = torch.stack([torch.full((4, 4), 9.0), torch.full((4, 4), -9.0)])
    found = instances(logits, masks, ((16, 16),) * 3, minimum=0.3)
    assert [(each.name, each.box) for each in found] == [
        ("car", (0, 0, 0, 0)),
        ("person", (0, 0, 16, 16)),
        ("dog", (0, 0, 16, 16)),
    ]
    assert found[0].score == 0
    assert found[1].score == pytest.approx(0.5, abs=0.01)


def test_a_minimum_leaves_out_only_what_the_rules_would() -> None:
    generator = torch.Generator().manual_seed(9)
    logits, masks = 3 * torch.randn(100, 81, generator=generator), torch.randn(100, 8, 8, generator=generator)
    sizes = ((32, 32), (32, 32), (20, 20))
    every, some = instances(logits, masks, sizes), instances(logits, masks, sizes, minimum=0.3)
    assert 0 < len(some) < len(every)
    wanted = [(each.name, each.score) for each in every if each.score > 0.3]
    assert [(each.name, each.score) for each in some if each.score > 0.3] == wanted


@pytest.mark.parametrize(
    ("own", "scaled"),
    [
        ((512, 512), (800, 800)),
        ((600, 512), (938, 800)),
        ((100, 300), (444, 1333)),
        ((1024, 2048), (667, 1333)),
    ],
)
def test_an_image_is_scaled_to_fit_and_padded_with_grey(
    own: tuple[int, int], scaled: tuple[int, int]
) -> None:
    assert fitting_size(*own) == scaled
    pixels, size = network_input(torch.full((*own, 3), 255, dtype=torch.uint8))
    assert size == scaled
    height, width = pixels.shape[2:]
    assert (height % 32, width % 32) == (0, 0)
    assert 0 <= height - scaled[0] < 32
    white, grey = (255 - 123.675) / 58.395, (128 - 123.675) / 58.395
    assert pixels[0, 0, : scaled[0], : scaled[1]].unique().tolist() == pytest.approx([white])
    if height > scaled[0]:
        assert pixels[0, 0, scaled[0] :].unique().tolist() == pytest.approx([grey], rel=1e-5)


def test_scaling_is_bilinear_between_pixel_centres_and_rounds_to_eight_bits() -> None:
    pixels = torch.randint(
        0, 256, (400, 400, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    scaled, _ = network_input(pixels)
    raw = scaled[0, 2] * 57.375 + 103.53
    torch.testing.assert_close(raw, raw.round(), atol=1e-3, rtol=0)
    # Twice the size: three quarters of the nearest pixel and one quarter of the next in each direction.
    blue = pixels[..., 2].double()
    expected = 0.75 * (0.75 * blue[5, 7] + 0.25 * blue[5, 8]) + 0.25 * (0.75 * blue[6, 7] + 0.25 * blue[6, 8])
    assert abs(float(raw[11, 15]) - float(expected)) <= 0.501


def test_the_detector_gives_detections_of_its_classes_with_masks_of_the_image(
    model: nn.Module, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 400, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    picture = read_picture(tmp_path / "0.png")
    first, second = Mask2FormerDetector(model).detect([picture, picture])
    assert len(first) == 100
    assert {each.name for each in first} <= set(COCO_CLASSES)
    for each, other in zip(first, second, strict=True):
        assert each.mask is not None
        assert each.mask.shape == (8, 400)
        assert (each.box, each.score) == (other.box, other.score)
        assert 0 <= each.score <= 1


def test_tf32_is_off_in_the_detector_and_as_before_after_it(model: nn.Module) -> None:
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    seen = list[list[bool]]()
    handle = model.register_forward_pre_hook(lambda *_: seen.append([flag.allow_tf32 for flag in flags]))
    try:
        for flag in flags:
            flag.allow_tf32 = True
        Mask2FormerDetector(model).detect([narrow_image()])
        assert seen == [[False, False]]
        assert [flag.allow_tf32 for flag in flags] == [True, True]
        with pytest.raises(RuntimeError, match="stop"), exact_float32():
            raise RuntimeError("stop")
        assert [flag.allow_tf32 for flag in flags] == [True, True]
    finally:
        handle.remove()
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def narrow_image() -> Picture:
    """An image that is small in the network too, where the long side has 1,333 pixels."""
    image = Image.new("RGB", (400, 8), "red")
    return Picture(Path("red.png"), np.asarray(image), image, False)


class KnownDetector:
    """A detector that gives the same detections for every image."""

    classes = COCO_CLASSES

    def __init__(self, *detections: Detection) -> None:
        self.detections = detections

    def detect(self, pictures: list[Picture]) -> list[list[Detection]]:
        return [[*self.detections] for _ in pictures]


def test_the_self_test_passes_on_the_known_box_and_fails_on_others() -> None:
    assert photo().pixels.shape == (600, 512, 3)
    check_detector(
        KnownDetector(Detection("person", (20, 15, 511, 598), 0.98), Detection("tie", (0, 0, 9, 9), 1))
    )
    with pytest.raises(
        ValueError, match=r"finds nothing, where a person .* \[12, 22, 512, 600\] is expected"
    ):
        check_detector(KnownDetector(Detection("tie", PERSON.box, 1)))
    with pytest.raises(ValueError, match=r"a person with score 0\.610 at \[12, 22, 512, 600\]"):
        check_detector(KnownDetector(Detection("person", PERSON.box, 0.61)))
    with pytest.raises(ValueError, match=r"a person with score 0\.990 at \[0, 0, 256, 300\]"):
        check_detector(KnownDetector(Detection("person", (0, 0, 256, 300), 0.99)))
