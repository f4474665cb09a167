"""The recipe as a whole: phases in order, the assets that each writes, and the scores."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grafting_core.testbed.emoji.assets import load_detector, load_painter, transformer_folder
from grafting_core.testbed.emoji.atlas import load_atlas
from grafting_core.testbed.emoji.autoencoder import PatchAutoencoder
from grafting_core.testbed.emoji.prompts import captions, geneval_rows, scene_table
from grafting_core.testbed.emoji.recipe import evaluate, package
from grafting_core.testbed.emoji.recipe.autoencoder import autoencoder_trainer, averaged_autoencoder
from grafting_core.testbed.emoji.recipe.detector import averaged_detector, detector_trainer
from grafting_core.testbed.emoji.recipe.settings import PHASES, Settings
from grafting_core.testbed.emoji.recipe.source import Source
from grafting_core.testbed.emoji.recipe.trainer import Trainer
from grafting_core.testbed.emoji.recipe.transformer import averaged_transformer, base_trainer, high_trainer
from grafting_core.testbed.emoji.sampling import Painter
from grafting_core.testbed.emoji.transformer import BASE_RESOLUTION, RESOLUTIONS, build_transformer
from grafting_core.testbed.emoji.vocabulary import CLASSES

UNSEEN = 30
"""Stream of scenes that no phase trains on."""
ACCURACY_SCENES = 20
"""Number of scenes per caption of a task, for the detector's accuracy."""
SHEET_PLACES = 10
"""Images per task on a sheet."""


@dataclass
class Recipe:
    """One run of the recipe with a folder of checkpoints and a folder of assets."""

    settings: Settings
    work: Path
    assets: Path
    depth: int = 8

    def source(self, stream: int) -> Source:
        """Scenes of one phase."""
        atlas = load_atlas(self.assets / "atlas.png").to(self.settings.device)
        return Source(atlas, self.settings.seed, stream)

    @cached_property
    def autoencoder_trainer(self) -> Trainer:
        return autoencoder_trainer(self.settings, self.source(0), self.work)

    @cached_property
    def autoencoder(self) -> PatchAutoencoder:
        return averaged_autoencoder(self.autoencoder_trainer, self.source(0))

    @cached_property
    def detector_trainer(self) -> Trainer:
        return detector_trainer(self.settings, self.source(1), self.autoencoder, self.work)

    @cached_property
    def base_trainer(self) -> Trainer:
        return base_trainer(self.settings, self.source(2), self.autoencoder, self.work, self.depth)

    @cached_property
    def high_trainer(self) -> Trainer:
        return high_trainer(
            self.settings, self.source(3), self.autoencoder, self.base_trainer, self.work, self.depth
        )

    def train(self, phases: Sequence[str] = PHASES) -> None:
        """Run the phases that are not complete; each checkpoint also writes its weights to the assets."""
        for phase in PHASES:
            if phase in phases:
                trainer: Trainer = getattr(self, f"{phase}_trainer")
                trainer.on_save = self._write
                trainer.run()
                print(
                    f"{phase}: {trainer.step} steps, {trainer.images} images, {trainer.seconds:.0f} s",
                    flush=True,
                )
        package.write_card(self.assets, self.card())

    def _write(self, trainer: Trainer) -> None:
        if trainer.name == "autoencoder":
            averaged: nn.Module = averaged_autoencoder(trainer, self.source(0))
            package.write_network(averaged, self.assets / "autoencoder.safetensors")
        elif trainer.name == "detector":
            package.write_network(averaged_detector(trainer), self.assets / "detector.safetensors")
        else:
            self._write_denoiser(trainer)

    def _write_denoiser(self, trainer: Trainer) -> None:
        transformer, text_encoder = averaged_transformer(trainer)
        resolution = BASE_RESOLUTION if trainer.name == "base" else RESOLUTIONS[1]
        package.write_transformer(transformer, self.assets / transformer_folder(resolution))
        if trainer.name == "base":
            package.write_network(text_encoder, self.assets / "text_encoder.safetensors")

    def card(self) -> dict[str, Any]:
        """Card with sizes, recipe and times."""
        trainers = {
            name: getattr(self, f"{name}_trainer") for name in PHASES if (self.work / f"{name}.pt").exists()
        }
        return {
            "name": "testbed/pixart-emoji",
            "family": "pixart",
            "classes": list(CLASSES),
            "captions": len(captions()),
            "resolutions": list(RESOLUTIONS),
            "parameters": {name: _size(trainer.model) for name, trainer in trainers.items()},
            "machine": _machine(self.settings.device),
            "torch": torch.__version__,
            "seed": self.settings.seed,
            "phases": {name: trainer.record() for name, trainer in trainers.items()},
        }

    def score(self, per_task: int) -> None:
        """Measure the assets and add the scores to the card; sheets are written to the work folder."""
        scorer = Scorer(self.assets, self.settings.device, self.source(UNSEEN), per_task)
        card = self.card() | {"scores": {}}
        for resolution in RESOLUTIONS:
            card["scores"][str(resolution)] = scorer.scores(resolution)
            package.write_card(self.assets, card)
            scorer.sheet(resolution, self.work / f"sheet-{resolution}.png")


@dataclass
class Scorer:
    """Scores of shipped assets, one resolution at a time."""

    assets: Path
    device: str
    source: Source
    per_task: int

    def painter(self, resolution: int) -> Painter:
        """The shipped networks on the device."""
        painter = load_painter(resolution, self.assets)
        for network in (painter.transformer, painter.text_encoder, painter.autoencoder):
            network.to(self.device)
        return painter

    def scores(self, resolution: int) -> dict[str, Any]:
        """The detector's accuracy and GenEval of teacher, scenes, reconstructions and an untrained model."""
        painter = self.painter(resolution)
        detector = load_detector(self.assets).to(self.device)
        autoencoder = painter.autoencoder
        untrained = Painter(
            build_transformer(resolution).to(self.device).eval(),
            painter.text_encoder,
            autoencoder,
            resolution,
        )
        sources: dict[str, evaluate.Pictures] = {
            "teacher": evaluate.painted(painter),
            "real_scenes": evaluate.real(self.source, resolution),
            "reconstructions": evaluate.real(self.source, resolution, autoencoder),
            "untrained": evaluate.painted(untrained),
        }
        results: dict[str, Any] = {
            "detector": evaluate.detector_accuracy(
                detector, self.source, resolution, ACCURACY_SCENES * self.per_task
            ),
            "detector_on_reconstructions": evaluate.detector_accuracy(
                detector, self.source, resolution, ACCURACY_SCENES * self.per_task, autoencoder
            ),
        }
        prompts = geneval_rows(evaluate.BENCHMARK_SEED, self.per_task)
        for name, pictures in sources.items():
            results[name] = evaluate.geneval(detector, pictures, resolution, prompts)
            print(resolution, name, results[name], flush=True)
        print(resolution, results["detector"], results["detector_on_reconstructions"], flush=True)
        return results

    def sheet(self, resolution: int, file: Path) -> None:
        """Write some captions of every task, generated by the teacher."""
        rows = torch.tensor(geneval_rows(evaluate.BENCHMARK_SEED, 100))
        tasks = torch.bucketize(rows, torch.tensor(scene_table().starts), right=True)
        chosen = [int(row) for task in tasks.unique() for row in rows[tasks == task][:SHEET_PLACES]]
        texts = [captions()[row].text for row in chosen]
        pictures = self.painter(resolution).paint(texts, range(len(texts)))
        package.write_sheet(pictures, texts, file, columns=SHEET_PLACES)


def _size(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
