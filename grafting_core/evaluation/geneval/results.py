"""Results as the official tool writes them, and the summary that it prints of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from grafting_core.data.npz import BadFile
from grafting_core.storage.storage import Storage


@dataclass(frozen=True)
class ResultRow:
    """Result for an image; `metadata` and `details` are JSON, the latter class -> boxes with scores."""

    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: str
    metadata: str
    details: str

    def line(self) -> str:
        """JSON as pandas writes it: no spaces, slashes escaped."""
        return json.dumps(asdict(self), separators=(",", ":")).replace("/", "\\/")


def write_results(path: Path, rows: Sequence[ResultRow]) -> None:
    """Write `results.jsonl` atomically."""
    content = "".join(f"{row.line()}\n" for row in rows)
    Storage(str(path.resolve().parent)).write_bytes(path.name, content.encode())


def read_results(path: Path) -> list[ResultRow]:
    """Read `results.jsonl`, ours or the official tool's. Raises BadFile for a line that is no result."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} cannot be read as results: {error}") from error
    rows = list[ResultRow]()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(ResultRow(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise BadFile(f"{path}, line {number} is no result of GenEval: {error}") from error
    return rows


def summary_of(rows: Sequence[ResultRow], complete: bool = True) -> str:
    """Summary line by line as the official tool prints it, tasks in the order of their first image.

    An incomplete set has no overall score, where the official tool prints the mean of what there is.
    """
    by_prompt, by_task = dict[str, list[bool]](), dict[str, list[bool]]()
    for row in rows:
        by_prompt.setdefault(row.metadata, []).append(row.correct)
        by_task.setdefault(row.tag, []).append(row.correct)
    tasks = [
        f"{tag:<16} = {fmean(right):.2%} ({sum(right)} / {len(right)})" for tag, right in by_task.items()
    ]
    mean = fmean(fmean(right) for right in by_task.values())
    overall = f"{mean:.5f}" if complete else "none, the set is incomplete"
    return "\n".join(
        [
            "Summary",
            "=======",
            f"Total images: {len(rows)}",
            f"Total prompts: {len(by_prompt)}",
            f"% correct images: {fmean(row.correct for row in rows):.2%}",
            f"% correct prompts: {fmean(any(right) for right in by_prompt.values()):.2%}",
            "",
            "Task breakdown",
            "==============",
            *tasks,
            "",
            f"Overall score (avg. over tasks): {overall}",
        ]
    )
