"""Likelihood: the log-density of a flow in nats, bits a dimension, and the way to the latent."""

from flowmatch.likelihood.bits import bits_per_dim
from flowmatch.likelihood.density import LogProb, estimate_log_prob, log_prob
from flowmatch.likelihood.dequantisation import dequantise, importance_weighted_bound
from flowmatch.likelihood.divergence import Divergence, Exact, Hutchinson
from flowmatch.likelihood.inversion import Inversion, invert
from flowmatch.likelihood.means import Mean, mean_with_errors
from flowmatch.likelihood.prior import Prior, standard_normal

__all__ = [
    "Divergence",
    "Exact",
    "Hutchinson",
    "Inversion",
    "LogProb",
    "Mean",
    "Prior",
    "bits_per_dim",
    "dequantise",
    "estimate_log_prob",
    "importance_weighted_bound",
    "invert",
    "log_prob",
    "mean_with_errors",
    "standard_normal",
]
