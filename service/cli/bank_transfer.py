"""`graft bank export` and `graft bank import`: scions from one lab to another, as a file."""

import socket
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated

import typer

from grafting_core.specs.backbone import backbone_cards, card_named, cards_with_digest
from grafting_core.specs.registration import CHECKPOINTS
from grafting_core.storage.bank import Bank
from grafting_core.storage.bank_transfer import export_scions, import_scions, matching_keys
from grafting_core.storage.storage import Storage
from service.cli.console import Refused, escape, out, print_json, say
from service.cli.discovery import data_folder
from service.cli.extras import require
from service.cli.options import AsJson
from service.formatting import engineering
from service.settings import Settings

Data = Annotated[Path, typer.Option("--data", help="Folder of the lab's databases, storage and logs.")]
OURS = Path("graftlab-data")


def export_command(
    keys: Annotated[list[str], typer.Argument(help="Keys of scions, or how they begin; then the file.")],
    everything: Annotated[bool, typer.Option("--all", help="Every scion; name the file alone.")] = False,
    data: Data = OURS,
) -> None:
    """Write scions of the lab on this machine to a file, for another lab. Its last argument is that file."""
    *prefixes, file = keys
    if bool(prefixes) is everything:
        raise Refused(["name keys and then the file, or --all and the file alone"])
    settings = _settings(data)
    bank = Bank(Storage(settings.storage))
    try:
        chosen = (
            [key for key in bank.names() if bank.has(key)] if everything else matching_keys(bank, prefixes)
        )
        size = export_scions(bank, chosen, Path(file), socket.gethostname())
    except (ValueError, OSError) as error:
        raise Refused([_words(error)]) from error
    out.print(f"{len(chosen)} scions, {engineering(size)}B: {escape(file)}")


def import_command(
    file: Annotated[
        Path, typer.Argument(help="File that `graft bank export` has written, or a checkpoint of stage 1.")
    ],
    backbone: Annotated[
        str | None, typer.Option(help="Of a checkpoint: the backbone that its operator is for.")
    ] = None,
    block: Annotated[
        int | None, typer.Option(min=0, help="Of a checkpoint: the block; by default as its path names it.")
    ] = None,
    unknown_backbones: Annotated[
        bool,
        typer.Option("--unknown-backbones", help="Also scions of backbones that this lab does not have."),
    ] = False,
    data: Data = OURS,
    json: AsJson = False,
) -> None:
    """Add scions of another lab to the bank of the lab on this machine; nothing is overwritten.

    A checkpoint (.pt) of stage 1 holds one operator, which becomes a scion of the backbone that is named.
    """
    settings = _settings(data)
    require("lab", "bank import")
    # Loaded by name, since the base package, whose command line this is, has no database.
    resolve_name("service.domain.registry:load_registered")(settings.database_url)
    if str(file).endswith(CHECKPOINTS):
        key = _import_operator(settings, file, backbone, block)
        return print_json({"key": key}) if json else out.print(key)
    if backbone is not None or block is not None:
        raise Refused(["--backbone and --block go with a checkpoint (.pt) of stage 1"])
    try:
        found = import_scions(
            Bank(Storage(settings.storage)),
            file,
            lambda digest: bool(cards_with_digest(digest)),
            unknown_too=unknown_backbones,
        )
    except (ValueError, OSError) as error:
        raise Refused([_words(error)]) from error
    if json:
        return print_json(found)
    if found.unknown:
        names = ", ".join(found.backbones)
        say([f"{len(found.unknown)} scions are left out: this lab has no backbone {names}"])
    new, old = len(found.new), len(found.present)
    return out.print(f"{new} scions added, {old} were there already (from {escape(found.origin)})")


def _import_operator(settings: Settings, file: Path, backbone: str | None, block: int | None) -> str:
    """Publish the operator in a checkpoint; its key. Raises Refused."""
    card = card_named(backbone) if backbone else None
    if card is None:
        raise Refused([f"name with --backbone what the operator is for: {', '.join(backbone_cards())}"])
    publish = resolve_name("grafting_core.backbones.imported_scions:import_operator")
    try:
        key: str = publish(Bank(Storage(settings.storage)), card, file, block)
    except (ValueError, OSError) as error:
        raise Refused([_words(error)]) from error
    return key


def _settings(data: Path) -> Settings:
    """Of the lab of a data folder. Raises Refused where there is none."""
    folder = data_folder(data)
    if not folder.is_dir():
        raise Refused([f"there is no lab in {folder}; name its folder with --data"])
    return Settings(data_dir=folder)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def install(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("export")(export_command)
    app.command("import")(import_command)
