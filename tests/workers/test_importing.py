"""A checkpoint becomes a backbone of the lab, and its operators scions of the bank, or nothing is stored."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from grafting_core.backbones import published_figures
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.checkpoint_file import weight_records
from grafting_core.backbones.registry import load_backbone
from grafting_core.operators.table import build_operator
from grafting_core.specs.backbone import BackboneCard, register_cards
from grafting_core.specs.design import ReplaceOperator
from grafting_core.specs.operators.hyena import HyenaX
from grafting_core.specs.plans import DistillPlan
from grafting_core.specs.registration import HubSource, Registry, registry_folder
from grafting_core.specs.scions import ImportedScion, ScionCard, ScionSpec
from grafting_core.specs.site import GraftSite
from grafting_core.storage.artifacts import damage, read_card
from grafting_core.storage.bank import Bank
from grafting_core.storage.bank_transfer import export_scions, import_scions
from grafting_core.storage.storage import Storage
from tests.support.checkpoints import HYENA, RELEASED, RunsCode, save_checkpoint, save_vae, small_state
from tests.support.hub_server import hub_of
from tests.support.original_dit import State
from tests.support.registering_stage import registered
from workers.contract import StageReport
from workers.registered import make_known
from workers.stages import checkpoints, registering
from workers.stages.intake import BadInput

EDIT = ReplaceOperator(site=GraftSite(block=1, slot="attention"), operator=HyenaX())


@pytest.fixture(autouse=True)
def _nothing_registered() -> Any:
    yield
    register_cards(())


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    return save_vae(tmp_path / "models" / "vae")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


def card_of(report: StageReport) -> BackboneCard:
    assert report.registered is not None
    assert report.registered.backbone is not None
    return report.registered.backbone


def loaded(storage: Storage, card: BackboneCard) -> Backbone:
    make_known(storage, Registry(backbones=(card,)))
    return load_backbone(card.name)


def graft(tmp_path: Path) -> Path:
    document = {"ema": small_state(HYENA)}
    return save_checkpoint(tmp_path / "models" / RELEASED / "model.pt", document)


def test_an_original_is_registered_with_its_arithmetic(tmp_path: Path, vae: Path, storage: Storage) -> None:
    file = save_checkpoint(tmp_path / "models" / "DiT-S-2-256x256.pt", small_state())
    report = registered(tmp_path, file, vae=str(vae), licence="CC-BY-NC-4.0")
    card = card_of(report)
    assert (card.arithmetic, card.objective, card.edits) == ("original", "epsilon_learned_variance", ())
    assert (card.licence, card.origin) == ("CC-BY-NC-4.0", "models/DiT-S-2-256x256.pt")
    assert (card.depth, card.dims.width, card.dims.num_heads) == (2, 384, 6)
    assert damage(storage, registry_folder("backbone", card.digest)) is None
    assert storage.names("registry/staging") == storage.names("scions") == []
    assert report.metrics["scions"] == 0
    again = registered(tmp_path, file, vae=str(vae), licence="CC-BY-NC-4.0")
    assert (again.stop_cause, card_of(again)) == ("reused", card)
    backbone = loaded(storage, card)
    assert backbone.transformer.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift == 0
    held = sum(parameter.numel() for parameter in backbone.transformer.parameters())
    assert held == card.num_params - card.repeated_params


def test_a_released_graft_is_a_backbone_and_its_operators_are_scions(
    tmp_path: Path, vae: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_figures, "XL2", (2, 384, 2))
    file = graft(tmp_path)
    report = registered(tmp_path, file, vae=str(vae), licence="Apache-2.0")
    card = card_of(report)
    assert (card.edits, card.origin) == ((EDIT,), f"{RELEASED}/model.pt")
    assert card.figures["published_fid"] == 2.61
    shared = read_card(storage, registry_folder("backbone", card.digest))["card"]["figures"]
    assert "published_fid" not in shared
    assert "decoder_bytes" in shared
    [key] = storage.names("scions")
    assert report.metrics["scions"] == 1
    bank = Bank(storage)
    scion = bank.card(key)
    assert scion is not None
    assert isinstance(scion.scion, ImportedScion)
    assert (scion.scion.backbone, scion.scion.part) == (card.ref, EDIT)
    assert (scion.scion.origin, scion.nmse, scion.made_by) == (card.origin, None, "r1")
    operator = build_operator(EDIT.operator, card.dims)
    operator.load_state_dict(load(bank.read(key)))
    inside = loaded(storage, card).transformer.transformer_blocks[1].attn1.operator
    assert torch.equal(operator.project_in.weight, inside.project_in.weight)
    assert torch.equal(operator.featuriser.weight_KD, inside.featuriser.weight_KD)
    registered(tmp_path, file, vae=str(vae), licence="Apache-2.0")
    assert storage.names("scions") == [key]


def test_the_key_of_an_imported_operator_is_no_key_of_a_plan(
    tmp_path: Path, vae: Path, storage: Storage
) -> None:
    card = card_of(registered(tmp_path, graft(tmp_path), vae=str(vae), licence="Apache-2.0"))
    [key] = storage.names("scions")
    scion = Bank(storage).card(key)
    assert scion is not None
    assert key == scion.scion.key
    planned = ScionSpec(backbone=card.ref, part=EDIT, plan=DistillPlan())
    assert planned.key != key
    other = scion.scion.model_copy(update={"weights": "ab" * 32})
    elsewhere = scion.scion.model_copy(update={"origin": "somewhere else"})
    assert (other.key == key, elsewhere.key == key) == (False, True)
    assert ScionCard.model_validate_json(scion.model_dump_json()) == scion


def test_an_imported_scion_goes_to_another_lab(tmp_path: Path, vae: Path, storage: Storage) -> None:
    registered(tmp_path, graft(tmp_path), vae=str(vae), licence="Apache-2.0")
    bank, other = Bank(storage), Bank(Storage(str(tmp_path / "other")))
    export_scions(bank, bank.names(), tmp_path / "scions.tar", "here")
    assert import_scions(other, tmp_path / "scions.tar", lambda digest: True).new == tuple(bank.names())
    [key] = bank.names()
    assert other.card(key) == bank.card(key)


def renamed(state: State) -> dict[str, Any]:
    old = "blocks.1.attn.short_filter.bias"
    return {"blocks.1.attn.filter.bias" if name == old else name: x for name, x in state.items()}


def missing(state: State) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if name != "final_layer.linear.bias"}


def halved(state: State) -> dict[str, Any]:
    return {**state, "x_embedder.proj.bias": state["x_embedder.proj.bias"].half()}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            renamed,
            r"^\S+/model.pt lacks blocks.1.attn.short_filter.bias; has unexpected blocks.1.attn.filter.bias",
        ),
        (missing, r"^\S+/model.pt lacks final_layer.linear.bias"),
        (halved, r"^\S+/model.pt: x_embedder.proj.bias is stored as torch.float16; torch.float32 is needed"),
    ],
)
def test_what_is_not_known_is_refused_and_nothing_is_stored(
    tmp_path: Path, vae: Path, storage: Storage, spoil: Callable[[State], Any], message: str
) -> None:
    document = {"ema": spoil(small_state(HYENA))}
    file = save_checkpoint(tmp_path / "models" / RELEASED / "model.pt", document)
    with pytest.raises(BadInput, match=message) as caught:
        registered(tmp_path, file, vae=str(vae), licence="MIT")
    assert "staging" not in str(caught.value)
    assert storage.names("registry/backbones") == storage.names("registry/staging") == []
    assert storage.names("scions") == []


def test_a_pickle_that_would_run_code_is_refused_and_nothing_is_stored(
    tmp_path: Path, vae: Path, storage: Storage
) -> None:
    document = {"ema": small_state(HYENA), "args": RunsCode(tmp_path / "made")}
    file = save_checkpoint(tmp_path / "models" / RELEASED / "model.pt", document)
    with pytest.raises(BadInput, match="a pickle of more than tensors"):
        registered(tmp_path, file, vae=str(vae), licence="MIT")
    assert not (tmp_path / "made").exists()
    assert storage.names("registry/backbones") == storage.names("scions") == []


def test_an_operator_of_stage_1_is_no_backbone(tmp_path: Path, vae: Path) -> None:
    place = "blocks.1.attn."
    state = {n.removeprefix(place): x for n, x in small_state(HYENA).items() if n.startswith(place)}
    file = save_checkpoint(tmp_path / "models" / "block_1" / "best_val.pt", {"model": state})
    with pytest.raises(BadInput, match=r"best_val.pt holds one hyena_x operator of stage 1, no backbone"):
        registered(tmp_path, file, vae=str(vae), licence="MIT")


@pytest.mark.parametrize("part", ["checkpoint", "vae"])
def test_links_out_of_the_roots_are_refused(tmp_path: Path, part: str) -> None:
    models = tmp_path / "models"
    file = save_checkpoint((tmp_path if part == "checkpoint" else models) / "model.pt", small_state())
    vae = save_vae((tmp_path if part == "vae" else models) / "vae")
    (models / "link.pt").parent.mkdir(exist_ok=True)
    if part == "checkpoint":
        (models / "link.pt").symlink_to(file)
        file = models / "link.pt"
    with pytest.raises(BadInput, match="does not register"):
        registered(tmp_path, file, vae=str(vae), licence="MIT")


def test_what_is_larger_than_the_quota_is_refused(tmp_path: Path, vae: Path) -> None:
    with pytest.raises(BadInput, match="may register 1,000 more"):
        registered(tmp_path, graft(tmp_path), vae=str(vae), licence="MIT", max_bytes=1000)


def test_what_would_grow_beyond_the_quota_is_refused_before_it_is_written(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = graft(tmp_path)
    most = file.stat().st_size + sum(each.stat().st_size for each in vae.iterdir())
    written = list[Path]()
    monkeypatch.setattr(checkpoints, "write_checkpoint", lambda imported, folder: written.append(folder))
    with pytest.raises(BadInput, match=r"its weights take [\d,]+ bytes here; its owner may register"):
        registered(tmp_path, file, vae=str(vae), licence="MIT", max_bytes=most)
    assert written == []


def training(tmp_path: Path) -> Path:
    """A checkpoint of a trainer, several times as large as the weights that are taken of it."""
    state = small_state(HYENA)
    document = {"model": state, "opt": {"m": torch.ones(10**7), "v": torch.ones(10**7)}}
    copied = {name: tensor.clone() for name, tensor in state.items()}
    return save_checkpoint(tmp_path / "models" / RELEASED / "model.pt", document | {"ema": copied})


def test_of_a_training_checkpoint_only_the_weights_are_copied_and_counted(
    tmp_path: Path, vae: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = training(tmp_path)
    copies = list[tuple[int, int]]()
    convert = checkpoints.convert

    def recorded(copy: Path, content: Path, left: int | None) -> Any:
        found = copy.stat()
        copies.append((found.st_size, 512 * found.st_blocks))
        return convert(copy, content, left)

    monkeypatch.setattr(registering, "convert", recorded)
    weights = sum(tensor.nbytes for tensor in small_state(HYENA).values())
    most = 2 * weights
    assert file.stat().st_size > 3 * weights
    assert most < file.stat().st_size
    card = card_of(registered(tmp_path, file, vae=str(vae), licence="MIT", max_bytes=most))
    [(size, on_disk)] = copies
    assert size == file.stat().st_size
    assert weights <= on_disk < 1.2 * weights
    alone = card_of(registered(tmp_path, graft(tmp_path), vae=str(vae), licence="MIT"))
    assert alone.digest == card.digest
    assert loaded(storage, card).transformer.transformer_blocks[1].attn1.operator is not None


def test_damage_of_a_checkpoint_is_refused_by_its_record_and_nothing_is_stored(
    tmp_path: Path, vae: Path, storage: Storage
) -> None:
    file = training(tmp_path)
    record = weight_records(file)[3]
    with file.open("r+b") as opened:
        opened.seek(record.offset + 5)
        opened.write(b"x")
    with pytest.raises(BadInput, match=rf"model.pt is damaged: its record {record.name} does not match"):
        registered(tmp_path, file, vae=str(vae), licence="MIT")
    assert storage.names("registry/backbones") == storage.names("registry/staging") == []


def packed(document: Any) -> bytes:
    file = io.BytesIO()
    torch.save(document, file)
    return file.getvalue()


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, **files: bytes) -> Iterator[Any]:
    """A repository with these files; a double underscore in a name stands for a dot."""
    with hub_of({name.replace("__", "."): content for name, content in files.items()}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


CARD = b"---\nlicense: apache-2.0\n---\n"


def from_hub(tmp_path: Path, vae: Path | None, file: str | None = None, **changes: Any) -> StageReport:
    source = HubSource(repository="ann/net", revision="main", file=file)
    return registered(tmp_path, tmp_path, **{"path": None, "hub": source, "vae": vae and str(vae), **changes})


def test_the_only_checkpoint_of_a_repository_is_taken(
    tmp_path: Path, vae: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"model__pt": packed({"ema": small_state(HYENA)}), "README__md": CARD, "run__json": b"{}"}
    with hub(monkeypatch, **files) as server:
        report = from_hub(tmp_path, vae)
    card = card_of(report)
    assert sorted(server.fetched) == ["README.md", "model.pt"]
    assert (card.edits, card.origin, card.licence) == ((EDIT,), "net/model.pt", "apache-2.0")
    assert (report.metrics["scions"], len(storage.names("scions"))) == (1, 1)
    assert storage.names("registry/staging") == []
    own = next(iter(vae.iterdir())).stat()
    assert own.st_nlink == 1
    assert loaded(storage, card).card.digest == card.digest


def test_a_named_checkpoint_is_taken_alone(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "a__pt": packed(small_state()),
        "b__pt": b"not fetched",
        "model__safetensors": b"not fetched",
    }
    with hub(monkeypatch, **files) as server:
        card = card_of(from_hub(tmp_path, vae, "a.pt", licence="MIT"))
        assert server.fetched == ["a.pt"]
        assert (card.origin, card.arithmetic) == ("net/a.pt", "original")
        with pytest.raises(BadInput, match=r"ann/net@main has no file c.pt; its checkpoints: a.pt, b.pt$"):
            from_hub(tmp_path, vae, "c.pt", licence="MIT")
    with (
        hub(monkeypatch, a__pt=b"", b__ckpt=b"") as server,
        pytest.raises(BadInput, match=r"several checkpoints, a.pt, b.ckpt; name one of them as file"),
    ):
        from_hub(tmp_path, vae, licence="MIT")
    assert server.fetched == []


@pytest.mark.parametrize(
    ("licence", "message"), [("MIT", "has no autoencoder"), (None, "names a licence; give the publisher's")]
)
def test_a_checkpoint_of_a_repository_needs_an_autoencoder_and_a_licence(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, licence: str | None, message: str
) -> None:
    with hub(monkeypatch, model__pt=packed(small_state())), pytest.raises(BadInput, match=message):
        from_hub(tmp_path, None if licence else vae, licence=licence)
