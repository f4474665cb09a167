"""Backbones that a lab registers: diffusers folders, their cards, and what of them is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from grafting_core.backbones.autoencoder_folder import (
    AUTOENCODERS,
    PIXEL_CHANNELS,
    autoencoder_folder,
    decoder_cost,
    read_kl,
)
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.bounded import check_elements
from grafting_core.backbones.diffusers_folder import (
    empty_transformer,
    load_transformer,
    read_embedders,
    read_others,
    shapes_of,
    transformer_folder,
)
from grafting_core.backbones.dit_config import DiTConfig, read_config
from grafting_core.backbones.model_card import README, stated_facts
from grafting_core.backbones.scheduler_config import FILE as SCHEDULER
from grafting_core.backbones.scheduler_config import read_objective
from grafting_core.backbones.table import family_of
from grafting_core.backbones.weight_files import check_names, files_of, open_weights, part_digest
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.canonical import digest
from grafting_core.specs.memory import DECODER_BYTES

NO_AUTOENCODER = "none"

Progress = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and with what is being done."""


@dataclass(frozen=True)
class BackboneFolder:
    """Where the parts of a backbone are: a diffusers pipeline or a transformer's own folder.

    `vae` is an autoencoder elsewhere, `"none"` for a transformer on pixels, None for the pipeline's own.
    """

    folder: Path
    vae: Path | str | None = None

    @property
    def transformer(self) -> Path:
        return transformer_folder(self.folder)

    def autoencoder(self, config: DiTConfig) -> Path | None:
        """None for a transformer on pixels. Raises ValueError where latents have no decoder."""
        if self.vae is None:
            return autoencoder_folder(self.folder, config)
        if self.vae != NO_AUTOENCODER:
            return Path(self.vae)
        if config.in_channels not in PIXEL_CHANNELS:
            raise ValueError(
                f"{self.folder} has {config.in_channels} channels; gray or RGB pixels have 1 or 3"
            )
        return None

    def files(self, config: DiTConfig | None = None) -> dict[str, Path]:
        """What makes up the backbone: its name in a registered folder -> where it is now.

        `config` is that of the transformer where its file must not be opened here. Raises ValueError where a
        part is missing.
        """
        decoder = self.autoencoder(config or read_config(self.transformer))
        parts = {"transformer": self.transformer, **({"vae": decoder} if decoder else {})}
        found = {f"{part}/{file.name}": file for part, path in parts.items() for file in files_of(path)}
        # A copy of the model card keeps the licence with the files.
        extras = {str(name): self.folder / name for name in (SCHEDULER, README)}
        return found | {name: file for name, file in extras.items() if file.is_file()}


def read_card(
    folder: Path,
    *,
    name: str,
    dataset: str | None = None,
    vae: Path | str | None = None,
    licence: str | None = None,
    objective: str | None = None,
    feature_network: str = "inception",
    progress: Progress = lambda done, total, what: None,
) -> BackboneCard:
    """The card of a diffusers DiT, by arithmetic from its config and checked against its weights.

    Every tensor is read once and none is kept. `vae` as `BackboneFolder` has it; `objective` goes before what
    the folder's scheduler says, `licence` before its model card. Raises ValueError, which names what is
    wrong, for whatever cannot be used.
    """
    place = BackboneFolder(folder, vae)
    before = _stamps(place)
    config = read_config(place.transformer)
    _check_size(place.transformer, config)
    named, schedule = read_objective(folder, config, objective)
    decoder = place.autoencoder(config)
    flops, size = decoder_cost(decoder, config.in_channels, config.sample_size) if decoder else (0, 0)
    repeated = _check_transformer(place.transformer, config, progress)
    if decoder:
        read_kl(decoder)
    parts = _parts(place.transformer, decoder)
    if _stamps(place) != before:
        raise ValueError(f"{folder} was changed while it was read; try again when it is at rest")
    kind = "kl" if decoder else NO_AUTOENCODER
    identity = {"parts": parts, "objective": named, "schedule": schedule, "autoencoder": kind}
    identity |= config.differences
    facts = stated_facts(folder)
    return BackboneCard(
        name=name,
        objective=named,
        schedule=schedule,
        edits=config.edits,
        pairs=config.pairs,
        arithmetic=config.arithmetic,
        dataset=dataset,
        digest=digest(identity),
        **config.card_sizes,
        repeated_params=config.repeated_params if repeated else 0,
        decoder_flops=flops,
        pretraining=None,
        feature_network=feature_network,
        num_images=0,
        weights=str(folder.resolve()),
        autoencoder=kind,
        parts=parts,
        licence=licence or facts.licence,
        origin=facts.origin,
        figures={DECODER_BYTES: float(size)},
    )


def load_registered(card: BackboneCard, device: torch.device) -> Backbone:
    """The backbone in the folder `card.weights`. Raises ValueError where its weights are not all there."""
    if card.weights is None:
        raise ValueError(f"{card.name} is known by its card alone; it has no weights")
    if card.autoencoder not in AUTOENCODERS:
        known = ", ".join(AUTOENCODERS)
        raise ValueError(f"{card.name} has the autoencoder {card.autoencoder!r}; known: {known}")
    folder = Path(card.weights)
    transformer = load_transformer(transformer_folder(folder)).to(device)
    return Backbone(card, family_of(card), transformer, AUTOENCODERS[card.autoencoder](folder, device))


def check_digests(card: BackboneCard) -> None:
    """Raises ValueError naming a part in the folder `card.weights` that is not the one registered."""
    place = BackboneFolder(Path(card.weights or ""))
    decoder = place.autoencoder(read_config(place.transformer)) if card.autoencoder == "kl" else None
    for part, found in _parts(place.transformer, decoder).items():
        if card.parts.get(part) != found:
            raise ValueError(f"{card.name}: the {part} in {card.weights} is not the one that was registered")


def _check_size(folder: Path, config: DiTConfig) -> None:
    """Raise ValueError for a config of many more parameters than are stored, before anything is built."""
    with open_weights(folder) as weights:
        check_elements(folder, config.num_params, weights.shapes)


def _check_transformer(folder: Path, config: DiTConfig, progress: Progress) -> bool:
    """Whether all blocks repeat one embedder. Raises ValueError for weights that are not the config's."""
    with open_weights(folder) as weights:
        built = empty_transformer(config)
        counted = sum(parameter.numel() for parameter in built.parameters())
        if counted != config.num_params:
            raise ValueError(f"{folder}: {counted:,} parameters are built, {config.num_params:,} computed")
        check_names(folder, shapes_of(built), weights.shapes)
        total, seen = len(weights.shapes), count(1)

        def read(name: str) -> None:
            progress(next(seen), total, "weights checked")

        _, repeated = read_embedders(weights, read)
        for _ in read_others(weights, read):
            pass
    return repeated


def _parts(transformer: Path, decoder: Path | None) -> dict[str, str]:
    parts = {"transformer": part_digest(transformer)}
    return {**parts, "autoencoder": part_digest(decoder)} if decoder else parts


def _stamps(place: BackboneFolder) -> Mapping[str, tuple[int, int]]:
    """Size and time of the last change of every file."""
    stats = {name: file.stat() for name, file in place.files().items()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
