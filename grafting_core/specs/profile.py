"""Profile of a backbone: result of an analysis."""

from typing import Annotated

from pydantic import Field

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.site import GraftSite

Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]


class BandLocality(Frozen):
    """Attention mass within `band` tokens in raster order, block by block (paper Eq. 3).

    `uniform` is the mass of attention that weighs all tokens equally.
    """

    band: Annotated[int, Field(ge=0)]
    uniform: Share
    blocks: tuple[Share, ...]


class SiteStatistics(Frozen):
    """Statistics of all output values of the operator at one site (paper section 3.3).

    `kurtosis` is 3 for a normal distribution, `maximum` the largest magnitude; an outlier is more than six
    standard deviations from the mean.
    """

    site: GraftSite
    mean: float
    variance: float
    kurtosis: float
    maximum: float
    outlier_share: Share


class BackboneProfile(Frozen):
    """Locality of every block's attention and statistics of every operator's outputs."""

    backbone: BackboneRef
    samples: int
    sampling_steps: int
    seed: int
    locality: tuple[BandLocality, ...]
    statistics: tuple[SiteStatistics, ...]


def default_band(num_tokens: int) -> int:
    """Default half-width: an eighth of the tokens, like the paper's 32 of 256."""
    return max(1, num_tokens // 8)


def uniform_share(band: int, num_tokens: int) -> float:
    """Share of all pairs of tokens that are at most `band` apart."""
    reach = min(band, num_tokens - 1)
    return ((2 * reach + 1) * num_tokens - reach * (reach + 1)) / num_tokens**2
