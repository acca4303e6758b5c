"""Exported language models in onnxruntime: the simulation's numbers, without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
import zoo_mobilequant
from click.testing import CliRunner
from torch import nn
from zoo_mobilequant.qdq import FORMAT, check
from zoo_mobilequant.qdq.graph import Graph, Weights, packed
from zoo_mobilequant.qdq.network import Network
from zoo_mobilequant.qdq.session import Session, timed
from zoo_mobilequant.simulate import switched

import zoo
from tests.plugins.tiny_lms import LMS, tiny_folder, tiny_lm, tokens
from zoo.cli import cli
from zoo.errors import InputError, NotReadyError, OptionError, OutputError

EXAMPLE = Path(zoo_mobilequant.__file__).parent / "examples" / "onnx_generate.py"
LENGTH, CACHE = 16, 24


def quantized(model: Any = None, **changes: Any) -> Any:
    quantizer = zoo.load("mobilequant", device="cpu")
    given = tiny_lm() if model is None else model
    recipe = {"recipe": "rtn-grid", **changes}
    return quantizer.quantize(given, tokens(8), **recipe)


def written(model: Any, folder: Path, target: str = "npu") -> Path:
    """The graphs alone, of a model that has no tokenizer."""
    folder.mkdir(exist_ok=True)
    with torch.no_grad(), Weights(folder / "weights.data") as weights:
        network = Network(model, weights, CACHE, target)
        graphs = {"prefill": network.prefill(LENGTH), "decode": network.decode()}
    for name, graph in graphs.items():
        onnx.save_model(graph, str(folder / f"{name}.onnx"))
        onnx.checker.check_model(str(folder / f"{name}.onnx"), full_check=True)
    told = {"format": FORMAT, "length": LENGTH, "cache": CACHE, "target": target}
    (folder / "model.json").write_text(json.dumps(told))
    return folder


def said(session: Session, ids: list[int], prompt: int) -> np.ndarray:
    """Logits (T - prompt + 1, V): after the prompt, and after each token that follows it."""
    rows = [session.prefill(ids[:prompt])]
    return np.stack(rows + [session.decode(i) for i in ids[prompt:]])


def compare(model: Any, folder: Path, target: str, **how: Any) -> tuple[float, float]:
    """Median difference from the simulation's logits, in their largest magnitude, and the share of
    the positions with the same likeliest token; prompts shorter than the graph's, and as long.
    """
    wide = [s for s in model.sites.values() if target == "cpu" and s.bits > 8]
    apart, same = [], []
    session = Session(folder, **how)
    for row, prompt in zip(tokens(3, CACHE), (LENGTH, 9, 1), strict=True):
        with switched(wide, False), torch.no_grad():
            wanted = model.module(row[None]).logits[0, prompt - 1 :].numpy()
        found = said(session, row.tolist(), prompt)
        apart.append(np.abs(found - wanted) / np.abs(wanted).max())
        same.append(found.argmax(-1) == wanted.argmax(-1))
    return float(np.median(np.concatenate(apart))), float(np.concatenate(same).mean())


def layers(model: Any, folder: Path) -> float:
    """The largest relative error of a layer that reads what it reads in the simulation."""
    ids, errors = tokens(1, LENGTH)[0], check.Errors()
    with check.widened(folder, model, LENGTH) as whole, check.watched(model) as states:
        with torch.no_grad():
            model.module(ids[None])
        errors.add(whole(ids.tolist(), states), states)
    return errors.worst()["error"]


@pytest.mark.parametrize("kind", LMS)
def test_both_graphs_give_what_the_simulation_gives(kind: str, tmp_path: Path) -> None:
    """Prompts, padded or not, then tokens beyond the length of the prompt, by the simulation's full
    pass: sliding windows, partial rotary embeddings, biases, norms of each kind.

    Floats are added in another order, so a value between two codes may get the other one. Random
    networks enlarge that, so the bound on all layers together is wide. Most kinds differ by less
    than 1e-6; one code in a layer of this size comes to 1e-2.
    """
    model = quantized(tiny_lm(kind))
    for target in ("npu", "cpu"):
        apart, same = compare(model, written(model, tmp_path / target, target), target)
        assert apart < 1e-2
        assert same > 0.8
    assert layers(model, tmp_path / "npu") < 0.03


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16"])
@pytest.mark.parametrize("optimized", [True, False])
def test_it_is_exact_where_no_code_is_at_a_tie(
    scheme: str, optimized: bool, tmp_path: Path
) -> None:
    """With integer kernels and with floats between the codes; 16 bits have too many codes to tell
    ties from differences, so they get a bound.
    """
    model = quantized(tiny_lm("llama tied"), scheme=scheme)
    apart, same = compare(model, written(model, tmp_path), "npu", optimized=optimized)
    assert apart < (1e-3 if scheme == "w8a16" else 1e-6)
    assert same == 1


def test_a_wide_activation_has_16_bits(tmp_path: Path) -> None:
    model = quantized(fallback=2, budget=0.0)
    assert model.config["wide"]
    apart, same = compare(model, written(model, tmp_path), "npu")
    assert apart < 1e-3
    assert same == 1


def test_types_are_those_of_the_table(tmp_path: Path) -> None:
    """Eq. 14: activations of 8 and 16 bits, 4-bit weights, keys and values as codes."""
    model = quantized(tiny_lm("llama tied"), scheme="w4a8")
    written(model, tmp_path)
    made = onnx.load(tmp_path / "decode.onnx")
    constants = {c.name: c for c in made.graph.initializer}
    quantizers = [n for n in made.graph.node if n.op_type == "QuantizeLinear"]
    kinds = {n.input[2].removesuffix(".zero"): constants[n.input[2]].data_type for n in quantizers}
    assert set(kinds) == set(model.sites)
    for name, site in model.sites.items():
        assert kinds[name] == (
            onnx.TensorProto.UINT8 if site.bits == 8 else onnx.TensorProto.UINT16
        )
    up = model.layers[0].path("up")
    assert constants[f"{up}.codes"].data_type == onnx.TensorProto.INT4
    assert constants["model.embed_tokens.codes"].data_type == onnx.TensorProto.INT8
    assert not [c for c in constants if c.startswith("lm_head")]  # one table for both
    for value in made.graph.output[1:]:
        assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    codes = onnx.numpy_helper.to_array(constants[f"{up}.codes"]).astype(np.float32)
    steps = onnx.numpy_helper.to_array(constants[f"{up}.steps"])[:, None]
    weight = model.module.get_submodule(up).weight.detach().numpy()
    assert np.array_equal(codes * steps, weight)


def test_weights_are_on_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both graphs point to the same places of one file."""
    monkeypatch.setattr("zoo_mobilequant.qdq.graph.INLINE", 512)
    model = quantized(tiny_lm("llama tied"))
    written(model, tmp_path)
    places = []
    for name in ("prefill", "decode"):
        made = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False)
        places.append({
            c.name: [(e.key, e.value) for e in c.external_data]
            for c in made.graph.initializer if c.external_data
        })  # fmt: skip
        assert all(("location", "weights.data") in place for place in places[-1].values())
    assert compare(model, tmp_path, "npu")[1] == 1
    shared = places[0].keys() & places[1].keys()
    assert {f"{path}.codes" for path in model.grids} <= shared
    assert all(places[0][name] == places[1][name] for name in shared)


