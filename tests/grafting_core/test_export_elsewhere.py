"""Exports in an environment that has diffusers and not this package: the same images to the bit."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from grafting_core import export_model
from grafting_core.backbones.autoencoder import KLAutoencoder
from grafting_core.backbones.base import Backbone
from grafting_core.export.pipeline import GraftedDiTPipeline
from grafting_core.specs.design import ParallelPair, Part
from tests.support.builders import replacement
from tests.support.documentation import first_block
from tests.support.grafts import SHAPES, graft_of, original_backbone, small_backbone
from tests.support.separate_python import SeparatePython

SAMPLE = """
import json, sys
import torch
from diffusers import AutoModel, DiffusionPipeline, DiTPipeline
from safetensors.torch import save_file
try:
    import grafting_core
except ImportError:
    pass
else:
    raise SystemExit("this package is there")
torch.set_num_threads(int(sys.argv[2]))
def seeded(): return torch.Generator().manual_seed(5)
for folder in sys.argv[3:]:
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    images = {}
    for scale in (1.0, 1.5):
        images[f"own {scale}"] = pipeline(
            [0, 3, 1], guidance_scale=scale, num_inference_steps=4, generator=seeded(), output_type="pt"
        ).images
    transformer = AutoModel.from_pretrained(folder + "/transformer", trust_remote_code=True)
    plain = DiTPipeline(transformer=transformer, vae=pipeline.vae, scheduler=pipeline.scheduler)
    plain.set_progress_bar_config(disable=True)
    images["plain"] = plain(
        [0, 3, 1], guidance_scale=1.0, num_inference_steps=4, generator=seeded(), output_type="pt"
    ).images
    images = {name: image.contiguous() for name, image in images.items()}
    save_file(images, folder + "/" + sys.argv[1])
print(json.dumps(sorted(name for name in sys.modules if "graft" in name)))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> SeparatePython:
    return SeparatePython(tmp_path_factory.mktemp("elsewhere"))


def test_exports_are_sampled_elsewhere_as_here(
    elsewhere: SeparatePython, backbone: Backbone, tmp_path: Path
) -> None:
    own = small_backbone(tmp_path / "own")
    cases: list[tuple[Backbone, tuple[Part, ...]]] = [
        (backbone, (*SHAPES["a mix"], ParallelPair(first=6))),
        (backbone, (replacement("hyena_x", 1), replacement("hyena_x", 3))),
        (original_backbone(tmp_path / "original"), SHAPES["pairs of grafts"]),
        *((own, parts) for parts in SHAPES.values()),
    ]
    expected = dict[Path, dict[str, Tensor]]()
    for number, (base, parts) in enumerate(cases):
        folder = tmp_path / f"export-{number}"
        design, transformer = graft_of(base, *parts)
        export_model(base, design, transformer.state_dict(), folder)
        expected[folder] = _sampled(base, transformer, folder)
    threads = str(torch.get_num_threads())
    loaded = elsewhere.json(SAMPLE, "images.safetensors", threads, *map(str, expected))
    assert {name.split(".")[-1] for name in loaded} == {"grafted_dit"}
    for folder, images in expected.items():
        found = load_file(folder / "images.safetensors")
        assert found.keys() == images.keys()
        for name, image in images.items():
            assert image.std() > 0.01
            assert torch.equal(found[name], image), (folder.name, name)


def _sampled(backbone: Backbone, transformer: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Images of the lab's own network, by the pipeline's class and by that of diffusers."""
    assert isinstance(backbone.autoencoder, KLAutoencoder)
    parts = {
        "transformer": transformer,
        "vae": backbone.autoencoder.model,
        "scheduler": DDIMScheduler.from_pretrained(str(folder), subfolder="scheduler"),
    }
    calls = {
        "own 1.0": (GraftedDiTPipeline(**parts), 1.0),
        "own 1.5": (GraftedDiTPipeline(**parts), 1.5),
        "plain": (DiTPipeline(**parts), 1.0),
    }
    return {
        name: pipeline(
            [0, 3, 1],
            guidance_scale=scale,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(5),
            output_type="pt",
        ).images
        for name, (pipeline, scale) in calls.items()
    }


def test_code_is_not_run_unless_it_is_trusted(elsewhere: SeparatePython, tmp_path: Path) -> None:
    own = small_backbone(tmp_path / "own")
    design, transformer = graft_of(own, replacement("hyena_x", 1))
    export_model(own, design, transformer.state_dict(), tmp_path / "out")
    program = "import sys; from diffusers import DiffusionPipeline as P; P.from_pretrained(sys.argv[1])"
    assert "trust_remote_code" in elsewhere.run(program, str(tmp_path / "out"), fails=True)
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["vae"] == [
        "diffusers",
        "AutoencoderKL",
    ]


def test_the_lines_of_the_how_to_and_of_the_model_card_work_as_they_stand(
    elsewhere: SeparatePython, tmp_path: Path
) -> None:
    own = small_backbone(tmp_path / "own")
    design, transformer = graft_of(own, replacement("mamba2", 1), replacement("mlp", 2, ratio=3.0))
    export_model(own, design, transformer.state_dict(), tmp_path / "out")
    program = first_block("how-to/export-a-graft.md", "python").replace("my-graft", str(tmp_path / "out"))
    assert (
        elsewhere.run(f"{program}print([image.size for image in images])").strip() == "[(32, 32), (32, 32)]"
    )
    card = (tmp_path / "out" / "README.md").read_text()
    for line in program.replace(str(tmp_path / "out"), "PATH OF THIS FOLDER").split("\n"):
        assert line in card.splitlines()
