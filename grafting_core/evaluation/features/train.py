"""Train a small classifier on a data set's classes, as a feature network for its samples."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from grafting_core.data.datasets import Dataset, LabelledSet
from grafting_core.data.latent_folder import LatentFolder
from grafting_core.data.latents import generator_for
from grafting_core.data.progress import Progress, Stop, StopRequested, never_stop, no_progress
from grafting_core.data.shards import write_whole
from grafting_core.evaluation.features.classifier import (
    CONFIG,
    DIMS,
    WEIGHTS,
    ClassifierConfig,
    ClassifierNetwork,
    ImageClassifier,
    load_classifier,
    pixels_for,
)
from grafting_core.specs.datasets import DatasetRef
from grafting_core.specs.features import FeatureCard, FeatureSource, digest_of_path
from grafting_core.specs.registration import TrainSettings
from grafting_core.training.optim import (
    Diverged,
    adamw,
    learning_rate,
    optimiser_tensors,
    restore_optimiser,
    set_rate,
)

RECORD, CHECKPOINT, CARD = "training.json", "checkpoint.safetensors", "card.json"
SAVE_SECONDS = 60.0
EMA_DECAY, CLIP_NORM, WEIGHT_DECAY, SMOOTHING = 0.995, 5.0, 1e-4, 0.05
WARMUP = 0.05
"""Share of the steps over which the learning rate increases."""
LOOK_BATCH = 256


def train_classifier(
    dataset: Dataset,
    target: Path,
    settings: TrainSettings,
    progress: Progress = no_progress,
    stop: Stop = never_stop,
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
) -> FeatureCard:
    """Train on the reference images, or resume from the checkpoint in `target` with the same result.

    The loss is cross-entropy, the optimiser AdamW; images are shifted by a few pixels, and averaged weights
    are published. The card has the accuracy on held-out images, if there are any. Raises ValueError for a
    data set without labels or a `target` that contains something else, StopRequested after a checkpoint.
    """
    images, labels = dataset.reference_images(dataset.name)
    if labels is None:
        raise ValueError(f"data set {dataset.name!r} has no labels; a classifier is trained on classes")
    config = ClassifierConfig(
        image_size=images.size,
        channels=3 if images.channels == 3 else 1,
        classes=_classes(dataset, labels),
        dataset=DatasetRef(name=dataset.name, digest=dataset.digest),
    )
    _claim(target, config, settings)
    if not (target / CONFIG).exists():
        training = _Training(config, (images, labels), settings, target, torch.device(device))
        _publish(target, config, training.run(progress, stop))
    digest = digest_of_path(target)
    network = load_classifier(FeatureSource(path=str(target), sha256=digest), device)
    card = FeatureCard(
        name=name or f"{dataset.name}-classifier",
        digest=digest,
        kind="classifier",
        dims=DIMS,
        spatial=True,
        dataset=config.dataset,
        accuracy=_accuracy(network, dataset),
        size=sum((target / file).stat().st_size for file in (WEIGHTS, CONFIG)),
        folder=str(target),
    )
    write_whole(target / CARD, card.model_dump_json(indent=1, exclude={"folder"}).encode())
    return card


def _classes(dataset: Dataset, labels: Any) -> tuple[str, ...]:
    if isinstance(dataset, LatentFolder):
        return dataset.card.classes
    return tuple(str(label) for label in range(int(labels.max()) + 1))


def _claim(target: Path, config: ClassifierConfig, settings: TrainSettings) -> None:
    """Raise ValueError if the folder contains other work."""
    target.mkdir(parents=True, exist_ok=True)
    record = {
        "classifier": json.loads(config.model_dump_json()),
        "settings": json.loads(settings.model_dump_json()),
    }
    file = target / RECORD
    if file.exists():
        if json.loads(file.read_text()) != record:
            raise ValueError(f"{target} contains a training on other data or with other settings; remove it")
    elif any(not entry.name.startswith(".") for entry in target.iterdir()):
        raise ValueError(f"{target} contains other files; name an empty folder")
    else:
        write_whole(file, json.dumps(record, indent=1, sort_keys=True).encode())


def _publish(target: Path, config: ClassifierConfig, weights: Mapping[str, Tensor]) -> None:
    """Write the weights, then the config, which marks them as complete; delete the checkpoint."""
    write_whole(target / WEIGHTS, save({name: tensor.contiguous() for name, tensor in weights.items()}))
    write_whole(target / CONFIG, config.model_dump_json(indent=1).encode())
    (target / CHECKPOINT).unlink(missing_ok=True)


@torch.no_grad()
def _accuracy(network: ClassifierNetwork, dataset: Dataset) -> float | None:
    """Share of held-out images that are classified correctly; None without held-out images."""
    held_out = dataset.held_out_reference(dataset.name)
    if held_out is None or held_out[1] is None:
        return None
    images, labels, right = held_out[0], held_out[1], 0
    for first in range(0, images.count, LOOK_BATCH):
        places = np.arange(first, min(first + LOOK_BATCH, images.count))
        _, _, logits = network(torch.from_numpy(images.rows(places)))
        right += int((logits.argmax(1).cpu().numpy() == labels[places]).sum())
    return right / images.count


class _Training:
    """Network, optimiser and averaged weights. Random draws of a step depend on (seed, step) only."""

    def __init__(
        self,
        config: ClassifierConfig,
        data: LabelledSet,
        settings: TrainSettings,
        target: Path,
        device: torch.device,
    ) -> None:
        self.config, self.settings, self.device = config, settings, device
        self.images, self.labels = data
        self.file = target / CHECKPOINT
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = ImageClassifier(config).to(device)
        self.optimiser = adamw(self.model, settings.learning_rate, WEIGHT_DECAY)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)

    def run(self, progress: Progress, stop: Stop) -> Mapping[str, Tensor]:
        """Train to the last step and return the averaged weights, on the CPU."""
        step, total, saved = self._resume(), self.settings.steps, time.monotonic()
        progress(step, total, "steps")
        while step < total:
            self._advance(step)
            step += 1
            progress(step, total, "steps")
            stopping = step < total and stop()
            if stopping or time.monotonic() - saved > SAVE_SECONDS:
                self._save(step)
                saved = time.monotonic()
            if stopping:
                raise StopRequested
        return {name: value.cpu() for name, value in self.average.items()}

    def _advance(self, step: int) -> None:
        settings = self.settings
        warmup = round(settings.steps * WARMUP)
        rate = learning_rate(settings.learning_rate, "cosine", warmup, step, settings.steps)
        set_rate(self.optimiser, rate)
        pixels, targets = self._batch(step)
        self.model.train()
        loss: Tensor = self.criterion(self.model(pixels), targets)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimiser.step()
        if not torch.isfinite(loss):
            raise Diverged(f"training the classifier gave a loss of {loss.item()} at step {step}")
        self._average(step + 1)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images drawn with replacement, all shifted by up to a sixteenth of their side."""
        generator = generator_for("classifier", self.settings.seed, step)
        size = (self.settings.batch_size,)
        rows = torch.randint(0, self.images.count, size, generator=generator).numpy()
        pixels = pixels_for(self.config, torch.from_numpy(self.images.rows(rows)))
        reach = min(pixels.shape[2:]) // 16
        if reach:
            down, right = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
            padded = nn.functional.pad(pixels, (reach,) * 4, mode="reflect")
            pixels = padded[:, :, down : down + pixels.shape[2], right : right + pixels.shape[3]]
        assert self.labels is not None
        targets = torch.from_numpy(self.labels[rows])
        return pixels.to(self.device), targets.to(self.device)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def _save(self, step: int) -> None:
        tensors = {
            "step": torch.tensor(step),
            **{f"weight/{name}": value for name, value in self.model.state_dict().items()},
            **{f"average/{name}": value for name, value in self.average.items()},
            **dict(optimiser_tensors(self.optimiser, "optimiser/")),
        }
        write_whole(self.file, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def _resume(self) -> int:
        """Restore an intact checkpoint, if there is one; returns the number of finished steps."""
        if not self.file.exists():
            return 0
        try:
            tensors = load_file(self.file, device=str(self.device))
        except SafetensorError:  # truncated: start again
            return 0
        self.model.load_state_dict(_named(tensors, "weight/"))
        self.average = _named(tensors, "average/")
        restore_optimiser(self.optimiser, tensors, "optimiser/")
        return int(tensors["step"])


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
