"""A lab that cannot start says why at once, in one sentence; odd paths and settings are no reason."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry
from sqlalchemy import text

import migrations
from grafting_core.storage.storage import Storage
from service.cli.console import Refused
from service.cli.discovery import data_folder, lock
from service.db import migrate
from service.db.engine import Database
from service.lab.environment import environment_of
from service.lab.import_roots import as_setting, import_roots
from service.lab.supervisor import Supervisor
from service.locking import LOCK_FILE
from service.settings import Settings, cores, mlflow_database, sqlite_file, sqlite_url
from service.startup import CannotStart, check_database, check_packages, check_storage, checked_settings

GRAFT = (sys.executable, "-P", "-m", "service.cli.main")
ODD = "my lab ü?a=1&b%41#x~"


def refusal(settings: Settings) -> str:
    with pytest.raises(CannotStart) as caught:
        check_database(settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--data", "file"], {}, "file is a file; name a folder"),
        (["--data", "shared"], {}, "is shared with other programs"),
        (["--data", "home"], {"HOME": "home"}, "is shared with other programs"),
        (["--data", "lab", "--port", "70000"], {}, "less than or equal to 65535"),
        (["--data", "lab", "--port", "web"], {}, "valid integer"),
        (["--data", "lab"], {"GRAFTLAB_PORT": "web"}, "GRAFTLAB_PORT=web: Input should be a valid integer"),
        (["--data", "lab"], {"GRAFTLAB_ALLOWED_HOSTS": "a,b"}, "lists are written as JSON"),
        (["--data", "lab"], {"GRAFTLAB_HOST": "203.0.113.9"}, "is not an address of this machine"),
        (["--data", "lab"], {"GRAFTLAB_STORAGE": "s3://bucket/lab"}, "install s3fs"),
        (["--data", "lab"], {"GRAFTLAB_DATABASE_URL": "mysql://u:secret@h/n"}, "begins with 'mysql'"),
        (["--data", "~nobody-has-this-name/lab"], {}, "--data ~nobody-has-this-name/lab"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_runs(
    tmp_path: Path, words: list[str], environment: dict[str, str], said: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "home").mkdir()
    told = subprocess.run(
        [*GRAFT, "up", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=tmp_path,
        timeout=100,
    )
    assert told.returncode in (1, 2)
    assert told.stderr.count("\n") == 1
    assert said in told.stderr
    assert "secret" not in told.stderr
    assert not (tmp_path / "lab" / "logs").exists()


@pytest.mark.parametrize("named", ["/", "/tmp", "/var/tmp", "/etc", "/var/lib/.", "link"])
def test_a_folder_of_the_system_is_refused_and_stays_as_it_is(tmp_path: Path, named: str) -> None:
    (tmp_path / "link").symlink_to("/tmp")
    place = tmp_path / named
    before = place.stat()
    with pytest.raises(Refused, match="is shared with other programs"):
        lock(data_folder(place))
    assert (place.stat().st_mode, place.stat().st_uid) == (before.st_mode, before.st_uid)
    assert not (place / LOCK_FILE).exists()


ALL_READ = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("place", ["open", "closed"])
def test_a_user_without_home_and_name_is_told_what_else_is_wrong(tmp_path: Path, place: str) -> None:
    """Reads what the interpreter needs, wherever that lies, and writes nowhere but in `open`."""
    (tmp_path / "open").mkdir()
    os.chown(tmp_path / "open", 54321, 54321)
    (tmp_path / "closed").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    environment["GRAFTLAB_HOST"] = "203.0.113.9"
    as_nobody = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *ALL_READ]
    command = [*as_nobody, *GRAFT, "up", "--data", str(tmp_path / place / "lab")]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert told.returncode in (1, 2)
    assert told.stderr.count("\n") == 1, told.stderr
    why = "is not an address of this machine" if place == "open" else "Permission denied"
    assert why in told.stderr


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "graftlab.db").write_bytes(b"no database at all " * 100)
    assert "is damaged (file is not a database)" in refusal(Settings(data_dir=tmp_path))


@pytest.mark.parametrize("harm", ["cut", "overwritten"])
def test_damage_within_a_database_is_found(tmp_path: Path, harm: str) -> None:
    settings = Settings(data_dir=tmp_path)
    database = Database(settings.database_url)
    migrate.upgrade(database)
    with database.engine.begin() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    database.engine.dispose()
    check_database(settings)
    file = tmp_path / "graftlab.db"
    content = file.read_bytes()
    half = len(content) // 8192 * 4096
    file.write_bytes(content[:half] if harm == "cut" else content[:half] + b"\xa5" * (len(content) - half))
    assert "is damaged" in refusal(settings)


def test_a_database_of_a_newer_version_is_named(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "graftlab.db")) as database:
        database.execute("CREATE TABLE alembic_version (version_num)")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
        database.commit()
    assert "newer version of Graftlab (it is at revision 9999" in refusal(Settings(data_dir=tmp_path))


def test_a_database_that_another_program_holds_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.startup.BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(tmp_path / "graftlab.db", isolation_level=None)) as database:
        database.execute("CREATE TABLE t (a)")
        database.execute("BEGIN EXCLUSIVE")
        assert "another program holds it" in refusal(Settings(data_dir=tmp_path))


def test_a_database_that_is_away_is_named_without_its_password() -> None:
    said = refusal(Settings(database_url="postgresql://user:secret@127.0.0.1:9/lab"))
    assert "cannot be reached" in said
    assert "secret" not in said


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_addresses_of_postgresql_are_taken_as_other_tools_write_them(scheme: str) -> None:
    settings = Settings(database_url=f"{scheme}://u:p@h/lab", optuna_url=f"{scheme}://u:p@h/optuna")
    assert settings.database_url == "postgresql+psycopg://u:p@h/lab"
    assert settings.optuna_url == "postgresql+psycopg://u:p@h/optuna"


def test_a_live_postgresql_is_accepted(empty_database_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=empty_database_url.replace("+psycopg", ""))
    check_database(settings)
    database = Database(settings.database_url)
    migrate.upgrade(database)
    database.engine.dispose()
    check_database(settings)


def test_a_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match="name a folder that this user can write to"):
        check_storage(Settings(data_dir=tmp_path, storage=str(tmp_path / "file" / "storage")))
    with pytest.raises(CannotStart, match="such as s3://bucket/lab"):
        check_storage(Settings(data_dir=tmp_path, storage="nosuch://bucket"))


def test_a_python_without_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.startup.NEEDED", ("ray_that_is_not_there",))
    with pytest.raises(CannotStart, match="/usr/bin/python has no ray_that_is_not_there"):
        check_packages("/usr/bin/python")


def test_settings_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLAB_PORT", "70000")
    monkeypatch.setenv("GRAFTLAB_CPUS", "two")
    with pytest.raises(CannotStart, match=r"GRAFTLAB_PORT=70000: .*; GRAFTLAB_CPUS=two: "):
        checked_settings()


def test_localhost_is_an_address_of_this_machine() -> None:
    assert Settings(host="localhost").host == "127.0.0.1"
    assert "192.0.2.7" in Settings(host="192.0.2.7").allowed_hosts
    assert "0.0.0.0" not in Settings(host="0.0.0.0").allowed_hosts


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:"), ("localhost", "http://127.0.0.1:")]
)
def test_the_lab_s_own_address_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, url: str
) -> None:
    monkeypatch.setenv("GRAFTLAB_HOST", host)
    lab = Supervisor(tmp_path / "lab", 0, 1)
    try:
        lab.prepare()
        assert lab.address.url.startswith(url)
        assert lab.address.ray_dashboard.startswith("http://127.0.0.1:")
        assert "--node-ip-address=127.0.0.1" in lab._commands()["ray"]
    finally:
        lab.stop()


def test_databases_and_storage_are_in_the_folder_however_it_is_called(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / ODD)
    check_database(settings)
    database = Database(settings.database_url)
    migrate.upgrade(database)
    database.engine.dispose()
    check_database(settings)
    Storage(settings.storage).write_bytes("a/b", b"c")
    create_sqlalchemy_engine_with_retry(mlflow_database(settings.data_dir)).dispose()
    assert [each.name for each in tmp_path.iterdir()] == [ODD]
    assert {"graftlab.db", "mlflow.db", "storage"} <= {each.name for each in (tmp_path / ODD).iterdir()}
    assert sqlite_file(sqlite_url(tmp_path / ODD)) == tmp_path / ODD


def test_storage_in_a_folder_with_double_colons(tmp_path: Path) -> None:
    Storage(str(tmp_path / "a::b")).write_bytes("c", b"d")
    assert (tmp_path / "a::b" / "c").read_bytes() == b"d"


def test_paths_are_spelt_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=Path("~/lab"), storage="~/files", database_url="sqlite:///own.db")
    assert settings.data_dir == tmp_path / "lab"
    assert settings.storage == str(tmp_path / "files")
    assert settings.database_url == f"sqlite:///{tmp_path}/own.db"


def test_an_install_path_may_have_per_cent_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "50%(home)s"
    place.mkdir()
    (place / "migrations").symlink_to(Path(migrations.__file__).parent)
    monkeypatch.setattr(migrations, "__file__", str(place / "migrations" / "__init__.py"))
    assert migrate.versions()


@pytest.fixture
def cluttered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    given = {
        "RAY_ADDRESS": "1.2.3.4:5",
        "OMP_NUM_THREADS": "64",
        "GRAFTLAB_KEY": "glk_x",
        "PYTHONPATH": ":code",
    }
    for name, value in {**given, "HOME": "/proc"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_user_s_environment_reaches_no_part(cluttered: Path) -> None:
    told, ray = environment_of("api", cluttered), environment_of("ray", cluttered)
    assert told["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in ray
    assert not {"RAY_ADDRESS", "GRAFTLAB_KEY"} & (set(told) | set(ray))
    assert told["PYTHONPATH"] == str(cluttered / "code")
    assert told["PYTHONSAFEPATH"] == "1"
    assert told["HOME"] == str(cluttered)


def test_an_embedded_lab_registers_from_its_users_home_unless_it_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert import_roots(Settings(data_dir=tmp_path)) == [tmp_path]
    assert import_roots(Settings(data_dir=tmp_path, host="192.0.2.1")) == []
    monkeypatch.setenv("GRAFTLAB_IMPORT_ROOTS", "[]")
    assert import_roots(Settings(data_dir=tmp_path)) == []
    monkeypatch.setenv("GRAFTLAB_IMPORT_ROOTS", '["~/models", "/data"]')
    assert import_roots(Settings(data_dir=tmp_path)) == [tmp_path / "models", Path("/data")]
    monkeypatch.setenv("GRAFTLAB_IMPORT_ROOTS", as_setting([tmp_path / "a b"]))
    assert Settings(data_dir=tmp_path).import_roots == [tmp_path / "a b"]


def test_cores_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
        assert Settings().cpus == 1
    finally:
        os.sched_setaffinity(0, allowed)
