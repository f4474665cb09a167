"""A DiT-XL/2 of random weights is read, distilled, finetuned, kept and resumed in the memory predicted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FREE = 19_000_000_000
"""Bytes that must be free; what is predicted is 15 GB."""


def free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    [available] = [line for line in lines if line.startswith("MemAvailable")]
    return int(available.split()[1]) * 1024


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.full_size", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stderr)
    return done.stdout


@pytest.mark.large
@pytest.mark.timeout(1800)
def test_a_full_size_transformer_is_trained_in_the_memory_predicted(tmp_path: Path) -> None:
    if free_bytes() < FREE:
        pytest.skip(f"{free_bytes() / 1e9:.1f} GB of memory are free; {FREE / 1e9:.0f} are needed")
    run("write", str(tmp_path / "model"))
    found = json.loads(run("train", str(tmp_path / "model"), str(tmp_path / "kept")))
    (tmp_path / "kept" / "checkpoint").unlink()
    held = 674_834_720
    assert found["card_params"] == 749_834_720 + 84 or found["card_params"] / 1e6 == pytest.approx(
        749.8, abs=0.1
    )
    assert found["held_params"] == held
    assert found["averaged_params"] == pytest.approx(held, rel=1e-3)
    assert found["output_std"] > 0.1
    assert 0 < found["nmse"] < 100
    assert 0 < found["last_step"] < 1e-3  # one step of Adam at a rate of 1e-4
    for stage in ("finetune", "resume"):
        assert found[f"{stage}_bytes"] == pytest.approx(found["finetune_predicted"], rel=0.15)
    assert found["distill_bytes"] == pytest.approx(found["distill_predicted"], rel=0.15)
    # Reading checks one tensor at a time; loading holds the weights once, and the file that it maps.
    assert found["read_bytes"] < 3e9
    assert found["load_bytes"] < 4 * held + 2 * found["card_params"] + 1e9
    assert found["peak_bytes"] <= 1.15 * found["finetune_predicted"]
