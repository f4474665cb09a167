"""Draw the training curves of the card: `python -m grafting_core.testbed.recipe.curves`."""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from grafting_core.testbed.plugin import ASSETS

PICTURE = Path(__file__).parent / "curves.png"


def main() -> None:
    """Draw one panel per network, loss over steps."""
    mpl.use("Agg")
    curves = json.loads((ASSETS / "curves.json").read_text())
    figure, panels = plt.subplots(1, len(curves), figsize=(10, 2.6), constrained_layout=True)
    for panel, (name, points) in zip(panels, curves.items(), strict=True):
        steps, losses = zip(*points, strict=True)
        panel.plot(steps, losses, color="#2f8f5b", linewidth=1.2)
        panel.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
