# ruff: noqa: E501 - the tables read best with a case a line
"""Text becomes a plain document, or a reason why not, whatever the text is."""

from typing import Any

import pytest

from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import MAX_PROBLEMS, SpecError
from grafting_core.specs.documents.parsing import MAX_VALUES, read_document

MEANT: list[tuple[str, Any]] = [
    ("3e-4", 0.0003), ("1e-4", 0.0001), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5), ("5.", 5.0), ("+5", 5),
    ("0", 0), ("-7", -7), ("0.5", 0.5), ("100", 100), ("0x1f", 31), ("0o17", 15), ("9" * 40, int("9" * 40)),
    ("true", True), ("False", False), ("no", False), ("on", True), ("null", None), ("~", None), ("", None),
    ("2026-01-31", "2026-01-31"), ("1.2.3", "1.2.3"), ("127.0.0.1", "127.0.0.1"), ("'0100'", "0100"), ('"1:30"', "1:30"), ("1e5x", "1e5x"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "value"), MEANT)
def test_scalars_are_those_of_yaml_1_2(written: str, value: Any) -> None:
    found = read_document(f"a: {written}\n")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("written", ["3e-4", "-0.5", "12", "1E5", "true", "null", '"é"'])
def test_json_and_yaml_read_the_same_scalars(written: str) -> None:
    assert read_document(f"a: {written}") == read_document(f'{{"a": {written}}}')


REFUSED = [
    ("seed: 0100", "0100 starts with a zero"), ("a: -007", "starts with a zero"), ("a: 00.5", "starts with a zero"),
    ("a: 1:30:00", "base-60 number"), ("a: 12:00", "base-60 number"), ("a: 1:30.5", "base-60 number"),
    ("a: 0b101", "is binary"), ("a: 1_000", "underscores"), ("a: 0x_ff", "underscores"), ("a: -0x1f", "sign of hexadecimal"),
    ("a: !!str 1", "tags are not allowed"), ("a: ! 1", "tags are not allowed"), ("!!x k: 1", "tags are not allowed"), ("%TAG ! b\n---\na: 1", "tags are not allowed"),
    ("a: &x 1\nb: *x", "line 2: aliases are not allowed"), ("a: {<<: {b: 1}}", "merge keys"), ("? [a]\n: 1", "a key must be text"),
    ("b: 1\na: 1\na: 2", "line 3: key 'a' appears more than once"), ("a: 1\n---\nb: 1", "a second document"),
    ("", "the document is empty"), ("  \n", "the document is empty"), ("# only a remark\n", "the document is empty"), ("---\n", "the document is empty"), ("null", "the document is empty"),
    ("on: 1", "key True is not text; quote it"), ("1: a", "key 1 is not text; quote it"),
    ("a: 0x" + "f" * 9000, "has 9,002 characters"), ("a: 0o" + "7" * 9000, "has 9,002 characters"), ("a: " + "9" * 9000, "has 9,000 characters"),
    ("a: 0b" + "1" * 9000, "is binary"), ("a: 1" + ":59" * 3000, "base-60 number"), ("a: 1e" + "9" * 9000, "has 9,002 characters"), ('{"a": ' + "9" * 900_000 + "}", "has 900,000 characters"),
    ('{"a": 0.' + "3" * 9000 + "}", "has 9,002 characters"), ("a: " + "x" * 1_000_001, "1,000,004 characters"),
    ("k" * 201 + ": 1", "a key has 201 characters"), ('{"\\ud800": 1}', "lone surrogate"), ('{"a": "\\ud800"}', "lone surrogate"),
    ("[" * 900_000, "nested deeper"), ('{"a":' * 100_000, "nested deeper"), ("- " * 400_000, "nested deeper"), ("a: " + "[" * 40 + "]" * 40, "nested deeper"),
    ("a: [" + "1," * 400_000 + "1]", "more than 20,000 values"), ("[" + "1," * 400_000 + "1]", "more than 20,000 values"),
    ("\n".join(f"k{n}: 1" for n in range(60_000)), "more than 20,000 values"), ("{" + ",".join(f'"k{n}":1' for n in range(60_000)) + "}", "more than 20,000 values"),
    ("{" + ",".join('"k":1' for _ in range(100_000)) + "}", "appears more than once"), ("a: [" + "&x 1," * 100_000 + "1]", "more than 20,000 values"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=[f"{text[:16]!r}: {why}" for text, why in REFUSED])
def test_doubtful_and_oversized_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_document(text)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_byte_order_mark_is_no_part_of_the_document() -> None:
    assert read_document("\ufeff{}") == {}


def test_a_document_at_the_bound_is_read() -> None:
    assert len(read_document("[" + "1," * (MAX_VALUES - 2) + "1]")) == MAX_VALUES - 1


def test_many_problems_are_counted_and_the_first_are_told() -> None:
    with pytest.raises(SpecError) as caught:
        parse_submission({"name": "a", "backbone": "b", **{f"x{n}": 1 for n in range(5000)}})
    assert len(caught.value.problems) == MAX_PROBLEMS
    assert caught.value.left_out == 5000 - MAX_PROBLEMS
    assert caught.value.lines[-1] == "and 4,980 more"


@pytest.mark.parametrize("word", ["no", "yes", "on"])
def test_a_truth_value_for_a_name_is_told_to_be_quoted(word: str) -> None:
    with pytest.raises(SpecError, match="quote the word"):
        parse_submission(read_document(f"name: {word}\nbackbone: testbed/dit-fashion\n"))


def test_a_number_for_a_name_is_told_to_be_quoted() -> None:
    with pytest.raises(SpecError, match="quote a number that is meant as text"):
        parse_submission(read_document("name: 12\nbackbone: testbed/dit-fashion\n"))


def test_a_learning_rate_is_a_number_without_a_point() -> None:
    text = "name: a\nbackbone: testbed/dit-fashion\nfinetune: {learning_rate: 3e-4}\n"
    assert parse_submission(read_document(text)).finetune.learning_rate == 3e-4
