"""The training loop on a tiny recipe: random draws, averages, checkpoints, errors, resuming."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.errors import DeviceError, InputError, OptionError
from zoo.hookspecs import BuildRequest, TrainRequest
from zoo.interfaces import Model
from zoo.training import Draw, Run, Stage, constant, draw_curve, history, loop, whole_curve
from zoo.training.processes import Processes, precision_of
from zoo.weights import load_tensors

ENTRY = replace(zoo.info("edge-sd-sr"), config={}, options={})
STAGES = {"first": Stage(4, 0.1, 4, warm_up=2), "second": Stage(4, 0.1, 4, warm_up=1)}


class Saved(Model):
    """Whatever the run trained, as something that can be saved."""

    def __init__(self, request: TrainRequest, module: nn.Module) -> None:
        super().__init__(BuildRequest(request.entry, None))
        self.module = module


@dataclass
class Recipe:
    """A regression in two stages; the second learns from a copy of what the first one made."""

    request: TrainRequest
    stages: dict[str, Stage]
    on_batch: Callable[[Run[Stage]], None] = lambda run: None

    def __post_init__(self) -> None:
        torch.manual_seed(self.request.seed)
        self.net = nn.Linear(3, 2)
        self.run = Run(self.request, {"net": self.net}, self.stages, facts={"data": "abc"})

    def batch(self, draw: Draw) -> tuple[Tensor, Tensor]:
        self.on_batch(self.run)
        x = torch.from_numpy(draw.rng.standard_normal((draw.count, 3))).float()
        noise = torch.randn(draw.count, 2, generator=draw.generator)
        return x, x[:, :2] + 0.1 * noise

    def first(self) -> None:
        self.run.minimise(
            {"net": self.net}, self.batch, lambda b: (self.net(b[0]) - b[1]).square().mean()
        )

    def second(self) -> None:
        def make() -> nn.Module:
            copy = nn.Linear(3, 2)
            copy.load_state_dict(self.net.state_dict())
            return copy

        teacher = self.run.keep("teacher", make)
        self.run.minimise(
            {"net": (self.net, constant)},
            self.batch,
            lambda b: (self.net(b[0]) - teacher(b[0]) - b[1]).square().mean(),
        )
        self.run.drop("teacher")

    def fit(self) -> dict[str, Tensor]:
        folder = self.run.fit(
            {"first": self.first, "second": self.second}, lambda: Saved(self.request, self.net)
        )
        return load_tensors(folder / "model.safetensors")


def recipe(out: Path, on_batch: Any = None, stages: Any = None, **changes: Any) -> Recipe:
    request = TrainRequest(ENTRY, out, **changes)
    return Recipe(request, stages or STAGES, on_batch or (lambda run: None))


def ctrl_c(stage: str, step: int) -> Callable[[Run[Stage]], None]:
    """Presses Ctrl-C once, in this step."""
    pressed: list[int] = []

    def press(run: Run[Stage]) -> None:
        if (run.stage, run.step) == (stage, step) and not pressed:
            pressed.append(1)
            signal.raise_signal(signal.SIGINT)

    return press


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after each step."""
    monkeypatch.setattr(loop, "EVERY", 1)
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)


# --- the same seed, the same weights; interrupted or not ------------------------------------------


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    once, again = recipe(tmp_path / "a").fit(), recipe(tmp_path / "b").fit()
    assert equal(once, again)
    assert not equal(once, recipe(tmp_path / "c", seed=1).fit())


@pytest.mark.parametrize("stage", ["first", "second"])
@pytest.mark.parametrize("step", range(4))
def test_resumed_equals_uninterrupted(tmp_path: Path, often: None, stage: str, step: int) -> None:
    """Killed at any step, in the middle of a stage or as it begins, with and without a teacher."""
    whole = recipe(tmp_path / "whole").fit()

    def die(run: Run[Stage]) -> None:
        if (run.stage, run.step) == (stage, step):
            raise MemoryError("as good as kill -9")

    if (stage, step) == ("first", 0):  # there is no checkpoint to continue from
        with pytest.raises(MemoryError):
            recipe(tmp_path / "cut", die).fit()
        with pytest.raises(InputError, match="no checkpoint in"):
            recipe(tmp_path / "cut", resume=True).fit()
        return
    with pytest.raises(MemoryError):
        recipe(tmp_path / "cut", die).fit()
    resumed = recipe(tmp_path / "cut", resume=True)
    assert equal(whole, resumed.fit())
    assert resumed.run.done == ["first", "second"]
    assert not resumed.run.keeps("teacher")


