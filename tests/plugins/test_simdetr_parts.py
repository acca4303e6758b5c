"""The parts of SimDETR, by closed forms and invariants: boxes, proposals, clusters, losses, AP."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from zoo_simdetr import boxes as geometry
from zoo_simdetr import clusters, losses, scenes, selftraining
from zoo_simdetr.backbone import Body, Stem, folded
from zoo_simdetr.detector import QUERIES, Classes, Network, choose
from zoo_simdetr.outputs import Target
from zoo_simdetr.proposals import PRESETS, Regions, Scale, box_of, pieces, pool, propose, regions
from zoo_simdetr.reading import look, ranked
from zoo_simdetr.scenes import Scene

from zoo.errors import InputError, WeightsError


@pytest.fixture(scope="module")
def network() -> Network:
    """Random weights."""
    torch.manual_seed(0)
    return Network(3).eval()


def target(*boxes: tuple[float, ...], labels: tuple[int, ...] = ()) -> Target:
    made = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(torch.tensor(labels or (0,) * len(boxes), dtype=torch.int64), made)


# --- boxes ----------------------------------------------------------------------------------------


def test_overlaps_have_their_closed_forms() -> None:
    a = torch.tensor([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1]]).float()
    b = torch.tensor([[1, 1, 3, 3], [2, 0, 3, 1], [0, 0, 1, 1]]).float()
    iou, giou = geometry.overlap(a, b)
    torch.testing.assert_close(iou, torch.tensor([1 / 7, 0, 1]))
    # two unit squares that are 1 apart: the box around both is 3 x 1
    torch.testing.assert_close(giou[1:], torch.tensor([-1 / 3, 1.0]))
    torch.testing.assert_close(geometry.corners(geometry.centred(a)), a)


def test_suppression_is_greedy_and_its_parallel_form_stricter() -> None:
    # each overlaps the next by 2/3: greedy keeps the first and third, the parallel form the first
    row = torch.tensor([[0.0, 0, 1, 1], [0.2, 0, 1.2, 1], [0.4, 0, 1.4, 1]])
    assert geometry.distinct(row, 0.5).tolist() == [True, False, True]
    assert geometry.first_of_each(row, 0.5).tolist() == [True, False, False]
    assert geometry.distinct(row[:0], 0.5).tolist() == []


# --- backbone -------------------------------------------------------------------------------------


def test_folded_batch_norms_give_the_features_of_timm() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, pretrained=False)
    theirs.eval()
    for name, tensor in theirs.named_buffers():  # statistics that are not the identity
        if name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    states = folded(theirs.state_dict())
    stem, body = Stem(), Body()
    stem.load_state_dict(states[0])
    body.load_state_dict(states[1])
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        wanted, found = theirs(2 * image - 1)[2:], body(stem(image))
    for a, b in zip(wanted, found, strict=True):
        # sums of thousands of products in another order
        torch.testing.assert_close(a, b, atol=1e-4 * float(a.abs().max()), rtol=1e-4)


def test_another_base_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match="not tf_efficientnet_lite0"):
        folded({"conv_stem.weight": torch.zeros(32, 3, 3, 3)})


# --- proposals ------------------------------------------------------------------------------------


def grid(*rectangles: tuple[int, int, int, int], size: tuple[int, int] = (32, 40)) -> np.ndarray:
    """(h,w,2): one unit vector inside the rectangles (rows, then columns), another outside."""
    made = np.zeros((*size, 2), np.float32)
    made[..., 1] = 1
    for top, bottom, left, right in rectangles:
        made[top:bottom, left:right] = (1, 0)
    return made


def test_a_rectangle_gives_its_box_exactly() -> None:
    mask = grid((2, 5, 7, 12))[..., 0] == 1
    assert box_of(mask).tolist() == pytest.approx([7 / 40, 2 / 32, 12 / 40, 5 / 32])
    found = [box_of(m).tolist() for m in regions(grid((2, 5, 7, 12)), (2,))]
    assert pytest.approx(min(found, key=lambda b: b[2])) == [7 / 40, 2 / 32, 12 / 40, 5 / 32]


def test_rectangles_that_touch_at_a_corner_are_two_regions() -> None:
    made = regions(grid((4, 8, 4, 8), (8, 12, 8, 12)), (2,))
    assert sorted(int(m.sum()) for m in made) == [16, 16, 32 * 40 - 32]


def test_a_uniform_image_has_no_region() -> None:
    assert regions(np.ones((8, 8, 3), np.float32)) == []
    maps = [torch.ones(1, c, 64 // s, 64 // s) for c, s in ((4, 1), (4, 2), (4, 4))]
    found = propose(maps, Scale.of([maps]), PRESETS["many-small"])
    assert len(found) == 0
    assert found.features.shape[1] == 8


def test_a_descriptor_is_the_mean_over_the_region_alone() -> None:
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(6, 6, 3)).astype("float32")
    mask = np.zeros((6, 6), bool)
    mask[1:4, 1] = mask[3, 1:5] = True  # an L: its box has cells that are not its own
    mean = cells[mask].mean(0)
    np.testing.assert_allclose(pool(cells, mask), mean / np.linalg.norm(mean), rtol=1e-5)
    before = pool(cells, mask)
    cells[1, 4] += 10
    np.testing.assert_array_equal(pool(cells, mask), before)


def test_two_discs_that_touch_are_split() -> None:
    y, x = np.mgrid[0:20, 0:40]
    discs = [((y - 10) ** 2 + (x - c) ** 2) <= 64 for c in (12, 27)]
    made = pieces(discs[0] | discs[1])
    assert len(made) == 2
    assert not (made[0] & made[1]).any()
    assert pieces(discs[0]) == []
    for piece in made:
        best = max((piece & disc).sum() / (piece | disc).sum() for disc in discs)
        assert best > 0.9


def test_presets_filter_what_is_no_object() -> None:
    maps = [torch.from_numpy(grid((10, 14, 10, 36))).permute(2, 0, 1)[None]] * 3
    scale = Scale(
        tuple(torch.zeros(2, 1, 1) for _ in range(3)), tuple(torch.ones(2, 1, 1) for _ in range(3))
    )
    found = propose(maps, scale, PRESETS["many-small"])
    assert found.dropped["long"] >= 1
    assert found.dropped["too large"] >= 1  # the background
    loose = propose(maps, scale, PRESETS["objects"])
    wanted = [10 / 40, 10 / 32, 36 / 40, 14 / 32]
    assert any(box.tolist() == pytest.approx(wanted) for box in loose.boxes)


# --- clusters -------------------------------------------------------------------------------------


def described(rows: np.ndarray) -> list[Regions]:
    """One image with a region for each row."""
    return [Regions(np.zeros((len(rows), 4), np.float32), rows.astype("float32"))]


def test_clusters_of_orthogonal_descriptors_are_exact() -> None:
    rows = np.eye(4)[np.arange(40) % 4]
    found = clusters.cluster(described(rows), 4, seed=3)
    assert found.inertia == pytest.approx(0, abs=1e-9)
    assert found.sizes == (10, 10, 10, 10)
    again = clusters.cluster(described(rows), 4, seed=3)
    np.testing.assert_array_equal(found.labels[0], again.labels[0])
    shuffled = np.random.default_rng(0).permutation(40)
    other = clusters.cluster(described(rows[shuffled]), 4, seed=3).labels[0]
    same = found.labels[0][shuffled]
    assert len({*zip(same.tolist(), other.tolist(), strict=True)}) == 4  # labels are renamed only


def test_the_number_of_clusters_grows_with_the_regions() -> None:
    assert [clusters.how_many(n) for n in (10, 100, 8760, 10**6, 10**9)] == [1, 5, 12, 125, 2048]
    with pytest.raises(InputError, match="only 3 regions"):
        clusters.cluster(described(np.eye(3)), 4)
    nothing = [Regions(np.zeros((0, 4), np.float32), np.zeros((0, 3), np.float32))]
    nothing[0].dropped["too large"] = 7
    with pytest.raises(InputError, match="7 too large"):
        clusters.cluster(nothing)
    rows = np.repeat(np.eye(2), [99, 1], 0)
    assert clusters.cluster(described(rows), 2).collapsed


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_matching_is_the_cheapest_of_all_permutations(n: int) -> None:
    torch.manual_seed(n)
    logits, found = torch.randn(1, 6, 4), torch.rand(1, 6, 4) * 0.5 + 0.2
    real = Target(torch.randint(4, (n,)), torch.rand(n, 4) * 0.5 + 0.2)
    (queries, objects), *_ = losses.match(logits, found, [real])
    costs = losses.cost(logits[0], found[0], real)
    best = min(
        sum(float(costs[q, o]) for o, q in enumerate(order))
        for order in itertools.permutations(range(6), n)
    )
    assert float(costs[queries, objects].sum()) == pytest.approx(best, abs=1e-5)
    assert len(queries) == n


def test_more_objects_than_queries_match_as_many_as_there_are() -> None:
    real = Target(torch.zeros(9, dtype=torch.int64), torch.rand(9, 4) * 0.5 + 0.2)
    (queries, _), *_ = losses.match(torch.randn(1, 4, 2), torch.rand(1, 4, 4), [real])
    assert sorted(queries.tolist()) == [0, 1, 2, 3]


def test_a_perfect_prediction_has_no_box_loss() -> None:
    real = target((0.5, 0.5, 0.2, 0.3), (0.2, 0.3, 0.1, 0.1), labels=(0, 1))
    logits = torch.full((1, 2, 2), -20.0)
    logits[0, 0, 0] = logits[0, 1, 1] = 20
    pairs = losses.paired([real], losses.match(logits, real.boxes[None], [real]))
    found = losses.assigned(logits, real.boxes[None], pairs, 2.0)
    assert float(found) == pytest.approx(0, abs=1e-5)


def test_an_image_without_objects_teaches_background(network: Network) -> None:
    images = torch.rand(1, 3, 64, 64)
    found = losses.loss(network(images), [target()])
    found.backward()
    assert 0 < found.item() < 10
    assert network.classes.dense.bias.grad is not None
    assert network.classes.dense.bias.grad.abs().sum() > 0
    network.zero_grad()
    assert losses.noise([target()], 3, torch.Generator()) is None


def test_dense_cells_learn_the_object_that_they_overlap_most() -> None:
    real = target((0.25, 0.5, 0.2, 0.2), (0.75, 0.5, 0.2, 0.2))
    found = torch.tensor([[0.25, 0.5, 0.2, 0.2], [0.74, 0.5, 0.2, 0.2], [0.5, 0.1, 0.1, 0.1]])
    cells, objects = losses.nearest(torch.zeros(3, 1), found, real)
    assert dict(zip(cells.tolist(), objects.tolist(), strict=True))[0] == 0
    assert dict(zip(cells.tolist(), objects.tolist(), strict=True))[1] == 1


# --- the network ----------------------------------------------------------------------------------


def batch() -> tuple[torch.Tensor, list[Target]]:
    torch.manual_seed(1)
    targets = [
        target((0.5, 0.5, 0.3, 0.4), (0.2, 0.3, 0.2, 0.2), labels=(0, 2)),
        target((0.6, 0.4, 0.3, 0.3), labels=(1,)),
    ]
    return torch.rand(2, 3, 64, 96), targets


def test_the_gradient_reaches_every_parameter_after_two_steps() -> None:
    """Last layers start at zero, so that those before them learn from the second step on."""
    torch.manual_seed(0)
    net = Network(3)
    net.trunk.stem.requires_grad_(False)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 1e-3)
    images, targets = batch()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        noised = losses.noise(targets, 3, generator)
        assert noised is not None
        optimizer.zero_grad()
        losses.loss(net(images, noised[0]), targets, noised[1:]).backward()
        optimizer.step()
    silent = [
        name
        for name, p in net.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    # a bias that is added to all keys alike changes no attention
    assert [name for name in silent if not name.endswith("key.bias")] == []


def test_denoising_leaks_nothing_into_the_queries(network: Network) -> None:
    images, targets = batch()
    noised = losses.noise(targets, 3, torch.Generator().manual_seed(0))
    assert noised is not None
    with torch.no_grad():
        plain, with_noise = network(images), network(images, noised[0])
    cells = 8 * 12 + 4 * 6 + 2 * 3
    assert plain.logits[-1].shape == (2, min(QUERIES, cells), 3)
    assert plain.noised_logits[-1].shape[1] == 0
    for a, b in zip(plain.logits + plain.boxes, with_noise.logits + with_noise.boxes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_denoising_groups_see_themselves_and_labels_are_kept_beside() -> None:
    _, targets = batch()
    made = losses.noise(targets, 3, torch.Generator().manual_seed(0))
    assert made is not None
    queries, pairs, used = made
    assert queries.boxes.shape == (2, 40, 4)  # 20 groups of 2
    assert queries.mask.sum() == 20 * 4
    assert used.sum(1).tolist() == [40, 20]
    for i, q, label, box in zip(*vars(pairs).values(), strict=True):
        at = int(q) % 2
        assert label == targets[i].labels[at]
        torch.testing.assert_close(box, targets[i].boxes[at])
    moved = (queries.boxes[pairs.image, pairs.query] - pairs.boxes)[:, :2].abs()
    shift = moved / (pairs.boxes[:, 2:] / 2)
    assert float(shift.max()) <= losses.SHIFT + 1e-5


def test_a_batch_is_as_its_images_alone(network: Network) -> None:
    """Nothing is padded, and no layer mixes images."""
    images, _ = batch()
    with torch.no_grad():
        together, alone = network(images), network(images[1:])
    torch.testing.assert_close(together.boxes[-1][1:], alone.boxes[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.logits[-1][1:], alone.logits[-1], atol=1e-4, rtol=1e-4)


def test_queries_are_the_surest_boxes_that_differ() -> None:
    logits = torch.tensor([[[3.0], [2.0], [1.0], [0.0]]])
    same = torch.tensor([0.5, 0.5, 0.2, 0.2])
    boxes = torch.stack([same, same, torch.tensor([0.2, 0.2, 0.1, 0.1]), same + 0.01])[None]
    assert choose(logits, boxes, 2).tolist() == [[0, 2]]


def test_a_rare_class_gets_queries_though_others_are_surer() -> None:
    """Cells 0 to 5 are sure of class 0; cells 6 and 7 are less sure of class 1."""
    logits = torch.full((1, 8, 2), -9.0)
    logits[0, :6, 0] = torch.arange(6, 0, -1).float()
    logits[0, 6:, 1] = torch.tensor([-1.0, -2.0])
    boxes = torch.tensor([[[i / 8, 0.5, 0.1, 0.1] for i in range(8)]])
    assert set(choose(logits, boxes, 4)[0].tolist()) == {0, 1, 2, 6}
    assert set(choose(logits, boxes, 6)[0].tolist()) == {0, 1, 2, 3, 6, 7}


def test_detections_are_sorted_inside_the_image_and_scale_with_it(network: Network) -> None:
    image = torch.rand(3, 48, 80)
    found, scores, labels = ranked(look(network, image, 96))
    assert (scores.diff() <= 0).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert labels.max() < 3
    double = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    again, *_ = ranked(look(network, double, 96))
    # in any order: scores of random weights are close together
    nearest = (found[:, None] - again[None]).abs().amax(2).amin(1)
    assert float(nearest.max()) < 0.02


@pytest.mark.parametrize(
    ("sides", "seen"),
    [((480, 640), (256, 320)), ((1, 1), (320, 320)), ((1, 9), (32, 320)), ((100, 50), (320, 160))],
)
def test_what_the_network_sees_is_never_padded(
    sides: tuple[int, int], seen: tuple[int, int]
) -> None:
    assert scenes.seen_sides(*sides, 320) == seen


# --- views ----------------------------------------------------------------------------------------


def test_boxes_move_with_the_picture() -> None:
    """A drawn rectangle is where the moved box says, within a pixel."""
    image = torch.zeros(3, 90, 120, dtype=torch.uint8)
    image[:, 30:60, 40:80] = 255
    scene = Scene(image, torch.tensor([[40 / 120, 30 / 90, 80 / 120, 60 / 90]]), torch.tensor([0]))
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(20):
        made, found = scenes.view(scene, (96, 128), rng, upside_down=True)
        for box in geometry.corners(found.boxes):
            bright = made.mean(0) > made.mean(0).amax() * 0.6
            rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
            drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            wanted = box * torch.tensor([128, 96, 128, 96])
            assert (wanted - torch.tensor(drawn)).abs().max() <= 1.5  # interpolation blurs an edge
            seen += 1
    assert seen > 10


def test_a_view_leaves_out_what_it_hardly_shows() -> None:
    image = torch.zeros(3, 60, 60, dtype=torch.uint8)
    scene = Scene(
        image, torch.tensor([[0.0, 0, 0.02, 0.02], [0.98, 0.98, 1, 1]]), torch.zeros(2).long()
    )
    rng = np.random.default_rng(0)
    counts = {
        len(scenes.view(scene, (32, 32), rng, upside_down=False)[1].labels) for _ in range(30)
    }
    assert 0 in counts


# --- self-training and classes --------------------------------------------------------------------


def test_thresholds_keep_as_many_boxes_as_asked(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector that says the truth gives back the truth; one that says more is cut."""
    truth = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.8, 0.9]])
    extra = torch.cat([truth, torch.tensor([[0.05, 0.6, 0.2, 0.8]])])
    scene = Scene(torch.zeros(3, 32, 32, dtype=torch.uint8), truth, torch.tensor([0, 1]))
    answers = {
        "same": (truth, torch.tensor([0.9, 0.8]), torch.tensor([0, 1])),
        "more": (extra, torch.tensor([0.9, 0.8, 0.1]), torch.tensor([0, 1, 0])),
        "lost": (truth[:1], torch.tensor([0.9]), torch.tensor([0])),
    }
    for case, answer in answers.items():
        monkeypatch.setattr(selftraining, "ranked", lambda *_, answer=answer, **__: answer)
        made = selftraining.relabel(network, [scene], 64)
        assert made.trusted
        # a class that is lost gets its earlier boxes back
        assert made.after == (1, 1, 0), case
        torch.testing.assert_close(made.scenes[0].boxes, truth)
        assert made.scenes[0].labels.tolist() == [0, 1]


