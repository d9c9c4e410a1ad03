"""Texts as conditions: embedded by a frozen encoder, once, and kept in the cache."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowmatch.caching import alone, cache_dir, write_whole
from flowmatch.data.conditions import Texts
from flowmatch.data.dataset import digest
from flowmatch.data.encoder import TextEncoder, encoder_stamp
from flowmatch.room import require_memory

_RECIPE = "last hidden state, float16, 2"
_BATCH = 64


def embedded(
    texts: Sequence[str | None], encoder: str, *, max_tokens: int, first: int | None = None
) -> Texts:
    """Texts as token embeddings: from the cache if they are there, else embedded and kept.

    The cache has a folder for each encoder and `max_tokens`, and in it a file for each set of
    distinct texts. A new set takes from the other files what they have of it, so that a text is
    embedded once, whatever else it is embedded together with.

    Args:
        texts: one a sample; None is no text.
        encoder: see `TextEncoder`; it is loaded only if something is to be embedded.
        max_tokens: a text is cut after so many.
        first: only the first so many are needed: of the others none is embedded anew.
    Raises:
        ValueError: no text at all, or the encoder cannot be used.
    """
    there = next((i for i, text in enumerate(texts) if text is not None), None)
    if there is None:
        raise ValueError("there is no text to embed: each one is absent")
    folder = cache_dir() / "texts" / digest(_RECIPE, encoder_stamp(encoder), str(max_tokens))
    wanted = texts[:first]
    for some in (texts, wanted if there < len(wanted) else texts[there : there + 1]):
        distinct = sorted({text for text in some if text is not None})
        path = folder / f"{digest(*distinct)}.safetensors"
        if (found := _cached(path)) is not None:
            break
    else:
        with alone(path):  # of several processes one embeds, the others find it done
            if (found := _cached(path)) is None:
                found = _gather(distinct, encoder, max_tokens, folder)
                _keep(found, path)
    place = {text: m for m, text in enumerate(distinct)}
    which = torch.tensor([-1 if text is None else place[text] for text in wanted])
    return Texts(found["tokens"], found["ends"], which, f"{folder.name}-{path.stem}")


def _gather(texts: Sequence[str], encoder: str, max_tokens: int, folder: Path) -> dict[str, Tensor]:
    """What a file says of distinct texts, in their order; those that no other has are embedded."""
    known = _known(texts, folder)
    if missing := [text for text in texts if text not in known]:
        fresh = _embed(TextEncoder(encoder), missing, max_tokens)
        known |= zip(missing, _rows(fresh["tokens"], fresh["ends"]), strict=True)
        if len(missing) == len(texts):
            return fresh
    rows = [known[text] for text in texts]
    need = sum(part.nbytes for part in rows)
    require_memory(need, f"the embeddings of {len(texts):,} texts")
    ends = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return {"tokens": torch.cat(rows), "ends": ends, "names": _names(texts)}


def _known(texts: Sequence[str], folder: Path) -> dict[str, Tensor]:
    """The tokens of those of the texts that some file has."""
    wanted = dict(zip(_listed(_names(texts)), texts, strict=True))
    known: dict[str, Tensor] = {}
    for path in sorted(folder.glob("[!.]*.safetensors")):  # not what is being written
        if len(known) == len(texts):
            break
        if (found := _cached(path)) is not None:
            rows = zip(_listed(found["names"]), _rows(found["tokens"], found["ends"]), strict=True)
            known |= {wanted[name]: row for name, row in rows if name in wanted}
    return known


def _names(texts: Sequence[str]) -> Tensor:
    """What tells each text from all others in a file, [M, 32] uint8."""
    hashes = b"".join(
        hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in texts
    )
    return torch.frombuffer(bytearray(hashes), dtype=torch.uint8).view(len(texts), 32)


def _listed(names: Tensor) -> list[bytes]:
    return [row.tobytes() for row in names.numpy()]


def _rows(tokens: Tensor, ends: Tensor) -> Sequence[Tensor]:
    """The tokens of each text, without copies."""
    return torch.split(tokens, ends.diff().tolist())


def _embed(encoder: TextEncoder, texts: Sequence[str], max_tokens: int) -> dict[str, Tensor]:
    """What a file says of distinct texts, in their order, each embedded now."""
    lengths = encoder.lengths(texts, max_tokens)
    require_memory(2 * sum(lengths) * encoder.dim, f"the embeddings of {len(texts):,} texts")
    ends = torch.tensor([0, *lengths]).cumsum(0)
    tokens = torch.empty(int(ends[-1]), encoder.dim, dtype=torch.float16)
    # alike in length beside each other: less padding is computed
    order = sorted(range(len(texts)), key=lambda m: lengths[m])
    parts = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]
    for part in _shown(parts):
        for m, rows in zip(part, encoder([texts[m] for m in part], max_tokens), strict=True):
            tokens[ends[m] : ends[m + 1]] = rows
    if not bool(tokens.isfinite().all()):
        raise ValueError(f"{encoder.name} gives embeddings that float16 cannot hold; use another")
    return {"tokens": tokens, "ends": ends, "names": _names(texts)}


def _shown(parts: list[list[int]]) -> Any:
    """With a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    hidden = not sys.stderr.isatty() or len(parts) < 4
    console = Console(stderr=True)
    return track(parts, "embedding texts", console=console, transient=True, disable=hidden)


def _cached(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file, mapped rather than read; None if there is none that can be used."""
    try:
        return load_file(path) if path.is_file() else None
    except (SafetensorError, OSError):  # damaged: it will be replaced
        return None


def _keep(found: dict[str, Tensor], path: Path) -> None:
    try:
        write_whole(path, lambda partial: save_file(found, partial))
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"the embedded texts are not kept, since {path} cannot be written ({error}); set"
            " $FLOWMATCH_CACHE to a folder that can",
            stacklevel=2,
        )
