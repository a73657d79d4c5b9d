"""The assembly network: routed forward passes, stitches that are kept, chains that compute the same."""

from __future__ import annotations

import pytest
import torch

from pyassemble.assemble.assembly_network import AssemblyNetwork
from pyassemble.assemble.partition import blocks_of
from pyassemble.assemble.prefixes import run_chains
from pyassemble.errors import UnknownOptionError
from tests.assemble.small import CLASSES, problem, shared_repository

PARTITION = {"wide": (0, 2), "deep": (1, 3)}


def network(**options: object) -> AssemblyNetwork:
    return AssemblyNetwork(shared_repository(), CLASSES, blocks=3, **options)  # type: ignore[arg-type]


def test_is_the_chain_times_the_probabilities() -> None:
    net, (images, _) = network().eval(), problem(6)
    with torch.no_grad():
        routed = net(images, PARTITION)
        path = net.path(PARTITION, routed.choices)
        features = images
        for k, block in enumerate(path):
            if k:
                features = net.stitch(net.joint(path[k - 1], block))(features)
            for segment in net._repository[block.network].segments[block.first : block.last + 1]:
                features = segment(features)
            features = features * routed.factors[k]
        assert torch.equal(routed.logits, net.head(path[-1].network)(features))
        assert routed.logits.shape == (6, CLASSES)
        assert routed.choices == tuple(int(row.argmax()) for row in routed.distributions)
        (plain,), executions = run_chains([net.chain(path)], images)
        assert executions.executed == sum(block.last - block.first + 1 for block in path)
        assert plain.shape == features.shape


def test_every_path_of_a_partition() -> None:
    net, (images, _) = network().eval(), problem(2)
    paths = [net.path(PARTITION, (a, b, c)) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    for choice, path in zip([(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)], paths, strict=True):
        for k, block in enumerate(path):
            segments = len(net._repository[block.network].segments)
            assert (block.first, block.last) == blocks_of(PARTITION[net.names[choice[k]]], segments)[k]
    with torch.no_grad():
        outputs, executions = run_chains([net.chain(path) for path in paths], images)
    assert executions.saved > 0
    for path, output in zip(paths, outputs, strict=True):
        with torch.no_grad():
            (alone,), _ = run_chains([net.chain(path)], images)
        assert torch.equal(output, alone)
    # Both networks uncut give their own features.
    for choice in (0, 1):
        own = net._repository[net.names[choice]].features(images)
        assert torch.equal(outputs[[0, 7][choice]], own)


def test_stitches_are_kept_and_start_from_their_own_seed() -> None:
    net, again = network(seed=3), network(seed=3)
    joints = [(0, 2, 1, 4), (1, 1, 0, 1)]
    first = [net.stitch(joint) for joint in joints]
    other = [again.stitch(joint) for joint in reversed(joints)][::-1]
    for a, b, joint in zip(first, other, joints, strict=True):
        assert net.stitch(joint) is a
        assert torch.equal(a.convolution.weight, b.convolution.weight)
        assert torch.equal(net.initial_stitch(joint).convolution.weight, a.convolution.weight)
        assert net.initial_stitch(joint) is not a
    assert net.joints() == joints
    assert not torch.equal(network(seed=4).stitch(joints[0]).convolution.weight, first[0].convolution.weight)
    assert all(torch.equal(a, b) for a, b in zip(net.routers.parameters(), again.routers.parameters(), strict=True))


def test_gradients_reach_routers_and_stitches_but_no_block() -> None:
    net, (images, labels) = network().train(), problem(8)
    routed = net(images, {"wide": (0, 2), "deep": (1, 3)}, generator=torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(routed.logits, labels).backward()
    assert all(parameter.grad is not None for parameter in net.routers.parameters())
    weights = dict(net.weights())
    assert weights
    assert all(parameter.grad is not None for parameter in weights.values())
    held = {id(parameter) for parameter in net.parameters()}
    for name in net.names:
        for segment in net._repository[name].segments:
            assert not any(module.training for module in segment.modules())
            for parameter in segment.parameters():
                assert parameter.grad is None
                assert id(parameter) not in held


def test_sampled_routing_visits_every_block() -> None:
    net, (images, _) = network(routing="sample").train(), problem(4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        seen = {net(images, PARTITION, generator=generator).choices for _ in range(60)}
        assert len(seen) == 8
        net.eval()
        assert len({net(images, PARTITION).choices for _ in range(5)}) == 1
    with pytest.raises(UnknownOptionError, match="argmax, sample"):
        network(routing="softmax")


def test_parameters_are_counted_once() -> None:
    net = network()
    path = net.path(PARTITION, (0, 0, 0))
    segments = net._repository["wide"].segments
    expected = sum(p.numel() for s in segments for p in s.parameters())
    assert net.parameter_count(path) == expected + sum(p.numel() for p in net.head("wide").parameters())


def test_a_straight_through_factor_is_one_with_the_gradient_of_the_logarithm() -> None:
    plain, straight = network().eval(), network(factor="straight_through").eval()
    straight.load_state_dict(plain.state_dict())
    images, _ = problem(4)
    probabilities = plain(images, PARTITION).factors
    routed = straight(images, PARTITION)
    assert torch.equal(routed.factors, torch.ones(3))
    (path,) = [straight.path(PARTITION, routed.choices)]
    (features,), _ = run_chains([straight.chain(path)], images)
    assert torch.equal(straight.head(path[-1].network)(features), routed.logits)
    first = next(straight.routers[0].parameters())
    (gradient,) = torch.autograd.grad(routed.factors[0], first)
    (wanted,) = torch.autograd.grad(probabilities[0].log(), next(plain.routers[0].parameters()))
    torch.testing.assert_close(gradient, wanted)
    with pytest.raises(UnknownOptionError, match="factor"):
        network(factor="none")
