"""Embedding texts: what the encoder gives, once, and kept."""

from __future__ import annotations

import os
import shutil
import sys
import threading

import pytest
import torch
import transformers

from flowmatch.data import embedded, encoder, texts
from flowmatch.data.encoder import TextEncoder, encoder_stamp
from made_texts import make_encoder, same

TEXTS = ["a red bird", None, "a blue dog with a hat", "dog", "a red bird"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWMATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/texts"


@pytest.fixture
def calls(monkeypatch):
    """How often an encoder was loaded, and the texts that it embedded."""
    loaded, seen = [], []

    class Counted(TextEncoder):
        def __init__(self, name):
            loaded.append(name)
            super().__init__(name)

        def __call__(self, some, max_tokens):
            seen.extend(some)
            return super().__call__(some, max_tokens)

    monkeypatch.setattr(texts, "TextEncoder", Counted)
    return loaded, seen


def hidden(model, tokenizer, text: str) -> torch.Tensor:
    """The last hidden state of one text alone, without padding."""
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]


@pytest.mark.parametrize("kind", ["clip", "clip with images", "bert", "t5"])
def test_the_tokens_are_the_last_hidden_state(kind, tmp_path):
    folder = make_encoder(tmp_path / "encoder", kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = {
        "clip": transformers.CLIPTextModel,
        "clip with images": transformers.CLIPTextModel,
        "bert": transformers.BertModel,
        "t5": transformers.T5EncoderModel,
    }[kind].from_pretrained(folder)
    found = embedded(TEXTS, str(folder), max_tokens=12).rows(torch.arange(5))
    assert found.shape == (5, 8, 16)
    assert found[1].isnan().all()
    for text, rows in zip(TEXTS, found, strict=True):
        if text is not None:
            kept = rows[~rows.isnan().any(1)]
            expected = hidden(model.eval(), tokenizer, text)
            torch.testing.assert_close(kept, expected, rtol=2e-3, atol=2e-3)  # float16


def test_each_text_is_embedded_once_and_never_again(clip, cache, calls):
    loaded, seen = calls
    first = embedded(TEXTS, str(clip), max_tokens=12)
    assert sorted(seen) == ["a blue dog with a hat", "a red bird", "dog"]
    again = embedded([*TEXTS[::-1], None], str(clip), max_tokens=12)
    assert (len(loaded), len(seen)) == (1, 3)
    assert len(list(cache.glob("*/*.safetensors"))) == 1
    assert first.key == again.key
    at = torch.arange(5)
    assert same(first.rows(at), again.rows(4 - at))
    assert first.tokens.dtype == torch.float16
    assert first.rows(at).dtype == torch.float32


def test_a_set_with_another_text_embeds_that_alone(clip, calls):
    loaded, seen = calls
    whole = embedded(TEXTS, str(clip), max_tokens=12)
    seen.clear()
    more = embedded(["a hat", *TEXTS], str(clip), max_tokens=12)
    assert (len(loaded), seen) == (2, ["a hat"])
    at = torch.arange(5)
    assert same(more.rows(at + 1), whole.rows(at))
    alone = embedded(["a hat"], str(clip), max_tokens=12).rows(torch.tensor([0]))
    assert same(more.rows(torch.tensor([0]))[:, : alone.shape[1]], alone)
    both = embedded(["dog", "a hat", "a red bird"], str(clip), max_tokens=12)  # of two files
    assert len(loaded) == 2
    assert same(both.rows(torch.tensor([0, 2])), more.rows(torch.tensor([4, 1]))[:, : both.longest])


def test_other_lengths_and_weights_are_embedded_anew(clip, tmp_path, calls):
    keys = {embedded(some, str(clip), max_tokens=12).key for some in (TEXTS, TEXTS[2:4])}
    with pytest.warns(UserWarning, match="2 of 3 texts are cut after max_tokens=4"):
        keys.add(embedded(TEXTS, str(clip), max_tokens=4).key)
    assert embedded(TEXTS, str(clip), max_tokens=4).longest == 4
    moved = shutil.copytree(clip, tmp_path / "moved")
    assert embedded(TEXTS, str(moved), max_tokens=12).key in keys
    assert len(calls[0]) == 2
    other = make_encoder(tmp_path / "other", dim=8)
    keys.add(embedded(TEXTS, str(other), max_tokens=12).key)
    assert (len(keys), len(calls[0])) == (4, 3)


def test_a_few_of_many(clip, calls):
    few = embedded(TEXTS, str(clip), max_tokens=12, first=2)
    assert calls[1] == ["a red bird"]
    assert len(few) == 2
    whole = embedded(TEXTS, str(clip), max_tokens=12)
    assert len(calls[0]) == 2
    none = embedded(TEXTS[1:], str(clip), max_tokens=12, first=1)
    assert none.rows(torch.arange(1)).isnan().all()
    few = embedded(TEXTS, str(clip), max_tokens=12, first=3)  # from the whole
    assert len(calls[0]) == 2
    assert same(few.rows(torch.arange(3)), whole.rows(torch.arange(3)))


def test_a_damaged_file_is_replaced_and_a_closed_cache_is_a_warning(
    clip, cache, calls, monkeypatch
):
    whole = embedded(TEXTS, str(clip), max_tokens=12).rows(torch.arange(5))
    (path,) = cache.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    assert same(embedded(TEXTS, str(clip), max_tokens=12).rows(torch.arange(5)), whole)
    assert len(calls[0]) == 2
    blocked = cache.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("FLOWMATCH_CACHE", str(blocked))
    with pytest.warns(UserWarning, match="the embedded texts are not kept"):
        found = embedded(TEXTS, str(clip), max_tokens=12)
    assert same(found.rows(torch.arange(5)), whole)


def test_processes_that_start_together_embed_once(clip, calls):
    threads = [
        threading.Thread(target=embedded, args=(TEXTS, str(clip)), kwargs={"max_tokens": 12})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls[0]) == 1


def test_mistakes_are_one_sentence(clip, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"max_tokens is 40, but .* reads 12 tokens; lower it"):
        embedded(TEXTS, str(clip), max_tokens=40)
    with pytest.raises(ValueError, match="no text to embed"):
        embedded([None, None], str(clip), max_tokens=12)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"cannot read the text encoder '.*empty' \(.*; check"):
        embedded(TEXTS, str(tmp_path / "empty"), max_tokens=12)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'flowmatch\[text\]'"):
        embedded([*TEXTS, "another"], str(clip), max_tokens=12)


def test_a_model_of_the_hub_is_told_by_its_commit(clip, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = tmp_path / "hub/models--tiny--clip"
    shutil.copytree(clip, hub / "snapshots" / commit)
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    assert encoder_stamp("tiny/clip") == f"tiny/clip {commit}"
    assert os.path.isdir(clip)
    with pytest.raises(ValueError, match="cannot read the text encoder 'no/such'"):
        encoder_stamp("no/such")
    assert encoder.encoder_stamp(str(clip)) != encoder_stamp("tiny/clip")
