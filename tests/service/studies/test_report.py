"""A study's report plots the stated objectives of all finished runs, baselines among them."""

from collections.abc import Callable

import pytest

from service.domain.study_queries import study_detail
from service.schemas.studies import StudyDetail
from service.studies.figures import best_designs, interactive
from service.studies.finals import finals
from service.studies.report import markdown, page, sections
from tests.support.builders import MIXED_SPACE, TWO_RUNGS
from tests.support.study_harness import StudyHarness

COSTS = ["flops", "params"]


@pytest.fixture
def detail(new_sqlite_study: Callable[..., StudyHarness]) -> StudyDetail:
    """Of a finished study: its lab's figures make the untouched backbone the best of all."""
    objectives = [{"minimize": name} for name in ("fid40", *COSTS)]
    screening = {"trials": 8, "rungs": TWO_RUNGS, "reduction": 2, "loss_draws": 64}
    limits = {"flops": "<= 0.99x"}
    given = {
        "objectives": objectives,
        "screening": screening,
        "limits": limits,
        "promote": 2,
        "baselines": ["teacher", "greedy", "fewer_steps"],
    }
    lab = new_sqlite_study("lab", space=MIXED_SPACE, **given)
    study = lab.run()
    assert study.state == "DONE"
    with lab.database.reading() as session:
        return study_detail(session, study)


def test_the_front_is_of_final_quality_against_each_stated_cost(detail: StudyDetail) -> None:
    figure = interactive(detail)["pareto"]
    drawn = [
        (name, quality) for trace in figure.data for name, quality in zip(trace.text, trace.y, strict=True)
    ]
    expected = [(each.name, each.run.quality) for each in finals(detail)]
    assert len(expected) >= 4
    assert sorted(drawn) == sorted(expected * len(COSTS))
    titles = [figure.layout.xaxis.title.text, figure.layout.xaxis2.title.text]
    assert titles == ["flops, relative to the backbone", "params, relative to the backbone"]
    assert figure.layout.yaxis.title.text == detail.quality
    screened = interactive(detail)["screening"]
    assert screened.layout.xaxis.title.text == f"{detail.spec.rungs[0].metric} in screening"


def test_the_winning_baseline_is_in_every_table_and_map_of_final_results(detail: StudyDetail) -> None:
    winner = finals(detail)[0].name
    assert winner in ("teacher", "fewer_steps")
    tables = {heading: [row[0] for row in table] for heading, table in sections(detail)}
    for heading in ("Best promoted design against the baselines, at the same limits", "Designs"):
        assert {"teacher", "fewer_steps"} <= set(tables[heading])
    assert tables["Finished designs and baselines"][1] == winner
    name, assignment = best_designs(detail)[0]
    assert name == winner
    assert set(assignment.values()) == {"keep"}
    assert winner in interactive(detail)["map"].data[0].y


def test_the_report_says_where_few_tokens_make_fewer_steps_pay(detail: StudyDetail) -> None:
    text = markdown(detail, ["pareto", "screening"])
    assert "With 49 tokens attention is a small part of a block" in text
    assert "![Screening: the first rung against cost, before any finetuning](screening.png)" in text


def test_both_reports_show_the_same_and_escape_what_users_wrote(detail: StudyDetail) -> None:
    named = detail.model_copy(update={"name": "<b>a|b</b> & {{ 7 * 7 }}"})
    text, html = markdown(named, []), page(named, {})
    assert text.startswith("# <b>a|b</b> & {{ 7 * 7 }}\n\n")
    assert html.count("&lt;b&gt;a|b&lt;/b&gt; &amp; {{ 7 * 7 }}") == 2
    assert "<b>" not in html.partition("</script>")[2]
    tables = sections(named)
    for heading, (head, *rows) in tables:
        lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
        assert f"\n\n## {heading}\n\n" + "\n".join(lines) + "\n\n" in text
        assert f"<h2>{heading}</h2>" in html
    assert html.count("<tr>") == sum(len(table) for _, table in tables)
    assert (html.count("<h2>"), text.count("\n## ")) == (len(tables) + 1, len(tables) + 1)
