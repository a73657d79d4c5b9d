"""Routers: probabilities over the next blocks, from an output of any shape."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pyassemble.assemble.routers import Router
from pyassemble.errors import OutOfRangeError, TensorError


@pytest.mark.parametrize("shape", [(4, 16, 7, 7), (1, 3, 32, 32), (5, 17, 24), (3, 2), (2, 2048, 1, 1)])
def test_any_shape_gives_probabilities(shape: tuple[int, ...]) -> None:
    probabilities = Router(5)(torch.randn(shape))
    assert probabilities.shape == (5,)
    assert probabilities.dtype == torch.float32
    assert float(probabilities.detach().sum()) == pytest.approx(1, abs=1e-6)


def test_is_equation_2() -> None:
    router = Router(3, width=8, heads=2).eval()
    x = torch.randn(6, 4, 5)
    flat = torch.stack([F.adaptive_avg_pool1d(row.reshape(1, 1, -1), 8)[0, 0] for row in x])
    samples = F.layer_norm(flat, (8,))
    weight, bias = router.attention.in_proj_weight, router.attention.in_proj_bias
    q, k, v = (samples @ w.T + b for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        heads.append((q[:, h] @ k[:, h].T / 4**0.5).softmax(-1) @ v[:, h])  # row i: sample i over all samples
    mean = router.attention.out_proj(torch.cat(heads, 1)).mean(0)
    torch.testing.assert_close(router(x), router.linear(mean).softmax(-1), rtol=1e-5, atol=1e-6)


def test_order_of_the_batch_does_not_matter() -> None:
    router, x = Router(4).eval(), torch.randn(6, 3, 9)
    torch.testing.assert_close(router(x), router(x[torch.randperm(6)]), rtol=1e-5, atol=1e-6)


def test_noise_in_training_only_and_seeded() -> None:
    router, x = Router(4), torch.randn(6, 40)
    draws = [router(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    router.eval()
    assert torch.equal(router(x), router(x))


def test_gradient_flows_through_the_chosen_probability() -> None:
    router, x = Router(4), torch.randn(6, 40)
    probabilities = router(x)
    chosen = int(probabilities.argmax())
    (probabilities[chosen] * torch.ones(6, 3)).sum().backward()
    for name, parameter in router.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
    assert float(router.linear.bias.grad[chosen]) > 0
    assert all(float(router.linear.bias.grad[other]) < 0 for other in range(4) if other != chosen)


def test_bad_input() -> None:
    for shape in ((0, 3), (5,), (2, 0)):
        with pytest.raises(TensorError, match="router input of shape"):
            Router(3)(torch.zeros(shape))
    for arguments in ({"choices": 0}, {"choices": 2, "width": 6}, {"choices": 2, "noise": 1.0}):
        with pytest.raises(OutOfRangeError):
            Router(**arguments)
