"""Exact statements about operators on random shapes, in both precisions (methods section 5).

Every statement that could hold by accident has its negative control beside it.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers.models.attention import FeedForward as DiffusersFeedForward
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d, elu, pad

from grafting_core.backbones.dit import projections
from grafting_core.operators.attention import BandAttention, KernelAttention, SoftmaxAttention
from grafting_core.operators.hyena import DepthwiseConv, GatedConvolution
from grafting_core.operators.mamba import scan
from grafting_core.operators.mlp import FeedForward, GatedChannels
from grafting_core.surgery.weight_inheritance import inherit

DTYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
TOKENS = st.integers(2, 60)
WIDTHS = st.sampled_from([8, 12, 24])
random_shapes = settings(max_examples=15, deadline=None, derandomize=True)


def noise(*shape: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype)


def changed(function: Callable[[Tensor], Tensor], hidden_BTD: Tensor, token: int) -> list[int]:
    """Rows that change when this token does; everything else is bit-equal."""
    other = hidden_BTD.clone()
    other[:, token] += 1
    with torch.no_grad():
        moved = function(hidden_BTD) != function(other)
    found: list[int] = moved.any(dim=2).any(dim=0).nonzero().squeeze(1).tolist()
    return found


def shuffled(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """With weights that are nowhere 0 or 1."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.to(dtype)


@DTYPES
@random_shapes
@given(tokens=TOKENS, width=WIDTHS)
def test_a_window_over_everything_is_full_attention(
    tokens: int, width: int, dtype: torch.dtype, bound: float
) -> None:
    full = SoftmaxAttention(width, 4).to(dtype)
    hidden = noise(2, tokens, width, dtype=dtype)
    for half_width, equal in ((tokens - 1, True), (tokens + 7, True), (tokens - 2, False)):
        window = BandAttention(width, 4, half_width).to(dtype)
        window.load_state_dict(full.state_dict())
        assert torch.equal(window(hidden), full(hidden)) is equal


@DTYPES
@random_shapes
@given(tokens=st.integers(1, 150), half_width=st.integers(0, 20), data=st.data())
def test_a_window_reaches_exactly_its_width(
    tokens: int, half_width: int, data: st.DataObject, dtype: torch.dtype, bound: float
) -> None:
    token = data.draw(st.integers(0, tokens - 1))
    window = shuffled(BandAttention(8, 2, half_width), dtype)
    rows = range(max(0, token - half_width), min(tokens, token + half_width + 1))
    assert changed(window, noise(1, tokens, 8, dtype=dtype), token) == list(rows)


@DTYPES
@random_shapes
@given(tokens=TOKENS, channels=st.integers(1, 9), taps=st.integers(2, 7))
def test_a_causal_convolution_is_a_product_of_zero_padded_spectra(
    tokens: int, channels: int, taps: int, dtype: torch.dtype, bound: float
) -> None:
    ours, hidden = DepthwiseConv(channels, taps).to(dtype), noise(2, tokens, channels, dtype=dtype)

    def through_spectra(length: int) -> Tensor:
        filters = ours.weight_KD.flip(0)
        product = torch.fft.rfft(hidden, length, dim=1) * torch.fft.rfft(filters, length, dim=0)
        return torch.fft.irfft(product, length, dim=1)[:, :tokens] + ours.bias_D

    torch.testing.assert_close(ours(hidden), through_spectra(tokens + taps), rtol=0, atol=bound)
    if tokens >= taps:  # without padding the end wraps around to the start
        assert (ours(hidden) - through_spectra(tokens)).abs().max() > bound


@DTYPES
@random_shapes
@given(tokens=TOKENS, channels=st.integers(1, 9), taps=st.integers(2, 7))
def test_padding_both_ends_and_cutting_is_padding_the_front(
    tokens: int, channels: int, taps: int, dtype: torch.dtype, bound: float
) -> None:
    ours, hidden = DepthwiseConv(channels, taps).to(dtype), noise(2, tokens, channels, dtype=dtype)

    def padded(front: int, back: int) -> Tensor:
        rows = pad(hidden, (0, 0, front, back)).transpose(1, 2).unsqueeze(2)
        out = conv2d(rows, ours.weight_KD.T[:, None, None], ours.bias_D, groups=channels)
        return out.squeeze(2).transpose(1, 2)

    torch.testing.assert_close(ours(hidden), padded(taps - 1, 0), rtol=0, atol=bound)
    assert not torch.allclose(ours(hidden), padded(0, taps - 1), rtol=0, atol=bound)


