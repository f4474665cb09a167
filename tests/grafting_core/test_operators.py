"""Operators compute what their definitions say (paper-facts section 2; methods section 5)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from grafting_core.operators.attention import BandAttention, SoftmaxAttention
from grafting_core.operators.catalog import BUILDERS, build
from grafting_core.operators.hyena import CausalDepthwiseConv, GatedConvolution
from grafting_core.spec.dims import BlockDims
from grafting_core.spec.operators import KINDS
from grafting_core.spec.operators.attention import WindowAttention

DIMS = BlockDims(width=24, num_heads=4, mlp_ratio=4.0, grid=(5, 7))


def test_every_kind_has_a_builder() -> None:
    assert set(BUILDERS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameter_formula_counts_the_built_module(kind: str) -> None:
    spec = KINDS[kind](kind=kind)
    assert sum(p.numel() for p in build(spec, DIMS).parameters()) == spec.num_params(DIMS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 35, 100])
def test_shape_is_kept_at_any_token_count(kind: str, tokens: int) -> None:
    hidden = torch.randn(2, tokens, DIMS.width)
    assert build(KINDS[kind](kind=kind), DIMS)(hidden).shape == hidden.shape


@pytest.mark.parametrize("kind", ["mha", "mlp"])
def test_the_flop_formula_agrees_with_the_counter_where_it_can_count(kind: str) -> None:
    spec = KINDS[kind](kind=kind)
    with torch.device("meta"):
        module, hidden = build(spec, DIMS), torch.randn(1, DIMS.num_tokens, DIMS.width)
    with FlopCounterMode(display=False) as counter:
        module(hidden)
    softmax = 2 * DIMS.num_tokens**2 * DIMS.num_heads if kind == "mha" else 0  # not counted by the counter
    assert counter.get_total_flops() == spec.flops(DIMS).total - softmax


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_window_over_everything_is_full_attention(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    band, full = BandAttention(24, 4, half_width=34).to(dtype), SoftmaxAttention(24, 4).to(dtype)
    full.load_state_dict(band.state_dict())
    hidden = torch.randn(2, 35, 24, dtype=dtype)
    assert torch.equal(band(hidden), full(hidden))


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 200), half_width=st.integers(0, 90))
def test_window_attention_is_attention_under_a_band_mask(tokens: int, half_width: int) -> None:
    torch.manual_seed(tokens)
    q, k, v = torch.randn(3, 1, 2, tokens, 4, dtype=torch.float64)
    rows = torch.arange(tokens)
    band = (rows[:, None] - rows).abs() <= half_width
    expected = scaled_dot_product_attention(q, k, v, attn_mask=band)
    torch.testing.assert_close(BandAttention(8, 2, half_width).mix(q, k, v), expected, rtol=0, atol=1e-12)


def changed_rows(module: nn.Module, tokens: int, touched: int) -> list[int]:
    """Tokens whose output changes when one input token does."""
    torch.manual_seed(1)
    before = torch.randn(1, tokens, 24)
    after = before.clone()
    after[0, touched] += 1
    with torch.no_grad():
        return (module(before) != module(after)).any(dim=2)[0].nonzero().squeeze(1).tolist()


def test_a_window_of_four_reaches_exactly_four_tokens_to_either_side() -> None:
    module = build(WindowAttention(half_width=4), DIMS)
    assert changed_rows(module, 200, 100) == list(range(96, 105))


def test_hyena_x_is_causal_and_reaches_three_tokens_ahead() -> None:
    assert changed_rows(GatedConvolution(24, 4), 30, 10) == [10, 11, 12, 13]


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 9), kernel=st.integers(1, 7), tokens=st.integers(1, 20))
def test_the_causal_convolution_is_conv1d_with_left_padding(channels: int, kernel: int, tokens: int) -> None:
    ours = CausalDepthwiseConv(channels, kernel).double()
    theirs = nn.Conv1d(channels, channels, kernel, groups=channels).double()
    theirs.load_state_dict({"weight": ours.weight_KD.T.unsqueeze(1), "bias": ours.bias_D})
    hidden = torch.randn(2, tokens, channels, dtype=torch.float64)
    padded = nn.functional.pad(hidden.transpose(1, 2), (kernel - 1, 0))
    torch.testing.assert_close(ours(hidden), theirs(padded).transpose(1, 2), rtol=0, atol=1e-12)


def test_a_field_that_does_not_fit_the_dims_is_named() -> None:
    with pytest.raises(ValueError, match="num_heads is 7; it should be a divisor of the width 24"):
        build(KINDS["mha"](kind="mha", num_heads=7), DIMS)
