"""The bank holds whole scions under keys that name all that determined them, whatever goes wrong."""

import os
import resource
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grafting_core.specs import scions
from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.budget import Usage
from grafting_core.specs.datasets import DatasetRef
from grafting_core.specs.plans import DistillPlan
from grafting_core.specs.scions import ScionCard, ScionSpec
from grafting_core.storage.bank import Bank, CorruptArtifact, payload_name
from grafting_core.storage.storage import Storage
from tests.support.builders import replacement

BACKBONE = BackboneRef(name="b", digest="d")
SCION = ScionSpec(backbone=BACKBONE, part=replacement("hyena_x", 3), plan=DistillPlan())
PARTS = [
    replacement("hyena_x", 3, kernel_size=3),
    replacement("hyena_x", 2),
    replacement("hyena_x", 3, init="inherit"),
    replacement("hyena_y", 3),
    replacement("mlp", 3),
]
VALUES = {
    "steps": st.integers(0, 10_000_000),
    "batch_size": st.integers(1, 65_536),
    "learning_rate": st.floats(1e-9, 1),
    "schedule": st.sampled_from(["constant", "cosine"]),
    "warmup_steps": st.integers(0, 10_000),
    "weight_decay": st.floats(0, 1),
    "clip_norm": st.floats(1e-3, 1e3),
    "attention_loss": st.sampled_from(["l1", "l2", "huber", "nmse"]),
    "images": st.integers(1, 10**9),
    "held_out": st.integers(8, 65_536),
    "features": st.sampled_from(["fresh", "stored"]),
    "precision": st.sampled_from(["float32", "bfloat16"]),
    "patience": st.none() | st.integers(1, 10_000),
    "subset_seed": st.integers(0, 2**32 - 1),
    "seed": st.integers(0, 2**32 - 1),
    "init_seed": st.integers(1, 2**32 - 1),
    "dataset": st.builds(DatasetRef, name=st.just("d"), digest=st.sampled_from(["a" * 64, "b" * 64])),
}


def card(payload: bytes = b"weights", key: str = SCION.key, made_at: float = 0.0) -> ScionCard:
    file, sha256 = payload_name(payload)
    return ScionCard(
        key=key,
        scion=SCION,
        errors={"nmse": 0.5},
        steps=1,
        spend=Usage(),
        made_by="r1",
        made_at=made_at,
        hardware="h",
        file=file,
        sha256=sha256,
        size=len(payload),
    )


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(Storage(str(tmp_path)))


def test_every_field_of_the_plan_is_varied_here() -> None:
    assert {*VALUES, "mlp_loss"} == set(DistillPlan.model_fields)


@given(st.data())
def test_changing_any_one_field_of_the_plan_changes_the_key(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(VALUES)))
    value = data.draw(VALUES[field].filter(lambda value: value != getattr(SCION.plan, field)))
    plan = SCION.plan.model_copy(update={field: value})
    assert SCION.model_copy(update={"plan": plan}).key != SCION.key


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_site_operator_and_first_weights_are_in_the_key(part: object) -> None:
    assert SCION.model_copy(update={"part": part}).key != SCION.key


def test_the_backbones_digest_is_in_the_key_and_its_name_is_not() -> None:
    assert SCION.model_copy(update={"backbone": BackboneRef(name="b", digest="e")}).key != SCION.key
    assert SCION.model_copy(update={"backbone": BackboneRef(name="c", digest="d")}).key == SCION.key


def test_losses_of_other_slots_are_not_in_the_key() -> None:
    plan = SCION.plan.model_copy(update={"mlp_loss": "huber"})
    assert SCION.model_copy(update={"plan": plan}).key == SCION.key


def test_an_operator_is_told_by_what_is_not_its_default() -> None:
    part = replacement("mlp", 3, init="inherit", ratio=3.0)
    assert SCION.model_copy(update={"part": part}).operator == "mlp ratio=3.0, inherited"
    assert SCION.operator == "hyena_x"


def test_the_recipe_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SCION.key
    monkeypatch.setattr(scions, "DISTILL_RECIPE", 0)
    # Past the memory of keys that were asked for before.
    assert scions._key.__wrapped__(SCION) != before  # type: ignore[attr-defined]  # functools.wraps leaves it


