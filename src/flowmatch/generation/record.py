"""`sampling.json`: how the samples of a folder were drawn, and whether more may join them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import flowmatch
from flowmatch.flow import Flow
from flowmatch.generation.images import SAMPLE
from flowmatch.generation.job import SampleJob
from flowmatch.generation.numbers import compress
from flowmatch.generation.store import write_whole
from flowmatch.guidance import Guidance
from flowmatch.solvers import describe

_WHAT_MAKES_A_SAMPLE = (
    *("weights", "field", "autoencoder", "autoguide", "solver", "seed", "label", "classes"),
    *("dealt", "conditions", "guidance", "format", "shard_size"),
)
_NAME = "sampling.json"


def new_record(flow: Flow, job: SampleJob) -> dict[str, Any]:
    """The record of a job that begins.

    `classes` and `label` say which class a sample is of: `label`, or the seed modulo `classes`; of
    some classes dealt in turn, `classes` is null and `dealt` lists them. `conditions` says what is
    dealt to a model that knows more than classes, by name.
    """
    dealt = job.classes
    if dealt is not None and (len(dealt) == 1 or dealt == tuple(range(flow.num_classes or 0))):
        dealt = None
    others = job.conditions
    says_less = others is not None and job.classes is None
    calls = getattr(job.solver, "nfe", None)
    if not job.guidance.off:
        always = job.guidance.interval == Guidance().interval
        calls = 2 * calls if calls is not None and always else None
    return {
        "version": flowmatch.__version__,
        "weights": job.weights_hash,
        "average": job.weights_title,
        "field": job.field_hash,
        "autoencoder": None if flow.decoder is None else flow.decoder.weights,
        "autoguide": job.weak_hash,
        "solver": _json_like(describe(job.solver)),
        "nfe": calls,
        "seed": job.stream,
        "seeds": compress(job.seeds),
        "label": job.classes[0] if job.classes is not None and len(job.classes) == 1 else None,
        "classes": flow.num_classes if dealt is None and not says_less else None,
        "dealt": _json_like(dealt),
        "conditions": None if others is None else _json_like(dict(others.facts)),
        "guidance": _json_like(asdict(job.guidance)),
        "format": job.format,
        "shard_size": job.shard_size if job.format == "webdataset" else None,
    }


def claim(folder: Path, record: dict[str, Any], *, own_field: str) -> dict[str, Any]:
    """Take a folder for these samples; the record that it has from now on.

    Args:
        folder: where they go.
        record: how they are drawn.
        own_field: the field of older records, which do not name it.
    Raises:
        ValueError: it holds samples of another setting, or images that nobody recorded.
    """
    path = folder / _NAME
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another --save_dir")
    if path.exists():
        before = _completed(_read(path), record, own_field=own_field)
        if not any(p.name != _NAME for p in folder.iterdir()):
            write_record(folder, record)  # nothing was drawn before the job failed
            return record
        other = [k for k in _WHAT_MAKES_A_SAMPLE if before.get(k) != record[k]]
        if other:
            changes = "; ".join(f"{k} was {before.get(k)}, is {record[k]}" for k in other)
            raise ValueError(
                f"{folder} holds samples of another setting ({changes}); choose another --save_dir"
            )
        return {**record, "nfe": before.get("nfe", record["nfe"])}
    if folder.is_dir() and any(SAMPLE.fullmatch(p.name) for p in folder.iterdir()):
        raise ValueError(
            f"{folder} holds images but no {_NAME}, so they may not be ours; choose another"
            " --save_dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, record)
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a folder, whole or not at all."""
    write_whole(folder / _NAME, json.dumps(record, indent=2).encode(), durable=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged; remove it and its samples, or choose another folder")
    return record


def _completed(record: dict[str, Any], now: dict[str, Any], *, own_field: str) -> dict[str, Any]:
    """A record with what older versions left out: guidance was once its scale alone.

    What they did not say of conditions is taken to be as it is now.
    """
    guidance = record.get("guidance", 1.0)
    known = guidance if isinstance(guidance, dict) else {"scale": guidance}
    told = record.get("conditions")
    if told is not None:
        here = now["conditions"] or {}
        told = {name: _facts_completed(facts, here.get(name, {})) for name, facts in told.items()}
    return {
        "field": own_field,
        **record,
        "conditions": told,
        "guidance": {**_json_like(asdict(Guidance())), **known},
    }


def _facts_completed(facts: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Of texts, older records had no `key`; of data, a hash of their config for the `stamps`."""
    if "stamps" in now and "stamps" not in facts:
        return {"names": facts.get("names"), "stamps": now["stamps"]}
    return {"key": now["key"], **facts} if "key" in now else facts


def _json_like(value: Any) -> Any:
    """What a value becomes when it is written to JSON and read back."""
    return json.loads(json.dumps(value))
