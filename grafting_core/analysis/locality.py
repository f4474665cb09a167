"""How local is attention? Band-k locality of every block (paper section 3.4, Eq. 3).

L_k is the mean attention mass within k tokens in raster order: 1 where k reaches every token. Averages run
over heads, samples, both halves of the guidance and all sampling steps; the paper leaves the first open.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grafting_core.activations import visited
from grafting_core.backbones.dit import get_operator, projections
from grafting_core.backbones.loader import Backbone
from grafting_core.sampling import sample_latents
from grafting_core.spec.plans import EvaluationProtocol
from grafting_core.spec.site import GraftSite

PROTOCOL = EvaluationProtocol(samples=250, sampler="ddim", sampling_steps=50, guidance=1.5)
"""The paper's setting (facts 3.1)."""


def default_band(num_tokens: int) -> int:
    """An eighth of the tokens: the paper's 32 of 256."""
    return max(1, num_tokens // 8)


def band_mass(attention_BHTT: Tensor, bands: Sequence[int]) -> Tensor:
    """L_k of rows that sum to one, for every k of `bands`: [len(bands)], float64."""
    tokens = attention_BHTT.shape[-1]
    places = torch.arange(tokens, device=attention_BHTT.device)
    distance_TT = (places[:, None] - places).abs()
    mean_TT = attention_BHTT.double().mean(dim=(0, 1))
    return torch.stack([mean_TT[distance_TT <= band].sum() / tokens for band in bands])


def locality_profile(
    backbone: Backbone, bands: Sequence[int], protocol: EvaluationProtocol = PROTOCOL
) -> dict[int, list[float]]:
    """L_k of every block for every k, measured while sampling by `protocol`."""
    sites = [GraftSite(block=block, slot="attention") for block in range(backbone.card.depth)]
    gauges = {
        site: _Gauge(get_operator(backbone.transformer, site), backbone.card.dims.num_heads, bands)
        for site in sites
    }
    with visited(backbone.transformer, gauges):
        sample_latents(backbone, backbone.transformer, protocol, range(protocol.samples))
    return {band: [gauges[site].mean[index].item() for site in sites] for index, band in enumerate(bands)}


class _Gauge:
    """Averages one block's locality over the forwards it sees."""

    def __init__(self, attention: nn.Module, num_heads: int, bands: Sequence[int]) -> None:
        self._parts, self._heads, self._bands = projections(attention), num_heads, bands
        self._sum, self._forwards = torch.zeros(len(bands), dtype=torch.float64), 0

    @property
    def mean(self) -> Tensor:
        return self._sum / self._forwards

    def __call__(self, hidden_BTD: Tensor, output_BTD: Tensor) -> None:
        q_BHTE, k_BHTE = (
            self._parts[name](hidden_BTD).unflatten(2, (self._heads, -1)).transpose(1, 2) for name in "qk"
        )
        attention_BHTT = (q_BHTE @ k_BHTE.mT / q_BHTE.shape[3] ** 0.5).softmax(dim=3)
        self._sum += band_mass(attention_BHTT, self._bands).cpu()
        self._forwards += 1