def test_a_bias_beyond_32_bits_stays_a_float(tmp_path: Path) -> None:
    """A pruned row has the least step, so its bias would need more than 32 bits in that unit."""
    network = tiny_lm("llama biases")
    up = network.model.layers[0].mlp.up_proj
    up.weight.data[0] = 0
    up.bias.data[0] = 30
    model = quantized(network)
    written(model, tmp_path)
    kinds = {c.name: c.data_type for c in onnx.load(tmp_path / "prefill.onnx").graph.initializer}
    assert kinds["model.layers.0.mlp.up_proj.bias"] == onnx.TensorProto.FLOAT  # it is added apart
    assert kinds["model.layers.1.mlp.up_proj.bias.codes"] == onnx.TensorProto.INT32
    assert layers(model, tmp_path) < 0.03


def with_activation(activation: nn.Module) -> Any:
    network = tiny_lm("llama GQA")
    for layer in network.model.layers:
        layer.mlp.act_fn = activation
    return quantized(network)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), nn.ReLU()], ids=str)
def test_activation_functions(activation: nn.Module, tmp_path: Path) -> None:
    apart, same = compare(model := with_activation(activation), written(model, tmp_path), "npu")
    assert apart < 1e-2
    assert same > 0.9


def test_what_the_graphs_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="Softplus cannot be exported"):
        written(with_activation(nn.Softplus()), tmp_path)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=64, rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4, "original_max_position_embeddings": 12, "factor": 4.0,
        },
    )  # fmt: skip
    with pytest.raises(NotReadyError, match="angles that do not depend on the length"):
        written(quantized(transformers.LlamaForCausalLM(config)), tmp_path)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4), (1,)])
