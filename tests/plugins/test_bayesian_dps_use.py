"""bayesian-dps in use: `zoo select` on files of each kind, transformers models, the Trainer."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo_bayesian_dps import baselines, bench, networks, tasks
from zoo_bayesian_dps.sampler import Recipe, WeightSampler

import zoo
from zoo import bench as records
from zoo.cli import cli
from zoo.errors import InputError
from zoo.experiment import decide_again


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def sentences(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """About fruit or about metal; every fourth has the wrong label."""
    dice = np.random.default_rng(seed)
    words = (("apple", "pear", "plum", "fig"), ("iron", "zinc", "lead", "gold"))
    rows = []
    for i in range(n):
        label = i % 2
        text = " ".join(dice.choice(words[label], 5))
        wrong = seed == 0 and i % 4 == 0
        rows.append({"text": text, "label": "metal" if label ^ wrong else "fruit",
                     "source": "web" if wrong else "books"})  # fmt: skip
    return rows


def run(*args: Any) -> Any:
    from click.testing import CliRunner

    return CliRunner().invoke(cli, [str(a) for a in args], catch_exceptions=True)


def test_select_on_jsonl_writes_weights_a_selection_and_a_report(tmp_path: Path) -> None:
    train = lines(tmp_path / "train.jsonl", sentences(80))
    target = lines(tmp_path / "target.jsonl", sentences(20, 1))
    done = run(
        "select", "bayesian-dps", "--train", train, "--target", target, "-o", tmp_path / "out",
        "--fraction", 0.25, "--epochs", 20, "-O", "keep=0.75", "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "20 of 80 examples selected" in done.output
    out = tmp_path / "out"
    weights = [json.loads(line) for line in (out / "weights.jsonl").read_text().splitlines()]
    chosen = [json.loads(line) for line in (out / "selection.jsonl").read_text().splitlines()]
    assert [row["index"] for row in weights] == list(range(80))
    assert [row["weight"] for row in chosen] == sorted((r["weight"] for r in chosen), reverse=True)
    assert all(row["text"] and row["label"] in ("fruit", "metal") for row in chosen)
    loaded = zoo.load(out)
    assert loaded.select(fraction=0.25).tolist() == [row["index"] for row in chosen]
    assert loaded.explain(1)["label"] in ("fruit", "metal")
    page = (out / "report.html").read_text("utf-8")
    for needed in ("Histogram", "By label", "By source", "books", "Lightest", "Heaviest", "apple"):
        assert needed in page, needed
    groups = {g["name"]: g for g in loaded.summary["groups"]["sources"]}
    assert groups["books"]["mean_weight"] > groups["web"]["mean_weight"]
    again = run("select", "bayesian-dps", "--train", train, "--target", target, "-o", out)
    assert again.exit_code != 0
    assert "already exists" in str(again.exception)


def test_select_without_a_target_and_a_number(tmp_path: Path) -> None:
    """It says what took the target's place, and keeps what the estimate says."""
    train = lines(tmp_path / "train.jsonl", sentences(80))
    done = run("select", "bayesian-dps", "--train", train, "-o", tmp_path / "out", "--quiet")
    assert done.exit_code == 0, done.output
    assert "no trusted set" in done.output
    loaded = zoo.load(tmp_path / "out")
    kept = (tmp_path / "out" / "selection.jsonl").read_text().splitlines()
    assert len(kept) == int((loaded.state()["wrong"] < 0.5).sum())
    file = tmp_path / "out" / "issues.jsonl"
    suspects = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert len(suspects) == 80 - len(kept) > 10
    assert {row["row"] for row in suspects}.isdisjoint(json.loads(row)["index"] for row in kept)
    assert all(row["label"] != row["suggested"] for row in suspects)
    assert all(len(row["text"].split()) == 5 for row in suspects)


