"""`graft budget`: limits and use of the lab, users and tags."""

from typing import Annotated, Any

import typer

from service.cli.console import Refused, escape, out, print_json, say, table
from service.cli.options import AsJson, Url, connect
from service.client import GraftlabClient
from service.formatting import engineering
from service.schemas.runs import AccountView


def budget_command(
    account: Annotated[
        str | None, typer.Argument(help="`lab`, `user/NAME` or `tag/NAME`: show only this account.")
    ] = None,
    device_seconds: Annotated[float | None, typer.Option(min=1e-9)] = None,
    flops: Annotated[float | None, typer.Option(min=1e-9)] = None,
    training_images: Annotated[int | None, typer.Option(min=1)] = None,
    share: Annotated[float | None, typer.Option(min=1e-12, help="Share of pretraining compute.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=0)] = None,
    max_running: Annotated[int | None, typer.Option(min=0)] = None,
    max_cpus: Annotated[int | None, typer.Option(min=0)] = None,
    max_gpus: Annotated[int | None, typer.Option(min=0)] = None,
    max_registered_bytes: Annotated[int | None, typer.Option(min=0, help="Of what a user registers.")] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", help="A limit to remove, such as flops; `all` removes every one."),
    ] = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Show accounts with their limits and use; limits given as options are set, the others stay."""
    options = {
        "device-seconds": device_seconds,
        "flops": flops,
        "training-images": training_images,
        "share": share,
        "max-queued": max_queued,
        "max-running": max_running,
        "max-cpus": max_cpus,
        "max-gpus": max_gpus,
        "max-registered-bytes": max_registered_bytes,
    }
    changes = _changes({name: limit for name, limit in options.items() if limit is not None}, remove or [])
    accounts = _accounts(connect(url), account, changes)
    print_json(accounts) if json else _show_accounts(accounts)


LIMITS = {
    "device-seconds": "device_seconds",
    "flops": "flops",
    "training-images": "training_images",
    "share": "share_of_pretraining",
    "max-queued": "max_queued",
    "max-running": "max_running",
    "max-cpus": "max_cpus",
    "max-gpus": "max_gpus",
    "max-registered-bytes": "max_registered_bytes",
}
"""Name of a limit's option -> its field."""


def _accounts(client: GraftlabClient, account: str | None, changes: dict[str, Any]) -> list[AccountView]:
    """Return the named account after these changes, or all accounts. Raises Refused."""
    if account is None and changes:
        raise Refused(["limits need an account: name `lab`, `user/NAME` or `tag/NAME`"])
    if account is None:
        return client.accounts()
    if changes:
        return [client.change_limits(*_account(account), *_budget_and_quotas(changes))]
    return _one_account(client, account)


def _changes(new: dict[str, Any], removed: list[str]) -> dict[str, Any]:
    """Return the changes by field; None removes a limit. Raises Refused."""
    to_remove = list(LIMITS) if "all" in removed else removed
    unknown = [name for name in to_remove if name not in LIMITS]
    if unknown:
        raise Refused([f"--remove {unknown[0]!r} is not a limit; choose from {', '.join(LIMITS)} or all"])
    both = [name for name in to_remove if name in new and "all" not in removed]
    if both:
        raise Refused([f"{both[0]} cannot be set and removed at once"])
    changes = dict.fromkeys(to_remove) | new
    return {LIMITS[name]: limit for name, limit in changes.items()}


def _budget_and_quotas(changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split changes into those of the budget and those of the quotas."""
    quotas = {name: limit for name, limit in changes.items() if name.startswith("max_")}
    return {name: limit for name, limit in changes.items() if name not in quotas}, quotas


def _one_account(client: GraftlabClient, account: str) -> list[AccountView]:
    """Return the account in a list; an account without use and limits gives an empty list and a message."""
    key = _account(account)
    matching = [row for row in client.accounts() if (row.scope, row.name) == key]
    if not matching:
        say([f"{account} has used nothing and has no limits"])
    return matching


def _account(text: str) -> tuple[str, str]:
    scope, _, name = text.partition("/")
    if scope not in ("lab", "user", "tag") or (not name and scope != "lab"):
        raise Refused([f"{text!r} is not an account; write lab, user/NAME or tag/NAME"])
    return scope, name or "lab"


def _show_accounts(accounts: list[AccountView]) -> None:
    columns = ("device-s", "FLOPs", "images", "of pretraining")
    rows = table("account", *columns, "quotas", right=columns)
    for account in accounts:
        limits, spent = account.limits, account.spent
        rows.add_row(
            account.scope if account.scope == "lab" else f"{account.scope} {escape(account.name)}",
            _of(spent.device_seconds, limits.device_seconds),
            _of(spent.flops, limits.flops),
            _of(spent.training_images, limits.training_images),
            _of(account.share_of_pretraining, limits.share_of_pretraining),
            _quotas(account),
        )
    if accounts:
        out.print(rows)


def _of(used: float, limit: float | None) -> str:
    return engineering(used) if limit is None else f"{engineering(used)} / {engineering(limit)}"


def _quotas(account: AccountView) -> str:
    kinds = ("queued", "running", "cpus", "gpus")
    limits = {kind: getattr(account, f"max_{kind}") for kind in kinds}
    quotas = [f"{most} {kind}" for kind, most in limits.items() if most is not None]
    size = account.max_registered_bytes
    return ", ".join([*quotas, *([] if size is None else [f"{engineering(size)}B registered"])])
