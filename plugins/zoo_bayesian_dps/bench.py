"""The claims: on CIFAR-10 with label noise, with class imbalance and with foreign domains, and on
a mixture of texts with a character language model. ``--data``: a folder with ``cifar10/`` and
``wikitext-2/``. All test sets are apart from both the training and the target set; CPU-seconds are
of one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import InputError
from zoo.experiment import Bars, Book, Curves, Line, draw, one_thread, read_cifar, take_turns
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Metric, Results
from zoo.progress import track

from . import baselines
from .baselines import FreeLogits, MetaWeightNet, Method, Run, Task, retrained, sampled, start
from .joint import Joint
from .sampler import Recipe, WeightSampler
from .tasks import ConvNet

OURS = "bayesian-dps"
RETRAIN = f"{OURS}, select and retrain"
BUDGET = f"{OURS}, budget per group"
GROUP_RETRAIN = f"{BUDGET}, select and retrain"
CONTRAST = f"{OURS}, contrast"
CONTRAST_RETRAIN = f"{CONTRAST}, select and retrain"
PUBLISHED = f"{OURS}, temperature 1, no warm-up"
NORMALISED = f"{OURS}, normalised"
MIXING, LONGER, SMALL = "train + target", "train + target, twice the steps", "small loss"
BILEVEL, MWN = "one-step bi-level", "Meta-Weight-Net"
ORACLE = "useful examples only (oracle)"


def ours(budget: bool = False, **changes: Any) -> Method:
    """The method with these settings; ``budget``: one for each of the task's groups."""

    def run(task: Task, seed: int) -> Run:
        recipe = replace(Recipe(keep=task.keep, meta_weight=task.rho), **changes)
        groups, shares = (task.groups, task.shares) if budget else (None, None)
        return sampled(task, seed, recipe, groups=groups, shares=shares)

    return run


def again(budget: bool = False, share: float | None = None, **changes: Any) -> Method:
    """The method, then training on what it selected: the share it keeps, unless told."""

    def run(task: Task, seed: int) -> Run:
        recipe = replace(Recipe(keep=task.keep, meta_weight=task.rho), **changes)
        return retrained(recipe, share or task.keep, budget)(task, seed)

    return run


METHODS: Mapping[str, Method] = {
    "uniform": baselines.uniform,
    MIXING: baselines.mixing,
    LONGER: baselines.mixing_longer,
    "target only": baselines.target_only,
    "random subset": baselines.random_subset,
    "class weights": baselines.class_weights,
    SMALL: baselines.small_loss,
    BILEVEL: baselines.bilevel,
    MWN: baselines.meta_weight_net,
    OURS: ours(),
    NORMALISED: ours(normalise="total"),
    BUDGET: ours(budget=True, normalise="target"),
    CONTRAST: ours(partition="contrast", lr_weights=5.0, normalise="total"),
    PUBLISHED: ours(temperature=1.0, warm_up=0.0),
    RETRAIN: again(),
    GROUP_RETRAIN: again(budget=True, normalise="target"),
    CONTRAST_RETRAIN: again(partition="contrast", lr_weights=5.0, normalise="total"),
    ORACLE: baselines.oracle,
}


