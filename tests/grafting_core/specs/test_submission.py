# ruff: noqa: E501 - the table reads best with a case a line
"""A design file becomes a resolved experiment, or a list of problems that point into it."""

from typing import Any

import pytest

from grafting_core.specs.backbone import DIT_XL_2_256
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.edits import EditResolver, PairEdit
from grafting_core.specs.documents.errors import Problem, SpecError
from grafting_core.specs.documents.parsing import read_document
from grafting_core.specs.experiment import ExperimentSpec, scion_keys

HALF = {"replace": "attention", "layers": {"interleaved": 0.5}, "with": {"kind": "hyena_x"}}


def document(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "backbone": "dit-xl-2-256", "edits": [HALF], **changes}


def edit(**changes: Any) -> dict[str, Any]:
    return document(edits=[{**HALF, **changes}])


def mlp_edit(**operator: Any) -> dict[str, Any]:
    return edit(replace="mlp", **{"with": operator})


def pairing(pairs: Any) -> dict[str, Any]:
    return document(edits=[{"parallel_pairs": pairs}])


def problems_of(source: Any) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        parse_submission(read_document(source) if isinstance(source, str) else source)
    return caught.value.problems


def test_selectors_are_resolved_to_sites() -> None:
    spec = parse_submission(document())
    assert [edit.site.block for edit in spec.design.edits] == list(range(1, 28, 2))


def test_overrides_change_single_fields_of_the_preset() -> None:
    spec = parse_submission(document(preset="paper", finetune={"steps": 7}))
    assert spec.finetune.steps == 7
    assert spec.finetune.batch_size == 256


def test_the_order_of_edits_does_not_change_the_digest() -> None:
    mlp = {"replace": "mlp", "layers": [0], "with": {"kind": "mlp", "ratio": 3}}
    assert (
        parse_submission(document(edits=[HALF, mlp])).digest
        == parse_submission(document(edits=[mlp, HALF])).digest
    )


def test_name_budget_and_resources_do_not_change_the_digest() -> None:
    other = document(name="b", budget={"device_seconds": 9}, resources={"workers": 2})
    assert parse_submission(other).digest == parse_submission(document()).digest


def test_pairs_are_made_of_blocks_as_the_edits_before_have_left_them() -> None:
    design = parse_submission(document(edits=[HALF, {"parallel_pairs": [[4, 5], [0, 1]]}])).design
    assert [pair.blocks for pair in design.pairs] == [(0, 1), (4, 5)]
    assert len(design.edits) == 14
    assert not parse_submission(pairing("all")).design.is_teacher


def test_a_merge_is_a_scion_of_its_own_whatever_stands_inside_the_pair() -> None:
    plain = scion_keys(parse_submission(pairing([[0, 1]])))
    filled = scion_keys(parse_submission(document(edits=[HALF, {"parallel_pairs": [[0, 1]]}])))
    assert filled["pair 0+1"] == plain["pair 0+1"]
    assert len(filled) == 15


def test_an_odd_number_of_blocks_does_not_pair_up() -> None:
    card = DIT_XL_2_256.model_copy(update={"depth": 27})
    editing = EditResolver(card, None)
    editing.take(0, PairEdit(parallel_pairs="all"))
    assert "27 blocks cannot all be paired" in editing.problems[0].message


def test_yaml_and_json_mean_the_same() -> None:
    edits = "- {replace: attention, layers: {interleaved: 0.5}, with: {kind: hyena_x}}"
    text = f"name: a\nbackbone: dit-xl-2-256\nedits:\n{edits}\n"
    assert parse_submission(read_document(text)) == parse_submission(document())


def test_a_spec_survives_json() -> None:
    spec = parse_submission(document())
    assert ExperimentSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_scion_is_shared_by_designs_that_differ_elsewhere() -> None:
    one = scion_keys(parse_submission(edit(layers=[1])))
    two = scion_keys(parse_submission(edit(layers=[1, 3])))
    assert one["block 1 attention"] == two["block 1 attention"]


@pytest.mark.parametrize(
    "change",
    [
        {"distill": {"seed": 1}},
        {"distill": {"steps": 1}},
        {"distill": {"attention_loss": "l2"}},
        {"distill": {"subset_seed": 1}},
    ],
)
def test_changing_what_determines_a_scion_changes_its_key(change: dict[str, Any]) -> None:
    keys = scion_keys(parse_submission(document(**change)))
    assert not set(keys.values()) & set(scion_keys(parse_submission(document())).values())


