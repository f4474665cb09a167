"""Studies over HTTP: refused with the reason and what would be right, or begun, changed and read."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from grafting_core.specs.studies.study import StudySpec
from service.db.study_tables import StudyRow
from tests.support.builders import study_document

STUDIES = "/api/v1/studies"
DIGEST = "4aa3a7e31ca25f19e790e591a3bfe033982eb8592a76e48e57373040f49acac0"
"""Of the study of these tests, as it was before studies knew latency."""
FAST_AND_GOOD = """
name: fast-and-good
backbone: testbed/dit-fashion
space:
  attention: [keep, hyena_x, {kind: window_attention, half_width: 2}, mamba2]   # per layer, or `groups`
  mlp: [keep, {kind: mlp, ratio: 3}, {kind: mlp, ratio: 6}]
  parallel_pairs: optional
objectives: [{minimize: fid10k}, {minimize: flops}]     # one or several
limits: {params: "<= 1.0x", flops: "<= 0.85x", latency: null}
sampler: {kind: tpe}                                    # tpe | nsga2 | gp | random | milp
budget: {device_seconds: 14400}
screening: {trials: 100, rungs: [loss_gap, fid1k], reduction: 3}
promote: 5
"""


def create(client: TestClient, **changes: Any) -> Any:
    return client.post(STUDIES, json=study_document(**changes))


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"space": {}}, "/space", "nothing to choose"),
        ({"space": {"attention": ["keep"]}}, "/space", "nothing to choose"),
        ({"space": {"attention": ["keep", "hyena_z"]}}, "/space/attention/1", "did you mean"),
        ({"space": {"attention": ["keep", "keep"]}}, "/space/attention/1", "already"),
        ({"space": {"attention": ["keep", "mlp"]}}, "/space/attention/1", "fits the mlp slot"),
        (
            {"space": {"attention": ["keep", "hyena_x"], "groups": {"attention": [[0], [8]]}}},
            "/space/groups/attention/1",
            "blocks are 0 to 7",
        ),
        (
            {"space": {"attention": ["keep", "hyena_x"], "groups": {"attention": [[0, 1], [1]]}}},
            "/space/groups/attention/1",
            "in two groups",
        ),
        (
            {"space": {"attention": ["keep", "hyena_x"], "groups": {"attention": [[0]] * 9}}},
            "/space/groups/attention",
            "at most 8",
        ),
        (
            {
                "space": {
                    "attention": ["keep", "hyena_x"],
                    "groups": {"attention": [[1, 2]]},
                    "parallel_pairs": "optional",
                }
            },
            "/space/parallel_pairs",
            "outside it",
        ),
        ({"objectives": [{"minimize": "fod1k"}]}, "/objectives/0/minimize", "unknown objective"),
        ({"objectives": [{"minimize": "flops"}]}, "/objectives", "one objective must be the quality"),
        ({"limits": {"flops": "<= 0.2x"}}, "/limits/flops", "'<= 0.9"),
        ({"limits": {"params": "few"}}, "/limits/params", "positive number"),
        ({"limits": {"latency": "fast"}}, "/limits/latency", "a share such as '<= 0.85x'"),
        ({"limits": {"latency": "<= 0x"}}, "/limits/latency", "positive number"),
        ({"objectives": [{"minimize": "latency"}]}, "/objectives", "one objective must be the quality"),
        ({"budget": {"training_images": 10}}, "/budget/training_images", "cheapest plan"),
        ({"budget": {"device_seconds": 0.001}}, "/budget/device_seconds", "about"),
        ({"screening": {"rungs": ["fid20", "loss_gap"]}}, "/screening/rungs/1", "cheap to expensive"),
        ({"screening": {"rungs": ["fid50k"]}}, "/screening/rungs/0", "no more than the final"),
        ({"sampler": {"kind": "luck"}}, "/sampler/kind", "tpe"),
        ({"promote": 0}, "/promote", "greater than"),
    ],
)
def test_a_bad_study_is_refused_with_its_place_and_what_would_be_right(
    client: TestClient, changes: dict[str, Any], pointer: str, words: str
) -> None:
    answer = create(client, **changes)
    assert answer.status_code == 422
    places = {error["pointer"]: error["message"] for error in answer.json()["errors"]}
    assert pointer in places
    assert words in places[pointer]
    assert client.get(STUDIES).json()["studies"] == []


def test_a_study_of_several_objectives_pairs_and_no_limit_on_latency_is_taken_as_it_is_written(
    client: TestClient,
) -> None:
    headers = {"Content-Type": "application/yaml"}
    answer = client.post(STUDIES, content=FAST_AND_GOOD, headers=headers)
    assert answer.status_code == 202, answer.json()
    study = client.get(answer.json()["url"]).json()
    spec = study["spec"]
    assert study["objectives"] == ["fid10k/fashion-cnn", "flops"]
    assert {limit["cost"]: limit["of_backbone"] for limit in spec["limits"]} == {"params": 1.0, "flops": 0.85}
    assert [item["label"] for item in spec["space"]["variables"][0]["items"]] == [
        "keep",
        "hyena_x",
        "window_attention(half_width=2)",
        "mamba2",
    ]
    assert [pair["variable"] for pair in spec["space"]["pairs"]] == [
        f"pair {b}+{b + 1}" for b in (0, 2, 4, 6)
    ]
    assert (spec["sampler"], spec["budget"]["device_seconds"]) == ({"kind": "tpe", "seed": 0}, 14400)
    assert [rung["kind"] for rung in spec["rungs"]] == ["loss_gap", "fid"]
    assert (spec["trials"], spec["reduction"], spec["promote"]) == (100, 3, 5)


def test_a_study_with_a_limit_on_latency_begins_by_measuring(client: TestClient) -> None:
    answer = create(client, limits={"latency": "<= 0.9x"}, objectives=[{"minimize": "fid40"}])
    assert answer.status_code == 202
    study = client.get(answer.json()["url"]).json()
    assert study["phase"] == "measure"
    assert study["spec"]["limits"] == [{"cost": "latency", "at_most": 0.9, "of_backbone": 0.9}]


def test_a_study_without_a_word_of_latency_measures_none_and_keeps_its_digest(client: TestClient) -> None:
    study = client.get(create(client).json()["url"]).json()
    assert study["phase"] == "fill"
    spec = StudySpec.model_validate_json(json.dumps(study["spec"]))
    assert spec.digest == DIGEST


def test_the_same_key_gives_the_same_study(client: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    ids = {client.post(STUDIES, json=study_document(), headers=headers).json()["study_id"] for _ in range(2)}
    assert len(ids) == 1
    other = client.post(STUDIES, json=study_document(promote=3), headers=headers)
    assert other.json()["code"] == "key-reused"


def test_a_study_is_paused_resumed_extended_and_stopped(client: TestClient) -> None:
    study = f"{STUDIES}/{create(client).json()['study_id']}"
    assert client.post(f"{study}/pause").json()["state"] == "PAUSED"
    assert client.post(f"{study}/pause").json()["code"] == "illegal-transition"
    assert client.post(f"{study}/resume").json()["state"] == "RUNNING"
    version = client.get(study).json()["version"]
    more = {"version": version, "trials": 4, "promote": 1, "rounds": 1}
    extended = client.post(f"{study}/extend", json=more).json()
    assert (extended["rounds"], extended["spec"]["trials"], extended["spec"]["promote"]) == (2, 10, 3)
    assert client.post(f"{study}/extend", json=more).json()["code"] == "illegal-transition"
    assert client.post(f"{study}/stop").json()["state"] == "STOPPED"
    assert client.get(f"{study}/report/report.html").status_code == 404


def test_pages_show_studies(client: TestClient) -> None:
    study = create(client).json()["study_id"]
    assert "quick study" in client.get("/studies").text
    assert "quick study" in client.get(f"/studies/{study}").text
    assert client.get("/studies/none").status_code == 404


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_two_at_once_with_one_key_get_the_same_study(client: TestClient) -> None:
    """Both are past the look for an earlier one before either is stored."""
    both = threading.Barrier(2)

    def meet(*_: object) -> None:
        both.wait(30)

    def ask(_: int) -> Any:
        return client.post(STUDIES, json=study_document(), headers={"Idempotency-Key": "k1"})

    event.listen(StudyRow, "before_insert", meet)
    try:
        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(ask, range(2))
    finally:
        event.remove(StudyRow, "before_insert", meet)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()
    assert len(client.get(STUDIES).json()["studies"]) == 1
