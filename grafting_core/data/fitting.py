"""Checks that a data set fits a backbone: latent shape, autoencoder, scale and classes."""

from math import isclose

from grafting_core.backbones.autoencoder import IdentityAutoencoder
from grafting_core.backbones.base import Backbone
from grafting_core.specs.datasets import DatasetCard


def check_fit(card: DatasetCard, backbone: Backbone) -> None:
    """Raise ValueError naming both if the data set has other latents or classes than the backbone."""
    pair = f"data set {card.name!r} does not fit backbone {backbone.card.name!r}"
    if card.shape != backbone.latent_shape:
        ours, theirs = (" x ".join(map(str, shape)) for shape in (card.shape, backbone.latent_shape))
        raise ValueError(f"{pair}: its samples are {ours}; the backbone takes {theirs}")
    if wrong := _other_autoencoder(card, backbone):
        raise ValueError(f"{pair}: {wrong}")
    classes, taken = len(card.classes), backbone.card.num_classes
    if taken and classes != taken:
        raise ValueError(f"{pair}: it has {classes or 'no'} classes; the backbone takes {taken}")


def _other_autoencoder(card: DatasetCard, backbone: Backbone) -> str | None:
    in_pixels = isinstance(backbone.autoencoder, IdentityAutoencoder)
    if card.autoencoder is None:
        return None if in_pixels else "it has pixels; the backbone takes latents of its autoencoder"
    if in_pixels:
        return "it has latents of an autoencoder; the backbone takes pixels"
    theirs = backbone.card.parts.get("autoencoder")
    if theirs != card.autoencoder:
        named = theirs[:12] if theirs else "unknown: its card names no digest of it"
        return f"it was encoded with the autoencoder {card.autoencoder[:12]}; the backbone's is {named}"
    scale = float(getattr(backbone.autoencoder, "scale", 1.0))
    shift = float(getattr(backbone.autoencoder, "shift", 0.0))
    if not (isclose(scale, card.scale, rel_tol=1e-6) and isclose(shift, card.shift, abs_tol=1e-9)):
        return (
            f"its latents were shifted by {card.shift:g} and scaled by {card.scale:g}; the backbone's "
            f"autoencoder shifts by {shift:g} and scales by {scale:g}"
        )
    return None
