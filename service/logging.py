"""Logging as one JSON object per line, with run and attempt, and without secrets."""

import json
import logging
import re
import sys
from datetime import UTC, datetime

SECRET = re.compile(
    r"gl[klms]_[A-Za-z0-9_-]{8,}|whsec_[A-Za-z0-9+/=]+|(?i:(?<=bearer )\S+)|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
"""Keys, sessions, login codes and webhook secrets; what follows `Bearer`; user and password of a URL."""
ABOUT = re.compile(r"\brun (?P<run>[0-9a-z]{6,32})(?: attempt (?P<attempt>\d+))?")
FACTS = ("request", "method", "path", "status", "seconds", "owner", "run", "attempt")
LONGEST = 4000


class JsonLines(logging.Formatter):
    """Formatter that keeps users' text inside its JSON string: line ends are escaped, so no line can be
    forged.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": text[:LONGEST],
        }
        about = ABOUT.search(text)
        if about:
            line["run"] = about["run"]
            line |= {"attempt": int(about["attempt"])} if about["attempt"] else {}
        line |= {name: getattr(record, name) for name in FACTS if getattr(record, name, None) is not None}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)[-LONGEST:]
        return SECRET.sub("[secret]", json.dumps(line, default=str))


def setup_logging() -> None:
    """Configure this process to log to standard error with `JsonLines`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
