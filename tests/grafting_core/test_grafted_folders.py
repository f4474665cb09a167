"""Grafts as folders: written, read and loaded as the same model, and grafted on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoModel, DiTTransformer2DModel
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.diffusers_folder import load_folder, save_folder
from grafting_core.backbones.fast_forward import FastForward, forward_of
from grafting_core.backbones.registered import check_digests, load_registered, read_card
from grafting_core.specs.design import ParallelPair, Part, grafted_card
from grafting_core.surgery.operate import operate
from tests.support.builders import design_of, replacement, same
from tests.support.diffusers_folders import change_config, change_weights
from tests.support.grafts import SHAPES, forward, graft_of, small_backbone

CPU = torch.device("cpu")
ANY = pytest.mark.parametrize("parts", SHAPES.values(), ids=SHAPES.keys())


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("own"))


def written(backbone: Backbone, folder: Path, *parts: Part) -> nn.Module:
    """The graft that was written to `folder`."""
    design, transformer = graft_of(backbone, *parts)
    graft = Backbone(grafted_card(backbone.card, design), backbone.family, transformer, backbone.autoencoder)
    save_folder(graft, folder)
    return transformer


def loaded(folder: Path) -> Backbone:
    return load_registered(read_card(folder, name="own/graft"), CPU)


@ANY
def test_a_graft_is_read_back_with_its_edits_and_computes_the_same(
    own: Backbone, tmp_path: Path, parts: tuple[Part, ...]
) -> None:
    transformer = written(own, tmp_path, *parts)
    for again in (loaded(tmp_path), load_folder(tmp_path)):
        assert [*again.card.edits, *again.card.pairs] == list(design_of(own, *parts).parts)
        assert again.card.num_params == grafted_card(own.card, design_of(own, *parts)).num_params
        assert same(again.transformer.state_dict(), transformer.state_dict())
        assert torch.equal(forward(own, again.transformer), forward(own, transformer))
        assert not any(parameter.is_meta for parameter in again.transformer.parameters())


def test_a_graft_of_the_testbed_is_read_back(backbone: Backbone, tmp_path: Path) -> None:
    transformer = written(backbone, tmp_path, *SHAPES["a mix"], ParallelPair(first=6))
    again = loaded(tmp_path)
    assert torch.equal(forward(backbone, again.transformer), forward(backbone, transformer))
    assert again.card.serial_depth == 7
    assert isinstance(forward_of(again.transformer), FastForward)


def test_equal_embedders_are_shared_in_pairs_too(own: Backbone, tmp_path: Path) -> None:
    written(own, tmp_path, ParallelPair(first=0))
    again = loaded(tmp_path)
    assert again.card.repeated_params == own.card.repeated_params > 0
    held = sum(parameter.numel() for parameter in again.transformer.parameters())
    assert held == again.card.num_params - again.card.repeated_params
    name = "transformer_blocks.0.second.norm1.emb.timestep_embedder.linear_1.bias"
    change_weights(tmp_path / "transformer", lambda state: {**state, name: state[name] + 1})
    assert loaded(tmp_path).card.repeated_params == 0


@ANY
def test_the_config_names_what_the_class_of_diffusers_lacks(
    own: Backbone, tmp_path: Path, parts: tuple[Part, ...]
) -> None:
    written(own, tmp_path, *parts)
    document = json.loads((tmp_path / "transformer" / "config.json").read_text())
    assert document["_class_name"] == "GraftedDiT"
    edits, pairs = design_of(own, *parts).edits, design_of(own, *parts).pairs
    assert document.get("edits", []) == [
        {"site": edit.site.model_dump(), "operator": edit.operator.model_dump()} for edit in edits
    ]
    assert document.get("pairs", []) == [{"first": pair.first} for pair in pairs]
    assert [name in document for name in ("edits", "pairs")] == [bool(edits), bool(pairs)]
    with pytest.raises(NotImplementedError, match="a GraftedDiT, which trust_remote_code=True loads"):
        DiTTransformer2DModel.from_pretrained(tmp_path / "transformer")
    with pytest.raises(ValueError, match="GraftedDiT"):
        AutoModel.from_pretrained(tmp_path / "transformer")


def test_a_transformer_without_grafts_is_written_as_ever(own: Backbone, tmp_path: Path) -> None:
    save_folder(own, tmp_path)
    document = json.loads((tmp_path / "transformer" / "config.json").read_text())
    assert document["_class_name"] == "DiTTransformer2DModel"
    assert not {"edits", "pairs"} & document.keys()
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer")
    assert same(theirs.state_dict(), own.transformer.state_dict())


def test_grafts_enter_the_digest_of_a_card(own: Backbone, tmp_path: Path) -> None:
    """Window widths change no shape and no weight, only the config."""
    written(own, tmp_path, replacement("window_attention", 1))
    cards = [read_card(tmp_path, name="a"), load_folder(tmp_path).card]
    wider = [
        {"site": {"block": 1, "slot": "attention"}, "operator": {"kind": "window_attention", "half_width": 9}}
    ]
    change_config(tmp_path / "transformer", edits=wider)
    changed = [read_card(tmp_path, name="a"), load_folder(tmp_path).card]
    assert [one.digest != other.digest for one, other in zip(cards, changed, strict=True)] == [True, True]
    with pytest.raises(ValueError, match="is not the one that was registered"):
        check_digests(cards[0])


EDIT = {"site": {"block": 1, "slot": "attention"}, "operator": {"kind": "hyena_x"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edits": [{**EDIT, "site": {"block": 6, "slot": "attention"}}]}, "block 6 does not exist"),
        ({"edits": [{**EDIT, "operator": {"kind": "mlp"}}]}, "mlp fits the mlp slot"),
        ({"edits": [{**EDIT, "operator": {"kind": "mha", "num_heads": 5}}]}, "a divisor of the width 64"),
        ({"edits": [{**EDIT, "operator": {"kind": "retention"}}]}, "retention"),
        ({"edits": [EDIT, EDIT]}, "at most one per site"),
        ({"pairs": [{"first": 1}, {"first": 2}]}, "must not share blocks"),
        ({"pairs": [{"first": 5}]}, "block 6 does not exist"),
        ({"edits": None}, "lacks transformer_blocks.1.attn1.to_k.bias"),
        ({"_class_name": "DiTTransformer2DModel"}, "a DiTTransformer2DModel has no edits; a GraftedDiT may"),
    ],
)
def test_edits_that_cannot_be_are_refused_by_name(
    own: Backbone, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    written(own, tmp_path, replacement("hyena_x", 1))
    change_config(tmp_path / "transformer", **changes)
    with pytest.raises(ValueError, match=message):
        read_card(tmp_path, name="a")


def test_a_graft_is_grafted_on_and_undone(own: Backbone, tmp_path: Path) -> None:
    """At a site that holds a grafted operator, at another, in a pair, and with a pair of its own."""
    written(own, tmp_path / "first", replacement("hyena_x", 1), replacement("mha", 2), ParallelPair(first=4))
    base = loaded(tmp_path / "first")
    before, state = forward(own, base.transformer), base.transformer.state_dict()
    design = design_of(
        base,
        replacement("hyena_y", 1),
        replacement("window_attention", 2, init="inherit"),
        replacement("mlp", 5, ratio=2.0),
        ParallelPair(first=0),
    )
    kept = base.get_operator(replacement("mha", 2).site).operator.q.weight.clone()
    undo = operate(base, design)
    assert torch.equal(base.get_operator(replacement("mha", 2).site).operator.q.weight, kept)
    assert not torch.equal(forward(own, base.transformer), before)
    card = grafted_card(base.card, design)
    save_folder(Backbone(card, base.family, base.transformer, base.autoencoder), tmp_path / "second")
    second = loaded(tmp_path / "second")
    assert torch.equal(forward(own, second.transformer), forward(own, base.transformer))
    assert [str(pair) for pair in second.card.pairs] == ["pair 0+1", "pair 4+5"]
    assert [edit.operator.kind for edit in second.card.edits] == ["hyena_y", "window_attention", "mlp"]
    undo.undo()
    assert same(base.transformer.state_dict(), state)
    assert torch.equal(forward(own, base.transformer), before)


def test_a_block_in_a_pair_is_in_no_other(own: Backbone, tmp_path: Path) -> None:
    written(own, tmp_path, ParallelPair(first=2))
    base = loaded(tmp_path)
    state = base.transformer.state_dict()
    with pytest.raises(ValueError, match="block 3 of the backbone is in a pair already"):
        operate(base, design_of(base, replacement("hyena_x", 1), ParallelPair(first=3)))
    assert same(base.transformer.state_dict(), state)


def test_an_operator_without_linear_layers_of_its_own_gives_no_weights(own: Backbone, tmp_path: Path) -> None:
    written(own, tmp_path, replacement("hyena_x", 1))
    base = loaded(tmp_path)
    with pytest.raises(TypeError, match="no other operator can start from the weights of GatedConvolution"):
        operate(base, design_of(base, replacement("mha", 1, init="inherit")))


def test_a_written_autoencoder_is_the_one_that_data_was_encoded_with(own: Backbone, tmp_path: Path) -> None:
    written(own, tmp_path, replacement("hyena_x", 1))
    assert read_card(tmp_path, name="a").parts["autoencoder"] == own.card.parts["autoencoder"]


def test_a_written_config_holds_no_path_of_this_machine(backbone: Backbone, tmp_path: Path) -> None:
    written(backbone, tmp_path, replacement("hyena_x", 1))
    for file in tmp_path.rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text())