def bench(request: BenchRequest) -> Results:
    """Run every experiment; see the module's docstring."""
    if request.data is None:
        raise InputError("pass --data PATH: a folder with cifar10/ and wikitext-2/.")
    quick = request.quick
    seeds = [request.seed + i for i in range(1 if quick else 3)]
    book, shown = Book(_smaller), {}
    with one_thread():
        photographs = Photographs(request.data, 3000 if quick else 12000, 500 if quick else 2000)
        texts = Texts(request.data)
        plan = [(name, seed) for seed in seeds for name in EXPERIMENTS]
        total = sum(len(EXPERIMENTS[name][1]) for name, _ in plan) + 1
        with track(total, request.progress, "bench") as advance:
            for name, seed in plan:
                make, rows = EXPERIMENTS[name]
                task = make(photographs, texts, seed, quick)
                for row in rows:
                    run = METHODS[row](task, seed)
                    measure(book, row, name, task, run, seed)
                    if (name, row) == (NOISE, OURS):
                        assert run.weights is not None
                        shown = {"weights": run.weights, "good": task.good}
                    advance()
            cost(book, photographs, quick)
            advance()
    claim(book)
    picture(request.out / "weights.png", book, shown)
    data = [
        Data("CIFAR-10", "research use", "up to 4,000 training and 2,000 test images a setting"),
        Data("WikiText-2", "CC-BY-SA-3.0", "3,000 training lines, a quarter of them as they are"),
    ]
    return book.results(data=data, seeds=seeds, pictures=["weights.png"])


def _smaller(column: str) -> bool:
    """Is less better?"""
    return any(word in column for word in ("ratio", "bits", "bytes", "seconds"))


# --- settings -------------------------------------------------------------------------------------

NOISE, IMBALANCE, SUBSET, TEXT = "label noise", "imbalance", "foreign domains", "text mixture"


class Photographs:
    """CIFAR-10 as tensors."""

    def __init__(self, data: Path, train: int, test: int) -> None:
        self.x, self.y = read_cifar(data / "cifar10" / "train.parquet", train)
        self.test_x, self.test_y = read_cifar(data / "cifar10" / "test.parquet", test)

    def task(self, x: Tensor, y: Tensor, target: Tensor, good: Tensor, **more: Any) -> Task:
        """A task on these training images, with rows ``target`` as the trusted set."""
        shares = torch.bincount(self.y[target], minlength=10).double()
        return Task(
            x, y, self.x[target], self.y[target], self.test_x, self.test_y, good,
            lambda: ConvNet(10),
            lambda output, labels: functional.cross_entropy(output, labels, reduction="none"),
            lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=5e-4),
            augment, **{"groups": y, "shares": shares, **more},
        )  # fmt: skip

    def balanced(self, rows: Tensor, each: int) -> Tensor:
        """The first ``each`` of every class among these rows."""
        return torch.cat([rows[self.y[rows] == c][:each] for c in range(10)])


def augment(x: Tensor, dice: torch.Generator) -> Tensor:
    """Half of them mirrored, the batch shifted by up to 3 pixels."""
    turned = torch.rand(len(x), generator=dice) < 0.5
    x = torch.where(turned[:, None, None, None], x.flip(3), x)
    dx, dy = (int(v) for v in torch.randint(-3, 4, (2,), generator=dice))
    return torch.roll(x, (dx, dy), (2, 3))


def noise(photos: Photographs, texts: Texts, seed: int, quick: bool) -> Task:
    """40 % of the labels replaced by another, at random; 30 trusted images a class."""
    dice = torch.Generator().manual_seed(seed)
    order, n = torch.randperm(len(photos.x), generator=dice), 400 if quick else 2000
    rows, rest = order[:n], order[n:]
    y = photos.y[rows].clone()
    bad = torch.rand(n, generator=dice) < 0.4
    y[bad] = (y[bad] + torch.randint(1, 10, (int(bad.sum()),), generator=dice)) % 10
    target = photos.balanced(rest, 10 if quick else 30)
    return photos.task(photos.x[rows], y, target, ~bad, steps=60 if quick else 400)


def imbalance(photos: Photographs, texts: Texts, seed: int, quick: bool) -> Task:
    """Even classes have 500 images, odd ones 25; 10 trusted images a class, balanced test set."""
    dice = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(photos.x), generator=dice)
    sizes = (100, 8) if quick else (500, 25)
    by_class = [order[photos.y[order] == c] for c in range(10)]
    rows = torch.cat([by_class[c][: sizes[c % 2]] for c in range(10)])
    target = torch.cat([by_class[c][sizes[0] : sizes[0] + 10] for c in range(10)])
    y = photos.y[rows]
    return photos.task(photos.x[rows], y, target, y % 2 == 1, steps=60 if quick else 300, keep=0.8)


