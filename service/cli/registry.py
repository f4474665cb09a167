"""`graft backbone`, `graft dataset` and `graft features`: register, list, show, verify and remove."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from grafting_core.specs.registration import CHECKPOINTS
from service.cli.console import Refused, Yes, confirm, err, escape, out, print_json, say, table
from service.cli.options import AsJson, Url, connect
from service.cli.progress import follow
from service.client import GraftlabClient
from service.formatting import engineering
from service.schemas.registry import RegisteredDetail, RegisteredView

Kind = Literal["backbones", "datasets", "features"]
backbone_app = typer.Typer(help="Register, list, check and remove backbones.", no_args_is_help=True)
dataset_app = typer.Typer(help="Register, encode, list, check and remove data sets.", no_args_is_help=True)
features_app = typer.Typer(
    help="Register, train, list, check and remove feature networks.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="Name in the lab.")]
Source = Annotated[
    Path | None,
    typer.Argument(help="Folder, or a backbone's checkpoint, on the lab's machine.", show_default=False),
]
Hub = Annotated[
    str | None, typer.Option("--from-hub", help="REPO@REVISION on the Hugging Face hub, to download.")
]
Licence = Annotated[str | None, typer.Option(help="Licence as its publisher names it, such as MIT.")]
Private = Annotated[bool, typer.Option("--private", help="Only you and admins can see it.")]
MaxBytes = Annotated[
    int | None, typer.Option(min=1, help="Reserve so many of your quota's bytes; default: all that are left.")
]
AnotherRevision = Annotated[
    bool,
    typer.Option(
        "--another-revision", help="Make it the next revision of a name that came from somewhere else."
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the run; exit 0 only if it succeeds.")]
Vae = Annotated[str | None, typer.Option(help="Folder of the autoencoder; `none` for pixels.")]
Revision = Annotated[int | None, typer.Option(min=1, help="Default: the newest; for rm, all.")]


@backbone_app.command("add")
def add_backbone(
    name: Name,
    path: Source = None,
    dataset: Annotated[str | None, typer.Option(help="Data set that it was trained on.")] = None,
    vae: Vae = None,
    licence: Licence = None,
    private: Private = False,
    max_bytes: MaxBytes = None,
    from_hub: Hub = None,
    file: Annotated[
        str | None, typer.Option(help="Checkpoint in the repository of --from-hub, taken alone.")
    ] = None,
    another_revision: AnotherRevision = False,
    wait: Wait = False,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Copy a folder in diffusers' format, or a checkpoint, into the lab, check it and derive its card.

    A checkpoint (.pt) is one of the original DiT's code or of a released graft; it takes --vae and --licence.
    """
    source = {"name": name, "path": _path(path), "hub": from_hub, "dataset": dataset, "vae": _vae(vae)}
    document: dict[str, Any] = source | {"file": file, "another_revision": another_revision or None}
    rights = {"licence": licence, "private": private, "max_bytes": max_bytes}
    _register("backbones", document | rights, wait, url, json)


