"""What a study's rows say of the stock model: paired tests, corrected for how many there are, and how sure they are.

Each row is compared with the stock model at the same condition on the same samples. A row is called better or worse
where the sign-flip test over images says so at 5 % after Holm's correction over all rows of the study.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tdrs.sweeps.trial import COMPLETE, STOCK, Outcome, Trial, check_pair, spelled

from tdrs.benchmarks import DATASETS, Record, pope
from tdrs.configuration import with_settings
from tdrs.records import Records
from tdrs.statistics import Interval, McNemar, holm, mcnemar, sign_flip, smallest_difference

LEVEL = 0.05


class Evidence(NamedTuple):
    """A row beside the stock model.

    Attributes:
        accuracy: with its 95 % limits; so are `difference`, `f1`, `f1_difference` (POPE alone, else None).
        discordant: gains and losses with McNemar's exact p; None for scores other than 0 and 1.
        p, p_holm: of the sign-flip test over images, and corrected for the number of rows; 1 for the stock model.
        smallest: the difference this comparison shows four times in five.
    """

    trial: Trial
    where: str
    accuracy: Interval
    difference: Interval | None
    discordant: McNemar | None
    p: float
    p_holm: float
    smallest: float
    f1: Interval | None
    f1_difference: Interval | None

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no difference shown` (`after correction`, if the interval alone would show one); "" for
        the stock model."""
        if self.difference is None:
            return ""
        if self.p_holm >= LEVEL:
            clear = self.difference.low > 0 or self.difference.high < 0
            return "no difference shown after correction" if clear else "no difference shown"
        return "better" if self.difference.value > 0 else "worse"

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
    """A p-value for people."""
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def where(outcome: Outcome, condition: Mapping[str, Any]) -> str:
    """A condition in words: backbone, data set, what the axes set, and text or blank pictures, whatever set these."""
    names = [outcome.named(condition, group) for group in ("backbone", "dataset")]
    dataset = with_settings(outcome.config, dict(condition))["dataset"]
    own = {"dataset.gap": dataset["gap"]} if dataset["gap"] else {}
    own |= {"dataset.filler": dataset["filler"]} if dataset["gap"] and dataset["filler"] != "between" else {}
    own |= {"dataset.blank": True} if dataset["blank"] else {}
    own |= {key: value for key, value in condition.items() if key not in ("backbone", "dataset")}
    text = [f"{key.removeprefix('dataset.')} {value}" for key, value in own.items()]
    return ", ".join([*names, *text])


def numbers(outcome: Outcome, records: Records) -> list[Evidence]:
    """Every held-out row that was measured, in the table's order."""
    kept: dict[str, list[Record]] = {}

    def of(trial: Trial) -> list[Record]:
        if trial.cache_key not in kept:
            kept[trial.cache_key] = records.read(trial.cache_key).records
        return kept[trial.cache_key]

    stock = {spelled(row.condition): row for row in outcome.rows if row.name == STOCK and row.status == COMPLETE}
    found = [
        _evidence(outcome, row, None if row.name == STOCK else stock.get(spelled(row.condition)), of)
        for row in outcome.rows
        if row.status == COMPLETE
    ]
    compared = [n for n, one in enumerate(found) if one.difference is not None]
    for n, p in zip(compared, holm([found[n].p for n in compared]), strict=True):
        found[n] = found[n]._replace(p_holm=p)
    return found


def _evidence(outcome: Outcome, row: Trial, stock: Trial | None, of: Any) -> Evidence:
    after = of(row)
    is_pope = DATASETS[outcome.named(row.condition, "dataset")].real == "pope"
    rule = str(with_settings(outcome.config, dict(row.condition))["dataset"]["rule"])
    one = Evidence(
        trial=row,
        where=where(outcome, row.condition),
        accuracy=Interval(*row.accuracy),
        difference=None,
        discordant=None,
        p=1.0,
        p_holm=1.0,
        smallest=float("nan"),
        f1=pope.intervals(after, rule)["f1"] if is_pope else None,
        f1_difference=None,
    )
    if stock is None or row.difference is None:
        return one
    before = of(stock)
    check_pair(stock, row, before, after)
    first, second = ([record.score for record in records] for records in (before, after))
    clusters, weights = [record.image_id for record in before], [record.weight for record in before]
    binary = all(score in (0, 1) for score in first + second)
    return one._replace(
        difference=Interval(*row.difference),
        discordant=mcnemar(first, second) if binary else None,
        p=sign_flip(first, second, clusters, weights),
        smallest=smallest_difference(first, second, clusters, weights),
        f1_difference=pope.f1_difference(before, after, rule) if is_pope else None,
    )
