"""`graft export`: the model of a finished run as a folder that diffusers loads."""

import hashlib
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from json import dumps, loads
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.actions import run_id_of
from service.cli.console import Refused, err, escape, out, say
from service.cli.options import AsJson, Url, connect
from service.cli.progress import follow
from service.client import GraftlabClient

STAGE, CARD, CONTENT = "export", "card.json", "content/"


def export_command(
    run: Annotated[str, typer.Argument(help="Run id, or the beginning of it.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    licence: Annotated[
        str | None, typer.Option(help="Licence of the graft; default: that of its backbone.")
    ] = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Write the model of a run as a folder: weights, code, model card, design.

    The cluster makes it. A broken download goes on where it stopped when the command is repeated.
    """
    if folder.exists():
        raise Refused([f"{folder} exists; name a folder that does not"])
    client = connect(url)
    request = {"run": run_id_of(client, run), **({"licence": licence} if licence else {})}
    export_run = client.export(request).run_id
    detail = follow(client, [export_run], console=err if json else out)[0]
    if detail.state != "SUCCEEDED":
        say([f"{detail.state.lower()}: {detail.message or detail.reason}"])
        raise typer.Exit(1)
    try:
        size = download(client, export_run, folder)
    except OSError as error:
        raise Refused([f"{error.filename or folder}: {error.strerror or error}"]) from error
    if json:
        out.out(dumps({"folder": str(folder), "run": export_run, "bytes": size}), highlight=False)
    else:
        out.print(f"wrote {escape(str(folder))}")


def download(client: GraftlabClient, run_id: str, folder: Path) -> int:
    """Write all files of an export and return their bytes; the folder appears once all are right.

    Files that an earlier call has begun, in a hidden folder next to it, are continued. Raises Refused for a
    file that is not what the lab published.
    """
    part = _own_folder(folder.with_name(f".{folder.name}.part"))
    card = loads(client.artifact(run_id, STAGE, CARD))
    for name, digest in _digests(card).items():
        file = part / name
        file.parent.mkdir(parents=True, exist_ok=True)
        # What an earlier call has begun may be of another export: then the file is fetched as a whole.
        for _ in range(2):
            if not _is_right(file, digest):
                client.continue_artifact(run_id, STAGE, name, file)
            if _is_right(file, digest):
                break
            file.unlink()
        else:
            raise Refused([f"{name} is not what the lab published; repeat the command"])
    for file in part.rglob("*"):
        if file.is_file() and file.relative_to(part).as_posix() not in _digests(card):
            file.unlink()
    part.replace(folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _own_folder(part: Path) -> Path:
    """Make the hidden folder. Raises Refused for another user's, whose links would be followed."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        part.mkdir()
    found = part.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Refused([f"{part} is not a folder of yours; remove it, or name another folder"])
    return part


def _digests(card: Mapping[str, Any]) -> dict[str, str]:
    """File name within the export -> SHA-256. Raises Refused for a name that leads out of the folder."""
    published = {**card["files"], card["file"]: card["sha256"]}
    found = {str(name).removeprefix(CONTENT): str(digest) for name, digest in published.items()}
    for name in found:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Refused([f"the lab names a file {name!r}, which is outside the folder"])
    return found


def _is_right(file: Path, digest: str) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == digest
