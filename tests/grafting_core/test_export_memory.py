"""Reading a model and exporting a graft of it take less memory than twice the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grafting_core.storage.tensor_files import write_safetensors
from tests.support.diffusers_folders import SAFETENSORS, write_folder

EXPORT = """
import json, resource, sys
from pathlib import Path
from safetensors.torch import load_file
from grafting_core import export_model, load_grafted
from tests.support.builders import design_of
def peak(): return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder = Path(sys.argv[1])
before = peak()
backbone = load_grafted(folder / "model")
read = peak()
design = design_of(backbone)
state = load_file(folder / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
export_model(backbone, design, state, folder / "out")
print(json.dumps([read - before, peak() - before]))
"""


@pytest.mark.large
def test_an_export_takes_less_than_twice_the_model(tmp_path: Path) -> None:
    """The code of the design's operators, the decoder and a tensor at a time come on top of the model."""
    write_folder(tmp_path / "model", num_attention_heads=8, attention_head_dim=64, num_layers=14)
    size = (tmp_path / "model" / "transformer" / SAFETENSORS).stat().st_size
    assert size > 2 * 10**8
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    read, whole = json.loads(done.stdout.splitlines()[-1])
    assert read < 1.5 * size
    assert whole < 2 * size
    files = [tmp_path / folder / "transformer" / SAFETENSORS for folder in ("model", "out")]
    before, after = map(load_file, files)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_files_are_those_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.arange(5), "c": torch.zeros(3).half()}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    write_safetensors(tmp_path / "ours", tensors, {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
