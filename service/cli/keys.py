"""`graft keys` and `graft open`: API keys with their rights, and login links for the browser."""

from typing import Annotated

import typer

from service.cli.console import Yes, confirm, escape, out, print_json, table
from service.cli.options import AsJson, Url, connect
from service.schemas.keys import KeyView
from service.schemas.runs import Role, Sees

keys_app = typer.Typer(help="API keys and their rights.", no_args_is_help=True)


@keys_app.command("make")
def make_command(
    owner: Annotated[str, typer.Argument(help="Owner of the key: a person or a program.")],
    role: Annotated[
        Role, typer.Option(help="Viewers read, runners submit, admins do everything.")
    ] = "runner",
    sees: Annotated[
        Sees, typer.Option(help="See the whole lab, or only the owner's runs and studies.")
    ] = "lab",
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="Days until it expires.")] = None,
    registers: Annotated[
        bool, typer.Option("--registers", help="May register backbones, data sets and feature networks.")
    ] = False,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Make a key and print it once; it is stored nowhere."""
    limits = {} if days is None else {"days": days}
    new_key = connect(url).make_key(owner, role=role, sees=sees, registers=registers, **limits)
    print_json(new_key) if json else out.out(new_key.key, highlight=False)


@keys_app.command("ls")
def list_command(url: Url = None, json: AsJson = False) -> None:
    """List keys, newest first, without their secrets."""
    keys = connect(url).keys()
    if json:
        return print_json(keys)
    rows = table("id", "begins with", "owner", "role", "sees", "registers", "made", "last used", "until")
    for key in keys:
        until = "revoked" if key.revoked_at else f"{key.expires_at:%Y-%m-%d}" if key.expires_at else ""
        used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
        created = f"{key.created_at:%Y-%m-%d}"
        rights = (key.role, key.sees, _registers(key))
        rows.add_row(str(key.id), key.prefix, escape(key.owner), *rights, created, used, until)
    return out.print(rows)


def _registers(key: KeyView) -> str:
    return "yes" if key.registers or key.role == "admin" else ""


@keys_app.command("revoke")
def revoke_command(key_id: Annotated[int, typer.Argument(min=1)], url: Url = None, yes: Yes = False) -> None:
    """End a key and its browser sessions."""
    confirm(f"Revoke key {key_id} permanently?", yes)
    key = connect(url).revoke_key(key_id)
    out.print(f"key {key.id} of {escape(key.owner)} is revoked")


def open_command(url: Url = None) -> None:
    """Print a link that opens the pages in a browser once, within ten minutes."""
    out.print(connect(url).login_link(), soft_wrap=True)
