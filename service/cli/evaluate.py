"""`graft evaluate` and `graft reference`: evaluate in a separate process that loads torch; needs no lab."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from grafting_core.specs.documents.explain import explain, nearest
from grafting_core.specs.features import FEATURE_NETWORKS, FeatureSource
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.presets import PRESET_NAMES, PRESETS
from grafting_core.specs.requests import EvaluateRequest, ReferenceRequest, ReferenceView, ShowRequest
from grafting_core.specs.results import EvaluationReport
from service.cli.console import Refused, escape, out, print_json, table
from service.cli.documents import read_design
from service.cli.extras import require
from service.cli.options import AsJson

M = TypeVar("M", bound=BaseModel)
reference_app = typer.Typer(help="Reference statistics that samples are compared with.", no_args_is_help=True)
INTERVALS = (
    "intervals: those of fid_infinity, kid and label_accuracy cover the true value; the other metrics are "
    "biased at N samples, and their intervals cover the values of other draws of N samples"
)
Weights = Annotated[
    Path | None,
    typer.Option(help="Weight file or folder of the feature network, one that a lab registered too."),
]
Sha256 = Annotated[
    str | None, typer.Option(help="Expected SHA-256 of the weights; a file with another is not opened.")
]


def evaluate_command(
    subject: Annotated[
        str,
        typer.Argument(
            help="A diffusers folder, a published model (models/<key>), a backbone's name, "
            "an .npz of samples in ADM's format, or a folder of pictures."
        ),
    ],
    protocol: Annotated[
        str, typer.Option("--protocol", "-p", help=f"{', '.join(PRESET_NAMES)}, or a YAML or JSON file.")
    ] = "demo",
    reference: Annotated[
        str | None,
        typer.Option("--reference", "-r", help="A backbone's name, an .npz, or a folder of pictures."),
    ] = None,
    weights: Weights = None,
    sha256: Sha256 = None,
    json: AsJson = False,
) -> None:
    """Evaluate a model or samples of any project."""
    request = EvaluateRequest(
        subject=subject,
        protocol=protocol_named(protocol),
        is_preset=protocol in PRESET_NAMES,
        reference=reference,
        source=_source(weights, sha256),
    )
    report = answer_of(request, EvaluationReport)
    print_json(report) if json else show_report(report)


@reference_app.command("make")
def make_command(
    images: Annotated[Path, typer.Argument(help="An .npz in ADM's format or a folder of pictures.")],
    output: Annotated[Path, typer.Option("--output", "-o")],
    network: Annotated[str, typer.Option(help=f"One of {', '.join(FEATURE_NETWORKS)}.")] = "inception",
    weights: Weights = None,
    sha256: Sha256 = None,
    json: AsJson = False,
) -> None:
    """Compute the reference statistics of a set of images and save them."""
    if network not in FEATURE_NETWORKS and weights is None:
        raise Refused([f"unknown feature network {network!r}{nearest(network, FEATURE_NETWORKS)}"])
    request = ReferenceRequest(
        images=str(images), feature_network=network, output=str(output), source=_source(weights, sha256)
    )
    view = answer_of(request, ReferenceView)
    print_json(view) if json else show_reference(view)


@reference_app.command("show")
def show_command(file: Path, json: AsJson = False) -> None:
    """Show the content of a reference file, ours or ADM's."""
    view = answer_of(ShowRequest(file=str(file)), ReferenceView)
    print_json(view) if json else show_reference(view)


def protocol_named(name: str) -> EvaluationProtocol:
    """Return the protocol of a preset, or of a file with the protocol's fields. Raises Refused."""
    if name in PRESET_NAMES:
        return PRESETS[name].evaluate
    if not Path(name).exists():
        raise Refused([f"{name!r} is neither a preset ({', '.join(PRESET_NAMES)}) nor a file"])
    document = read_design(Path(name))
    try:
        return EvaluationProtocol.model_validate_json(json.dumps(document))
    except ValidationError as error:
        problems = explain(error, document, EvaluationProtocol)
        raise Refused([f"{name}: {problem}" for problem in problems]) from error


def _source(weights: Path | None, sha256: str | None) -> FeatureSource | None:
    if weights is None and sha256 is None:
        return None
    if weights is None or sha256 is None:
        raise Refused(
            ["--weights and --sha256 need each other: weights are opened only if the digest matches"]
        )
    try:
        return FeatureSource(path=str(weights), sha256=sha256)
    except ValidationError as error:
        raise Refused([f"--sha256: 64 hex digits in lower case are needed, not {sha256!r}"]) from error


def answer_of(
    request: BaseModel,
    model: type[M],
    module: str = "grafting_core.evaluation.cli",
    command_name: str = "evaluate",
) -> M:
    """Return a module's answer to a request, computed in a process of its own. Raises Refused."""
    require("core", command_name)
    command = [sys.executable, "-P", "-m", module, request.model_dump_json()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        raise typer.Exit(1)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "refused" in answer:
        raise Refused([answer["refused"]])
    return model.model_validate_json(json.dumps(answer))


def show_report(report: EvaluationReport) -> None:
    """Print metrics with intervals and the meaning of these, then warnings, then the inputs' digests."""
    rows = table("metric", "value", "95 %", right=("value",))
    for name, value in report.values.items():
        interval = report.intervals.get(name)
        rows.add_row(name, f"{value:,.5g}", f"{interval[0]:,.5g} to {interval[1]:,.5g}" if interval else "")
    out.print(rows)
    if report.intervals:
        out.print(INTERVALS)
    for warning in report.warnings:
        out.print(f"[yellow]note[/] {escape(warning)}", soft_wrap=True)
    fingerprint = report.fingerprint
    out.print(f"protocol {fingerprint.digest[:12]}, reference {fingerprint.reference[:12]}, ", end="")
    out.print(
        f"feature network {str(fingerprint.feature_network)[:12]}, samples {report.samples_digest[:12]}"
    )


def show_reference(view: ReferenceView) -> None:
    """Print one line per property."""
    for name, value in view.model_dump(exclude={"notes"}).items():
        out.print(f"{name.replace('_', ' ')}: {'not known' if value is None else value}")
    for note in view.notes:
        out.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
