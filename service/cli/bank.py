"""`graft bank`: the distilled operators of a lab."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from grafting_core.specs.scions import ImportedScion, ScionCard
from service.cli.console import All, Refused, Yes, confirm, escape, first_of, out, print_json, say, table
from service.cli.documents import read_design, refusing
from service.cli.options import AsJson, Url, connect
from service.formatting import engineering

bank_app = typer.Typer(
    help="The bank: operators that were distilled once and are reused by every design.", no_args_is_help=True
)
MEBI = 2**20


@bank_app.command("ls")
def list_command(
    url: Url = None,
    json: AsJson = False,
    kind: Annotated[str | None, typer.Option(help="Show only this kind of operator.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Show only operators of this backbone.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of rows.")] = 200,
    everything: All = False,
) -> None:
    """List scions with their held-out error, the damage of swapping each in alone, and their cost."""
    rows_of = connect(url).all_scions(min(limit + 1, 200), kind=kind, backbone=backbone)
    scions, _ = first_of(rows_of, limit, everything, "scions")
    if json:
        return print_json(scions)
    columns = ("error", "swap damage", "steps", "device-s", "KiB")
    rows = table("key", "backbone", "site", "operator", *columns, "made by", "needed by", right=columns)
    for scion in sorted(scions, key=lambda scion: (scion.backbone, _natural(scion.site), scion.nmse or 0.0)):
        damage = "-" if scion.replace_one is None else f"{scion.replace_one:.2e}"
        error = "-" if scion.nmse is None else f"{scion.nmse:.4f}"
        figures = [error, damage, f"{scion.steps:,}", f"{scion.spend.device_seconds:.1f}"]
        names = [scion.key[:12], escape(scion.backbone), scion.site, escape(scion.operator)]
        rows.add_row(*names, *figures, f"{scion.size / 1024:.0f}", scion.made_by, scion.needed_by or "")
    out.print(rows)
    size = sum(scion.size for scion in scions)
    spent = sum(scion.spend.device_seconds for scion in scions)
    return out.print(f"{len(scions)} scions, {size / MEBI:.1f} MiB, {spent:.0f} device-s")


def _natural(site: str) -> tuple[object, ...]:
    """Sort key that puts `block 10` after `block 9`."""
    return tuple((0, int(word), "") if word.isdigit() else (1, 0, word) for word in site.split())


@bank_app.command("show")
def show_command(
    key: Annotated[str, typer.Argument(help="Key of a scion, or the beginning of one.")],
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Show one scion: errors and scores by timestep, curve, cost, provenance."""
    client = connect(url)
    hexadecimal = key != "" and set(key) <= set("0123456789abcdef")
    matching = client.scions(2, prefix=key).scions if hexadecimal else []
    if len(matching) != 1:
        raise Refused(
            [f"{len(matching) or 'no'} scions have a key beginning with {key!r}; `graft bank ls` lists them"]
        )
    card = client.scion(matching[0].key)
    print_json(card) if json else _show(card, matching[0].needed_by)


def _show(card: ScionCard, needed_by: str | None) -> None:
    made = datetime.fromtimestamp(card.made_at, UTC)
    scion = card.scion
    out.print(f"[bold]{scion.name}  {escape(scion.operator)}[/]  of {scion.backbone.name}  {card.key}")
    if isinstance(scion, ImportedScion):
        how = f"imported from {escape(scion.origin)} {made:%Y-%m-%d %H:%M} UTC by run {card.made_by}"
        return out.print(f"  {how}, {card.size / 1024:.0f} KiB")
    out.print(f"  made {made:%Y-%m-%d %H:%M} UTC by run {card.made_by} on {escape(card.hardware)}")
    spend = card.spend
    cost = f"{spend.device_seconds:.1f} device-s, {engineering(spend.flops)}FLOPs"
    ending = f"{card.ending} ({card.reason})" if card.reason else card.ending
    out.print(f"  {card.steps} steps of {scion.plan.batch_size}, {ending}, {cost}")
    out.print(f"  {card.size / 1024:.0f} KiB{f', needed by run {needed_by}' if needed_by else ''}")
    out.print(_by_timestep(card))
    for digest, scores in card.restored.items():
        out.print(f"  restored in design {digest[:12]}: noise {scores['restore_one/noise']:+.3e}")
    if card.curve:
        out.print("  loss " + "  ".join(f"{step}: {loss:.4f}" for step, loss in _thinned(card.curve)))
    return None


