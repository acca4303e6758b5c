"""Grids, and the network that computes as integers would: closed forms and exactness."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo_mobilequant.calibrate import Clipped, Spread, windows
from zoo_mobilequant.families import describe
from zoo_mobilequant.method import compare, fit
from zoo_mobilequant.quantizers import Grid, WeightFormat, asymmetric, clipping, searched, symmetric
from zoo_mobilequant.recipe import RECIPES, SCHEMES, Recipe, make
from zoo_mobilequant.simulate import TABLE, attach, attach_weights, settle, switched, watching
from zoo_mobilequant.transform import divisors, pairs_of, scaled, shape

from tests.plugins.tiny_lms import LMS, tiny_lm, tokens
from zoo.errors import InputError, OptionError


def logits(network: Any, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(tokens() if ids is None else ids).logits
    return found


def t(*values: float) -> Tensor:
    return torch.tensor(values)


# --- grids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("bounds", [(-1.0, 3.0), (-2.5, 0.1), (0.0, 7.0), (-4.0, 0.0), (2.0, 5.0)])
def test_an_asymmetric_grid(bits: int, bounds: tuple[float, float]) -> None:
    """Its own values stay, others move by at most half a step, 0 is exact."""
    least, largest = torch.tensor(bounds)
    grid = asymmetric(least, largest, bits)
    codes = torch.arange(2**bits)
    values = (codes - grid.zero) * grid.step
    assert torch.equal(grid.codes(values), codes.float())
    assert torch.equal(grid(values), values)
    inside = torch.linspace(float(grid.range[0]), float(grid.range[1]), 1001)
    assert float((grid(inside) - inside).abs().max()) <= float(grid.step) * 0.5001
    assert float(grid(torch.zeros(()))) == 0
    assert float(grid.zero) == round(float(grid.zero))
    reach = [float(v) for v in grid.range]  # rounding the zero point moves both by half a step
    assert reach[0] <= min(bounds[0], 0) + 0.51 * float(grid.step)
    assert reach[1] >= max(bounds[1], 0) - 0.51 * float(grid.step)


def test_a_symmetric_grid_has_no_zero_point() -> None:
    for least, largest in ((-1.0, 3.0), (-3.0, 1.0), (0.0, 3.0)):
        grid = symmetric(torch.tensor(least), torch.tensor(largest), 8)
        assert float(grid.zero) == 0
        assert float(grid.step) == pytest.approx(3 / 127)
        assert grid(torch.tensor(3.0)) == pytest.approx(3.0)


def test_a_constant_gives_no_nan() -> None:
    zero = torch.zeros(())
    for made in (asymmetric(zero, zero, 8), symmetric(zero, zero, 4)):
        assert torch.equal(made(torch.zeros(3)), torch.zeros(3))
    assert torch.equal(
        WeightFormat(4).grid(torch.zeros(2, 3))(torch.zeros(2, 3)), torch.zeros(2, 3)
    )


def test_gradients_pass_the_rounding_and_not_the_clamp() -> None:
    grid = asymmetric(torch.tensor(-1.0), torch.tensor(1.0), 4)
    x = t(-3, -0.9, 0.13, 0.8, 5).requires_grad_()
    grid(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("per_row", [False, True])
def test_the_gradients_of_step_and_zero_point(per_row: bool) -> None:
    """Of eq. 9 with what rounding adds held fixed, by finite differences in float64."""
    chance = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(3, 40, generator=chance, dtype=torch.float64)
    factor = torch.randn(3, 40, generator=chance, dtype=torch.float64)
    sizes = (3, 1) if per_row else ()
    step = (0.1 + torch.rand(sizes, generator=chance).double()).requires_grad_()
    zero = torch.full(sizes, 6.0, dtype=torch.float64, requires_grad=True)
    (Grid(step, zero, 0, 15)(x) * factor).sum().backward()
    rounding = ((x / step).round() - x / step).detach()

    def surrogate(s: Tensor, z: Tensor) -> Tensor:
        inside = ((x / step) >= -6) & ((x / step) <= 9)
        steps = torch.where(inside, x / s + rounding, torch.where(x < 0, 0 - z, 15 - z))
        return (steps * s * factor).sum()

    s, z = step.detach().requires_grad_(), zero.detach().requires_grad_()
    wanted = torch.autograd.grad(surrogate(s, z), (s, z))
    for found, exact in zip((step.grad, zero.grad), wanted, strict=True):
        assert found is not None
        assert torch.allclose(found, exact)
    shift = 1e-6
    numeric = surrogate(step.detach() + shift, zero) - surrogate(step.detach() - shift, zero)
    total = sum(float(g.sum()) for g in wanted[:1])
    assert float(numeric.detach()) / (2 * shift) == pytest.approx(total, rel=1e-5)


def test_weight_formats() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    rows, whole = WeightFormat(8).grid(weight), WeightFormat(8, False, True).grid(weight)
    assert rows.step.shape == (5, 1)
    assert torch.allclose(rows.step[:, 0], weight.abs().amax(1) / 127)
    assert whole.step.shape == ()
    assert float(whole.step) == pytest.approx(float(weight.max() - weight.min()) / 255)


def test_clipping_begins_at_0_982_of_the_range() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    form = WeightFormat(4)
    clipped = form.grid(weight, clipping(torch.full((2, 5, 1), 4.0)))
    assert torch.allclose(clipped.step, form.grid(weight).step * 0.98201, rtol=1e-5)
    wide = form.grid(weight, clipping(torch.full((2, 5, 1), 1e4)))
    assert torch.equal(wide.step, form.grid(weight).step)


def test_the_search_keeps_massive_values_and_clips_rare_ones() -> None:
    """What a percentile would cut off is kept where it weighs more than the precision of the rest.

    2000 values of variance 1: at 8 bits a range of 100 costs (100/255)^2/12 each, 26 in all; to
    clip one value of 100 to half costs 2500. At 3 bits two values of 6 are not worth it.
    """
    bulk = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    values = torch.cat([bulk, t(100.0)])
    low, high = searched(values, torch.ones_like(values), float(values.min()), 100.0, 8)
    assert high > 95
    values = torch.cat([bulk, t(6.0, -6.0)])
    low, high = searched(values, torch.ones_like(values), -6.0, 6.0, 3)
    assert -4 < low < -1.5
    assert 1.5 < high < 4


def test_a_sample_with_its_tails_gives_the_range_of_all_values() -> None:
    network = tiny_lm()
    site = attach(network, describe(network), 8)["1.h"]
    x = torch.randn(1, 400, 48, generator=torch.Generator().manual_seed(0))
    x[0, 0, 3] = 300.0
    spread = Spread(True)
    spread(site, x, x)
    counts = torch.cat(spread.counts["1.h"])
    assert float(counts.sum()) == pytest.approx(x.numel())
    assert int((torch.cat(spread.values["1.h"]) == 300).sum()) == 1
    flat = x.flatten()
    wanted = searched(flat, torch.ones_like(flat), float(flat.min()), 300.0, 8)
    low, high = (float(v) for v in spread.grid(site).range)
    assert high == pytest.approx(wanted[1], rel=0.1)
    assert low == pytest.approx(wanted[0], abs=2 * float(spread.grid(site).step))


# --- the simulated network ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LMS)
def test_off_it_is_the_network_of_transformers(kind: str) -> None:
    """Bit for bit, with fake weights and sites in place, and with a cache."""
    network = tiny_lm(kind)
    before = logits(network)
    layers = describe(network)
    sites = attach(network, layers, 8, prefix=1)
    attach_weights(layers, {name: WeightFormat(4) for name in layers[0].linears})
    assert torch.equal(logits(network), before)
    for layer in layers:
        for name in TABLE:
            absent = {"stablelm parallel": {"x2", "n2"}}.get(kind, set())
            absent |= {"sigmoid"} if "gemma" in kind else set()
            assert (f"{layer.index}.{name}" in sites) == (name not in absent), name


@pytest.mark.parametrize("kind", LMS)
def test_16_bits_change_little(kind: str) -> None:
    """Activations of 16 bits: a step is 1.5e-5 of a range, and some 50 roundings follow one another
    through three layers with random weights, so logits stay within 2e-3 of the largest.
    """
    network = tiny_lm(kind)
    before = logits(network)
    layers, spread = describe(network), Spread(False)
    sites = attach(network, layers, 16)
    with watching(sites, spread):
        logits(network)
    for site in sites.values():
        site.set(spread.grid(site))
        site.on = True
    after = logits(network)
    assert not torch.equal(after, before)
    assert float((after - before).abs().max() / before.abs().max()) < 2e-3


def test_bits_are_those_of_the_table() -> None:
    sites = attach(network := tiny_lm("gemma2"), describe(network), 8)
    for name, site in sites.items():
        tensor = name.partition(".")[2]
        assert site.bits == TABLE.get(tensor, 16), name
    sites = attach(network := tiny_lm(), describe(network), 16)
    assert {site.bits for site in sites.values()} == {16}


@pytest.mark.parametrize("kind", ["llama GQA", "qwen3", "stablelm", "gemma2", "gemma3"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_a_cache_changes_nothing(kind: str, prefix: int) -> None:
    """Static scales: prefill and single tokens give what the whole sequence gives.

    A sum in another order may round differently and tip a value that lies between two codes, so the
    comparison is by a norm.
    """
    network = tiny_lm(kind)
    recipe = make("rtn", "w8a8", {"prefix_tokens": prefix})
    fit(network.requires_grad_(False), describe(network), tokens(4), recipe)
    ids = tokens(2, 20, seed=7)
    whole = logits(network, ids)
    with torch.no_grad():
        made = network(ids[:, :9], use_cache=True)
        parts = [made.logits]
        for i in range(9, 20):
            made = network(ids[:, i : i + 1], past_key_values=made.past_key_values, use_cache=True)
            parts.append(made.logits)
    found = torch.cat(parts, 1)
    assert float((found - whole).norm() / whole.norm()) < 5e-3
    assert float((found.argmax(-1) == whole.argmax(-1)).float().mean()) > 0.97


def test_padding_on_the_left_moves_the_float_positions() -> None:
    """A padded row gives what it gives alone: its first tokens stay in float, not the padding."""
    network = tiny_lm()
    recipe = make("rtn", "w8a8", {"prefix_tokens": 2})
    fit(network.requires_grad_(False), describe(network), tokens(4), recipe)
    ids = tokens(1, 12, seed=3)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
    mask = (torch.arange(16) >= 4).long()[None]
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        alone = network(ids).logits
        found = network(padded, attention_mask=mask, position_ids=places).logits[:, 4:]
    assert float((found - alone).norm() / alone.norm()) < 5e-3


def test_prefix_tokens_stay_in_float() -> None:
    """The first two rows of activations are those of the float network; the third one is not."""
    network = tiny_lm()
    layers = describe(network)
    sites, seen = attach(network, layers, 8, prefix=2), {}
    spread = Spread(False)
    with watching(sites, spread):
        logits(network)
    for site in sites.values():
        site.set(spread.grid(site))
        site.on = True
    before = logits(tiny_lm())

    def note(site: Any, x: Tensor, found: Tensor) -> None:
        seen[site.name] = (x, found)

    with watching(sites, note):
        after = logits(network)
    assert torch.allclose(after[:, :2], before[:, :2], atol=1e-5)
    assert not torch.allclose(after[:, 2], before[:, 2], atol=1e-5)
    for name, (x, found) in seen.items():
        axis = 2 if sites[name].axis in ("heads", "keys") else 1
        assert torch.equal(x.narrow(axis, 0, 2), found.narrow(axis, 0, 2)), name
        assert not torch.equal(x, found), name


def test_divisors_at_the_sites_are_the_folded_network() -> None:
    """Eq. 15 against eq. 2: the weights' codes are the same ones. The steps of activations are 2e-5
    here, so that codes that tip where x / d is rounded in another order do not count.
    """
    network = tiny_lm()
    layers = describe(network)
    sites = attach(network, layers, 8)
    weights = attach_weights(layers, {name: WeightFormat(4) for name in layers[0].linears})
    chance = torch.Generator().manual_seed(0)
    divided, codes = {}, {}
    for layer in layers:
        scales = {p: 2 ** torch.randn(shape(layer, p), generator=chance) for p in pairs_of(layer)}
        divided[layer.index] = found = divisors(layer, scales)
        for name, site in sites.items():
            if name.startswith(f"{layer.index}."):
                site.divisor = found.get(name.partition(".")[2])
        for name, linear in layer.linears.items():
            path = layer.path(name)
            weights[path].divided = found
            moved = scaled(layer, name, linear.weight, None, found)[0]
            codes[path] = weights[path].grid(moved).codes(moved)
    for site in sites.values():
        site.set(asymmetric(torch.tensor(-40.0), torch.tensor(40.0), 22))
    with switched([*sites.values(), *weights.values()], True):
        live = logits(network)
    grids = {}
    for layer in layers:
        for path, grid, error in settle(layer, weights, divided[layer.index]):
            grids[path] = grid
            assert 0 < error < 0.2  # of 4 bits: a step of 1/7 of the largest, so about 0.1
    for site in sites.values():
        site.divisor, site.on = None, True
    for path, wanted in codes.items():
        weight = network.get_submodule(path).weight
        assert torch.equal((weight / grids[path].step).round(), wanted), path
        assert torch.equal(grids[path](weight), weight), path
    folded = logits(network)
    assert float((live - folded).norm() / live.norm()) < 1e-3


def test_calibrating_says_which_tensor_is_not_finite() -> None:
    network = tiny_lm().requires_grad_(False)
    describe(network)[1].linears["up"].weight[3, 4] = float("nan")
    with pytest.raises(InputError, match=r"layer 1: (up|h) is not finite"):
        fit(network, describe(network), tokens(4), make("rtn", "w8a8", {}))


def test_what_is_clipped_is_counted() -> None:
    network = tiny_lm()
    site = attach(network, describe(network), 8)["0.h"]
    site.set(asymmetric(torch.tensor(0.0), torch.tensor(255.0), 8))
    clipped = Clipped()
    clipped(site, torch.tensor([[[0.0, 255.4, 255.6, -0.4], [-0.6, 1.0, 9.0, 300.0]]]), t(0))
    assert clipped.shares == {"0.h": 3 / 8}


def test_ranges_do_not_see_the_float_positions() -> None:
    network = tiny_lm()
    sites = attach(network, describe(network), 8, prefix=1)
    spread = Spread(False)
    sites["0.h"].positions.queries = torch.arange(3)[None]
    spread(sites["0.h"], torch.tensor([[[900.0], [1.0], [-2.0]]]), t(0))
    assert spread.bounds["0.h"] == (-2.0, 1.0)


def test_a_network_against_itself() -> None:
    """No divergence, every argmax equal, and the perplexity of transformers' own loss."""
    network = tiny_lm()
    ids = tokens(3)
    with torch.no_grad():
        wanted = [network.model(row[None]).last_hidden_state[0] for row in ids]
        loss = float(network(ids, labels=ids).loss)
    found = compare(network, ids, wanted)
    assert found["kl"] == 0
    assert found["agreement"] == 1
    assert found["perplexity"] == pytest.approx(float(torch.tensor(loss).exp()), rel=1e-5)


