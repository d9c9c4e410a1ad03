"""From samples to feature vectors on the fly: nothing is written, work is shared by index."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from flowmatch.evaluation.sharding import batches_of, gather_rows
from flowmatch.tensors import to_uint8

if TYPE_CHECKING:
    from accelerate import Accelerator

    from flowmatch.features import FeatureNet

KEPT_SAMPLES = 2_000
"""Samples of a set kept as they are, to look for copies and to be drawn; the first so many."""

Progress = Callable[[int], None]


class Subject(Protocol):
    """What is evaluated: gives sample i, whatever it is drawn together with."""

    nfe: int
    """Network evaluations of the last draw."""

    def draw(self, indices: range) -> tuple[Tensor, Tensor | None]:
        """Samples [B, *D], images as float in [-1, 1] or uint8, and the labels asked for [B]."""
        ...


@dataclass(frozen=True)
class SampleSet:
    """One set of samples, as far as metrics need it; the same in all processes.

    Args:
        vectors: features [N, F] of images, or the samples themselves, flattened, of other data.
        logits: [N, K] where the feature net has classes.
        samples: the first `KEPT_SAMPLES` of them: uint8 images, or float32 data, as evaluated.
        labels: the classes that were asked for, [N], or None.
        nonfinite: samples that held NaN or infinite values.
        clipped: share of pixel values so far outside [-1, 1] that they are cut; None where unknown.
        nfe: network evaluations a sample.
        seconds: wall time of drawing the samples, without their features.
    """

    vectors: Tensor
    logits: Tensor | None
    samples: Tensor
    labels: Tensor | None
    nonfinite: int
    clipped: float | None
    nfe: float
    seconds: float

    def __len__(self) -> int:
        return len(self.vectors)


def extract(
    subject: Subject,
    indices: range,
    net: FeatureNet | None,
    accelerator: Accelerator,
    *,
    batch: int,
    progress: Progress | None = None,
) -> SampleSet:
    """Draw samples and keep their features; every process computes its share of the batches.

    A sample that is not finite is counted and stays in the set as a black image: it speaks against
    the model, and nothing is dropped.

    Args:
        indices: which samples.
        net: the feature net; None keeps the samples themselves.
        batch: samples drawn at once by a process.
        progress: called with the network evaluations that this process has just spent.
    """
    batches = batches_of(indices, batch)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    collected: list[_Part] = []
    seconds = 0.0
    for part in mine or batches[:1]:  # who has nothing to do repeats the first: shapes are needed
        began = time.perf_counter()
        x, labels = subject.draw(part)
        if x.is_cuda:
            torch.cuda.synchronize()
        seconds += time.perf_counter() - began
        collected.append(_part(part, indices, x, labels, net, subject.nfe))
        if progress is not None:
            progress(len(part) * max(subject.nfe, 1))
    if not mine:
        collected[0].facts.zero_()
    return _join(collected, accelerator, seconds)


def local_set(batches: Iterable[Tensor], net: FeatureNet) -> SampleSet:
    """Images at hand, uint8 [B, C, H, W], as a set; this process alone computes."""
    vectors, logits, samples = [], [], torch.empty(0, dtype=torch.uint8)
    for images in batches:
        found = net(images)
        vectors.append(found.vectors.cpu())
        logits += [] if found.logits is None else [found.logits.cpu()]
        if len(samples) < KEPT_SAMPLES:
            room = KEPT_SAMPLES - len(samples)
            samples = torch.cat([samples.view(-1, *images.shape[1:]), images[:room].cpu()])
    return SampleSet(
        vectors=torch.cat(vectors),
        logits=torch.cat(logits) if logits else None,
        samples=samples,
        labels=None,
        nonfinite=0,
        clipped=None,
        nfe=0,
        seconds=0.0,
    )


@dataclass(frozen=True)
class _Part:
    """What is left of a batch."""

    index: Tensor
    vectors: Tensor
    logits: Tensor | None
    samples: Tensor
    labels: Tensor | None
    facts: Tensor  # sums over the batch: nonfinite, clipped, values that could clip, evaluations


def _part(
    part: range, whole: range, x: Tensor, labels: Tensor | None, net: FeatureNet | None, nfe: int
) -> _Part:
    place = torch.tensor(part) - whole.start
    wild, clipped, values = 0, 0, 0
    if x.dtype != torch.uint8:
        x = x.float()
        wild = int((~x.flatten(1).isfinite().all(1)).sum())
        if net is not None:
            clipped, values = int((x.abs() > 1 + 1 / 255).sum()), x.numel()
            x = to_uint8(torch.nan_to_num(x, nan=-1.0, posinf=1.0, neginf=-1.0))
    facts = torch.tensor([wild, clipped, values, nfe * len(x)])
    if net is None:
        vectors, logits = x.flatten(1).cpu(), None
    else:
        found = net(x)
        vectors = found.vectors.cpu()
        logits = found.logits.cpu() if found.logits is not None else None
    kept = x.cpu()[place < KEPT_SAMPLES]
    return _Part(place, vectors, logits, kept, labels.cpu() if labels is not None else None, facts)


def _join(parts: list[_Part], accelerator: Accelerator, seconds: float) -> SampleSet:
    index = torch.cat([p.index for p in parts]) if parts else torch.empty(0, dtype=torch.int64)
    early = index < KEPT_SAMPLES

    def gather(name: str, of: Tensor = index) -> Tensor | None:
        rows = [getattr(p, name) for p in parts]
        if any(r is None for r in rows):
            return None
        return gather_rows(torch.cat(rows), of, accelerator)

    facts = torch.stack([p.facts for p in parts]).sum(0).to(accelerator.device)
    wild, clipped, values, calls = accelerator.reduce(facts, "sum").tolist()
    slowest = accelerator.gather(torch.tensor([seconds], device=accelerator.device)).max()
    vectors, samples = gather("vectors"), gather("samples", index[early])
    assert vectors is not None
    assert samples is not None
    return SampleSet(
        vectors=vectors,
        logits=gather("logits"),
        samples=samples,
        labels=gather("labels"),
        nonfinite=wild,
        clipped=clipped / values if values else None,
        nfe=calls / len(vectors),
        seconds=float(slowest),
    )
