"""The official files are read and written as they are; those that cannot be scored are named."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from grafting_core.data.npz import BadFile
from grafting_core.evaluation.geneval.detections import Detection
from grafting_core.evaluation.geneval.pictures import crops, read_picture
from grafting_core.evaluation.geneval.prompt_file import PromptSet, read_prompts, write_prompts
from grafting_core.evaluation.geneval.results import ResultRow, read_results, summary_of, write_results
from grafting_core.evaluation.geneval.sample_folder import read_sample_folder, sample_file, write_metadata

LINES = (
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}',
    '{"tag": "counting", "include": [{"class": "bus", "count": 3}], "exclude": [{"class": "bus", "count": 4}]'
    ', "prompt": "a photo of three buses"}',
    '{"tag": "position", "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1,'
    ' "position": ["right of", 0]}], "prompt": "a photo of a dog right of a teddy bear"}',
    '{"tag": "color_attr", "include": [{"class": "wine glass", "count": 1, "color": "purple"}, {"class":'
    ' "apple", "count": 1, "color": "black"}], "prompt": "a photo of a purple wine glass and a black apple"}',
)


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(f"{line}\n" for line in LINES))
    return file


@pytest.fixture
def prompts(prompt_file: Path) -> PromptSet:
    return read_prompts(prompt_file)


@pytest.fixture
def folder(tmp_path: Path, prompts: PromptSet) -> Path:
    """A complete set of four images a prompt."""
    made = tmp_path / "images"
    write_metadata(made, prompts)
    for index in range(len(prompts)):
        for number in range(4):
            Image.new("RGB", (8, 8), "red").save(sample_file(made, index, number))
    return made


def test_the_prompt_file_is_read_and_written_byte_for_byte(prompt_file: Path, tmp_path: Path) -> None:
    read = read_prompts(prompt_file)
    assert read.metadata == LINES
    assert read.sha256 == hashlib.sha256(prompt_file.read_bytes()).hexdigest()
    write_prompts(tmp_path / "again.jsonl", read.prompts)
    assert (tmp_path / "again.jsonl").read_bytes() == prompt_file.read_bytes()


def test_a_rewritten_prompt_gives_another_digest(prompt_file: Path) -> None:
    before = read_prompts(prompt_file)
    prompt_file.write_text(prompt_file.read_text().replace("a photo of a bench", "a fine photo of a bench"))
    assert read_prompts(prompt_file).sha256 != before.sha256


def test_metadata_keeps_the_files_own_order_of_fields(tmp_path: Path) -> None:
    line = '{"prompt": "a photo of a dog", "tag": "single_object", "include": [{"count": 1, "class": "dog"}]}'
    (tmp_path / "file.jsonl").write_text(line)
    assert read_prompts(tmp_path / "file.jsonl").metadata == (line,)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "it has no prompts"),
        ([LINES[0], "", LINES[1]], "line 2: it is empty"),
        ([LINES[0], LINES[1], LINES[0]], "line 3 repeats line 1: 'a photo of a bench'"),
        ([LINES[0].replace("a photo of a bench", "")], "line 1: the prompt is empty"),
        ([LINES[0][:-1]], "line 1: Invalid JSON"),
        ([LINES[0].replace('"count": 1', '"count": "1"')], "line 1: include.0.count: .*valid integer"),
        (
            [LINES[0].replace("include", "includes")],
            "line 1: include: Field required; includes: Extra inputs",
        ),
        ([LINES[2].replace("right of", "next to", 1)], "line 1: include.1.position.0: .*'left of'"),
        ([LINES[3].replace("purple", "violet", 1)], "line 1: include.0.color: .*'red', 'orange'"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_refused_by_line(
    lines: list[str], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(BadFile, match=said):
        read_prompts(file)


def test_at_most_ten_wrong_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{}\n" * 12)
    with pytest.raises(BadFile, match=r"line 10: .*; and 2 more$"):
        read_prompts(tmp_path / "prompts.jsonl")


def test_a_missing_or_binary_prompt_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot be read as a file of prompts"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "image.jsonl").write_bytes(b"\x89PNG\xff")
    with pytest.raises(BadFile, match="cannot be read as a file of prompts"):
        read_prompts(tmp_path / "image.jsonl")


def test_a_folder_is_listed_in_the_order_of_prompts_and_numbers(folder: Path, prompts: PromptSet) -> None:
    (folder / "00002" / "samples" / "0003.png").rename(folder / "00002" / "samples" / "00010.png")
    listed = read_sample_folder(folder, prompts)
    assert [(sample.prompt, sample.number) for sample in listed.samples] == [
        (index, number) for index in range(4) for number in ((0, 1, 2, 10) if index == 2 else range(4))
    ]
    assert (listed.missing, listed.notes) == ((), ())
    assert json.loads((folder / "00003" / "metadata.jsonl").read_text()) == json.loads(LINES[3])


def test_a_folder_with_three_of_four_images_is_refused_or_called_incomplete(
    folder: Path, prompts: PromptSet
) -> None:
    sample_file(folder, 1, 2).unlink()
    with pytest.raises(BadFile, match="incomplete, with 15 of 16 images: prompt 1 has 3 of 4 images"):
        read_sample_folder(folder, prompts)
    partial = read_sample_folder(folder, prompts, partial=True)
    assert (len(partial.samples), partial.missing) == (15, ("prompt 1 has 3 of 4 images",))


def test_a_missing_folder_is_a_prompt_without_images(folder: Path, prompts: PromptSet) -> None:
    (folder / "00000").rename(folder / "away")
    with pytest.raises(BadFile, match="prompt 0 has 0 of 4 images"):
        read_sample_folder(folder, prompts)
    partial = read_sample_folder(folder, prompts, partial=True)
    assert partial.notes == (f"{folder} has files that were not scored: 5 in folders without a number",)


def test_files_that_are_not_scored_are_counted(folder: Path, prompts: PromptSet) -> None:
    for name in ("1.png.bak", "2.jpg", "3.PNG", "grid.png"):
        (folder / "00000" / "samples" / name).write_bytes(b"")
    (note,) = read_sample_folder(folder, prompts).notes
    for part in ("1 .bak, not .png", "1 .jpg, not .png", "1 .PNG, not .png", "1 whose name is no number"):
        assert part in note


def test_images_of_other_prompts_are_refused(folder: Path, prompts: PromptSet, tmp_path: Path) -> None:
    (folder / "00001" / "metadata.jsonl").write_text(LINES[0])
    with pytest.raises(
        BadFile, match="is 'a photo of a bench', but prompt 1 of the file is 'a photo of three"
    ):
        read_sample_folder(folder, prompts)
    (folder / "00001" / "metadata.jsonl").unlink()
    with pytest.raises(BadFile, match="cannot be read as the metadata of a prompt"):
        read_sample_folder(folder, prompts)


def test_folders_that_match_no_prompt_or_one_twice_are_refused(folder: Path, prompts: PromptSet) -> None:
    (folder / "00004").mkdir()
    with pytest.raises(BadFile, match="00004 is the folder of no prompt; there are 4"):
        read_sample_folder(folder, prompts)
    (folder / "00004").rename(folder / "3")
    with pytest.raises(BadFile, match="two folders for prompt 3: 00003 and 3"):
        read_sample_folder(folder, prompts)


def test_more_images_than_required_are_refused(folder: Path, prompts: PromptSet) -> None:
    sample_file(folder, 0, 4).write_bytes(sample_file(folder, 0, 3).read_bytes())
    with pytest.raises(BadFile, match="prompt 0 has 5 images; 4 are scored"):
        read_sample_folder(folder, prompts)
    sample_file(folder, 0, 4).rename(folder / "00000" / "samples" / "00003.png")
    sample_file(folder, 0, 0).unlink()
    with pytest.raises(BadFile, match="two images of one number"):
        read_sample_folder(folder, prompts)


def test_a_folder_without_images_is_refused(prompts: PromptSet, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="is no folder"):
        read_sample_folder(tmp_path / "none", prompts)
    write_metadata(tmp_path / "empty", prompts)
    with pytest.raises(BadFile, match="has no images"):
        read_sample_folder(tmp_path / "empty", prompts, partial=True)


def rows() -> list[ResultRow]:
    found = []
    for index, line in enumerate(LINES):
        fields = json.loads(line)
        for number in range(4):
            right = (index + number) % 3 == 0
            reason = "" if right else "expected a/b>=1, found 0\nexpected c<2, found 3"
            boxes = {"bench": [Detection("bench", (0.1, 2.5, 30.7, 41), 0.9371).row()]}
            file = f"images/{index:05d}/samples/{number:04d}.png"
            found.append(
                ResultRow(file, fields["tag"], fields["prompt"], right, reason, line, json.dumps(boxes))
            )
    return found


def test_results_are_those_of_pandas_byte_for_byte_and_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    write_results(file, rows())
    theirs = io.StringIO()
    pd.DataFrame([vars(row) for row in rows()]).to_json(theirs, orient="records", lines=True)
    assert file.read_text() == theirs.getvalue()
    assert "images\\/00000\\/samples" in file.read_text()
    assert read_results(file) == rows()


def test_a_line_that_is_no_result_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(rows()[0].line() + '\n{"filename": "a.png"}\n')
    with pytest.raises(BadFile, match="line 2 is no result"):
        read_results(file)


def test_details_hold_float32_numbers() -> None:
    assert Detection("dog", (0.1, 0, 1, 1), 0.3).row() == [0.10000000149011612, 0, 1, 1, 0.30000001192092896]


def test_the_summary_is_the_official_one_line_by_line(tmp_path: Path) -> None:
    """Computed by pandas, as the official tool does."""
    write_results(tmp_path / "results.jsonl", rows())
    table = pd.read_json(tmp_path / "results.jsonl", orient="records", lines=True)
    shares = {tag: group["correct"] for tag, group in table.groupby("tag", sort=False)}
    expected = ["Summary", "=======", "Total images: 16", "Total prompts: 4"]
    expected.append(f"% correct images: {table['correct'].mean():.2%}")
    expected.append(f"% correct prompts: {table.groupby('metadata')['correct'].any().mean():.2%}")
    expected += ["", "Task breakdown", "=============="]
    expected += [
        f"{tag:<16} = {right.mean():.2%} ({right.sum()} / {len(right)})" for tag, right in shares.items()
    ]
    overall = np.mean([right.mean() for right in shares.values()])
    expected += ["", f"Overall score (avg. over tasks): {overall:.5f}"]
    assert summary_of(rows()).splitlines() == expected
    assert "single_object    = 50.00% (2 / 4)" in expected


def test_colours_beneath_transparent_pixels_show_and_are_noted(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0], pixels[:, :3, 3] = 200, 255
    Image.fromarray(pixels, "RGBA").save(tmp_path / "0.png")
    picture = read_picture(tmp_path / "0.png")
    assert (picture.pixels == (200, 0, 0)).all()
    assert picture.transparent is True
    pixels[..., 3] = 255
    Image.fromarray(pixels, "RGBA").save(tmp_path / "1.png")
    assert read_picture(tmp_path / "1.png").transparent is False


def test_images_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "0.png")
    with pytest.raises(BadFile, match="16 bits"):
        read_picture(tmp_path / "0.png")


def test_a_crop_is_grey_outside_the_mask_black_beyond_the_image_and_rounded_half_to_even(
    tmp_path: Path,
) -> None:
    Image.new("RGB", (6, 4), (10, 20, 30)).save(tmp_path / "0.png")
    picture = read_picture(tmp_path / "0.png")
    mask = np.zeros((4, 6), bool)
    mask[1, 1] = True
    masked, other = Detection("dog", (0.5, 0.5, 7.5, 2.5), 1, mask), Detection("dog", (2.5, 0, 3.5, 1), 1)
    crop, rounded = crops(picture, [masked, other])
    assert crop.size == (8, 2)
    assert rounded.size == (2, 1)
    assert crop.getpixel((1, 1)) == (10, 20, 30)
    assert crop.getpixel((0, 0)) == crop.getpixel((5, 1)) == (0x99, 0x99, 0x99)
    assert crop.getpixel((6, 0)) == crop.getpixel((7, 1)) == (0, 0, 0)
    (unmasked,) = crops(picture, [Detection("dog", (0, 0, 2, 2), 1)])
    assert unmasked.getpixel((0, 0)) == (10, 20, 30)


def test_the_orientation_turns_what_colours_are_read_from_but_not_what_the_detector_sees(
    tmp_path: Path,
) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "0.png", exif=exif)
    picture = read_picture(tmp_path / "0.png")
    assert picture.pixels.shape == (4, 6, 3)
    assert picture.upright.size == (4, 6)
    assert picture.upright.getpixel((3, 0)) == (255, 255, 255)
    with pytest.raises(BadFile, match="EXIF orientation"):
        crops(picture, [Detection("dog", (0, 0, 2, 2), 1, np.ones((4, 6), bool))])
