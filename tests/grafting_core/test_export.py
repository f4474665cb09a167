"""An exported graft is the lab's model to the bit: read by this package, and as a model of diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoModel, DDIMScheduler, DiffusionPipeline, DiTPipeline

from grafting_core import export_model, load_grafted
from grafting_core.backbones.autoencoder import KLAutoencoder
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.registered import load_registered, read_card
from grafting_core.backbones.shared_embedders import unique_state
from grafting_core.operators.table import BUILDERS
from grafting_core.specs.design import ParallelPair, Part
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.parsing import read_document
from grafting_core.specs.documents.written import experiment_document
from grafting_core.specs.experiment import evaluation_key, scion_keys
from grafting_core.specs.exports import ExportRecord
from grafting_core.surgery.operate import operate
from tests.support.builders import design_of, document, replacement, same
from tests.support.diffusers_folders import change_weights
from tests.support.grafts import SHAPES, forward, graft_of, small_backbone
from tests.support.modules_cache import modules_in

ANY = pytest.mark.parametrize("parts", SHAPES.values(), ids=SHAPES.keys())
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("own"))


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules_in(tmp_path / "modules", monkeypatch)


def exported(backbone: Backbone, folder: Path, *parts: Part, **facts: Any) -> torch.nn.Module:
    """The graft that was exported to `folder`."""
    design, transformer = graft_of(backbone, *parts)
    record = ExportRecord(name="a-graft", **facts)
    export_model(backbone, design, unique_state(transformer), folder, record)
    return transformer


@ANY
def test_an_export_is_the_same_model_in_this_package_and_in_diffusers(
    own: Backbone, tmp_path: Path, parts: tuple[Part, ...]
) -> None:
    transformer = exported(own, tmp_path / "out", *parts)
    expected = forward(own, transformer)
    assert torch.equal(forward(own, load_grafted(tmp_path / "out").transformer), expected)
    alone = AutoModel.from_pretrained(str(tmp_path / "out" / "transformer"), trust_remote_code=True)
    part = AutoModel.from_pretrained(str(tmp_path / "out"), subfolder="transformer", trust_remote_code=True)
    for theirs in (alone, part):
        assert type(theirs).__name__ == "GraftedDiT"
        assert torch.equal(forward(own, theirs), expected)


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_kind_of_operator_is_exported(own: Backbone, tmp_path: Path, kind: str) -> None:
    part = replacement(kind, 1)
    transformer = exported(own, tmp_path / "out", part)
    expected = forward(own, transformer)
    assert torch.equal(forward(own, load_grafted(tmp_path / "out").transformer), expected)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert torch.equal(forward(own, pipeline.transformer), expected)


def test_an_export_works_as_the_transformer_of_diffusers_pipeline(own: Backbone, tmp_path: Path) -> None:
    """Without guidance, since `DiTPipeline` takes 1000 for the null label whatever the model's is."""
    transformer = exported(own, tmp_path / "out", *SHAPES["a mix"], ParallelPair(first=1))
    scheduler = DDIMScheduler.from_pretrained(str(tmp_path / "out"), subfolder="scheduler")
    theirs = DiffusionPipeline.from_pretrained(str(tmp_path / "out"), trust_remote_code=True).transformer
    assert isinstance(own.autoencoder, KLAutoencoder)
    images = [
        DiTPipeline(transformer=each, vae=own.autoencoder.model, scheduler=scheduler)(
            [0, 3],
            guidance_scale=1.0,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
        ).images
        for each in (theirs, load_grafted(tmp_path / "out").transformer, transformer)
    ]
    assert images[0].shape == (2, 3, 32, 32)
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_the_pipeline_guides_towards_the_label(own: Backbone, tmp_path: Path) -> None:
    """Against guidance written out here, of all channels and of three."""
    exported(own, tmp_path / "out", replacement("hyena_x", 1))
    pipeline = DiffusionPipeline.from_pretrained(str(tmp_path / "out"), trust_remote_code=True)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = pipeline.transformer(
            torch.cat([latents, latents]),
            timestep=torch.tensor([600, 600]),
            class_labels=torch.tensor([own.card.num_classes, 2]),
        ).sample
    null, given = output.chunk(2)
    for channels in (None, 3):
        guided = pipeline._predict(latents, torch.tensor(600), torch.tensor([2]), 2.5, channels)
        count = channels or 4
        assert torch.equal(guided[:, :count], null[:, :count] + 2.5 * (given - null)[:, :count])
        assert torch.equal(guided[:, count:], given[:, count:])


