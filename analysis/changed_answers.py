"""Samples that the stock model and a row of a study answer differently, for the report."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from tdrs.analysis.evidence import Evidence
from tdrs.benchmarks import Record, Sample
from tdrs.benchmarks.benchmark import Passage
from tdrs.configuration import with_settings
from tdrs.evaluation import plan
from tdrs.records import Records
from tdrs.results import check_same_samples
from tdrs.settings import first_line
from tdrs.sweeps.trial import STOCK, Outcome, Trial

SHOWN = 3  # samples of a row that are shown, of each kind
THUMBNAIL, BETWEEN = 160, 4  # pixels: the side of a picture, and what is between two of them


class ChangedAnswer(NamedTuple):
    """A sample whose score a row changes: `gained` or `lost`. `picture` is a data address, or ""."""

    kind: str
    prompt: str
    gold: str
    stock: str
    edited: str
    picture: str


class ChangedAnswers(NamedTuple):
    """A row's changed answers: how many in all, and the first few."""

    name: str
    gained: int
    lost: int
    shown: list[ChangedAnswer]


def row_name(trial: Trial) -> str:
    """A row's name, with a mark if its settings were tuned."""
    return f"{trial.name} (tuned on {trial.budget} trials)" if trial.budget else trial.name


def changed_answers(
    outcome: Outcome, evidence: Sequence[Evidence], records: Records
) -> dict[str, list[ChangedAnswers]]:
    """The changed answers of every compared row, by condition; the first few, gained and lost, in the split's order."""
    found: dict[str, list[ChangedAnswers]] = {}
    stock: dict[str, list[Record]] = {}
    samples: dict[str, Sample] = {}
    condition = None
    for one in evidence:
        if one.trial.name == STOCK:
            stock[one.condition] = records.read(one.trial.cache_key).records
        if one.difference is None:  # the stock model, or a row whose stock model was not measured whole
            continue
        if one.condition != condition:
            condition, samples = one.condition, samples_of(outcome, one.trial)[0]
        edited = records.read(one.trial.cache_key).records
        check_same_samples(stock[one.condition], edited, one.trial.name)
        pairs = list(zip(stock[one.condition], edited, strict=True))
        gained = [pair for pair in pairs if pair[1].score > pair[0].score]
        lost = [pair for pair in pairs if pair[1].score < pair[0].score]
        shown = [_answer("gained", *pair, samples) for pair in gained[:SHOWN]]
        shown += [_answer("lost", *pair, samples) for pair in lost[:SHOWN]]
        found.setdefault(one.condition, []).append(ChangedAnswers(row_name(one.trial), len(gained), len(lost), shown))
    return found


def samples_of(outcome: Outcome, trial: Trial) -> tuple[dict[str, Sample], str]:
    """The samples of a trial by their ids, and why there are none: the data set is not available here, or was changed.

    A changed data set would show other pictures and prompts than the ones that were answered.
    """
    config = with_settings(outcome.config, {**dict(trial.condition), "intervention": "none"})
    config |= {"split": trial.split, "limit": outcome.config["preset"][trial.split]}
    try:
        samples = plan(config).load()
        if trial.samples not in ("", samples.content):
            return {}, "the data set has changed since it was asked"
    except (ValueError, OSError) as error:  # a SettingError is a ValueError
        return {}, f"the data set is not available here ({first_line(error)})"
    return {sample.id: sample for sample in samples}, ""


def _answer(kind: str, before: Record, after: Record, samples: Mapping[str, Sample]) -> ChangedAnswer:
    sample = samples.get(before.id)
    prompt = f"{sample.before}{'[image] ' * len(sample.picture.parts)}{sample.prompt}" if sample else before.question
    if len(prompt) > 600:
        prompt = f"{prompt[:250]} […] {prompt[-250:]}"
    picture = _thumbnail(sample) if sample else ""
    return ChangedAnswer(kind, prompt, before.gold, before.prediction, after.prediction, picture)


def _thumbnail(sample: Sample) -> str:
    """The sample's pictures side by side, as a data address; "" for a passage."""
    if isinstance(sample.picture, Passage):
        return ""
    images = sample.images
    for one in images:
        one.thumbnail((THUMBNAIL, THUMBNAIL))
    image = images[0] if len(images) == 1 else _side_by_side(images)
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if image.width < THUMBNAIL else "JPEG")
    kind = "png" if image.width < THUMBNAIL else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    width = sum(image.width for image in images) + BETWEEN * (len(images) - 1)
    whole = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + BETWEEN
    return whole