def test_select_on_parquet_pictures_shows_them(tmp_path: Path) -> None:
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    def table(n: int, seed: int) -> Any:
        dice = np.random.default_rng(seed)
        pictures, labels = [], []
        for i in range(n):
            pixels = dice.integers(0, 90, (16, 16, 3), "uint8")
            pixels[:, :, i % 2] += 150
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            pictures.append(file.getvalue())
            labels.append(i % 2)
        return pyarrow.table({"png": pictures, "label": labels})

    parquet.write_table(table(48, 0), tmp_path / "train.parquet")
    parquet.write_table(table(16, 1), tmp_path / "target.parquet")
    done = run(
        "select", "bayesian-dps", "--train", tmp_path / "train.parquet", "--json", "--k", 5,
        "--target", tmp_path / "target.parquet", "-o", tmp_path / "out", "--epochs", 2,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert (found["n"], found["selected"]) == (48, 5)
    assert "data:image/png" in (tmp_path / "out" / "report.html").read_text("utf-8")
    done = run(
        "select", "bayesian-dps", "--train", tmp_path / "train.parquet", "--k", 50, "--quiet",
        "--target", tmp_path / "target.parquet", "-o", tmp_path / "kept", "--epochs", 1,
    )  # fmt: skip
    assert "--k 50: expected 0 to 48" in str(done.exception)  # before the fit
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("bayesian-dps", "--fraction", "2"), "0 to 1"),
        (("bayesian-dps", "--fraction", "0.5", "--k", "3"), "either"),
        (("lfa",), "does not select"),
        (("bayesian-dps", "-O", "kep=1"), "did you mean 'keep'"),
    ],
)
def test_wrong_commands_are_refused(tmp_path: Path, args: Any, said: str) -> None:
    rest = ("--train", tmp_path / "t", "--target", tmp_path / "v", "-o", tmp_path / "o")
    done = run("select", *args, *rest)
    assert done.exit_code != 0
    assert said in str(done.exception) + done.output


def test_language_rows_train_the_bundled_byte_model(tmp_path: Path) -> None:
    """Answers that the target teaches nothing of lose weight; copies of one such row do not, which
    the page says: the network memorises them."""
    dice = np.random.default_rng(0)
    sums = [{"prompt": f"{i}+1=", "response": str(i + 1)} for i in range(20)]
    target = [{"prompt": f"{i}+1=", "response": str(i + 1)} for i in range(30, 36)]
    junk = [{"prompt": "".join(dice.choice([*"abcxyz"], 4)),
             "response": "".join(dice.choice([*"klmnopq"], 6))} for _ in range(10)]  # fmt: skip
    copies = [{"prompt": "x", "response": "qqqqzzzz"}] * 10
    found = []
    for others in (junk, copies):
        selector = zoo.load("bayesian-dps", device="cpu", keep=0.6)
        selector.fit(lines(tmp_path / "train.jsonl", sums + others), target, epochs=40)
        assert selector.weights.shape == (30,)
        found.append(selector.weights[:20].mean() - selector.weights[20:].mean())
    assert found[0] > 0.4
    assert found[1] < 0
    inputs = tasks.language_collate(tasks.bytes_of)([("0+1=\n", "1")])
    assert (inputs["labels"][0, :6] == tasks.IGNORED).all()  # prompts are not learned


# --- transformers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    from tests.plugins.tiny_lms import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.mark.parametrize("weighting", ["exact", "network"])
def test_a_causal_language_model_as_the_base(llama: Path, weighting: str, tmp_path: Path) -> None:
    dtype = "bfloat16" if weighting == "network" else None
    rows = [{"prompt": "say a:", "response": "aaaa"}, {"prompt": "say b:", "response": "x!?"}] * 8
    selector = zoo.load("bayesian-dps", device="cpu", base=llama, weighting=weighting, dtype=dtype)
    selector.fit(rows, rows[:2], epochs=2, lr=1e-3)
    assert all(p.dtype == torch.float32 for p in selector.network.parameters())
    assert np.isfinite(selector.weights).all()
    folder = selector.save_pretrained(tmp_path / "out")
    assert (folder / "network" / "model.safetensors").is_file()
    again = zoo.load(folder)  # without the base, which may be gone
    assert np.array_equal(again.weights, selector.weights)


