"""Weight-equivalent transformations: exact for every architecture, and the closed form's order."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo_mobilequant.calibrate import Peaks
from zoo_mobilequant.families import FAMILIES, describe, head
from zoo_mobilequant.simulate import attach, watching
from zoo_mobilequant.transform import PAIRS, divisors, fold, pairs_of, shape, smooth

from tests.plugins.tiny_lms import LMS, SIZES, tiny_lm, tokens
from zoo.errors import InputError


def logits(network: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(tokens()).logits
    return found


def change(before: Tensor, after: Tensor) -> float:
    """The largest change, in units of the largest value."""
    return float((after - before).abs().max() / before.abs().max())


def random_scales(layer: Any, pairs: Any, seed: int = 0) -> dict[str, Tensor]:
    """Log-uniform from 0.1 to 10."""
    chance = torch.Generator().manual_seed(seed)
    return {p: 10 ** (2 * torch.rand(shape(layer, p), generator=chance) - 1) for p in pairs}


@pytest.mark.parametrize("kind", LMS)
def test_the_float_function_stays(kind: str) -> None:
    """Float32 keeps 6 digits; three layers of random scales lose less than one of them."""
    network = tiny_lm(kind)
    before = logits(network)
    for pair in PAIRS:
        changed, touched = deepcopy(network), 0
        for layer in describe(changed):
            if pair in pairs_of(layer):
                weights = deepcopy(layer.module.state_dict())
                fold(layer, divisors(layer, random_scales(layer, [pair])))
                after = layer.module.state_dict()
                touched += any(not torch.equal(after[n], weights[n]) for n in weights)
        expected = 0 if pair not in pairs_of(describe(network)[0]) else 3
        assert touched == expected, pair
        assert change(before, logits(changed)) < 1e-5, pair
    for layer in describe(network):
        fold(layer, divisors(layer, random_scales(layer, pairs_of(layer))))
    assert change(before, logits(network)) < 3e-5  # five roundings of each weight


def test_every_pair_is_found() -> None:
    for kind in LMS:
        absent = {"stablelm parallel": {"n2"}, "stablelm head norms": {"qk"}}.get(kind, set())
        assert {*pairs_of(describe(tiny_lm(kind))[0])} == {*PAIRS} - absent, kind


@pytest.mark.parametrize("kind", ["llama MHA", "llama GQA", "llama MQA", "qwen3"])
def test_a_scale_for_each_channel_breaks_rotary_pairs(kind: str) -> None:
    """RoPE turns channels i and i + d/2 into one another: they must share a scale."""
    network = tiny_lm(kind)
    before = logits(network)
    for layer in describe(network):
        tied = divisors(layer, random_scales(layer, ["qk"]))
        names = ("q_norm", "k_norm") if kind == "qwen3" else ("q", "k")
        free = 10 ** (2 * torch.rand(tied[names[1]].shape, generator=torch.Generator()) - 1)
        queries = free
        if kind != "qwen3":
            each = free.view(layer.kv_heads, layer.head_dim)
            queries = each.repeat_interleave(layer.heads // layer.kv_heads, 0).flatten()
        fold(layer, {names[0]: queries, names[1]: 1 / free})
    assert change(before, logits(network)) > 0.1


def test_groups_of_query_heads_stand_together() -> None:
    """Repeating the scales as a whole fits MHA and MQA, and breaks GQA."""
    for kind, breaks in {"llama MHA": False, "llama MQA": False, "llama GQA": True}.items():
        network = tiny_lm(kind)
        before = logits(network)
        for layer in describe(network):
            scale = random_scales(layer, ["vo"])["vo"]
            whole = scale.repeat(layer.heads // layer.kv_heads, 1)
            fold(layer, {"v": scale.flatten(), "a": whole})
        assert (change(before, logits(network)) > 0.1) == breaks, kind


def test_tied_embeddings_are_not_touched() -> None:
    network = tiny_lm("llama tied")
    before = network.get_input_embeddings().weight.clone()
    final = network.get_decoder().norm.weight.clone()
    for layer in describe(network):
        fold(layer, divisors(layer, random_scales(layer, pairs_of(layer))))
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert torch.equal(network.get_input_embeddings().weight, before)
    assert torch.equal(network.get_decoder().norm.weight, final)


def smoothed(network: Any, **keywords: Any) -> Any:
    """All pairs, by the peaks of one pass."""
    layers = describe(network)
    sites, peaks = attach(network, layers, 8), Peaks()
    with watching(sites, peaks):
        logits(network)
    for layer in layers:
        fold(layer, smooth(layer, peaks.of(layer.index), **keywords))
    return network


@pytest.mark.parametrize("kind", LMS)
@pytest.mark.parametrize("k", [8, 32])
def test_smoothing_undoes_what_was_planted(kind: str, k: float) -> None:
    """Channels made k times as large, function unchanged: the same weights come out.

    Scales are products and roots of a few numbers: 1e-5 is a hundred roundings.
    """
    plain, planted = smoothed(tiny_lm(kind)), tiny_lm(kind)
    for layer in describe(planted):
        chance = torch.Generator().manual_seed(layer.index)
        scales = {p: torch.ones(shape(layer, p)) for p in pairs_of(layer)}
        for scale in scales.values():
            scale[torch.rand(scale.shape, generator=chance) < 0.2] = 1 / k
        fold(layer, divisors(layer, scales))
    again = smoothed(planted)
    found = again.state_dict()
    for name, weight in plain.state_dict().items():
        if ".sites." not in name:
            assert change(weight, found[name]) < 1e-5, name


def test_smoothing_keeps_the_function_and_evens_channels_out() -> None:
    network = tiny_lm("llama GQA")
    for layer in describe(network):
        scales = {pair: torch.ones(shape(layer, pair)) for pair in ("n1", "ud")}
        for scale in scales.values():
            scale[3] = 1 / 50
        fold(layer, divisors(layer, scales))
    before, rough = logits(network), deepcopy(network)
    smoothed(network)
    assert change(before, logits(network)) < 1e-5

    def spread(model: Any) -> float:
        """The largest channel of the up projections' outputs, in units of the median one."""
        seen = []
        up = describe(model)[1].linears["up"]
        hook = up.register_forward_hook(lambda module, args, output: seen.append(output))
        logits(model)
        hook.remove()
        peaks = seen[0].abs().amax((0, 1))
        return float(peaks.max() / peaks.median())

    assert spread(network) < 0.2 * spread(rough)


