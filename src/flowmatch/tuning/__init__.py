"""Tuning: the solver and the time grid that a budget of evaluations is best spent on."""

from flowmatch.tuning.candidates import Cost as Cost
from flowmatch.tuning.candidates import candidates as candidates
from flowmatch.tuning.candidates import largest as largest
from flowmatch.tuning.halving import halving as halving
from flowmatch.tuning.refine import refine as refine
from flowmatch.tuning.table import as_table as as_table
from flowmatch.tuning.table import grid_title as grid_title
from flowmatch.tuning.trials import Trials as Trials
from flowmatch.tuning.tune import Tried as Tried
from flowmatch.tuning.tune import Tuned as Tuned
from flowmatch.tuning.tune import tune as tune