# --- recipes and windows --------------------------------------------------------------------------


def test_recipes() -> None:
    assert make("mobilequant", "w8a8", {}) == Recipe()
    assert make("smoothquant", "w8a8", {}).pairs == ("n1", "n2")
    assert make("rtn", "w4a8", {"pairs": "n2, n1", "alpha": None}).pairs == ("n1", "n2")
    assert make("rtn", "w4a8", {"learn": "none"}).learn == ()
    assert make("mobilequant", "w8a8", {}).learns == ("transformation", "ranges")
    assert make("mobilequant", "w4a8", {}).learns == ("transformation", "clipping", "ranges")
    paper = make("rtn", "w8a8", {"weights": "paper"})
    assert paper.form("up") == WeightFormat(8, per_row=False, zero_point=True)
    assert paper.form("down") == WeightFormat(8, per_row=True, zero_point=True)
    for name in RECIPES:
        for scheme in SCHEMES:
            assert not make(name, scheme, {"steps": 0}).learns


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": "n1,nn"}, "pairs='nn': expected any of vo, ud"),
        ({"alpha": 1.5}, r"alpha=1\.5: expected a number from 0 to 1"),
        ({"steps": -1}, "steps=-1"),
        ({"steps": 2.5}, r"steps=2\.5: expected a whole number"),
        ({"loss": "l1"}, "loss='l1': expected one of kl, mse"),
        ({"prefix_tokens": True}, "prefix_tokens=True"),
        ({"grid": 1}, "grid=1: expected True or False"),
        ({"learn": 3}, "learn=3: expected any of transformation"),
        ({"weights": "tensor"}, "weights='tensor'"),
    ],
)
def test_wrong_settings_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make("mobilequant", "w8a8", changes)


