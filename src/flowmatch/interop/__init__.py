"""Foreign conventions, and nothing of them anywhere else."""

from flowmatch.interop.noise_at_one import NoiseAtOne as NoiseAtOne
from flowmatch.interop.noise_at_one import NoiseAtOneConfig as NoiseAtOneConfig
