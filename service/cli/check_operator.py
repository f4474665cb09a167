"""`graft check-operator`: health report of one kind of operator, made in a process that loads torch."""

import json
import subprocess
import sys
from typing import Annotated, Any

import typer

from grafting_core.specs.documents.explain import nearest
from grafting_core.specs.operators import KINDS
from service.cli.console import Refused, escape, out, print_json, table
from service.cli.extras import require
from service.cli.options import AsJson

MARKS = {True: "[green]ok[/]", False: "[red]FAILED[/]", None: "-"}
Kind = Annotated[str, typer.Argument(help="Kind of operator, as `graft operators` lists it.")]


def check_operator_command(kind: Kind, json: AsJson = False) -> None:
    """Probe one operator: reach, causality, gradients, formulas, precision. Needs no lab."""
    if kind not in KINDS:
        raise Refused([f"unknown operator {kind!r}{nearest(kind, KINDS)}; use one of {', '.join(KINDS)}"])
    findings = _findings(kind)
    print_json(findings) if json else out.print(_shown(findings))
    if any(finding["ok"] is False for finding in findings):
        raise typer.Exit(1)


def _findings(kind: str) -> list[dict[str, Any]]:
    require("core", "check-operator")
    command = [sys.executable, "-P", "-m", "grafting_core.surgery.check_operator", kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        raise typer.Exit(1)
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    return findings


def _shown(findings: list[dict[str, Any]]) -> object:
    rows = table("probe", "", "result")
    for finding in findings:
        rows.add_row(finding["probe"], MARKS[finding["ok"]], escape(finding["seen"]))
    return rows
