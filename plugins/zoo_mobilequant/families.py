"""What a decoder layer of a supported architecture is made of, by the names of the method's page.

The modelling code of transformers stays as it is: a ``Layer`` points at its modules. Tensors have
the names of eq. 1: ``x1 n1 q k v q_rope k_rope qk p a o x2 n2 gate up act h down``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError


@dataclass(frozen=True)
class Family:
    """How an architecture differs from Llama's decoder layer."""

    n2: str = "post_attention_layernorm"
    """The norm before the MLP."""
    added: Mapping[str, str] | None = None
    """Tensor -> norm through which it passes before it is added to the residual."""
    head_norms: bool = False
    """Are queries and keys normalised in each head?"""
    offset: float = 0.0
    """What is added to the weight of a norm: Gemma multiplies by 1 + w."""
    capped: bool = False
    """Does attention cap its scores softly?"""


GEMMA_2 = Family(
    n2="pre_feedforward_layernorm",
    added={"o": "post_attention_layernorm", "down": "post_feedforward_layernorm"},
    offset=1.0,
    capped=True,
)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(head_norms=True),
    "stablelm": Family(),
    "gemma": Family(offset=1.0),
    "gemma2": GEMMA_2,
    "gemma3_text": Family(GEMMA_2.n2, GEMMA_2.added, head_norms=True, offset=1.0),
}
"""``config.model_type`` -> family."""

ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


@dataclass(frozen=True)
class Layer:
    """One decoder layer: its modules, and how wide its heads are."""

    index: int
    name: str
    """The path of the module in the network: ``model.layers.3``."""
    module: nn.Module
    linears: Mapping[str, nn.Linear]
    """``q k v o gate up down``, each named after the tensor that it gives."""
    norms: Mapping[str, nn.Module]
    """``n1``, ``n2`` (absent where attention and MLP share one norm), ``q_norm``, ``k_norm``."""
    added: Mapping[str, nn.Module]
    """Norms between ``o`` or ``down`` and the residual."""
    offset: float
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    """The first so many channels of a head are rotated by RoPE."""
    scaling: float
    """Factor of the scores."""
    softcap: float | None
    """Scores are capped softly at this magnitude."""

    @property
    def attention(self) -> nn.Module:
        found: nn.Module = self.module.self_attn  # type: ignore[assignment]
        return found

    @property
    def activation(self) -> nn.Module:
        found: nn.Module = self.module.mlp.act_fn  # type: ignore[assignment, union-attr]
        return found

    @property
    def inputs(self) -> Mapping[str, str]:
        """Linear layer -> the tensor that it reads."""
        mlp = "n2" if "n2" in self.norms else "n1"
        qkv = dict.fromkeys(("q", "k", "v"), "n1")
        return {**qkv, "o": "a", "gate": mlp, "up": mlp, "down": "h"}

    def path(self, linear: str) -> str:
        """Where a linear layer stands in the network: ``model.layers.3.mlp.up_proj``."""
        part = f"self_attn.{ATTENTION[linear]}" if linear in ATTENTION else f"mlp.{MLP[linear]}"
        return f"{self.name}.{part}"


def describe(network: Any) -> list[Layer]:
    """The decoder layers of a causal language model of transformers.

    Raises InputError for an architecture that is not supported, naming those that are, for a
    mixture of experts, for fused projections, and for a model that is quantized already.
    """
    config: Any = getattr(network, "config", None)
    if getattr(config, "quantization_config", None) or getattr(network, "is_quantized", False):
        raise quantized_already(f"this {config.model_type} model")
    return layers_of(network)


def layers_of(network: Any) -> list[Layer]:
    """``describe``, also of a model that is quantized."""
    config = getattr(network, "config", None)
    kind = str(getattr(config, "model_type", type(network).__name__))
    if _experts(config):
        raise unsupported(
            kind,
            "A mixture of experts has no up-down pair to transform, and few calibration tokens "
            "reach each expert.",
        )
    names = {name.rpartition(".")[2] for name, _ in network.named_modules()}
    missing = [name for name in (*ATTENTION.values(), *MLP.values()) if name not in names]
    family = FAMILIES.get(kind)
    if family is None or missing:
        lacks = f"It lacks {', '.join(missing)}." if missing else ""
        fused = [name for name in ("qkv_proj", "query_key_value", "gate_up_proj") if name in names]
        why = f"Its projections are fused ({', '.join(fused)})." if fused else lacks
        raise unsupported(kind, why)
    layers = network.get_decoder().layers
    path = next(name for name, module in network.named_modules() if module is layers)
    return [_layer(i, f"{path}.{i}", module, family, config) for i, module in enumerate(layers)]


def unsupported(kind: str, why: str = "") -> InputError:
    """The error for an architecture that is not supported, with those that are."""
    reason = f" {why}" if why else ""
    return InputError(f"{kind} is not supported.{reason} Supported: {', '.join(FAMILIES)}.")


def quantized_already(what: str) -> InputError:
    """The error for a model whose weights have been quantized."""
    return InputError(
        f"{what} is quantized already: its weights are rounded to another grid. Pass the original "
        "with floating-point weights."
    )


def _layer(index: int, name: str, module: Any, family: Family, config: Any) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    norms = {"n1": module.input_layernorm}
    if getattr(module, family.n2, None) is not None:
        norms["n2"] = getattr(module, family.n2)
    if family.head_norms:
        norms |= {"q_norm": attention.q_norm, "k_norm": attention.k_norm}
    elif hasattr(attention, "q_layernorm"):  # StableLM's norms, one for each head
        norms |= {"q_norm": attention.q_layernorm, "k_norm": attention.k_layernorm}
    linears = {key: getattr(attention, part) for key, part in ATTENTION.items()}
    linears |= {key: getattr(mlp, part) for key, part in MLP.items()}
    head_dim = int(attention.head_dim)
    return Layer(
        index=index,
        name=name,
        module=module,
        linears=linears,
        norms=norms,
        added={key: getattr(module, part) for key, part in (family.added or {}).items()},
        offset=family.offset,
        heads=linears["q"].out_features // head_dim,
        kv_heads=linears["k"].out_features // head_dim,
        head_dim=head_dim,
        rotary=int(getattr(attention, "rotary_ndims", head_dim)),
        scaling=float(attention.scaling),
        softcap=attention.attn_logit_softcapping if family.capped else None,
    )


def _experts(config: Any) -> bool:
    counts = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(config, name, None) or 0) > 1 for name in counts)


def head(network: Any, hidden: Tensor, part: nn.Module | None = None) -> Tensor:
    """Logits (..., vocabulary) of what the decoder gives after its last norm, (..., H); by another
    head where ``part`` is one.
    """
    logits: Tensor = (part or network.get_output_embeddings())(hidden)
    cap = getattr(network.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
