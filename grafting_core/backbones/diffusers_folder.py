"""DiTs from and to folders as diffusers' `DiTPipeline` saves them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import PatchEmbed
from torch import Tensor, nn

from grafting_core.backbones.autoencoder import KLAutoencoder
from grafting_core.backbones.autoencoder_folder import (
    AUTOENCODERS,
    autoencoder_folder,
    check_latents,
    write_kl,
)
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.block_list import place_empty
from grafting_core.backbones.bounded import check_elements
from grafting_core.backbones.dit import set_arithmetic, silence_label_dropout
from grafting_core.backbones.dit_config import GRAFTED_NORM, DiTConfig, read_config, write_config
from grafting_core.backbones.model_card import stated_facts
from grafting_core.backbones.original_dit import OriginalDiT
from grafting_core.backbones.scheduler_config import read_objective, write_scheduler
from grafting_core.backbones.shared_embedders import share_embedders
from grafting_core.backbones.table import FAMILIES, family_of
from grafting_core.backbones.weight_files import (
    CONFIG,
    RECOMPUTED,
    OpenWeights,
    check_names,
    digest_of_weights,
    open_weights,
)
from grafting_core.specs.backbone import BackboneCard, Pretraining
from grafting_core.specs.canonical import digest
from grafting_core.specs.datasets import DATASETS
from grafting_core.specs.features import FEATURE_NETWORKS
from grafting_core.storage.tensor_files import write_safetensors

TRANSFORMER = "transformer"
EMBEDDER = ".norm1.emb."
FIRST_EMBEDDER = f"transformer_blocks.0{EMBEDDER}"
FIRST_IN_PAIR = f"transformer_blocks.0.first{EMBEDDER}"

Read = Callable[[str], None]
"""Called with the name of every tensor that has been read."""


def is_diffusers_folder(folder: Path) -> bool:
    """Whether there is a transformer where `save_pretrained` puts one."""
    return (folder / TRANSFORMER / CONFIG).is_file()


def transformer_folder(folder: Path) -> Path:
    """The transformer's part of a pipeline, or the folder itself where it is the transformer's."""
    return folder / TRANSFORMER if is_diffusers_folder(folder) else folder


def load_folder(folder: Path, device: torch.device | str = "cpu") -> Backbone:
    """Nothing is downloaded and nothing but tensors unpickled; it has no data set to be compared with.

    Raises ValueError where the folder holds something else, lacks a tensor, has one too many, or has
    numbers that are not finite: whatever is not loaded would be judged as it was initialised.
    """
    card = _card(folder)
    transformer = load_transformer(transformer_folder(folder)).to(device)
    autoencoder = AUTOENCODERS[card.autoencoder](folder, torch.device(device))
    return Backbone(card, family_of(card), transformer, autoencoder)


def load_transformer(folder: Path) -> DiTTransformer2DModel:
    """In single precision whatever it is stored in, and frozen; blocks that repeat one embedder share it.

    Its weights are in memory once while they are read. Raises ValueError as `load_folder` does.
    """
    config = read_config(folder)
    with open_weights(folder) as weights:
        check_elements(folder, config.num_params, weights.shapes)
        transformer = empty_transformer(config)
        check_names(folder, shapes_of(transformer), weights.shapes)
        embedders, repeated = read_embedders(weights)
        state = {**embedders, **dict(read_others(weights))}
    transformer.load_state_dict(state, assign=True)
    if repeated:
        share_embedders(transformer)
    silence_label_dropout(transformer)
    return transformer.eval().requires_grad_(False)


def empty_transformer(config: DiTConfig) -> DiTTransformer2DModel:
    """A transformer with its grafts, whose parameters are on the meta device.

    Position embeddings are computed. It has the config's arithmetic, which its own `config` tells. What it is
    saved as by diffusers' own `save_pretrained` is refused by diffusers' class if that would change it.
    """
    with torch.device("meta"):
        made = OriginalDiT if config.arithmetic == "original" else DiTTransformer2DModel
        transformer = made(**config.arguments)
    set_arithmetic(transformer, config.arithmetic)
    if config.differences:
        transformer.register_to_config(norm_type=GRAFTED_NORM)
    place_empty(FAMILIES["dit"], transformer, config.edits, config.pairs, config.dims)
    embedding = PatchEmbed(
        height=config.sample_size,
        width=config.sample_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        embed_dim=config.width,
    )
    transformer.pos_embed.pos_embed = embedding.pos_embed
    return transformer


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of every tensor that is stored."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def read_embedders(weights: OpenWeights, read: Read = lambda name: None) -> tuple[dict[str, Tensor], bool]:
    """Tensors of all blocks' embedders, and whether all blocks repeat the first's.

    Where they do, their names have the first's tensors.
    """
    names = [name for name in weights.shapes if EMBEDDER in name]
    found, shared = dict[str, Tensor](), set[str]()
    start = FIRST_IN_PAIR if any(name.startswith(FIRST_IN_PAIR) for name in names) else FIRST_EMBEDDER
    for name in sorted(names, key=lambda name: not name.startswith(start)):
        tensor, first = weights.read(name), found.get(start + name.split(EMBEDDER, 1)[1])
        read(name)
        if first is not None and torch.equal(tensor, first):
            shared.add(name)
            tensor = first
        found[name] = tensor
    repeated = all(name in shared or name.startswith(start) for name in names)
    if not repeated:  # a few that are equal, biases for one, train apart
        found |= {name: found[name].clone() for name in shared}
    return found, repeated


def read_others(weights: OpenWeights, read: Read = lambda name: None) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of everything that is no block's embedder."""
    for name in sorted(weights.shapes.keys() - RECOMPUTED):
        if EMBEDDER not in name:
            yield name, weights.read(name)
            read(name)


