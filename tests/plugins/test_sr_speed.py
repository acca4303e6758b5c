"""The cost of super-resolution next to peers, and where its time goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo_edge_sd_sr import cli
from zoo_edge_sd_sr.full import CONFIG
from zoo_sr.measuring import speed
from zoo_sr.measuring.peers import PEERS, Diffusion
from zoo_sr.measuring.profiler import BETWEEN, READ, TILES, WRITE, Meter, part_of, profile, table
from zoo_sr.measuring.speed import GFLOP, PARAMETERS, SECONDS, cost, enter, measure_speed, random
from zoo_sr.measuring.tables import less_is_better

import zoo
from tests.plugins.test_edge_sd_sr import FULL, SMALL, make
from zoo import experiment
from zoo.experiment import Book

CPU = torch.device("cpu")


class Clock:
    """A clock that only ``work`` moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 0.0
        monkeypatch.setattr(experiment, "now", lambda device: self.time)

    def work(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


# --- peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part", "millions"),
    [
        ("Real-ESRGAN compact", "", 1.21),
        ("Real-ESRGAN x4plus", "", 16.70),
        ("LDM super-resolution", "unet", 113.62),
        ("LDM super-resolution", "vae", 55.32),
        ("Stable Diffusion x4 upscaler", "unet", 473.40),
        ("Stable Diffusion x4 upscaler", "vae", 55.33),
    ],
)
def test_peers_have_their_published_sizes(name, part, millions):
    network = random(PEERS[name], None).get_submodule(part)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("name", PEERS)
def test_peers_enlarge_four_times(name):
    with torch.device("meta"):
        assert random(PEERS[name], None)(torch.empty(1, 3, 64, 32)).shape == (1, 3, 256, 128)


# --- counting and timing --------------------------------------------------------------------------


def test_cost_counts_what_runs():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3)

        def forward(self, x, times=1):
            for _ in range(times):
                y = self.used(x)
            return y

    network = Half()
    found = cost(network)
    assert found[PARAMETERS] == pytest.approx([(5 * 27 + 5) / 1e6])
    assert found[GFLOP] == pytest.approx([2 * 128 * 128 * 5 * 27 / 1e9])
    assert cost(network, 3)[GFLOP] == pytest.approx([3 * found[GFLOP][0]])
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_runs_take_turns_on_one_thread(clock):
    order = []

    def run(name: str, seconds: float) -> None:
        order.append((name, torch.get_num_threads()))
        clock.work(seconds)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = {"a": lambda: run("a", 1.0), "b": lambda: run("b", 3.0)}
        assert experiment.take_turns(runs, rounds=2) == {"a": [1.0, 1.0], "b": [3.0, 3.0]}
        assert order == [("a", 1), ("b", 1)] * 3  # the first round warms up
        assert torch.get_num_threads() == 2
        once = experiment.take_turns(runs, rounds=5, patience=0)
        assert once == {"a": [1.0], "b": [3.0]}
    finally:
        torch.set_num_threads(threads)


def test_on_a_cpu_waiting_costs_nothing():
    import time

    (spent,) = experiment.take_turns({"wait": lambda: time.sleep(0.2)}, rounds=1, warm_up=0)["wait"]
    assert spent < 0.1


def test_fifty_steps_are_extrapolated_from_measured_ones(clock, monkeypatch):
    class Slow(Diffusion):
        latent = 2

        def __init__(self) -> None:
            super().__init__()
            self.unet, self.vae = nn.Conv2d(5, 2, 1), nn.Conv2d(2, 48, 1)

        def step(self, z, x_l):
            clock.work(2.0)
            return self.unet(torch.cat([z, x_l], 1))

        def decode(self, z):
            clock.work(3.0)
            return nn.functional.pixel_shuffle(self.vae(z), 4)

    monkeypatch.setattr(speed, "PEERS", {"slow": Slow})
    rows = speed._peer("slow", CPU, torch.rand(1, 3, 128, 128))
    once, often = rows.values()
    assert once[SECONDS] == [5.0] * 3
    assert often[SECONDS] == [50 * 2.0 + 3.0] * 3
    pixels = 2 * 128 * 128 / 1e9
    assert once[GFLOP] == pytest.approx([pixels * (10 + 96)])
    assert often[GFLOP] == pytest.approx([pixels * (50 * 10 + 96)])
    assert all("50 steps" not in name or "measured" in name for name in rows)


# --- the table and its claims ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick():
    book = Book(less_is_better)
    measure_speed(book, make(SMALL), quick=True, full=CONFIG)
    return book


def test_the_measured_full_size_is_the_registrys():
    assert CONFIG == FULL


def test_the_table_has_every_peer_and_what_was_counted(quick):
    rows = quick.table()
    full = rows["edge-sd-sr-full, random weights"]
    assert full[PARAMETERS].mean * 1e6 == pytest.approx(
        zoo.info("edge-sd-sr-full").params, rel=1e-5
    )
    assert full[GFLOP].mean == pytest.approx(141.54, abs=0.01)
    assert all(any(row.startswith(peer) for row in rows) for peer in PEERS)
    assert {row for row, cells in rows.items() if GFLOP not in cells} == {"bicubic"}
    timed = {row for row, cells in rows.items() if SECONDS in cells}
    assert timed == {"bicubic", "edge-sd-sr", "edge-sd-sr, bfloat16", "Real-ESRGAN compact"}
    for row in timed:
        spent, ours = (quick.values(r, SECONDS) for r in (row, "edge-sd-sr"))
        ratios = quick.values(row, "time, ratio to edge-sd-sr")
        assert ratios == pytest.approx({i: spent[i] / ours[i] for i in range(3)}, rel=1e-4)
        assert rows[row][SECONDS].n == 3  # so the table shows a spread


