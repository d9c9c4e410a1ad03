"""Linear operators: what a measurement keeps of an image."""

from flowmatch.editing.operators.blur import Blur as Blur
from flowmatch.editing.operators.downsample import Downsample as Downsample
from flowmatch.editing.operators.from_function import FromFunction as FromFunction
from flowmatch.editing.operators.grayscale import Grayscale as Grayscale
from flowmatch.editing.operators.inpaint import Inpaint as Inpaint
from flowmatch.editing.operators.operator import LinearOperator as LinearOperator
