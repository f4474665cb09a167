"""A DiT with the arithmetic of the original implementation, which `DiTPipeline` would guide otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

GUIDED_HERE = ContextVar("guided_here", default=False)
"""Whether the caller of a forward decides itself which channels it guides."""


@contextmanager
def guided_here() -> Iterator[None]:
    """Context without the check of `OriginalDiT`, for samplers that guide the channels of a protocol."""
    token = GUIDED_HERE.set(True)
    try:
        yield
    finally:
        GUIDED_HERE.reset(token)


class OriginalDiT(DiTTransformer2DModel):  # type: ignore[misc]  # diffusers has no types
    """`DiTTransformer2DModel` that refuses the guidance of all channels in diffusers' `DiTPipeline`."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As `DiTTransformer2DModel`. Raises ValueError for guidance that would change the model's images."""
        if class_labels is not None and not GUIDED_HERE.get():
            check_guidance(hidden_states, class_labels, self.config.num_embeds_ada_norm)
        return super().forward(hidden_states, timestep, class_labels, cross_attention_kwargs, return_dict)


def check_guidance(latents: Tensor, labels: Tensor, null: int) -> None:
    """Recognise diffusers' `DiTPipeline`: the same latents twice, and null labels for the second half."""
    half, rest = divmod(len(latents), 2)
    if rest or half == 0 or len(labels) != len(latents) or latents.device.type == "meta":
        return
    given, second = labels[:half], labels[half:]
    doubled = bool((second == null).all()) and not bool((given == null).any())
    if doubled and torch.equal(latents[:half], latents[half:]):
        raise ValueError(
            "this model has the arithmetic of the original DiT, which guides three channels; DiTPipeline "
            "guides all, which would change its images. Use the pipeline in its folder, which "
            "DiffusionPipeline.from_pretrained loads with trust_remote_code=True, or no guidance; or guide "
            "three channels yourself, with the null labels in the first half of the batch"
        )