def test_ctrl_c_keeps_a_whole_step_though_no_checkpoint_is_due(tmp_path: Path) -> None:
    whole = recipe(tmp_path / "whole").fit()
    with pytest.raises(KeyboardInterrupt, match=r"Step 2 of 4 of stage 'second' is saved in .*cut"):
        recipe(tmp_path / "cut", ctrl_c("second", 1)).fit()
    assert json.loads((tmp_path / "cut" / "train.json").read_text())["step"] == 2
    assert equal(whole, recipe(tmp_path / "cut", resume=True).fit())


def test_dropout_is_drawn_again_as_it_was(tmp_path: Path) -> None:
    """A network's own random numbers come from torch's global generator."""

    class Dropping(Recipe):
        def first(self) -> None:
            drop = nn.Dropout(0.5).train()
            self.run.minimise(
                {"net": self.net}, self.batch, lambda b: (self.net(drop(b[0])) - b[1]).abs().mean()
            )

    def made(out: str, on_batch: Any = lambda run: None, **changes: Any) -> dict[str, Tensor]:
        return Dropping(TrainRequest(ENTRY, tmp_path / out, **changes), STAGES, on_batch).fit()

    whole = made("whole")
    with pytest.raises(KeyboardInterrupt):
        made("cut", ctrl_c("first", 1))
    torch.rand(5)
    assert equal(whole, made("cut", resume=True))


def test_training_leaves_the_callers_chance_alone(tmp_path: Path) -> None:
    made = recipe(tmp_path, stage="first")
    state = torch.get_rng_state()
    made.fit()
    assert torch.equal(torch.get_rng_state(), state)


def test_outside_the_main_thread_it_trains_too(tmp_path: Path) -> None:
    made: list[dict[str, Tensor]] = []
    thread = threading.Thread(target=lambda: made.append(recipe(tmp_path / "a").fit()))
    thread.start()
    thread.join()
    assert equal(made[0], recipe(tmp_path / "b").fit())


def test_a_finished_run_resumes_to_the_same(tmp_path: Path) -> None:
    whole = recipe(tmp_path).fit()
    assert equal(whole, recipe(tmp_path, resume=True).fit())


# --- what may differ on resume, and what may not --------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, r"with seed=0, not 1: resume"),
        ({"options": {"gain": 2.0}}, r"with -O gain=1.0, not 2.0: resume"),
        ({"steps": 9}, r"middle of stage 'first' with steps=4, not 9: resume with the same"),
    ],
)
def test_what_differs_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        recipe(tmp_path, ctrl_c("first", 1), options={"gain": 1.0}).fit()
    with pytest.raises(OptionError, match=words):
        recipe(tmp_path, resume=True, **{"options": {"gain": 1.0}, **changes}).fit()


def test_a_stage_that_has_run_keeps_its_numbers(tmp_path: Path) -> None:
    """The report has the steps that were run, not those requested later."""
    recipe(tmp_path, stage="first", steps=2).fit()
    with pytest.raises(
        OptionError, match=r"'first' .* has run with steps=2, not 3: choose the remaining"
    ):
        recipe(tmp_path, resume=True, steps=3).fit()
    recipe(tmp_path, resume=True).fit()
    found = json.loads((tmp_path / "train.json").read_text())["stages"]
    assert {name: stage["steps"] for name, stage in found.items()} == {"first": 2, "second": 4}


def test_facts_of_the_recipe_must_agree(tmp_path: Path) -> None:
    recipe(tmp_path).fit()
    other = recipe(tmp_path, resume=True)
    other.run.facts["data"] = "xyz"
    with pytest.raises(OptionError, match="with data='abc', not 'xyz'"):
        other.fit()