def _by_timestep(card: ScionCard) -> object:
    """Build a table of held-out error and swap damage, over all timesteps and by quarter."""
    measures = {"held-out error": "nmse", "swap damage, noise": "replace_one/noise"}
    measures["swap damage, variance"] = "replace_one/variance"
    values = {**card.errors, **card.scores}
    bins = [name.removeprefix("nmse/") for name in card.errors if name.startswith("nmse/")]
    rows = table("", "all", *bins, right=("all", *bins))
    for label, name in measures.items():
        names = [name, *(f"{name}/{part}" for part in bins)]
        rows.add_row(label, *(f"{values[key]:.3e}" if key in values else "-" for key in names))
    return rows


def _thinned(curve: tuple[tuple[int, float], ...], count: int = 6) -> list[tuple[int, float]]:
    stride = max(1, (len(curve) - 1) // (count - 1))
    return [*curve[: -stride or None : stride], curve[-1]][-count:]


@bank_app.command("verify")
def verify_command(url: Url = None, json: AsJson = False) -> None:
    """Read and verify every scion; damaged ones are moved aside and made again when needed.

    Exit code 1 if any is damaged.
    """
    answer = connect(url).verify_scions()
    if json:
        print_json(answer)
    else:
        for damage in answer.damaged:
            out.print(f"{damage.key}  {escape(damage.problem)}  moved aside", soft_wrap=True)
        out.print(f"{answer.checked} scions read, {len(answer.damaged)} damaged")
    if answer.damaged:
        raise typer.Exit(1)


@bank_app.command("gc")
def gc_command(
    url: Url = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Delete scions that no run has needed for this many days.")
    ] = None,
    max_mib: Annotated[
        float | None,
        typer.Option(min=0, help="Delete the longest unused scions until at most this many MiB remain."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    json: AsJson = False,
    yes: Yes = False,
) -> None:
    """Delete scions by age and size, but none that an unfinished run needs.

    Imported scions stay while the backbone that they came with is registered: nothing makes them again.
    """
    if older_than is None and max_mib is None:
        raise Refused(["name what to delete: --older-than DAYS, --max-mib SIZE, or both"])
    size = None if max_mib is None else int(min(max_mib * MEBI, 2**62))
    if not dry_run:
        confirm("Delete scions, which would have to be distilled again? --dry-run says how many.", yes)
    answer = connect(url).clear_scions(older_than_days=older_than, max_bytes=size, dry_run=dry_run)
    if json:
        return print_json(answer)
    verb = "would free" if answer.dry_run else "freed"
    kept = f"{answer.kept_for_runs} are needed by runs that have not ended"
    if answer.kept_imported:
        kept += f"; {answer.kept_imported} were imported and stay while their backbone is registered"
    what = f"{len(answer.removed)} scions and {answer.remains} remains"
    return out.print(f"{verb} {what}, {answer.bytes / MEBI:.1f} MiB; {kept}")


@bank_app.command("fill")
def fill_command(
    file: Annotated[Path, typer.Argument(help="Fill document, YAML or JSON; - for standard input.")],
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Queue one run that distils every operator at every site, ahead of the designs that will use them."""
    client = connect(url)
    answer = refusing(file, lambda: client.fill(read_design(file)))
    if answer.notes and not json:
        say(f"note: {note}" for note in answer.notes)
    print_json(answer) if json else out.print(f"{answer.run_id}  {client.url}/runs/{answer.run_id}")
