"""mobilequant as users meet it: the contract, saved folders, commands, bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from zoo_mobilequant import recipe
from zoo_mobilequant.evaluate import accuracy, perplexity, read_choices
from zoo_mobilequant.model import MobileQuantized

import zoo
from tests.plugins.tiny_lms import LMS, tiny_lm, tokens
from zoo.errors import DeviceError, InputError, NotReadyError, OptionError, UsageError, WeightsError
from zoo.testing import QuantizerSuite
from zoo.testing.loopback import LoopbackHub


@pytest.fixture
def quantizer() -> Any:
    return zoo.load("mobilequant", device="cpu")


def logits(model: Any, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens() if ids is None else ids).logits
    return found


@pytest.mark.slow
class TestContract(QuantizerSuite):
    """With three steps of learning, so that it takes seconds."""

    name = "mobilequant"

    @pytest.fixture(autouse=True)
    def few_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recipe, "RECIPES", {**recipe.RECIPES, "mobilequant": {"steps": 3}})


# --- saved folders --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LMS)
def test_a_saved_folder_is_the_same_model(kind: str, quantizer: Any, tmp_path: Path) -> None:
    """Bit for bit; weights of linear layers are codes, two in a byte, those of embedding and head
    one.
    """
    made = quantizer.quantize(tiny_lm(kind), tokens(8), steps=1, learn="ranges", scheme="w4a8")
    before = logits(made)
    folder = made.save_pretrained(tmp_path / "saved")
    again = zoo.load(folder, device="cpu")
    assert isinstance(again, MobileQuantized)
    assert torch.equal(logits(again), before)
    assert again.report() == made.report()
    assert again.recipe == made.recipe
    for name, tensor in made.state().items():
        path = name.removesuffix(".weight")
        if path in made.grids:
            two = path.endswith("_proj")
            assert tensor.dtype == (torch.uint8 if two else torch.int8), name
            assert tensor.numel() * (1 + two) == _weight(made, path).numel()
        else:
            assert tensor.dtype == torch.float32, name


@pytest.mark.parametrize("weights", ["row", "paper"])
@pytest.mark.parametrize("scheme", recipe.SCHEMES)
def test_every_weight_format_comes_back(
    scheme: str, weights: str, quantizer: Any, tmp_path: Path
) -> None:
    made = quantizer.quantize(
        tiny_lm(), tokens(8), scheme=scheme, weights=weights, steps=0, prefix_tokens=1
    )
    again = zoo.load(made.save_pretrained(tmp_path / "saved"), device="cpu")
    assert torch.equal(logits(again), logits(made))
    for path, grid in again.grids.items():
        weight = again.module.get_submodule(path).weight
        codes = grid.codes(weight)
        assert codes.min() >= grid.low
        assert codes.max() <= grid.high
        assert len(codes.unique()) <= 2**grid.bits


def test_sites_of_16_bits_come_back(quantizer: Any, tmp_path: Path) -> None:
    made = quantizer.quantize(tiny_lm(), tokens(8), steps=0, fallback=3, budget=0.0)
    wide = made.report()["wide"]
    assert len(wide) == 3
    again = zoo.load(made.save_pretrained(tmp_path / "saved"), device="cpu")
    assert {name for name, site in again.sites.items() if site.bits == 16} >= {*wide}
    assert torch.equal(logits(again), logits(made))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_transformers_reads_the_folder(scheme: str, quantizer: Any, tmp_path: Path) -> None:
    """With this plugin's module imported: the same simulation, bit for bit, tied weights tied; and
    such a network is refused where an original is asked for.
    """
    import zoo_mobilequant.pretrained  # noqa: F401

    made = quantizer.quantize(tiny_lm("llama tied"), tokens(8), scheme=scheme, steps=0)
    folder = made.save_pretrained(tmp_path / "saved")
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    assert torch.equal(logits(plain), logits(made))
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert "lm_head.weight" not in made.state()
    found = plain.generate(tokens(1, 6), max_new_tokens=4, do_sample=False)
    assert torch.equal(found, made.generate(tokens(1, 6), max_new_tokens=4, do_sample=False))
    for again in (plain, folder):
        with pytest.raises(InputError, match="quantized already"):
            quantizer.quantize(again, tokens(8))


def test_transformers_refuses_other_formats(quantizer: Any, tmp_path: Path) -> None:
    import zoo_mobilequant.pretrained  # noqa: F401

    made = quantizer.quantize(tiny_lm(), tokens(8), recipe="rtn")
    made.config = {**made.config, "format": 1}
    folder = made.save_pretrained(tmp_path / "saved")
    with pytest.raises(WeightsError, match="has format 1; this plugin reads 2"):
        transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["llama tied", "gemma2", "stablelm"])
def test_generation(kind: str, quantizer: Any, tmp_path: Path) -> None:
    """Greedy, with the cache, is the argmax of the whole sequence each time."""
    made = quantizer.quantize(tiny_lm(kind), tokens(8), steps=0)
    ids = tokens(1, 6)
    found = made.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    for at in range(6, 11):
        wanted = logits(made, found[:, :at])[0, -1]
        wanted[2] = -float("inf")  # min_new_tokens forbids the end
        top = wanted.topk(2).values
        assert found[0, at] == wanted.argmax() or float(top[0] - top[1]) < 0.02


@pytest.mark.parametrize("kind", ["llama tied", "llama GQA"])
def test_embedding_and_head_are_one_table_or_two(kind: str, quantizer: Any, tmp_path: Path) -> None:
    """Rows of 8-bit codes, each with its step; what the head reads has a grid. Without, floats."""
    made = quantizer.quantize(tiny_lm(kind), tokens(8), steps=0)
    tables = {path: made.grids[path] for path in made.grids if not path.endswith("_proj")}
    assert [*tables] == ["model.embed_tokens", "lm_head"][: 2 - ("tied" in kind)]
    for path, grid in tables.items():
        weight = _weight(made, path)
        assert torch.equal(grid(weight), weight)
        assert grid.step.shape == (64, 1)
    states, site = [], made.sites["head"]
    hook = made.module.lm_head.register_forward_pre_hook(lambda head, args: states.append(args[0]))
    made(tokens())
    hook.remove()
    assert torch.equal(site.grid(states[0]), states[0])
    floats = quantizer.quantize(tiny_lm(kind), tokens(8), steps=0, table=False)
    assert "head" not in floats.sites
    assert torch.equal(floats.module.lm_head.weight, tiny_lm(kind).lm_head.weight)
    again = zoo.load(floats.save_pretrained(tmp_path / "saved"), device="cpu")
    assert torch.equal(logits(again), logits(floats))
    assert made.report()["bytes_after"] < floats.report()["bytes_after"]


def test_grids_move_with_the_network(quantizer: Any, tmp_path: Path) -> None:
    """So that codes can be had on any device. (``meta`` stands for one that is not the CPU.)"""
    made = quantizer.quantize(tiny_lm("llama tied"), tokens(8), recipe="rtn")
    folder = made.save_pretrained(tmp_path / "saved")
    for model in (made.to("meta"), zoo.load(folder, device="cpu").to("meta")):
        for path, grid in model.grids.items():
            assert grid.codes(_weight(model, path)).is_meta


def saved_with(made: Any, folder: Path, **changes: Tensor | None) -> Path:
    """A saved folder with tensors changed, or left out where None."""
    kept = {k: v for k, v in {**made.state(), **changes}.items() if v is not None}
    made.state = lambda: kept
    return Path(made.save_pretrained(folder))


UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.layers.1.sites.h.step": None}, r"lacks model\.layers\.1\.sites\.h\.step"),
        ({f"{UP}.weight": None, f"{UP}.step": None}, rf"lacks {UP}\.step, {UP}\.weight"),
        (
            {f"{UP}.weight": torch.zeros(48, 32)},
            rf"{UP}\.weight in .* is float32.* int8 \(48, 32\)",
        ),
        (
            {f"{UP}.weight": torch.zeros(48, 16, dtype=torch.int8)},
            r"is int8 \(48, 16\); its configuration asks for int8 \(48, 32\)",
        ),
        ({f"{UP}.step": torch.zeros(48, 1)}, rf"the step of {UP} is no positive number"),
        ({f"{UP}.step": torch.full((48, 1), float("nan"))}, "no positive number"),
    ],
)
def test_a_damaged_folder_is_refused(
    changes: dict[str, Any], message: str, quantizer: Any, tmp_path: Path
) -> None:
    made = quantizer.quantize(tiny_lm(), tokens(8), recipe="rtn")
    folder = saved_with(made, tmp_path / "saved", **changes)
    with pytest.raises(WeightsError, match=message):
        zoo.load(folder, device="cpu")


def test_a_truncated_folder_is_refused(quantizer: Any, tmp_path: Path) -> None:
    """By zoo, which knows the file's size, and by transformers."""
    import zoo_mobilequant.pretrained  # noqa: F401

    made = quantizer.quantize(tiny_lm(), tokens(8), recipe="rtn")
    folder = made.save_pretrained(tmp_path / "saved")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        zoo.load(folder, device="cpu")
    with pytest.raises(SafetensorError, match="file not fully covered"):
        transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_other_formats_and_dtypes_are_refused(quantizer: Any, tmp_path: Path) -> None:
    made = quantizer.quantize(tiny_lm(), tokens(8), steps=0)
    folder = made.save_pretrained(tmp_path / "saved")
    with pytest.raises(DeviceError, match="float32"):
        zoo.load(folder, device="cpu", dtype="float16")
    made.config = {**made.config, "format": 9}
    folder = made.save_pretrained(tmp_path / "later")
    with pytest.raises(
        WeightsError, match=r"has format 9; this plugin reads 2. Quantize the original again"
    ):
        zoo.load(folder, device="cpu")


