"""`graft geneval`: score images against their prompts in a process that loads torch; needs no lab."""

from pathlib import Path
from typing import Annotated

import typer

from grafting_core.specs.geneval import Difference, GenEvalRequest, GenEvalScores, GenEvalView
from grafting_core.specs.prompt_judges import OFFICIAL, PROMPT_JUDGES
from service.cli.console import escape, out, print_json, table
from service.cli.evaluate import answer_of
from service.cli.options import AsJson


def geneval_command(
    images: Annotated[
        Path, typer.Argument(help="Folder in GenEval's layout: 00000/metadata.jsonl, 00000/samples/0000.png.")
    ],
    prompts: Annotated[
        Path, typer.Option("--prompts", help="The prompts: GenEval's evaluation_metadata.jsonl.")
    ],
    judge: Annotated[str, typer.Option(help=f"One of {', '.join(PROMPT_JUDGES)}.")] = OFFICIAL,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Folder of another model's images, of the same prompts and seeds, to compare with."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File of the results; default: results.jsonl in the folder."),
    ] = None,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score the tasks of an incomplete set; it has no overall score.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Score generated images by GenEval: whether they show what their prompts say."""
    request = GenEvalRequest(
        images=str(images),
        prompts=str(prompts),
        judge=judge,
        images_per_prompt=images_per_prompt,
        baseline=str(baseline) if baseline else None,
        output=str(output) if output else None,
        partial=partial,
    )
    view = answer_of(request, GenEvalView, "grafting_core.evaluation.geneval.cli", "geneval")
    print_json(view) if json else show_scores(view)


def show_scores(view: GenEvalView) -> None:
    """Print the official summary, the scores with intervals and differences, then notes and inputs."""
    out.print(view.summary, markup=False)
    out.print()
    _show_table(view)
    for note in view.scores.notes:
        out.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    fingerprint = view.scores.fingerprint
    weights = ", ".join(f"{part} {digest[:12]}" for part, digest in fingerprint.weights.items())
    out.print(
        f"evaluator {escape(fingerprint.evaluator)}{f' ({weights})' if weights else ''}", soft_wrap=True
    )
    out.print(f"prompts {view.scores.prompts_sha256[:12]}, results in {escape(view.results)}", soft_wrap=True)


def _show_table(view: GenEvalView) -> None:
    compared = view.comparison
    columns = ("baseline", "difference", "95 %", "") if compared else ()
    rows = table("task", "score", "95 %", *columns, right=("score", "baseline", "difference"))
    for task in view.scores.tasks:
        cells = _difference(view.baseline, task, compared.tasks.get(task)) if compared else ()
        rows.add_row(task, *_score(view.scores, task), *cells)
    cells = _difference(view.baseline, None, compared.overall) if compared else ()
    rows.add_row("overall", *_score(view.scores, None), *cells)
    out.print(rows)


def _score(scores: GenEvalScores, task: str | None) -> tuple[str, str]:
    """Score and interval of a task, or of all if it is None."""
    if task is None:
        value, interval = scores.overall, scores.interval
    else:
        value, interval = scores.tasks[task].score, scores.tasks[task].interval
    if value is None or interval is None:
        return "incomplete", ""
    return f"{value:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}"


def _difference(
    baseline: GenEvalScores | None, task: str | None, difference: Difference | None
) -> tuple[str, str, str, str]:
    if baseline is None or difference is None:
        return "", "", "", ""
    low, high = difference.interval
    score, _ = _score(baseline, task)
    return score, f"{difference.difference:+.4f}", f"{low:+.4f} to {high:+.4f}", difference.verdict
