"""A user's own questions: a table in any of the usual formats, its columns mapped by settings, scored by a rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tdrs.benchmarks import pope, prompts
from tdrs.benchmarks.benchmark import (
    Accepts,
    Picture,
    Record,
    Rule,
    Sample,
    Samples,
    anything,
    mean_score,
)
from tdrs.benchmarks.own_cells import Asked, Fields, label, listed, short_floats
from tdrs.benchmarks.own_rules import ANSWER_AS, RULES, VERSIONS, check_answers, chosen, number_rule, perplexity
from tdrs.benchmarks.own_splits import Images, SplitColumn, images_of
from tdrs.benchmarks.pictures import PictureLists
from tdrs.benchmarks.prompts import LETTERS
from tdrs.benchmarks.sources import (
    BadRow,
    Context,
    Sourced,
    Unique,
    check_places,
    name_of,
    text,
)
from tdrs.benchmarks.tables import MORE_PICTURES, columns_of, in_texts, open_table
from tdrs.settings import SettingError, check_choice, check_number
from tdrs.statistics import Interval, Measure


@dataclass(frozen=True, kw_only=True)
class Tabled(Sourced):
    """What tables of questions share, with pictures or with passages.

    Args:
        source: a file of JSON lines (.jsonl, .ndjson), CSV (.csv, .tsv) or Parquet, or a folder with one table, or with
            Parquet files. Text is UTF-8. Paths of pictures begin at the folder of the file.
        revision: must be null: a table has no versions.
        column: which column is what, by meaning: `question`, `image` (or `passage`), `answers`, `choices`, `image_id`
            (or `passage_id`), `id`, `category`, `opening`, `split`. What is not set is found by its usual name; null
            says that there is none.
        rule: how answers are scored: `any_of`, one of the answers, without case, punctuation and articles;
            `normalised`, the same with one answer; `exact`, the one answer as it is written; `contains`, the words of
            one of the answers stand in the model's; `multiple_choice`, the letter or the text of the right choice;
            `yes_no`, with F1, ROC area and others; `evalai`, the soft score of VQA over ten answers; `number`, the
            first number; `perplexity`, the model would give the one answer word for word: the answer is not generated
            but rated, and its perplexity is a metric.
        tolerance: of the rule `number`, a share of the right number, from 0 to 1.
        answer_as: how the right choice is named: by its `letter`, its `text`, its `index` from 0 or its `number` from
            1; `auto` is a letter or a text.
        separator: stands between answers, choices or pictures in one cell of a CSV file.
        tuning, held_out: the values of the column `split` whose rows are the tuning and the held-out split.
        tuning_share: without a column `split`, this share of the images, chosen by a hash of their names, is the tuning
            split, and the others are held out; 0 holds all out.
    """

    real: ClassVar[str] = "own"
    rules: ClassVar[Mapping[str, Rule]] = RULES
    kinds: ClassVar[tuple[str, ...]] = (
        "question",
        "image",
        "answers",
        "choices",
        "image_id",
        "id",
        "category",
        "split",
    )
    media: ClassVar[str] = "image"
    column: dict = field(default_factory=dict, hash=False)  # type: ignore[type-arg]
    rule: str = "any_of"
    tolerance: float = 0.0
    answer_as: str = "auto"
    separator: str = "|"
    tuning: str = "tuning"
    held_out: str = "held_out"
    tuning_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("answer_as", self.answer_as, ANSWER_AS)
        check_number("tolerance", self.tolerance, 0, 1)
        check_number("tuning_share", self.tuning_share, 0, 1)
        if self.revision is not None:
            raise SettingError("revision", self.revision, "must be null: a table has no versions")
        if not self.separator.strip():
            raise SettingError("separator", self.separator, "must be a mark that stands between answers, such as |")
        if self.tuning == self.held_out:
            raise SettingError("tuning", self.tuning, "must differ from held_out")
        for kind, name in self.column.items():
            if kind not in self.kinds:
                raise SettingError(f"column.{kind}", name, f"unknown; known are {', '.join(self.kinds)}")
            if name is not None and not isinstance(name, str):
                raise SettingError(f"column.{kind}", name, "must be the name of a column, or null")

    @property
    def applied(self) -> Rule:
        return number_rule(self.tolerance) if self.rule == "number" else super().applied

    @property
    def scoring(self) -> list[str]:
        more = [VERSIONS.get(self.rule, ""), str(self.tolerance) if self.rule == "number" else ""]
        return [*super().scoring, *filter(None, more)]

    def load(self, split: str, limit: int | None, style: str, accepts: Accepts = anything) -> Samples:
        rows = open_table(self.source)
        at = columns_of(self.column, rows.column_names, self.kinds, self.source)
        self._check_columns(at, rows.column_names)
        rows, found = self.media_of(rows, at)
        splits = {self.tuning: "tuning", self.held_out: "held_out"}
        column = SplitColumn(at["split"], splits) if "split" in at else None
        passages = at.get("passage")
        images = images_of(rows, found, at.get(f"{self.media}_id"), column, passages, self.source)
        numbers = self._numbers(images, column, split)
        separator = self.separator if in_texts(self.source) else ""
        short = short_floats(rows)
        ids, asked = Unique(), Asked()
        placed: set[int] = set()

        def make(number: int, row: Any, context: Context) -> Sample:
            if number in images.faults:
                raise BadRow(images.faults[number])
            image = images.names[number]
            fields = Fields(at, row, separator, short)
            one = self.sample(fields, number, found(number, row), image, style, context(image))
            if "id" in at:
                ids.check(at["id"], one.id, number)
            if check_places("\n".join([one.question, *one.choices]), len(one.picture.parts)):
                placed.add(number)
            asked.check(one, number, len(images.parts[image]) > 1)
            return one

        gathered = self.gather(rows, make, split, limit, accepts, numbers)
        notes = [*gathered.notes, *images.notes(self.tuning_share), *asked.notes]
        if unused := [
            name
            for name in rows.column_names
            if self.pictures and MORE_PICTURES.fullmatch(name) and name not in at.values()
        ]:
            notes.append(f"not used: {', '.join(unused)}; several pictures of a row are a list in one column")
        if placed:
            notes.append(f"{len(placed)} questions say where the picture stands, read as text: it is in front of them")
        return Samples(gathered, notes)

    def media_of(self, rows: Any, at: Mapping[str, str]) -> tuple[Any, Any]:
        """The rows without their pictures, and what gives the picture of a row by its number."""
        column = at["image"]
        if column != "image" and hasattr(rows, "rename_column"):  # Parquet: its pictures are read one by one
            rows = rows.remove_columns("image") if "image" in rows.column_names else rows
            rows = rows.rename_column(column, "image")
            column = "image"
        found = PictureLists(rows, self.source, column, self.separator if in_texts(self.source) else "")
        return rows, lambda number, row: found[number]

    def _check_columns(self, at: Mapping[str, str], names: Sequence[str]) -> None:
        needed = ["question", self.media, "answers", *(["choices"] if self.rule == "multiple_choice" else [])]
        for kind in needed:
            if kind not in at:
                allowed = f"{self.source} has the columns {', '.join(names)}; which of them is the {kind}?"
                raise SettingError(f"column.{kind}", self.column.get(kind), allowed)
        if "choices" in at and self.rule != "multiple_choice":
            allowed = f"leaves the column {at['choices']} unused; rule=multiple_choice, or column.choices=null"
            raise SettingError("rule", self.rule, allowed)

    def _numbers(self, images: Images, column: SplitColumn | None, split: str) -> list[int]:
        """The numbers of the rows of a split. Raises SettingError if there are none."""
        if column is None and split == "tuning" and self.tuning_share == 0:
            raise SettingError("tuning_share", 0, "leaves no row for the tuning split")
        numbers = images.numbers(split, self.tuning_share)
        if not numbers and column is not None:
            some = list(images.unused)[:4] + (["…"] if len(images.unused) > 4 else [])
            known = ", ".join(some) or "nothing else"
            allowed = f"no row has it in the column {column.name}, which has {known}"
            raise SettingError(split, getattr(self, split), allowed)
        if not numbers:
            raise SettingError("tuning_share", self.tuning_share, f"leaves no {self.media} in the {split} split")
        return numbers

    def sample(
        self, row: Any, number: int, picture: Picture, image: str, style: str, context: tuple[str, str]
    ) -> Sample:
        at, cells = row.at, row.cells
        question = text(cells, at["question"])
        category = label(row, "category")
        choices: tuple[str, ...] = ()
        if self.rule == "multiple_choice":
            choices = listed(row, "choices")
            if not 2 <= len(choices) <= len(LETTERS) or len(set(choices)) != len(choices):
                raise BadRow(f"{len(choices)} {at['choices']}, which must be 2 to {len(LETTERS)} different ones")
            answers: tuple[str, ...] = ()
            gold = chosen(cells.get(at["answers"]), choices, self.answer_as, at["answers"])
        else:
            answers = listed(row, "answers")
            check_answers(self.rule, answers, at["answers"])
            gold = answers[0].strip().lower() if self.rule == "yes_no" else answers[0].strip()
        options = tuple(LETTERS[: len(choices)]) or (("yes", "no") if self.rule == "yes_no" else ())
        return Sample(
            id=name_of(cells, at["id"]) if "id" in at else str(number),
            image_id=image,
            picture=picture,
            question=question,
            prompt=self.asked(style, question, choices, context[1]),
            before=context[0],
            gold=gold,
            options=options,
            choices=choices,
            answers=answers,
            categories=(category,) if category else (),
            rated=answers[:1] if self.rule == "perplexity" else (),
            opening=text(cells, at["opening"], optional=True) if "opening" in at else "",
        )

    def asked(self, style: str, question: str, choices: Sequence[str], context: str) -> str:
        """The text of the user's turn after the image, in the style of a benchmark of the same kind."""
        if self.rule == "multiple_choice":
            return prompts.scienceqa(style, question, choices, context=context)
        return (prompts.pope if self.rule == "yes_no" else prompts.gqa)(style, question, context)

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """`accuracy`, that of each category, and for `yes_no` those of `pope.counts`."""
        found = super().metrics(records)
        if self.rule == "yes_no":
            found = pope.counts(records, "vlmevalkit") | found
        if self.rule == "perplexity":
            found["perplexity"] = perplexity(records).value
        parts: dict[str, list[Record]] = {}
        for record in records:
            if record.categories:
                parts.setdefault(record.categories, []).append(record)
        return found | {f"{name}.accuracy": mean_score(part) for name, part in parts.items()}

    @classmethod
    def measures_of(cls, rule: str) -> dict[str, Measure]:
        return pope.pooled_measures("vlmevalkit") if rule == "yes_no" else {}

    def intervals(self, records: Sequence[Record]) -> dict[str, Interval]:
        if self.rule == "perplexity":
            return {"perplexity": perplexity(records)}
        return pope.pooled_intervals(records, "vlmevalkit") if self.rule == "yes_no" else {}


@dataclass(frozen=True, kw_only=True)
class Own(Tabled):
    """A user's own questions about pictures."""

    shown: ClassVar[tuple[str, ...]] = (*pope.SHOWN, "perplexity")
