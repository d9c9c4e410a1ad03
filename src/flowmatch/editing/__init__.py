"""Editing with a flow: inverse problems `y = A x + noise`, image to image, interpolation."""

from typing import Annotated

from pydantic import Field

from flowmatch.editing.d_flow import DFlow as DFlow
from flowmatch.editing.interpolation import interpolate as interpolate
from flowmatch.editing.interpolation import slerp as slerp
from flowmatch.editing.operators import Blur as Blur
from flowmatch.editing.operators import Downsample as Downsample
from flowmatch.editing.operators import FromFunction as FromFunction
from flowmatch.editing.operators import Grayscale as Grayscale
from flowmatch.editing.operators import Inpaint as Inpaint
from flowmatch.editing.operators import LinearOperator as LinearOperator
from flowmatch.editing.pnp_flow import PnPFlow as PnPFlow
from flowmatch.editing.projection import Projection as Projection
from flowmatch.editing.restoration import Restoration as Restoration
from flowmatch.editing.sdedit import sdedit as sdedit

RestorationConfig = Annotated[Projection | PnPFlow | DFlow, Field(discriminator="kind")]