def import_command(
    checkpoint: Annotated[Path, typer.Argument(help="File (.pt) on the lab's machine.")],
    name: Annotated[str, typer.Option(help="Under which the lab knows the backbone.")],
    vae: Vae = None,
    licence: Licence = None,
    dataset: Annotated[str | None, typer.Option(help="The data set that it was trained on.")] = None,
    private: Private = False,
    max_bytes: MaxBytes = None,
    another_revision: AnotherRevision = False,
    wait: Wait = False,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Make a released graft, or an original DiT, a backbone of the lab, and its operators scions of the bank.

    The design follows from the file; a tensor that is not known is refused by its name. A checkpoint has no
    autoencoder and names no licence: --vae and --licence do.
    """
    if not str(checkpoint).endswith(CHECKPOINTS):
        raise Refused([f"{checkpoint} is no checkpoint, which ends in {', '.join(CHECKPOINTS)}"])
    source = {"name": name, "path": _path(checkpoint), "dataset": dataset, "vae": _vae(vae)}
    document: dict[str, Any] = source | {"another_revision": another_revision or None}
    rights = {"licence": licence, "private": private, "max_bytes": max_bytes}
    _register("backbones", document | rights, wait, url, json)


@dataset_app.command("add")
def add_dataset(
    name: Name,
    path: Annotated[Path, typer.Argument(help="Encoded folder on the lab's machine.")],
    licence: Licence = None,
    private: Private = False,
    max_bytes: MaxBytes = None,
    wait: Wait = False,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Copy an encoded data set into the lab and verify it."""
    rights = {"licence": licence, "private": private, "max_bytes": max_bytes}
    _register("datasets", {"name": name, "path": _path(path)} | rights, wait, url, json)


@dataset_app.command("encode")
def encode_dataset(
    images: Annotated[Path, typer.Argument(help="Folder of images, tar or parquet, on the lab's machine.")],
    name: Annotated[str, typer.Option(help="Name of the data set in the lab.")],
    size: Annotated[
        int | None, typer.Option(min=4, help="Side of the square images, in pixels; default: 256.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Registered backbone whose autoencoder encodes.")
    ] = None,
    vae: Vae = None,
    labels_file: Annotated[
        str | None, typer.Option(help="A .csv or .json inside the folder; by default folders are classes.")
    ] = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Encode without labels.")] = False,
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0, help="Share (below 1) or number of images to hold out from training; default: 0.05."
        ),
    ] = None,
    channels: Annotated[int | None, typer.Option(min=1, max=3, help="3, or 1 for luma.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror every other training image.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the split into training and held-out images.")
    ] = None,
    licence: Licence = None,
    private: Private = False,
    max_bytes: MaxBytes = None,
    wait: Wait = False,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Encode images into a data set, on the cluster. A stopped run continues where it was."""
    share = int(held_out) if held_out is not None and held_out >= 1 else held_out
    settings = {"image_size": size, "labels_file": labels_file, "held_out": share, "channels": channels}
    settings |= {"seed": seed, "conditions": "none" if no_labels else None, "flip": flip or None}
    source = {"name": name, "images": _path(images), "backbone": backbone, "vae": _vae(vae)}
    rights = {"licence": licence, "private": private, "max_bytes": max_bytes}
    _register("datasets", {**source, **rights, "encode": _given(settings)}, wait, url, json)


@features_app.command("add")
def add_features(
    name: Name,
    path: Source = None,
    licence: Licence = None,
    private: Private = False,
    max_bytes: MaxBytes = None,
    from_hub: Hub = None,
    wait: Wait = False,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Copy the folder of a transformers or timm image model into the lab and check it."""
    rights = {"licence": licence, "private": private, "max_bytes": max_bytes}
    _register("features", {"name": name, "path": _path(path), "hub": from_hub} | rights, wait, url, json)


