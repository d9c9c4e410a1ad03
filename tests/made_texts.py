"""A small text encoder with random weights, and tables of images with captions and numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from made_data import encoded, picture, write_parquet

WORDS = [
    "[PAD]",
    "[UNK]",
    "[BOS]",
    "[EOS]",
    "a",
    "red",
    "blue",
    "green",
    "bird",
    "dog",
    "with",
    "hat",
]
CAPTIONS = ["a red bird", "a blue dog with a hat", None, "a red bird", "dog", "a green bird"]
AGES = [0.1, 0.5, 0.9, None, 0.3, 0.7]
CLIPS = [[0.1, -1.0, 2.0], [1.0, 0.0, 0.0], None, [0.0, 0.0, 1.0], [3.0, 1.0, 1.0], [0.0, 2.0, 0.0]]
LABELS = [0, 1, 2, 0, 1, 2]


def make_encoder(folder: Path, kind: str = "clip", dim: int = 16) -> Path:
    """A text encoder and its tokenizer, saved as `transformers` saves them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    torch.manual_seed(0)
    sizes = {"hidden_size": dim, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 12, "vocab_size": len(WORDS)}
    sizes |= {"bos_token_id": 2, "pad_token_id": 0}
    if kind == "t5":
        small = {"d_model": dim, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=len(WORDS), decoder_start_token_id=0, **small)
        )
    elif kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(**sizes))
    elif kind == "clip with images":
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 1, "image_size": 8, "patch_size": 4}
        text = {**sizes, "eos_token_id": 3}
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        )
    else:
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(eos_token_id=3, **sizes))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_captioned(folder: Path, *, copies: int = 1) -> Path:
    """train.parquet and test.parquet: images of 8 pixels with a label and the columns above."""
    for split in ("train", "test"):
        first = 0 if split == "train" else 1000
        images = [encoded(picture(8, 8, key=first + k)) for k in range(len(AGES) * copies)]
        write_parquet(
            folder / f"{split}.parquet",
            images,
            fine=LABELS * copies,
            age=AGES * copies,
            emb=pa.array(CLIPS * copies, pa.list_(pa.float64())),
            caption=CAPTIONS * copies,
        )
    return folder


def make_metadata(folder: Path) -> None:
    """metadata.jsonl of the images of a folder, the last of which it leaves out."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    rows = [
        {"file_name": name, "caption": f"a {'red' if k % 2 else 'blue'} bird", "age": k / 10}
        for k, name in enumerate(names[:-1])
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def columns(encoder: Path) -> dict[str, dict[str, object]]:
    """The `data.conditions` node for `make_captioned`."""
    text = {"kind": "text", "column": "caption", "encoder": str(encoder), "max_tokens": 12}
    return {
        "age": {"kind": "scalar", "column": "age"},
        "clip": {"kind": "vector", "column": "emb"},
        "caption": text,
    }


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, where NaN equals NaN."""
    return a.shape == b.shape and bool(np.array_equal(a.numpy(), b.numpy(), equal_nan=True))
