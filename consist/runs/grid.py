"""The pictures of a run side by side, with their prompts."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 5  # of a grid


def draw_grid(rows: dict[str, list[Image.Image]], captions: list[str]) -> Image.Image:
    """One labeled picture of all: a row per method, a column per prompt.

    More than ``COLUMNS`` prompts go on below.

    Args:
        rows: Pictures by the label of their row; every row has one per caption.
        captions: Text above each column.
    """
    bands = [
        draw_band(
            {label: images[start : start + COLUMNS] for label, images in rows.items()},
            captions[start : start + COLUMNS],
        )
        for start in range(0, len(captions), COLUMNS)
    ]
    size = (max(band.width for band in bands), sum(band.height for band in bands))
    grid, top = Image.new("RGB", size, "white"), 0
    for band in bands:
        grid.paste(band, (0, top))
        top += band.height
    return grid


def draw_band(rows: dict[str, list[Image.Image]], captions: list[str]) -> Image.Image:
    """A grid of which all columns stand side by side; arguments as for ``draw_grid``."""
    cell = max(192, *(side for row in rows.values() for image in row for side in image.size))
    letter, gap = max(13, cell // 18), max(4, cell // 48)
    font = ImageFont.load_default(letter)
    line, margin = round(letter * 1.35), round(letter * 6.5)
    texts = [wrap(caption, font, cell - gap) for caption in captions]
    head = line * max(map(len, texts)) + 2 * gap
    size = (margin + len(captions) * (cell + gap), head + len(rows) * (cell + gap))
    grid = Image.new("RGB", size, "white")
    ink = ImageDraw.Draw(grid)
    for column, lines in enumerate(texts):
        left = margin + column * (cell + gap)
        for i, words in enumerate(lines):
            ink.text((left, gap + i * line), words, fill="black", font=font)
    for index, (label, images) in enumerate(rows.items()):
        top = head + index * (cell + gap)
        ink.text((gap, top + cell // 2 - line), label, fill="black", font=font)
        for column, image in enumerate(images):
            grid.paste(fit(image, cell), (margin + column * (cell + gap), top))
    return grid


def fit(image: Image.Image, cell: int) -> Image.Image:
    """Scales an image into a square cell; whole factors stay sharp."""
    scale = cell / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Breaks text into lines no wider than ``width`` pixels, at spaces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
