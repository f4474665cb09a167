"""Scions go from one lab to another in a file, whole, and change nothing that is there."""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from grafting_core.specs.experiment import scions_of
from grafting_core.specs.scions import ScionCard
from grafting_core.storage.bank import Bank
from grafting_core.storage.bank_transfer import (
    BadTransfer,
    export_scions,
    import_scions,
    matching_keys,
    origin_of,
)
from grafting_core.storage.storage import Storage
from service.cli.main import main
from service.settings import Settings
from tests.support.bank import deposit
from tests.support.builders import experiment
from tests.support.checkpoints import save_checkpoint, small_state
from tests.support.commands import command_line
from tests.support.original_dit import attention_shapes

Capture = pytest.CaptureFixture[str]
Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def database_kind() -> str:
    """The bank depends on no database."""
    return "sqlite"


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """With two scions."""
    made = Bank(Storage(str(tmp_path / "there")))
    for scion in scions_of(experiment(layers=[1, 3])):
        card = deposit(made, scion)
        made.add_scores(card.key, {"replace_one/noise": 0.5})
        made.add_restored(card.key, "ab" * 32, {"restore_one/noise": 0.25})
    return made


@pytest.fixture
def other(tmp_path: Path) -> Bank:
    return Bank(Storage(str(tmp_path / "here")))


@pytest.fixture
def file(bank: Bank, tmp_path: Path) -> Path:
    export_scions(bank, bank.names(), tmp_path / "scions.tar", "their lab")
    return tmp_path / "scions.tar"


def known(digest: str) -> bool:
    return True


def test_scions_arrive_as_they_were_with_their_origin(bank: Bank, other: Bank, file: Path) -> None:
    found = import_scions(other, file, known)
    assert sorted(found.new) == bank.names() == other.names()
    for key in bank.names():
        card = other.full_card(key)
        assert card is not None
        assert card == bank.full_card(key)
        assert (card.scores, card.restored) == (
            {"replace_one/noise": 0.5},
            {"ab" * 32: {"restore_one/noise": 0.25}},
        )
        assert other.read(key) == bank.read(key)
        origin = origin_of(other.storage, key)
        assert origin is not None
        assert origin.lab == "their lab"
        assert origin_of(bank.storage, key) is None


def test_what_is_there_is_not_overwritten_and_what_is_damaged_is_mended(
    bank: Bank, other: Bank, file: Path
) -> None:
    first, second = bank.names()
    scions = {scion.key: scion for scion in scions_of(experiment(layers=[1, 3]))}
    own = deposit(other, scions[first], made_by="mine")
    hurt = deposit(other, scions[second])
    other.storage.write_bytes(other.artifact(hurt), b"damaged")
    found = import_scions(other, file, known)
    assert (found.new, found.present) == ((second,), (first,))
    assert other.card(first) == own
    assert other.verify(second) is None
    assert import_scions(other, file, known).present == (first, second)


def test_scions_of_an_unknown_backbone_are_left_out_and_said(other: Bank, file: Path) -> None:
    found = import_scions(other, file, lambda digest: False)
    assert (found.new, len(found.unknown)) == ((), 2)
    assert found.backbones[0].startswith("testbed/dit-fashion (")
    assert other.names() == []
    assert len(import_scions(other, file, lambda digest: False, unknown_too=True).new) == 2


def test_keys_are_named_by_how_they_begin(bank: Bank) -> None:
    first, second = bank.names()
    assert matching_keys(bank, [first[:12], first, second]) == [first, second]
    for prefix, message in (("zz", "no scions"), ("", "2 scions")):
        with pytest.raises(ValueError, match=message):
            matching_keys(bank, [prefix])


def test_damaged_scions_are_not_exported(bank: Bank, tmp_path: Path) -> None:
    key = bank.names()[0]
    card = bank.card(key)
    assert card is not None
    bank.storage.write_bytes(bank.artifact(card), b"damaged")
    with pytest.raises(ValueError, match="does not match its card"):
        export_scions(bank, bank.names(), tmp_path / "scions.tar", "lab")
    assert list(tmp_path.glob("*.tar*")) == list(tmp_path.glob(".*.part")) == []


