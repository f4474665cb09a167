"""Denoiser: a small PixArt of diffusers, with the same sizes for every resolution."""

from functools import cache

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor

from grafting_core.testbed.emoji.autoencoder import LATENT_CHANNELS, PATCH
from grafting_core.testbed.emoji.text_encoder import WIDTH

BASE_RESOLUTION = 64
RESOLUTIONS = (64, 192, 256)
HEADS = 6
DEPTH = 8
PATCH_SIZE = 2


def build_transformer(resolution: int = BASE_RESOLUTION, depth: int = DEPTH) -> PixArtTransformer2DModel:
    """Untrained transformer that predicts noise. Larger resolutions scale positions as PixArt does."""
    return PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=depth,
        cross_attention_dim=WIDTH,
        sample_size=resolution // PATCH,
        patch_size=PATCH_SIZE,
        interpolation_scale=resolution // BASE_RESOLUTION,
        use_additional_conditions=False,
        caption_channels=WIDTH,
    )


def set_resolution(model: PixArtTransformer2DModel, resolution: int) -> None:
    """Set the positions for another resolution, so that one set of weights serves several."""
    grid = resolution // (PATCH * PATCH_SIZE)
    embed = model.pos_embed
    if embed.height == grid:
        return
    embed.pos_embed = _positions(resolution).to(embed.pos_embed)
    embed.height = embed.width = embed.base_size = grid
    embed.interpolation_scale = resolution // BASE_RESOLUTION


@cache
def _positions(resolution: int) -> Tensor:
    """Sines and cosines [1, tokens, WIDTH] of positions in units of a token at BASE_RESOLUTION."""
    grid, scale = resolution // (PATCH * PATCH_SIZE), resolution // BASE_RESOLUTION
    values: Tensor = get_2d_sincos_pos_embed(
        WIDTH, grid, base_size=grid, interpolation_scale=scale, output_type="pt"
    )
    return values.float().unsqueeze(0)


def predict_noise(
    model: PixArtTransformer2DModel,
    noisy_BCHW: Tensor,
    timesteps_B: Tensor,
    embeddings_BLD: Tensor,
    mask_BL: Tensor,
) -> Tensor:
    """Noise in the latents, predicted for encoded captions."""
    output: Tensor = model(
        noisy_BCHW,
        encoder_hidden_states=embeddings_BLD,
        encoder_attention_mask=mask_BL.to(torch.float32),
        timestep=timesteps_B,
        return_dict=False,
    )[0]
    return output
