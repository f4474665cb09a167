"""How a webhook is called: at a public address that was checked, by its name, for a bounded time."""

import ipaddress
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

from service.domain.webhook_addresses import Blocked, check, is_public
from service.webhooks.http import Undelivered, post
from tests.support.webhook_server import WebhookServer, serve_webhooks


def test_a_name_that_changes_its_address_after_it_was_checked_is_not_called(
    webhook_server: WebhookServer,
) -> None:
    answers = [["93.184.216.34"], ["127.0.0.1"]]

    def rebinding(host: str, port: int) -> list[str]:
        return answers.pop(0)

    url = webhook_server.url("hooks.example")
    check(url, [], rebinding)
    with pytest.raises(Blocked, match=r"127\.0\.0\.1"):
        post(url, {}, b"{}", named=[], seconds=5, look_up=rebinding)
    assert webhook_server.received == []


def test_the_connection_goes_to_the_checked_address_and_the_name_stays_in_the_request(
    webhook_server: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    looked_up = []

    def once(host: str, port: int) -> list[str]:
        looked_up.append((host, port))
        return ["127.0.0.1"]

    url = webhook_server.url("hooks.example")
    assert post(url, {}, b"{}", named=["hooks.example"], seconds=5, look_up=once) == 204
    assert looked_up == [("hooks.example", webhook_server.port)]
    assert webhook_server.received[0].headers["host"] == f"hooks.example:{webhook_server.port}"


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
    certificate, key = _certificate(tmp_path, "hooks.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    named = {"named": ["hooks.example", "other.example"], "seconds": 5.0}
    with serve_webhooks(tls=(certificate, key)) as webhook_server:
        for host in ("hooks.example", "other.example"):
            url = webhook_server.url(host).replace("http:", "https:")
            if host == "hooks.example":
                assert post(url, {}, b"{}", **named, look_up=lambda host, port: ["127.0.0.1"]) == 204
            else:
                with pytest.raises(Undelivered, match="ertificate"):
                    post(url, {}, b"{}", **named, look_up=lambda host, port: ["127.0.0.1"])
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
            post(url, {}, b"{}", named=["127.0.0.1"], seconds=0.5)
        thread.join()
        lines[0].close()


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        *((each, False) for each in ("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1")),
        *(
            (each, False)
            for each in ("0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1")
        ),
        *((each, False) for each in ("::", "::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1")),
        *((each, False) for each in ("::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::")),
    ],
)
def test_what_is_public(text: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(text)) == public


def test_link_local_addresses_are_not_called_even_where_the_host_is_named() -> None:
    with pytest.raises(Blocked):
        check("http://metadata.example/", ["metadata.example"], lambda host, port: ["169.254.169.254"])


def test_all_addresses_of_a_name_have_to_be_public() -> None:
    with pytest.raises(Blocked):
        check("http://two.example/", [], lambda host, port: ["8.8.8.8", "10.0.0.1"])
    check("http://two.example/", [], lambda host, port: ["8.8.8.8", "2606:4700::1111"])
