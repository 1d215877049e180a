"""ScienceQA-IMG: rows in the schema of `lmms-lab/ScienceQA`, prompts, scoring.

Data: P. Lu et al., "Learn to Explain", NeurIPS 2022. Prompt and rule are those of LLaVA's own evaluation.
"""

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from tdrs.benchmarks.prompts import LETTERS, scienceqa_llava
from tdrs.settings import SettingError

_TEXT = ("question", "hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "choices": datasets.Sequence(datasets.Value("string")),
        "answer": datasets.Value("int8"),
        **{name: datasets.Value("string") for name in _TEXT[1:]},
    }
)
NEEDED = ("image", "question", "choices", "answer", "hint")


@dataclass(frozen=True)
class Sample:
    """One question about one picture.

    Attributes:
        id: the row's number in its split.
        image_id: a hash of the picture's bytes; questions about one picture share it.
        prompt: the text of the user's turn, without the image.
        choices: as many as the sample has.
        gold: the right option's letter.
    """

    id: str
    image_id: str
    image: Image.Image
    question: str
    prompt: str
    choices: tuple[str, ...]
    gold: str

    @property
    def letters(self) -> str:
        """The letters its options carry."""
        return LETTERS[: len(self.choices)]


def parse_letter(prediction: str) -> str | None:
    """The option letter an answer gives, or None, by LLaVA's rule (`eval_science_qa.py`).

    Exactly one letter; or a letter followed by ". "; or exactly one match of "The answer is X.".
    """
    if len(prediction) == 1 and prediction in LETTERS:
        return prediction
    if len(prediction) >= 3 and prediction[0] in LETTERS and prediction[1:3] == ". ":
        return prediction[0]
    found = re.findall(r"The answer is ([A-Z])\.", prediction)
    return found[0] if len(found) == 1 else None


def score(prediction: str, sample: Sample) -> bool:
    """Whether the answer names the right option; no letter, or one beyond the choices, is wrong."""
    return parse_letter(prediction.strip()) == sample.gold


def to_samples(rows: datasets.Dataset, source: str) -> list[Sample]:
    """Samples of rows in the real schema; raises SettingError where a column or a picture is missing."""
    missing = [name for name in NEEDED if name not in rows.column_names]
    if missing:
        raise SettingError("source", source, f"lacks the column {', '.join(missing)}; needed are {', '.join(NEEDED)}")
    rows = rows.cast_column("image", datasets.Image(decode=False))
    return [_sample(number, row, source) for number, row in enumerate(rows)]


def _sample(number: int, row: dict[str, Any], source: str) -> Sample:
    encoded = row["image"] and (row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes())
    if not encoded:
        raise SettingError("source", source, f"row {number} has no image; use the configuration ScienceQA-IMG")
    choices = tuple(row["choices"])
    if not 0 <= row["answer"] < len(choices) <= len(LETTERS):
        raise SettingError("source", source, f"row {number} has answer {row['answer']} of {len(choices)} choices")
    return Sample(
        id=str(number),
        image_id=hashlib.sha1(encoded).hexdigest()[:12],
        image=Image.open(io.BytesIO(encoded)).convert("RGB"),
        question=row["question"],
        prompt=scienceqa_llava(row["question"], choices, row["hint"] or ""),
        choices=choices,
        gold=LETTERS[row["answer"]],
    )


def _open(source: str, config: str | None, split: str, revision: str | None) -> datasets.Dataset:
    """A hub id, a folder in the hub's layout, a Parquet file, or a folder that `save_to_disk` wrote."""
    path = Path(source).expanduser()
    if path.suffix == ".parquet" and path.exists():
        return datasets.load_dataset("parquet", data_files={split: str(path)}, split=split)
    if path.exists() and (path / "dataset_dict.json").exists():
        return datasets.load_from_disk(str(path))[split]
    if path.exists() and (path / "dataset_info.json").exists() and (path / "state.json").exists():
        return datasets.load_from_disk(str(path))
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise SettingError("source", source, "no such file or folder, and not a hub id (owner/name)")
    return datasets.load_dataset(source if not path.exists() else str(path), config, split=split, revision=revision)


@dataclass(frozen=True)
class ScienceQA:
    """The real set.

    Args:
        source: hub id, local folder in the hub's layout, Parquet file, or a saved `datasets` directory.
        config: the hub configuration; None for a Parquet file or a saved directory.
        revision: the hub commit; None is the newest.
        tuning, held_out: the source's names of the splits that settings are chosen on, and that is reported.
    """

    source: str = "lmms-lab/ScienceQA"
    config: str | None = "ScienceQA-IMG"
    revision: str | None = None
    tuning: str = "validation"
    held_out: str = "test"

    def load(self, split: str, limit: int | None) -> list[Sample]:
        name = self.tuning if split == "tuning" else self.held_out
        try:
            rows = _open(self.source, self.config, name, self.revision)
        except SettingError:
            raise
        except Exception as error:  # the library's errors name neither the setting nor what to do
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SettingError("source", self.source, f"cannot be read as split {name!r} ({reason})") from error
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        return to_samples(rows, self.source)
