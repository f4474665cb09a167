"""`graft analyze`: attention locality and activation statistics of a backbone."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from grafting_core.specs.profile import BackboneProfile
from service.cli.console import err, out, print_json, say, table
from service.cli.options import Url, connect
from service.cli.progress import follow

Backbone = Annotated[str, typer.Argument(help="Name of a backbone, as `graft backbones` lists it.")]
Bands = Annotated[
    list[int] | None,
    typer.Option(
        "--band", help="Half-width of a band in tokens; repeat for several. Default: an eighth of the tokens."
    ),
]
Samples = Annotated[int, typer.Option(help="Number of samples to measure (the paper: 250).")]
Steps = Annotated[int, typer.Option(help="DDIM steps per sample (the paper: 50).")]
Figure = Annotated[
    Path | None,
    typer.Option(
        "--figure", help="File for the picture; default: in the working folder, named after the backbone."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the profile as JSON; no picture unless --figure.")
]


def analyze_command(
    backbone: Backbone,
    bands: Bands = None,
    samples: Samples = 250,
    steps: Steps = 50,
    figure: Figure = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Measure attention locality and activation statistics of a backbone on the cluster."""
    client = connect(url)
    request: dict[str, Any] = {"backbone": backbone, "samples": samples, "sampling_steps": steps}
    run_id = client.analyze(request | ({"bands": bands} if bands else {})).run_id
    run = follow(client, [run_id], console=err if json else out)[0]
    if run.state != "SUCCEEDED":
        say([f"{run.state.lower()}: {run.message or run.reason}"])
        raise typer.Exit(1)
    profile = BackboneProfile.model_validate_json(client.artifact(run_id, "analyze", "profile.json"))
    print_json(profile) if json else show_profile(profile)
    if figure or not json:
        place = figure or Path(f"{backbone.replace('/', '-')}-profile.png")
        place.write_bytes(client.artifact(run_id, "analyze", "profile.png"))
        if not json:
            out.print(f"picture: {place}")


def show_profile(profile: BackboneProfile) -> None:
    """Print one row per block: locality by band, then statistics of both operators' outputs."""
    out.print(f"[bold]{profile.backbone.name}[/]  {profile.samples} samples, {profile.sampling_steps} steps")
    out.print(_table(profile))
    uniform = ", ".join(f"L{row.band} {row.uniform:.3f}" for row in profile.locality)
    out.print(f"uniform attention would have {uniform}")


def _table(profile: BackboneProfile) -> Table:
    bands = [f"L{row.band}" for row in profile.locality]
    figures = ("variance", "kurtosis", "largest", "outliers")
    columns = [f"{part} {figure}" for part in ("attention", "mlp") for figure in figures]
    rows = table("block", *bands, *columns, right=("block", *bands, *columns))
    by_site = {(row.site.block, row.site.slot): row for row in profile.statistics}
    for block in range(len(profile.locality[0].blocks)):
        cells = [f"{row.blocks[block]:.3f}" for row in profile.locality]
        for slot in ("attention", "mlp"):
            statistics = by_site[block, slot]
            cells += [f"{statistics.variance:.3g}", f"{statistics.kurtosis:.3g}", f"{statistics.maximum:.3g}"]
            cells.append(f"{statistics.outlier_share:.2%}")
        rows.add_row(str(block), *cells)
    return rows
