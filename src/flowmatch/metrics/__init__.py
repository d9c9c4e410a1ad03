"""Metrics: tensors in, numbers out. Each says what it takes, in which units it answers, and why."""

from flowmatch.metrics.coverage import DensityCoverage as DensityCoverage
from flowmatch.metrics.coverage import PrecisionRecall as PrecisionRecall
from flowmatch.metrics.coverage import density_coverage as density_coverage
from flowmatch.metrics.coverage import precision_recall as precision_recall
from flowmatch.metrics.discrepancy import energy_distance as energy_distance
from flowmatch.metrics.discrepancy import mmd as mmd
from flowmatch.metrics.frechet import frechet_distance as frechet_distance
from flowmatch.metrics.frechet import frechet_floor as frechet_floor
from flowmatch.metrics.inception import InceptionScore as InceptionScore
from flowmatch.metrics.inception import inception_score as inception_score
from flowmatch.metrics.kernel import KernelDistance as KernelDistance
from flowmatch.metrics.kernel import kernel_distance as kernel_distance
from flowmatch.metrics.memorisation import Memorisation as Memorisation
from flowmatch.metrics.memorisation import memorisation as memorisation
from flowmatch.metrics.moments import Moments as Moments
from flowmatch.metrics.neighbours import Nearest as Nearest
from flowmatch.metrics.neighbours import nearest as nearest
from flowmatch.metrics.psnr import psnr as psnr
from flowmatch.metrics.transport import curvature as curvature
from flowmatch.metrics.transport import path_energy as path_energy
from flowmatch.metrics.transport import straightness as straightness
from flowmatch.metrics.two_sample import classifier_two_sample as classifier_two_sample
from flowmatch.metrics.wasserstein import sliced_wasserstein2 as sliced_wasserstein2
from flowmatch.metrics.wasserstein import wasserstein2 as wasserstein2
