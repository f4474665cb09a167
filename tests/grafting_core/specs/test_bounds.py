"""What a name may hold, and values beyond what any backbone has."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from grafting_core.specs.documents.analyses import parse_analysis
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import Problem, SpecError
from grafting_core.specs.documents.fills import parse_fill
from grafting_core.specs.naming import Name
from grafting_core.specs.studies.parsing import parse_study
from tests.support.builders import minimal_study

TESTBED = "testbed/dit-fashion"
UNSEEN = [
    "",
    " ",
    "\u00a0\u3000",
    "a\u200bb",
    "\u200d",
    "a\u202eb",
    "\u2066a",
    "a\u2028b",
    "a\u2029",
    "a\x85b",
]
UNSEEN += [
    "a\x1bb",
    "a\tb",
    "a\x7f",
    "\ufeffa",
    "\u3164",
    "\u2800",
    "a\u00adb",
    "a\U000e0041",
    "\ufe0f",
    "n" * 201,
]


@pytest.mark.parametrize("name", UNSEEN)
def test_names_that_cannot_be_seen_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(name)
    for parse, more in ((parse_submission, {}), (parse_analysis, {}), (parse_fill, {"offers": []})):
        with pytest.raises(SpecError) as caught:
            parse({"name": name, "backbone": TESTBED, **more})
        assert ("/name", "out-of-range") in {(each.pointer, each.code) for each in caught.value.problems}


@pytest.mark.parametrize(
    "name", ["a b", "grafted 🌱", "❤\ufe0f", "Ünïcode", "設計", "a-1", "0", "<b>", "e\u0301"]
)
def test_names_that_can_be_seen_are_kept_as_they_are(name: str) -> None:
    assert parse_submission({"name": name, "backbone": TESTBED}).name == name


def graft(**changes: Any) -> dict[str, Any]:
    edit = {"replace": "attention", "layers": "all", "with": {"kind": "hyena_x"}}
    return {"name": "a", "backbone": TESTBED, "edits": [{**edit, **changes}]}


def refused(parse: Any, document: Any) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        parse(document)
    return caught.value.problems


@pytest.mark.parametrize("strategy", ["deep", "first", "top_local", "low_local", "interleaved"])
@pytest.mark.parametrize("share", [1e308, -1e308, 1.0001, 0.0, 1e-300])
def test_a_share_of_the_layers_is_at_most_all_of_them(strategy: str, share: float) -> None:
    (problem,) = refused(parse_submission, graft(layers={strategy: share}))
    assert (problem.pointer, problem.code) == ("/edits/0/layers", "bad-layers")


@pytest.mark.parametrize(
    "limit",
    ["inf", "1e308x", "1e400", "9" * 65, "9" * 60, 10**99, 1e300, "<= 1e30x", "1e20x", "\u0661", 0, -1],
)
def test_limits_of_a_study_are_numbers_that_mean_something(limit: Any) -> None:
    problems = refused(parse_study, minimal_study(limits={"params": limit}))
    assert problems[0].pointer == "/limits/params"


def test_runs_of_a_study_can_be_named_after_it() -> None:
    (problem,) = refused(parse_study, minimal_study(name="n" * 171))
    assert (problem.pointer, problem.code) == ("/name", "out-of-range")
    assert parse_study(minimal_study(name="n" * 170)).name == "n" * 170


def test_repeated_baselines_are_refused() -> None:
    twice = refused(parse_study, minimal_study(baselines=["teacher", "deep", "teacher"]))
    assert (twice[0].pointer, twice[0].code) == ("/baselines/2", "repeated-choice")
    many = refused(parse_study, minimal_study(baselines=["teacher"] * 15_000))
    assert (many[0].pointer, many[0].code) == ("/baselines", "out-of-range")


@pytest.mark.parametrize("band", [49, 10**30])
def test_bands_beyond_the_tokens_are_refused(band: int) -> None:
    (problem,) = refused(parse_analysis, {"backbone": TESTBED, "bands": [3, band]})
    assert (problem.pointer, problem.code) == ("/bands", "out-of-range")


def test_held_out_draws_need_as_many_held_out_images() -> None:
    (problem,) = refused(parse_submission, {**graft(), "distill": {"held_out": 1_001}})
    assert (problem.pointer, problem.code) == ("/distill/held_out", "out-of-range")
    assert problem.message == f"{TESTBED} has 1,000 held-out images; draw at most that many"
    assert parse_submission({**graft(), "distill": {"held_out": 1_000}}).distill.held_out == 1_000


def test_a_teacher_may_have_few_images_as_it_distils_nothing() -> None:
    teacher = {"name": "teacher", "backbone": TESTBED, "distill": {"held_out": 60_001}}
    assert parse_submission(teacher).design.is_teacher


def test_long_lists_of_layers_are_refused_at_once() -> None:
    for layers in (list(range(15_000)), [1] * 15_000):
        (problem,) = refused(parse_submission, graft(layers=layers))
        assert (problem.pointer, problem.code) == ("/edits/0/layers", "out-of-range")


def test_a_pass_of_thousands_of_operators_is_refused() -> None:
    offer = {"replace": "attention", "layers": "all", "with": [{"kind": "hyena_x"}] * 100}
    problems = refused(parse_fill, {"backbone": TESTBED, "offers": [offer] * 3})
    assert (problems[0].pointer, problems[0].code) == ("/offers", "too-many")
