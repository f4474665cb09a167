"""`graft webhook`: addresses that receive a message when something has ended."""

import time
from typing import Annotated, Any

import typer

from service.cli.console import All, Yes, confirm, escape, first_of, out, print_json, table
from service.cli.options import AsJson, Url, connect
from service.schemas.webhooks import HOOK_TYPES, DeliveryPage, DeliveryState, DeliveryView

webhook_app = typer.Typer(
    help="Addresses that receive a message when something has ended.", no_args_is_help=True
)
WebhookId = Annotated[int, typer.Argument(min=1, help="Id of a webhook, as `graft webhook ls` shows it.")]
TEST_SECONDS = 20.0


@webhook_app.command("add")
def add_command(
    address: Annotated[str, typer.Argument(help="Address to send to: http or https.")],
    type_: Annotated[
        list[str] | None, typer.Option("--type", help=f"{', '.join(HOOK_TYPES)}; repeat for several.")
    ] = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Register an address and print its signing secret, this once."""
    hook = connect(url).add_webhook(address, list(type_ or ()))
    print_json(hook) if json else out.out(f"{hook.id}  {hook.secret}", highlight=False)


@webhook_app.command("ls")
def list_command(url: Url = None, json: AsJson = False) -> None:
    """List webhooks, newest first, without their secrets."""
    hooks = connect(url).webhooks()
    if json:
        return print_json(hooks)
    rows = table("id", "address", "types", "delivered", "waiting", "failed", "last error")
    for hook in hooks:
        counts = map(str, (hook.delivered, hook.pending, hook.failed))
        types = ", ".join(hook.types)
        rows.add_row(str(hook.id), escape(hook.url), types, *counts, escape(hook.last_error or ""))
    return out.print(rows)


@webhook_app.command("rm")
def remove_command(webhook_id: WebhookId, url: Url = None, yes: Yes = False) -> None:
    """Remove a webhook; it receives nothing more."""
    confirm(f"Remove webhook {webhook_id}? Its waiting messages will not be delivered.", yes)
    hook = connect(url).remove_webhook(webhook_id)
    out.print(f"webhook {hook.id} is removed")


@webhook_app.command("deliveries")
def deliveries_command(
    webhook_id: WebhookId,
    state: Annotated[DeliveryState | None, typer.Option(help="Show only deliveries in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of rows.")] = 50,
    everything: All = False,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """List deliveries to a webhook, newest first."""
    deliveries = connect(url).all_deliveries(webhook_id, min(limit + 1, 200), state=state)
    rows, more = first_of(deliveries, limit, everything, "deliveries")
    print_json(
        DeliveryPage(deliveries=rows, next_cursor=rows[-1].id if more else None)
    ) if json else out.print(_table(rows))


def _table(deliveries: list[DeliveryView]) -> Any:
    rows = table("id", "type", "of", "state", "attempts", "status", "error", "written")
    for delivery in deliveries:
        status, error = str(delivery.status or ""), escape(delivery.error or "")
        written = f"{delivery.created_at:%Y-%m-%d %H:%M:%S}"
        names = (delivery.message_id, delivery.type, delivery.subject, delivery.state)
        rows.add_row(*names, str(delivery.attempts), status, error, written)
    return rows


@webhook_app.command("test")
def try_command(webhook_id: WebhookId, url: Url = None) -> None:
    """Send a test message and wait for its delivery; exit code 1 unless it arrives."""
    client = connect(url)
    delivery = client.try_webhook(webhook_id)
    end = time.monotonic() + TEST_SECONDS
    while delivery.state == "PENDING" and not delivery.error and time.monotonic() < end:
        time.sleep(0.5)
        delivery = next(
            row for row in client.deliveries(webhook_id, limit=200).deliveries if row.id == delivery.id
        )
    if delivery.state == "DELIVERED":
        return out.print(f"delivered: answered with status {delivery.status}")
    out.print(escape(delivery.error or "not sent yet; does a scheduler run?"))
    raise typer.Exit(1)