def test_how_a_step_is_computed_may_change(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        recipe(tmp_path, ctrl_c("first", 1), options={"micro": 2}).fit()
    recipe(tmp_path, resume=True, options={"micro": 1}).fit()


def test_stages_one_by_one(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no stage 'third'\. Stages: first, second"):
        recipe(tmp_path, stage="third")
    with pytest.raises(OptionError, match="'second' continues from earlier ones: give --init"):
        recipe(tmp_path, stage="second").fit()
    first = recipe(tmp_path / "steps", stage="first")
    first.fit()
    with pytest.raises(OptionError, match="holds a checkpoint: add --resume"):
        recipe(tmp_path / "steps", stage="second").fit()
    made = recipe(tmp_path / "steps", stage="second", resume=True).fit()
    assert equal(made, recipe(tmp_path / "whole").fit())


def test_a_stage_that_the_options_leave_out_is_said_to_be(tmp_path: Path) -> None:
    request = TrainRequest(ENTRY, tmp_path, stage="first")
    with pytest.raises(OptionError, match=r"'first' with these options\. Stages: second"):
        Run(request, {"net": nn.Linear(1, 1)}, STAGES, skip=["first"])


# --- options and numbers --------------------------------------------------------------------------


def test_options_change_the_numbers_of_every_stage(tmp_path: Path) -> None:
    options = {"batch": 8, "lr": 0.5, "gain": 3}
    run = recipe(tmp_path, options=options, steps=7).run
    assert {(s.batch, s.lr, s.steps) for s in run.stages.values()} == {(8, 0.5, 7)}
    assert recipe(tmp_path, options={"batch": 0, "lr": 0.0}).run.stages == STAGES


def test_micro_batches_must_fill_the_batch(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"micro-batches of 3 .* 1 process: try -O batch=3"):
        recipe(tmp_path, options={"micro": 3})


def constant_step(tmp_path: Path, stage: Stage, options: dict[str, Any], x: Tensor) -> nn.Linear:
    """A stage on data without chance: item i of a batch is row i of x."""
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    run = Run(TrainRequest(ENTRY, tmp_path, options=options), {"net": net}, {"s": stage})
    run.begin("s")
    rows = iter(x.split(options.get("micro", len(x))) * stage.steps)
    run.minimise(
        {"net": (net, constant)}, lambda draw: next(rows), lambda b: net(b).square().mean()
    )
    return net


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Means of parts: equal up to the order of float sums, 1e-6 of values near 1."""
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [-2.0, 1.0]])
    stage = Stage(3, 0.01, 4, ema=0, decay=0, warm_up=1)
    whole = constant_step(tmp_path, stage, {}, x)
    parts = constant_step(tmp_path, stage, {"micro": 1}, x)
    torch.testing.assert_close(whole.weight, parts.weight, rtol=0, atol=1e-6)


def test_first_step_of_adam_is_the_rate_and_warm_up_divides_it(tmp_path: Path) -> None:
    """Adam's first step is lr * sign(gradient), whatever the gradient (up to its epsilon)."""
    x = torch.tensor([[1.0, 2.0]])
    for warm_up, moved in ((1, 0.01), (4, 0.0025)):
        stage = Stage(1, 0.01, 1, ema=0, decay=0, warm_up=warm_up)
        net = constant_step(tmp_path, stage, {}, x)
        torch.testing.assert_close(net.weight, torch.full((1, 2), 1 - moved), rtol=0, atol=1e-6)


def test_the_average_is_what_a_stage_ends_with(tmp_path: Path) -> None:
    """After one step a young average keeps (1 + 1) / (10 + 1) of the start."""
    x = torch.tensor([[1.0, 2.0]])
    net = constant_step(tmp_path, Stage(1, 0.11, 1, decay=0, warm_up=1), {}, x)
    start, stepped = 1.0, 1.0 - 0.11
    expected = 2 / 11 * start + 9 / 11 * stepped
    torch.testing.assert_close(net.weight, torch.full((1, 2), expected), rtol=0, atol=1e-6)
    assert not net.weight.requires_grad


def test_named_draws_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    run, other = recipe(tmp_path).run, recipe(tmp_path, seed=1).run
    a = run.draw("spread", 3).rng.integers(1 << 30, size=4)
    run.draw("else", 3).rng.integers(1 << 30)
    assert (a == run.draw("spread", 3).rng.integers(1 << 30, size=4)).all()
    assert (a != other.draw("spread", 3).rng.integers(1 << 30, size=4)).any()


# --- what a long run meets ------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_before_the_checkpoint(tmp_path: Path) -> None:
    made = recipe(tmp_path, options={"precision": "float32", "lr": 0.1})
    made.batch = lambda draw: (torch.full((4, 3), torch.nan), torch.zeros(4, 2))  # type: ignore[method-assign]
    with pytest.raises(
        InputError, match=r"stage 'first' is nan at step 4.*precision=float32.*\(-O lr\)"
    ):
        made.fit()
    assert not (tmp_path / loop.CHECKPOINT).exists()


def test_ctrl_c_keeps_no_loss_that_is_no_number(tmp_path: Path) -> None:
    """The loss is checked only sometimes; a checkpoint with such weights would be useless."""
    made = recipe(tmp_path, ctrl_c("first", 1))
    batch = made.batch
    made.batch = lambda draw: tuple(torch.nan * x for x in batch(draw))  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(InputError, match="is nan at step 2"):
        made.fit()
    assert not (tmp_path / loop.CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"micro": 0, "checkpointing": False}, "-O micro=2 and -O checkpointing=true"),
        ({"batch": 1, "micro": 1}, "a smaller -O batch"),
        ({}, "a smaller batch"),
    ],
)
def test_too_little_memory_says_what_needs_less(
    tmp_path: Path, options: dict[str, Any], hint: str
) -> None:
    def full(run: Run[Stage]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match=rf"items at once\. Try {hint}\."):
        recipe(tmp_path, full, options=options).fit()


