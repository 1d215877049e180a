"""How far each reading and each method lies from the float64 oracle: python -m tests.interventions.deviations

The largest difference of an output (a weighted mean of standard normal values) over three executions, unpadded, left-
and right-padded and with a filled cache, |A|_min given.
"""

from typing import Any

from tdrs import DC, RE, TDRS
from tdrs.interventions import METHODS
from tests.interventions.calls import HEADS, deviation, each_padding

# multiples large enough that the kernels' end points matter
DC_STRONG, RE_STRONG = DC(w_min=300.0, weight=0.7), RE(w_min=500.0, weight=1.3)


def strong(**readings: Any) -> TDRS:
    return TDRS(**{"dc": DC_STRONG, "re": RE_STRONG, **readings})


READINGS: dict[str, TDRS] = {
    "the paper's settings": TDRS(),
    "sd alone": TDRS(dc=None, re=None),
    "dc alone": strong(sd=False, re=None),
    "re alone": strong(sd=False, dc=None),
    "sd, dc": strong(re=None),
    "sd, re": strong(dc=None),
    "dc, re": strong(sd=False),
    "gain=logits": strong(),
    "gain=weights": strong(gain="weights"),
    "sd_form=full": strong(sd_form="full"),
    "features=post_rope": strong(features="post_rope"),
    "scale=max": strong(scale="max"),
    "scale=one_plus": strong(scale="one_plus"),
    "scale=none": strong(scale="none"),
    "a_min_of=weights": strong(a_min_of="weights"),
    "a_min_per=layer": strong(a_min_per="layer"),
    "stats_scope=row": strong(stats_scope="row"),
    "stats_scope=row, a_min_of=weights": strong(stats_scope="row", a_min_of="weights", a_min_per="layer"),
    "sigma_re=0.2": strong(sigma_re=0.2),
    "sigma_re=3": strong(sigma_re=3.0),
    "distance=position": strong(distance="position"),
    "distance=position, stats_scope=row": strong(distance="position", stats_scope="row"),
    "pairs=text_to_image": strong(pairs="text_to_image"),
    "pairs=cross_modal": strong(pairs="cross_modal"),
    "heads=[1, 2]": strong(heads=[1, 2]),
    "w_min_as=absolute": TDRS(dc=DC(0.3, 0.7, "absolute"), re=RE(0.4, 1.3, "absolute")),
}


def reading_deviation(name: str, length: int = 23) -> float:
    heads = frozenset({1, 2}) if name.startswith("heads") else frozenset(range(HEADS))
    return max(deviation("tdrs", READINGS[name], sample, heads) for sample in each_padding(length))


def method_deviation(name: str, length: int = 23) -> float:
    return max(deviation(name, METHODS[name](), sample) for sample in each_padding(length))


if __name__ == "__main__":
    for reading in READINGS:
        print(f"{reading:36} {reading_deviation(reading):.1e}")
    for method in METHODS:
        if method not in ("none", "tdrs"):
            print(f"{method:36} {method_deviation(method):.1e}")
