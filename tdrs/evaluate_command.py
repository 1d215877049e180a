"""The command `python -m tdrs.evaluate`: one evaluation of a backbone on a benchmark, under an intervention.

    python -m tdrs.evaluate backbone=mini_llava dataset=mini_scienceqa intervention=tdrs limit=200

It prints the metrics with their intervals, keeps `samples.parquet`, `result.json` and `config.yaml` in a folder under
`outputs/records`, and logs the run. A run that was stopped continues when the same command is given again.
"""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from tdrs import backbones
from tdrs.backbones.image_embeddings import EmbeddingStore
from tdrs.commands import command
from tdrs.configuration import plain, typed
from tdrs.evaluation import Plan, clamped_line, complete, gib, plan, shard_starts
from tdrs.interventions import label
from tdrs.records import Records
from tdrs.results import Evaluation
from tdrs.stopping import stoppable
from tdrs.tracking import Run, open_tracker


def main_evaluate(config: DictConfig) -> None:
    """Run, or continue, the evaluation of a configuration; print and log its result."""
    values = plain(config)
    planned, shard = plan(values), values["shard"]
    shard_starts(0, 1, shard)  # raises SettingError for another form before data is loaded
    samples = planned.load()
    cache_key = planned.cache_key(samples)
    output = Path(values["output"])
    records = Records(output / "records")
    names = [*(values[part]["name"] for part in ("backbone", "dataset")), label(values["intervention"])]
    with stoppable() as stop, open_tracker(values["tracking"], output) as tracker:
        known = records.done(cache_key)
        features = EmbeddingStore(output / "features", gib(values["features_gib"]))
        size = planned.batch_size
        total = sum(min(size, len(samples) - start) for start in shard_starts(len(samples), size, shard))
        with (
            records.wait_for(cache_key, stop, shard),
            tqdm(total=total, desc=" ".join(names), unit="sample", disable=True if known else None) as bar,
        ):

            def after(count: int) -> None:
                bar.update(count)
                stop.check()

            if not records.done(cache_key):
                load = lambda: backbones.load(planned.backbone, features)  # noqa: E731
                complete(planned, samples, load, records, cache_key, after, shard=shard)
        folder = records.path(cache_key)
        if not records.done(cache_key):
            kept = sum(len(batch.records) for batch in records.batches(cache_key))
            print(f"shard {shard}: {total} samples kept; {kept} of {len(samples)} are there, in {folder}")
            print("the last shard's command, or this one without shard=, makes the result")
            return
        evaluation = records.read(cache_key)
        tags = {"cache_key": cache_key, "split": planned.split, "backbone": names[0], "dataset": names[1]}
        metrics = {f"{planned.split}.{name}": value for name, value in evaluation.metrics.items()}
        tracker.log(Run("evaluate", " ".join(names), cache_key, tags, {}, metrics, folder))
        print("\n".join(_result(planned, names, evaluation, known)))
        print(f"records: {folder}")
        print("\n".join(tracker.next_steps("evaluate", command("tdrs.evaluate", *typed))))


def _result(planned: Plan, names: Sequence[str], evaluation: Evaluation, known: bool) -> list[str]:
    """The result as lines of text; `known` says that it was found in the records."""
    metrics = evaluation.metrics
    accuracy, low, high = (metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    time = f"found done, {evaluation.seconds:.0f} s then" if known else f"in {evaluation.seconds:.0f} s"
    intervals = planned.dataset.intervals(evaluation.records)
    shown = ""
    for name in planned.dataset.shown:
        i = intervals.get(name)
        limits = f" [{i.low:.3f}, {i.high:.3f}]" if i else ""
        shown += f"{name} {metrics[name]:.3f}{limits}  " if name in metrics else "  "
    return [
        f"{'backbone':18}{'dataset':18}{'intervention':14}{'split':10}{'n':>5}  accuracy [95 % interval]",
        f"{names[0]:18}{names[1]:18}{names[2]:14}{planned.split:10}{len(evaluation.records):>5}  "
        f"{accuracy:.3f} [{low:.3f}, {high:.3f}]  {time}",
        shown,
        *filter(None, [clamped_line(evaluation.clamped), *evaluation.notes]),
    ]


USAGE = """
python -m tdrs.evaluate [GROUP=CHOICE ...] [SETTING=VALUE ...]   (--cfg prints the configuration and stops)

Groups and their choices:
"""
