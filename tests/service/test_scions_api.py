"""The bank over REST: listed a page at a time, verified, freed by age and size, filled, and told by plans."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from grafting_core.specs.experiment import evaluation_key, finetune_key, scions_of
from grafting_core.specs.scions import ScionCard
from grafting_core.storage.bank import Bank
from grafting_core.storage.storage import Storage
from service.settings import Settings
from tests.support.bank import deposit
from tests.support.builders import document, experiment, fill_document

PAGE = "/api/v1/scions"


@pytest.fixture
def bank(settings: Settings) -> Bank:
    return Bank(Storage(settings.storage))


def deposited(bank: Bank, **changes: Any) -> list[ScionCard]:
    return [deposit(bank, scion, float(at)) for at, scion in enumerate(scions_of(experiment(**changes)))]


def test_pages_hold_every_scion_once(client: TestClient, bank: Bank) -> None:
    keys = sorted(card.key for card in deposited(bank, layers=[0, 1, 2, 3, 4]))
    seen: list[str] = []
    cursor = ""
    while cursor is not None:
        page = client.get(PAGE, params={"limit": 2, "cursor": cursor}).json()
        seen += [scion["key"] for scion in page["scions"]]
        cursor = page["next_cursor"]
    assert seen == keys


def test_lists_narrow_by_kind_backbone_and_prefix(client: TestClient, bank: Bank) -> None:
    card = deposited(bank, layers=[1])[0]
    deposited(bank, kind="mlp", layers=[1, 2])

    def count(**asked: str) -> int:
        return len(client.get(PAGE, params=asked).json()["scions"])

    assert count(kind="mlp") == 2
    listed = client.get(PAGE, params={"kind": "hyena_x"}).json()["scions"]
    assert [(scion["site"], scion["operator"]) for scion in listed] == [("block 1 attention", "hyena_x")]
    assert count(backbone="other") == 0
    assert count(prefix=card.key[:8]) == 1
    assert client.get(PAGE, params={"prefix": "../"}).status_code == 422


def test_a_card_says_everything(client: TestClient, bank: Bank) -> None:
    card = deposited(bank, layers=[1])[0]
    assert ScionCard.model_validate_json(client.get(f"{PAGE}/{card.key}").content) == card
    assert client.get(f"{PAGE}/{'0' * 64}").status_code == 404
    assert client.get(f"{PAGE}/..%2F..%2Fetc").status_code == 404


def test_verifying_sets_the_damaged_aside(client: TestClient, bank: Bank, settings: Settings) -> None:
    cards = deposited(bank, layers=[1, 2])
    path = Path(settings.storage) / bank.artifact(cards[0])
    path.write_bytes(path.read_bytes()[:-1])
    answer = client.post(f"{PAGE}:verify").json()
    assert answer["checked"] == 2
    assert [damage["key"] for damage in answer["damaged"]] == [cards[0].key]
    assert client.post(f"{PAGE}:verify").json() == {"checked": 1, "damaged": []}


def test_the_longest_unasked_go_first_and_what_a_run_needs_stays(client: TestClient, bank: Bank) -> None:
    cards = deposited(bank, layers=[0, 1, 2, 3])
    client.post("/api/v1/experiments", json=document(layers=[0]))
    would = client.post(f"{PAGE}:gc", json={"max_bytes": 2500, "dry_run": True}).json()
    assert (would["removed"], would["kept_for_runs"]) == ([cards[1].key, cards[2].key], 1)
    assert len(list(bank.cards())) == 4
    client.post(f"{PAGE}:gc", json={"max_bytes": 2500})
    assert {card.key for card in bank.cards()} == {cards[0].key, cards[3].key}
    client.post(f"{PAGE}:gc", json={"older_than_days": 1.0})
    assert {card.key for card in bank.cards()} == {cards[0].key}
    assert client.post(f"{PAGE}:gc", json={"max_bytes": -1}).status_code == 422


def test_remains_of_scions_that_never_were_go_too(client: TestClient, bank: Bank) -> None:
    scions = scions_of(experiment(layers=[0, 1]))
    for scion in scions:
        bank.note_divergence(scion.key, "a loss of nan at step 3")
    client.post("/api/v1/experiments", json=document(layers=[0]))
    answer = client.post(f"{PAGE}:gc", json={"older_than_days": 1e6}).json()
    assert (answer["removed"], answer["remains"]) == ([], 1)
    assert bank.divergence(scions[0].key)
    assert bank.divergence(scions[1].key) is None


def test_filling_queues_one_run(client: TestClient) -> None:
    headers = {"Idempotency-Key": "one"}
    answer = client.post(f"{PAGE}:fill", json=fill_document(), headers=headers)
    assert answer.status_code == 202
    run = client.get(answer.json()["url"]).json()
    assert (run["kind"], run["state"], len(run["work"]["scions"])) == ("fill", "QUEUED", 4)
    assert client.post(f"{PAGE}:fill", json=fill_document(), headers=headers).json() == answer.json()
    refused = client.post(f"{PAGE}:fill", json=fill_document(backbone="dit-xl-2-256"))
    assert refused.json()["code"] == "not-runnable"
    wrong = client.post(f"{PAGE}:fill", json=fill_document({"replace": "mlp", "layers": "all", "with": []}))
    assert wrong.json()["pointer"] == "/offers/0/with"


def test_a_plan_says_what_is_there_what_is_coming_and_what_the_new_costs(
    client: TestClient, bank: Bank
) -> None:
    spec = experiment(layers=[0, 1, 2])
    deposit(bank, scions_of(spec)[0])
    run = client.post("/api/v1/experiments", json=document(layers=[1])).json()["run_id"]
    answer = client.post("/api/v1/experiments/plan", json=document(layers=[0, 1, 2])).json()
    held = {holding["stage"]: holding for holding in answer["holdings"]}
    assert held["distill"]["states"] == {
        "block 0 attention": "banked",
        "block 1 attention": "in_flight",
        "block 2 attention": "new",
    }
    assert held["distill"]["waits_for"] == [run]
    whole = {stage["stage"]: stage["spend"] for stage in answer["stages"]}
    assert 0 < held["distill"]["new_spend"]["flops"] < whole["distill"]["flops"]
    assert held["finetune"]["new_spend"] == whole["finetune"]
    for folder, key in (("models", finetune_key(spec)), ("evaluations", evaluation_key(spec))):
        bank.storage.write_bytes(f"{folder}/{key}/card.json", b"{}")
    for scion in scions_of(spec)[1:]:
        deposit(bank, scion)
    again = client.post("/api/v1/experiments/plan", json=document(layers=[0, 1, 2])).json()
    assert all(holding["new_spend"]["flops"] == 0 for holding in again["holdings"])
