"""What matters in a search: the importance of each setting, interactions, and how far a setting may move.

A trial that ended early, failed, or edits as another does is no point (`analysis/search_points.py`). Two evaluators of
Optuna say which settings matter: fANOVA, the share of the variance over the whole space that a setting explains alone,
and PED-ANOVA, how much the best points' values differ from all points' (S. Watanabe et al., IJCAI 2023). All else is of
the surrogate in `analysis/surrogate.py`, whose cross-validated R² says whether to believe it.

Bands are 1.96 standard deviations over resamples to either side. A resample has half of the points, each once, and as
many images as there are, drawn with replacement. Half of the points without repetition spread a mean as a bootstrap
does (B. Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, §8); PED-ANOVA would take a point that is
there twice for certainty. An importance is called shown if it is above every importance in 19 analyses of shuffled
values: where no setting matters, that happens to one setting or more in one study of twenty.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from tdrs.analysis import surrogate
from tdrs.analysis.plateau import SettingPlateau, as_good, plateaus, spread
from tdrs.analysis.search_points import EARLY, SearchPoints, search_points
from tdrs.analysis.search_scores import scores_of
from tdrs.analysis.surrogate import RESAMPLE_TREES, TREES, Effects, Part
from tdrs.environment import quiet
from tdrs.records import Records
from tdrs.statistics import Interval
from tdrs.sweeps.space import Range, Space
from tdrs.sweeps.trial import Outcome

FEWEST = 20  # points; with fewer, a fifth for cross-validation has three, and a tenth has one
RESAMPLES, SHUFFLES = 20, 19
LEVELS, FINE = 6, 15  # numbers that stand for a range: for pairs of settings; for one setting
BELIEVABLE = 0.5  # R² below which a warning is shown: more of the variance is unexplained than explained
BEST_SHARE, BEST_FEWEST = 0.1, 5  # the best points of PED-ANOVA: a tenth, and five or more, as Optuna advises


class ParameterImportance(NamedTuple):
    """The importance of a parameter: a setting, or whether it is switched on (`KEY.on`), each with a 95 % band.

    Attributes:
        fanova: the share of the variance that it explains alone.
        ped: its share of the divergences of PED-ANOVA, which sum to one.
    """

    name: str
    fanova: Interval
    ped: Interval


class SobolIndices(NamedTuple):
    """The first-order and the total Sobol index of a setting, each with a 95 % band."""

    key: str
    first: Interval
    total: Interval


class Interaction(NamedTuple):
    """Two settings by their numbers, the share of variance that they explain beyond each alone, and its 95 % band."""

    first: int
    second: int
    share: Interval


class Importance(NamedTuple):
    """What matters at one condition.

    Attributes:
        points: what was counted.
        stopped: why nothing could be said; "" if it could. All that follows is then empty.
        notes, warnings: lines for the reader.
        r2: of the surrogate for points it has not seen: the mean of five repeats, the lowest, the highest.
        parameters: the most important one in fANOVA first.
        fanova_floor, ped_floor, pair_floor: the highest importance among shuffled values.
        parts: the settings that the surrogate knows, in the order of the space.
        effects: its partial dependences.
        bands: of the partial dependence of each setting less its mean, 2 × states.
        pairs: interactions, the strongest first.
        sobol: in the order of `parts`; empty if the points do not allow it.
        plateaus: in the order of `parts`.
    """

    points: SearchPoints
    stopped: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    r2: Interval | None = None
    parameters: tuple[ParameterImportance, ...] = ()
    fanova_floor: float = 0.0
    ped_floor: float = 0.0
    pair_floor: float = 0.0
    parts: tuple[Part, ...] = ()
    effects: Effects | None = None
    bands: tuple[np.ndarray, ...] = ()
    pairs: tuple[Interaction, ...] = ()
    sobol: tuple[SobolIndices, ...] = ()
    plateaus: tuple[SettingPlateau, ...] = ()


def importance(outcome: Outcome, records: Records, objective: str | None = None) -> list[Importance]:
    """What matters in a finished study of the protocol `sampled`, `points` or `raced`, one item for each condition.

    It takes some 10 CPU seconds for 40 points of 15 settings, and a minute for 300.

    Args:
        records: where the study's evaluations are stored; without them, images are not resampled, and
            nothing is said of a race.
        objective: `accuracy` or `margin`; None is the study's own.

    Raises:
        SettingError: the study has no search space, or there is no such objective.
    """
    return [_importance_at(points, records) for points in search_points(outcome, objective)]


def _importance_at(points: SearchPoints, records: Records) -> Importance:
    parts = surrogate.parts_of(points.space, LEVELS)
    number, settings = len(points.drawn), len(parts)
    if not settings:
        return Importance(points, "The space has one value for each setting, so there is nothing to compare.")
    if number < max(FEWEST, settings + 1):
        needed = f"at least {max(FEWEST, settings + 1)} for {settings} settings"
        return Importance(points, f"{points.counted} No importance is computed from so few: it needs {needed}.")
    scores = scores_of(points.measured, points.objective, records)
    if points.raced:
        if isinstance(scores, str):
            return Importance(points, f"Points saw different samples, and cannot be compared: {scores}.")
        if not points.complete:
            return Importance(points, "No point was measured on all samples.")
        points = points.estimated(scores)
    values = points.values
    if np.ptp(values) < 1e-12:
        return Importance(points, f"All {number} points have the same {points.objective}: no setting changes it.")
    notes, warned = _said(points, scores if isinstance(scores, str) else "")
    codes = surrogate.encode(parts, [trial.settings for trial in points.drawn])
    r2 = surrogate.cross_validated(codes, values)
    if r2.value < BELIEVABLE:
        warned.append(
            f"The surrogate's R² for points it has not seen is {r2.value:.2f}, below {BELIEVABLE:g}: it leaves more of "
            f"the {points.objective} unexplained than it explains, so its shares, interactions and slices may be "
            "those of noise. Measure more points, or more samples."
        )
    rng = np.random.default_rng(0)
    model = surrogate.fit(codes, values, TREES, 0)
    found = surrogate.effects(model, parts, rng)
    fine = surrogate.parts_of(points.space, FINE)
    best = points.best.settings
    changes = surrogate.slice_losses(model, fine, best)
    whole = _shares(points, np.arange(number), values, rng, TREES)
    sobol_allowed = points.unbiased and r2.value >= BELIEVABLE
    indices = surrogate.sobol(model, parts, 0) if sobol_allowed else None

    kept: dict[str, list[Any]] = {"shares": [], "main": [], "pairs": [], "changes": [], "sobol": []}
    rows = [points.measured.index(trial) for trial in points.drawn]
    for seed in range(1, RESAMPLES + 1):
        chosen = rng.choice(number, size=(number + 1) // 2, replace=False)
        again = values
        if not isinstance(scores, str):
            images = scores.images
            again = scores.drawn(rng.multinomial(images, np.full(images, 1 / images)))[rows]
        resampled = surrogate.fit(codes[chosen], again[chosen], RESAMPLE_TREES, seed)
        here = surrogate.effects(resampled, parts, rng)
        kept["shares"].append(_shares(points, chosen, again[chosen], rng, RESAMPLE_TREES))
        kept["main"].append(here.centred(parts))
        kept["pairs"].append(here.shares)
        kept["changes"].append(surrogate.slice_losses(resampled, fine, best))
        if indices is not None:
            kept["sobol"].append(surrogate.sobol(resampled, parts, seed))
    shuffled, shuffled_pairs = [], [0.0]
    for seed in range(SHUFFLES):
        order = rng.permutation(values)
        shuffled.append(_shares(points, np.arange(number), order, rng, RESAMPLE_TREES))
        if settings > 1:
            noise = surrogate.fit(codes, order, RESAMPLE_TREES, seed)
            shuffled_pairs.append(max(surrogate.effects(noise, parts, rng).shares.values()))

    def band(value: float, resampled: list[float]) -> Interval:
        low, high = spread(np.asarray(value), np.array(resampled))
        return Interval(float(value), max(0.0, float(low)), min(1.0, float(high)))

    parameters = [
        ParameterImportance(
            name,
            band(whole[0][name], [one[0][name] for one in kept["shares"]]),
            band(whole[1][name], [one[1][name] for one in kept["shares"]]),
        )
        for name in whole[0]
    ]
    pairs = [
        Interaction(*pair, band(share, [one[pair] for one in kept["pairs"]])) for pair, share in found.shares.items()
    ]
    return Importance(
        points=points,
        notes=tuple(notes),
        warnings=tuple(warned),
        r2=r2,
        parameters=tuple(sorted(parameters, key=lambda one: -one.fanova.value)),
        fanova_floor=max(max(one[0].values()) for one in shuffled),
        ped_floor=max(max(one[1].values()) for one in shuffled),
        pair_floor=max(shuffled_pairs),
        parts=tuple(parts),
        effects=found,
        bands=tuple(
            spread(main, np.array([one[n] for one in kept["main"]])) for n, main in enumerate(found.centred(parts))
        ),
        pairs=tuple(sorted(pairs, key=lambda one: -one.share.value)),
        sobol=tuple(
            SobolIndices(part.key, *(band(indices[k][n], [one[k][n] for one in kept["sobol"]]) for k in (0, 1)))
            for n, part in enumerate(parts)
        )
        if indices is not None
        else (),
        plateaus=plateaus(fine, best, changes, kept["changes"], as_good(points, scores)),
    )


def _said(points: SearchPoints, unread: str) -> tuple[list[str], list[str]]:
    """Notes and warnings on what the points allow.

    Args:
        unread: why images cannot be resampled; "" if they can.
    """
    notes, warned = [points.counted], []
    if points.unbiased:
        notes.append(
            f"Points were drawn by {points.sampler}, whatever their results: importance is of the whole space."
        )
    else:
        warned.append(
            f"Points were chosen by {points.sampler.upper()}: importance is of the region it looked at, not of the "
            "whole space. For the whole space: search.sampler=qmc search.prune=false."
        )
    seen = [trial.n for trial in points.drawn]
    if len(set(seen)) > 1:  # in a race
        notes.append(
            f"These points saw {min(seen)} to {max(seen)} samples, half of them at most {int(np.median(seen))}. Their "
            f"{points.objective} over all samples is estimated, with the effects of the samples taken out; R² is of "
            "these estimates."
        )
    if early := points.left_out.get(EARLY):
        warned.append(
            f"{early} trials that ended early are left out, and they are the bad ones: importance is among the points "
            "that were measured whole. To measure all whole: search.prune=false."
        )
    images = "and of the images" if not unread else f"but not of the images, because {unread}"
    notes.append(
        f"Bands (95 %) are of {RESAMPLES} resamples of the points, {images}; dashed lines are the highest importance "
        f"in {SHUFFLES} analyses of shuffled values."
    )
    return notes, warned


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's parameters with each number at its place from 0 to 1, so that ranges in decades stay in decades.

    Optuna's fANOVA would take a range with `log` as an even one.
    """
    return {
        name: one if isinstance(one, CategoricalDistribution) else FloatDistribution(0, 1)
        for name, one in space.distributions().items()
        if not one.single()
    }


