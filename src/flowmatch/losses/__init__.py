"""Losses: one training objective a file, and what it is made of: distances and weightings."""

from flowmatch.losses.distance import DistanceConfig as DistanceConfig
from flowmatch.losses.distance import Huber as Huber
from flowmatch.losses.distance import PseudoHuber as PseudoHuber
from flowmatch.losses.distance import Squared as Squared
from flowmatch.losses.draws import Draws as Draws
from flowmatch.losses.flow_matching import FlowMatching as FlowMatching
from flowmatch.losses.flow_matching import Learned as Learned
from flowmatch.losses.flow_matching import SampleLosses as SampleLosses
from flowmatch.losses.weighting import EDM as EDM
from flowmatch.losses.weighting import Constant as Constant
from flowmatch.losses.weighting import MinSNR as MinSNR
from flowmatch.losses.weighting import Sigmoid as Sigmoid
from flowmatch.losses.weighting import Uncertainty as Uncertainty
from flowmatch.losses.weighting import WeightingConfig as WeightingConfig

LossConfig = FlowMatching
