"""The conditions that a user asks samples for: prompts, numbers, vectors, or those of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowmatch.config import Config
from flowmatch.data import (
    ConditionedImages,
    TextColumn,
    Values,
    decoded_data,
    embedded,
    shape_of,
)
from flowmatch.data.dataset import digest
from flowmatch.data.encoder import encoder_stamp
from flowmatch.dealing import Dealt, others_of, usual_conditions
from flowmatch.flow import Flow
from flowmatch.networks.conditions import Condition, Scalar, Text


def asked_conditions(
    config: Config,
    flow: Flow,
    *,
    prompts: Sequence[str],
    given: Sequence[str],
    classes: bool = False,
    count: int = 0,
) -> Dealt | None:
    """What samples are conditioned on besides classes; None of a model that knows nothing else.

    If nothing is said, it is the conditions of the training data, class included, in turn. If
    anything is, what is not said is absent.

    Args:
        config: the model's config, whose data name the text encoder.
        flow: the model.
        prompts: texts, of a model with one condition of that kind, dealt in turn.
        given: conditions as "name=value": a number, a text, or a .npy file of numbers or vectors;
            several of one name are dealt in turn.
        classes: whether classes are asked for.
        count: the samples are among the first so many; matters only if nothing is said.
    Raises:
        ValueError: the model does not know what is asked for, or a value cannot be read.
    """
    names = others_of(flow)
    if not names:
        if prompts or given:
            raise ValueError(
                "this model takes no condition besides a class; leave out --prompt and --cond"
            )
        return None
    if not (prompts or given or classes):
        return _of_data(config, flow, count)
    network: Mapping[str, Condition] = getattr(config.network, "conditions", {})
    asked: dict[str, list[str]] = {}
    for item in given:
        name, sign, value = item.partition("=")
        if not sign or name not in names:
            raise ValueError(
                f"cannot read --cond {item!r}; write NAME=VALUE with a name among"
                f" {', '.join(names)}"
            )
        asked.setdefault(name, []).append(value)
    if prompts:
        name = _of_prompts({n: network[n] for n in names})
        asked[name] = [*asked.get(name, []), *prompts]
    values, facts = dict[str, Values](), dict[str, Any]()
    for name, words in asked.items():
        values[name], facts[name] = _read(name, words, network[name], config)
    return Dealt(values, facts=facts)


def _of_data(config: Config, flow: Flow, count: int) -> Dealt:
    images = decoded_data(config.data)
    try:
        dealt = usual_conditions(flow, config.data, count)
        stamps = images.stamps("train") if isinstance(images, ConditionedImages) else {}
    except ValueError as error:
        raise ValueError(f"without --prompt or --cond {error}") from None
    names = list(dealt.values)
    facts = {"names": names, "stamps": {name: stamps[name] for name in names if name in stamps}}
    return Dealt(dealt.values, dealt.title, {f"{images.kind} train": facts})


def _of_prompts(network: Mapping[str, Condition]) -> str:
    """The condition that a prompt is."""
    texts = [name for name, condition in network.items() if isinstance(condition, Text)]
    if len(texts) == 1:
        return texts[0]
    if not texts:
        raise ValueError(
            f"this model takes no text, only {', '.join(network)}; use --cond NAME=VALUE"
        )
    raise ValueError(
        f"this model takes the texts {', '.join(texts)}; say which with --cond NAME=TEXT"
    )


def _read(
    name: str, words: list[str], condition: Condition, config: Config
) -> tuple[Values, dict[str, Any]]:
    """The values that were asked for, and what the record says of them."""
    if isinstance(condition, Text):
        column = getattr(decoded_data(config.data), "conditions", {}).get(name)
        if not isinstance(column, TextColumn):
            raise ValueError(
                f"the config does not say what embeds {name}: set data.conditions.{name} to a"
                " column of kind text with its encoder"
            )
        found = embedded(words, column.encoder, max_tokens=column.max_tokens)
        if shape_of(found) != condition.shape:
            raise ValueError(
                f"{column.encoder} embeds tokens as {found.tokens.shape[1]} numbers, but the"
                f" network's {name} has dim {condition.shape[-1]}; give the encoder of the training"
            )
        facts = {"texts": words, "encoder": encoder_stamp(column.encoder), "key": found.key}
        return found, facts
    parts = [_numbers(name, word, condition) for word in words]
    values = torch.cat(parts)
    return values, {"values": words, "hash": digest(values)}


def _numbers(name: str, word: str, condition: Condition) -> Tensor:
    """One or more values of a scalar or a vector, [N, *shape] float32."""
    scalar = isinstance(condition, Scalar)
    wanted = "a number or a .npy file [N]" if scalar else "a .npy file [N, dim]"
    try:
        array = np.load(word) if word.endswith(".npy") else np.array(float(word))
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise ValueError(f"it holds {getattr(array, 'dtype', 'archives')}, no real numbers")
        found = torch.from_numpy(array.astype(np.float32))
    except (ValueError, OSError, EOFError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(
            f"cannot read --cond {name}={word} ({why}); {name} takes {wanted}"
        ) from None
    shape = tuple(n or 0 for n in condition.shape)
    if tuple(found.shape) == shape:
        found = found[None]
    if bool(found.isinf().any()):
        raise ValueError(
            f"--cond {name}={word} is infinite; {name} takes finite numbers, and nan for none"
        )
    if tuple(found.shape[1:]) != shape or not len(found):
        size = f" with dim {shape[0]}" if shape else ""
        raise ValueError(
            f"--cond {name}={word} gives an array of shape {list(array.shape)}; {name} takes"
            f" {wanted}{size}"
        )
    return found
