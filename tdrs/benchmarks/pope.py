"""POPE: rows in the schema of `lmms-lab/POPE`, rules, metrics by category, settings.

Data: Y. Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023; MIT, images of COCO.

The three categories have the same positive questions. A pair of image and question may therefore stand for several
rows: it is asked once and counts in each of its categories.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import datasets
import numpy as np

from tdrs.benchmarks import prompts
from tdrs.benchmarks.benchmark import Accepts, Benchmark, Picture, Record, Rule, Sample, Samples, anything
from tdrs.benchmarks.evalai import without_marks
from tdrs.benchmarks.pictures import Pictures
from tdrs.benchmarks.rows import open_rows
from tdrs.benchmarks.sources import BadRow, Context, Sourced, Unique, check_columns, in_split, name_of, text
from tdrs.benchmarks.yes_no import balanced_accuracy, roc_area
from tdrs.settings import SettingError, check_number
from tdrs.statistics import Interval, Measure, cluster_draws, percentiles

FEATURES = datasets.Features(
    {
        "question_id": datasets.Value("string"),
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "image_source": datasets.Value("string"),
        "image": datasets.Image(),
        "category": datasets.Value("string"),
    }
)
CATEGORIES = ("adversarial", "popular", "random")
# POPE's random part before and after its fix; the papers on LLaVA and InternVL report the first
FORMS = {2910: "before its fix", 3000: "fixed"}


def answer_official(prediction: str) -> str:
    """POPE's `evaluate.py`: the first sentence without commas; `no` if a word of it is No, not or no, else `yes`.

    So "NO", "isn't" and an empty answer count as yes.
    """
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def answer_lmms_eval(prediction: str) -> str:
    """lmms-eval: exactly yes or no after strip and lower case, else "", which is wrong."""
    said = prediction.strip().lower()
    return said if said in ("yes", "no") else ""


def answer_vlmevalkit(prediction: str) -> str:
    """VLMEvalKit: yes or no if exactly one of the two is a word of the answer, else "" (Unknown), which is wrong.

    VQA's marks are removed first; then words are separated by blanks. Other marks stay, so "**No**" is not "no".
    """
    words = without_marks(prediction.lower()).split()
    found = [word for word in ("yes", "no") if word in words]
    return found[0] if len(found) == 1 else ""


RULES = {
    "official": Rule(lambda prediction, _: answer_official(prediction)),
    "lmms_eval": Rule(lambda prediction, _: answer_lmms_eval(prediction)),
    "vlmevalkit": Rule(lambda prediction, _: answer_vlmevalkit(prediction)),
}


def _positives(record: Record, rule: str) -> tuple[bool, bool, bool]:
    """Whether a record is a predicted yes, a correct yes, and a gold yes.

    If an answer is neither yes nor no, lmms-eval does not count its gold yes: it is in neither recall nor F1.
    """
    said, gold = record.answer == "yes", record.gold == "yes"
    return said, said and gold, gold and not (rule == "lmms_eval" and not record.answer)


def counts(records: Sequence[Record], rule: str) -> dict[str, float]:
    """Metrics of one category, with yes as positive. An answer that is neither yes nor no is wrong and not a yes."""
    nan = float("nan")
    n = len(records)
    yes, right, gold = np.array([_positives(r, rule) for r in records], dtype=int).reshape(n, 3).sum(axis=0).tolist()
    share = sum(record.gold == "yes" for record in records) if rule == "lmms_eval" else yes
    precision = right / yes if yes else 0.0 if gold else nan
    recall = right / gold if gold else nan
    return {
        "accuracy": sum(record.score for record in records) / n if n else nan,
        "precision": precision,
        "recall": recall,
        "f1": 2 * right / (yes + gold) if yes + gold else nan,
        "yes_ratio": share / n if n else nan,
        "balanced_accuracy": float(balanced_accuracy(records)),
        "roc_area": float(roc_area(records)),
    }


def metrics(records: Sequence[Record], rule: str = "official") -> dict[str, float]:
    """Accuracy, precision, recall, F1, the share of yes among the predictions (lmms-eval: among the gold answers),
    balanced accuracy, and the area under the ROC curve of the log-odds of yes.

    They are computed for each category (`random.f1`, …), as the mean of the categories, which the papers report (`f1`,
    …), and over all rows pooled (`pooled.f1`, …). If a category has neither a predicted nor a gold yes, its F1 is nan.
    If it has a gold yes and yes is never predicted, precision and F1 are 0. Balanced accuracy and ROC area are nan if a
    category lacks a gold yes or a gold no.
    """
    parts = {name: [r for r in records if name in r.categories.split(",")] for name in CATEGORIES}
    found = {name: counts(part, rule) for name, part in parts.items() if part}
    if not found:
        return counts([], rule)
    result = {key: sum(part[key] for part in found.values()) / len(found) for key in counts([], rule)}
    for name, values in found.items():
        result |= {f"{name}.{key}": value for key, value in values.items()}
    pooled = counts([record for part in parts.values() for record in part], rule)
    return result | {f"pooled.{key}": value for key, value in pooled.items()}


SHOWN = "f1", "precision", "recall", "yes_ratio", "balanced_accuracy", "roc_area"  # metrics, beside accuracy
MEASURES = {"F1": "f1", "balanced accuracy": "balanced_accuracy", "ROC area": "roc_area"}  # of tables: the metric
INTERVALS = ("precision", "recall", *MEASURES.values())
SHARE, CHANGE = (0.0, 1.0), (-1.0, 1.0)  # what a metric, and a difference of two, may be


def _resampled(
    records: Sequence[Record],
    rule: str,
    categories: Sequence[str] = CATEGORIES,
    names: Sequence[str] = INTERVALS,
) -> dict[str, np.ndarray]:
    """The means over the categories of some of `INTERVALS`, for each resample of the images, (resamples,) each."""
    index, draws = cluster_draws([record.image_id for record in records])
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    k = draws.shape[1]
    for category in categories:
        chosen = [n for n, record in enumerate(records) if category in record.categories.split(",")]
        if not chosen:
            continue
        some = [records[n] for n in chosen]

        def count(true: np.ndarray, at: np.ndarray = index[chosen]) -> np.ndarray:
            return draws @ np.bincount(at, weights=true, minlength=k)

        flags = np.array([_positives(record, rule) for record in some], dtype=float)
        yes, right, gold = (count(column) for column in flags.T)
        nan = np.full_like(right, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {
                "precision": np.where(yes > 0, right / yes, np.where(gold > 0, 0.0, nan)),
                "recall": np.where(gold > 0, right / gold, nan),
                "f1": np.where(yes + gold > 0, 2 * right / (yes + gold), nan),
            }
        for name, compute in (("balanced_accuracy", balanced_accuracy), ("roc_area", roc_area)):
            if name in names:
                found[name] = compute(some, draws[:, index[chosen]])
        for name in names:
            parts[name].append(found[name])
    return {name: np.mean(values, axis=0) if values else np.array([]) for name, values in parts.items()}


def intervals(records: Sequence[Record], rule: str = "official") -> dict[str, Interval]:
    """The means over the categories of `INTERVALS`, each with its 95 % interval by a bootstrap over images."""
    found, values = _resampled(records, rule), metrics(records, rule)
    return {name: percentiles(values[name], found[name], SHARE) for name in INTERVALS}


def pooled_intervals(records: Sequence[Record], rule: str) -> dict[str, Interval]:
    """As `intervals`, of records that belong to no category."""
    found, values = _resampled(_alike(records), rule, ("all",)), counts(records, rule)
    return {name: percentiles(values[name], found[name], SHARE) for name in INTERVALS}


def _alike(records: Sequence[Record]) -> list[Record]:
    return [replace(record, categories="all") for record in records]


def difference(
    before: Sequence[Record], after: Sequence[Record], rule: str = "official", metric: str = "f1"
) -> Interval:
    """A metric of `after` minus that of `before` on the same samples, by a bootstrap over images."""
    first, second = (_resampled(records, rule, names=(metric,))[metric] for records in (before, after))
    return percentiles(metrics(after, rule)[metric] - metrics(before, rule)[metric], second - first, CHANGE)


def pooled_difference(before: Sequence[Record], after: Sequence[Record], rule: str, metric: str) -> Interval:
    """As `difference`, of records that belong to no category."""
    first, second = (_resampled(_alike(records), rule, ("all",), (metric,))[metric] for records in (before, after))
    return percentiles(counts(after, rule)[metric] - counts(before, rule)[metric], second - first, CHANGE)


def measures(rule: str) -> dict[str, Measure]:
    """What tables show of POPE beside accuracy, by name."""
    return {
        name: Measure(metric, partial(_value, metric, rule), partial(difference, rule=rule, metric=metric))
        for name, metric in MEASURES.items()
    }


def _value(metric: str, rule: str, records: Sequence[Record]) -> Interval:
    found = _resampled(records, rule, names=(metric,))[metric]
    return percentiles(metrics(records, rule)[metric], found, SHARE)


def pooled_measures(rule: str) -> dict[str, Measure]:
    """As `measures`, of records that belong to no category."""
    return {
        name: Measure(
            metric, partial(_pooled_value, metric, rule), partial(pooled_difference, rule=rule, metric=metric)
        )
        for name, metric in MEASURES.items()
    }


def _pooled_value(metric: str, rule: str, records: Sequence[Record]) -> Interval:
    found = _resampled(_alike(records), rule, ("all",), (metric,))[metric]
    return percentiles(counts(records, rule)[metric], found, SHARE)


def pair_id(row: Any) -> str:
    """An id for a pair of image and question: equal for all rows that have both in common."""
    return hashlib.sha1(f"{name_of(row, 'image_source')}\n{text(row, 'question')}".encode()).hexdigest()[:12]


def merge(samples: Sequence[Sample]) -> list[Sample]:
    """One sample for each pair of image and question, with all its categories, in the order of first appearance.

    The weights make the weighted mean score equal to the mean of the categories' accuracies; their average is 1.
    """
    unique: dict[str, Sample] = {}
    for one in samples:
        known = unique.get(one.id)
        parts = {*(known.categories if known else ()), *one.categories}
        unique[one.id] = replace(known or one, categories=tuple(sorted(parts)))
    counts = {name: sum(name in one.categories for one in unique.values()) for name in CATEGORIES}
    used = sum(count > 0 for count in counts.values())
    weights = {key: sum(1 / counts[name] for name in one.categories) / used for key, one in unique.items()}
    return [replace(one, weight=weights[key] * len(unique)) for key, one in unique.items()]


def form(samples: Sequence[Sample]) -> str:
    """A sentence with the numbers of rows and pairs, and the form of the random part."""
    counts = {name: sum(name in one.categories for one in samples) for name in CATEGORIES}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    known = FORMS.get(counts["random"])
    told = f" (the random part is POPE's {known})" if known else ""
    return f"{sum(counts.values())} rows ({', '.join(parts)}){told}, {len(samples)} pairs of image and question"


@dataclass(frozen=True, kw_only=True)
class POPERules(Benchmark):
    """What the real set and its twin share.

    Args:
        rule: `official`; `lmms_eval`; `vlmevalkit`.
    """

    real: ClassVar[str] = "pope"
    shown: ClassVar[tuple[str, ...]] = (*SHOWN, *(f"{c}.f1" for c in CATEGORIES))
    rules: ClassVar[Mapping[str, Rule]] = RULES
    rule: str = "official"

    def sample(
        self, row: Any, number: int, picture: Picture, image: str, style: str, context: tuple[str, str]
    ) -> Sample:
        category, gold = text(row, "category").lower(), text(row, "answer").strip().lower()
        question = text(row, "question")
        if category not in CATEGORIES:
            raise BadRow(f"category {row['category']!r}, not {', '.join(CATEGORIES)}")
        if gold not in ("yes", "no"):
            raise BadRow(f"answer {row['answer']!r}, not yes or no")
        return Sample(
            id=pair_id(row),
            image_id=image,
            picture=picture,
            question=question,
            prompt=prompts.pope(style, question, context[1]),
            before=context[0],
            gold=gold,
            options=("yes", "no"),
            categories=(category,),
        )

    @classmethod
    def measures_of(cls, rule: str) -> dict[str, Measure]:
        return measures(rule)

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        return metrics(records, self.rule)

    def intervals(self, records: Sequence[Record]) -> dict[str, Interval]:
        return intervals(records, self.rule)

    def merged(self, samples: Sequence[Sample]) -> list[Sample]:
        return merge(samples)


@dataclass(frozen=True, kw_only=True)
class POPE(POPERules, Sourced):
    """The real set, which has one split.

    Args:
        config: the hub configuration, None for its default.
        split: the source's name of its split.
        tuning_share: the share of the images in the tuning split; a hash of their names decides which. The others are
            held out. 0 holds out all images, for settings that were chosen elsewhere.
    """

    source: str = "lmms-lab/POPE"
    config: str | None = None
    split: str = "test"
    tuning_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tuning_share", self.tuning_share, 0, 1)

    def load(self, split: str, limit: int | None, style: str, accepts: Accepts = anything) -> Samples:
        if split == "tuning" and self.tuning_share == 0:
            raise SettingError(
                "tuning_share", 0, "leaves no image for the tuning split; the published sets have one split"
            )
        rows = open_rows(self.source, self.config, self.split, self.revision)
        check_columns(rows, tuple(FEATURES), self.source)
        self.check_count(len(rows), split)
        kept = [
            number for number, name in enumerate(rows["image_source"]) if in_split(str(name), split, self.tuning_share)
        ]
        if not kept:
            raise SettingError("tuning_share", self.tuning_share, f"leaves no image in the {split} split")
        pictures = Pictures(rows, self.source)
        asked = Unique()
        golds: dict[str, tuple[str, int]] = {}

        def make(number: int, row: Any, context: Context) -> Sample:
            image = name_of(row, "image_source")
            one = self.sample(row, number, pictures[number], image, style, context(image))
            asked.check("image, question and category", f"{one.id} {one.categories}", number)
            gold, first = golds.setdefault(one.id, (one.gold, number))
            if gold != one.gold:
                raise BadRow(f"another answer than row {first} to the same question about the same image")
            return one

        gathered = self.gather(rows, make, split, limit, accepts, kept)
        return Samples(gathered, [*gathered.notes, form(gathered)])
