"""The evaluation that a training run takes now and then, on fewer samples than a final one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from accelerate.utils import broadcast_object_list

from flowmatch.config import Config
from flowmatch.data import decoded_data
from flowmatch.dealing import Dealt, usual_conditions
from flowmatch.evaluation.evaluate import protocol_of
from flowmatch.evaluation.preparation import Request, Say, prepare
from flowmatch.evaluation.protocol import sentence
from flowmatch.evaluation.sweep import FlowSamples, Sweep, measure_row, solver_facts
from flowmatch.flow import Flow
from flowmatch.training.evaluating import Evaluate, Evaluated

if TYPE_CHECKING:
    from accelerate import Accelerator


def during_training(config: Config, accelerator: Accelerator, *, say: Say) -> Evaluate | None:
    """What evaluates the averaged flow while a run trains; None where the config asks for none.

    Reference, features and seeds are those of `flowmatch evaluate` with the run's own solver; only
    the number of samples is smaller. What takes long (fitting features, statistics) happens here,
    before the training starts.
    """
    settings = config.train
    if settings.evaluate_every is None:
        return None
    shape = decoded_data(config.data).shape
    request = Request(features=settings.evaluate_features if len(shape) == 3 else None)
    conditional = config.network.num_classes is not None
    scores = prepare(request, shape, config, accelerator, conditional=conditional, say=say)
    plain = Sweep(settings.evaluate_samples)
    solver = config.sample.solver

    dealt: Dealt | None = None

    def evaluate(flow: Flow) -> Evaluated:
        nonlocal dealt
        dealt = dealt or usual_conditions(flow, config.data, plain.count)
        sweep = replace(plain, dealt=dealt)
        row, _ = measure_row(
            FlowSamples(flow, solver, sweep, accelerator), sweep, scores, accelerator
        )
        model = {"weights": settings.profiles[0].title, "hash": "of this step"}
        protocol = protocol_of(scores, sweep, accelerator, model, flow)
        line = sentence(protocol, solver_facts(solver) | row)
        found = [Evaluated(row["metrics"], scores.primary, sweep.count, line)]
        if accelerator.num_processes > 1:  # only the main process has measured
            broadcast_object_list(found)
        return found[0]

    return evaluate
