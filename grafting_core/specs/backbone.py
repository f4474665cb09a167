"""Backbone cards: sizes, digest and pretraining compute, readable without loading weights."""

import hashlib
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.dims import SLOTS, BlockDims
from grafting_core.specs.edits import ParallelPair, ReplaceOperator, pretrained_operator
from grafting_core.specs.noise import LEARNED_VARIANCE, TrainingSchedule
from grafting_core.specs.operators import OperatorBase
from grafting_core.specs.plugins import API_VERSION, Entry, PluginTable
from grafting_core.specs.private_names import BackboneName, DatasetName, NetworkName, hidden
from grafting_core.specs.site import GraftSite

Count = Annotated[int, Field(ge=0)]
Arithmetic = Literal["diffusers", "original"]
"""Formulas of a DiT: those of diffusers' class, or those of the original implementation.

They differ in the timestep's frequencies, 10000^(-k/127) or 10000^(-k/128), and in the epsilon of the norm
before the MLP, 1e-5 or 1e-6. Weights of one give other images in the other.
"""


class Pretraining(Frozen):
    """Compute of the backbone's pretraining; grafting costs are given as a share of it."""

    flops: Annotated[float, Field(gt=0)]
    images: Count
    steps: Count
    batch_size: Count
    device_seconds: Annotated[float, Field(ge=0)] | None = None


class BackboneRef(Frozen):
    """A pretrained model by name and the digest of its weights."""

    name: BackboneName
    digest: str


class HeldOutImages(Frozen):
    """Number of images held out of all training, and the SHA-256 of the file that holds them."""

    images: Annotated[int, Field(ge=1)]
    digest: str


class BackboneCard(Frozen):
    """A transformer of `depth` equal blocks over `grid` tokens, conditioned on timestep and label.

    `num_params` counts the transformer as it is stored, with all copies of repeated embedders. `digest` is
    the SHA-256 of its weight files, or of its name if there are no weights (`weights` is None: designs can
    be planned but not run). A graft may be a backbone: then `edits` and `pairs` tell what it holds instead of
    the pretrained operators.
    """

    added: ClassVar[frozenset[str]] = frozenset({"arithmetic", "edits", "pairs", "origin"})

    name: BackboneName
    family: str = "dit"
    """Row in the table of families: its sites and its forward signature."""
    objective: str = "epsilon_learned_variance"
    """Row in the table of objectives: prediction target."""
    schedule: TrainingSchedule = TrainingSchedule()
    """Noise schedule of its training."""
    arithmetic: Arithmetic = "diffusers"
    """Formulas that it was trained with."""
    edits: tuple[ReplaceOperator, ...] = ()
    """Operators that were grafted into it before it became a backbone, as in a design."""
    pairs: tuple[ParallelPair, ...] = ()
    """Blocks of it that run in parallel, as in a design."""
    origin: str | None = None
    """Where it comes from, in words, such as `dit-xl2-mha-hyena_x-50p-fid2.61/model.pt`; None: not said."""
    dataset: DatasetName | None = None
    """Name of the data set that it is trained on and compared with; None if there is no data."""
    digest: str
    depth: Annotated[int, Field(ge=1)]
    dims: BlockDims
    patch_size: Annotated[int, Field(ge=1)]
    latent_channels: Annotated[int, Field(ge=1)]
    num_classes: Count
    """Number of classes; 0 for a transformer without labels."""
    num_params: Count
    repeated_params: Count = 0
    """Parameters of embedders that every block after the first repeats: in memory and in training they exist
    once. 0 if blocks have different embedders.
    """
    decoder_flops: Count
    """FLOPs of decoding one latent to an image."""
    pretraining: Pretraining | None = None
    """What it cost to make; None: unknown."""
    feature_network: NetworkName
    """Feature network that evaluates its samples, unless a design names another."""
    num_images: Count
    """Number of training images for stages 1 and 2; 0 if there are none."""
    held_out: HeldOutImages | None = None
    """Held-out images for errors and losses; None if there are none."""
    weights: str | None
    """Folder of the weights, relative to the card if they ship with a package, else a path on this machine;
    None without weights.
    """
    autoencoder: str = "kl"
    """Row of the table of autoencoders: `kl` is that of diffusers, `none` is for transformers on pixels."""
    parts: dict[str, str] = {}
    """Component (transformer, autoencoder) -> SHA-256 of its files."""
    licence: str | None = None
    """Name given by the publisher, an SPDX identifier if there is one; None: unknown."""
    figures: dict[str, float] = {}
    locality_band: Count | None = None
    locality: tuple[float, ...] | None = None
    """Attention mass within `locality_band` tokens, by block (paper Eq. 3); None if not measured."""

    @property
    def ref(self) -> BackboneRef:
        return BackboneRef(name=self.name, digest=self.digest)

    @property
    def sites(self) -> list[GraftSite]:
        return [GraftSite(block=b, slot=s) for b in range(self.depth) for s in SLOTS]

    def original(self, site: GraftSite) -> OperatorBase:
        """Operator of the backbone at this site: the pretrained one, or what was grafted there before."""
        grafted = (edit.operator for edit in self.edits if edit.site == site)
        return next(grafted, pretrained_operator(site.slot, self.dims))

    @property
    def serial_depth(self) -> int:
        """Number of blocks that run one after another; a pair counts once."""
        return self.depth - len(self.pairs)

    @property
    def free_pairs(self) -> list[ParallelPair]:
        """Pairs 0+1, 2+3 and so on of blocks that do not run in parallel already."""
        taken = {block for pair in self.pairs for block in pair.blocks}
        pairs = [ParallelPair(first=first) for first in range(0, self.depth - 1, 2)]
        return [pair for pair in pairs if taken.isdisjoint(pair.blocks)]

    @property
    def out_channels(self) -> int:
        """Channels of the transformer's output: twice the latents' if it also predicts a variance."""
        return self.latent_channels * (2 if self.objective in LEARNED_VARIANCE else 1)

    @property
    def overhead_flops(self) -> int:
        """FLOPs of one forward of one sample outside the blocks: patch embedding, final layer."""
        width, tokens = self.dims.width, self.dims.num_tokens
        channels = self.latent_channels + self.out_channels
        return 4 * width**2 + 2 * tokens * width * self.patch_size**2 * channels

    def share_of_pretraining(self, flops: float) -> float | None:
        """FLOPs over those of its pretraining; None where it is not known what that took."""
        return flops / self.pretraining.flops if self.pretraining else None

    def block_flops(self, block: int) -> int:
        """FLOPs of one block on one sample: its operators and adaLN."""
        sites = (GraftSite(block=block, slot=slot) for slot in SLOTS)
        return 12 * self.dims.width**2 + sum(self.original(site).computed_flops(self.dims) for site in sites)

    def forward_flops(self) -> int:
        """FLOPs of one forward of one sample through the backbone as it is."""
        merges = sum(pair.flops(self.dims) for pair in self.pairs)
        return self.overhead_flops + sum(map(self.block_flops, range(self.depth))) + merges


