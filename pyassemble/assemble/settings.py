"""What a search does beside its repository, data and number of blocks; the defaults are the publication's."""

from __future__ import annotations

from dataclasses import dataclass

from pyassemble.assemble.assembly_network import FACTORS, ROUTING
from pyassemble.assemble.batch_statistics import check_statistics
from pyassemble.assemble.ppo import FORMS
from pyassemble.errors import OutOfRangeError, UnknownOptionError

REWARDS = ("score", "validation")
STARTS = ("random", "least_squares")
HEADS = ("trained", "fitted")
WAYS = ("likeliest", "drawn")


@dataclass(frozen=True)
class SearchSettings:
    """Numbers and named options of :func:`pyassemble.assemble` (PA-DNN, section on experiments).

    Attributes:
        batch_size: Images in a step.
        rounds: Partitions that are trained in an epoch, one after the other; after each the policy takes a step.
        candidates: Partitions whose reward a step of the policy sees: the trained one and others drawn beside it.
        score_images: Images of the validation half that the score is taken on.
        score_batch: Images at a time there.
        alpha: Amplitude of the score's perturbation.
        statistics: Of batch normalization in the score: "stored", as published, or those of each "batch": behind random
            stitches the stored ones do not fit, and the score is mostly the network's gain.
        selection_images: Images of the validation half that candidates are compared on.
        weights_rate: AdamW's learning rate for stitches and heads.
        router_rate: SGD's for the routers.
        policy_rate: Adam's for the partition network.
        clip: xi of the clipped objective.
        inner_steps: T, gradient steps of the policy on the same draws.
        form: Of the clipped objective, "min" or "printed".
        routing: How a block is chosen in training, "argmax" or "sample".
        ways: Through the partitions that are drawn beside the trained one: the routers' "likeliest", as published, or
            "drawn" with their probabilities, which compares other sources too while the routers cannot tell them apart.
        reward: What the policy is rewarded for: the training-free "score", as published, or accuracy on the validation
            half ("validation"), which costs a pass over ``selection_images`` for each candidate; every one may then be
            the result, not the trained ones only.
        start: Of stitches: "random", as published, or the "least_squares" map from the one network's own features to
            the other's, on images of the training half. The score takes random ones in any case.
        head: Of the assemblies that are compared: as "trained" with the stitches so far, as published, or "fitted" to
            each of them by logistic regression on images of the training half; training then begins with one fitted
            to its network's own features.
        factor: Of a chosen block's output: its router's "probability", as published, or 1 with the gradient of the
            probability's logarithm ("straight_through"), which leaves fitted stitches and heads the size of features
            they were fitted to.
        start_images: How many images a fitted stitch or head takes.
        mixup: alpha of Mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        smoothing: Of the labels.
    """

    batch_size: int = 64
    rounds: int = 4
    candidates: int = 4
    score_images: int = 2048
    score_batch: int = 64
    alpha: float = 0.01
    statistics: str = "stored"
    selection_images: int = 2048
    weights_rate: float = 1e-3
    router_rate: float = 0.01
    policy_rate: float = 5e-5
    clip: float = 0.2
    inner_steps: int = 4
    form: str = "min"
    routing: str = "argmax"
    ways: str = "likeliest"
    reward: str = "score"
    start: str = "random"
    head: str = "trained"
    factor: str = "probability"
    start_images: int = 256
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_statistics(self.statistics)
        options = {
            "form": FORMS,
            "routing": ROUTING,
            "ways": WAYS,
            "reward": REWARDS,
            "start": STARTS,
            "head": HEADS,
            "factor": FACTORS,
        }
        for option, known in options.items():
            if getattr(self, option) not in known:
                raise UnknownOptionError(option, getattr(self, option), known)
        counts = ("batch_size", "rounds", "candidates", "score_images", "score_batch", "selection_images")
        for name in (*counts, "inner_steps", "start_images"):
            if getattr(self, name) < 1:
                raise OutOfRangeError(f"{name} {getattr(self, name)}; accepted: at least 1")
        for name in ("alpha", "weights_rate", "router_rate", "policy_rate"):
            if not getattr(self, name) > 0:
                raise OutOfRangeError(f"{name} {getattr(self, name)}; accepted: above 0")
        for name, stop in (("mixup", float("inf")), ("cutmix", float("inf")), ("smoothing", 1.0)):
            if not 0 <= getattr(self, name) < stop:
                raise OutOfRangeError(f"{name} {getattr(self, name)}; accepted: 0 or more, below {stop}")
