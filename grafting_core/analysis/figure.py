"""Figure of a profile: locality by block (the paper's Fig. 2) and statistics of activations."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grafting_core.specs.dims import SLOTS
from grafting_core.specs.profile import BackboneProfile

COLOURS = {"attention": "#2a6f97", "mlp": "#c9622b"}


def draw_profile(profile: BackboneProfile) -> bytes:
    """PNG with a panel of locality, one line per band, and a panel of statistics, one line per slot."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    _draw_locality(upper, profile)
    _draw_statistics(lower, profile)
    figure.suptitle(f"{profile.backbone.name}: {profile.samples} samples, {profile.sampling_steps} steps")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw_locality(axes: Axes, profile: BackboneProfile) -> None:
    for row in profile.locality:
        (line,) = axes.plot(range(len(row.blocks)), row.blocks, marker="o", label=f"k = {row.band}")
        axes.axhline(row.uniform, color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xlabel="block", ylabel="attention mass within k tokens", ylim=(0, 1.02))
    axes.set_xticks(range(len(profile.locality[0].blocks)))
    axes.legend(title="dotted: uniform attention", fontsize="small")


def _draw_statistics(axes: Axes, profile: BackboneProfile) -> None:
    for slot in SLOTS:
        rows = [row for row in profile.statistics if row.site.slot == slot]
        blocks = [row.site.block for row in rows]
        colour = COLOURS[slot]
        deviations = [row.variance**0.5 for row in rows]
        axes.semilogy(blocks, deviations, color=colour, marker="o", label=f"{slot}: deviation")
        largest = [row.maximum for row in rows]
        axes.semilogy(blocks, largest, color=colour, linestyle="--", marker="^", label=f"{slot}: largest")
    axes.set(xlabel="block", ylabel="magnitude of outputs")
    axes.set_xticks(sorted({row.site.block for row in profile.statistics}))
    axes.legend(fontsize="small")
