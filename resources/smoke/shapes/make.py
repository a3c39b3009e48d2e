"""How the smoke images were made. Run from the repository: python resources/smoke/shapes/make.py

160 grey images of 8 x 8 pixels: a horizontal bar, a vertical bar, a cross or a frame at some place, on noise.
"""

import csv
from pathlib import Path

import numpy as np

SIZE, ROWS_PER_SHAPE = 8, 40
draw = np.random.default_rng(0)
rows = []
for index in range(4 * ROWS_PER_SHAPE):
    shape = ("bar", "column", "cross", "frame")[index % 4]
    image = draw.integers(0, 60, (SIZE, SIZE))
    top, left = draw.integers(1, SIZE - 2, 2)
    if shape in ("bar", "cross"):
        image[top] = draw.integers(150, 256, SIZE)
    if shape in ("column", "cross"):
        image[:, left] = draw.integers(150, 256, SIZE)
    if shape == "frame":
        image[[0, -1]] = image[:, [0, -1]] = 220
    rows.append([*image.flatten().tolist(), shape])
with (Path(__file__).parent / "shapes.csv").open("w", newline="", encoding="utf-8") as file:
    csv.writer(file, lineterminator="\n").writerows(rows)