@features_app.command("train")
def train_features(
    dataset: Annotated[str, typer.Argument(help="Registered data set with labels.")],
    name: Annotated[str, typer.Option(help="Name of the network in the lab.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Number of training steps; default: 2000.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    private: Private = False,
    max_bytes: MaxBytes = None,
    wait: Wait = False,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Train a small classifier on a data set's classes, as a feature network for metrics."""
    settings = _given({"steps": steps, "seed": seed})
    rights = {"private": private, "max_bytes": max_bytes}
    document = {"name": name, "dataset": dataset, "train": settings or None}
    _register("features", document | rights, wait, url, json)


def _path(path: Path | None) -> str | None:
    """Return the absolute path, as text."""
    return None if path is None else str(path.expanduser().absolute())


def _vae(given: str | None) -> str | None:
    return given if given in (None, "none") else _path(Path(given))


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _register(kind: Kind, document: dict[str, Any], wait: bool, url: str | None, json: bool) -> None:
    client = connect(url)
    run_id = client.register(kind, _given(document)).run_id
    _finish(client, kind, str(document["name"]), run_id, wait, json)


def _finish(client: GraftlabClient, kind: Kind, name: str, run_id: str, wait: bool, json: bool) -> None:
    """Print the run's address, or follow the run and show what it has registered."""
    if not wait:
        run = client.run(run_id)
        print_json(run) if json else out.print(f"{run_id}  {client.url}/runs/{run_id}")
        return
    ended = follow(client, [run_id], console=err if json else out)[0]
    if ended.state != "SUCCEEDED":
        say([f"{ended.state.lower()}: {ended.message or ended.reason}"])
        raise typer.Exit(1)
    found = client.registered(kind, name)
    print_json(found) if json else _show(found)


def _add_commands(app: typer.Typer, kind: Kind) -> None:
    """Add the commands that all kinds have: ls, show, verify, rm."""

    @app.command("ls")
    def list_command(url: Url = None, json: AsJson = False) -> None:
        """List those of packages, then registered ones with their newest revision."""
        found = connect(url).all_registered(kind)
        print_json(found) if json else out.print(_table(found))

    @app.command("show")
    def show_command(name: Name, url: Url = None, json: AsJson = False) -> None:
        """Show one with its sizes, figures and revisions."""
        found = connect(url).registered(kind, name)
        print_json(found) if json else _show(found)

    @app.command("verify")
    def verify_command(name: Name, revision: Revision = None, url: Url = None, json: AsJson = False) -> None:
        """Read the lab's copy again, on the cluster. Exit code 1 if it is damaged."""
        client = connect(url)
        run_id = client.verify_registered(kind, name, revision).run_id
        _finish(client, kind, name, run_id, wait=True, json=json)

    @app.command("rm")
    def remove_command(
        name: Name, revision: Revision = None, url: Url = None, json: AsJson = False, yes: Yes = False
    ) -> None:
        """Remove it from the lab; refused while unfinished work needs it. Past runs stay."""
        what = name if revision is None else f"revision {revision} of {name}"
        confirm(f"Remove {what} with its files?", yes)
        gone = connect(url).remove_registered(kind, name, revision)
        if json:
            return print_json(gone)
        return out.print(f"{escape(name)}: {len(gone.revisions)} revisions, {engineering(gone.bytes)}B freed")


_add_commands(backbone_app, "backbones")
_add_commands(dataset_app, "datasets")
_add_commands(features_app, "features")


def _table(found: list[RegisteredView]) -> Any:
    rows = table("name", "", "revision", "size", "licence", "owner", right=("revision", "size"))
    for each in found:
        size = f"{engineering(each.size)}B" if each.size else ""
        revision = "" if each.revision is None else str(each.revision)
        owner = escape(each.owner) + (" (private)" if each.private else "")
        summary = each.summary if each.registering is None else f"being registered by run {each.registering}"
        summary = "damaged; register it again" if each.damaged else summary
        licence = escape(each.licence or "")
        rows.add_row(escape(each.name), escape(summary), revision, size, licence, owner)
    return rows


def _show(found: RegisteredDetail) -> None:
    private = ", private" if found.private else ""
    whose = "comes with a package" if found.shipped else f"{escape(found.owner)}'s{private}"
    out.print(f"[bold]{escape(found.name)}[/]  {escape(found.summary)}  ({whose})")
    if found.digest:
        out.print(f"  digest {found.digest}, licence {escape(found.licence or 'unknown')}")
    for name, value in found.figures.items():
        out.print(f"  {escape(name)} {value:,.6g}")
    for revision in found.revisions:
        state = "" if revision.state == "ready" else f"  {revision.state}"
        made = f"{revision.created_at:%Y-%m-%d %H:%M} UTC by run {revision.run_id}"
        size = f"{engineering(revision.size)}B"
        out.print(f"  revision {revision.revision}  {revision.digest[:12]}  {size}  {made}{state}")
    if found.damaged:
        out.print("  its files are damaged; register it again from its source")
    if found.registering:
        out.print(f"  run {found.registering} is registering another revision")
