"""Costs: parameters once, the clock beside the teacher's, memory that is really held."""

import pytest
import torch
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.evaluation.cost import (
    count_parameters,
    forward_job,
    hardware_of,
    paired_latency,
    peak_bytes,
)
from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.canonical import digest

CPU = torch.device("cpu")


def test_shared_parameters_count_once() -> None:
    shared = nn.Linear(4, 4)
    network = nn.ModuleDict({"a": shared, "b": shared, "t_embedder": nn.Linear(2, 3)})
    network.register_buffer("table", torch.zeros(7))
    found = count_parameters(network, grafted=20)
    assert (found.total, found.trainable, found.grafted) == (29, 29, 20)
    assert (found.embedding, found.buffers) == (9, 7)


def test_the_testbeds_count_is_its_cards(backbone: Backbone) -> None:
    found = count_parameters(backbone.transformer, 0)
    assert found.total == backbone_cards()["testbed/dit-fashion"].num_params
    assert 0 < found.embedding < found.total


def test_twice_the_work_is_slower_and_the_same_work_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own: the machine's is not to be trusted in a test."""
    now = 0.0

    def job(seconds: float) -> object:
        def spend() -> None:
            nonlocal now
            now += seconds

        return spend

    monkeypatch.setattr("grafting_core.evaluation.cost.time.perf_counter", lambda: now)
    twice = paired_latency(job(0.02), job(0.01), CPU, batch=8)
    assert (twice.ratio, twice.verdict, twice.batch) == (pytest.approx(2), "slower", 8)
    assert paired_latency(job(0.01), job(0.01), CPU, batch=1).verdict == "no difference"
    assert paired_latency(job(0.01), job(0.04), CPU, batch=1).verdict == "faster"


def test_running_second_in_a_pair_favours_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs first takes half as long again."""
    now, calls = 0.0, 0

    def job() -> None:
        nonlocal now, calls
        calls += 1
        now += 0.03 if calls % 2 else 0.02

    monkeypatch.setattr("grafting_core.evaluation.cost.time.perf_counter", lambda: now)
    found = paired_latency(job, job, CPU, batch=1)
    assert found.ratio == pytest.approx(1)
    assert found.verdict == "no difference"


def test_memory_of_work_on_the_cpu_is_the_cpus_where_a_gpu_is_at_hand_too(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert peak_bytes(forward_job(backbone, backbone.transformer, 1), CPU) > 0


def test_peak_memory_grows_with_the_batch(backbone: Backbone) -> None:
    small, large = (forward_job(backbone, backbone.transformer, batch) for batch in (1, 8))
    small()
    large()
    assert 0 < peak_bytes(small, CPU) < peak_bytes(large, CPU)


def test_other_hardware_has_another_fingerprint() -> None:
    here = hardware_of(CPU)
    assert here.digest == hardware_of(CPU).digest == digest(here)
    assert here.digest != here.model_copy(update={"threads": here.threads + 1}).digest
