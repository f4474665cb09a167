"""Turn exceptions of commands into a sentence and an exit code, without a traceback."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress

import typer
from typer.exceptions import TyperException

from service.cli.console import Refused, say
from service.cli.discovery import LabBusy
from service.client import ApiProblem, CannotBeSent, LabUnreachable
from service.lab.ports import NoFreePort
from service.lab.supervisor import StartFailed
from service.startup import CannotStart


def guarded(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code; an exception is reported on standard error and gives its
    own.
    """
    _encode_anything()
    try:
        code = command() or 0
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        _leave_output()
        return 1
    except Exception as error:  # noqa: BLE001 - the last handler: every other exception ends in a sentence
        with suppress(OSError):
            return _report(error)
        return 1
    return code


def _encode_anything() -> None:
    """Print characters missing in the terminal's encoding as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _leave_output() -> None:
    """Redirect output to /dev/null when its reader has gone or it is full: the interpreter would complain at
    exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception) -> int:
    """Print the message of an error and return its exit code."""
    match error:
        case TyperException():
            say([error.format_message()])
            return int(error.exit_code)
        case Refused() | ApiProblem():
            say(error.lines)
            return 2
        case LabBusy() | CannotBeSent():
            say([str(error)])
            return 2
        case LabUnreachable() | NoFreePort() | StartFailed() | CannotStart():
            say([str(error)])
            return 1
        case OSError():
            _leave_full_output()
            say([_of_the_system(error)])
            return 1
    say(_unexpected(error))
    return 1


def _leave_full_output() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _leave_output()


def _of_the_system(error: OSError) -> str:
    """Describe an error of the operating system, such as `/dev/full: No space left on device`."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return f"the output cannot be written: {reason}" if error.errno else reason
    return f"{os.fsdecode(error.filename)}: {reason}"


def _unexpected(error: Exception) -> Iterator[str]:
    yield f"graft failed unexpectedly: {type(error).__name__}: {str(error)[:300]}"
    with (
        suppress(OSError),
        tempfile.NamedTemporaryFile(
            "w", prefix="graft-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file,
    ):
        file.write("".join(traceback.format_exception(error)))
        yield f"the details are in {file.name}; please report them"
