"""Cut emoji out of the font: the only step that needs `fonts-noto-color-emoji`."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from grafting_core.testbed.emoji.atlas import COLUMNS, MARGIN, TILE
from grafting_core.testbed.emoji.vocabulary import EMOJI

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
"""Path in Debian's package `fonts-noto-color-emoji`."""
STRIKE = 109
"""The only bitmap size of the font."""


def draw_atlas(file: Path, font: Path = FONT) -> None:
    """Write the image of tiles: every emoji cut to its outline and scaled to its tile."""
    if not font.is_file():
        raise FileNotFoundError(f"{font} is missing; install the package fonts-noto-color-emoji (apt)")
    face = ImageFont.truetype(str(font), STRIKE)
    rows = -(-len(EMOJI) // COLUMNS)
    picture = Image.new("RGBA", (COLUMNS * TILE, rows * TILE))
    for number, symbol in enumerate(EMOJI.values()):
        picture.paste(_tile(symbol, face), (number % COLUMNS * TILE, number // COLUMNS * TILE))
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, optimize=True)


def _tile(symbol: str, face: ImageFont.FreeTypeFont) -> Image.Image:
    drawn = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
    ImageDraw.Draw(drawn).text((20, 20), symbol, font=face, embedded_color=True)
    outline = drawn.getchannel("A").point(lambda value: 255 * (value > 127)).getbbox()
    if outline is None:
        raise ValueError(f"the font has no glyph for {symbol!r}")
    cut = drawn.crop(outline)
    scale = (TILE - 2 * MARGIN) / max(cut.size)
    width, height = (max(1, round(side * scale)) for side in cut.size)
    tile = Image.new("RGBA", (TILE, TILE))
    tile.paste(
        cut.resize((width, height), Image.Resampling.LANCZOS), ((TILE - width) // 2, (TILE - height) // 2)
    )
    return tile
