"""Causal language models of transformers with random weights, one of each supported kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "num_key_value_heads": 1,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 8,
}


def _made(kind: str, **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
        return getattr(transformers, f"{kind}ForCausalLM")(config)

    return make


LMS: dict[str, Callable[[], Any]] = {
    "llama MHA": _made("Llama", num_key_value_heads=4),
    "llama GQA": _made("Llama", num_key_value_heads=2),
    "llama MQA": _made("Llama", num_key_value_heads=1),
    "llama biases": _made("Llama", num_key_value_heads=2, attention_bias=True, mlp_bias=True),
    "llama tied": _made("Llama", num_key_value_heads=2, tie_word_embeddings=True),
    "mistral": _made("Mistral", num_key_value_heads=2, sliding_window=8),
    "qwen2": _made("Qwen2", num_key_value_heads=2),
    "qwen3": _made("Qwen3", num_key_value_heads=2, head_dim=8),
    "stablelm": _made("StableLm", num_key_value_heads=4, use_qkv_bias=True),
    "stablelm GQA": _made("StableLm", num_key_value_heads=2, use_qkv_bias=True),
    "stablelm parallel": _made("StableLm", num_key_value_heads=4, use_parallel_residual=True),
    "stablelm head norms": _made("StableLm", num_key_value_heads=4, qk_layernorm=True),
    "gemma": _made("Gemma", num_key_value_heads=1, head_dim=8),
    "gemma2": _made("Gemma2", **GEMMA, final_logit_softcapping=5.0, attn_logit_softcapping=3.0),
    "gemma3": _made("Gemma3Text", **GEMMA | {"num_key_value_heads": 2}),
}
"""Name -> the network; Gemma's and StableLM's are tied or not as their configurations say."""
LMS["gemma3"] = lambda: transformers.Gemma3ForCausalLM(
    transformers.Gemma3TextConfig(**{**SIZES, **GEMMA, "num_key_value_heads": 2})
)


def tiny_lm(kind: str = "llama GQA", seed: int = 0) -> Any:
    """One of ``LMS``, in eval mode, every weight random: biases and norms, which start as 0 or 1,
    too, so that a transformation that forgets one is seen.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LMS[kind]()
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.data.normal_(float("bias" not in name and "gemma" not in kind), 0.3)
            else:
                parameter.data.normal_(0, 0.25)
    network.config._attn_implementation = "eager"
    return network.eval()


def tokens(rows: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """(rows, length) random token ids."""
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def tiny_folder(folder: Path) -> Path:
    """A Llama of two layers with a tokenizer of characters, as a folder with safetensors."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {
        c: i for i, c in enumerate(["<pad>", "<s>", "</s>", "<unk>", *map(chr, range(32, 127))])
    }
    model = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(letters), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )).save_pretrained(folder)  # fmt: skip
    return folder