def subset(photos: Photographs, texts: Texts, seed: int, quick: bool) -> Task:
    """A quarter as it is; three domains turned or inverted, each with labels of its own."""
    dice = torch.Generator().manual_seed(seed)
    order, n = torch.randperm(len(photos.x), generator=dice), 150 if quick else 1000
    parts = [order[i * n : (i + 1) * n] for i in range(4)]
    changed: list[Callable[[Tensor], Tensor]] = [
        lambda x: x, lambda x: x.flip(2), lambda x: x.transpose(2, 3), lambda x: 1 - x,
    ]  # fmt: skip
    x = torch.cat([change(photos.x[p]) for change, p in zip(changed, parts, strict=True)])
    y = torch.cat([
        photos.y[p] if i == 0 else torch.randperm(10, generator=dice)[photos.y[p]]
        for i, p in enumerate(parts)
    ])  # fmt: skip
    source = torch.arange(4).repeat_interleave(n)
    target = photos.balanced(order[4 * n :], 10)
    return photos.task(
        x, y, target, source == 0, steps=60 if quick else 400, keep=0.3, groups=source, shares=None
    )


# --- text -----------------------------------------------------------------------------------------

SYMBOLS, LENGTH, CONTEXT = 96, 48, 6


class CharLM(nn.Module):
    """The next character from the last six: a causal convolution and an MLP, 30,000 parameters.

    Smooth, so that the bi-level baselines can differentiate it twice.
    """

    def __init__(self, width: int = 80) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, 16)
        self.window = nn.Conv1d(16, width, CONTEXT)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        """(B,T) characters -> (B,T,96) logits of the next."""
        seen = functional.pad(self.embed(x).transpose(1, 2), (CONTEXT - 1, 0))
        h = functional.gelu(self.window(seen)).transpose(1, 2)
        found: Tensor = self.head(h + functional.gelu(self.mix(h)))
        return found


def next_character(output: Tensor, y: Tensor) -> Tensor:
    """(B,) nats a character."""
    found = functional.cross_entropy(output.transpose(1, 2), y, reduction="none")
    return found.mean(1)


