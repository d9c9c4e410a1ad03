"""Losses: one training objective a file."""

from flowmatch.losses.flow_matching import Draws as Draws
from flowmatch.losses.flow_matching import FlowMatching as FlowMatching

LossConfig = FlowMatching
