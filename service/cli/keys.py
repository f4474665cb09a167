"""`graft keys` and `graft open`: who may do what, and the browser's way in."""

from typing import Annotated

import typer

from service.cli.console import Yes, confirm, escape, out, print_json, table
from service.cli.options import AsJson, Url, connect
from service.schemas.runs import Role, Sees

keys_app = typer.Typer(help="API keys: who may do what.", no_args_is_help=True)


@keys_app.command("make")
def make_command(
    owner: Annotated[str, typer.Argument(help="Whose it is: a person or a program.")],
    role: Annotated[Role, typer.Option(help="Viewers read, runners submit, admins all.")] = "runner",
    sees: Annotated[Sees, typer.Option(help="All of the lab, or only what is the owner's own.")] = "lab",
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="Until it expires.")] = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Make a key and print it: this once, for it is kept nowhere."""
    limits = {} if days is None else {"days": days}
    made = connect(url).make_key(owner, role=role, sees=sees, **limits)
    print_json(made) if json else out.out(made.key, highlight=False)


@keys_app.command("ls")
def list_command(url: Url = None, json: AsJson = False) -> None:
    """Keys, newest first, without their secrets."""
    keys = connect(url).keys()
    if json:
        return print_json(keys)
    rows = table("id", "begins with", "owner", "role", "sees", "made", "last used", "until")
    for key in keys:
        until = "revoked" if key.revoked_at else f"{key.expires_at:%Y-%m-%d}" if key.expires_at else ""
        used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
        made = f"{key.created_at:%Y-%m-%d}"
        rows.add_row(str(key.id), key.prefix, escape(key.owner), key.role, key.sees, made, used, until)
    return out.print(rows)


@keys_app.command("revoke")
def revoke_command(key_id: Annotated[int, typer.Argument(min=1)], url: Url = None, yes: Yes = False) -> None:
    """End a key and its browser sessions."""
    confirm(f"Revoke key {key_id} for good?", yes)
    key = connect(url).revoke_key(key_id)
    out.print(f"key {key.id} of {escape(key.owner)} is revoked")


def open_command(url: Url = None) -> None:
    """Print a link that opens the pages in a browser: once, within ten minutes."""
    out.print(connect(url).login_link(), soft_wrap=True)