def test_the_trainer_learns_weights_and_goes_on(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
    from zoo_bayesian_dps.integration import WeightedTrainer

    tokenizer = AutoTokenizer.from_pretrained(llama)

    def rows(texts: list[str]) -> list[dict[str, Any]]:
        made = []
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            made.append({"input_ids": ids, "labels": list(ids), "text": text})
        return made

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(r["input_ids"]) for r in rows)

        def padded(key: str, fill: int) -> torch.Tensor:
            return torch.tensor([r[key] + [fill] * (longest - len(r[key])) for r in rows])

        return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}

    good, bad = ["abab" * 3] * 12, ["q7!x" * 3, "Zk#0p", "?m,W8", "~~]["]
    train, target = rows(good + bad), rows(["abab" * 3] * 4)

    def trainer(steps: int, target: Any = target, **options: Any) -> Any:
        arguments = TrainingArguments(
            str(tmp_path / "run"), max_steps=steps, per_device_train_batch_size=4,
            gradient_accumulation_steps=2, learning_rate=5e-3, save_steps=10, logging_steps=10,
            report_to=[], use_cpu=True, disable_tqdm=True, seed=1, lr_scheduler_type="constant",
        )  # fmt: skip
        return WeightedTrainer(
            model=AutoModelForCausalLM.from_pretrained(llama), args=arguments, train_dataset=train,
            target_dataset=target, data_collator=collate,
            **{"recipe": Recipe(keep=0.75, temperature=0, lr_weights=1.0), **options},
        )  # fmt: skip

    whole = trainer(20)
    whole.train()
    weights = whole.sampler.mean
    assert whole.sampler.step_number == 20
    assert weights[:12].mean() > weights[12:].mean() + 0.1
    assert any("mean_weight" in entry for entry in whole.state.log_history)
    again = trainer(20)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-10"))
    assert again.sampler.step_number == 20
    torch.testing.assert_close(again.sampler.mean, weights, atol=1e-4, rtol=0)
    assert np.isfinite(whole.evaluate(rows(good[:2]))["eval_loss"])
    width = whole.model.config.hidden_size  # batches without a mask
    wide = trainer(2, recipe=Recipe(weighting="network", temperature=0), features=width)
    wide.train()
    assert wide.sampler.mean.isfinite().all()
    nothing = [{**row, "labels": [-100] * len(row["labels"])} for row in target]
    with pytest.raises(InputError, match=r"loss on the target set is NaN.*label that is not -100"):
        trainer(2, nothing).train()


# --- what the benchmark rests on ------------------------------------------------------------------


def toy(seed: int = 0) -> baselines.Task:
    """Two classes, 20 % wrong labels, an MLP."""
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(260, 6, generator=dice)
    y = (x[:, 0] > 0).long()
    wrong = torch.rand(160, generator=dice) < 0.2
    noisy = torch.where(wrong, 1 - y[:160], y[:160])
    return baselines.Task(
        x[:160], noisy, x[160:190], y[160:190], x[190:], y[190:], ~wrong,
        lambda: networks.MLP(6, 2, 16), classes=2,
    )  # fmt: skip


@pytest.mark.parametrize("name", baselines.methods())
def test_every_method_learns_and_repeats(name: str) -> None:
    pytest.importorskip("sklearn")
    if name == bench.CLEANLAB:
        pytest.importorskip("cleanlab")
    task = toy()
    found, again = (baselines.methods()[name](task, 1) for _ in range(2))
    if found.predicted is not None and again.predicted is not None:
        assert (found.predicted == task.test_y).double().mean() > 0.6
        assert torch.equal(found.predicted, again.predicted)
    if found.scores is not None and again.scores is not None:
        assert found.scores.isfinite().all()
        assert torch.equal(found.scores, again.scores)
        if name not in ("train against target", bench.BILEVEL):  # the one looks at x alone
            assert baselines.auroc(found.scores, task.good) > 65


