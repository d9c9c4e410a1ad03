"""Paths: where a sample is at time t between its source x0 and its datum x1."""

from typing import Annotated

from pydantic import Field

from flowmatch.paths.affine import AffinePath as AffinePath
from flowmatch.paths.affine import Coefficients as Coefficients
from flowmatch.paths.affine import Predicted as Predicted
from flowmatch.paths.affine import Prediction as Prediction
from flowmatch.paths.held_ends import HeldEnds as HeldEnds
from flowmatch.paths.linear import Linear as Linear
from flowmatch.paths.polynomial import Polynomial as Polynomial
from flowmatch.paths.preconditioned import Preconditioned as Preconditioned
from flowmatch.paths.trig import Trig as Trig
from flowmatch.paths.vp import VP as VP

PathConfig = Annotated[Linear | Trig | VP | Polynomial, Field(discriminator="kind")]
