"""Figures of a study for Python. Each function returns a matplotlib Figure and writes nothing.

    study = tdrs.load_study("sqa_ablation")
    figure = tdrs.plot.sensitivity(study)
    figure.savefig("sensitivity.pdf")

A notebook shows the figure that a cell ends with. With `axes`, a function draws into the caller's Axes, one for each
panel in reading order, and returns their figure; the caller's figure keeps its own title. No function uses pyplot, so
none opens a window or changes the backend.
"""

from matplotlib.figure import Figure

from tdrs.analysis.attention import attention_from, attention_maps, draw_attention
from tdrs.analysis.comparison import draw_comparison, paired_differences
from tdrs.analysis.decay import decay_curves, decay_from, draw_decay
from tdrs.analysis.distance import distance_curves, draw_distance
from tdrs.analysis.figure import GivenAxes, stored_measurement
from tdrs.analysis.importance_figures import draw_importance
from tdrs.analysis.search_importance import importance as search_importance
from tdrs.analysis.sensitivity import draw_sensitivity, sensitivity_curves
from tdrs.analysis.study_results import StudyResults
from tdrs.analysis.tradeoff import draw_tradeoff, fronts
from tdrs.analysis.transfer import draw_transfer, matrices

__all__ = ["attention", "comparison", "decay", "distance", "importance", "sensitivity", "tradeoff", "transfer"]


def sensitivity(study: StudyResults, axes: GivenAxes = None) -> Figure:
    """Draw accuracy on the tuning split against each setting, swept in turn (the paper's Figure 3).

    There is a row for each condition and a panel for each setting. Rings mark the chosen values.

    Raises:
        SettingError: the study's protocol is not `coordinate`, or the number of Axes is wrong.
    """
    return draw_sensitivity(sensitivity_curves(study.outcome), axes, study.name)


def comparison(study: StudyResults, axes: GivenAxes = None) -> Figure:
    """Draw each row's paired difference to the stock model on the held-out split, a panel for each condition.

    Differences are in points of accuracy, with 95 % intervals.

    Raises:
        SettingError: no row has a difference, or the number of Axes is wrong.
    """
    return draw_comparison(paired_differences(study.outcome), axes, study.warning, study.name)


def distance(study: StudyResults, axes: GivenAxes = None) -> Figure:
    """Draw held-out accuracy against distance, a panel for each backbone and data set.

    Distance is the number of tokens of unrelated text (`dataset.gap`) between image and question, or before the image.

    Raises:
        SettingError: no row was measured whole, or the number of Axes is wrong.
    """
    return draw_distance(distance_curves(study.outcome), axes, study.warning, study.name)


def tradeoff(study: StudyResults, axes: GivenAxes = None) -> Figure:
    """Draw what each method gains against what that costs, a panel for each cost, with 95 % intervals.

    The points are those of each method's front on the tuning split, measured on the held-out split. The temperature's
    front is drawn beneath.

    Raises:
        SettingError: the study's protocol is not `tradeoff`, no point was measured whole, or the number of Axes is
            wrong.
    """
    return draw_tradeoff(fronts(study.outcome, study.records), axes, study.warning, study.name)


def transfer(study: StudyResults, axes: GivenAxes = None) -> Figure:
    """Draw a matrix for each method: what settings were tuned on × where they are reported.

    Cells show the paired difference of accuracy to the stock model, and to the setting that was tuned there.

    Raises:
        SettingError: the study's protocol is not `transfer`, no row was measured whole, or the number of Axes is wrong.
    """
    return draw_transfer(matrices(study.outcome, study.records), axes, study.warning, study.name)


def importance(study: StudyResults, objective: str | None = None, axes: GivenAxes = None) -> Figure:
    """Draw how much each setting of a search matters: fANOVA, PED-ANOVA, and Sobol indices where the points allow them.

    There is a row of panels for each condition. It takes some seconds for 40 points of 15 settings, a minute for 300.

    Args:
        objective: `accuracy` or `margin`; None is what the study searched for.

    Raises:
        SettingError: the study has no search space or too few points, or the number of Axes is wrong.
    """
    return draw_importance(search_importance(study.outcome, study.records, objective), axes, study.name)


def decay(study: StudyResults, axes: GivenAxes = None) -> Figure:
    """Draw attention weight against the distance of query and key (the paper's Figure 1C), and the kernels: 3 panels.

    The values are those of `decay.json` in the study's folder. Without this file they are measured now, which loads the
    model of the study's first condition.

    Raises:
        SettingError: the model, the data or the versions are no longer those of the study's records, or the number of
            Axes is wrong.
    """
    stored = stored_measurement(study.folder / "decay.json", study.outcome)
    return draw_decay(decay_from(stored) if stored else decay_curves(study.outcome), axes)


def attention(
    study: StudyResults, sample: int | None = None, gain: str | None = None, axes: GivenAxes = None
) -> Figure:
    """Draw the answer position's attention to the picture (the paper's Figure 4): RoPE alone, + SD + DC, + reRD.

    There is a row for the mean of all layers and for some layers; each row has the picture and three maps.

    The values are those of `attention.json` in the study's folder if there are any and neither `sample` nor `gain` is
    given. Otherwise they are measured now: this loads the model of the study's first condition.

    Args:
        sample: the number of the held-out prompt, from 0; None is 0.
        gain: `logits` or `weights`; None is `logits`.

    Raises:
        SettingError: an argument is not allowed; the model, the data or the versions are no longer those of the study's
            records; or the number of Axes is wrong.
    """
    chosen = sample is not None or gain is not None
    stored = None if chosen else stored_measurement(study.folder / "attention.json", study.outcome)
    maps = attention_from(stored) if stored else attention_maps(study.outcome, sample or 0, gain or "logits")
    return draw_attention(maps, axes)