def test_a_folder_tells_its_use_figures_lineage_and_licences(own: Backbone, tmp_path: Path) -> None:
    part = replacement("mlp", 2, ratio=3.0)
    exported(own, tmp_path / "out", part, figures={"fid1k/inception": 12.25}, run="run-7", licence="mit")
    text = (tmp_path / "out" / "README.md").read_text()
    fields = yaml.safe_load(text.split("---\n")[1])
    assert fields["license"] == "mit"
    assert fields["library_name"] == "diffusers"
    assert fields["base_model"] == "own/dit"
    for line in (
        "| block 2 mlp | mlp(ratio=3) |",
        "| fid1k/inception | 12.25 |  |",
        f"- Backbone: own/dit, digest `{own.card.digest}`",
        "- Run: run-7",
        "- Backbone own/dit: cc-by-4.0",
        'pipeline = DiffusionPipeline.from_pretrained("PATH OF THIS FOLDER", trust_remote_code=True)',
    ):
        assert line in text.splitlines()
    card = read_card(tmp_path / "out", name="again")
    assert card.licence == "mit"
    assert card.origin == f"a-graft, a graft of own/dit {own.card.digest[:12]} (cc-by-4.0), run run-7"
    assert read_card(tmp_path / "out", name="again", licence="apache-2.0").licence == "apache-2.0"


def test_a_graft_of_a_graft_tells_every_licence_before(own: Backbone, tmp_path: Path) -> None:
    exported(own, tmp_path / "first", replacement("mlp", 2), run="run-7", licence="mit")
    again = load_grafted(tmp_path / "first")
    exported(again, tmp_path / "second", replacement("hyena_x", 1), licence="apache-2.0")
    origin = read_card(tmp_path / "second", name="third").origin
    first = f"a-graft, a graft of own/dit {own.card.digest[:12]} (cc-by-4.0), run run-7"
    assert origin == f"a-graft, a graft of first {again.card.digest[:12]} (mit); {first}"
    assert f"- Origin of the backbone: {first}" in (tmp_path / "second" / "README.md").read_text()


def test_names_are_text_in_the_model_card_whatever_signs_they_have(own: Backbone, tmp_path: Path) -> None:
    name = "<b>*a*</b> | `x`\n[y](z)" + "n" * 170
    design, transformer = graft_of(own, replacement("mlp", 2, ratio=3.0))
    record = ExportRecord(name=name, licence="[mit](x)")
    export_model(own, design, transformer.state_dict(), tmp_path / "out", record)
    lines = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)[2].splitlines()
    assert lines[1] == r"# \<b\>\*a\*\</b\> \| \`x\` \[y\](z)" + "n" * 170
    assert r"- This graft: \[mit\](x)" in lines


def test_the_design_in_a_folder_repeats_the_experiment(backbone: Backbone, tmp_path: Path) -> None:
    edits = [
        {"replace": "attention", "layers": [1, 3], "with": {"kind": "hyena_x"}, "init": "inherit"},
        {"replace": "mlp", "layers": [2], "with": {"kind": "mlp", "ratio": 3}},
        {"parallel_pairs": [[4, 5]]},
    ]
    spec = parse_submission(document(edits=edits, distill={"patience": 5}))
    design, transformer = graft_of(backbone, *spec.design.parts)
    record = ExportRecord(name="repeated", experiment=spec)
    export_model(backbone, spec.design, unique_state(transformer), tmp_path / "out", record)
    again = parse_submission(read_document((tmp_path / "out" / "design.yaml").read_text()))
    assert again.design == design == spec.design
    assert scion_keys(again) == scion_keys(spec)
    assert evaluation_key(again) == evaluation_key(spec)
    for key in scion_keys(spec).values():
        assert key in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("preset", ["demo", "paper"])
