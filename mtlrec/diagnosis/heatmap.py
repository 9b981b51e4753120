"""A small labeled heatmap as an image: some milliseconds, where a plotting library takes a hundred."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL_HEIGHT, CELL_WIDTH, GAP = 26, 58, 8
HIGH, LOW, MIDDLE = np.array([52, 140, 204]), np.array([217, 108, 40]), np.array([246, 247, 248])
TEXT = (28, 33, 38)


def heatmap(
    values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str, largest: float
) -> np.ndarray:
    """[H, W, 3] uint8: blue towards `largest`, orange towards -largest, the numbers in the cells; NaN is left blank.

    Args:
        values: [rows][columns]
    """
    font = ImageFont.load_default(size=11)
    left = int(max(font.getlength(name) for name in rows)) + 2 * GAP
    width = max(CELL_WIDTH, int(max(font.getlength(name) for name in columns)) + GAP)
    top = 2 * CELL_HEIGHT
    size = max(left + width * len(columns), int(font.getlength(title)) + GAP) + GAP, top + CELL_HEIGHT * len(rows) + GAP
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.text((GAP, GAP), title, TEXT, font)
    for column, name in enumerate(columns):
        draw.text((left + width * (column + 0.5), top - GAP), name, TEXT, font, anchor="ms")
    for row, name in enumerate(rows):
        middle = top + CELL_HEIGHT * (row + 0.5)
        draw.text((left - GAP, middle), name, TEXT, font, anchor="rm")
        for column, value in enumerate(values[row]):
            if np.isnan(value):
                continue
            corner = left + width * column, top + CELL_HEIGHT * row
            draw.rectangle((*corner, corner[0] + width - 2, corner[1] + CELL_HEIGHT - 2), _color(value / largest))
            draw.text((corner[0] + width / 2, middle), f"{value:.2f}", TEXT, font, anchor="mm")
    return np.asarray(image)


def _color(share: float) -> tuple[int, int, int]:
    """Of -1 to 1."""
    share = float(np.clip(share, -1, 1))
    red, green, blue = MIDDLE + abs(share) * ((HIGH if share > 0 else LOW) - MIDDLE)
    return int(red), int(green), int(blue)