# --- through the loopback Hub ---------------------------------------------------------------------


@pytest.mark.slow
def test_by_hub_id(tmp_path: Path) -> None:
    """Commit and licence are recorded."""
    kinds = ["llama GQA", "stablelm", "gemma3"]
    with LoopbackHub() as hub:
        commits = {}
        for i, kind in enumerate(kinds):
            folder = tmp_path / str(i)
            tiny_lm(kind).save_pretrained(folder)
            (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", "utf-8")
            files = {p.name: p.read_bytes() for p in folder.iterdir()}
            commits[f"org/lm-{i}"] = hub.add(f"org/lm-{i}", files)
        code = f"""
import torch, zoo
quantizer = zoo.load("mobilequant", device="cpu")
ids = torch.randint(3, 64, (4, 16), generator=torch.Generator().manual_seed(0))
for name, commit in {commits!r}.items():
    made = quantizer.quantize(name, ids, steps=1)
    source = made.source_model
    assert (source["id"], source["revision"], source["license"]) == (name, commit, "apache-2.0")
    again = zoo.load(made.save_pretrained({str(tmp_path)!r} + "/" + commit), device="cpu")
    assert torch.equal(again(ids).logits, made(ids).logits)
    print(source["id"])
"""
        done = hub.run(code, home=tmp_path / "home", timeout=300)
    assert done.stdout.split() == [*commits], done.stderr


# --- bad input ------------------------------------------------------------------------------------


def test_what_is_no_language_model(quantizer: Any, tmp_path: Path) -> None:
    for thing in (torch.nn.Linear(2, 2), None, 7):
        with pytest.raises(InputError, match="causal language model"):
            quantizer.quantize(thing, tokens())
    (tmp_path / "empty.json").write_text("{}", "utf-8")
    with pytest.raises(InputError, match=r"no config\.json"):
        quantizer.quantize(tmp_path, tokens())
    tiny_lm().save_pretrained(tmp_path / "lm")
    config = json.loads((tmp_path / "lm" / "config.json").read_text("utf-8"))
    (tmp_path / "lm" / "config.json").write_text(
        json.dumps({**config, "num_hidden_layers": 4}), "utf-8"
    )
    with pytest.raises(WeightsError, match=r"lacks weights.*layers\.3\."):
        quantizer.quantize(tmp_path / "lm", tokens())
    headless = transformers.LlamaModel(tiny_lm().config)
    with pytest.raises(InputError, match="LlamaModel is no causal language model"):
        quantizer.quantize(headless, tokens())


def altered(folder: Path, **changes: Any) -> Path:
    """A saved tiny model whose ``config.json`` says something else."""
    tiny_lm().save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")
    return folder


@pytest.mark.parametrize("verb", ["quantize", "estimate"])
def test_folders_that_are_refused_by_their_configuration(
    verb: str, quantizer: Any, tmp_path: Path
) -> None:
    """Before weights are read, and without the packages of other quantizers."""
    act = getattr(quantizer, verb)
    gptq = altered(tmp_path / "gptq", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match="quantized already"):
        act(gptq, tokens(8))
    other = altered(tmp_path / "other", model_type="neverheard")
    with pytest.raises(InputError, match=r"neverheard is not supported.*Supported: llama"):
        act(other, tokens(8))
    (other / "config.json").write_text("{", "utf-8")
    with pytest.raises(InputError, match=r"config\.json is no configuration"):
        act(other, tokens(8))


@pytest.mark.parametrize("verb", ["quantize", "estimate"])
def test_code_in_a_folder_is_neither_run_nor_offered(
    verb: str, quantizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask on the terminal whether to run it."""
    classes = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    folder = altered(tmp_path / "lm", model_type="neverheard", auto_map=classes)
    (folder / "mine.py").write_text("raise SystemExit('it ran')", "utf-8")
    asked: list[str] = []

    def yes(prompt: str = "") -> str:
        asked.append(prompt)
        return "y"

    monkeypatch.setattr("builtins.input", yes)
    with pytest.raises(InputError, match="neverheard is not supported"):
        getattr(quantizer, verb)(folder, tokens(8))
    assert asked == []


def test_damaged_weights_and_tokenizers_are_named(
    folders: tuple[Path, Path], quantizer: Any, tmp_path: Path
) -> None:
    original, _ = folders
    (original / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(InputError, match=r"the tokenizer in .* cannot be read"):
        quantizer.quantize(original, tokens(8))
    shapes = altered(tmp_path / "shapes", num_attention_heads=8)
    with pytest.raises(WeightsError, match=r"shapes .* model\.layers\.0\.self_attn\.o_proj"):
        quantizer.quantize(shapes, tokens(8))
    file = shapes / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"the weights in .* are damaged"):
        quantizer.quantize(shapes, tokens(8))


def test_what_was_quantized_is_not_quantized_again(quantizer: Any, tmp_path: Path) -> None:
    made = quantizer.quantize(tiny_lm(), tokens(8), steps=0)
    folder = made.save_pretrained(tmp_path / "small")
    for again in (made.module, folder):
        with pytest.raises(InputError, match="quantized already"):
            quantizer.quantize(again, tokens(8))
        with pytest.raises(InputError, match="quantized already"):
            quantizer.estimate(again, tokens(8))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "model.norm", "lm_head"])
def test_a_weight_that_is_not_finite_is_named(name: str, quantizer: Any) -> None:
    network = tiny_lm()
    network.get_submodule(name).weight.data.view(-1)[5] = float("nan")
    with pytest.raises(InputError, match=f"{name}.weight is not finite"):
        quantizer.quantize(network, tokens(8))


def test_what_is_no_tokenizer_is_refused(quantizer: Any) -> None:
    with pytest.raises(InputError, match="tokenizer='letters'"):
        quantizer.quantize(tiny_lm(), tokens(8), tokenizer="letters")


def test_wrong_settings_are_refused_before_work(quantizer: Any) -> None:
    with pytest.raises(OptionError, match="recipe='gptq': expected one of mobilequant, rtn"):
        quantizer.quantize("./no/such/folder", recipe="gptq")
    for wrong in ("x", 5):
        with pytest.raises(OptionError, match=f"pairs={wrong!r}"):
            quantizer.quantize("./no/such/folder", pairs=wrong)


def test_a_checkpoint_of_other_work_is_refused(quantizer: Any, tmp_path: Path) -> None:
    keywords: dict[str, Any] = {"steps": 2, "checkpoint": tmp_path / "work"}
    first = quantizer.quantize(tiny_lm(), tokens(8), **keywords)
    again = quantizer.quantize(tiny_lm(), tokens(8), **keywords)
    assert torch.equal(logits(first), logits(again))
    for change in ({"seed": 3}, {"scheme": "w4a8"}):
        with pytest.raises(UsageError, match="holds work with another"):
            quantizer.quantize(tiny_lm(), tokens(8), **{**keywords, **change})
    for rows in (tokens(8, seed=5), tokens(8).flip(0)):
        with pytest.raises(UsageError, match="another calibration"):
            quantizer.quantize(tiny_lm(), rows, **keywords)
    with pytest.raises(UsageError, match="another weights"):
        quantizer.quantize(tiny_lm(seed=1), tokens(8), **keywords)


def test_the_report(quantizer: Any) -> None:
    """Divergence and agreement with the original, remarks, a line for each linear layer."""
    report = quantizer.quantize(tiny_lm(), tokens(4), scheme="w4a8", steps=0).report()
    assert 0 < report["kl"] < 1
    assert 0 < report["agreement"] <= 1
    assert len(report["layers"]) == 3 * 7
    line = report["layers"]["model.layers.1.mlp.down_proj"]
    assert (line["weight_bits"], line["activation_bits"]) == (4, 8)
    assert 0.02 < line["error"] < 0.3
    assert "Calibrated on 4 windows only" in report["notes"][0]


def test_estimate_reads_no_weights(quantizer: Any, tmp_path: Path) -> None:
    tiny_lm().save_pretrained(tmp_path / "lm")
    (tmp_path / "lm" / "model.safetensors").unlink()
    cost = quantizer.estimate(tmp_path / "lm", tokens(8), steps=10)
    strengths = 4 * 4 + 8  # four on four windows, with ranges from eight
    assert cost.evaluations == 8 + 2 * 8 + 3 * 4 + strengths + 30
    assert cost.flops > 0
    parameters = sum(p.numel() for p in tiny_lm().parameters())
    assert cost.memory >= 4 * parameters, "saving needs the 16-bit weights twice"
    assert any("3 vo, 3 ud, 3 qk, 3 n1, 3 n2" in note for note in cost.notes)
    with pytest.raises(OptionError, match="recipe"):
        quantizer.estimate(tmp_path / "lm", recipe="x")


# --- commands and evaluation ----------------------------------------------------------------------


class Letters:
    """A tokenizer: one token for each letter."""

    bos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(c) % 60 for c in text]}


def test_perplexity_is_that_of_transformers_loss() -> None:
    network = tiny_lm()
    found = perplexity(network, Letters(), "some words. " * 3)
    ids = torch.tensor([[1, *Letters()("some words. " * 3)["input_ids"]]])
    with torch.no_grad():
        loss = network(ids, labels=ids).loss
    assert found["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)
    assert found["tokens"] == 36


def test_choices_go_by_likelihood_for_each_byte() -> None:
    """A model that always expects "a" prefers answers of that letter, however long they are."""

    class Always:
        def __call__(self, ids: Tensor) -> Any:
            scores = torch.zeros(*ids.shape, 64)
            scores[..., Letters()("a")["input_ids"][0]] = 5.0
            return type("Output", (), {"logits": scores})()

    from zoo_mobilequant.evaluate import Choice

    items = [Choice("q", ["bb", "aaaaaaaa", "b"], 1), Choice("q", ["aaa", "bcb"], 1)]
    assert accuracy(Always(), Letters(), items) == [True, False]


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        '{"question": "a", "choices": "bc", "answer": 0}',
        '{"question": "a", "choices": {"b": 1, "c": 2}, "answer": 0}',
        '{"question": "a", "choices": ["b", "c"], "answer": 0.5}',
        '{"question": "a", "choices": ["b", "c"], "answer": true}',
        '{"question": "a", "choices": ["b", "c"]}',
        '{"question": "a", "choices": ["b"], "answer": 0}',
        '{"question": "a", "choices": ["b", "c"], "answer": 2}',
        '{"question": "a", "choices": ["b", "c"], "answer": "d"}',
        '{"question": 1, "choices": ["b", "c"], "answer": 0}',
        "[1, 2]",
    ],
)
def test_a_wrong_line_of_choices_is_named(line: str, tmp_path: Path) -> None:
    good = '{"question": "a", "choices": ["b", "c"], "answer": "c"}'
    (tmp_path / "items.jsonl").write_text(f"{good}\n\n{line}\n", "utf-8")
    with pytest.raises(InputError, match=r"items\.jsonl, line 3"):
        read_choices(tmp_path / "items.jsonl")
    (tmp_path / "items.jsonl").write_text(good, "utf-8")
    assert read_choices(tmp_path / "items.jsonl")[0].answer == 1


def test_choices_may_have_any_character(tmp_path: Path) -> None:
    """Some that JSON need not escape end a line for ``str.splitlines``."""
    line = '{"question": "a\u2028b", "choices": ["c\x85", "d"], "answer": 0}'
    (tmp_path / "items.jsonl").write_text(line + "\n", "utf-8")
    assert read_choices(tmp_path / "items.jsonl")[0].question == "a\u2028b"


@pytest.fixture
def folders(quantizer: Any, tmp_path: Path) -> tuple[Path, Path]:
    """(original, quantized), with a tokenizer."""
    tokenizer = QuantizerSuite.tokenizer.__wrapped__(Once())  # type: ignore[attr-defined]
    tiny_lm().save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    made = quantizer.quantize(tmp_path / "lm", tokens(8), steps=0)
    return tmp_path / "lm", made.save_pretrained(tmp_path / "small")


class Once:
    """What a suite's fixture asks of the suite."""

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        return make()


def run(*arguments: str, capsys: Any) -> tuple[int, str]:
    """``zoo *arguments`` in this process: exit code and what it printed."""
    from zoo.cli import main

    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out + captured.err


@pytest.mark.slow
def test_quiet_is_quiet(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """No bar of ours, and none of transformers, which loads and saves here."""
    original, _ = folders
    words = [sys.executable, "-m", "zoo", "quantize", "mobilequant", str(original), "--quiet"]
    words += ["-o", str(tmp_path / "q"), "-O", "recipe=rtn"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr == ""
    assert "KL divergence" in done.stdout


LONG = pytest.mark.filterwarnings("ignore:.*activations were calibrated on 24")


def test_the_original_of_a_relative_folder_is_found(
    folders: tuple[Path, Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the method's page: ``zoo quantize mobilequant ./my-llm``, then ``eval``."""
    monkeypatch.chdir(tmp_path)
    arguments = ("quantize", "mobilequant", "./lm", "-o", "q", "--quiet", "-O", "recipe=rtn")
    assert run(*arguments, capsys=capsys)[0] == 0
    Path("text.txt").write_text("a small text to be measured. " * 20, "utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # windows are no longer than the network's positions
        code, out = run("run", "./q", "eval", "text.txt", "--json", capsys=capsys)
    assert code == 0, out
    assert [*json.loads(out)["models"]] == ["original", "quantized"], out
    config = folders[0] / "config.json"
    config.write_text(config.read_text("utf-8") + "\n", "utf-8")
    code, out = run("run", "./q", "eval", "text.txt", capsys=capsys)
    assert code == 0
    assert "note: The original is not available for comparison: lm has changed" in out


@LONG
def test_commands_of_a_saved_folder(
    folders: tuple[Path, Path], tmp_path: Path, capsys: Any
) -> None:
    _, small = folders
    code, out = run("run", str(small), "generate", "the end", "--tokens", "4", capsys=capsys)
    assert (code, out[:13]) == (0, "t h e   e n d"), out
    code, out = run("verify", str(small), capsys=capsys)
    assert (code, "files match their hashes" in out) == (0, True), out
    code, out = run("run", str(small), "generate", "the end", "--chat", capsys=capsys)
    assert code == 1
    assert "has no chat template. Leave out --chat." in out
    (tmp_path / "text.txt").write_text("a small text to be measured. " * 20, "utf-8")
    code, out = run("run", str(small), "eval", str(tmp_path / "text.txt"), "--json", capsys=capsys)
    assert code == 0, out
    models = json.loads(out)["models"]
    assert models["quantized"]["perplexity"] == pytest.approx(
        models["original"]["perplexity"], rel=0.2
    )
    items = '{"question": "is it", "choices": ["so", "not so"], "answer": 0}\n' * 3
    (tmp_path / "items.jsonl").write_text(items, "utf-8")
    code, out = run(
        "run", str(small), "eval", str(tmp_path / "items.jsonl"), "--integers", capsys=capsys
    )
    assert code == 0, out
    assert "accuracy" in out
    rows = dict(re.findall(r"^(original|quantized|integers) +(\S+)", out, re.MULTILINE))
    assert len(rows) == 3
    assert len({*rows.values()}) == 1


@LONG
def test_eval_without_the_original(folders: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    original, small = folders
    original.rename(tmp_path / "elsewhere")
    (tmp_path / "text.txt").write_text("a small text to be measured. " * 20, "utf-8")
    code, out = run("run", str(small), "eval", str(tmp_path / "text.txt"), capsys=capsys)
    assert code == 0
    assert "note: The original is not available for comparison" in out
    code, out = run(
        "run", str(small), "eval", str(tmp_path / "text.txt"),
        "--original", str(tmp_path / "elsewhere"), capsys=capsys,
    )  # fmt: skip
    assert code == 0
    assert "note: The original" not in out


def test_commands_of_the_quantizer_say_what_to_do(quantizer: Any) -> None:
    from zoo_mobilequant import cli

    for command in (cli.generate, cli.eval_):
        with pytest.raises(NotReadyError, match="zoo quantize mobilequant LLM"):
            command(quantizer, ["x"])


def test_text_unlike_the_calibration_is_remarked_on(quantizer: Any) -> None:
    from zoo_mobilequant.cli import _clipped

    made = quantizer.quantize(tiny_lm(), tokens(8), steps=0)
    text = "words " * 50
    site = made.sites["1.h"]
    assert all("1.h" not in note for note in _clipped(made, Letters(), text))
    site.set(type(site.grid)(site.step / 50, site.zero, 0, 255))
    note = _clipped(made, Letters(), text)[0]
    assert "1 activations" not in note
    assert "most of all 1.h" in note


def test_zoo_quantize(folders: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    original, _ = folders
    out_folder = tmp_path / "out"
    arguments = ("quantize", "mobilequant", str(original), "-o", str(out_folder), "-O", "steps=2")
    code, out = run(*arguments, "--dry-run", capsys=capsys)
    assert code == 0, out
    assert "3 vo, 3 ud, 3 qk, 3 n1, 3 n2" in out
    assert "of memory beyond the weights" in out
    assert not out_folder.exists()
    code, out = run(*arguments, "--quiet", capsys=capsys)
    assert code == 0, out
    assert "21 layers quantized" in out
    assert zoo.load(out_folder, device="cpu").recipe.steps == 2


def test_the_call_is_that_of_the_original(quantizer: Any) -> None:
    """Tuples, embeddings and a cache too; with a cache, what came before counts."""
    made, ids = quantizer.quantize(tiny_lm(), tokens(8, 16), steps=0), tokens(1, 12)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        whole = made(ids).logits
        assert torch.equal(made(input_ids=ids, return_dict=False)[0], whole)
        embedded = made.module.get_input_embeddings()(ids)
        assert torch.equal(made(inputs_embeds=embedded).logits, whole)
        cache = made(ids, use_cache=True).past_key_values
        with pytest.raises(UserWarning, match="17 tokens"):
            made(tokens(1, 5), past_key_values=cache)


# --- warnings and advice --------------------------------------------------------------------------


def test_longer_than_calibrated_is_said_once(quantizer: Any, tmp_path: Path) -> None:
    made = quantizer.quantize(tiny_lm(), tokens(8, 16), steps=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(tokens(1, 16))
        with pytest.raises(UserWarning, match="20 tokens; activations were calibrated on 16"):
            made(tokens(1, 20))
        made(tokens(1, 20))
        again = zoo.load(made.save_pretrained(tmp_path / "q"), device="cpu")
        with pytest.raises(UserWarning, match="18 tokens"):
            again.generate(tokens(1, 8), max_new_tokens=10, min_new_tokens=10)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError()])
def test_too_little_memory_gives_advice(
    quantizer: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr("zoo_mobilequant.model.fit", fail)
    with pytest.raises(DeviceError, match=r"more memory than there is.*layerwise.*shorter"):
        quantizer.quantize(tiny_lm(), tokens(8))


def test_what_people_want_to_know_first(quantizer: Any) -> None:
    """Quality on held-back windows, size as integers; a sample where there is a tokenizer."""
    made = quantizer.quantize(tiny_lm(), tokens(8), steps=0)
    report = made.report()
    assert "sample" not in report
    assert len(report["summary"]) == 2
    assert f"{report['agreement']:.1%}" in report["summary"][0]
    assert report["summary"][0].startswith("held-back calibration text")
    few = quantizer.quantize(tiny_lm(), tokens(3), steps=0).report()["summary"]
    assert few[0].startswith("calibration text, none held back")
    saved = {name: t.numel() * t.element_size() for name, t in made.state().items()}
    assert report["bytes_after"] == sum(saved.values())
    for path in made.grids:  # a byte for each weight of 8 bits
        assert saved[f"{path}.weight"] == _weight(made, path).numel()


def _weight(made: Any, path: str) -> Tensor:
    weight: Tensor = made.module.get_submodule(path).weight
    return weight


# --- the bundled language model -------------------------------------------------------------------


def test_tiny_lm_is_quantized_offline(quantizer: Any, tmp_path: Path) -> None:
    """By its name, with its own calibration text: held-out recipes. It has learned something, and
    8 bits change little.
    """
    made = quantizer.quantize("tiny-lm", recipe="smoothquant-all-grid")
    report = made.report()
    assert made.source_model["license"] == "CC-BY-SA-3.0"
    assert report["calibration"]["windows"] > 50
    assert report["perplexity_original"] < 60 < tiny_lm_vocabulary(made)
    assert report["perplexity"] < 1.02 * report["perplexity_original"]
    assert report["bytes_after"] < 0.7 * report["bytes_before"]
    assert report["sample"]["original"]
    assert any("prompt" in line for line in report["summary"])
    again = zoo.load(made.save_pretrained(tmp_path / "q"), device="cpu")
    ids = again.tokenizer("Preheat the oven", return_tensors="pt").input_ids
    assert torch.equal(again(ids).logits, made(ids).logits)


def tiny_lm_vocabulary(made: Any) -> int:
    """What the perplexity of a model that knows nothing would be."""
    return int(made.module.config.vocab_size)


def test_tiny_lm_is_made_again_from_the_same_texts(tmp_path: Path) -> None:
    """The recipe, on a few small texts: resumable, and what it saves can be quantized."""
    from zoo_mobilequant import tiny_lm as recipe_

    data = tmp_path / "data"
    for folder in ("wikitext-2", "procedures/recipes-unlicense"):
        (data / folder).mkdir(parents=True)
    article = " \n = Bread = \n \n Bread , as <unk> know , is baked . It is good @-@ natured . \n"
    (data / "wikitext-2" / "valid.txt").write_text(article * 40, "utf-8")
    for i in range(recipe_.HELD_OUT + 5):
        text = f"# Soup {i}\n\nBoil {i} eggs, and eat them.\n" * 4
        (data / "procedures/recipes-unlicense" / f"{i:03}.md").write_text(text, "utf-8")
    found = recipe_.texts(data)
    assert "It is good-natured." in found[1]
    assert "<unk>" not in "".join(found)
    assert len([text for text in found if "Soup" in text]) == 5
    with pytest.raises(SystemExit) as stop:
        recipe_.main(["--data", str(data), "-o", str(tmp_path / "run"), "--steps", "2"])
    assert not stop.value.code
    made = zoo.load("mobilequant", device="cpu").quantize(tmp_path / "run" / "model", steps=0)
    assert made.report()["calibration"]["windows"] >= 2
    with pytest.raises(InputError, match=r"lacks wikitext-2/valid\.txt"):
        recipe_.texts(tmp_path)
