"""The recipe runs as a whole in miniature, resumes where it was killed, and leaves assets that load."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grafting_core.testbed.emoji.assets import emoji_atlas, load_card, load_detector, load_painter
from grafting_core.testbed.emoji.autoencoder import PatchAutoencoder
from grafting_core.testbed.emoji.recipe import trainer as trainer_module
from grafting_core.testbed.emoji.recipe.__main__ import main
from grafting_core.testbed.emoji.recipe.autoencoder import autoencoder_trainer, averaged_autoencoder
from grafting_core.testbed.emoji.recipe.settings import PHASES, Settings
from grafting_core.testbed.emoji.recipe.source import Source
from grafting_core.testbed.emoji.recipe.trainer import Budget, Rate, Trainer
from grafting_core.testbed.emoji.recipe.transformer import base_trainer, high_resolution
from grafting_core.testbed.emoji.scoring import judge

TINY = Settings(batches=dict.fromkeys(PHASES, 2), budgets=dict.fromkeys(PHASES, Budget(steps=4)))


def denoiser(work: Path) -> Trainer:
    torch.manual_seed(9)
    autoencoder = PatchAutoencoder(width=8).eval().requires_grad_(False)
    return base_trainer(TINY, Source(emoji_atlas(), 0, 2), autoencoder, work, depth=1)


def test_a_killed_phase_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = denoiser(tmp_path / "whole")
    whole.run()
    monkeypatch.setattr(trainer_module, "SAVED_EVERY", 0.0)
    killed = denoiser(tmp_path / "killed")
    loss = killed.loss

    def until_two(step: int, progress: float) -> Tensor:
        if step == 2:
            raise KeyboardInterrupt
        return loss(step, progress)

    killed.loss = until_two
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = denoiser(tmp_path / "killed")
    assert (resumed.step, resumed.images) == (2, 4)
    resumed.run()
    assert resumed.step == whole.step == 4
    for key, value in whole.ema.items():
        assert torch.equal(value, resumed.ema[key]), key


def test_latents_have_mean_zero_and_variance_one(tmp_path: Path) -> None:
    source = Source(emoji_atlas(), 0)
    trainer = autoencoder_trainer(TINY, source, tmp_path)
    trainer.run()
    model = averaged_autoencoder(trainer, source)
    latents = torch.cat([model.encode(source.batch(-1 - step, 72, 64).pictures) for step in (0, 2, 4, 6)])
    assert latents.mean((0, 2, 3)).abs().max() < 0.2
    assert (latents.var((0, 2, 3)) - 1).abs().max() < 0.4


def test_one_command_makes_assets_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, assets = tmp_path / "work", tmp_path / "assets"
    sizes = [f"--{phase}-{what}={value}" for phase in PHASES for what, value in (("steps", 2), ("batch", 2))]
    command = ["recipe", f"--work={work}", f"--assets={assets}", "--device=cpu", "--per-task=0", *sizes]
    monkeypatch.setattr(sys, "argv", command)
    main()
    card = load_card(assets)
    assert [card["phases"][phase]["steps"] for phase in PHASES] == [2, 2, 2, 2]
    assert sum(file.stat().st_size for file in assets.rglob("*") if file.is_file()) <= 16_000_000
    painter = load_painter(192, assets)
    painted = painter.transformer(
        torch.zeros(1, 4, 48, 48),
        encoder_hidden_states=painter.text_encoder(torch.ones(1, 16, dtype=torch.long))[0],
        timestep=torch.tensor([5]),
    ).sample
    assert painted.isfinite().all()
    assert load_painter(64, assets).paint(["a photo of a dog"], [0]).shape == (1, 3, 64, 64)
    found = load_detector(assets).detect(painted.new_zeros(1, 3, 64, 64))
    assert not judge({"tag": "single_object", "include": [{"class": "dog", "count": 1}]}, found[0]).correct
    assert json.loads((assets / "transformer-192" / "config.json").read_text())["interpolation_scale"] == 3


def test_a_budget_ends_by_what_comes_first() -> None:
    assert Budget(steps=10, seconds=100).progress(5, 80) == 0.8
    assert Budget(steps=10).progress(5, 1e9) == 0.5
    assert Budget(seconds=2).progress(7, 3) == 1.0


def test_the_rate_warms_up_stays_and_falls() -> None:
    rate = Rate(peak=1.0, warmup=10, plateau=0.5)
    assert rate.at(0, 0.0) == pytest.approx(0.1)
    assert rate.at(50, 0.5) == pytest.approx(1.0)
    assert rate.at(75, 0.75) == pytest.approx(0.505)
    assert rate.at(100, 1.0) == pytest.approx(0.01)


def test_the_largest_resolution_takes_turns_in_the_second_half() -> None:
    assert {high_resolution(step, 0.2) for step in range(4)} == {192}
    assert [high_resolution(step, 0.7) for step in range(4)] == [192, 256, 192, 256]
