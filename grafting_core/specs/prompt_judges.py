"""Table of prompt judges, and the weights that the lab's administrator names for them.

Nothing is ever downloaded. Weights are files or folders that the administrator names, with their SHA-256, in
a JSON or YAML file at the path in `GRAFTLAB_PROMPT_JUDGES`:

    geneval@mmdet2:
      detector: {path: /models/mask2former_swin-s.pth, sha256: 743b7d99...}
      clip: {path: /models/clip-vit-large-patch14, sha256: ...}
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from grafting_core.specs.features import FeatureSource, digest_of_path
from grafting_core.specs.plugins import API_VERSION, Entry, PluginTable

SETTING = "GRAFTLAB_PROMPT_JUDGES"
OFFICIAL = "geneval@mmdet2"
"""Name of the published GenEval evaluator, with the version of the library that its detector is from."""
CLIP_FILES = ("config.json", "merges.txt", "model.safetensors", "vocab.json")

Sources = Mapping[str, FeatureSource]
"""Part of a judge -> file or folder of its weights."""


class JudgeKind(Entry):
    """Table row; `load` names a function (name, sources, device) -> `PromptJudge`."""

    summary: str
    parts: Mapping[str, tuple[str, ...]] = {}
    """Part whose weights the administrator names -> files of its folder that are read; () for one file."""


PROMPT_JUDGES = PluginTable(
    "prompt judge",
    "graftlab.prompt_judges",
    JudgeKind,
    {
        OFFICIAL: JudgeKind(
            api=API_VERSION,
            load="grafting_core.evaluation.geneval.official:load_official",
            summary="GenEval as published: Mask2Former of mmdet 2, colours by CLIP ViT-L/14",
            parts={"detector": (), "clip": CLIP_FILES},
        )
    },
)


def judge_sources(name: str) -> Sources:
    """Weights of a judge, each verified by its digest.

    Raises ValueError for an unknown judge, and for weights that are not named, do not exist or have another
    digest.
    """
    kind = PROMPT_JUDGES.find(name)
    named = _read_sources().get(name, {}) if kind.parts else {}
    missing = [part for part in kind.parts if part not in named]
    if missing:
        raise ValueError(
            f"{name} needs weights for {', '.join(missing)}: name path and sha256 of each in {SETTING}"
        )
    unknown = [part for part in named if part not in kind.parts]
    if unknown:
        raise ValueError(f"{SETTING}: {name} has no part {unknown[0]!r}; it has {', '.join(kind.parts)}")
    for part, files in kind.parts.items():
        _verify(f"{name}, {part}", named[part], files)
    return named


def digest_of_files(path: Path, files: Sequence[str]) -> str:
    """SHA-256 of a file, or of a folder over the names and digests of the files in it that are read."""
    if not files:
        return digest_of_path(path)
    hashed = hashlib.sha256()
    for name in sorted(files):
        hashed.update(f"{name}:{digest_of_path(path / name)}\n".encode())
    return hashed.hexdigest()


def _verify(what: str, source: FeatureSource, files: Sequence[str]) -> None:
    path = Path(source.path)
    needed = [path / name for name in files] or [path]
    missing = [file for file in needed if not file.is_file()]
    if missing:
        raise ValueError(f"{what}: {missing[0]} does not exist")
    digest = digest_of_files(path, files)
    if digest != source.sha256:
        raise ValueError(f"{what}: {path} has SHA-256 {digest}, not {source.sha256}; it was not loaded")


def _read_sources() -> Mapping[str, Sources]:
    named = os.environ.get(SETTING)
    if not named:
        return {}
    try:
        document = yaml.safe_load(Path(named).read_text(encoding="utf-8"))
        found = TypeAdapter(dict[str, dict[str, FeatureSource]]).validate_python(document)
    except (OSError, ValidationError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{SETTING}: {named} cannot be used: {' '.join(str(error).split())[:300]}"
        ) from error
    unknown = sorted(set(found) - set(PROMPT_JUDGES))
    if unknown:
        raise ValueError(f"{SETTING}: {named} names {unknown[0]!r}; known: {', '.join(PROMPT_JUDGES)}")
    return found
