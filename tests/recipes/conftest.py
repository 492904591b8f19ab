"""A small data file of our own: four pictures with questions, boxes, reports and captions."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = ("red", "green", "blue", "grey")


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """Write four 64x64 pictures, each with a bright square, and own.jsonl with train and test lines for every task."""
    lines = []
    for index, colour in enumerate(COLOURS):
        pixels = np.zeros((64, 64, 3), dtype=np.uint8)
        x, y = 8 + 8 * index, 16
        channels = slice(None) if colour == "grey" else COLOURS.index(colour)
        pixels[y : y + 16, x : x + 24, channels] = 200
        Image.fromarray(pixels).save(tmp_path / f"{colour}.png")
        common = {"image": f"{colour}.png", "split": "train" if index % 2 else "test", "group": f"scan-{index}"}
        box = {"label": "square", "xyxy": [x, y, x + 24, y + 16]}
        fact = {"finding": f"{colour} square", "status": "present"}
        lines += [
            {**common, "id": f"q{index}", "question": "Is a square visible?", "answer": "yes"},
            {**common, "id": f"g{index}", "question": "Locate the square.", "boxes": [box]},
            {
                **common,
                "id": f"r{index}",
                "task": "report",
                "question": "Describe the picture.",
                "answer": {"type": "report", "value": f"There is a {colour} square."},
                "facts": [fact],
            },
            {
                **common,
                "id": f"c{index}",
                "task": "retrieval",
                "question": "What is this?",
                "answer": f"A {colour} square.",
                "facts": [fact],
            },
        ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
