"""Paired comparisons of a study's held-out rows, corrected for their number.

Each row is compared with the baseline, normally the stock model, under the same condition and on the same samples. A
row is called better or worse if the sign-flip test over images gives p < 5 % after Holm's correction over all rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tdrs.benchmarks import DATASETS, Record
from tdrs.configuration import with_settings
from tdrs.records import Records
from tdrs.statistics import Interval, McNemar, Measure, holm, mcnemar, paired_difference, sign_flip, smallest_difference
from tdrs.sweeps.trial import COMPLETE, STOCK, Outcome, Trial, check_pair, spelled

LEVEL = 0.05


class Paired(NamedTuple):
    """The difference between two evaluations of the same samples, second minus first.

    Attributes:
        difference: of the accuracies, from −1 to 1, with its 95 % limits.
        discordant: how many samples were gained and lost, with McNemar's exact p; None if a score is not 0 or 1.
        p: of the sign-flip test over images.
        smallest: the difference that such a comparison shows four times in five.
        differences: of the other measures, such as F1, by name, with their 95 % limits.
    """

    difference: Interval
    discordant: McNemar | None
    p: float
    smallest: float
    differences: dict[str, Interval]


def compare_records(
    before: Sequence[Record], after: Sequence[Record], measures: Mapping[str, Measure] | None = None
) -> Paired:
    """Compare two evaluations of the same samples in the same order, with images as clusters.

    Args:
        measures: what is compared beside accuracy, by name.
    """
    first, second = ([record.score for record in records] for records in (before, after))
    clusters, weights = [record.image_id for record in before], [record.weight for record in before]
    return Paired(
        difference=paired_difference(first, second, clusters, weights),
        discordant=mcnemar(first, second) if all(score in (0, 1) for score in first + second) else None,
        p=sign_flip(first, second, clusters, weights),
        smallest=smallest_difference(first, second, clusters, weights),
        differences={name: one.difference(before, after) for name, one in (measures or {}).items()},
    )


def verdict(difference: Interval, p: float) -> str:
    """`better`, `worse` or `no difference shown`, from a corrected p.

    `no difference shown after correction` if the interval alone would show one.
    """
    if p < LEVEL:
        return "better" if difference.value > 0 else "worse"
    clear = difference.low > 0 or difference.high < 0
    return "no difference shown after correction" if clear else "no difference shown"


class Evidence(NamedTuple):
    """A row beside its baseline.

    Attributes:
        condition: in words.
        accuracy: with its 95 % limits; so are `difference`, `measures` and `differences`.
        difference, discordant, p, smallest, differences: as in `Paired`; None, 1, nan or empty for the baseline itself.
        p_holm: p after Holm's correction for the number of rows.
        measures: the other measures, such as F1 where answers are yes or no, by name.
    """

    trial: Trial
    condition: str
    accuracy: Interval
    difference: Interval | None
    discordant: McNemar | None
    p: float
    p_holm: float
    smallest: float
    measures: dict[str, Interval]
    differences: dict[str, Interval]

    @property
    def verdict(self) -> str:
        """The function `verdict` of this row; "" for the baseline."""
        return verdict(self.difference, self.p_holm) if self.difference else ""

    @property
    def sentence(self) -> str:
        """The comparison in words, in points."""
        assert self.difference is not None
        value, low, high = (100 * number for number in self.difference)
        text = f"{self.verdict}: {value:+.1f} [{low:+.1f}, {high:+.1f}], n = {self.trial.n}"
        if self.p_holm >= LEVEL:
            return f"{text}; could have shown {100 * self.smallest:.1f}"
        return f"{text}, p {'' if self.p_holm < 0.001 else '= '}{show_p(self.p_holm)}"


def show_p(p: float) -> str:
    """A p-value as tables show it."""
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def show_points(value: Interval) -> str:
    """A difference in points with its limits, as tables show it."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * number for number in value)).replace("-", "−")


TEXT = ("dataset.gap", "dataset.filler")  # the unrelated text, whose length is the distance axis
PICTURES = "dataset.blank"


