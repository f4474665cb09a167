"""Checkpoints of the original DiT are read with the original's arithmetic, or refused."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from grafting_core.backbones.checkpoint_folder import write_checkpoint
from grafting_core.backbones.conditions import Conditions
from grafting_core.backbones.diffusers_folder import load_transformer, read_config
from grafting_core.backbones.fast_forward import LABELS, FastForward
from grafting_core.backbones.released_grafts import ImportedCheckpoint, import_checkpoint
from tests.support import original_dit
from tests.support.original_dit import State, random_state, relative_errors

TIMESTEPS = torch.tensor([0, 10, 100, 500, 999])
LABELS_B = torch.tensor([0, 1, 207, 999, 1000])


@pytest.fixture(scope="module")
def state() -> State:
    """Two blocks of DiT-XL/2."""
    return random_state(2)


@pytest.fixture(scope="module")
def file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("original") / "DiT-XL-2-256x256.pt"
    torch.save(state, file)
    return file


def imported(file: Path) -> ImportedCheckpoint:
    found = import_checkpoint(file)
    assert isinstance(found, ImportedCheckpoint)
    return found


def loaded(file: Path, folder: Path) -> DiTTransformer2DModel:
    write_checkpoint(imported(file), folder)
    return load_transformer(folder / "transformer")


@torch.no_grad()
def output(transformer: DiTTransformer2DModel, latents: Tensor) -> Tensor:
    return transformer(latents, timestep=TIMESTEPS, class_labels=LABELS_B).sample


def diffusers_route(ours: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """The same weights in diffusers' class with the arguments of its conversion of the original."""
    with torch.device("meta"):
        theirs = DiTTransformer2DModel(out_channels=8, num_layers=len(ours.transformer_blocks))
    theirs.load_state_dict(ours.state_dict(), assign=True)
    theirs.pos_embed.pos_embed = ours.pos_embed.pos_embed
    for block in theirs.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return theirs.eval()


def check_against_the_formulas(transformer: DiTTransformer2DModel, expected: Tensor, latents: Tensor) -> None:
    """Ours equals the original's formulas; the same weights as diffusers computes them do not."""
    assert max(relative_errors(output(transformer, latents), expected)) < 1e-5
    theirs = relative_errors(output(diffusers_route(transformer), latents), expected)
    assert min(theirs[1:]) > 1e-3
    forward, conditions = FastForward(transformer), Conditions({LABELS: LABELS_B})
    for row, timestep in enumerate(TIMESTEPS.tolist()):
        fast = forward(latents[row : row + 1], timestep, conditions.rows(slice(row, row + 1)))
        assert max(relative_errors(fast, expected[row : row + 1])) < 1e-5


@torch.no_grad()
def test_outputs_are_those_of_the_originals_formulas_and_not_those_of_diffusers(
    file: Path, state: State, tmp_path: Path
) -> None:
    latents = torch.randn(5, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = original_dit.forward(state, latents, TIMESTEPS, LABELS_B)
    check_against_the_formulas(loaded(file, tmp_path), expected, latents)


@pytest.mark.large
@torch.no_grad()
def test_the_same_at_full_depth(tmp_path: Path) -> None:
    torch.save(random_state(28, scale=0.02), tmp_path / "model.pt")
    latents = torch.randn(5, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    stored = torch.load(tmp_path / "model.pt", mmap=True)
    expected = original_dit.forward(stored, latents, TIMESTEPS, LABELS_B)
    transformer = loaded(tmp_path / "model.pt", tmp_path / "folder")
    (tmp_path / "model.pt").unlink()
    check_against_the_formulas(transformer, expected, latents)


def test_sizes_come_from_the_shapes_and_every_tensor_of_the_file_is_used(file: Path, state: State) -> None:
    found = imported(file)
    config = found.config
    assert (config.num_layers, config.width, config.num_attention_heads) == (2, 1152, 16)
    assert (config.sample_size, config.patch_size, config.in_channels, config.channels_out) == (32, 2, 4, 8)
    assert (config.num_classes, config.arithmetic, config.norm_eps) == (1000, "original", 1e-6)
    assert (found.kind, found.edits, found.summary) == ("original", (), "2 blocks of 1152")
    used = {tensor.data_ptr() for tensor in found.state.values()}
    elements = sum(tensor.numel() for name, tensor in found.state.items() if ".1.norm1.emb." not in name)
    assert elements == sum(tensor.numel() for tensor in state.values()) - state["pos_embed"].numel()
    assert len(used) == len(state) - 1 + 2 * 2 * 2  # q, k and v apart, weight and bias, in two blocks


def test_512_pixels_have_1024_tokens(state: State, tmp_path: Path) -> None:
    larger = {**state, "pos_embed": original_dit.pos_embed(side=32)}
    torch.save(larger, tmp_path / "DiT-XL-2-512x512.pt")
    assert imported(tmp_path / "DiT-XL-2-512x512.pt").config.dims.grid == (32, 32)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (lambda state: {"ema": state}, "ema"),
        (
            lambda state: {
                "model": {"x": torch.zeros(1)},
                "ema": state,
                "opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
                "args": argparse.Namespace(model="DiT-XL/2", lr=1e-4, results_dir="results"),
                "train_images_seen_so_far": 6400,
                "train_steps": 25,
            },
            "training",
        ),
    ],
)
def test_averaged_weights_are_taken_of_training_checkpoints(
    state: State, tmp_path: Path, document: Callable[[State], dict[str, Any]], kind: str
) -> None:
    torch.save(document(state), tmp_path / "model.pt")
    found = imported(tmp_path / "model.pt")
    assert found.kind == kind
    assert torch.equal(found.state["proj_out_2.weight"], state["final_layer.linear.weight"])
    torch.save({"ema": state, "train_steps": float("nan"), "epoch": 10**400}, tmp_path / "model.pt")
    assert imported(tmp_path / "model.pt").figures == {}
    expected = {"train_images_seen_so_far": 6400.0, "train_steps": 25.0} if kind == "training" else {}
    assert found.figures == expected


