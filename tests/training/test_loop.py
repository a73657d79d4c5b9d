"""The training loop: it learns, it repeats itself, and it leaves flags as they were."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyassemble.errors import PyAssembleError
from pyassemble.training import EpochResult, evaluate, fit, fit_epoch, in_order, random_crop, random_flip


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))


def bright_or_dark(count: int = 256) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (count,), generator=generator)
    return torch.randn(count, 1, 4, 4, generator=generator) + 2.0 * (2 * labels - 1)[:, None, None, None], labels


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class TestFit:
    def test_learns_a_separable_problem(self) -> None:
        images, labels = bright_or_dark()
        net = network()
        results = fit(net, images, labels, epochs=6, batch_size=32, learning_rate=1e-2)
        assert evaluate(net, images, labels) == 1.0
        assert [r.epoch for r in results] == [1, 2, 3, 4, 5, 6]
        assert results[-1].loss < results[0].loss / 2
        assert all(r.seconds > 0 for r in results)

    @pytest.mark.parametrize("autocast", [None, torch.bfloat16])
    def test_same_seed_same_weights(self, autocast: torch.dtype | None) -> None:
        images, labels = bright_or_dark()
        augment = in_order(random_flip, random_crop)
        nets = [network() for _ in range(3)]
        for number, (net, seed) in enumerate(zip(nets, (5, 5, 6), strict=True)):
            torch.manual_seed(number)  # the global generator must not matter
            fit(net, images, labels, epochs=2, batch_size=50, seed=seed, augment=augment, autocast=autocast)
        assert equal(nets[0], nets[1])
        assert not equal(nets[0], nets[2])

    def test_weights_keep_their_dtype_under_autocast(self) -> None:
        net = network()
        fit(net, *bright_or_dark(64), epochs=1, autocast=torch.bfloat16)
        assert {p.dtype for p in net.parameters()} == {torch.float32}

    def test_prepare_is_applied_in_training_and_evaluation(self) -> None:
        images, labels = bright_or_dark()
        stored = (images * 20 + 128).clamp(0, 255).to(torch.uint8)
        seen: list[torch.dtype] = []

        def prepare(batch: Tensor) -> Tensor:
            seen.append(batch.dtype)
            return (batch.float() - 128) / 20

        net = network()
        fit(net, stored, labels, epochs=4, batch_size=64, learning_rate=1e-2, prepare=prepare)
        assert evaluate(net, stored, labels, prepare=prepare) > 0.99
        assert set(seen) == {torch.uint8}

    def test_callbacks(self) -> None:
        epochs: list[EpochResult] = []
        steps: list[tuple[int, int]] = []
        fit(
            network(),
            *bright_or_dark(100),
            epochs=2,
            batch_size=40,
            after_epoch=epochs.append,
            after_step=lambda step, of: steps.append((step, of)),
        )
        assert [e.epoch for e in epochs] == [1, 2]
        assert steps == [(i, 6) for i in range(1, 7)]

    def test_a_last_batch_of_one_image_is_left_out(self) -> None:
        # A batch norm on one pixel would refuse it.
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        steps: list[int] = []
        fit(net, *bright_or_dark(65), epochs=1, batch_size=32, after_step=lambda step, of: steps.append(of))
        assert steps == [2, 2]

    def test_no_epoch_changes_nothing(self) -> None:
        net = network()
        assert fit(net, *bright_or_dark(8), epochs=0) == []
        assert equal(net, network())

    def test_interrupt_leaves_flags_as_they_were(self) -> None:
        net = network().eval()

        def interrupt(step: int, of: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(net, *bright_or_dark(64), epochs=1, after_step=interrupt)
        assert not any(module.training for module in net.modules())
        assert evaluate(net, *bright_or_dark(64)) >= 0

    def test_a_frozen_batch_norm_stays_frozen(self) -> None:
        net = network().train()
        net[1].eval()
        before = net[1].running_mean.clone()
        fit(net, *bright_or_dark(64), epochs=1)
        assert torch.equal(net[1].running_mean, before)
        assert [module.training for module in net] == [True, False, True, True, True]

    @pytest.mark.parametrize(
        ("images", "labels"),
        [
            (torch.zeros(3, 1, 4, 4), torch.zeros(2, dtype=torch.int64)),
            (torch.zeros(2, 1, 4, 4), torch.zeros(2)),
            (torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)),
            (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, dtype=torch.int64)),
        ],
    )
    def test_refuses_data_that_does_not_belong_together(self, images: Tensor, labels: Tensor) -> None:
        net = network()
        with pytest.raises(PyAssembleError, match="labels"):
            fit(net, images, labels, epochs=1)
        with pytest.raises(PyAssembleError, match="labels"):
            evaluate(net, images, labels)
        assert equal(net, network())


class TestFitEpoch:
    def test_any_optimizer_and_loss(self) -> None:
        net = nn.Linear(3, 1)
        inputs = torch.randn(64, 3)
        targets = inputs.sum(1, keepdim=True)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        losses = [fit_epoch(net, [(inputs, targets)], optimizer, loss=nn.functional.mse_loss) for _ in range(60)]
        assert losses[-1] < 1e-2 * losses[0]

    def test_without_batches(self) -> None:
        net = nn.Linear(3, 1)
        assert math.isnan(fit_epoch(net, [], torch.optim.SGD(net.parameters())))


class TestEvaluate:
    @pytest.mark.parametrize("batch_size", [1, 7, 500])
    def test_is_the_share_of_right_answers(self, batch_size: int) -> None:
        scores = torch.eye(4)[torch.tensor([0, 1, 2, 3, 3, 3, 3, 3, 3, 3])]
        labels = torch.tensor([0, 1, 2, 0, 0, 0, 0, 0, 0, 3])
        assert evaluate(nn.Identity(), scores, labels, batch_size=batch_size) == 0.4

    def test_leaves_every_training_flag(self) -> None:
        net = network().train()
        net[1].eval()
        evaluate(net, *bright_or_dark(16))
        assert [module.training for module in net] == [True, False, True, True, True]

    def test_changes_nothing_and_keeps_no_graph(self) -> None:
        net = network()
        evaluate(net, *bright_or_dark(16))
        assert equal(net, network())
        assert all(p.grad is None for p in net.parameters())

    def test_flags_survive_an_error(self) -> None:
        net = network().train()
        with pytest.raises(RuntimeError):
            evaluate(net, torch.zeros(2, 5, 4, 4), torch.zeros(2, dtype=torch.int64))
        assert all(module.training for module in net.modules())


class TestAugmentation:
    def test_flip_mirrors_about_half_of_the_images(self) -> None:
        images = torch.arange(4.0).expand(1000, 1, 2, 4)
        flipped = random_flip(images, torch.Generator().manual_seed(0))
        mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
        assert 400 < int(mirrored.sum()) < 600
        assert torch.equal(flipped[~mirrored], images[~mirrored])

    def test_crop_is_a_shift_with_zeros_coming_in(self) -> None:
        image = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
        padded = nn.functional.pad(image, (2, 2, 2, 2))[0, 0]
        windows = {tuple(padded[y : y + 4, x : x + 4].flatten().tolist()) for y in range(5) for x in range(5)}
        crops = random_crop(image.expand(2000, 2, 4, 4), torch.Generator().manual_seed(0), padding=2)
        assert torch.equal(crops[:, 0], crops[:, 1])
        assert {tuple(crop.flatten().tolist()) for crop in crops[:, 0]} == windows