def condition_names(outcome: Outcome, condition: Mapping[str, Any], without: Sequence[str] = ()) -> tuple[str, str]:
    """A condition in words: its backbone and its data set, each with its settings.

    The data set's words include unrelated text and blank pictures, even if no axis sets them.

    Args:
        without: keys to leave out.
    """
    dataset = with_settings(outcome.config, dict(condition))["dataset"]
    settings: dict[str, Any] = {"dataset.gap": dataset["gap"]} if dataset["gap"] else {}
    if dataset["gap"] and dataset["filler"] != "between":
        settings["dataset.filler"] = dataset["filler"]
    if dataset["blank"]:
        settings["dataset.blank"] = True
    words = {group: [outcome.named(condition, group)] for group in ("backbone", "dataset")}
    for key, value in (settings | dict(condition)).items():
        if key not in words and key not in without:
            group, _, name = key.partition(".")
            words["backbone" if group == "backbone" else "dataset"].append(f"{name if group in words else key} {value}")
    backbone, dataset_words = (", ".join(parts) for parts in words.values())
    return backbone, dataset_words


def condition_name(outcome: Outcome, condition: Mapping[str, Any]) -> str:
    """A condition in words, such as `mini_llava, mini_scienceqa, gap 256`."""
    return ", ".join(condition_names(outcome, condition))


def compare_rows(outcome: Outcome, records: Records, baseline: str = STOCK) -> list[Evidence]:
    """Compare every complete held-out row with the baseline under the same condition, in the order of the table.

    Args:
        baseline: the name of a row.

    Raises:
        FileNotFoundError, Damaged: the records of a row are missing or damaged.
        SettingError: two rows of one condition have other samples.
    """
    read: dict[str, list[Record]] = {}

    def records_of(trial: Trial) -> list[Record]:
        if trial.cache_key not in read:
            read[trial.cache_key] = records.read(trial.cache_key).records
        return read[trial.cache_key]

    complete = [row for row in outcome.rows if row.status == COMPLETE]
    baselines = {spelled(row.condition): row for row in complete if row.name == baseline}
    found = [_evidence(outcome, row, baselines.get(spelled(row.condition)), records_of) for row in complete]
    compared = [n for n, one in enumerate(found) if one.difference is not None]
    for n, p in zip(compared, holm([found[n].p for n in compared]), strict=True):
        found[n] = found[n]._replace(p_holm=p)
    return found


def _evidence(
    outcome: Outcome, row: Trial, baseline: Trial | None, records_of: Callable[[Trial], list[Record]]
) -> Evidence:
    """A row beside its baseline; without one, or if it is the baseline, with its own scores only."""
    after = records_of(row)
    rule = str(with_settings(outcome.config, dict(row.condition))["dataset"]["rule"])
    measures = DATASETS[outcome.named(row.condition, "dataset")].measures_of(rule)
    alone = Evidence(
        trial=row,
        condition=condition_name(outcome, row.condition),
        accuracy=Interval(*row.accuracy),
        difference=None,
        discordant=None,
        p=1.0,
        p_holm=1.0,
        smallest=float("nan"),
        measures={name: one.value(after) for name, one in measures.items()},
        differences={},
    )
    if baseline is None or baseline is row:
        return alone
    before = records_of(baseline)
    check_pair(baseline, row, before, after)
    return alone._replace(**compare_records(before, after, measures)._asdict())


def clamped_lines(outcome: Outcome) -> list[str]:
    """The shares of kernels whose w_min was clamped into (0, 1), for held-out rows with at least one per cent."""
    lines = []
    for row in outcome.rows:
        shares = {name: count / max(of, 1) for name, (count, of) in row.clamped.items()}
        parts = [f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.01]
        if parts:
            where = " ".join(str(value) for value in row.condition.values())
            lines.append(f"  {' '.join(filter(None, [where, row.name]))}: {', '.join(parts)}")
    return ["w_min clamped into (0, 1), share of kernels:", *lines] if lines else []
