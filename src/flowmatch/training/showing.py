"""Looking at a flow in training: a grid of samples, and the numbers that explain the loss."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from PIL import Image

from flowmatch.data import Dataset
from flowmatch.dealing import in_turn
from flowmatch.flow import Flow
from flowmatch.losses import FlowMatching
from flowmatch.pictures import columns_for, image_grid, scatter
from flowmatch.sampling import bind, noise
from flowmatch.solvers import Solver
from flowmatch.tensors import to_uint8
from flowmatch.training.diagnosis import Probe, clip_share, gradient_norms, walk
from flowmatch.training.settings import TrainConfig
from flowmatch.training.sharding import gathered
from flowmatch.training.tracking import Tracker


class Seen(NamedTuple):
    """What there was to see."""

    picture: Image.Image
    """Samples as a grid of images, or as points."""
    numbers: dict[str, Any]
    """`grad_norm_t` (ten numbers), `curvature`, `clip_share`; None where there is no such thing."""

    def keep(self, run_dir: Path, tracker: Tracker, *, step: int, images: int) -> None:
        """Write it into a run directory."""
        folder = run_dir / "samples"
        folder.mkdir(exist_ok=True)
        self.picture.save(folder / f"step{step:07d}.png")
        tracker.image(step, "samples", np.asarray(self.picture))
        tracker.record(step, {"images": images, **self.numbers}, scalars=self.numbers)


class View:
    """Samples of the averaged weights, and gradients of the weights in training.

    Always the same noise, conditions and data, so that between two looks only the weights differ.

    Args:
        flow: in training.
        average: its moving average, which is sampled.
        loss: the objective.
        dataset: the training data.
        config: batch, seed and number of samples.
        solver: how samples are drawn.
        rows: samples of one part of a batch: as many gradients are computed at once.
        accelerator: device and precision.
    """

    def __init__(
        self,
        flow: Flow,
        average: Flow,
        loss: FlowMatching,
        dataset: Dataset,
        config: TrainConfig,
        *,
        solver: Solver,
        rows: int,
        accelerator: Accelerator,
    ) -> None:
        self._flow, self._average, self._loss = flow, average, loss
        self._dataset, self._config, self._solver = dataset, config, solver
        self._rows, self._accelerator = rows, accelerator

    def look(self) -> Seen | None:
        """Draw the samples and measure, without a trace in the training.

        The first process does so; the others lend it their shards, and see nothing.
        """
        is_first = self._accelerator.is_main_process
        with gathered(self._average) as average:
            seen = self._draw(average) if is_first else None
        with gathered(self._flow, into=self._average) as flow:
            if seen is not None:
                seen.numbers["grad_norm_t"] = self._gradient_norms(flow)
        return seen

    def _draw(self, average: Flow) -> Seen:
        shape, device = self._dataset.shape, self._accelerator.device
        n = self._config.samples
        x0 = noise(range(n), shape, stream=self._config.seed).to(device)
        dealt = in_turn(self._flow, self._dataset.values)
        cond = dealt(range(n), device)
        with self._accelerator.autocast():
            x1, curvature = walk(bind(average, cond), x0, self._solver)
            x1 = average.decode(x1)
        is_image = x1.ndim == 4
        picture = (
            image_grid(to_uint8(x1), columns=columns_for(dealt.turn))
            if is_image
            else scatter(x1, labels=(cond or {}).get("label"))
        )
        numbers = {
            "grad_norm_t": None,
            "curvature": curvature,
            "clip_share": clip_share(x1) if is_image else None,
        }
        return Seen(picture, numbers)

    def _gradient_norms(self, flow: Flow) -> list[float]:
        scaler = self._accelerator.scaler
        return gradient_norms(
            flow,
            self._loss,
            self._probe,
            rows=self._rows,
            scale=scaler.get_scale() if scaler is not None else 1.0,
            autocast=self._accelerator.autocast,
        )

    @functools.cached_property
    def _probe(self) -> Probe:
        return Probe.of(
            self._dataset,
            self._config.batch,
            known=self._flow.nulls,
            seed=self._config.seed,
            device=self._accelerator.device,
        )