def save_folder(backbone: Backbone, folder: Path) -> None:
    """Write transformer, autoencoder and scheduler so that diffusers' `from_pretrained` reads them back.

    Every block gets its embedder. A transformer with grafts, which the card tells, or with the original
    arithmetic gets a config that diffusers refuses. Raises ValueError for one that has other grafts than its
    card tells.
    """
    config = config_of(backbone)
    state = backbone.transformer.state_dict()
    expected = shapes_of(empty_transformer(config))
    if {name: tuple(value.shape) for name, value in state.items()} != expected:
        raise ValueError("the transformer has other grafts than its backbone's card tells")
    target = folder / TRANSFORMER
    target.mkdir(parents=True, exist_ok=True)
    write_config(target, config)
    write_safetensors(target / "diffusion_pytorch_model.safetensors", state, {"format": "pt"})
    if isinstance(backbone.autoencoder, KLAutoencoder):
        write_kl(backbone.autoencoder, folder / "vae")
    write_scheduler(backbone.card, folder)


def config_of(backbone: Backbone) -> DiTConfig:
    """Config of a backbone's transformer, with the grafts on its card. Raises ValueError for no DiT."""
    config = getattr(backbone.transformer, "config", None)
    if not isinstance(backbone.transformer, DiTTransformer2DModel) or config is None:
        raise ValueError(f"a {type(backbone.transformer).__name__} cannot be written as a folder")
    card = backbone.card
    ours = {"norm_type": "ada_norm_zero", "edits": card.edits, "pairs": card.pairs}
    return DiTConfig(**{**config, **ours})


def _card(folder: Path) -> BackboneCard:
    """For an evaluation without a lab: its digest tells transformers and decoders apart.

    It is compared with the data set that its model card names, if this environment has that.
    """
    config = read_config(transformer_folder(folder))
    objective, schedule = read_objective(folder, config)
    decoder = autoencoder_folder(folder, config)
    parts = {TRANSFORMER: digest_of_weights(transformer_folder(folder)), **config.differences}
    if decoder is not None:
        check_latents(decoder, config.in_channels)
        parts["decoder"] = digest_of_weights(decoder)
    facts = stated_facts(folder)
    network = facts.feature_network if facts.feature_network in FEATURE_NETWORKS.entries else None
    return BackboneCard(
        name=folder.resolve().name,
        objective=objective,
        schedule=schedule,
        edits=config.edits,
        pairs=config.pairs,
        arithmetic=config.arithmetic,
        digest=digest(parts),
        **config.card_sizes,
        decoder_flops=0,
        pretraining=Pretraining(flops=1.0, images=0, steps=0, batch_size=0),
        feature_network=network or "inception",
        dataset=facts.dataset if facts.dataset in DATASETS.entries else None,
        num_images=0,
        weights=".",
        licence=facts.licence,
        origin=facts.origin,
        autoencoder="none" if decoder is None else "kl",
    )
