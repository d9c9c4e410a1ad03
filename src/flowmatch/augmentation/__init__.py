"""Augmentation: training images are moved, and the network is told how."""

from flowmatch.augmentation.geometric import Augmented as Augmented
from flowmatch.augmentation.geometric import Geometric as Geometric

AugmentationConfig = Geometric
