"""Pipeline of diffusers for DiTs of any number of classes, with or without an autoencoder."""

import inspect
from typing import Any

import torch
from diffusers import DiTPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn


class GraftedDiTPipeline(DiTPipeline):  # type: ignore[misc]  # diffusers has no types
    """`DiTPipeline` that takes the null label, the guided channels and the decoder from its model.

    A model with the original DiT's arithmetic has three channels guided, as that implementation does. Without
    `vae` the transformer works on pixels. Schedulers of flow matching work, and those that use a learned
    variance get it. `auto_map` names the transformer's class, for diffusers' `AutoModel`.
    """

    _optional_components = ["vae"]

    def __init__(
        self,
        transformer: nn.Module,
        scheduler: Any,
        vae: nn.Module | None = None,
        auto_map: dict[str, str] | None = None,
    ) -> None:
        super().__init__(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(auto_map=auto_map)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int],
        guidance_scale: float = 4.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_channels: int | None = None,
        latents: Tensor | None = None,
    ) -> Any:
        """Images of these classes; arguments are those of `DiTPipeline`.

        `guidance_channels` is the number of latent channels that guidance acts on, by default the model's.
        `latents` are the initial noise; by default it is drawn from `generator`. With the `output_type`
        "latent" the images are left as latents. Raises ValueError for labels that the model does not have.
        """
        config, device = self.transformer.config, self._execution_device
        self._check_labels(class_labels)
        shape = (len(class_labels), config.in_channels, config.sample_size, config.sample_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.transformer.dtype)
        labels = torch.tensor(class_labels, device=device)
        steps = _accepted(self.scheduler.step, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            output = self._predict(latents, timestep, labels, guidance_scale, guidance_channels)
            if not self._takes_variance():
                output = output[:, : config.in_channels]
            latents = self.scheduler.step(output, timestep, latents, **steps).prev_sample
        images = latents if output_type == "latent" else self._decoded(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_labels(self, class_labels: list[int]) -> None:
        last = max(1, self.transformer.config.num_embeds_ada_norm) - 1
        wrong = [each for each in class_labels if type(each) is not int or not 0 <= each <= last]
        if wrong or not class_labels:
            given = wrong[0] if wrong else class_labels
            raise ValueError(f"class_labels are integers from 0 to {last}, one for each image, not {given!r}")

    def _predict(
        self, latents: Tensor, timestep: Tensor, labels: Tensor, scale: float, channels: int | None
    ) -> Tensor:
        """The transformer's output, with guidance on the first `channels` of it if it takes labels."""
        scaled = latents
        if hasattr(self.scheduler, "scale_model_input"):
            scaled = self.scheduler.scale_model_input(latents, timestep)
        timesteps = timestep.reshape(1).to(latents.device)
        null = self.transformer.config.num_embeds_ada_norm
        if scale <= 1 or null <= 1:
            plain: Tensor = self.transformer(
                scaled, timestep=timesteps.expand(len(scaled)), class_labels=labels
            ).sample
            return plain
        unguided, guided = self.transformer(
            torch.cat([scaled, scaled]),
            timestep=timesteps.expand(2 * len(scaled)),
            class_labels=torch.cat([torch.full_like(labels, null), labels]),
        ).sample.chunk(2)
        count = channels or self._guided_channels()
        noise = unguided[:, :count] + scale * (guided[:, :count] - unguided[:, :count])
        return torch.cat([noise, guided[:, count:]], dim=1)

    def _guided_channels(self) -> int:
        config = self.transformer.config
        channels: int = config.in_channels
        return min(3, channels) if getattr(config, "arithmetic", "diffusers") == "original" else channels

    def _takes_variance(self) -> bool:
        config = self.transformer.config
        learned = getattr(self.scheduler.config, "variance_type", None) in ("learned", "learned_range")
        return learned and config.out_channels == 2 * config.in_channels

    def _decoded(self, latents: Tensor, output_type: str) -> Any:
        if self.vae is not None:
            shift = getattr(self.vae.config, "shift_factor", None) or 0.0
            latents = self.vae.decode(latents / self.vae.config.scaling_factor + shift).sample
        pixels = (latents / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return pixels
        array = pixels.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array


def _accepted(function: Any, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that the function has a parameter for."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}