def test_auto_precision_is_what_accelerate_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert precision_of("auto", cpu) == "float16"
    assert precision_of("float32", cpu) == "float32"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert precision_of("auto", torch.device("cuda")) == "bfloat16"


def test_splitting_the_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(DeviceError, match="not with FSDP"):
        Processes("cpu")


# --- several processes ----------------------------------------------------------------------------

WORKER = """
import atexit, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
def threads_are_gone():  # registered first, so called last
    names = [thread.joinpath("comm").read_text() for thread in Path("/proc/self/task").iterdir()]
    if any("gloo" in name or "store" in name for name in names):
        print("left at exit:", *names, file=sys.stderr, flush=True)
        os._exit(9)
atexit.register(threads_are_gone)
from tests.host.test_training import ctrl_c, recipe
out, resume, stop = Path(sys.argv[1]), sys.argv[2] == "resume", int(sys.argv[3])
press = ctrl_c("second", stop)
try:
    options = {{"micro": 1}}
    recipe(out, press if os.environ["RANK"] == "0" else None, resume=resume, options=options).fit()
except KeyboardInterrupt:
    pass
"""


def launch(count: int, out: Path, resume: bool = False, stop: int = -1) -> None:
    """As ``accelerate launch`` starts processes: by environment variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).parents[2]
    command = [sys.executable, "-X", "faulthandler", "-c", WORKER.format(tests=str(root))]
    command += [str(out), "resume" if resume else "fresh", str(stop)]
    processes = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                "ACCELERATE_USE_CPU": "true",
                "LOCAL_RANK": str(rank),
                "RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(said)


@pytest.mark.slow
def test_two_processes_train_as_one_and_either_goes_on_from_the_other(tmp_path: Path) -> None:
    """Sums in a different order: within 1e-6 of weights near 1. Ctrl-C in one process ends both."""
    one = recipe(tmp_path / "1", options={"micro": 1}).fit()
    launch(2, tmp_path / "2")
    launch(2, tmp_path / "2-1", stop=1)
    report = json.loads((tmp_path / "2-1" / "train.json").read_text())
    assert (report["stage"], report["step"], report["processes"]) == ("second", 2, 2)
    mixed = recipe(tmp_path / "2-1", resume=True, options={"micro": 1}).fit()
    with pytest.raises(KeyboardInterrupt):
        recipe(tmp_path / "1-2", ctrl_c("first", 2), options={"micro": 1}).fit()
    launch(2, tmp_path / "1-2", resume=True)
    for name in ("2", "1-2"):
        made = load_tensors(tmp_path / name / "model" / "model.safetensors")
        for key, value in one.items():
            torch.testing.assert_close(made[key], value, rtol=0, atol=1e-6)
    for key, value in one.items():
        torch.testing.assert_close(mixed[key], value, rtol=0, atol=1e-6)


# --- reports --------------------------------------------------------------------------------------


def test_the_report_tells_how_the_weights_were_made(tmp_path: Path) -> None:
    recipe(tmp_path, seed=3).fit()
    found = json.loads((tmp_path / "train.json").read_text())
    assert (found["seed"], found["done"], found["data"]) == (3, ["first", "second"], "abc")
    assert [stage for stage, _, _ in found["curve"]] == ["first", "second"]
    assert found["stages"]["first"]["steps"] == 4
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_history_and_curve_tell_of_every_run(tmp_path: Path) -> None:
    runs = [{"curve": [["fit", 50, float(i)]]} for i in range(3)]
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "train.json").write_text(json.dumps({**runs[2], "before": runs[:2]}))
    assert history(model) == runs  # for a folder, the report is next to it
    assert history(None) == []
    labels = ["fit", "fit, run 2", "fit, run 3"]
    curve = whole_curve(tmp_path / "train.json")
    assert curve == [(label, 50, float(i)) for i, label in enumerate(labels)]
    draw_curve(curve, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 0
