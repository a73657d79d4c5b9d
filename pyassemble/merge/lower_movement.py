"""Operations of the wide student that move channels: reshapes, splits, and whatever else puts elements elsewhere."""

from __future__ import annotations

import operator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx import map_arg

from pyassemble.merge.layout import Places, recognize, wide_labels
from pyassemble.merge.lowering import Lowering, Wide
from pyassemble.network import operations as ops
from pyassemble.network.labels import compact, varying
from pyassemble.network.traced import is_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

_RESHAPES = ("reshape", "view", "flatten", "unflatten", "reshape_as", "view_as")
_PERMUTATIONS = ("transpose", "permute", "swapaxes", "swapdims", "movedim", "contiguous", "channel_shuffle")
_PICKS = ("getitem", "split", "chunk", "unbind", "narrow", "select")


class LowerMovement(Lowering):
    """Rules for operations that compute nothing."""

    def moved(self, node: fx.Node, name: str) -> tuple[Any, Wide]:
        """An operation that puts elements elsewhere."""
        argument = node.all_input_nodes[0]
        if (shuffled := self.shuffled(node, argument)) is not None:
            return shuffled
        if name in _RESHAPES:
            return self.reshaped(node, argument)
        if name == "expand_as":
            return self.expanded_as(node, argument)
        if any(self.placed(other) is not None for other in node.all_input_nodes[1:]):
            self.refuse(node, "moves channels by the shape of another tensor")
        if name == "expand":
            return self.expanded(node, argument)
        if name in _PICKS and not isinstance(self.wide[argument], tuple):
            picked = self.picked(node, argument)
            if picked is not None:
                return picked
        if name == "getitem" and isinstance(self.wide[argument], tuple):
            place = node.args[1]
            if isinstance(self.made[argument], tuple | list):
                return self.made[argument][place], self.wide[argument][place]
            return self.copied(node), self.wide[argument][place]

        return self.copied(node), self.followed(node, partial(self.done_to, node, argument), [argument])

    def shuffled(self, node: fx.Node, argument: fx.Node) -> tuple[Any, Wide] | None:
        """Steps from here on that together put channels into another order, as a shuffle between groups does.

        Nothing is moved for them: each channel is known by its new place from then on. Each step by itself would need
        equally many channels of each teacher in each of the groups. None where there are no such steps.
        """
        steps = self.steps_back_to_shape(node, argument) if self.moves(node) else None
        if steps is None:
            return None
        places, shape = self.placed(argument), self.fact(argument).shape
        before = torch.arange(shape.numel()).reshape(shape)
        after, previous = before, argument
        for step in steps:
            after, previous = self.done_to(step, previous, after), step
        stride = before.stride(places.dim)
        order = after.movedim(places.dim, 0).reshape(shape[places.dim], -1)[:, 0] // stride % shape[places.dim]
        if not torch.equal(after, before.index_select(places.dim, order)):
            return None
        result = Places(places.dim, places.teacher, torch.argsort(order)[places.index])
        for step in steps[:-1]:
            self.passed[step] = None, None
        self.passed[steps[-1]] = self.made[argument], result
        return self.passed[node]

    def steps_back_to_shape(self, node: fx.Node, argument: fx.Node) -> list[fx.Node] | None:
        """Steps that move elements, each into the next alone, up to the first whose result has the argument's shape."""
        steps, shape = [node], self.fact(argument).shape
        while self.fact(steps[-1]).shape != shape:
            following = list(steps[-1].users)
            if len(following) != 1 or not self.moves(following[0]):
                return None
            steps += following
        return steps

    def moves(self, node: fx.Node) -> bool:
        """Whether a step takes one tensor and puts its elements elsewhere, as it stands in its other arguments."""
        if node.op == "call_module":
            return isinstance(self.root.get_submodule(str(node.target)), nn.ChannelShuffle)
        tensors = [argument for argument in node.all_input_nodes if is_tensor(self.fact(argument))]
        return ops.operation_name(node) in (*_RESHAPES, *_PERMUTATIONS) and len(tensors) == 1

    def done_to(self, node: fx.Node, argument: fx.Node, value: Tensor) -> Any:
        """What a step gives for another value of one of its arguments."""
        args = map_arg(node.args, lambda a: value if a is argument else self.fact(a))
        kwargs = map_arg(node.kwargs, lambda a: value if a is argument else self.fact(a))
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def followed(self, node: fx.Node, apply: Callable[[Tensor], Any], arguments: list[fx.Node]) -> Wide:
        """Places after an operation that is done to the wide tensor as it is."""
        (argument,) = arguments
        plain, wide = self.both_labels(argument)
        try:
            before, after = apply(plain), apply(wide)
        except Exception as error:  # whatever torch raises where sizes do not fit
            self.refuse(node, f"does not fit several teachers' channels: {str(error).splitlines()[0]}")
        dims = None
        places = self.placed(argument)
        if places.size == plain.shape[places.dim]:
            # Nothing is wider to be recognized by: where does a second copy go?
            try:
                dims = _wider(before, apply(torch.cat((plain, plain), places.dim)))
            except (RuntimeError, IndexError):
                dims = None
        return self.recognized(node, before, after, argument, dims)

    def both_labels(self, argument: fx.Node) -> tuple[Tensor, Tensor]:
        """Labels of the teachers' and of the wide tensor, at their full shapes."""
        labels, places = self.label(argument), self.placed(argument)
        shape = self.fact(argument).shape
        wide_shape = list(shape)
        wide_shape[places.dim] = places.size
        wide = wide_labels(labels, places, self.coupling.count, shape[places.dim])
        return labels.expand(shape), wide.expand(wide_shape)

    def recognized(self, node: fx.Node, before: Any, after: Any, argument: fx.Node, dims: Any = None) -> Wide:
        """Places of the result, read off its labels."""
        if isinstance(before, tuple | list):
            if len(before) != len(after):
                self.refuse(node, "splits the teachers' channels at other places than one network's")
            each = dims if isinstance(dims, tuple) else [None] * len(before)
            pieces = zip(before, after, each, strict=True)
            return tuple(self.recognized(node, b, a, argument, wider) for b, a, wider in pieces)
        plain = compact(before)
        different = [d for d in range(before.ndim) if before.shape[d] != after.shape[d]]
        dims = different or dims or varying(plain) or list(range(before.ndim))
        if before.ndim != after.ndim or len(different) > 1:
            self.refuse(node, "does not do to several teachers' channels what it does to one network's")
        for dim in dims:
            shape_plain, shape_wide = _narrowed(before, dim), _narrowed(after, dim)
            found = recognize(shape_wide, shape_plain, self.coupling.count, [dim])
            if found is not None and found.size == self.expected(shape_plain, dim):
                return found
        return self.refuse(node, "does not do to several teachers' channels what it does to one network's")

    def expected(self, labels: Tensor, dim: int) -> int:
        """How many slices the kept units make along a dimension."""
        line = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)[:, 0]
        return sum(int(self.kept.holds(line, teacher).sum()) for teacher in range(len(self.teachers)))

    def reshaped(self, node: fx.Node, argument: fx.Node) -> tuple[Any, Wide]:
        """A reshape: along which dimension are the teachers in its result?"""
        plain, wide = self.both_labels(argument)
        shape = list(self.fact(node).shape)
        before = plain.reshape(shape)
        factor = wide.numel(), plain.numel()
        # Heads, not the channels inside them, are what teachers have more of.
        unit = self.kept.groups.unit_of[before]
        likely = [d for d in reversed(varying(compact(before))) if not bool((unit == unit.narrow(d, 0, 1)).all())]
        if bool((unit == unit.reshape(-1)[0]).all()):
            likely = [d for d in reversed(range(len(shape))) if shape[d] == 1]  # a single head
        inside = [d for d in reversed(varying(compact(before))) if d not in likely]
        others = [d for d in range(len(shape)) if d not in likely and d not in inside]
        for dims in (likely, inside, others):
            for dim, directly in [(d, True) for d in dims] + [(d, False) for d in dims]:
                size, rest = divmod(shape[dim] * factor[0], factor[1])
                if rest or not size:
                    continue
                target = [*shape[:dim], size, *shape[dim + 1 :]]
                if not directly:
                    done = self.reshaped_after_reordering(node, argument, before, dim, target)
                    if done is not None:
                        return done
                    continue
                line = _narrowed(before, dim)
                found = recognize(_narrowed(wide.reshape(target), dim), line, self.coupling.count, [dim])
                if found is not None and found.size == self.expected(line, dim):
                    return self.emit_reshape(node, argument, self.made[argument], shape, dim, size), found
        return self.refuse(node, "does not do to several teachers' channels what it does to one network's")

    def reshaped_after_reordering(
        self, node: fx.Node, argument: fx.Node, before: Tensor, dim: int, target: list[int]
    ) -> tuple[Any, Wide] | None:
        """A reshape that needs the teachers' channels in another order than the layers before it give them."""
        places, (plain, wide) = self.placed(argument), self.both_labels(argument)
        line = before.movedim(dim, 0).reshape(before.shape[dim], -1)[:, 0]
        order = [torch.nonzero(self.kept.holds(line, t))[:, 0] for t in range(len(self.teachers))]
        desired = torch.cat(
            [before.index_select(dim, mine) + self.coupling.count * t for t, mine in enumerate(order)], dim
        )
        if list(desired.shape) != target:
            return None
        found = recognize(
            _narrowed(desired.reshape(wide.shape), places.dim),
            _narrowed(plain, places.dim),
            self.coupling.count,
            [places.dim],
        )
        if found is None or sorted(_keys(found)) != sorted(_keys(places)):
            return None
        x = self.take(self.made[argument], places.dim, found.order_from(places), places.size)
        result = Places(
            dim,
            torch.cat([torch.full_like(mine, t) for t, mine in enumerate(order)]),
            torch.cat(order),
        )
        return self.emit_reshape(node, argument, x, list(before.shape), dim, target[dim]), result

    def emit_reshape(self, node: fx.Node, argument: fx.Node, x: Any, shape: list[int], dim: int, size: int) -> fx.Node:
        """The reshape with the wide size in place of a teacher's."""
        # Where several teachers' channels were picked from, memory has gaps that a view cannot span.
        name = ops.operation_name(node).replace("view", "reshape")
        if name.endswith("_as"):
            like = node.args[1]
            assert isinstance(like, fx.Node)
            if self.placed(like) is None or self.placed(like).dim != dim or self.placed(like).size != size:
                self.refuse(node, "takes the shape of a tensor with other channels")
            return self.graph.call_method(name, (x, self.made[like]))
        if name == "flatten":
            return self.copied(node, (x, *self.map(node.args[1:])))
        if name == "unflatten":
            split = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
            sizes = list(self.map(node.args[2] if len(node.args) > 2 else node.kwargs["sizes"]))
            assert isinstance(split, int)
            place = dim - split % self.fact(argument).ndim
            if 0 <= place < len(sizes):
                sizes[place] = size
            return self.graph.call_method("unflatten", (x, split, tuple(sizes)))
        given = node.args[1:] if len(node.args) > 2 else node.args[1:2] or (node.kwargs.get("shape"),)
        sizes = list(self.sizes(given))
        if len(sizes) != len(shape):
            self.refuse(node, "names its shape in a way that is not known")
        if sizes[dim] != -1:
            sizes[dim] = size
        return self.graph.call_method(name, (x, tuple(sizes)))

    def sizes(self, given: tuple[Any, ...]) -> Any:
        """The sizes that an operation names one by one, in a tuple, or as another tensor's shape."""
        mapped = self.map(given)
        return mapped[0] if len(mapped) == 1 and isinstance(mapped[0], tuple | list) else mapped

    def expanded(self, node: fx.Node, argument: fx.Node) -> tuple[Any, Wide]:
        """An expansion along other dimensions than that of the channels."""
        places, ndim = self.placed(argument), self.fact(node).ndim
        dim = places.dim + ndim - self.fact(argument).ndim
        if self.fact(node).shape[dim] != self.fact(argument).shape[places.dim]:
            self.refuse(node, "repeats channels")
        given = node.args[1:] if len(node.args) > 2 else node.args[1:2]
        sizes = list(self.sizes(given))
        sizes[dim] = -1
        return self.graph.call_method("expand", (self.made[argument], *sizes)), places.on(dim)

    def expanded_as(self, node: fx.Node, argument: fx.Node) -> tuple[Any, Wide]:
        """An expansion to the shape of a tensor with as many channels at the same place."""
        like = node.args[1]
        assert isinstance(like, fx.Node)
        places, other = self.placed(argument), self.placed(like)
        dim = 0 if places is None else places.dim + self.fact(node).ndim - self.fact(argument).ndim
        if places is None or other is None or other.dim != dim or other.size != places.size:
            self.refuse(node, "takes the shape of a tensor with other channels")
        if self.fact(node).shape[dim] != self.fact(argument).shape[places.dim]:
            self.refuse(node, "repeats channels")
        return self.copied(node), places.on(dim)

    def picked(self, node: fx.Node, argument: fx.Node) -> tuple[Any, Wide] | None:
        """A choice among channels: each piece is taken where the teachers' channels lie. None where none is cut."""
        places, shape = self.placed(argument), self.fact(argument).shape
        line = torch.arange(shape[places.dim]).reshape([-1 if d == places.dim else 1 for d in range(len(shape))])
        pieces = self.done_to(node, argument, line.expand(shape))
        several = isinstance(pieces, tuple | list)
        found = []
        for piece in pieces if several else [pieces]:
            if piece.ndim != len(shape):
                return None
            values = piece.movedim(places.dim, 0).reshape(piece.shape[places.dim], -1)[:, 0]
            if len(values) == shape[places.dim]:
                return self.picked_elsewhere(node, argument, places)
            if any(piece.shape[d] != shape[d] for d in range(len(shape)) if d != places.dim):
                self.refuse(node, "cuts channels and another dimension at once")
            where = {int(value): place for place, value in enumerate(values)}
            positions = torch.tensor([p for p, i in enumerate(places.index.tolist()) if i in where], dtype=torch.int64)
            index = torch.tensor([where[int(i)] for i in places.index[positions]], dtype=torch.int64)
            taken = self.take(self.made[argument], places.dim, positions, places.size)
            found.append((taken, Places(places.dim, places.teacher[positions], index)))
        if several:
            return tuple(made for made, _ in found), tuple(place for _, place in found)
        return found[0]

    def picked_elsewhere(self, node: fx.Node, argument: fx.Node, places: Places) -> tuple[Any, Wide] | None:
        """An index that takes all channels, perhaps by their number, and chooses along other dimensions."""
        if node.target is not operator.getitem:
            return None
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if len(index) <= places.dim or not all(isinstance(part, slice) for part in index):
            return None
        freed = (*index[: places.dim], slice(None), *index[places.dim + 1 :])
        return self.copied(node, (self.made[argument], self.map(freed))), places


def _wider(before: Any, after: Any) -> Any:
    """The dimensions in which a result is wider than another; a tuple of these for several results."""
    if isinstance(before, tuple | list):
        return tuple(_wider(b, a) for b, a in zip(before, after, strict=True)) if len(before) == len(after) else None
    return [d for d in range(before.ndim) if after.shape[d] != before.shape[d]]


def _narrowed(labels: Tensor, dim: int) -> Tensor:
    """The same labels, compact along every dimension but one."""
    for other in range(labels.ndim):
        if other != dim and labels.shape[other] > 1:
            first = labels.narrow(other, 0, 1)
            if bool((labels == first).all()):
                labels = first
    return labels


def _keys(places: Places) -> list[tuple[int, int]]:
    return list(zip(places.teacher.tolist(), places.index.tolist(), strict=True))