def test_four_bits_are_packed_as_onnx_reads_them(shape: tuple[int, ...], tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-8, 8, shape).astype(np.int8)
    with Weights(tmp_path / "w.data") as weights:
        made = weights.tensor("codes", codes, onnx.TensorProto.INT4)
    assert np.array_equal(onnx.numpy_helper.to_array(made).astype(np.int8), codes)
    assert len(made.raw_data) == -(-codes.size // 2) == len(packed(codes))


def test_large_tensors_begin_at_pages(tmp_path: Path) -> None:
    first, second = np.arange(5000, dtype=np.float32), np.ones(4096, np.int8)
    with Weights(tmp_path / "w.data") as weights:
        graph = Graph(weights)
        for name, values in (("first", first), ("second", second), ("small", np.float32(2))):
            graph.constant(name, values)
        assert weights.tensor("first", first) is graph.constants["first"]  # written once
    places = {e.key: e.value for e in graph.constants["second"].external_data}
    assert int(places["offset"]) == 20480
    assert np.array_equal(np.fromfile(tmp_path / "w.data", np.int8, offset=20480), second)
    assert not graph.constants["small"].external_data


# --- the folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A quantized folder with a tokenizer of characters."""
    source = tiny_folder(tmp_path_factory.mktemp("original") / "lm")
    return quantized(source).save_pretrained(tmp_path_factory.mktemp("saved") / "small")


@pytest.fixture(scope="module")
def exported(saved: Path, tmp_path_factory) -> Path:
    """What the command writes."""
    out = tmp_path_factory.mktemp("exported") / "out"
    done = run("export", saved, "--format", "onnx-qdq", "-o", out, "-O", "length=20")
    assert done.exit_code == 0, done.output
    assert str(out) in done.output
    assert "prompts of up to 20 tokens, sequences of up to 64" in done.output
    assert "likeliest next token" in done.output
    return out


def run(*args: Any) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_the_folder_tells_what_a_program_must_know(saved: Path, exported: Path) -> None:
    files = {file.name for file in exported.iterdir()}
    graphs = {"prefill.onnx", "decode.onnx", "weights.data"}
    assert files == graphs | {"model.json", "tokenizer.json", "tokenizer_config.json"}
    told = json.loads((exported / "model.json").read_text())
    assert (told["batch"], told["length"], told["cache"], told["end"]) == (1, 20, 64, [2])
    inputs = told["graphs"]["decode"]["inputs"]
    assert inputs["position"] == ["int32", [1]]
    assert inputs["cache.key.1"] == ["uint8", [2, 64, 8]]
    assert told["graphs"]["prefill"]["outputs"]["value.0"] == ["uint8", [2, 20, 8]]
    assert told["check"]["prompt"]["positions"] == 4 * 20
    assert told["check"]["layers"]["error"] < check.LAYER


def test_the_python_call_checks_too(saved: Path, tmp_path: Path) -> None:
    model = zoo.load(saved, device="cpu")
    path = model.export(tmp_path / "cpu", length=8, cache=40, target="cpu", windows=2)
    told = json.loads((path / "model.json").read_text())
    assert told["check"]["windows"] == 2
    assert told["check"]["token"]["positions"] == 2 * 40  # after each token of 40
    bare = model.export(tmp_path / "bare", length=8, cache=40, windows=0)
    assert len(model.export_report(bare)) == len(model.export_report(path)) - 5
    assert "check" not in json.loads((bare / "model.json").read_text())
    assert all(seconds > 0 for seconds in timed(path, repeats=1))


def test_the_check_sees_a_wrong_layer(saved: Path, exported: Path) -> None:
    model = zoo.load(saved, device="cpu")
    right = check.checked(model, exported, 1)
    assert not check.verdict(right).startswith("WARNING")
    model.module.model.layers[1].mlp.down_proj.weight.data.mul_(2)
    wrong = check.checked(model, exported, 1)
    assert wrong["layers"]["layer"] == 1
    assert check.verdict(wrong).startswith("WARNING: a layer")
    assert not [*exported.glob("every*")]  # the check leaves nothing behind


def test_the_verdict_has_three_outcomes() -> None:
    part = {"perplexity": 20.0, "simulation": 20.0, "error": 0.001, "positions": 1000.0}
    same, other = part | {"agreement": 0.995}, part | {"agreement": 0.9}
    layers = {"layer": 0.0, "error": 0.0}

    def verdict(mine: dict[str, float], noise: dict[str, float]) -> str:
        return check.verdict({"prompt": mine, "token": mine, "noise": noise, "layers": layers})

    assert "equals the simulation" in verdict(same, same)
    assert "as near as the simulation is to itself" in verdict(other, other)
    assert verdict(other, same).startswith("WARNING")
    assert verdict(same | {"perplexity": 20.1}, same).startswith("WARNING")


# --- without torch --------------------------------------------------------------------------------


def generate(folder: Path, bare: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """The example, in an interpreter where torch, transformers and zoo cannot be imported."""
    for name in ("torch", "zoo", "zoo_mobilequant", "transformers", "onnx"):
        (bare / f"{name}.py").write_text("raise SystemExit(f'{__name__} was imported')")
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLE, folder, *args],
        env={**os.environ, "PYTHONPATH": str(bare)},
        capture_output=True,
        text=True,
    )


