"""Train the feature network `fashion-cnn`."""

from pathlib import Path

import torch
from torch import Tensor, nn

from grafting_core.testbed.networks import FashionClassifier
from grafting_core.testbed.recipe.data import read_split, to_pixels
from grafting_core.testbed.recipe.training import Schedule, Trainer, batch_indices, step_generator

BATCH = 128


def train_classifier(work: Path, seed: int, steps: int = 2000) -> FashionClassifier:
    """Cross-entropy with label smoothing, horizontal flips and shifts of up to two pixels."""
    images, labels = read_split("train")
    targets = torch.from_numpy(labels.copy()).long()
    torch.manual_seed(seed)
    model = FashionClassifier()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)

    def loss(step: int) -> Tensor:
        rows = batch_indices(step, BATCH, len(labels), seed)
        pixels = _augment(to_pixels(images[rows.numpy()]), step_generator(seed, step))
        value: Tensor = criterion(model(pixels), targets[rows])
        return value

    trainer = Trainer("classifier", model, Schedule(steps, 4e-3), loss, work, ema_decay=0.995, clip_norm=5.0)
    trainer.run()
    return averaged_classifier(trainer)


def averaged_classifier(trainer: Trainer) -> FashionClassifier:
    """The EMA weights, in evaluation mode."""
    model = FashionClassifier()
    model.load_state_dict(trainer.ema)
    return model.eval().requires_grad_(False)


def _augment(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    shift = torch.randint(0, 5, (2,), generator=generator).tolist()
    padded = nn.functional.pad(pixels_BCHW, (2, 2, 2, 2), value=-1.0)
    moved = padded[:, :, shift[0] : shift[0] + 28, shift[1] : shift[1] + 28]
    return moved.flip(-1) if torch.rand((), generator=generator) < 0.5 else moved


@torch.no_grad()
def accuracy(model: FashionClassifier, split: str = "t10k") -> float:
    """Share of correct predictions on a split."""
    images, labels = read_split(split)
    hits = sum(
        int((model(to_pixels(images[i : i + 500])).argmax(1).numpy() == labels[i : i + 500]).sum())
        for i in range(0, len(labels), 500)
    )
    return hits / len(labels)
