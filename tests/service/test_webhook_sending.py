"""Which addresses a webhook may have, and how one is called."""

import contextlib
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from service.settings import Settings
from service.webhook_hosts import HostNotAllowed, check
from service.webhooks.http import Undelivered, post
from tests.support.webhook_server import WebhookServer, serve_webhooks


def test_the_environment_has_no_say(webhook_server: WebhookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert post(webhook_server.url("localhost"), {"x-a": "b"}, b"{}", seconds=5) == 204
    (received,) = webhook_server.received
    assert received.headers["host"] == f"localhost:{webhook_server.port}"
    assert (received.headers["x-a"], received.body) == ("b", b"{}")


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """(certificate, key) of a host, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, content in (("cert.pem", made.public_bytes(Encoding.PEM)), ("key.pem", private)):
        (folder / file).write_bytes(content)
    return folder / "cert.pem", folder / "key.pem"


def test_over_tls_the_certificate_has_to_be_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = _certificate(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serve_webhooks(tls=(certificate, key)) as webhook_server:
        of_name, of_address = (
            webhook_server.url(host).replace("http:", "https:") for host in ("localhost", "127.0.0.1")
        )
        assert post(of_name, {}, b"{}", seconds=5) == 204
        with pytest.raises(Undelivered, match="ertificate"):
            post(of_address, {}, b"{}", seconds=5)
    assert len(webhook_server.received) == 1


@pytest.mark.parametrize(
    "flood", [b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000, b"no HTTP at all\r\n\r\n", b""]
)
def test_answers_without_end_or_sense_are_given_up(flood: bytes) -> None:
    """The last one says nothing, and keeps the line open."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        lines: list[socket.socket] = []

        def answer() -> None:
            line, _ = server.accept()
            lines.append(line)
            try:
                line.sendall(flood)
            except OSError:
                return

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(Undelivered):
            post(url, {}, b"{}", seconds=0.5)
        thread.join()
        lines[0].close()


def test_an_answer_that_trickles_in_ends_with_the_time_for_one_delivery() -> None:
    """A byte at a time, each well within the time, is over when that time is."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            line, _ = server.accept()
            with line, contextlib.suppress(OSError):
                line.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                while not ended.wait(0.05):
                    line.sendall(b"y")

        thread = threading.Thread(target=trickle)
        thread.start()
        with pytest.raises(Undelivered, match=r"no answer within 0\.5 s"):
            post(f"http://127.0.0.1:{server.getsockname()[1]}/", {}, b"{}", seconds=0.5)
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ("ci.internal", "https://ci.internal/graft?x=1"),
        ("ci.internal", "http://CI.Internal.:8080/"),
        ("CI.internal.", "http://ci.internal/"),
        ("ci.internal:443", "https://ci.internal/"),
        ("10.0.0.7:8080", "http://10.0.0.7:8080/"),
        ("[::1]:80", "http://[::1]/"),
        ("m\u00fcller.example", "https://xn--mller-kva.example/"),
    ],
)
def test_hosts_on_the_list_may_be_called(entry: str, url: str) -> None:
    check(url, ["other.example", entry])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (
            "https://ci.internal.evil.example/",
            "ci.internal.evil.example:443 is not in GRAFTLAB_WEBHOOK_HOSTS",
        ),
        ("https://evil.example/ci.internal", "evil.example:443 is not in"),
        ("http://10.0.0.7/", "10.0.0.7:80 is not in"),
        ("http://10.0.0.7:8081/", "which names ci.internal, 10.0.0.7:8080"),
        ("http://167772167:8080/", "167772167:8080 is not in"),
        ("http://ci.internal\\@evil.example/", "is not in|user, password"),
        ("http://me:secret@ci.internal/", "user, password or fragment"),
        ("ftp://ci.internal/", "the scheme is 'ftp'"),
        ("//ci.internal/", "the scheme is ''"),
        ("http://ci.internal:x/", "not an address"),
    ],
)
def test_hosts_that_are_not_on_the_list_are_refused(url: str, why: str) -> None:
    with pytest.raises(HostNotAllowed, match=why):
        check(url, ["ci.internal", "10.0.0.7:8080"])


@pytest.mark.parametrize(
    "entry", ["", "http://ci.internal", "ci.internal/graft", "me@ci.internal", "a b", "h:x"]
)
def test_a_list_that_names_no_hosts_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(ValidationError, match=r"is neither `host` nor|is not a host"):
        Settings(webhook_hosts=["ci.internal", entry])