def test_the_example_says_what_the_simulation_says(
    saved: Path, exported: Path, tmp_path: Path
) -> None:
    model = zoo.load(saved, device="cpu")
    row = torch.tensor([model.tokenizer("a word")["input_ids"]])
    made = model.module.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=40, do_sample=False
    )
    done = generate(exported, tmp_path, "a word")
    assert done.returncode == 0, done.stderr
    wanted = model.tokenizer.backend_tokenizer.decode(made[0].tolist())
    assert done.stdout.removesuffix("\n") == wanted


def test_the_example_stops_where_the_cache_ends(exported: Path, tmp_path: Path) -> None:
    told = json.loads((exported / "model.json").read_text())
    short = tmp_path / "short"
    short.mkdir()
    for file in exported.iterdir():
        (short / file.name).symlink_to(file)
    (short / "model.json").unlink()
    (short / "model.json").write_text(json.dumps(told | {"cache": 9, "end": []}))
    done = generate(short, tmp_path, "a word")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.removesuffix("\n")) == 2 * 9 - 1  # a token is a letter, spaces between


def test_the_example_says_what_it_cannot_take(exported: Path, tmp_path: Path) -> None:
    for prompts, why in (
        (["x" * 21], "The prompt has 21 tokens; this export takes 1 to 20."),
        ([""], "The prompt has 0 tokens"),
        (["a", "b"], "2 prompts; this export takes 1 at a time."),
    ):
        done = generate(exported, tmp_path, *prompts)
        assert done.returncode == 1
        assert why in done.stderr