def test_what_is_published_is_read_back(bank: Bank) -> None:
    assert bank.card(SCION.key) is None
    bank.publish(card(), b"weights")
    assert bank.card(SCION.key) == card()
    assert bank.read(SCION.key) == b"weights"
    assert [found.key for found in bank.cards()] == [SCION.key]
    assert list(bank.cards(after=SCION.key)) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "card"])
def test_damage_is_found_set_aside_and_made_good(bank: Bank, tmp_path: Path, damage: str) -> None:
    bank.publish(card(), b"weights")
    path = tmp_path / (bank.artifact(card()) if damage != "card" else f"scions/{SCION.key}/card.json")
    new = {"flip": b"weighty", "cut": b"weig", "card": b'{"key": '}.get(damage)
    path.write_bytes(new) if new else path.unlink()
    with pytest.raises((CorruptArtifact, FileNotFoundError, ValueError)):
        bank.read(SCION.key)
    assert bank.verify(SCION.key)
    assert not bank.keep_intact(SCION.key)
    assert not bank.has(SCION.key)
    assert (tmp_path / f"scions/{SCION.key}/card.json.damaged").exists()
    bank.publish(card(), b"weights")
    assert bank.keep_intact(SCION.key)


def test_two_publishers_of_one_key_both_succeed(bank: Bank) -> None:
    """Even where their bytes differ, as on two kinds of hardware: readers always see one of them whole."""
    payloads = [bytes([number]) * 100_000 for number in range(2)]
    problems: list[object] = []

    def publisher(payload: bytes) -> None:
        for _ in range(10):
            bank.publish(card(payload), payload)
            try:
                if bank.read(SCION.key) not in payloads:
                    problems.append("neither's")
            except CorruptArtifact as error:
                # The card was replaced between the two reads; the next look must be clean.
                problems.extend([error] if bank.verify(SCION.key) else [])

    threads = [threading.Thread(target=publisher, args=[payload]) for payload in payloads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert bank.verify(SCION.key) is None


def test_a_full_disk_leaves_nothing_half_written(bank: Bank, tmp_path: Path) -> None:
    """The kernel cuts the write short in the middle, as it does where no space is left."""
    bank.publish(card(), b"weights")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    payload = os.urandom(50_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            bank.publish(card(payload), payload)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert bank.read(SCION.key) == b"weights"


def test_a_makers_clock_changes_nothing(bank: Bank) -> None:
    for made_at in (4e9, -1.0, 0.0):
        bank.publish(card(made_at=made_at), b"weights")
        assert bank.keep_intact(SCION.key)


def test_removing_frees_everything_beside_the_scion(bank: Bank, tmp_path: Path) -> None:
    bank.note_divergence(SCION.key, "a loss of nan at step 3")
    assert bank.divergence(SCION.key) == "a loss of nan at step 3"
    bank.publish(card(), b"weights")
    assert bank.divergence(SCION.key) is None
    size = sum(path.stat().st_size for path in (tmp_path / "scions" / SCION.key).iterdir())
    assert bank.remove(SCION.key) == size
    assert not bank.has(SCION.key)


def test_scores_of_several_writers_are_all_kept_and_leave_the_card_as_it_is(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    bank, other = Bank(storage), Bank(storage)
    bank.publish(card(), b"weights")
    written = storage.read_bytes(f"{bank.folder(SCION.key)}/card.json")
    designs = ("a" * 64, "b" * 64)
    bank.add_restored(SCION.key, designs[0], {"restore_one/noise": 1.0})
    other.add_scores(SCION.key, {"replace_one/noise": 0.25})
    other.add_restored(SCION.key, designs[1], {"restore_one/noise": 2.0})
    found = bank.full_card(SCION.key)
    assert found is not None
    assert found.scores == {"replace_one/noise": 0.25}
    assert found.restored == {
        design: {"restore_one/noise": value} for design, value in zip(designs, (1.0, 2.0), strict=True)
    }
    assert storage.read_bytes(f"{bank.folder(SCION.key)}/card.json") == written
    assert bank.card(SCION.key) == card().model_copy(update={"scores": {"replace_one/noise": 0.25}})


def test_damaged_scores_are_measured_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    bank = Bank(storage)
    bank.publish(card(), b"weights")
    bank.add_scores(SCION.key, {"replace_one/noise": 0.25})
    path = f"{bank.folder(SCION.key)}/scores.json"
    storage.write_bytes(path, storage.read_bytes(path).replace(b"0.25", b"0.75"))
    assert bank.card(SCION.key) == card()
