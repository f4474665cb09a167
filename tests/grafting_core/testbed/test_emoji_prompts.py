"""The captions are GenEval's, all of them can be encoded, and a benchmark is drawn as GenEval draws it."""

import pytest
import torch

from grafting_core.testbed.emoji.prompts import captions, geneval_rows, scene_table
from grafting_core.testbed.emoji.text_encoder import (
    END,
    MAX_TOKENS,
    PAD,
    TextEncoder,
    token_batch,
    token_table,
    tokenise,
    word_numbers,
)
from grafting_core.testbed.emoji.vocabulary import CLASSES, NATURAL, TASKS, plural, with_article


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        (
            "a photo of an umbrella",
            {"tag": "single_object", "include": [{"class": "umbrella", "count": 1}]},
        ),
        (
            "a photo of three buses",
            {
                "tag": "counting",
                "include": [{"class": "bus", "count": 3}],
                "exclude": [{"class": "bus", "count": 4}],
            },
        ),
        (
            "a photo of an orange cat",
            {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "orange"}]},
        ),
        (
            "a photo of a dog right of a teddy bear",
            {
                "tag": "position",
                "include": [
                    {"class": "teddy bear", "count": 1},
                    {"class": "dog", "count": 1, "position": ["right of", 0]},
                ],
            },
        ),
        (
            "a photo of a green car and a pink chair",
            {
                "tag": "color_attr",
                "include": [
                    {"class": "car", "count": 1, "color": "green"},
                    {"class": "chair", "count": 1, "color": "pink"},
                ],
            },
        ),
    ],
)
def test_a_caption_is_the_line_of_metadata_that_geneval_has(text: str, metadata: dict[str, object]) -> None:
    found = [caption for caption in captions() if caption.text == text]
    assert [caption.metadata() for caption in found] == [{**metadata, "prompt": text}]


def test_plurals_and_articles_are_the_naive_ones() -> None:
    assert [plural(name) for name in ("bus", "scissors", "sheep", "couch")] == [
        "buses",
        "scissorses",
        "sheeps",
        "couchs",
    ]
    assert with_article("orange umbrella") == "an orange umbrella"
    assert with_article("umbrella") == "an umbrella"
    assert with_article("dog") == "a dog"


def test_all_captions_differ_and_name_two_classes_and_two_colours_where_they_name_two() -> None:
    rows = captions()
    assert len({caption.text for caption in rows}) == len(rows) == scene_table().starts[-1]
    for caption in rows:
        if caption.task in ("two_object", "position", "color_attr"):
            assert len(set(caption.classes)) == 2
        if caption.task == "color_attr":
            assert len(set(caption.colours)) == 2


def test_the_table_says_what_the_captions_say() -> None:
    table, rows = scene_table(), captions()
    for row in range(0, len(rows), 997):
        caption = rows[row]
        count = int(table.counts[row])
        assert tuple(table.classes[row, :count].tolist()) == caption.classes
        assert tuple(table.colours[row, :count].tolist()) == caption.colours
        assert set(table.classes[row, count:].tolist()) <= {-1}
        assert set(table.colours[row, count:].tolist()) <= {NATURAL}


def test_captions_are_drawn_by_task_shares_from_the_seed() -> None:
    table, shares = scene_table(), (0.0, 0.5, 0.0, 0.0, 0.5, 0.0)
    first, again = (table.draw(4_000, torch.Generator().manual_seed(5), shares) for _ in range(2))
    tasks = torch.bucketize(first, torch.tensor(table.starts), right=True) - 1
    assert torch.equal(first, again)
    assert set(tasks.tolist()) == {TASKS.index("two_object"), TASKS.index("position")}
    assert 0.45 < (tasks == TASKS.index("position")).float().mean() < 0.55
    assert (table.counts[first].diff() <= 0).all()


def test_a_benchmark_holds_every_class_and_no_caption_twice() -> None:
    rows = geneval_rows(seed=43, per_task=100)
    tags = [captions()[row].task for row in rows]
    assert rows == geneval_rows(seed=43, per_task=100) != geneval_rows(seed=44, per_task=100)
    assert len(set(rows)) == len(rows)
    assert tags.count("single_object") == len(CLASSES)
    assert list(dict.fromkeys(tags)) == list(TASKS)
    assert all(50 < tags.count(task) <= 100 for task in TASKS[1:])


def test_every_caption_is_encoded_without_loss() -> None:
    words = {number: word for word, number in word_numbers().items()}
    for row in range(0, len(captions()), 1_009):
        tokens = token_table()[row].tolist()
        assert " ".join(words[token] for token in tokens if token not in (PAD, END)) == captions()[row].text
        assert tokens.count(END) == 1


def test_the_empty_caption_is_the_null_condition() -> None:
    assert tokenise("") == [END, *[PAD] * (MAX_TOKENS - 1)]


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(ValueError, match="'unicorn', 'saddle'"):
        tokenise("a photo of a unicorn and a saddle")


def test_a_caption_that_is_too_long_is_refused_with_its_length() -> None:
    with pytest.raises(ValueError, match="20 words; at most 15 fit"):
        tokenise("a photo of a dog " * 4)


def test_padding_changes_no_embedding() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder().eval()
    with torch.no_grad():
        embeddings, mask = encoder(
            token_batch(["a photo of a dog", "a photo of a dog right of a teddy bear"])
        )
        encoder.words.weight[PAD] += 1
        changed, _ = encoder(token_batch(["a photo of a dog", "a photo of a dog right of a teddy bear"]))
    assert mask.sum(1).tolist() == [6, 11]
    torch.testing.assert_close(embeddings[mask], changed[mask])
