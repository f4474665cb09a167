"""Other packages add operator kinds by entry points."""

import os
import subprocess
import sys
from pathlib import Path

SPEC = """
from typing import ClassVar, Literal
from grafting_core.specs.dims import OperatorFlops
from grafting_core.specs.operators.base import OperatorBase

class Half(OperatorBase):
    kind: Literal["half"] = "half"
    slots: ClassVar = ("mlp",)
    summary: ClassVar = "halves"
    factor: float = 0.5
    def num_params(self, dims): return 0
    def flops(self, dims, num_tokens=None): return OperatorFlops(operator=0, features=0)
"""
MODULE = """
from torch import nn

class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor
    def forward(self, hidden_BTD):
        return self.factor * hidden_BTD

def build(spec, dims):
    return Scale(spec.factor)
"""
USE = """
import torch
from grafting_core.operators.table import build_operator
from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.documents.designs import parse_submission
edit = {"replace": "mlp", "layers": [1], "with": {"kind": "half", "factor": 0.25}}
spec = parse_submission({"name": "a", "backbone": "testbed/dit-fashion", "edits": [edit]})
module = build_operator(spec.design.edits[0].operator, backbone_cards()["testbed/dit-fashion"].dims)
assert module(torch.ones(1, 2, 3)).unique().item() == 0.25
"""


Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).parents[2]


def installed(folder: Path, modules: dict[str, str], points: str, command: list[str]) -> Done:
    """Run Python beside a package of these modules and entry points, as pip would leave it."""
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    info = folder / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


BROKEN = """
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import SpecError
def plan(kind):
    edit = {"replace": "attention", "layers": [1], "with": {"kind": kind}}
    return parse_submission({"name": "a", "backbone": "testbed/dit-fashion", "edits": [edit]})
assert plan("hyena_x").design.edits[0].operator.kind == "hyena_x"
try:
    plan("half")
except SpecError as error:
    print(error)
"""


def run(folder: Path, kind: str) -> Done:
    points = f"[graftlab.operator_specs]\n{kind} = halving_spec:Half\n"
    points += f"[graftlab.operator_builders]\n{kind} = halving:build\n"
    return installed(folder, {"halving_spec": SPEC, "halving": MODULE}, points, ["-c", USE])


def test_a_registered_kind_is_used_like_our_own(tmp_path: Path) -> None:
    done = run(tmp_path, "half")
    assert done.returncode == 0, done.stderr


def test_a_kind_that_cannot_be_loaded_is_named_and_harms_no_other(tmp_path: Path) -> None:
    points = "[graftlab.operator_specs]\nhalf = halving_spec:Half\n"
    done = installed(tmp_path, {"halving_spec": "import no_such_library"}, points, ["-c", BROKEN])
    assert done.returncode == 0, done.stderr
    reason = "halving_spec:Half No module named 'no_such_library'"
    assert f"operator kind 'half' of {reason}; it is left out" in done.stderr
    assert f"operator 'half' cannot be used: {reason}" in done.stdout


def test_a_kind_that_exists_is_refused_by_name(tmp_path: Path) -> None:
    done = run(tmp_path, "hyena_x")
    assert "operator kind 'hyena_x' of halving_spec:Half exists: this package" in done.stderr