def test_a_detector_that_finds_nothing_of_its_own_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says the same box everywhere; the earlier ones come back, but the round does not count."""
    torch.manual_seed(0)
    truth = torch.rand(8, 2).repeat(1, 2) * 0.8 + torch.tensor([0.0, 0, 0.1, 0.1])
    scene = Scene(torch.zeros(3, 48, 64, dtype=torch.uint8), truth, torch.zeros(8).long())
    answer = (torch.tensor([[0.4, 0.4, 0.6, 0.6]]), torch.tensor([0.9]), torch.tensor([0]))
    monkeypatch.setattr(selftraining, "ranked", lambda *_, **__: answer)
    made = selftraining.relabel(Network(1), [scene], 64)
    assert made.own == (1,)
    assert made.after[0] >= 8
    assert not made.trusted


def test_a_class_starts_from_the_cluster_that_finds_it() -> None:
    torch.manual_seed(0)
    old, new = Classes(4), Classes(3)
    fresh = new.dense.weight[2].clone()
    table = torch.tensor([[0.0, 3, 0], [9, 0, 0.4], [0, 1, 0], [2, 0, 0]])
    assert selftraining.warm(old, table, new) == [1, 0, None]
    for theirs, mine in zip(old.linears(), new.linears(), strict=True):
        assert torch.equal(mine.weight[0], theirs.weight[1])
        assert torch.equal(mine.bias[:2], theirs.bias[[1, 0]])
    assert torch.equal(new.embedding.weight[:2], old.embedding.weight[[1, 0]])
    assert torch.equal(new.dense.weight[2], fresh)


def test_the_same_classes_give_the_same_boxes(network: Network) -> None:
    image = torch.rand(3, 64, 64)
    before = ranked(look(network, image, 64))
    old, new = network.classes, Classes(3)
    selftraining.warm(old, torch.eye(3), new)
    network.classes = new.eval()
    after = ranked(look(network, image, 64))
    network.classes = old
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


def test_a_second_pass_finds_what_is_too_small_for_the_first() -> None:
    """A dot of 4 x 4 cells of the finest map is 2 x 2 of the grid: too few."""
    features = grid((40, 44, 60, 64), size=(96, 128))
    fine = torch.from_numpy(features).permute(2, 0, 1)[None]
    middle = torch.from_numpy(grid((10, 16, 4, 10), size=(48, 64))).permute(2, 0, 1)[None]
    scale = Scale((torch.zeros(2, 1, 1),) * 3, (torch.ones(2, 1, 1),) * 3)
    preset = replace(PRESETS["many-small"], levels=(1,))
    found = propose([fine, middle, middle], scale, preset)
    wanted = pytest.approx([60 / 128, 40 / 96, 64 / 128, 44 / 96])
    assert any(box.tolist() == wanted for box in found.boxes)
    assert found.features.shape == (len(found), 2)
    without = propose([fine, middle, middle], scale, replace(preset, fine=0))
    assert not any(box.tolist() == wanted for box in without.boxes)


def test_hits_are_scores_of_boxes_on_objects(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clusters on an object of class 1, one beside everything."""
    box = torch.tensor([[0.1, 0.1, 0.5, 0.5]])
    scene = Scene(torch.zeros(3, 32, 32, dtype=torch.uint8), box, torch.tensor([1]))
    boxes = torch.cat([box, box + 0.02, box + 0.4])
    answer = boxes, torch.tensor([0.9, 0.6, 0.5]), torch.tensor([2, 0, 2])
    monkeypatch.setattr(selftraining, "ranked", lambda *_, **__: answer)
    table, share = selftraining.hits(network, [scene, scene], 64, 2)
    torch.testing.assert_close(table, torch.tensor([[0, 1.2], [0, 0], [0, 1.8]]))
    assert np.isnan(share[0])
    assert share[1] == 1.0