def test_a_dead_channel_is_left_alone() -> None:
    """Neither an activation that is always 0 nor a column of zeros gives a scale of 0 or NaN."""
    network = tiny_lm("llama GQA")
    for layer in describe(network):
        layer.linears["up"].weight.data[5] = 0
        layer.linears["down"].weight.data[:, 7] = 0
        layer.linears["v"].weight.data[2] = 0
        layer.linears["q"].weight.data[:8] = 0
    before = logits(network)
    smoothed(network)
    assert change(before, logits(network)) < 1e-5


@pytest.mark.parametrize("kind", LMS)
def test_the_head_gives_the_networks_logits(kind: str) -> None:
    network = tiny_lm(kind)
    with torch.no_grad():
        hidden = network.get_decoder()(tokens()).last_hidden_state
        assert torch.equal(head(network, hidden), logits(network))


# --- what is refused ------------------------------------------------------------------------------


def test_an_unknown_architecture_is_named_with_those_supported() -> None:
    import transformers

    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16)
    with pytest.raises(InputError, match=r"gpt2 is not supported.*lacks q_proj.*llama, mistral"):
        describe(transformers.GPT2LMHeadModel(config))
    with pytest.raises(InputError, match="Linear is not supported"):
        describe(torch.nn.Linear(2, 2))


def test_fused_projections_are_named() -> None:
    import transformers

    config = transformers.Phi3Config(**{**SIZES, "num_hidden_layers": 1, "pad_token_id": 0})
    with pytest.raises(InputError, match=r"phi3 .*fused \(qkv_proj, gate_up_proj\).*qwen2"):
        describe(transformers.Phi3ForCausalLM(config))


def test_a_mixture_of_experts_is_refused() -> None:
    import transformers

    config = transformers.MixtralConfig(**{**SIZES, "num_hidden_layers": 1}, num_local_experts=2)
    with pytest.raises(InputError, match=r"mixtral is not supported\. A mixture of .*llama"):
        describe(transformers.MixtralForCausalLM(config))


def test_a_quantized_model_is_refused() -> None:
    network = tiny_lm()
    network.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(InputError, match="llama model is quantized already"):
        describe(network)


def test_families_are_tested() -> None:
    assert {tiny_lm(kind).config.model_type for kind in LMS} == {*FAMILIES}
