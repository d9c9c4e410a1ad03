"""The job itself: draw what is not there yet, over all processes, and record how."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from flowmatch.flow import Flow
from flowmatch.generation.archive import ArchiveStore
from flowmatch.generation.batching import find_batch
from flowmatch.generation.drawing import Drawer, draw_all
from flowmatch.generation.images import ImageStore
from flowmatch.generation.job import Format, SampleJob
from flowmatch.generation.numbers import compress
from flowmatch.generation.record import claim, new_record, write_record
from flowmatch.generation.shards import ShardStore
from flowmatch.generation.showing import SHOWN, contact_sheet, save_trajectory
from flowmatch.generation.store import Store
from flowmatch.generation.writing import BackgroundWriter
from flowmatch.training.tracking import Bar

if TYPE_CHECKING:
    from accelerate import Accelerator

_STORES: dict[Format, type[Store]] = {
    "png": ImageStore,
    "npz": ArchiveStore,
    "webdataset": ShardStore,
}


def generate(
    flow: Flow,
    job: SampleJob,
    accelerator: Accelerator,
    *,
    weak: Flow | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Draw what is not there yet, over all processes; the record that went to sampling.json.

    Args:
        flow: the model.
        job: what to draw and where to put it.
        accelerator: processes and device.
        weak: the weak model of autoguidance.
        say: is told the batch size that was found.
    Raises:
        ValueError: the job cannot be done, or the folder holds samples of another setting.
    """
    job.check(flow, weak)
    record = new_record(flow, job)
    if accelerator.is_main_process:
        record = claim(job.save_dir, record, own_field=job.own_field_hash)
    accelerator.wait_for_everyone()
    began, device = time.perf_counter(), accelerator.device
    store = _STORES[job.format](job)
    todo = store.missing(accelerator.process_index, accelerator.num_processes)
    drawer = Drawer(
        flow.to(device),
        job,
        device=device,
        precision=accelerator.autocast,
        weak=None if weak is None else weak.to(device),
    )
    _draw(drawer, store, todo, shown=accelerator.is_main_process, say=say)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if todo:
            record["nfe"] = drawer.evaluations / len(todo)
        store.join()
        held = store.held()
        record |= {"seeds": compress(held), "count": len(held)}
        record["seconds"] = round(time.perf_counter() - began, 3)
        sheet = contact_sheet(store.first(SHOWN), drawer)
        sheet.save(job.save_dir / "contact-sheet.png")
        if job.trajectory is not None:
            save_trajectory(drawer, job.save_dir / f"trajectory.{job.trajectory}")
        write_record(job.save_dir, record)
    accelerator.wait_for_everyone()
    return record


def _draw(
    drawer: Drawer,
    store: Store,
    todo: Sequence[int],
    *,
    shown: bool,
    say: Callable[[str], None] | None,
) -> None:
    """Draw samples while those before them are written."""
    if not todo:
        return
    batch = drawer.job.batch
    if batch == "auto":
        batch = find_batch(drawer, len(todo))
        if say is not None:
            say(f"batch: {batch} a process (--bspp auto)")
    bar = Bar(len(todo), label="sampling") if shown and sys.stderr.isatty() else None
    try:
        with BackgroundWriter(store.write) as writer:
            for drawn in draw_all(drawer, todo, batch):
                for piece in store.pieces(drawn):
                    writer.put(piece)
                if bar is not None:
                    bar.advance(len(drawn.seeds))
    finally:
        if bar is not None:
            bar.close()
