"""Make the emoji testbed: `python -m grafting_core.testbed.emoji.recipe --work DIR [--assets DIR]`.

Phases: autoencoder, detector, base (64 pixels), high (192 and 256 pixels); then the scores. Each resumes
from its checkpoint, on the CPU or a GPU, and ends after its steps or seconds. Weights are written to the
assets at every checkpoint.
"""

import argparse
import shutil
from pathlib import Path

import torch

from grafting_core.testbed.emoji.assets import ASSETS
from grafting_core.testbed.emoji.recipe.run import Recipe
from grafting_core.testbed.emoji.recipe.settings import (
    CPU_BATCHES,
    CPU_STEPS,
    GPU_BATCHES,
    GPU_STEPS,
    PHASES,
    Settings,
)
from grafting_core.testbed.emoji.recipe.tiles import draw_atlas
from grafting_core.testbed.emoji.recipe.trainer import Budget


def main() -> None:
    """Parse the command line and run the recipe."""
    arguments = _parser().parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")
    provide_atlas(arguments.assets / "atlas.png")
    recipe = Recipe(settings_of(arguments), arguments.work, arguments.assets)
    recipe.train(arguments.phases)
    if arguments.per_task:
        recipe.score(arguments.per_task)


def provide_atlas(file: Path) -> None:
    """Copy the shipped atlas to another folder of assets, or draw it from the font if none ships."""
    shipped = ASSETS / file.name
    if not file.exists() and shipped.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shipped, file)
    elif not file.exists():
        draw_atlas(file)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Budgets and batches from the command line; GPUs get larger batches and compiled blocks."""
    gpu = torch.device(arguments.device).type == "cuda"
    batches = dict(GPU_BATCHES if gpu else CPU_BATCHES)
    usual = GPU_STEPS if gpu else CPU_STEPS
    budgets = {}
    for phase in PHASES:
        steps, seconds = getattr(arguments, f"{phase}_steps"), getattr(arguments, f"{phase}_seconds")
        budgets[phase] = Budget(steps, seconds) if steps or seconds else Budget(usual[phase])
        batches[phase] = getattr(arguments, f"{phase}_batch") or batches[phase]
    return Settings(
        seed=arguments.seed,
        device=arguments.device,
        batches=batches,
        budgets=budgets,
        compiled=gpu and not arguments.eager,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the files that ship")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="number of CPU threads; 0: torch's default")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--per-task", type=int, default=100, help="prompts per task for scores; 0: no scores")
    for phase in PHASES:
        parser.add_argument(f"--{phase}-steps", type=int)
        parser.add_argument(f"--{phase}-seconds", type=float)
        parser.add_argument(f"--{phase}-batch", type=int)
    return parser


if __name__ == "__main__":
    main()
