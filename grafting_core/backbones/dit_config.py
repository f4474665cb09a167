"""The config of a diffusers DiT, and what follows from it by arithmetic."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from grafting_core.backbones.weight_files import CONFIG
from grafting_core.specs.backbone import Arithmetic
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.edits import ParallelPair, ReplaceOperator, added_params, check_fit

CLASS = "DiTTransformer2DModel"
GRAFTED_CLASS = "GraftedDiT"
"""Name in the config of a transformer that diffusers' class would change, so that diffusers refuses it."""
GRAFTED_NORM = "ada_norm_zero of a GraftedDiT, which trust_remote_code=True loads"
"""What such a config has as `norm_type`: diffusers' class, if it is given the folder by name, refuses what it
does not know there, but would ignore edits and weights that it does not know.
"""
LEGACY = "Transformer2DModel"
"""What diffusers called every transformer once; a class-conditional DiT is one with `ada_norm_zero`."""
TIME_FEATURES = 256
"""Sines and cosines of a timestep before the first linear layer of its embedder."""
MLP_RATIO = 4
ORIGINAL_EPS = 1e-6
"""Epsilon of every norm in the original implementation."""
MOST_TOKENS_A_SIDE = 256
MAX_JSON_BYTES = 2**24

NO_ARGUMENTS = ("arithmetic", "edits", "pairs")
"""Fields of a config that diffusers' class does not know."""

Size = Annotated[int, Field(ge=1, le=16_384)]


class CardSizes(TypedDict):
    """Fields of a `BackboneCard` that follow from the config alone."""

    depth: int
    dims: BlockDims
    patch_size: int
    latent_channels: int
    num_classes: int
    num_params: int


class DiTConfig(BaseModel):
    """Arguments of `DiTTransformer2DModel`, with its defaults, in the range that can be grafted.

    `num_embeds_ada_norm` is the number of classes. 0 and 1 are how a transformer without labels looks in
    diffusers, which cannot do without an embedding: every sample has label 0.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    num_attention_heads: Size = 16
    attention_head_dim: Size = 72
    in_channels: Size = 4
    out_channels: Size | None = None
    num_layers: Annotated[int, Field(ge=1, le=1_000)] = 28
    dropout: Annotated[float, Field(ge=0, le=0)] = 0.0
    norm_num_groups: int | None = 32
    attention_bias: Literal[True] = True
    sample_size: Size = 32
    patch_size: Size = 2
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    num_embeds_ada_norm: Annotated[int, Field(ge=0, le=1_000_000)] = 1_000
    upcast_attention: bool = False
    norm_type: Literal["ada_norm_zero"] = "ada_norm_zero"
    norm_elementwise_affine: bool = False
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    arithmetic: Arithmetic = "diffusers"
    """No argument of the class: the formulas of its forward."""
    edits: tuple[ReplaceOperator, ...] = ()
    """No argument of the class: operators that stand in place of the class's own."""
    pairs: tuple[ParallelPair, ...] = ()
    """No argument of the class: blocks that run in parallel."""

    @model_validator(mode="after")
    def _edits_fit(self) -> Self:
        check_fit(self.edits, self.pairs, self.num_layers, self.dims)
        return self

    @model_validator(mode="after")
    def _has_the_norms_of_its_arithmetic(self) -> Self:
        if self.arithmetic == "original" and self.norm_eps != ORIGINAL_EPS:
            raise ValueError(f"norm_eps of the original arithmetic is {ORIGINAL_EPS}, not {self.norm_eps}")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """As the class's constructor takes them."""
        return self.model_dump(exclude={*NO_ARGUMENTS})

    @property
    def differences(self) -> dict[str, Any]:
        """Fields by which it is another model than the class's, as JSON has them; none for the class itself.

        How an operator was initialised, which an edit of a design tells too, is no part of the model.
        """
        named = {
            name for name in NO_ARGUMENTS if getattr(self, name) != type(self).model_fields[name].default
        }
        found = self.model_dump(mode="json", include=named)
        for edit in found.get("edits", ()):
            del edit["init"]
        return found

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def channels_out(self) -> int:
        return self.out_channels or self.in_channels

    @property
    def num_classes(self) -> int:
        """0: without labels."""
        return self.num_embeds_ada_norm if self.num_embeds_ada_norm > 1 else 0

    @property
    def dims(self) -> BlockDims:
        side = self.sample_size // self.patch_size
        return BlockDims(
            width=self.width, num_heads=self.num_attention_heads, mlp_ratio=MLP_RATIO, grid=(side, side)
        )

    @property
    def card_sizes(self) -> CardSizes:
        """Keyword arguments for the `BackboneCard` of a DiT with this config."""
        return CardSizes(
            depth=self.num_layers,
            dims=self.dims,
            patch_size=self.patch_size,
            latent_channels=self.in_channels,
            num_classes=self.num_classes,
            num_params=self.num_params,
        )

    @property
    def num_params(self) -> int:
        """Parameters as they are stored, with an embedder for every block."""
        width, patch = self.width, self.patch_size**2
        block = (
            self._embedder_params
            + 6 * (width**2 + width)  # adaLN
            + (2 * width if self.norm_elementwise_affine else 0)
            + 4 * (width**2 + width)  # attention
            + 2 * MLP_RATIO * width**2
            + (MLP_RATIO + 1) * width
        )
        embedding = patch * self.in_channels * width + width
        last = 2 * (width**2 + width) + (width + 1) * patch * self.channels_out
        added = added_params(self.edits, self.pairs, self.dims)
        return embedding + self.num_layers * block + last + added

    @property
    def repeated_params(self) -> int:
        """Parameters of the embedders of every block but the first."""
        return (self.num_layers - 1) * self._embedder_params

    @property
    def _embedder_params(self) -> int:
        """Of a block's embedder of timestep and label, the null label among them."""
        width = self.width
        timestep = TIME_FEATURES * width + width + width**2 + width
        return timestep + (self.num_embeds_ada_norm + 1) * width