def test_knn_shapley_is_the_mean_marginal_over_all_orders() -> None:
    """Of 5 rows and 2 of the target, k = 2: against all 120 orders."""
    from itertools import permutations

    dice = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=dice), torch.tensor([0, 1, 0, 1, 1])
    target, wanted = torch.randn(2, 3, generator=dice), torch.tensor([1, 0])
    task = baselines.Task(
        x, y, target, wanted, target, wanted, torch.ones(5).bool(), lambda: networks.MLP(3, 2), 2
    )
    flat = (x - x.mean(0)) / (x.std(0) + 1e-6)
    near = torch.cdist((target - x.mean(0)) / (x.std(0) + 1e-6), flat)

    def value(rows: tuple[int, ...]) -> float:
        total = 0.0
        for j in range(2):
            best = sorted(rows, key=lambda i: float(near[j, i]))[:2]
            total += sum(float(y[i] == wanted[j]) for i in best) / 2
        return total / 2

    expected = torch.zeros(5, dtype=torch.float64)
    for order in permutations(range(5)):
        for place, i in enumerate(order):
            expected[i] += value(order[: place + 1]) - value(order[:place])
    found = baselines.knn_shapley(task, 0, k=2).scores
    torch.testing.assert_close(found, expected / 120)


def test_the_unrolled_gradient_is_that_of_finite_differences() -> None:
    """d target loss after one step / d logit, in float64."""
    task = toy()
    task.x, task.target_x = task.x.double(), task.target_x.double()
    net = baselines.start(task, 0).double()
    made = baselines.Unrolled(task.loss, net, len(task.x), eta=0.05)
    made.a = torch.zeros(len(task.x), dtype=torch.float64)
    ids, params = torch.arange(5), {k: p.detach().clone() for k, p in net.named_parameters()}
    call = torch.func.functional_call

    def after(a: torch.Tensor) -> float:
        moved = {k: p.clone().requires_grad_() for k, p in params.items()}
        output = call(net, moved, (task.x[ids],))
        losses = torch.nn.functional.cross_entropy(output, task.y[ids], reduction="none")
        grads = torch.autograd.grad((a.sigmoid() * losses).mean(), list(moved.values()))
        stepped = {k: p - 0.05 * g for (k, p), g in zip(moved.items(), grads, strict=True)}
        output = call(net, stepped, (task.target_x[:8],))
        return float(torch.nn.functional.cross_entropy(output, task.target_y[:8]).detach())

    found = made.gradient(ids, (task.x[ids], task.y[ids]), (task.target_x[:8], task.target_y[:8]))
    for i in range(5):
        up, down = (torch.zeros(5, dtype=torch.float64) for _ in range(2))
        up[i], down[i] = 1e-4, -1e-4
        expected = (after(up) - after(down)) / 2e-4
        assert float(found[i]) == pytest.approx(expected, rel=1e-4, abs=1e-10)


def test_auroc() -> None:
    good = torch.tensor([True, True, False, False])
    assert baselines.auroc(torch.tensor([0.9, 0.8, 0.2, 0.1]), good) == 100
    assert baselines.auroc(torch.tensor([0.5, 0.5, 0.5, 0.5]), good) == 50
    assert baselines.auroc(torch.tensor([0.9, 0.1, 0.5, 0.0]), good) == 75