def _study(
    points: SearchPoints, chosen: np.ndarray, values: np.ndarray, rng: np.random.Generator | None
) -> optuna.Study:
    """Points as an Optuna study that is to be maximised.

    Args:
        chosen: the numbers of points, which may occur twice.
        values: of the chosen points.
        rng: draws the number of a setting that is switched off, evenly: it has no effect there, and so gets no
            importance from it. None leaves the number out, as a conditional parameter.
    """
    distributions = _distributions(points.space)
    trials = []
    for number, value in zip(chosen, values, strict=True):
        known = points.space.params(points.drawn[number].settings) or {}
        params: dict[str, Any] = {}
        for name in distributions:
            given = points.space.parts.get(name)
            if not isinstance(given, Range):
                params[name] = known[name]
            elif known.get(f"{name}.on", True):
                params[name] = surrogate.unit(given, known[name])
            elif rng is not None:
                params[name] = float(rng.random())
        used = {name: distributions[name] for name in params}
        trials.append(optuna.trial.create_trial(params=params, distributions=used, value=float(value)))
    with quiet("optuna"):
        study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return study


def _shares(
    points: SearchPoints, chosen: np.ndarray, values: np.ndarray, rng: np.random.Generator, trees: int
) -> tuple[dict[str, float], dict[str, float]]:
    """What fANOVA and PED-ANOVA say of points, by parameter."""
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator  # loads scikit-learn

    names = list(_distributions(points.space))
    with quiet("optuna"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's, on regimes of few trials: the bands show what they do
        forest = FanovaImportanceEvaluator(n_trees=trees, seed=int(rng.integers(2**31)))
        try:
            fanova = forest.evaluate(_study(points, chosen, values, rng))
        except RuntimeError:  # all values are equal, or those that trees saw: no setting explains anything
            fanova = dict.fromkeys(names, 0.0)
        quantile = min(0.5, max(BEST_SHARE, BEST_FEWEST / len(points.drawn)))
        divergences = PedAnovaImportanceEvaluator(target_quantile=quantile).evaluate(
            _study(points, chosen, values, None)
        )
    total = sum(divergences.values())
    ped = {name: float(divergences.get(name, 0.0)) / total if total > 0 else 0.0 for name in names}
    return {name: float(fanova[name]) for name in names}, ped
