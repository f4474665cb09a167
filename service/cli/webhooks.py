"""`graft webhook`: whom the lab tells when something has ended."""

import time
from typing import Annotated, Any

import typer

from service.cli.console import All, Yes, confirm, escape, first_of, out, print_json, table
from service.cli.options import AsJson, Url, connect
from service.schemas.webhooks import HOOK_TYPES, DeliveryPage, DeliveryState, DeliveryView

webhook_app = typer.Typer(help="Whom the lab tells when something has ended.", no_args_is_help=True)
WebhookId = Annotated[int, typer.Argument(min=1, help="As `graft webhook ls` shows it.")]
TEST_SECONDS = 20.0


@webhook_app.command("add")
def add_command(
    address: Annotated[str, typer.Argument(help="Where to send: http or https.")],
    type_: Annotated[
        list[str] | None, typer.Option("--type", help=f"{', '.join(HOOK_TYPES)}; repeat for several.")
    ] = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Register an address and print the secret that signs: this once."""
    made = connect(url).add_webhook(address, list(type_ or ()))
    print_json(made) if json else out.out(f"{made.id}  {made.secret}", highlight=False)


@webhook_app.command("ls")
def list_command(url: Url = None, json: AsJson = False) -> None:
    """Webhooks, newest first, without their secrets."""
    hooks = connect(url).webhooks()
    if json:
        return print_json(hooks)
    rows = table("id", "address", "told of", "delivered", "waiting", "failed", "last error")
    for hook in hooks:
        counts = map(str, (hook.delivered, hook.pending, hook.failed))
        told = ", ".join(hook.types)
        rows.add_row(str(hook.id), escape(hook.url), told, *counts, escape(hook.last_error or ""))
    return out.print(rows)


@webhook_app.command("rm")
def remove_command(webhook_id: WebhookId, url: Url = None, yes: Yes = False) -> None:
    """Tell it nothing more."""
    confirm(f"Remove webhook {webhook_id}? What waits for it is not delivered any more.", yes)
    hook = connect(url).remove_webhook(webhook_id)
    out.print(f"webhook {hook.id} is removed")


@webhook_app.command("deliveries")
def deliveries_command(
    webhook_id: WebhookId,
    state: Annotated[DeliveryState | None, typer.Option(help="Only those that are so.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    everything: All = False,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """What a webhook was told, or should have been, newest first."""
    asked = connect(url).all_deliveries(webhook_id, min(limit + 1, 200), state=state)
    rows, more = first_of(asked, limit, everything, "deliveries")
    print_json(
        DeliveryPage(deliveries=rows, next_cursor=rows[-1].id if more else None)
    ) if json else out.print(_table(rows))


def _table(deliveries: list[DeliveryView]) -> Any:
    rows = table("id", "type", "of", "state", "attempts", "status", "error", "written")
    for each in deliveries:
        status, error = str(each.status or ""), escape(each.error or "")
        written = f"{each.created_at:%Y-%m-%d %H:%M:%S}"
        told = (each.message_id, each.type, each.subject, each.state)
        rows.add_row(*told, str(each.attempts), status, error, written)
    return rows


@webhook_app.command("test")
def try_command(webhook_id: WebhookId, url: Url = None) -> None:
    """Send it a message that tells of nothing, and wait for what comes of it; exit 1 unless it arrives."""
    client = connect(url)
    made = client.try_webhook(webhook_id)
    end = time.monotonic() + TEST_SECONDS
    while made.state == "PENDING" and not made.error and time.monotonic() < end:
        time.sleep(0.5)
        made = next(
            each for each in client.deliveries(webhook_id, limit=200).deliveries if each.id == made.id
        )
    if made.state == "DELIVERED":
        return out.print(f"delivered: answered with status {made.status}")
    out.print(escape(made.error or "not sent yet; does a scheduler run?"))
    raise typer.Exit(1)
