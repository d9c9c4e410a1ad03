"""The densities that need no other one."""

from typing import Annotated

from pydantic import Field

from flowmatch.times.beta import Beta
from flowmatch.times.cosmap import CosMap
from flowmatch.times.log_normal import LogNormal
from flowmatch.times.logit_normal import LogitNormal
from flowmatch.times.mode import Mode
from flowmatch.times.u_shaped import UShaped
from flowmatch.times.uniform import Uniform

PlainTime = Annotated[
    Uniform | LogitNormal | LogNormal | Mode | CosMap | UShaped | Beta,
    Field(discriminator="kind"),
]
