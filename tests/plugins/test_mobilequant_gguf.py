"""GGUF to a folder of transformers: a tiny Llama there and back, without the package gguf."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from zoo_mobilequant import gguf
from zoo_mobilequant.original import read, tokenizer_of

from tests.plugins.tiny_lms import tiny_lm, tokens
from zoo.errors import InputError

WORDS = ["<|end|>", "<|begin|>", *"abcdefghi", "Ġ", "1", "2", "ab", "Ġab", "12"]
FACTS: dict[str, Any] = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": WORDS + [f"<{i}>" for i in range(64 - len(WORDS))],
    "tokenizer.ggml.token_type": [3, 3] + [1] * 62,
    "tokenizer.ggml.merges": ["a b", "Ġ ab", "1 2"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.chat_template": "{% for m in messages %}<|begin|>{{ m.content }}{% endfor %}",
}


@dataclass
class Field:
    value: Any

    def contents(self) -> Any:
        return self.value


@dataclass
class Tensor_:  # noqa: N801
    name: str
    data: np.ndarray
    tensor_type: int = 0

    @property
    def shape(self) -> np.ndarray:
        return np.array(self.data.shape[::-1])  # fastest axis first, as in the format


class Reader:
    """What ``gguf.GGUFReader`` would give for a network."""

    def __init__(self, network: Any, **changes: Any) -> None:
        c = network.config
        sizes = {
            "block_count": c.num_hidden_layers, "embedding_length": c.hidden_size,
            "feed_forward_length": c.intermediate_size, "context_length": 64,
            "attention.head_count": c.num_attention_heads,
            "attention.head_count_kv": c.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
            "rope.freq_base": c.rope_parameters["rope_theta"],
        }  # fmt: skip
        facts = {**FACTS, **{f"llama.{k}": v for k, v in sizes.items()}, **changes}
        self.fields = {name: Field(value) for name, value in facts.items()}
        inside = {theirs: ours for ours, theirs in gguf.NAMES.items()}
        outside = {theirs: ours for ours, theirs in gguf.OUTSIDE.items()}
        self.tensors = []
        for name, weight in network.state_dict().items():
            if name == "lm_head.weight" and c.tie_word_embeddings:
                continue
            stem, _, end = name.rpartition(".")
            if stem in outside:
                self.tensors.append(Tensor_(f"{outside[stem]}.{end}", weight.numpy()))
                continue
            _, _, layer, part = stem.split(".", 3)
            heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}
            if inside[part] in heads:
                weight = permuted(weight, heads[inside[part]])
            self.tensors.append(Tensor_(f"blk.{layer}.{inside[part]}.{end}", weight.numpy()))


def permuted(weight: Tensor, heads: int) -> Tensor:
    """As llama.cpp stores q and k: channels i and i + d/2 become neighbours."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def plain(data: np.ndarray, kind: int) -> np.ndarray:
    return data


def test_the_permutation_there_and_back() -> None:
    """Head by head; and it is no accident of symmetric sizes."""
    weight = torch.arange(4 * 8 * 3.0).reshape(32, 3)
    assert torch.equal(gguf.unpermuted(permuted(weight, 4), 4), weight)
    assert not torch.equal(gguf.unpermuted(permuted(weight, 4), 2), weight)
    stored = torch.arange(8.0)[:, None]  # one head of d = 8: pairs (0,1), (2,3), ...
    assert gguf.unpermuted(stored, 1).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("kind", ["llama MHA", "llama GQA", "llama tied"])
def test_a_llama_there_and_back(kind: str, tmp_path: Path) -> None:
    """The same logits, but for 16 bits; a forgotten permutation is far off."""
    network = tiny_lm(kind).half().float()
    reader: Any = Reader(network)
    folder = gguf.convert(reader, plain, tmp_path / "lm")
    again = read(folder, "lm").eval()
    with torch.no_grad():
        before, after = network(tokens()).logits, again(tokens()).logits
    assert again.config.tie_word_embeddings == (kind == "llama tied")
    assert float((before - after).norm() / before.norm()) < 1e-3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "unpermuted", lambda weight, heads: weight)
        wrong = read(gguf.convert(reader, plain, tmp_path / "wrong"), "wrong").eval()
    with torch.no_grad():
        assert float((wrong(tokens()).logits - before).norm() / before.norm()) > 0.1


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    """Byte-level BPE with single digits; control tokens whole; the chat template."""
    folder = gguf.convert(Reader(tiny_lm()), plain, tmp_path / "lm")
    words = tokenizer_of(folder)

    def ids(text: str) -> list[str]:
        found: list[str] = words.convert_ids_to_tokens(words(text)["input_ids"])
        return found

    assert ids("ab ab") == ["ab", "Ġab"]
    assert ids("12") == ["1", "2"], "digits stand alone"
    assert ids("<|begin|>a") == ["<|begin|>", "a"]
    assert (words.bos_token, words.eos_token) == ("<|begin|>", "<|end|>")
    assert words.decode(words("ab ab")["input_ids"]) == "ab ab"
    made = words.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert made == "<|begin|>ab"
    gpt = gguf.tokenizer({**FACTS, "tokenizer.ggml.pre": "gpt-2"})
    assert gpt.convert_ids_to_tokens(gpt("12")["input_ids"]) == ["12"]
    first = gguf.tokenizer({**FACTS, "tokenizer.ggml.add_bos_token": True})
    assert first.convert_ids_to_tokens(first("ab")["input_ids"]) == ["<|begin|>", "ab"]


def test_what_is_not_a_llama_is_refused(tmp_path: Path) -> None:
    network = tiny_lm()
    with pytest.raises(InputError, match="holds a 'gemma' model"):
        gguf.convert(Reader(network, **{"general.architecture": "gemma"}), plain, tmp_path / "a")
    with pytest.raises(InputError, match=r"'spm'|tokenizer is 'llama'"):
        gguf.convert(Reader(network, **{"tokenizer.ggml.model": "llama"}), plain, tmp_path / "b")
    reader = Reader(network)
    reader.tensors.append(Tensor_("blk.0.ffn_gate_exps.weight", np.zeros((2, 2), np.float32)))
    with pytest.raises(InputError, match=r"ffn_gate_exps.*experts"):
        gguf.convert(reader, plain, tmp_path / "c")
    scaled: Any = {"llama.rope.scaling.type": "yarn"}
    with pytest.raises(InputError, match="scales rotary angles"):
        gguf.convert(Reader(network, **scaled), plain, tmp_path / "d")
    for factor, fits in ((1.0, True), (8.0, False)):
        reader = Reader(network)
        reader.tensors.append(Tensor_("rope_freqs.weight", np.full(4, factor, np.float32)))
        if fits:
            gguf.convert(reader, plain, tmp_path.parent / f"{tmp_path.name}-plain")
        else:
            with pytest.raises(InputError, match=r"'rope_freqs\.weight' belongs to no plain Llama"):
                gguf.convert(reader, plain, tmp_path / "e")
    assert [*tmp_path.iterdir()] == [], "it left something behind"


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    assert gguf.main([str(tmp_path / "no.gguf"), str(tmp_path / "out")]) == 1
    assert "there is no such file" in capsys.readouterr().err