@DTYPES
@pytest.mark.parametrize(
    ("featuriser", "inner", "ahead", "behind_rows", "ahead_rows"),
    [
        (True, False, 0, 0, 3),
        (False, True, 0, 0, 3),
        (True, True, 0, 0, 6),
        (True, False, 3, 3, 3),
        (True, True, 3, 6, 6),
    ],
    ids=["x", "y", "se", "x both ways", "se both ways"],
)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(tokens=st.integers(1, 40), data=st.data())
def test_a_hyena_reaches_exactly_the_released_rows(
    tokens: int,
    data: st.DataObject,
    featuriser: bool,
    inner: bool,
    ahead: int,
    behind_rows: int,
    ahead_rows: int,
    dtype: torch.dtype,
    bound: float,
) -> None:
    token = data.draw(st.integers(0, tokens - 1))
    hyena = shuffled(GatedConvolution(8, 4, featuriser=featuriser, inner=inner, ahead=ahead), dtype)
    rows = range(max(0, token - behind_rows), min(tokens, token + ahead_rows + 1))
    assert changed(hyena, noise(1, tokens, 8, dtype=dtype), token) == list(rows)


@DTYPES
@random_shapes
@given(tokens=TOKENS, width=WIDTHS, featuriser=st.booleans())
def test_an_inner_filter_at_its_start_is_none_at_all(
    tokens: int, width: int, featuriser: bool, dtype: torch.dtype, bound: float
) -> None:
    with_inner = GatedConvolution(width, 4, featuriser=featuriser, inner=True).to(dtype)
    without = GatedConvolution(width, 4, featuriser=featuriser).to(dtype)
    without.load_state_dict(with_inner.state_dict(), strict=False)
    hidden = noise(2, tokens, width, dtype=dtype)
    assert torch.equal(with_inner(hidden), without(hidden))
    shuffled(with_inner.inner, dtype)
    assert not torch.equal(with_inner(hidden), without(hidden))


