"""The prompt file: one JSON object a line, `evaluation_metadata.jsonl` of the official tool."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from grafting_core.data.npz import BadFile
from grafting_core.specs.geneval import PromptSpec
from grafting_core.storage.storage import Storage

MAX_BYTES = 64 << 20
NAMED = 10


@dataclass(frozen=True)
class PromptSet:
    """Prompts by index, which is also the number of their folder of images."""

    prompts: tuple[PromptSpec, ...]
    metadata: tuple[str, ...]
    """JSON of each line as the official tool writes it into its results."""
    sha256: str
    """Digest of the file's bytes: rewritten prompts are another benchmark."""

    def __len__(self) -> int:
        return len(self.prompts)


def read_prompts(path: Path) -> PromptSet:
    """Read a prompt file. Raises BadFile with every line that cannot be used, the first ten by name."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadFile(f"{path} has more than {MAX_BYTES >> 20} MiB; one line a prompt is expected")
        content = path.read_bytes()
        lines = content.decode("utf-8").removesuffix("\n").split("\n") if content else []
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} cannot be read as a file of prompts: {error}") from error
    prompts, wrong = list[PromptSpec](), list[str]()
    for number, line in enumerate(lines, 1):
        try:
            prompts.append(prompt_of(line))
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    wrong += _repeated(prompts) if not wrong else []
    if not lines:
        wrong = ["it has no prompts"]
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise BadFile(f"{path} cannot be used: {'; '.join(wrong[:NAMED])}{more}")
    metadata = tuple(json.dumps(json.loads(line)) for line in lines)
    return PromptSet(tuple(prompts), metadata, hashlib.sha256(content).hexdigest())


def prompt_of(line: str) -> PromptSpec:
    """Prompt of a line. Raises ValueError with the field and what would be right."""
    if not line.strip():
        raise ValueError("it is empty")
    try:
        return PromptSpec.model_validate_json(line)
    except ValidationError as error:
        raise ValueError("; ".join(_explained(error))) from error


def _explained(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        place = ".".join(map(str, problem["loc"]))
        yield f"{place}: {problem['msg']}" if place else problem["msg"].removeprefix("Value error, ")


def _repeated(prompts: Sequence[PromptSpec]) -> Iterator[str]:
    """Prompts of the same text: their images would count twice, and share seeds."""
    first = dict[str, int]()
    for number, prompt in enumerate(prompts, 1):
        if first.setdefault(prompt.prompt, number) != number:
            yield f"line {number} repeats line {first[prompt.prompt]}: {prompt.prompt!r}"


def write_prompts(path: Path, prompts: Sequence[PromptSpec]) -> None:
    """Write a prompt file atomically."""
    content = "".join(f"{prompt.line()}\n" for prompt in prompts)
    Storage(str(path.resolve().parent)).write_bytes(path.name, content.encode())
