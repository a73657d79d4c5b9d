"""PPO: the objective's two forms, the running advantage, and a policy that learns from rewards."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from pyassemble.assemble.partition import PartitionNetwork
from pyassemble.assemble.ppo import PPO, RunningAdvantage, clipped_objective
from pyassemble.errors import PyAssembleError, TensorError, UnknownOptionError


class TestObjective:
    def test_forms_differ_only_for_negative_advantages(self) -> None:
        ratio = torch.tensor([0.5, 0.9, 1.0, 1.1, 2.0])
        for advantage in (torch.ones(5), torch.zeros(5)):
            assert torch.equal(clipped_objective(ratio, advantage), clipped_objective(ratio, advantage, form="printed"))
        worse = -torch.ones(5)
        assert clipped_objective(ratio, worse).tolist() == pytest.approx([-0.8, -0.9, -1.0, -1.1, -2.0])
        printed = clipped_objective(ratio, worse, form="printed")
        assert printed.tolist() == pytest.approx([-0.5, -0.9, -1.0, -1.1, -1.2])

    def test_no_gradient_beyond_the_clip(self) -> None:
        ratio = torch.tensor([1.5, 0.5], requires_grad=True)
        clipped_objective(ratio, torch.tensor([1.0, -1.0])).sum().backward()
        assert ratio.grad.tolist() == [0.0, 0.0]

    def test_unknown_form(self) -> None:
        with pytest.raises(UnknownOptionError, match="min, printed"):
            clipped_objective(torch.ones(1), torch.ones(1), form="max")
        with pytest.raises(UnknownOptionError, match="min, printed"):
            PPO([torch.nn.Parameter(torch.zeros(1))], form="max")


class TestAdvantage:
    def test_is_standardized_by_all_rewards_so_far(self) -> None:
        advantage, rewards = RunningAdvantage(), 5 + 3 * torch.randn(40)
        assert advantage(rewards[:1]).tolist() == [0.0]
        for start in range(1, 40, 3):
            found = advantage(rewards[start : start + 3])
        so_far = rewards.double()
        torch.testing.assert_close(found.double(), (so_far[37:] - so_far.mean()) / so_far.std(), rtol=1e-5, atol=1e-6)

    def test_state_is_kept(self) -> None:
        one, other = RunningAdvantage(), RunningAdvantage()
        one(torch.randn(7))
        other.load_state_dict(one.state_dict())
        rewards = torch.randn(3)
        assert torch.equal(one(rewards), other(rewards))

    def test_equal_rewards_have_no_advantage(self) -> None:
        assert RunningAdvantage()(torch.full((4,), 1e3 + 0.1)).tolist() == [0.0] * 4

    def test_refuses_what_is_not_finite(self) -> None:
        advantage = RunningAdvantage()
        for bad in (math.nan, math.inf, -math.inf):
            with pytest.raises(TensorError, match="finite"):
                advantage(torch.tensor([1.0, bad]))
        assert advantage.count == 0


def train(seed: int, form: str, steps: int) -> tuple[PartitionNetwork, PPO, torch.Tensor]:
    """Cutting network "a" at 1 and 3 is rewarded, with noise."""
    generator = torch.Generator().manual_seed(seed)
    policy = PartitionNetwork(4, {"a": 5}, cuts=2)
    ppo = PPO(policy.parameters(), learning_rate=0.02, form=form)
    features = torch.randn(8, 4, generator=generator)
    for _ in range(steps):
        logits = policy(features)
        draws = [policy.sample(logits, generator=generator) for _ in range(4)]
        rewards = torch.tensor([float(len({1, 3} & set(draw["a"]))) for draw in draws])
        rewards += 0.3 * torch.randn(4, generator=generator)

        def log_probabilities(draws: list[dict[str, tuple[int, ...]]] = draws) -> torch.Tensor:
            now = policy(features)
            return torch.stack([policy.log_probability(now, draw) for draw in draws])

        step = ppo.step(log_probabilities, rewards)
        assert len(step.objective) == ppo.inner_steps + 1
    return policy, ppo, features


@pytest.mark.parametrize("form", ["min", "printed"])
def test_learns_the_rewarded_cuts(form: str) -> None:
    policy, _, features = train(0, form, 80)
    logits = policy(features)
    assert policy.best(logits) == {"a": (1, 3)}
    assert policy.log_probability(logits, {"a": (1, 3)}).item() > math.log(0.5)


def test_inner_steps_raise_the_objective() -> None:
    logits = torch.nn.Parameter(torch.zeros(3))
    ppo = PPO([logits], learning_rate=0.01)
    step = ppo.step(lambda: logits.log_softmax(0), torch.tensor([3.0, 2.0, 1.0]))
    assert list(step.objective) == sorted(step.objective)
    assert step.objective[-1] > step.objective[0]
    assert 0 < step.ratio < 0.2
    assert logits.grad is None


def test_a_saved_state_goes_on_the_same() -> None:
    rewards = [torch.randn(3) for _ in range(6)]
    whole = torch.nn.Parameter(torch.zeros(3))
    ppo = PPO([whole], learning_rate=0.05)
    for number, reward in enumerate(rewards):
        if number == 3:
            saved = (whole.detach().clone(), copy.deepcopy(ppo.state_dict()))
        ppo.step(lambda: whole.log_softmax(0), reward)
    again = torch.nn.Parameter(saved[0])
    ppo = PPO([again], learning_rate=0.05)
    ppo.load_state_dict(saved[1])
    for reward in rewards[3:]:
        ppo.step(lambda: again.log_softmax(0), reward)
    assert torch.equal(whole, again)


def test_bad_input() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(PyAssembleError, match="clip in"):
        PPO([parameter], clip=1.5)
    with pytest.raises(TensorError, match=r"accepted: \(K"):
        PPO([parameter]).step(lambda: parameter.log_softmax(0), torch.zeros(2))