class BackboneEntry(Entry):
    """Table row; `load` names a function (card, device) -> `backbones.base.Backbone`; None: no runs."""

    card: BackboneCard

    def check_name(self, name: str) -> None:
        """Check that the entry has the card's name, which designs use."""
        if self.card.name != name:
            raise ValueError(f"its card has the name {self.card.name!r}")


DIT_XL_2_256 = BackboneCard(
    name="dit-xl-2-256",
    digest=hashlib.sha256(b"dit-xl-2-256").hexdigest(),
    depth=28,
    dims=BlockDims(width=1152, num_heads=16, mlp_ratio=4.0, grid=(16, 16)),
    patch_size=2,
    latent_channels=4,
    num_classes=1000,
    # The original implementation's count with its frozen position embedding; diffusers' has 749.8 M.
    num_params=675_129_632,
    decoder_flops=0,
    # 7 M steps of 256 images (paper-facts section 1.4), at the FLOPs of three forwards per image.
    pretraining=Pretraining(
        flops=3 * 237.2e9 * 7e6 * 256, images=7_000_000 * 256, steps=7_000_000, batch_size=256
    ),
    feature_network="inception",
    num_images=0,
    weights=None,
)


BACKBONES = PluginTable(
    "backbone",
    "graftlab.backbones",
    BackboneEntry,
    {DIT_XL_2_256.name: BackboneEntry(api=API_VERSION, card=DIT_XL_2_256)},
)


def backbone_cards() -> dict[str, BackboneCard]:
    """Newest revision of the card of every backbone that the lab has, by name. Loads no weights."""
    return {name: entry.card for name, entry in BACKBONES.entries.items()}


def card_named(name: str) -> BackboneCard | None:
    """Newest revision of the card of this backbone; None if the lab does not have it."""
    entry = BACKBONES.get(name)
    return entry.card if entry else None


_REVISIONS: dict[BackboneRef, BackboneCard] = {}
"""Cards of all registered revisions, so that references to older ones can be resolved."""
_OF_DIGEST: dict[str, list[BackboneCard]] = {}
"""The same by digest: equal weights may be registered under several names."""


def register_cards(cards: Iterable[BackboneCard], removed: Iterable[BackboneCard] = ()) -> None:
    """Make registered backbones known to this process, older revisions of a name before newer ones.

    Those of them that were `removed` can be neither named nor loaded; what refers to them finds their sizes.
    """
    listed, gone = list(cards), {card.ref for card in removed}
    _REVISIONS.clear()
    _REVISIONS.update({card.ref: card for card in listed})
    _OF_DIGEST.clear()
    for card in _REVISIONS.values():
        _OF_DIGEST.setdefault(card.digest, []).append(card)
    BACKBONES.register({card.name: _registered(card) for card in listed if card.ref not in gone})


def _registered(card: BackboneCard) -> BackboneEntry:
    load = "grafting_core.backbones.registered:load_registered"
    return BackboneEntry(api=API_VERSION, card=card, load=load if card.weights else None)


def card_of(ref: BackboneRef) -> BackboneCard:
    """Card of exactly this revision. Raises ValueError for a backbone that the lab does not have."""
    found = known_card(ref)
    if found is None:
        raise ValueError(f"the lab has no backbone {ref.name!r} with the digest {ref.digest[:12]}")
    return found


def known_card(ref: BackboneRef) -> BackboneCard | None:
    """As `card_of`; None for a backbone that the lab does not have."""
    if ref in _REVISIONS:
        return _REVISIONS[ref]
    card = card_named(ref.name)
    return card if card is not None and card.digest == ref.digest else None


def revisions_of(name: str) -> list[BackboneCard]:
    """Registered revisions of a name, oldest first, removed ones too."""
    if ("backbone", name) in hidden():
        return []
    return [card for card in _REVISIONS.values() if card.name == name]


def cards_with_digest(digest: str) -> list[BackboneCard]:
    """Cards of all backbones with these weights, older revisions too, whatever their names are."""
    shipped = [entry.card for entry in BACKBONES.shipped.values()]
    return [*_OF_DIGEST.get(digest, ()), *(card for card in shipped if card.digest == digest)]