def test_the_full_size_takes_a_tenth_of_the_flops_of_any_diffusion_peer(quick):
    (claim,) = quick.claims  # nothing is claimed of time that was not measured
    assert claim.id == "flops-of-diffusion-peers"
    assert (claim.holds, claim.against) == (True, 0.1)
    least = min(c[GFLOP].mean for r, c in quick.table().items() if r.endswith(", 1 step"))
    ours = quick.mean("edge-sd-sr-full, random weights", GFLOP)
    assert claim.value == pytest.approx(ours / least)


def row(value: float) -> dict[str, list[float]]:
    return {GFLOP: [value], SECONDS: [0.995 * value, value, value / 0.995]}


@pytest.mark.parametrize(
    ("ours", "counted", "timed"),
    [(9.0, True, True), (9.9, True, None), (10.1, False, None), (11.0, False, False)],
)
def test_claims_are_decided_by_the_cheapest_peer(ours, counted, timed):
    """FLOPs decide directly, times by their spread: differences within 2.5 % decide nothing
    here."""
    rows = {"m, random weights": row(ours), "p, 1 step": row(100), "q, 1 step": row(300)}
    rows["p, 1 step"][SECONDS].reverse()
    book = Book(less_is_better)
    enter(book, rows, "m, random weights", "m, random weights")
    assert [c.value for c in book.claims] == pytest.approx([ours / 100] * 2, rel=1e-5)
    assert [c.holds for c in book.claims] == [counted, timed]
    assert book.claims[1].spread > 0
    assert book.claims[0].statement.startswith("m enlarges")


def test_random_weights_are_finite_and_repeatable():
    make_one = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))  # noqa: E731
    a, b = random(make_one, CPU), random(make_one, CPU)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert all(x.abs().max() <= 0.03 for x in a.parameters())
    assert next(random(make_one, None).parameters()).is_meta


# --- profile --------------------------------------------------------------------------------------


def test_a_part_is_charged_without_what_runs_inside_it():
    time = 0.0
    meter = Meter(lambda: time)
    with meter.part("outer"):
        time += 1
        with meter.part("inner"):
            time += 10
        time += 2
    time += 100  # nobody's
    with meter.part("inner"):
        time += 5
    assert meter.gained == {"outer": 3, "inner": 15}


def test_modules_are_grouped_by_block():
    assert part_of("unet.down.0.1.conv1") == "unet.down.0"
    assert part_of("unet.net.up_blocks.2.resnets.0") == "unet.net.up_blocks.2"
    assert part_of("decoder.conv_in") == "decoder.conv_in"
    assert part_of("") == BETWEEN


def test_the_profile_covers_the_whole_and_counts_all_tiles(tmp_path):
    from PIL import Image

    model = make(SMALL)
    Image.new("RGB", (24, 16), "green").save(tmp_path / "in.png")  # tiles of 16: two
    found = profile(model, tmp_path / "in.png", rounds=1)
    parts = [part for part, *_ in found]
    assert parts[:2] == [READ, TILES]
    assert parts[-1] == WRITE
    assert {"unet.down.0", "decoder.fine.0", "lr_encoder.conv_in"} <= {*parts}
    counted = sum(flops for *_, flops in found)
    assert counted == pytest.approx(model.estimate((16, 24)).flops)
    assert model.estimate((16, 24)).evaluations == 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_the_profile_is_shown_with_shares():
    text = table([("a", 0.2, 4e9), ("b", 0.799, 0.0), ("c", 0.0005, 0.0), ("d", 0.0005, 0.0)])
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert cells == [
        ["b", "799.0", "79.9 %", "", ""],
        ["a", "200.0", "20.0 %", "4.00", "20"],
        ["2 more, each below 0.5 %", "1.0", "0.1 %", "", ""],
        ["all", "1000.0", "100.0 %", "4.00", "4"],
    ]


# --- commands -------------------------------------------------------------------------------------


def test_the_commands_print_their_tables(monkeypatch, capsys):
    def measured(book, model, quick, full, progress):
        assert (quick, full, progress) == (True, CONFIG, False)
        enter(book, {"m": row(0.25), "p, 1 step": row(0.25)}, "m", "m")

    monkeypatch.setattr(speed, "measure_speed", measured)
    model = make(SMALL)
    assert cli.speed(model, ["--quick", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert "0.25 ± 0.0013" in out
    assert "does not hold" in out
    assert cli.profile(model, ["--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "decoder.fine.0" in out
    assert "one thread" in out


@pytest.mark.parametrize("name", ["edge-sd-sr", "yonos-sr"])
def test_the_registry_names_the_commands(name):
    assert {"speed", "profile"} <= {*zoo.info(name).commands}