def test_a_file_that_is_there_is_kept(bank: Bank, file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(FileExistsError):
        export_scions(bank, bank.names(), file, "lab")
    assert file.read_bytes() == before


def rewritten(file: Path, change: Callable[[Members], Members]) -> None:
    with tarfile.open(file) as archive:
        members = [(each, archive.extractfile(each).read()) for each in archive.getmembers()]  # type: ignore[union-attr]  # all are files
    with tarfile.open(file, "w:") as archive:
        for member, content in change(members):
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def named(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def escaping(members: Members) -> Members:
    return [*members, (named("../../escaped.json"), b"{}")]


def absolute(members: Members) -> Members:
    return [*members, (named("/etc/passwd"), b"x")]


def link(members: Members) -> Members:
    member = named(members[1][0].name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [members[0], (member, b""), *members[2:]]


def other_weights(members: Members) -> Members:
    return [*members[:2], (members[2][0], b"other" + members[2][1][5:]), *members[3:]]


def other_card(members: Members) -> Members:
    card = json.loads(members[1][1]) | {"made_by": "somebody"}
    return [members[0], (members[1][0], json.dumps(card).encode()), *members[2:]]


def other_key(members: Members) -> Members:
    """A card under a key that its own content does not give."""
    card = ScionCard.model_validate_json(members[1][1])
    plan = card.scion.plan.model_copy(update={"steps": 7})
    forged = card.model_copy(update={"scion": card.scion.model_copy(update={"plan": plan})})
    content = forged.model_dump_json().encode()
    index = json.loads(members[0][1])
    index["scions"][card.key] = hashlib.sha256(content).hexdigest()
    return [(members[0][0], json.dumps(index).encode()), (members[1][0], content), *members[2:]]


def without_index(members: Members) -> Members:
    return members[1:]


def one_missing(members: Members) -> Members:
    return members[:3]


@pytest.mark.parametrize(
    "change",
    [escaping, absolute, link, other_weights, other_card, other_key, without_index, one_missing],
)
def test_a_file_that_is_not_an_honest_export_adds_nothing(
    other: Bank, file: Path, tmp_path: Path, change: Callable[[Members], Members]
) -> None:
    rewritten(file, change)
    with pytest.raises(BadTransfer):
        import_scions(other, file, known)
    assert other.names() == []
    assert not list(tmp_path.parent.rglob("escaped.json"))


def test_an_operator_of_stage_1_becomes_a_scion(
    settings: Settings, other: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    graft = command_line(monkeypatch, capsys)
    monkeypatch.setenv("GRAFTLAB_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("GRAFTLAB_STORAGE", other.storage.uri)
    state = {name: torch.zeros(shape) for name, shape in attention_shapes("hyena_y").items()}
    named, homeless, whole = (
        save_checkpoint(tmp_path / name / "best_val.pt", document)
        for name, document in (
            ("block_3", {"model": state}),
            ("elsewhere", {"model": state}),
            ("whole", small_state()),
        )
    )
    place = ("--data", str(tmp_path), "--backbone", "dit-xl-2-256")
    refusals = {
        ("bank", "import", str(homeless), *place): "nothing tells which block it is for",
        ("bank", "import", str(homeless), *place, "--block", "28"): "block 28 does not exist",
        ("bank", "import", str(whole), *place): "holds a whole transformer",
        ("bank", "import", str(named), "--data", str(tmp_path)): "name with --backbone",
        ("bank", "import", str(named), *place[:3], "testbed/dit-fashion"): "has the shape",
    }
    for words, message in refusals.items():
        code, _, said = graft(*words)
        assert (code, message in " ".join(said.split())) == (2, True), said
    assert other.names() == []
    code, said, _ = graft("bank", "import", str(named), *place, "--json")
    assert (code, json.loads(said)["key"]) == (0, other.names()[0])
    card = other.card(other.names()[0])
    assert card is not None
    assert (card.scion.name, card.scion.kind, card.nmse) == ("block 3 attention", "hyena_y", None)
    assert graft("bank", "import", str(homeless), *place, "--block", "3")[1].strip() == card.key


@pytest.mark.parametrize("content", [b"", b"no tar at all", b"\x1f\x8b" + bytes(600)])
def test_what_is_no_tar_is_refused(other: Bank, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(BadTransfer):
        import_scions(other, tmp_path / "bad", known)


def test_a_truncated_file_is_refused(other: Bank, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:6000])
    with pytest.raises(BadTransfer):
        import_scions(other, file, known)
    assert other.names() == []


def test_the_commands_work_on_a_labs_folder(
    settings: Settings,
    bank: Bank,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def graft(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["graft", "bank", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    monkeypatch.setenv("GRAFTLAB_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("GRAFTLAB_STORAGE", bank.storage.uri)
    data, out = ("--data", str(tmp_path)), str(tmp_path / "out.tar")
    assert graft("export", out, *data)[0] == 2
    code, told = graft("export", bank.names()[0][:10], out, *data)
    assert (code, told.startswith("1 scions")) == (0, True)
    monkeypatch.setenv("GRAFTLAB_STORAGE", str(tmp_path / "here"))
    code, told = graft("import", out, *data, "--json")
    assert (code, json.loads(told)["new"]) == (0, [bank.names()[0]])
    assert "0 scions added, 1 were there already" in graft("import", out, *data)[1]
    assert graft("import", str(tmp_path / "nosuch.tar"), *data)[0] == 2
    assert graft("export", "--all", out, "--data", str(tmp_path / "nosuch"))[0] == 2
