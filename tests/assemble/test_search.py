"""Algorithm 1: what moves in which step, that it learns, and that a restored search goes on with the same bits."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

import pyassemble as pa
from pyassemble.assemble.candidates import SELECTIONS
from pyassemble.assemble.search import Search
from pyassemble.assemble.settings import SearchSettings
from pyassemble.errors import OutOfRangeError, PyAssembleError, TensorError, UnknownOptionError
from pyassemble.training.accelerated import make_accelerator
from pyassemble.training.data import Data
from tests.assemble.small import CLASSES, problem, repository, shared_repository
from tests.networks import same_state, snapshot

QUICK = SearchSettings(
    batch_size=16, rounds=2, candidates=3, score_images=16, score_batch=8, selection_images=48, policy_rate=0.01
)
FITTED = {
    "start": "least_squares",
    "head": "fitted",
    "factor": "straight_through",
    "ways": "drawn",
    "start_images": 32,
}


def search(settings: SearchSettings = QUICK, **options: Any) -> Search:
    images, labels = problem(128)
    choices: dict[str, Any] = {"blocks": 3, "seed": 0, "num_classes": CLASSES, **options}
    classes = choices.pop("num_classes")
    return Search(
        choices.pop("repository", None) or shared_repository(),
        Data.of((images[:64], labels[:64]), "train", batch_size=settings.batch_size),
        Data.of((images[64:], labels[64:]), "validation", batch_size=settings.batch_size),
        classes,
        settings=settings,
        accelerator=make_accelerator("cpu"),
        **choices,
    )


def state(found: Search) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in found.tensors().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"routing": "sample", "form": "printed"},
        {"reward": "validation"},
        {"start": "least_squares"},
        {"statistics": "batch"},
        FITTED,
    ],
    ids=str,
)
def test_a_restored_search_goes_on_with_the_same_bits(options: dict[str, Any]) -> None:
    settings = SearchSettings(**{**vars(QUICK), **options})
    whole, first = search(settings), search(settings)
    for _ in range(2):
        whole.run_epoch()
    first.run_epoch()
    document, tensors = json.loads(json.dumps(first.document())), state(first)
    second = search(settings)
    torch.manual_seed(7)  # nothing reads the global generator
    second.restore(document, tensors)
    second.run_epoch()
    assert second.history == whole.history
    assert second.best == whole.best
    assert_same(state(second), state(whole))


def test_another_seed_is_another_search() -> None:
    one, other = search(), search(seed=1)
    assert one.run_epoch() != other.run_epoch()


def test_statistics_of_the_batch_give_other_scores_to_the_same_networks() -> None:
    stored, batch = search(), search(SearchSettings(**{**vars(QUICK), "statistics": "batch"}))
    first, second = stored.run_epoch(), batch.run_epoch()
    # Before the policy has learned from a score, both draw and train the same networks.
    drawn = QUICK.candidates
    assert first.parameters[:drawn] == second.parameters[:drawn]
    assert all(a != b for a, b in zip(first.scores[:drawn], second.scores[:drawn], strict=True))


@pytest.mark.parametrize("options", [{}, {"statistics": "batch"}, FITTED | {"reward": "validation"}], ids=str)
def test_the_repository_stays_as_it_was(options: dict[str, Any]) -> None:
    networks = repository()
    before = [snapshot(s) for name in networks.names for s in networks[name].segments]
    search(SearchSettings(**{**vars(QUICK), **options}), repository=networks).run_epoch()
    after = [s for name in networks.names for s in networks[name].segments]
    assert all(same_state(segment, held) for segment, held in zip(after, before, strict=True))
    assert not any(module.training for segment in after for module in segment.modules())


def test_learns() -> None:
    settings = SearchSettings(**{**vars(QUICK), "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "weights_rate": 0.01})
    found = search(settings)
    for _ in range(8):
        found.run_epoch()
    assert found.history[-1].weights_loss < 0.95 * found.history[0].weights_loss
    assert found.best["validation"].accuracy > 0.6


def test_fitted_heads_and_stitches_are_good_before_anything_is_trained() -> None:
    slow = {"weights_rate": 1e-9, "router_rate": 1e-9}
    published, fitted = (
        search(SearchSettings(**{**vars(QUICK), **slow})),
        search(SearchSettings(**{**vars(QUICK), **slow, **FITTED, "start_images": 64})),
    )
    for found in (published, fitted):
        found.run_epoch()
    best = fitted.best["validation"]
    assert best.accuracy > max(0.6, published.best["validation"].accuracy)
    assert best.factors == (1.0, 1.0, 1.0)


def test_fitted_starts_read_a_random_sample_of_sorted_data() -> None:
    images, labels = problem(300)
    order = labels.argsort()
    settings = SearchSettings(**{**vars(QUICK), **FITTED, "start_images": 60, "weights_rate": 1e-9})
    found = Search(
        shared_repository(),
        Data.of((images[order], labels[order]), "train", batch_size=16),
        Data.of((images[order], labels[order]), "validation", batch_size=16),
        CLASSES,
        blocks=3,
        seed=0,
        settings=settings,
        accelerator=make_accelerator("cpu"),
    )
    found.run_epoch()
    assert found.best["validation"].accuracy > 0.6
    shown = torch.cat([labels for _, labels in found.selection.batches(CLASSES, torch.device("cpu"))])
    assert shown.bincount(minlength=CLASSES).min() > 5


def test_fitted_stitches_are_the_same_in_mixed_precision() -> None:
    stitches = []
    for precision in (None, "bf16"):
        torch.manual_seed(0)
        found = search(SearchSettings(**{**vars(QUICK), **FITTED}))
        found._accelerator = make_accelerator("cpu", mixed_precision=precision)
        before, after = pa.Block("wide", 0, 1), pa.Block("deep", 2, 3)
        with found._accelerator.autocast(), torch.no_grad():
            stitch = found.network.stitch(found.network.joint(before, after))
            x = torch.randn(2, *shared_repository()["wide"].shapes[1].size)
            stitches.append((stitch.state_dict(), stitch(x).float()))
    (one, y), (other, z) = stitches
    assert_same(one, other)
    torch.testing.assert_close(z, y, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("options", [FITTED, {"start": "least_squares"}], ids=["fitted", "least squares"])
def test_nan_is_named_with_its_block_where_something_is_fitted(options: dict[str, Any]) -> None:
    networks = repository()
    poisoned = networks["wide"].segments[2]
    with torch.no_grad():
        next(poisoned.parameters()).fill_(float("nan"))
    named = 0
    for seed in range(4):
        found = search(SearchSettings(**{**vars(QUICK), **options}), repository=networks, seed=seed)
        try:
            found.run_epoch()
        except TensorError as error:
            assert "segment 2 (3) of source 'wide'" in str(error)  # noqa: PT017
            named += 1
    assert named


def test_records_and_candidates() -> None:
    found = search()
    words: list[str] = []
    record = found.run_epoch(words.append)
    assert len(words) == found.steps() == 4
    assert record.epoch == found.epoch == 1
    # 3 candidates in each of 2 rounds, and the likeliest cut points at the end.
    assert len(record.scores) == len(record.parameters) == 7
    assert record.blocks_saved > 0
    assert all(isinstance(size, int) and size > 100 for size in record.parameters)
    assert set(found.best) == set(SELECTIONS)
    best = found.best["validation"]
    assert best.accuracy == record.accuracy
    assert len(best.path) == len(best.factors) == 3
    assert all(0 < factor < 1 for factor in best.factors)
    assert found.best["score"].score == max(s for s in (record.scores[0], record.scores[3], record.scores[6]))


def test_drawn_ways_compare_other_sources_than_the_routers_likeliest() -> None:
    seen = {}
    for ways in ("likeliest", "drawn"):
        settings = SearchSettings(**{**vars(QUICK), "ways": ways, "candidates": 9, "router_rate": 1e-9})
        found = search(settings)
        taken: set[tuple[int, ...]] = set()
        way = found._way

        def noted(*arguments: Any, way: Any = way, taken: set[tuple[int, ...]] = taken) -> tuple[int, ...]:
            taken.add(chosen := way(*arguments))
            return chosen

        found._way = noted  # type: ignore[method-assign]
        found.run_epoch()
        seen[ways] = taken
    assert len(seen["drawn"]) > max(3, len(seen["likeliest"]))


def test_where_accuracy_is_the_reward_every_candidate_may_be_the_result() -> None:
    found = search(SearchSettings(**{**vars(QUICK), **FITTED, "reward": "validation"}))
    kept: list[Any] = []
    keep = found._keep_best
    found._keep_best = lambda candidates: (kept.extend(candidates), keep(candidates))  # type: ignore[method-assign]
    record = found.run_epoch()
    # In each of two rounds the trained one and two others, at the end the likeliest cut points too.
    assert [candidate.parameters for candidate in kept] == list(record.parameters)
    assert [candidate.score for candidate in kept] == list(record.scores)
    assert found.best["validation"].accuracy == max(candidate.accuracy for candidate in kept)


@pytest.mark.parametrize("options", [{}, FITTED], ids=["published", "fitted"])
def test_the_reported_accuracy_is_that_of_the_kept_weights(options: dict[str, Any]) -> None:
    found = search(SearchSettings(**{**vars(QUICK), **options}))
    for _ in range(3):
        found.run_epoch()
    best = found.best["validation"]
    images, labels = next(iter(found.selection.batches(CLASSES, torch.device("cpu"))))
    net = found.network
    parts = {
        str(i): net.stitch(net.joint(a, b)) for i, (a, b) in enumerate(zip(best.path, best.path[1:], strict=False))
    }
    parts["head"] = head = net.head(best.path[-1].network)
    for part, module in parts.items():
        module.load_state_dict({k[len(part) + 1 :]: v for k, v in best.weights.items() if k.startswith(f"{part}.")})
    right = 0
    with torch.no_grad():
        for images, labels in found.selection.batches(CLASSES, torch.device("cpu")):
            right += int((found._logits(best.path, best.factors, head, images).argmax(1) == labels).sum())
    assert right / 48 == pytest.approx(best.accuracy)


def test_only_what_a_step_is_for_moves() -> None:
    found = search()
    partition = {"wide": (0, 2), "deep": (1, 3)}
    images, targets = problem(16)[0], nn.functional.one_hot(problem(16)[1], CLASSES).float()
    generator = torch.Generator().manual_seed(0)
    found._weights_step(images, targets, partition, generator)
    routers = [p.detach().clone() for p in found.network.routers.parameters()]
    weights = {name: p.detach().clone() for name, p in found.network.weights()}
    found._weights_step(images, targets, partition, generator)
    assert all(torch.equal(a, b) for a, b in zip(routers, found.network.routers.parameters(), strict=True))
    moved = dict(found.network.weights())
    assert all(not torch.equal(moved[name], value) for name, value in weights.items())
    weights = {name: p.detach().clone() for name, p in found.network.weights()}
    found._router_step(images, targets, partition, generator)
    moved = dict(found.network.weights())
    assert all(torch.equal(moved[name], value) for name, value in weights.items())
    assert any(not torch.equal(a, b) for a, b in zip(routers, found.network.routers.parameters(), strict=True))
    assert all(p.requires_grad for p in found.network.parameters())


class TestBadInput:
    def test_a_network_that_is_too_short(self) -> None:
        with pytest.raises(OutOfRangeError, match=r"network 'wide' has 4 cut points.* into 6 blocks"):
            search(blocks=6)

    def test_nan_in_a_block_is_named_with_its_source(self) -> None:
        networks = repository()
        for segment in networks["deep"].segments[2:]:
            for parameter in segment.parameters():
                parameter.data.fill_(math.nan)
        for segment in networks["wide"].segments[2:]:
            for parameter in segment.parameters():
                parameter.data.fill_(math.nan)
        with pytest.raises(TensorError, match=r"segment 2 \(\d\) of source '(deep|wide)': \d+ of \d+ elements"):
            search(repository=networks).run_epoch()

    @pytest.mark.parametrize("shape", [(8, 3, 16, 16), (8, 1, 8, 8)])
    def test_images_of_another_shape(self, shape: tuple[int, ...]) -> None:
        found = search()
        found.train = Data.of((torch.zeros(shape), torch.zeros(8).long()), "train", batch_size=4)
        with pytest.raises(TensorError, match=r"accepted: \(B, 3, 8, 8\), which the repository's networks"):
            found.run_epoch()

    def test_more_classes_in_validation(self) -> None:
        found = search()
        images, _ = problem(8)
        found.validation = Data.of((images, torch.arange(8)), "validation", batch_size=4)
        with pytest.raises(TensorError, match=r"validation: label \d.*num_classes=3"):
            found.run_epoch()

    def test_one_batch_and_one_image(self) -> None:
        found = search()
        images, labels = problem(2)
        found.train = Data.of((images[:1], labels[:1]), "train", batch_size=4)
        found.validation = Data.of((images[1:], labels[1:]), "validation", batch_size=4)
        record = found.run_epoch()
        assert found.steps() == 1
        assert math.isfinite(record.weights_loss)

    def test_a_state_of_another_search(self) -> None:
        one = search()
        one.run_epoch()
        with pytest.raises(PyAssembleError, match="a checkpoint of another search"):
            search(num_classes=4).restore(one.document(), state(one))
        with pytest.raises(PyAssembleError, match="a checkpoint of another search"):
            search().restore({}, {})

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"form": "max"}, "unknown form 'max'; known: min, printed"),
            ({"reward": "size"}, "unknown reward"),
            ({"rounds": 0}, "rounds 0; accepted: at least 1"),
            ({"alpha": -1.0}, r"alpha -1.0; accepted: above 0"),
            ({"smoothing": 1.0}, r"smoothing 1.0"),
        ],
    )
    def test_settings(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises((OutOfRangeError, UnknownOptionError), match=words):
            SearchSettings(**options)