def test_the_benchmark_writes_a_valid_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting, row, claim and the picture, with noise in place of what methods find."""

    def pictures(path: Path, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        dice = torch.Generator().manual_seed(most)
        return torch.rand(most, 3, 8, 8, generator=dice), torch.arange(most) % 10

    def chance(task: baselines.Task, seed: int) -> baselines.Run:
        dice = torch.Generator().manual_seed(seed)
        sampler = WeightSampler(len(task.x), classes=10)
        sampler.step(torch.arange(len(task.x)), 4 * torch.rand(len(task.x), generator=dice))
        predicted = torch.randint(10, (len(task.test_y),), generator=dice)
        return baselines.Run(sampler.mean, predicted, 1.0, sampler)

    names = baselines.methods()
    monkeypatch.setattr(bench, "read_cifar", pictures)
    monkeypatch.setattr(bench, "methods", lambda: dict.fromkeys(names, chance))
    entry = zoo.info("bayesian-dps")
    found = records.run(
        entry, command="zoo bench", out=tmp_path, data=tmp_path, quick=True, device="cpu"
    )
    assert (tmp_path / "weights.png").stat().st_size > 1000
    claims = {claim["id"]: claim for claim in found["claims"]}
    assert len(claims) == len(found["claims"])
    assert {"symmetric-cleanlab", "pairs-target-only", "clean", "irrelevant", "memory"} <= {*claims}
    assert claims["clean"]["holds"] is None  # one seed cannot tell
    assert claims["memory"]["holds"] is True  # counted, not timed
    assert [asdict(claim) for claim in decide_again(found)] == found["claims"]
    assert set(found["table"]) == {*names, bench.QUARTER, "uniform"}
    with pytest.raises(InputError, match="--data"):
        records.run(entry, command="zoo bench", out=tmp_path, device="cpu")


def test_features_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a timm network with random weights, as a file named after its architecture."""
    timm = pytest.importorskip("timm")
    from zoo_bayesian_dps import real

    from zoo.weights import save_tensors

    net = timm.create_model("test_vit", pretrained=False)
    save_tensors(tmp_path / "test_vit.safetensors", net.state_dict())

    def pictures(path: Path, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(most, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.ones(
            most
        )

    monkeypatch.setattr(real, "read_cifar", pictures)
    encoder = real.Encoder(tmp_path)
    made, _ = real.features(tmp_path, encoder, 3, tmp_path / "kept")
    monkeypatch.setattr(real.Encoder, "__call__", lambda self, x: 1 / 0)
    again, _ = real.features(tmp_path, encoder, 3, tmp_path / "kept")
    monkeypatch.undo()
    monkeypatch.setattr(real, "read_cifar", pictures)
    assert torch.equal(made, again)
    assert made.shape[0] == 3
    assert len(list((tmp_path / "kept").iterdir())) == 1
    inverted, _ = real.features(tmp_path, encoder, 3, tmp_path / "kept", "inverted")
    assert not torch.allclose(made, inverted)
    with pytest.raises(InputError, match="expected a safetensors file"):
        real.Encoder(tmp_path / "kept")


def test_the_step_costs_no_more_than_its_bound_allows_a_busy_machine() -> None:
    """Loosely: the benchmark has the numbers. Memory is counted, so exact."""
    x, y = torch.rand(128, 3, 32, 32), torch.arange(128) % 10
    task = baselines.Task(
        x[:64], y[:64], x[64:], y[64:], x, y, torch.ones(64).bool(), lambda: networks.ConvNet(10)
    )
    alone, ours = bench.stepper(task, None, 64), bench.stepper(task, Recipe(), 64)
    unrolled = bench.unrolled_stepper(task)
    assert baselines.kept_bytes(ours) <= 1.25 * baselines.kept_bytes(alone)
    assert baselines.kept_bytes(ours) <= baselines.kept_bytes(unrolled)


def test_a_hundred_thousand_examples_take_a_step_quickly() -> None:
    import time

    sampler = WeightSampler(100_000, Recipe(keep=0.5))
    ids = torch.arange(64)
    began = time.process_time()
    for _ in range(100):
        sampler.step(ids, torch.rand(64))
    assert time.process_time() - began < 5  # 1 ms a step on an idle core, with room
