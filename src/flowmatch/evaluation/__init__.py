"""Evaluation: samples against a reference, by numbers that carry their protocol."""

from flowmatch.evaluation.compare import compare as compare
from flowmatch.evaluation.evaluate import evaluate_flow as evaluate_flow
from flowmatch.evaluation.evaluate import evaluate_stored as evaluate_stored
from flowmatch.evaluation.preparation import Request as Request
from flowmatch.evaluation.preparation import prepare as prepare
from flowmatch.evaluation.preparation import save_reference as save_reference
from flowmatch.evaluation.scores import Scores as Scores
from flowmatch.evaluation.sweep import Sweep as Sweep
from flowmatch.evaluation.table import as_table as as_table
from flowmatch.evaluation.table import notes as notes