def scan_inputs(tokens: int, heads: int, states: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    torch.manual_seed(tokens)
    x, step = torch.randn(2, tokens, heads, 4, dtype=dtype), torch.rand(2, tokens, heads, dtype=dtype)
    return x, step, -torch.rand(heads, dtype=dtype), *torch.randn(2, 2, tokens, states, dtype=dtype)


def recurrence(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The definition, one token after another."""
    state, out = x.new_zeros(x.shape[0], x.shape[2], b.shape[2], x.shape[3]), []
    for t in range(x.shape[1]):
        kept = (step[:, t] * rate).exp()[:, :, None, None]
        state = state * kept + torch.einsum("bs,bhp->bhsp", b[:, t], x[:, t] * step[:, t, :, None])
        out.append(torch.einsum("bs,bhsp->bhp", c[:, t], state))
    return torch.stack(out, dim=1)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@DTYPES
@random_shapes
@given(
    tokens=st.integers(1, 80),
    heads=st.integers(1, 4),
    states=st.sampled_from([1, 8, 64]),
    chunk=st.integers(1, 100),
)
def test_the_chunked_scan_is_the_recurrence(
    tokens: int, heads: int, states: int, chunk: int, dtype: torch.dtype, bound: float
) -> None:
    values = scan_inputs(tokens, heads, states, dtype)
    expected = recurrence(*values)
    assert relative(scan(*values, chunk), expected) < bound
    if tokens > 1:
        x, step, rate, b, c = values
        assert relative(scan(x, step, rate * 0, b, c, chunk), expected) > bound  # decay matters


@pytest.mark.parametrize("chunk", [1, 16, 64, 256])
@DTYPES
def test_the_scan_at_the_papers_sizes_is_the_recurrence(chunk: int, dtype: torch.dtype, bound: float) -> None:
    values = scan_inputs(256, 3, 64, dtype)
    assert relative(scan(*values, chunk), recurrence(*values)) < bound


@DTYPES
@random_shapes
@given(tokens=TOKENS, chunk=st.integers(1, 70))
def test_a_scan_without_decay_is_causal_linear_attention(
    tokens: int, chunk: int, dtype: torch.dtype, bound: float
) -> None:
    x, step, rate, b, c = scan_inputs(tokens, 2, 8, dtype)
    scores = (c @ b.transpose(1, 2)).tril()
    expected = torch.einsum("bts,bshp->bthp", scores, x * step[..., None])
    assert relative(scan(x, step, rate * 0, b, c, chunk), expected) < bound
    assert relative(scan(x, step, rate, b, c, chunk), expected) > bound


@DTYPES
@random_shapes
@given(tokens=TOKENS, heads=st.integers(1, 4), size=st.integers(1, 9))
def test_linear_attention_is_the_same_in_either_order(
    tokens: int, heads: int, size: int, dtype: torch.dtype, bound: float
) -> None:
    q, k, v = noise(3, 2, heads, tokens, size, dtype=dtype)
    weights = (elu(q) + 1) @ (elu(k) + 1).transpose(2, 3)
    expected = (weights / weights.sum(dim=3, keepdim=True)) @ v
    found = KernelAttention(heads * size, heads).mix(q, k, v)
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
    assert not torch.allclose(found, weights @ v, rtol=bound, atol=bound)  # the norm matters


@DTYPES
@random_shapes
@given(tokens=TOKENS, heads=st.sampled_from([1, 2, 4]))
def test_a_self_graft_with_copied_weights_is_bit_equal(
    tokens: int, heads: int, dtype: torch.dtype, bound: float
) -> None:
    hidden = noise(2, tokens, 16, dtype=dtype)
    for original, graft in (
        (Attention(16, heads=heads, dim_head=16 // heads, bias=True), SoftmaxAttention(16, heads)),
        (DiffusersFeedForward(16, activation_fn="gelu-approximate"), FeedForward(16, 64)),
    ):
        original, graft = original.to(dtype), graft.to(dtype)
        assert not torch.equal(graft(hidden), original(hidden))
        inherit(projections(original), graft)
        assert torch.equal(graft(hidden), original(hidden))


@DTYPES
@random_shapes
@given(tokens=TOKENS, wider=st.integers(65, 130), unused=st.integers(1, 40))
def test_an_mlp_keeps_its_function_when_it_gains_or_loses_idle_channels(
    tokens: int, wider: int, unused: int, dtype: torch.dtype, bound: float
) -> None:
    original = DiffusersFeedForward(16, activation_fn="gelu-approximate").to(dtype)
    hidden = noise(2, tokens, 16, dtype=dtype)
    with torch.no_grad():
        grown, cut = FeedForward(16, wider).to(dtype), FeedForward(16, 64 - unused).to(dtype)
        inherit(projections(original), grown)
        torch.testing.assert_close(grown(hidden), original(hidden), rtol=0, atol=bound)
        inherit(projections(original), cut)
        assert not torch.allclose(cut(hidden), original(hidden), rtol=0, atol=bound)
        original.get_submodule("net.2").get_parameter("weight")[:, torch.randperm(64)[:unused]] = 0
        inherit(projections(original), cut)
        torch.testing.assert_close(cut(hidden), original(hidden), rtol=0, atol=bound)


@DTYPES
@random_shapes
@given(tokens=TOKENS, data=st.data())
def test_mlp_hyena_x_mixes_channels_and_no_tokens(
    tokens: int, data: st.DataObject, dtype: torch.dtype, bound: float
) -> None:
    token = data.draw(st.integers(0, tokens - 1))
    module = shuffled(GatedChannels(8, 16, 4, tokens), dtype)
    assert changed(module, noise(1, tokens, 8, dtype=dtype), token) == [token]
    with pytest.raises(ValueError, match=f"built for {tokens} tokens, not for {tokens + 1}"):
        module(noise(1, tokens + 1, 8, dtype=dtype))