class Evil:
    """Unpickling it would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def renamed(state: State) -> dict[str, Any]:
    return {
        name.replace("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc_1.weight"): x for name, x in state.items()
    }


def without(*names: str) -> Callable[[State], dict[str, Any]]:
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


def changed(name: str, change: Callable[[Tensor], Any]) -> Callable[[State], dict[str, Any]]:
    return lambda state: {**state, name: change(state[name])}


def with_nan(tensor: Tensor) -> Tensor:
    spoilt = tensor.clone()
    spoilt.view(-1)[0] = float("nan")
    return spoilt


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (renamed, "lacks blocks.1.mlp.fc1.weight; has unexpected blocks.1.mlp.fc_1.weight"),
        (without("t_embedder.mlp.2.bias"), "lacks t_embedder.mlp.2.bias"),
        (without("pos_embed"), "lacks pos_embed"),
        (without("blocks.0.adaLN_modulation.1.weight"), "lacks blocks.0.adaLN_modulation.1.weight"),
        (changed("blocks.1.attn.proj.bias", lambda x: x.half()), "blocks.1.attn.proj.bias is stored as"),
        (changed("blocks.1.attn.proj.bias", lambda x: x.double()), "blocks.1.attn.proj.bias is stored as"),
        (
            changed("blocks.1.attn.proj.bias", lambda x: x[:7].clone()),
            r"blocks.1.attn.proj.bias has the shape",
        ),
        (changed("blocks.1.attn.proj.bias", lambda x: x.to("meta")), "blocks.1.attn.proj.bias has no values"),
        (
            changed("blocks.1.attn.proj.bias", lambda x: x.to_sparse()),
            "blocks.1.attn.proj.bias is sparse, nested or a view",
        ),
        (
            changed("blocks.1.attn.proj.bias", lambda x: torch._neg_view(x)),
            "blocks.1.attn.proj.bias is sparse, nested or a view",
        ),
        (
            changed("blocks.1.attn.proj.bias", lambda x: torch.nested.nested_tensor([x[:3], x[:2]])),
            "blocks.1.attn.proj.bias is sparse, nested or a view",
        ),
        (
            changed("pos_embed", lambda x: x[:, :1].expand(1, 4096**2, 1152)),
            "holds tensors of .* bytes, which share their elements",
        ),
        (
            lambda state: {**state, **{name.replace("s.1.", "s.2."): x for name, x in state.items()}},
            "which share their elements",
        ),
        (changed("pos_embed", lambda x: torch.zeros(1, 257**2, 1)), "a side of 257 tokens; at most 256"),
        (changed("x_embedder.proj.weight", lambda x: x[:, :, :0, :0]), "have no elements, or there is no"),
        (changed("y_embedder.embedding_table.weight", lambda x: x[:1].clone()), "or there is no class"),
        (lambda state: {3: torch.ones(1)}, "a tensor's name is a int, not text"),
        (
            lambda state: {**state, f"blocks.{'9' * 5000}.x": torch.ones(1)},
            "has unexpected blocks.9999",
        ),
        (changed("x_embedder.proj.bias", with_nan), "not finite numbers: x_embedder.proj.bias"),
        (changed("pos_embed", lambda x: x + 0.01), "pos_embed is not the position embedding of a DiT"),
        (
            lambda state: {**state, "blocks.1.attn.q_norm.weight": torch.ones(72)},
            "unexpected blocks.1.attn.q_norm",
        ),
        (lambda state: {**state, "blocks.3.x": torch.ones(1)}, "lacks every tensor of blocks.2"),
        (lambda state: {**state, "rest": torch.ones(1)}, "has unexpected rest"),
        (lambda state: {"model": state, "opt": {}}, "model is no known operator"),
        (lambda state: {"weights": state}, "holds weights; weights are looked for under ema"),
        (lambda state: {**state, "step": 3}, "holds the tensor pos_embed among entries that are none"),
        (lambda state: [1, 2], "holds a list"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    state: State, tmp_path: Path, spoil: Callable[[State], Any], message: str
) -> None:
    torch.save(spoil(state), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message) as caught:
        import_checkpoint(tmp_path / "model.pt")
    assert str(tmp_path / "model.pt") in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(state: State, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save({"ema": state, "args": Evil(f"touch {touched}")}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"a pickle of more than tensors, .* it names posix\.system$"):
        import_checkpoint(tmp_path / "model.pt")
    assert not touched.exists()


def test_a_compressed_zip_is_refused_whose_bytes_would_be_taken_for_numbers(tmp_path: Path) -> None:
    packed = tmp_path / "model.pt"
    torch.save({"x": torch.zeros(3)}, tmp_path / "plain.pt")
    with ZipFile(tmp_path / "plain.pt") as plain, ZipFile(packed, "w", ZIP_DEFLATED) as made:
        for name in plain.namelist():
            made.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"its entry plain/data\.pkl is compressed"):
        import_checkpoint(packed)


def test_a_truncated_file_is_refused(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a whole file of weights"):
        import_checkpoint(tmp_path / "model.pt")


def test_the_written_folder_says_what_it_is(file: Path, tmp_path: Path) -> None:
    found = imported(file)
    write_checkpoint(found, tmp_path)
    assert read_config(tmp_path / "transformer") == found.config
