"""Operators compute what their definitions say (paper-facts section 2; methods section 5)."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from grafting_core.operators.attention import (
    BandAttention,
    GridWindowAttention,
)
from grafting_core.operators.hyena import DepthwiseConv
from grafting_core.operators.mamba import SelectiveStateSpace
from grafting_core.operators.mlp import ChannelConv
from grafting_core.operators.table import BUILDERS, build_operator
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators import KINDS
from grafting_core.specs.operators.mamba import Mamba2
from grafting_core.specs.operators.windows import band_block, grid_block

TIED = {"window_attention_2d", "conv_mlp", "mlp_hyena_x"}
DIMS = BlockDims(width=24, num_heads=4, mlp_ratio=4.0, grid=(5, 7))


def test_every_kind_has_a_builder() -> None:
    assert set(BUILDERS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameter_formula_counts_the_built_module(kind: str) -> None:
    spec = KINDS[kind](kind=kind)
    assert sum(p.numel() for p in build_operator(spec, DIMS).parameters()) == spec.num_params(DIMS)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - TIED))
@pytest.mark.parametrize("tokens", [1, 35, 100])
def test_shape_is_kept_at_any_token_count(kind: str, tokens: int) -> None:
    hidden = torch.randn(2, tokens, DIMS.width)
    assert build_operator(KINDS[kind](kind=kind), DIMS)(hidden).shape == hidden.shape


@pytest.mark.parametrize("kind", sorted(TIED))
def test_an_operator_tied_to_its_tokens_refuses_other_counts(kind: str) -> None:
    module = build_operator(KINDS[kind](kind=kind), DIMS)
    assert module(torch.randn(2, 35, 24)).shape == (2, 35, 24)
    with pytest.raises(ValueError, match="tokens, not for 36"):
        module(torch.randn(2, 36, 24))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_and_bf16_stays_close(kind: str) -> None:
    torch.manual_seed(0)
    module, hidden = build_operator(KINDS[kind](kind=kind), DIMS), torch.randn(2, 35, 24)
    out = module(hidden)
    out.square().sum().backward() if out.requires_grad else None
    # Softmax does not see a constant added to all keys.
    silent = {"k.bias"} if "attention" in kind or kind == "mha" else set()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in module.named_parameters() if n not in silent
    )
    with torch.autocast("cpu", torch.bfloat16):
        low = module(hidden)
    torch.testing.assert_close(low.float(), out, rtol=0, atol=0.05 * out.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_gradients_are_the_same(kind: str) -> None:
    torch.manual_seed(0)
    module = build_operator(KINDS[kind](kind=kind), DIMS)
    plain, saved = (torch.ones(2, 35, 24, requires_grad=True) for _ in range(2))
    module(plain).square().sum().backward()
    checkpoint(module, saved, use_reentrant=False).square().sum().backward()
    assert torch.equal(plain.grad, saved.grad)


def counted_flops(spec: Any, dims: BlockDims) -> int:
    with torch.device("meta"):
        module, hidden = build_operator(spec, dims), torch.empty(1, dims.num_tokens, dims.width)
    with FlopCounterMode(display=False) as counter:
        module(hidden)
    return counter.get_total_flops()


@pytest.mark.parametrize("grid", [(7, 7), (16, 16), (32, 32), (5, 27)])
@pytest.mark.parametrize("width", [96, 1152])
@pytest.mark.parametrize("kind", KINDS)
def test_flops_in_totals_are_those_that_the_counter_sees(
    kind: str, width: int, grid: tuple[int, int]
) -> None:
    dims = BlockDims(width=width, num_heads=6, mlp_ratio=4.0, grid=grid)
    spec = KINDS[kind](kind=kind)
    assert spec.computed_flops(dims) == counted_flops(spec, dims)


@settings(max_examples=20, deadline=None)
@given(half_width=st.integers(0, 40), rows=st.integers(1, 40), columns=st.integers(1, 40))
@pytest.mark.parametrize("kind", ["window_attention", "window_attention_2d"])
def test_flops_of_windows_of_any_size_are_counted(
    kind: str, half_width: int, rows: int, columns: int
) -> None:
    dims = BlockDims(width=24, num_heads=2, mlp_ratio=4.0, grid=(rows, columns))
    spec = KINDS[kind](kind=kind, half_width=half_width)
    assert spec.computed_flops(dims) == counted_flops(spec, dims)
    assert spec.computed_flops(dims) <= KINDS["mha"](kind="mha").computed_flops(dims)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_compiles_to_one_graph_with_its_backward(kind: str) -> None:
    torch.manual_seed(0)
    module = build_operator(KINDS[kind](kind=kind), DIMS)
    # The tracing backend mistakes the strides of elu's gradient where inductor, too slow for here, does not.
    backend = "eager" if kind == "linear_attention" else "aot_eager"
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    plain, traced = (torch.ones(2, 35, 24, requires_grad=True) for _ in range(2))
    module(plain).square().sum().backward()
    compiled(traced).square().sum().backward()
    torch.testing.assert_close(traced.grad, plain.grad, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 700), half_width=st.integers(0, 90))
def test_window_attention_is_attention_under_a_band_mask(tokens: int, half_width: int) -> None:
    torch.manual_seed(tokens)
    q, k, v = torch.randn(3, 1, 2, tokens, 4, dtype=torch.float64)
    rows = torch.arange(tokens)
    band = (rows[:, None] - rows).abs() <= half_width
    expected = scaled_dot_product_attention(q, k, v, attn_mask=band)
    torch.testing.assert_close(BandAttention(8, 2, half_width).mix(q, k, v), expected, rtol=0, atol=1e-12)


def test_both_ways_of_windows_are_taken() -> None:
    """Or the tests of windows would look at one of them only."""
    assert grid_block(2, (7, 7)) is None
    assert grid_block(2, (40, 30)) == 3
    assert band_block(4, 49) is None
    assert band_block(4, 700) == 64


def changed_rows(module: nn.Module, tokens: int, touched: int) -> list[int]:
    """Tokens whose output changes when one input token does."""
    torch.manual_seed(1)
    before = torch.randn(1, tokens, 24, dtype=next(module.parameters()).dtype)
    after = before.clone()
    after[0, touched] += 1
    with torch.no_grad():
        return (module(before) != module(after)).any(dim=2)[0].nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("hyena_x", range(10, 14)),
        ("hyena_y", range(10, 14)),
        ("hyena_se", range(10, 17)),
        ("hyena_x_bidirectional", range(7, 14)),
        ("hyena_y_bidirectional", range(7, 14)),
        ("hyena_se_bidirectional", range(4, 17)),
        ("mamba2", range(10, 30)),
        ("mamba2_bidirectional", range(30)),
        ("linear_attention", range(30)),
    ],
)
def test_a_token_reaches_exactly_the_rows_it_should(kind: str, rows: range) -> None:
    torch.manual_seed(3)
    module = build_operator(KINDS[kind](kind=kind), DIMS).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert changed_rows(module, 30, 10) == list(rows)


def test_a_grid_window_reaches_its_rows_and_columns() -> None:
    module = build_operator(KINDS["window_attention_2d"](kind="window_attention_2d", half_width=1), DIMS)
    near = [row * 7 + column for row in (1, 2, 3) for column in (2, 3, 4)]
    assert changed_rows(module, 35, 2 * 7 + 3) == near


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 45), columns=st.integers(1, 30), half_width=st.integers(0, 12))
def test_grid_window_attention_is_attention_under_its_mask(rows: int, columns: int, half_width: int) -> None:
    torch.manual_seed(rows)
    q, k, v = torch.randn(3, 2, 2, rows * columns, 4, dtype=torch.float64)
    at = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    mask = ((at[:, None] - at).abs() <= half_width).all(dim=2)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    ours = GridWindowAttention(8, 2, half_width, (rows, columns)).mix(q, k, v)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_mamba2_agrees_with_transformers_on_the_same_weights() -> None:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=24,
        num_heads=12,
        head_dim=4,
        state_size=16,
        n_groups=1,
        expand=2,
        conv_kernel=4,
        chunk_size=8,
    )
    theirs = Mamba2Mixer(config, layer_idx=0)
    ours = build_operator(Mamba2(state_size=16, head_dim=4), DIMS)
    assert isinstance(ours, SelectiveStateSpace)
    weights = dict(theirs.state_dict())
    weights["conv1d.weight_KD"] = weights.pop("conv1d.weight").squeeze(1).T
    weights["conv1d.bias_D"] = weights.pop("conv1d.bias")
    ours.load_state_dict(weights)
    hidden = torch.randn(2, 21, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(hidden), theirs(hidden), rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(channels=st.integers(1, 20), kernel=st.integers(1, 7), tokens=st.integers(1, 9))
def test_the_channel_convolution_is_conv1d_over_positions(channels: int, kernel: int, tokens: int) -> None:
    ours = ChannelConv(tokens, kernel).double()
    theirs = nn.Conv1d(tokens, tokens, kernel, groups=tokens).double()
    theirs.load_state_dict({"weight": ours.weight_KT.T.unsqueeze(1), "bias": ours.bias_T})
    hidden = torch.randn(2, tokens, channels, dtype=torch.float64)
    padded = nn.functional.pad(hidden, (kernel - 1, 0))
    torch.testing.assert_close(ours(hidden), theirs(padded), rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 9), kernel=st.integers(1, 7), tokens=st.integers(1, 20))
def test_the_causal_convolution_is_conv1d_with_left_padding(channels: int, kernel: int, tokens: int) -> None:
    ours = DepthwiseConv(channels, kernel).double()
    theirs = nn.Conv1d(channels, channels, kernel, groups=channels).double()
    theirs.load_state_dict({"weight": ours.weight_KD.T.unsqueeze(1), "bias": ours.bias_D})
    hidden = torch.randn(2, tokens, channels, dtype=torch.float64)
    padded = nn.functional.pad(hidden.transpose(1, 2), (kernel - 1, 0))
    torch.testing.assert_close(ours(hidden), theirs(padded).transpose(1, 2), rtol=0, atol=1e-12)


def test_a_field_that_does_not_fit_the_dims_is_named() -> None:
    with pytest.raises(ValueError, match="num_heads is 7; it should be a divisor of the width 24"):
        build_operator(KINDS["mha"](kind="mha", num_heads=7), DIMS)