class Texts:
    """Lines of 48 characters of WikiText-2, apart for training, target and test."""

    def __init__(self, data: Path) -> None:
        self.train = self._lines(data / "wikitext-2" / "valid.txt")
        self.test = self._lines(data / "wikitext-2" / "test.txt")

    def _lines(self, path: Path) -> Tensor:
        if not path.is_file():
            raise InputError(f"--data: expected {path.name} in {path.parent.name}/.")
        text = " ".join(path.read_text("utf-8").replace("<unk>", "").split())
        codes = torch.tensor([min(max(ord(c) - 32, 0), SYMBOLS - 1) for c in text])
        return codes[: len(codes) // LENGTH * LENGTH].view(-1, LENGTH)


def mixture(photos: Photographs, texts: Texts, seed: int, quick: bool) -> Task:
    """A quarter is English; backwards, letters exchanged (ROT13), and sums are the rest."""
    dice = torch.Generator().manual_seed(seed)
    n = 150 if quick else 750
    order = torch.randperm(len(texts.train), generator=dice)
    lines = texts.train[order[: 3 * n]].split(n)
    parts = [lines[0], lines[1].flip(1), rot13(lines[2]), sums(n, dice)]
    target = texts.train[order[3 * n : 3 * n + 64]]
    test = texts.test[torch.randperm(len(texts.test), generator=dice)[: 200 if quick else 1000]]
    x, source = torch.cat(parts), torch.arange(4).repeat_interleave(n)
    return Task(
        x[:, :-1], x[:, 1:], target[:, :-1], target[:, 1:], test[:, :-1], test[:, 1:], source == 0,
        CharLM, next_character, lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
        steps=60 if quick else 400, keep=0.3, batch=32, target_batch=8, groups=source,
    )  # fmt: skip


def rot13(codes: Tensor) -> Tensor:
    """Letters moved by 13 places."""
    found = codes.clone()
    for first in (ord("a") - 32, ord("A") - 32):
        mine = (codes >= first) & (codes < first + 26)
        found[mine] = (codes[mine] - first + 13) % 26 + first
    return found


def sums(n: int, dice: torch.Generator) -> Tensor:
    """Lines such as "12+7=19 40+2=42 ...": easy, and of no use."""
    rows = []
    for _ in range(n):
        pairs = torch.randint(0, 50, (12, 2), generator=dice).tolist()
        text = " ".join(f"{a}+{b}={a + b}" for a, b in pairs)[:LENGTH].ljust(LENGTH)
        rows.append([ord(c) - 32 for c in text])
    return torch.tensor(rows)


PLAIN = ["uniform", MIXING, LONGER, "target only"]
EXPERIMENTS: Mapping[str, tuple[Callable[..., Task], Sequence[str]]] = {
    NOISE: (
        noise,
        [*PLAIN, "random subset", SMALL, BILEVEL, MWN, OURS, BUDGET, CONTRAST, PUBLISHED, RETRAIN,
         ORACLE],
    ),
    IMBALANCE: (
        imbalance,
        [*PLAIN, "class weights", SMALL, BILEVEL, MWN, OURS, NORMALISED, BUDGET, CONTRAST,
         GROUP_RETRAIN],
    ),
    SUBSET: (
        subset,
        [*PLAIN, "random subset", SMALL, BILEVEL, OURS, BUDGET, CONTRAST, RETRAIN, CONTRAST_RETRAIN,
         ORACLE],
    ),
    TEXT: (
        mixture,
        [*PLAIN, "random subset", SMALL, BILEVEL, OURS, CONTRAST, RETRAIN, CONTRAST_RETRAIN,
         ORACLE],
    ),
}  # fmt: skip


RARE = "imbalance: accuracy on rare classes"


# --- measuring ------------------------------------------------------------------------------------


def measure(book: Book, row: str, name: str, task: Task, run: Run, seed: int) -> None:
    """Test performance, and how well the weights rank the useful examples."""
    score, of_class = tested(task, run.net)
    if name == TEXT:
        book.add(row, "text mixture: bits a character", score, seed)
    else:
        book.add(row, f"{name}: accuracy", score, seed)
    if name == IMBALANCE:
        book.add(row, RARE, of_class, seed)
    if run.weights is not None:
        book.add(row, f"{name}: AUROC", auroc(run.weights, task.good), seed)
    book.add(row, f"{name}: CPU-seconds", run.seconds, seed)


def tested(task: Task, net: nn.Module) -> tuple[float, float]:
    """Per cent right on the test set and on its odd classes; of text, bits a character."""
    with torch.no_grad():
        outputs = torch.cat([net(part) for part in task.test_x.split(500)])
    if task.test_y.ndim > 1:
        nats = float(task.loss(outputs, task.test_y).double().mean())
        return nats / math.log(2), 0.0
    right = (outputs.argmax(1) == task.test_y).double()
    return 100 * float(right.mean()), 100 * float(right[task.test_y % 2 == 1].mean())


def auroc(weights: Tensor, good: Tensor) -> float:
    """Per cent of pairs (good, other) in which the good one weighs more; ties count half."""
    values, where = torch.unique(weights.double(), return_inverse=True)
    counts = torch.bincount(where, minlength=len(values)).double()
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[where]
    a, b = int(good.sum()), int((~good).sum())
    return 100 * float((ranks[good].sum() - a * (a + 1) / 2) / (a * b))


# --- cost -----------------------------------------------------------------------------------------

STEP = "step: CPU-milliseconds"
MEMORY = "step: bytes kept for backward"
QUARTER = f"{OURS}, quarter target batch"


def cost(book: Book, photos: Photographs, quick: bool) -> None:
    """Steps in turn, and what one keeps for the backward pass; both also as ratios."""
    task = photos.task(
        photos.x[:512], photos.y[:512], torch.arange(512, 768), torch.ones(512).bool()
    )
    task.augment = lambda x, dice: x
    steps = {
        "uniform": stepper(task, None, 0),
        MIXING: stepper(task, None, 64),
        OURS: stepper(task, Recipe(), 64),
        QUARTER: stepper(task, Recipe(), 16),
        CONTRAST: stepper(task, Recipe(partition="contrast"), 64),
        BILEVEL: unrolled_stepper(task, FreeLogits),
        MWN: unrolled_stepper(task, MetaWeightNet),
    }

    spent = take_turns(steps, rounds=2 if quick else 10, best_of=5)
    memory = {row: kept_bytes(step) for row, step in steps.items()}
    for row in steps:
        for run, (seconds, mixing) in enumerate(zip(spent[row], spent[MIXING], strict=True)):
            book.add(row, STEP, 1000 * seconds, run)
            book.add(row, f"step: time ratio to {MIXING}", seconds / mixing, run)
        book.add(row, MEMORY, memory[row])
        book.add(row, f"step: memory ratio to {MIXING}", memory[row] / memory[MIXING])


def stepper(task: Task, recipe: Recipe | None, target: int) -> Callable[[], Any]:
    """One step, again and again: ours, or SGD (None) on 64 training and ``target`` images."""
    net = start(task, 0)
    ids = torch.arange(64)
    batch = [torch.cat([task.x[:64], task.target_x[:target]]),
             torch.cat([task.y[:64], task.target_y[:target]])]  # fmt: skip
    if recipe is None:
        optimiser = task.optimiser(list(net.parameters()))

        def plain() -> None:
            optimiser.zero_grad(set_to_none=True)
            losses = task.loss(net(batch[0]), batch[1])
            total = losses[:64].mean() + (losses[64:].mean() if target else 0.0)
            total.backward()
            optimiser.step()

        return plain

    def loss_of(net: nn.Module, batch: Any) -> tuple[Tensor, None]:
        return task.loss(net(batch[0]), batch[1]), None

    joint = Joint(net, loss_of, WeightSampler(50_000, recipe), task.optimiser)
    return lambda: joint.step(ids, batch, target)


def unrolled_stepper(task: Task, kind: type[Any]) -> Callable[[], Any]:
    """The same for a bi-level method."""
    made = kind(task, start(task, 0))
    batch = task.x[:64], task.y[:64], task.target_x[:64], task.target_y[:64]
    return lambda: made.step(0, torch.arange(64), batch)


def kept_bytes(step: Callable[[], Any]) -> int:
    """Most bytes kept for backward passes at one moment of a step, parameters included."""
    alive: dict[int, int] = {}
    most = 0

    class Kept:
        """A saved tensor that counts while it lives."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            self.tensor = tensor
            self.key = tensor.untyped_storage().data_ptr()
            counts[self.key] = counts.get(self.key, 0) + 1
            alive[self.key] = tensor.untyped_storage().nbytes()
            most = max(most, sum(alive.values()))

        def __del__(self) -> None:
            counts[self.key] -= 1
            if not counts[self.key]:
                alive.pop(self.key, None)

    counts: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step()
    return most


# --- claims ---------------------------------------------------------------------------------------

SETTINGS = {
    NOISE: ("With 40 % wrong labels", OURS, RETRAIN, f"{NOISE}: accuracy"),
    IMBALANCE: ("With imbalanced classes", BUDGET, GROUP_RETRAIN, f"{IMBALANCE}: accuracy"),
    SUBSET: (
        "With three foreign domains in the training set",
        CONTRAST,
        CONTRAST_RETRAIN,
        f"{SUBSET}: accuracy",
    ),
    TEXT: ("On the text mixture", CONTRAST, CONTRAST_RETRAIN, "text mixture: bits a character"),
}
"""Setting -> words, the variant that the method's page recommends, with retraining, column."""
RIVALS = {
    "uniform training": "uniform",
    "training on both sets": MIXING,
    "small-loss selection": SMALL,
    "the one-step bi-level baseline": BILEVEL,
    "Meta-Weight-Net": MWN,
}


def claim(book: Book) -> None:
    """Every claim, those that do not hold too."""
    for setting, (where, variant, retrain, column) in SETTINGS.items():
        tag = setting.replace(" ", "-")
        for said, rival in RIVALS.items():
            if column in book.columns(rival):
                book.claim(
                    f"{tag}-{rival.replace(' ', '-').lower()}",
                    f"{where}, {variant} tests better than {said}.",
                    book.better(variant, rival, column),
                )
        book.claim(
            f"{tag}-retrain",
            f"{where}, selecting and retraining tests better than training on both sets for as "
            "long.",
            book.better(retrain, LONGER, column),
        )
        for said, rival in (("small-loss selection", SMALL), ("the bi-level baseline", BILEVEL)):
            book.claim(
                f"{tag}-auroc-{rival.replace(' ', '-').lower()}",
                f"{where}, the weights rank useful examples higher (AUROC) than {said}.",
                book.better(variant, rival, f"{setting}: AUROC"),
            )
    book.claim(
        "starvation-budget",
        "With imbalanced classes, a budget per class with the loss normalised to the target's "
        "classes tests better on rare classes than the method as published.",
        book.better(BUDGET, OURS, RARE),
    )
    for identity, statement, row, rival, most in (
        ("time", "A step costs at most 1.25 times SGD on both sets.", OURS, MIXING, 1.25),
        (
            "time-plain",
            "With a quarter-size target batch, at most 1.3 times plain SGD.",
            QUARTER,
            "uniform",
            1.3,
        ),
        (
            "time-bilevel",
            "A step costs at most half of the bi-level baseline's.",
            OURS,
            BILEVEL,
            0.5,
        ),
    ):
        book.claim(identity, statement, book.times(row, rival, STEP, at_most=most))
    for identity, statement, rival, most in (
        ("memory", "It keeps at most 1.25 times the memory of SGD on both sets.", MIXING, 1.25),
        (
            "memory-bilevel",
            "It keeps at most half the memory of the bi-level baseline.",
            BILEVEL,
            0.5,
        ),
    ):
        wanted = book.times(OURS, rival, MEMORY, at_most=most, test="counted")
        book.claim(identity, statement, wanted)


# --- picture --------------------------------------------------------------------------------------


def picture(path: Path, book: Book, shown: Mapping[str, Tensor]) -> None:
    """Left: weights of clean and wrong labels. Right: accuracy by method and setting."""
    bins = 40
    lines: dict[str, Line] = {}
    for name, mine in (("clean label", True), ("wrong label", False)):
        counts = torch.histc(shown["weights"][shown["good"] == mine].float(), bins, 0, 1)
        lines[name] = [((i + 0.5) / bins, count) for i, count in enumerate(counts.tolist())]
    table = book.table()
    rows = ["uniform", MIXING, "target only", SMALL, BILEVEL, MWN, OURS, BUDGET, CONTRAST, RETRAIN]
    bars: dict[str, dict[str, float | Metric]] = {
        row: {
            setting: table[row][f"{setting}: accuracy"]
            for setting in (NOISE, IMBALANCE, SUBSET)
            if f"{setting}: accuracy" in table[row]
        }
        for row in rows
    }
    draw(
        path,
        Curves(lines, "posterior mean weight", "training images", f"{NOISE}: what {OURS} gives"),
        Bars(bars, "test accuracy in per cent"),
    )
