"""The command line against a real application: what it asks, prints and says where it cannot go on."""

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grafting_core.specs.studies.parsing import parse_study
from service.cli import console
from service.cli.failing import guarded
from service.cli.main import main
from service.client import ApiProblem, CannotBeSent, GraftlabClient
from service.db.engine import Database
from service.db.tables import ExperimentRow
from service.domain.studies import create_study
from service.local_keys import first_key
from service.settings import Settings
from tests.support.api_server import serving
from tests.support.builders import document, minimal_study
from tests.support.commands import Graft, command_line


@pytest.fixture
def database_kind() -> str:
    """What the command line does depends on no database."""
    return "sqlite"


@pytest.fixture
def lab(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[GraftlabClient]:
    """A client of a lab without a cluster, which the command line finds as well."""
    with serving(settings) as port:
        monkeypatch.setenv("GRAFTLAB_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("GRAFTLAB_KEY", first_key(settings.data_dir))
        yield GraftlabClient(f"http://127.0.0.1:{port}")


@pytest.fixture
def graft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Graft:
    return command_line(monkeypatch, capsys)


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Somebody sits there and answers so."""

    def sit(answer: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        for stream in (sys.stdin, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)

    return sit


def limits_of(lab: GraftlabClient, name: str) -> dict[str, Any]:
    found = next(each for each in lab.accounts() if each.name == name)
    quotas = {"max_queued": found.max_queued, "max_cpus": found.max_cpus}
    return found.limits.model_dump(exclude_none=True) | {n: v for n, v in quotas.items() if v is not None}


def test_looking_at_a_budget_changes_nothing_and_setting_one_limit_keeps_the_others(
    lab: GraftlabClient, graft: Graft
) -> None:
    lab.set_limits("user", "ada", {"device_seconds": 60.0, "flops": 1e18}, {"max_queued": 4})
    before = limits_of(lab, "ada")
    code, shown, _ = graft("budget", "user/ada")
    assert code == 0
    assert "60" in shown
    assert limits_of(lab, "ada") == before
    assert graft("budget", "user/ada", "--flops", "2e18", "--max-cpus", "3")[0] == 0
    assert limits_of(lab, "ada") == before | {"flops": 2e18, "max_cpus": 3}
    assert graft("budget", "user/ada", "--remove", "flops", "--remove", "max-queued")[0] == 0
    assert limits_of(lab, "ada") == {"device_seconds": 60.0, "max_cpus": 3}
    assert graft("budget", "user/ada", "--remove", "all")[0] == 0
    assert limits_of(lab, "ada") == {}


def test_looking_at_somebody_new_makes_no_account(lab: GraftlabClient, graft: Graft) -> None:
    code, _, said = graft("budget", "user/nobody")
    assert (code, said.strip()) == (0, "user/nobody has used nothing and has no limits")
    assert "nobody" not in {each.name for each in lab.accounts()}
    assert graft("budget", "--flops", "1")[0] == 2
    assert graft("budget", "user/ada", "--remove", "flop")[0] == 2


def test_a_design_is_submitted_with_a_tag_whose_account_has_limits(
    lab: GraftlabClient, graft: Graft, tmp_path: Path
) -> None:
    design = tmp_path / "design.json"
    design.write_text(json.dumps(document()))
    code, told, _ = graft("submit", str(design), "--tag", "sweep", "--json")
    assert (code, lab.run(json.loads(told)["run_id"]).tag) == (0, "sweep")
    assert graft("budget", "tag/sweep", "--flops", "1e18")[0] == 0
    (account,) = [each for each in lab.accounts() if (each.scope, each.name) == ("tag", "sweep")]
    assert account.limits.flops == 1e18
    code, _, said = graft("budget", "study/sweep")
    assert (code, "write lab, user/NAME or tag/NAME" in said) == (2, True)


def test_what_cannot_be_undone_asks_on_a_terminal(
    lab: GraftlabClient, graft: Graft, at_a_terminal: Callable[[str], None]
) -> None:
    run = lab.submit(document()).run_id
    other = lab.submit(document(name="other")).run_id
    key = lab.make_key("ada").id
    for words in (("kill", run), ("cancel", run, other), ("keys", "revoke", str(key)), ("admin", "gc")):
        at_a_terminal("n\n")
        code, _, asked = graft(*words)
        assert (code, "[y/N]" in asked) == (130, True), words
    at_a_terminal("n\n")
    assert graft("bank", "gc", "--max-mib", "1")[0] == 130
    assert {lab.run(each).state for each in (run, other)} == {"QUEUED"}
    keys = lab.keys()
    assert next(each for each in keys if each.id == key).revoked_at is None
    at_a_terminal("y\n")
    assert graft("cancel", run, other)[0] == 0
    at_a_terminal("")
    assert graft("keys", "revoke", str(key), "--yes")[0] == 0
    assert graft("admin", "gc", "--dry-run")[0] == 0
    assert {lab.run(each).state for each in (run, other)} == {"CANCELLED"}


def test_a_script_is_not_asked(lab: GraftlabClient, graft: Graft) -> None:
    run = lab.submit(document()).run_id
    assert graft("kill", run)[0] == 0
    assert graft("admin", "gc")[0] == 0
    assert lab.run(run).state == "CANCELLED"


def test_json_stands_alone_on_standard_output(lab: GraftlabClient, graft: Graft, tmp_path: Path) -> None:
    design = tmp_path / "a.json"
    design.write_text(json.dumps(document()))
    run = json.loads(graft("submit", str(design), "--json")[1])["run_id"]
    lab.act("kill", [run])
    commands = ["ls", "queue", "budget", "leaderboard", "operators", "latencies", "keys ls", "webhook ls"]
    commands += [
        "bank ls",
        "bank verify",
        "study ls",
        "admin verify",
        "admin gc",
        f"show {run}",
        "plan " + str(design),
    ]
    for command in commands:
        code, told, _ = graft(*command.split(), "--json")
        assert code == 0, command
        json.loads(told)


def test_progress_of_a_run_that_is_waited_for_is_no_part_of_the_json(
    lab: GraftlabClient, graft: Graft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    design = tmp_path / "a.json"
    design.write_text(json.dumps(document()))
    look = GraftlabClient.run

    def ended(self: GraftlabClient, run_id: str) -> Any:
        self.act("kill", [run_id])
        return look(self, run_id)

    monkeypatch.setattr(GraftlabClient, "run", ended)
    code, told, progress = graft("submit", str(design), "--wait", "--json")
    assert (code, json.loads(told)["state"]) == (1, "CANCELLED")
    assert "CANCELLED" in progress


def test_lists_say_where_they_stop_and_give_all_when_asked(lab: GraftlabClient, graft: Graft) -> None:
    runs = [lab.submit(document(name=f"n{number}")).run_id for number in range(7)]
    _code, told, said = graft("ls", "--limit", "5", "--json")
    assert (len(json.loads(told)["runs"]), "there are more" in said) == (5, True)
    _, told, said = graft("ls", "--all", "--json")
    assert ([run["id"] for run in json.loads(told)["runs"]], said) == (runs[::-1], "")
    assert [run.id for run in lab.all_runs(page=3)] == runs[::-1]
    assert "5 of 7 queued" in graft("queue", "--limit", "5")[2]


def test_studies_are_paged_and_found_by_how_their_id_begins(
    lab: GraftlabClient, graft: Graft, settings: Settings
) -> None:
    database, spec = Database(settings.database_url), parse_study(minimal_study())
    made = []
    for number in range(5):
        with database.writing() as session:
            made.append(create_study(session, spec, {}, f"digest {number}", None, "lab").id)
    database.engine.dispose()
    assert [found.id for found in lab.all_studies(page=2)] == made[::-1]
    assert lab.studies(2).next_cursor == made[3]
    _, told, said = graft("study", "ls", "--limit", "2", "--json")
    assert (len(json.loads(told)["studies"]), "there are more" in said) == (2, True)
    assert graft("study", "show", made[0])[0] == 0
    assert graft("study", "show", "0" * 40)[0] == 2


def test_names_cannot_steer_the_terminal(lab: GraftlabClient, graft: Graft, settings: Settings) -> None:
    run = lab.submit(document()).run_id
    database = Database(settings.database_url)
    with database.writing() as session:  # as an earlier version kept it
        session.query(ExperimentRow).one().name = "a\x1b[2J\u202eb\u200b"
    database.engine.dispose()
    for words in (("ls",), ("show", run), ("queue",)):
        told = graft(*words)[1]
        assert "\\u001b" in told, words
        assert not {"\x1b", "\u202e", "\u200b"} & set(told), words


@pytest.mark.parametrize("width", [1, 20])
def test_narrow_terminals_get_every_table(
    lab: GraftlabClient, graft: Graft, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(console.out, "width", width)
    run = lab.submit(document()).run_id
    for words in (["ls"], ["show", run], ["queue"], ["budget"], ["operators"], ["latencies"], ["--help"]):
        code, _, said = graft(*words)
        assert (code, said) == (0, ""), words


def test_an_ascii_terminal_shows_escapes(lab: GraftlabClient, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.submit(document(name="grafted 🌱"))
    for words, text in ((["ls"], "grafted \\U0001f331"), (["ls", "--json"], "grafted \\ud83c\\udf31")):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
        monkeypatch.setattr(sys, "argv", ["graft", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert text in written.getvalue().decode("ascii")


BAD_WORDS = [
    (["ls", "--url", "nonsense"], 2, "is not the address of a lab"),
    (["ls", "--url", "http://[::1"], 2, "is not the address of a lab"),
    (["ls", "--url", "http://h:99999"], 2, "is not the address of a lab"),
    (["ls", "--url", "ftp://127.0.0.1"], 2, "is not the address of a lab"),
    (["ls", "--url", "http://\udcff"], 2, "is not the address of a lab"),
    (["ls", "--url", "http://127.0.0.1:9/?a=b"], 2, "is not the address of a lab"),
    (["plan", "/tmp"], 2, "/tmp: Is a directory"),
    (["plan", "/tmp/\udcff"], 2, "No such file"),
    (["plan", "/dev/zero"], 2, "characters"),
    (["show", "\udcff"], 2, "no runs have an id"),
    (["study", "show", "\udcff"], 2, "no studies have ids"),
    (["budget", "user/\udcff"], 0, "has used nothing"),
    (["bank", "ls", "--kind", "\udcff"], 2, "cannot be"),
    (["keys", "make", "\udcff"], 2, "lone surrogate"),
    (["logs", "x" * 5000], 2, "query/prefix"),
    (["evaluate", "x", "--protocol", "/tmp"], 2, "Is a directory"),
]


@pytest.mark.parametrize(("words", "code", "reason"), BAD_WORDS)
def test_odd_words_end_in_a_sentence(
    lab: GraftlabClient, graft: Graft, words: list[str], code: int, reason: str
) -> None:
    ended, _, said = graft(*words)
    assert (ended, reason in said, "Traceback" in said) == (code, True, False), said


def test_a_key_that_no_header_can_carry_is_not_told(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("ключ", "glk_a\nb", "\udcff"):
        monkeypatch.setenv("GRAFTLAB_KEY", key)
        code, _, said = graft("ls", "--url", "http://127.0.0.1:9")
        assert (code, "the key holds characters" in said, "ключ" in said) == (2, True, False)


def test_files_that_hold_no_design_are_told_by_name(
    lab: GraftlabClient, graft: Graft, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert "the document is empty" in graft("submit", str(empty))[2]
    numbered = tmp_path / "seed.yaml"
    numbered.write_text("name: a\nbackbone: testbed/dit-fashion\ndistill: {seed: 0100}\n")
    assert "line 3: 0100 starts with a zero" in graft("plan", str(numbered))[2]


def test_what_answers_but_is_no_lab_is_told(graft: Graft, lab: GraftlabClient) -> None:
    code, _, said = graft("ls", "--url", f"{lab.url}/static")
    assert (code, "Traceback" in said) == (2, False)


def test_a_full_disk_and_mistakes_end_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> Callable[[], int]:
        def command() -> int:
            raise error

        return command

    assert guarded(fail(IsADirectoryError(errno.EISDIR, "Is a directory", "out.png"))) == 1
    assert capsys.readouterr().err == "out.png: Is a directory\n"
    assert guarded(fail(OSError(errno.ENOSPC, "No space left on device"))) == 1
    assert capsys.readouterr().err == "the output cannot be written: No space left on device\n"
    assert guarded(fail(RuntimeError("odd \udcff"))) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "graft failed unexpectedly: RuntimeError: odd \\udcff"
    path = Path(second.removeprefix("the details are in ").removesuffix("; please report them"))
    assert "Traceback" in path.read_text()
    path.unlink()


def test_notes_say_that_the_warm_up_never_ends(lab: GraftlabClient, graft: Graft, tmp_path: Path) -> None:
    design = tmp_path / "a.json"
    design.write_text(json.dumps(document()))
    sentence = "distill.warmup_steps is 20 of 6 steps: the learning rate never reaches 0.002"
    assert lab.plan(document()).notes[0] == sentence
    assert lab.submit(document()).notes[0] == sentence
    assert sentence in graft("submit", str(design))[2]
    assert not lab.plan(document(distill={"steps": 20}, finetune={"steps": 0})).notes


def test_the_client_sends_null_and_surrogates_as_they_are(lab: GraftlabClient) -> None:
    for bad, reason in ((None, "the document is empty"), (document(name="\ud800"), "lone surrogate")):
        with pytest.raises(ApiProblem, match=reason):
            lab.submit(bad)
    with pytest.raises(CannotBeSent):
        lab.scion("\ud800")


def test_output_that_is_full_is_told_once() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "service.cli.main", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )
    assert (done.returncode, done.stderr) == (1, "the output cannot be written: No space left on device\n")
