"""Frozen text encoders of the `transformers` library."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_HASHED = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
_UNBOUNDED = 100_000
"""Tokenizers without a limit name one far above this."""


class TextEncoder:
    """The hidden states of a text encoder's last layer, token by token, on the best device.

    Args:
        name: a model of the Hugging Face hub ("openai/clip-vit-large-patch14",
            "google/t5-v1_1-base"), or the folder of one. Of a model of images and texts the text
            part is used, of one that translates the encoder.
    Raises:
        ValueError: `transformers` is not installed, or there is no such model.
    """

    def __init__(self, name: str) -> None:
        transformers = _transformers()
        self.name = name
        if (folder := Path(name).expanduser()).is_dir():
            name = str(folder)
        there = torch.accelerator.current_accelerator(check_available=True)
        self.device = there or torch.device("cpu")
        with _reading(name), _quiet(transformers):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            self._model = _load(transformers, name).eval().requires_grad_(False).to(self.device)
        config = self._model.config
        self.dim: int = config.hidden_size
        limits = [self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", 0)]
        self._most = min((n for n in limits if n and 0 < n < _UNBOUNDED), default=None)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def lengths(self, texts: Sequence[str], max_tokens: int) -> list[int]:
        """How many tokens each text has, of which at most `max_tokens` are read.

        Raises:
            ValueError: the encoder reads less than `max_tokens`.
        """
        if self._most is not None and max_tokens > self._most:
            raise ValueError(
                f"max_tokens is {max_tokens}, but {self.name} reads {self._most} tokens; lower it"
            )
        found = [len(ids) for ids in self._tokens(texts, max_tokens + 1)["input_ids"]]
        if cut := sum(n > max_tokens for n in found):
            warnings.warn(
                f"{cut:,} of {len(texts):,} texts are cut after max_tokens={max_tokens}",
                stacklevel=2,
            )
        return [min(n, max_tokens) for n in found]

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], max_tokens: int) -> list[Tensor]:
        """The embedded tokens of each text, [tokens, dim] float16 on the CPU."""
        found = self._tokens(texts, max_tokens, padding=True, return_tensors="pt")
        mask = found["attention_mask"].to(self.device)
        states = self._model(found["input_ids"].to(self.device), attention_mask=mask)
        tokens = states.last_hidden_state.to("cpu", torch.float16)
        return [row[kept.bool()] for row, kept in zip(tokens, mask.cpu(), strict=True)]

    def _tokens(self, texts: Sequence[str], max_tokens: int, **options: Any) -> Any:
        return self._tokenizer(list(texts), truncation=True, max_length=max_tokens, **options)


def encoder_stamp(name: str) -> str:
    """What an encoder is, without loading it: the commit on the hub, or a hash of its files.

    Raises:
        ValueError: as `TextEncoder`.
    """
    if not (folder := Path(name).expanduser()).is_dir():
        utils = _transformers().utils
        with _reading(name):
            config = utils.cached_file(name, "config.json")
            return f"{name} {utils.extract_commit_hash(config, None)}"
    sha = hashlib.sha256()
    for path in sorted(p for pattern in _HASHED for p in folder.glob(pattern)):
        stat = path.stat()
        sha.update(path.name.encode() + _digest(path, stat.st_size, stat.st_mtime_ns))
    return sha.hexdigest()[:12]


@functools.cache
def _digest(path: Path, size: int, mtime_ns: int) -> bytes:
    """The hash of a file's content, which is read once as long as it stays as it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _load(transformers: Any, name: str) -> Any:
    """The part of a model that reads texts, and as little of the rest as possible."""
    config = transformers.AutoConfig.from_pretrained(name)
    if config.model_type == "clip":
        return transformers.CLIPTextModel.from_pretrained(name)
    if type(config) in transformers.AutoModelForTextEncoding._model_mapping:
        return transformers.AutoModelForTextEncoding.from_pretrained(name)
    model = transformers.AutoModel.from_pretrained(name)
    return getattr(model, "text_model", model)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "conditions of kind text need the transformers library: pip install 'flowmatch[text]'"
        ) from None
    return transformers


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever goes wrong while a model is fetched and read is told in one sentence."""
    try:
        yield
    except Exception as error:  # connection, permission, missing files, other formats: many classes
        detail = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"cannot read the text encoder {name!r} ({detail}); check the name and the"
            " connection, or give the folder of a model"
        ) from None


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars and no reports on the weights of the parts that are left out."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