def test_a_written_experiment_resolves_to_the_same(preset: str) -> None:
    spec = parse_submission(document(preset=preset))
    assert evaluation_key(parse_submission(experiment_document(spec))) == evaluation_key(spec)


def test_an_export_is_registered_and_grafted_on(own: Backbone, tmp_path: Path) -> None:
    exported(own, tmp_path / "first", replacement("hyena_x", 1), ParallelPair(first=4))
    base = load_registered(read_card(tmp_path / "first", name="own/graft"), CPU)
    before = forward(own, base.transformer)
    design = design_of(base, replacement("mamba2", 1), replacement("mlp", 5, ratio=2.0))
    undo = operate(base, design)
    expected = forward(own, base.transformer)
    state = {name: value.clone() for name, value in base.transformer.state_dict().items()}
    undo.undo()
    assert torch.equal(forward(own, base.transformer), before)
    export_model(base, design, state, tmp_path / "second")
    second = load_grafted(tmp_path / "second")
    assert torch.equal(forward(own, second.transformer), expected)
    assert [edit.operator.kind for edit in second.card.edits] == ["mamba2", "mlp"]
    before = "- Grafts that the backbone had before: hyena_x at block 1 attention, pair 4+5"
    assert before in (tmp_path / "second" / "README.md").read_text().splitlines()
    assert (
        "- Origin of the backbone: a-graft, a graft of own/dit" in (tmp_path / "second/README.md").read_text()
    )


def test_what_cannot_be_exported_leaves_nothing(own: Backbone, tmp_path: Path) -> None:
    design, transformer = graft_of(own, replacement("hyena_x", 1))
    state = unique_state(transformer)
    target = tmp_path / "to" / "out"
    with pytest.raises(RuntimeError, match="proj_out_1"):
        export_model(own, design, {**state, "proj_out_1.weight": torch.zeros(2)}, target)
    other = design.model_copy(update={"backbone": own.card.ref.model_copy(update={"digest": "0" * 64})})
    with pytest.raises(ValueError, match="not of this own/dit"):
        export_model(own, other, state, target)
    assert not target.exists()
    assert list(target.parent.glob("*")) == []
    target.mkdir(parents=True)
    with pytest.raises(FileExistsError, match="name a folder that does not"):
        export_model(own, design, state, target)


def test_an_operator_of_another_package_is_refused_by_its_name(
    own: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    design, transformer = graft_of(own, replacement("hyena_x", 1))
    monkeypatch.delitem(BUILDERS, "hyena_x")
    with pytest.raises(ValueError, match="hyena_x is an operator of another package"):
        export_model(own, design, unique_state(transformer), tmp_path / "out")


def test_damaged_exports_are_refused(own: Backbone, tmp_path: Path) -> None:
    exported(own, tmp_path / "out", replacement("hyena_x", 1))
    name = "transformer_blocks.1.attn1.operator.project_out.bias"
    change_weights(
        tmp_path / "out" / "transformer", lambda state: {n: v for n, v in state.items() if n != name}
    )
    with pytest.raises(ValueError, match=f"lacks {name}"):
        load_grafted(tmp_path / "out")


def test_the_teacher_is_exported_as_the_class_of_diffusers(own: Backbone, tmp_path: Path) -> None:
    export_model(own, design_of(own), own.transformer.state_dict(), tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(str(tmp_path / "out"), trust_remote_code=True)
    assert type(pipeline.transformer).__name__ == "DiTTransformer2DModel"
    assert same(pipeline.transformer.state_dict(), own.transformer.state_dict())
    assert not (tmp_path / "out" / "transformer" / "grafted_dit.py").exists()