class Words:
    """A tokenizer of letters, which puts its first token before every text, or not."""

    eos_token_id = 2

    def __init__(self, begin: int | None, always: bool) -> None:
        self.bos_token_id, self.always = begin, always

    def __call__(self, text: str) -> dict[str, list[int]]:
        first = [self.bos_token_id] if self.always and self.bos_token_id is not None else []
        return {"input_ids": [*first, *(3 + ord(c) % 50 for c in text)]}


def test_windows_begin_as_texts_do_in_use() -> None:
    config = tiny_lm().config  # 64 positions
    text = ["some text to calibrate with, long enough for four windows. " * 5]
    for begin, always, wanted in ((1, True, [1, 1, 1, 1]), (1, False, [1, 0, 1, 0])):
        ids, remarks = windows(text, Words(begin, always), config)
        assert ids.shape == (4, 64)
        assert (ids[:, 0] == 1).int().tolist() == wanted
        assert "4 windows only" in remarks[-1]
    ids, _ = windows(text, Words(None, False), config)
    assert 1 not in ids


def test_windows_of_ids_stay_and_are_remarked_on() -> None:
    ids, remarks = windows(tokens(8, 16), Words(1, True), tiny_lm().config)
    assert torch.equal(ids, tokens(8, 16))
    assert len(remarks) == 1
    assert "No calibration row begins with token 1" in remarks[0]
    assert windows(tokens(8, 16), None, tiny_lm().config)[1] == []
    long = windows(tokens(8, 65), None, tiny_lm().config)[1]
    assert "windows of 65 tokens, beyond the 64 positions" in long[0]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.full((2, 4), 5), "8 tokens. At least 32"),
        (torch.full((40, 1), 5), "windows of one token"),
        (torch.full((8, 8), 64), "the model has 64"),
        (torch.full((8, 8), -1), "the model has 64"),
    ],
)
def test_windows_that_cannot_be_used(ids: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        windows(ids, None, tiny_lm().config)


def test_deepcopies_of_a_simulated_network_are_apart() -> None:
    """Hooks of the copy call the copy's sites."""
    network = tiny_lm().requires_grad_(False)
    fit(network, describe(network), tokens(4), make("rtn", "w8a8", {}))
    before, other = logits(network), deepcopy(network)
    assert torch.equal(logits(other), before)
    for module in other.modules():
        if hasattr(module, "on"):
            module.on = False
    assert torch.equal(logits(network), before)
    assert not torch.equal(logits(other), before)


@pytest.mark.parametrize("kind", LMS)
def test_every_norm_of_a_layer_gets_16_bits(kind: str) -> None:
    """Also those between o or down and the residual, and StableLM's for each head (eq. 14)."""
    network = tiny_lm(kind)
    layers = describe(network)
    attach(network, layers, 8)
    weights = attach_weights(layers, dict.fromkeys(layers[0].linears, WeightFormat(8)))
    for layer in layers:
        settle(layer, weights, {})
    scales = [
        part.weight
        for layer in layers
        for name, part in layer.module.named_modules()
        if "norm" in name and getattr(part, "weight", None) is not None
    ]
    assert scales
    for scale in scales:
        grid = asymmetric(scale.min(), scale.max(), 16)
        assert torch.allclose(grid(scale), scale, atol=1e-7)