def read_config(folder: Path) -> DiTConfig:
    """Raises ValueError for anything but a DiT, by its present or its former name, that can be grafted."""
    file = folder / CONFIG
    document = read_json(file)
    name, norm = document.get("_class_name"), document.get("norm_type")
    if name not in (CLASS, GRAFTED_CLASS) and (name, norm) != (LEGACY, "ada_norm_zero"):
        raise ValueError(f"{folder} holds a {name} with norm_type {norm!r}; a {CLASS} is needed")
    if norm == GRAFTED_NORM:
        document["norm_type"] = "ada_norm_zero"
    try:
        config = DiTConfig.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:
            raise ValueError(f"{file}: {first['msg'].removeprefix('Value error, ')}") from error
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{file}: {field} is {first['input']!r}: {first['msg']}") from error
    if config.differences and name != GRAFTED_CLASS:
        wrong = ", ".join(config.differences)
        raise ValueError(f"{file}: a {name} has no {wrong}; a {GRAFTED_CLASS} may have them")
    side, rest = divmod(config.sample_size, config.patch_size)
    if rest or not 1 <= side <= MOST_TOKENS_A_SIDE:
        raise ValueError(
            f"{file}: sample_size {config.sample_size} is no multiple of patch_size {config.patch_size}"
            if rest
            else f"{file}: a side of {side} tokens; at most {MOST_TOKENS_A_SIDE} are supported"
        )
    return config


def write_config(folder: Path, config: DiTConfig) -> None:
    """Write the transformer's `config.json`, under a name that diffusers refuses if it would change it."""
    document = {"_class_name": CLASS, **config.arguments}
    if config.differences:
        document |= {"_class_name": GRAFTED_CLASS, "norm_type": GRAFTED_NORM, **config.differences}
    (folder / CONFIG).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError where there is none."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{file} is no JSON object: it holds a {type(document).__name__}")
    return document
