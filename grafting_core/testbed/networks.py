"""The three networks of `testbed/dit-fashion`, untrained."""

from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor, nn

from grafting_core.backbones.dit import silence_label_dropout

NUM_CLASSES = 10
NULL_LABEL = NUM_CLASSES
IMAGE_SIZE = 28


class FashionClassifier(nn.Module):
    """Feature network `fashion-cnn`: a small CNN without residuals, with 128 penultimate features."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 32, 64, 64, 128, 128)
        self.body = nn.Sequential(
            *(self._stage(widths[i], widths[i + 1], pool=i % 2 == 1) for i in range(len(widths) - 1))
        )
        self.head = nn.Linear(128, NUM_CLASSES)

    @staticmethod
    def _stage(width_in: int, width_out: int, pool: bool) -> nn.Sequential:
        layers = [
            nn.Conv2d(width_in, width_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(width_out),
            nn.ReLU(),
        ]
        return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """[B, 1, 28, 28] in [-1, 1] -> [B, 128]."""
        maps: Tensor = self.body(pixels_BCHW)
        return maps.mean(dim=(2, 3))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Logits [B, 10]."""
        logits: Tensor = self.head(self.features(pixels_BCHW))
        return logits


def build_autoencoder(scaling_factor: float = 1.0) -> AutoencoderKL:
    """28x28 gray -> 4x7x7 latents, about 0.65 M parameters."""
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=scaling_factor,
    )


def build_transformer(depth: int = 8) -> DiTTransformer2DModel:
    """49 tokens of width 96, learned variance; label dropout is off, as it would differ between blocks."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=depth,
        sample_size=7,
        patch_size=1,
        num_embeds_ada_norm=NUM_CLASSES,
    )
    silence_label_dropout(transformer)
    return transformer
