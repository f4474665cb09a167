"""`graft`: the lab from the command line. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli import actions, bank_transfer, views
from service.cli.actions import run_id_of
from service.cli.admin import admin_app, tracking_app
from service.cli.analyze import analyze_command
from service.cli.bank import bank_app
from service.cli.check_operator import check_operator_command
from service.cli.console import All, Refused, err, escape, first_of, out, print_json, say, visible
from service.cli.doctor import doctor_command
from service.cli.documents import read_design, refusing
from service.cli.evaluate import evaluate_command, reference_app
from service.cli.export import export_command
from service.cli.failing import guarded
from service.cli.geneval import geneval_command
from service.cli.keys import keys_app, open_command
from service.cli.local_lab import demo_command, down_command, up_command
from service.cli.options import AsJson, Url, connect
from service.cli.progress import follow
from service.cli.registry import backbone_app, dataset_app, features_app, import_command
from service.cli.studies import study_app
from service.cli.webhooks import webhook_app
from service.client import GraftlabClient
from service.schemas.runs import RunDetail, RunPage

app = typer.Typer(
    help="Explore diffusion-transformer designs by grafting.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
DesignFile = Annotated[Path, typer.Argument(help="Design file, YAML or JSON; - for standard input.")]
Run = Annotated[str, typer.Argument(help="Run id, or the beginning of it.")]


@app.command()
def plan(file: DesignFile, url: Url = None, json: AsJson = False) -> None:
    """Show what a design would do and cost; nothing is stored."""
    answer = refusing(file, lambda: connect(url).plan(read_design(file)))
    print_json(answer) if json else views.show_plan(answer)


@app.command()
def submit(
    file: DesignFile,
    url: Url = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run; exit 0 only if it succeeds.")] = False,
    priority: Annotated[int, typer.Option(min=-1000, max=1000, help="Higher runs first.")] = 0,
    tag: Annotated[str | None, typer.Option(help="Label whose budget it is charged to as well.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Finetune and evaluate again, even if the lab has the results.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Queue a run of a design."""
    client = connect(url)
    document = read_design(file)
    if fresh and isinstance(document, dict):
        document["fresh"] = True
    options: dict[str, Any] = {"priority": priority, **({"tag": tag} if tag else {})}
    answer = refusing(file, lambda: client.submit(document, **options))
    if answer.notes and not json:
        say(f"note: {note}" for note in answer.notes)
    if not wait:
        print_json(answer) if json else out.print(f"{answer.run_id}  {client.url}/runs/{answer.run_id}")
        return
    _finish(follow(client, [answer.run_id], console=err if json else out)[0], client, json)


def _finish(run: RunDetail, client: GraftlabClient, json: bool) -> None:
    print_json(run) if json else views.show_run(run, client.url)
    if run.state != "SUCCEEDED":
        raise typer.Exit(1)


@app.command("ls")
def list_runs(
    url: Url = None,
    json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, help="Number of rows.")] = 50,
    everything: All = False,
) -> None:
    """List runs, newest first."""
    rows, more = first_of(connect(url).all_runs(min(limit + 1, 200)), limit, everything, "runs")
    if json:
        return print_json(RunPage(runs=rows, next_cursor=rows[-1].id if more else None))
    return out.print(views.runs_table(rows))


@app.command()
def show(run: Run, url: Url = None, json: AsJson = False) -> None:
    """Show one run: design, stages, metrics."""
    client = connect(url)
    detail = client.run(run_id_of(client, run))
    print_json(detail) if json else views.show_run(detail, client.url)


@app.command()
def watch(run: Run, url: Url = None, json: AsJson = False) -> None:
    """Follow a run to its end: stages, progress, time left. With --json, one event per line."""
    client = connect(url)
    run_id = run_id_of(client, run)
    if not json:
        return _finish(follow(client, [run_id])[0], client, json)
    for event in client.events(run_id):
        out.out(event.model_dump_json(), highlight=False)
    return None


@app.command()
def logs(
    run: Run,
    url: Url = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Attempt number; default: the newest.")] = None,
) -> None:
    """Print the output of an attempt."""
    client = connect(url)
    text = client.log(run_id_of(client, run), attempt)
    out.out(visible(text, keep="\n\r\t") if out.is_terminal else text, highlight=False)


@app.command()
def fetch(
    run: Run,
    name: Annotated[
        str, typer.Argument(help="Artifact, such as samples.npz, samples.csv, samples.png or model.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write; default: the artifact's name in the working folder."
        ),
    ] = None,
    url: Url = None,
) -> None:
    """Save a file that a run has made."""
    client = connect(url)
    detail = client.run(run_id_of(client, run))
    stage_by_artifact = {artifact: report.stage for report in detail.stages for artifact in report.artifacts}
    if name not in stage_by_artifact:
        raise Refused(
            [f"run {detail.id} has no {name!r}; it has {', '.join(stage_by_artifact) or 'no files yet'}"]
        )
    path = output or Path(name.replace("/", "-"))
    try:
        client.save_artifact(detail.id, stage_by_artifact[name], name, path)
    except OSError as error:
        raise Refused([f"{path}: {error.strerror}"]) from error
    out.print(f"wrote {escape(str(path))}")


@app.command()
def leaderboard(url: Url = None, json: AsJson = False, everything: All = False) -> None:
    """List finished runs by quality, grouped by evaluation protocol."""
    client = connect(url)
    board = client.whole_leaderboard() if everything else client.leaderboard()
    for group in board.groups:
        if len(group.rows) < group.total:
            say([f"{len(group.rows)} of {group.total} under {group.metric}; --all shows every one"])
    print_json(board) if json else views.show_leaderboard(board)


@app.command()
def operators(url: Url = None, json: AsJson = False) -> None:
    """List the operators to graft, with their cost at the dims of DiT-XL/2."""
    answer = connect(url).operators()
    print_json(answer) if json else views.show_operators(answer)


@app.command()
def latencies(
    url: Url = None,
    json: AsJson = False,
    kind: Annotated[
        str | None, typer.Option(help="Show only this kind of operator, `pairs` or `rest`.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Show only rows of this many tokens.")] = None,
) -> None:
    """List the seconds that operators take in their place, as studies measured them, by device."""
    table = connect(url).latencies(kind, tokens)
    print_json(table) if json else views.show_latencies(table)


@app.command()
def backbones(url: Url = None, json: AsJson = False) -> None:
    """List the backbones to graft onto."""
    answer = connect(url).backbones()
    print_json(answer) if json else views.show_backbones(answer)


app.command("open")(open_command)
app.command("doctor")(doctor_command)
app.add_typer(keys_app, name="keys")
app.add_typer(webhook_app, name="webhook")
app.add_typer(admin_app, name="admin")
app.add_typer(tracking_app, name="tracking")
bank_transfer.install(bank_app)
app.add_typer(bank_app, name="bank")
app.add_typer(backbone_app, name="backbone")
app.add_typer(dataset_app, name="dataset")
app.add_typer(features_app, name="features")
app.command("import")(import_command)
app.add_typer(study_app, name="study")
app.command("analyze")(analyze_command)
app.command("export")(export_command)
app.command("evaluate")(evaluate_command)
app.command("geneval")(geneval_command)
app.add_typer(reference_app, name="reference")
app.command("check-operator")(check_operator_command)
actions.install(app)
app.command("up")(up_command)
app.command("down")(down_command)
app.command("demo")(demo_command)


def main() -> None:
    """Run the command line; an error becomes a line on standard error."""
    sys.exit(guarded(lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    main()
