"""Times: the densities that training draws t from, one a file.

Which t are seen how often is decided here alone; how much each counts is the loss's weighting, a
separate thing.
"""

from typing import Annotated

from pydantic import Field

from flowmatch.times.adaptive import Adaptive as Adaptive
from flowmatch.times.adaptive import LearnedDensity as LearnedDensity
from flowmatch.times.beta import Beta as Beta
from flowmatch.times.cosmap import CosMap as CosMap
from flowmatch.times.density import TimeDensity as TimeDensity
from flowmatch.times.log_normal import LogNormal as LogNormal
from flowmatch.times.logit_normal import LogitNormal as LogitNormal
from flowmatch.times.mode import Mode as Mode
from flowmatch.times.plain import PlainTime as PlainTime
from flowmatch.times.shifted import Shifted as Shifted
from flowmatch.times.stratified import Stratified as Stratified
from flowmatch.times.stratified import even_numbers as even_numbers
from flowmatch.times.u_shaped import UShaped as UShaped
from flowmatch.times.uniform import Uniform as Uniform

TimeConfig = Annotated[
    Uniform
    | LogitNormal
    | LogNormal
    | Mode
    | CosMap
    | UShaped
    | Beta
    | Shifted
    | Adaptive
    | Stratified,
    Field(discriminator="kind"),
]


def adaptive_part(time: TimeDensity) -> Adaptive | None:
    """The learned density in a time density, or None."""
    if isinstance(time, Stratified):
        time = time.of
    return time if isinstance(time, Adaptive) else None