def test_the_example_runs_exports_of_its_version(exported: Path, tmp_path: Path) -> None:
    told = json.loads((exported / "model.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.json").write_text(json.dumps(told | {"format": 2}))
    done = generate(tmp_path / "other", tmp_path, "a word")
    assert done.returncode == 1
    assert "has format 2; this program runs 1. Export again." in done.stderr


def test_the_example_is_short_and_on_the_page() -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(lines) <= 40  # 30 of code, imports and docstring aside
    assert "examples/onnx_generate.py" in (EXAMPLE.parent.parent / "README.md").read_text()


# --- bad input ------------------------------------------------------------------------------------


def test_a_session_says_what_it_cannot_take(exported: Path) -> None:
    session = Session(exported)
    with pytest.raises(InputError, match=r"21 tokens; .* takes 1 to 20"):
        session.prefill([3] * 21)
    with pytest.raises(InputError, match="0 tokens"):
        session.prefill([])
    with pytest.raises(InputError, match=r"shape \(2, 3\): .* one sequence at a time"):
        session.prefill([[3, 4, 5], [3, 4, 5]])  # type: ignore[list-item]
    session.prefill([3] * 20)
    session.position = 64
    with pytest.raises(InputError, match="full: it holds 64 tokens"):
        session.decode(3)


def test_a_session_runs_exports_of_its_version(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model\.json: pass what zoo export wrote"):
        Session(tmp_path)
    told = json.loads((exported / "model.json").read_text())
    assert told["format"] == FORMAT
    (tmp_path / "model.json").write_text(json.dumps(told | {"format": 2}))
    with pytest.raises(InputError, match=r"has format 2; this plugin runs 1\. Export again"):
        Session(tmp_path)


@pytest.mark.parametrize("name", ["weights.data", "decode.onnx", "tokenizer.json"])
def test_a_session_refuses_files_that_were_cut(name: str, exported: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Session(tmp_path)
    whole = (exported / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-1] or b"0")  # a network this small has no weights apart
    with pytest.raises(InputError, match=rf"{name} is not what was exported: .* cut off"):
        Session(tmp_path)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"length": 65}, "length=65: expected a whole number from 1 to 64"),
        ({"length": 30, "cache": 20}, "length=30: expected a whole number from 1 to 20"),
        ({"cache": 65}, "cache=65: expected a whole number from 2 to 64"),
        ({"length": True}, "length=True"),
        ({"windows": -1}, "windows=-1"),
        ({"target": "tpu"}, "target='tpu': expected one of npu, cpu"),
        ({"format": "onnx"}, "exported as onnx-qdq, not as onnx"),
    ],
)
def test_options_are_checked(
    options: dict[str, Any], why: str, saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=why):
        zoo.load(saved, device="cpu").export(tmp_path / "out", **options)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"prefix_tokens": 1}, "prefix_tokens=1"),
        ({"weights": "paper"}, "symmetric ones alone"),
        ({"table": False}, "table=False leaves"),
    ],
)
def test_recipes_that_need_floats_are_refused(
    recipe: dict[str, Any], why: str, tmp_path: Path
) -> None:
    model = quantized(**recipe)
    with pytest.raises(OptionError, match=why):
        model.export(tmp_path / "out")
    with pytest.raises(NotReadyError, match="without a tokenizer"):
        quantized().export(tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_nothing_is_replaced_or_left_half_written(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    for force in ([], ["--force"]):
        done = run("export", saved, "--format", "onnx-qdq", "-o", taken, *force)
        assert isinstance(done.exception, OutputError)
        assert re.search("already exists|it is not replaced", str(done.exception))
    assert [file.name for file in taken.iterdir()] == ["mine.txt"]
    model = zoo.load(saved, device="cpu")
    with pytest.raises(OutputError, match="already exists"):
        model.export(taken)

    def broken(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "checked", broken)
    with pytest.raises(KeyboardInterrupt):
        model.export(tmp_path / "new")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_an_unknown_option_names_those_there_are(saved: Path, tmp_path: Path) -> None:
    done = run("export", saved, "--format", "onnx-qdq", "-o", tmp_path / "out", "-O", "lenght=3")
    assert "did you mean 'length'" in str(done.exception)
    done = run("export", saved, "-o", tmp_path / "out")
    assert "--format onnx-qdq" in str(done.exception)