BAD: list[tuple[str, Any, str, str]] = [
    ("unknown backbone", document(backbone="dit-xl-2-255"), "/backbone", "unknown-backbone"),
    ("unknown operator", edit(**{"with": {"kind": "hyena_z"}}), "/edits/0/with/kind", "unknown-operator"),
    ("an object for a kind", edit(**{"with": {"kind": {"a": 1}}}), "/edits/0/with/kind", "unknown-operator"),
    ("a list for a kind", edit(**{"with": {"kind": ["mha"]}}), "/edits/0/with/kind", "unknown-operator"),
    (
        "an object for a kind among unknown fields",
        edit(**{"with": {"kind": {}, "ratioo": 1}}),
        "/edits/0/with/kind",
        "unknown-operator",
    ),
    ("no operator", edit(**{"with": {}}), "/edits/0/with/kind", "missing-field"),
    ("unknown slot", edit(replace="atention"), "/edits/0/replace", "not-allowed"),
    ("layer out of range", edit(layers=[28]), "/edits/0/layers", "bad-layers"),
    ("negative layer", edit(layers=[-1]), "/edits/0/layers/0", "out-of-range"),
    ("repeated layer", edit(layers=[1, 1]), "/edits/0/layers", "bad-layers"),
    ("no layer", edit(layers=[]), "/edits/0/layers", "bad-layers"),
    ("strange selector", edit(layers=3), "/edits/0/layers", "bad-layers"),
    ("strange ratio", edit(layers={"interleaved": 0.3}), "/edits/0/layers", "bad-layers"),
    ("same site twice", document(edits=[HALF, HALF]), "/edits/1/layers", "site-edited-twice"),
    ("kind in the wrong slot", edit(**{"with": {"kind": "mlp"}}), "/edits/0/with/kind", "wrong-slot"),
    ("heads that do not divide", edit(**{"with": {"kind": "mha", "num_heads": 7}}), "/edits/0/with/num_heads", "out-of-range"),
    ("window below 0", edit(**{"with": {"kind": "window_attention", "half_width": -1}}), "/edits/0/with/half_width", "out-of-range"),
    ("grid window below 0", edit(**{"with": {"kind": "window_attention_2d", "half_width": -1}}), "/edits/0/with/half_width", "out-of-range"),
    ("kernel of 0", edit(**{"with": {"kind": "hyena_x", "kernel_size": 0}}), "/edits/0/with/kernel_size", "out-of-range"),
    ("kernel of 0 in Mamba-2", edit(**{"with": {"kind": "mamba2", "kernel_size": 0}}), "/edits/0/with/kernel_size", "out-of-range"),
    ("head dim that does not divide", edit(**{"with": {"kind": "mamba2", "head_dim": 7}}), "/edits/0/with/head_dim", "out-of-range"),
    ("even kernel on the grid", mlp_edit(kind="conv_mlp", kernel_size=2), "/edits/0/with/kernel_size", "out-of-range"),
    ("ratio 0", mlp_edit(kind="mlp", ratio=0), "/edits/0/with/ratio", "out-of-range"),
    ("ratio that gives no channel", mlp_edit(kind="mlp", ratio=1e-4), "/edits/0/with/ratio", "out-of-range"),
    ("no channel in MLP Hyena-X", mlp_edit(kind="mlp_hyena_x", ratio=1e-4), "/edits/0/with/ratio", "out-of-range"),
    ("overlapping pairs", pairing([[0, 1], [1, 2]]), "/edits/0/parallel_pairs/1", "bad-pairs"),
    ("the same pair twice", document(edits=[{"parallel_pairs": "all"}, {"parallel_pairs": [[0, 1]]}]), "/edits/1/parallel_pairs/0", "bad-pairs"),
    ("pair across the end", pairing([[26, 27], [27, 28]]), "/edits/0/parallel_pairs/1", "bad-pairs"),
    ("pair of distant blocks", pairing([[0, 2]]), "/edits/0/parallel_pairs/0", "bad-pairs"),
    ("pair backwards", pairing([[1, 0]]), "/edits/0/parallel_pairs/0", "bad-pairs"),
    ("pair of three", pairing([[0, 1, 2]]), "/edits/0/parallel_pairs/0", "out-of-range"),
    ("negative block in a pair", pairing([[-1, 0]]), "/edits/0/parallel_pairs/0/0", "out-of-range"),
    ("no pair", pairing([]), "/edits/0/parallel_pairs", "bad-pairs"),
    ("strange pairing", pairing("half"), "/edits/0/parallel_pairs", "not-allowed"),
    ("number for pairs", pairing(2), "/edits/0/parallel_pairs", "bad-pairs"),
    ("edit of a consumed site", document(edits=[{"parallel_pairs": [[0, 1]]}, HALF]), "/edits/1/layers", "site-consumed"),
    ("text for a number", document(distill={"steps": "7"}), "/distill/steps", "wrong-type"),
    ("a fraction for a count", document(distill={"steps": 7.5}), "/distill/steps", "wrong-type"),
    ("true for a count", document(distill={"steps": True}), "/distill/steps", "wrong-type"),
    ("unknown field", document(finetune={"stpes": 7}), "/finetune/stpes", "unknown-field"),
    ("unknown field at the top", document(prest="demo"), "/prest", "unknown-field"),
    ("unknown operator field", edit(**{"with": {"kind": "hyena_x", "kernel": 4}}), "/edits/0/with/kernel", "unknown-field"),
    ("learning rate 0", document(finetune={"learning_rate": 0}), "/finetune/learning_rate", "out-of-range"),
    ("seed beyond 32 bits", document(evaluate={"seed": 2**32}), "/evaluate/seed", "out-of-range"),
    ("budget 0", document(budget={"device_seconds": 0}), "/budget/device_seconds", "out-of-range"),
    ("other feature network", document(evaluate={"feature_network": "vgg"}), "/evaluate/feature_network", "unknown-feature-network"),
    ("unknown sampler", document(evaluate={"sampler": "euler"}), "/evaluate/sampler", "not-allowed"),
    ("unknown spacing", document(evaluate={"spacing": "karras"}), "/evaluate/spacing", "not-allowed"),
    ("no sampling step", document(evaluate={"sampling_steps": 0}), "/evaluate/sampling_steps", "out-of-range"),
    ("more steps than timesteps", document(evaluate={"sampling_steps": 1001}), "/evaluate/sampling_steps", "out-of-range"),
    ("guidance below 1", document(evaluate={"guidance": 0.5}), "/evaluate/guidance", "out-of-range"),
    ("interval that falls", document(evaluate={"guidance_interval": [2.0, 1.0]}), "/evaluate/guidance_interval", "out-of-range"),
    ("negative noise level", document(evaluate={"guidance_interval": [-1.0, 1.0]}), "/evaluate/guidance_interval/0", "out-of-range"),
    ("interval of one end", document(evaluate={"guidance_interval": [1.0]}), "/evaluate/guidance_interval/1", "missing-field"),
    ("interval without guidance", document(evaluate={"guidance": 1, "guidance_interval": [0, 1]}), "/evaluate/guidance_interval", "without-effect"),
    ("endless micro-batch", document(evaluate={"micro_batch": 65536}), "/evaluate/micro_batch", "out-of-range"),
    ("text for a wish", document(keep_samples="yes"), "/keep_samples", "wrong-type"),
    ("one sample", document(evaluate={"samples": 1}), "/evaluate/samples", "out-of-range"),
    ("no name", {"backbone": "dit-xl-2-256"}, "/name", "missing-field"),
    ("control character in the name", document(name="a\0b"), "/name", "out-of-range"),
    ("lone surrogate", document(name="\ud800"), "/name", "bad-text"),
    ("not a number", document(distill={"learning_rate": float("nan")}), "/distill/learning_rate", "non-finite"),
    ("infinite in YAML", "name: a\nbackbone: b\nbudget: {flops: .inf}\n", "/budget/flops", "non-finite"),
    ("huge number in JSON", '{"name": "a", "budget": {"flops": 1e400}}', "/budget/flops", "non-finite"),
    ("null", None, "", "wrong-type"),
    ("a list", [], "", "wrong-type"),
    ("empty text", "", "", "wrong-type"),
    ("truncated JSON", '{"name": ', "", "malformed"),
    ("unreadable YAML", "a: [", "", "malformed"),
    ("repeated key in JSON", '{"name": "a", "name": "b"}', "", "malformed"),
    ("repeated key in YAML", "name: a\nname: b\n", "", "malformed"),
    ("alias in YAML", "a: &x [1]\nb: *x\n", "", "malformed"),
    ("code in YAML", "a: !!python/object/apply:os.getcwd []\n", "", "malformed"),
    ("two YAML documents", "a: 1\n---\nb: 2\n", "", "malformed"),
    ("a date is text in YAML", "name: 2026-01-01\nbackbone: b\n", "/backbone", "unknown-backbone"),
    ("too deep", "[" * 900 + "]" * 900, "/0" * 33, "too-deep"),
    ("absurdly deep", "[" * 100_000, "", "too-deep"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "pointer", "code"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_refused_with_its_place(source: Any, pointer: str, code: str) -> None:
    first = problems_of(source)[0]
    assert (first.pointer, first.code) == (pointer, code)


def test_the_nearest_right_name_is_offered() -> None:
    assert "did you mean 'steps'?" in problems_of(document(distill={"stpes": 1}))[0].message


def test_every_problem_is_named_at_once() -> None:
    assert len(problems_of(document(distill={"steps": -1}, finetune={"batch_size": 0}))) == 2


def test_what_was_given_is_shown_short() -> None:
    given = problems_of(document(backbone="x" * 199))[0].given
    assert given is not None
    assert len(given) <= 200


def test_the_testbeds_profile_ranks_its_blocks() -> None:
    spec = parse_submission({**edit(layers={"top_local": 0.5}), "backbone": "testbed/dit-fashion"})
    assert [e.site.block for e in spec.design.edits] == [1, 2, 3, 6]


def test_weights_are_inherited_where_there_are_any() -> None:
    assert all(e.init == "inherit" for e in parse_submission(edit(init="inherit")).design.edits)
    with pytest.raises(SpecError, match="mamba2 shares no weights"):
        parse_submission(edit(init="inherit", **{"with": {"kind": "mamba2"}}))
