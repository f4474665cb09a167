"""A transformer from a checkpoint, written as the folder that backbones are read from."""

from pathlib import Path

from grafting_core.backbones.diffusers_folder import TRANSFORMER
from grafting_core.backbones.dit_config import write_config
from grafting_core.backbones.released_grafts import ImportedCheckpoint
from grafting_core.backbones.scheduler_config import write_objective
from grafting_core.specs.noise import TrainingSchedule
from grafting_core.storage.tensor_files import write_safetensors

WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_checkpoint(imported: ImportedCheckpoint, folder: Path) -> None:
    """Write transformer and scheduler; the caller adds the autoencoder, which no checkpoint has.

    The original code trains noise prediction, with a variance where there are channels for it, over its
    linear schedule of 1,000 timesteps, which is the default here.
    """
    target = folder / TRANSFORMER
    target.mkdir(parents=True, exist_ok=True)
    config = imported.config
    write_config(target, config)
    write_safetensors(target / WEIGHTS, imported.state)
    learned = config.channels_out == 2 * config.in_channels
    write_objective(folder, "epsilon_learned_variance" if learned else "epsilon", TrainingSchedule())
