"""Tables of a user's own questions about six pictures."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tdrs import benchmarks
from tdrs.benchmarks.benchmark import Benchmark, Samples

COLORS = ("red", "green", "blue", "white", "black", "gray")


def own(source: Path, **values: Any) -> Benchmark:
    return benchmarks.from_settings({"name": "own", "source": str(source), "tuning_share": 0, **values})


def load(source: Path, split: str = "held_out", limit: int | None = None, **values: Any) -> Samples:
    return benchmarks.load(own(source, **values), split, limit)


def pictures(folder: Path) -> Path:
    """A folder with six pictures in its folder `pictures`."""
    (folder / "pictures").mkdir()
    for color in COLORS:
        Image.new("RGB", (40, 40), color).save(folder / "pictures" / f"{color}.png")
    return folder


def rows(**changed: Any) -> list[dict[str, Any]]:
    """Twelve questions, two about each picture."""
    return [
        {
            "id": f"{color}{n}",
            "image": f"pictures/{color}.png",
            "question": f"What is it, {n}?",
            "answer": color,
            **changed,
        }
        for color in COLORS
        for n in range(2)
    ]


def write(folder: Path, found: list[Any], name: str = "questions.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in found))
    return path
