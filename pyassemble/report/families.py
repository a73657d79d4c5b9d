"""The family of a network, read from its name."""

from __future__ import annotations

import re

# Where the name came from, or what was done to the architecture, but not which architecture it is.
_ORIGINS = frozenset({"tf", "legacy", "test", "pretrained", "quantized"})
_SIZES = (
    *("atto", "femto", "pico", "nano", "mini", "tiny", "wee", "small", "little", "light", "lite"),
    *("medium", "mid", "base", "wide", "big", "large", "huge", "giant"),
)
# A word that ends so names an architecture by itself, whatever stands before the ending.
_NET = r"(?:net|next|vit|former)"
_SHORTEST_STEM = 3


def family(name: str) -> str:
    """The family that a name tells of: ``resnet`` of ``resnet50``, ``efficientnet`` of ``tf_efficientnet_b7_ns``.

    The rule looks at the text alone, in the way names are made in timm, torchvision and on the Hub:

    1. The source (``torchvision:``, ``hf-hub:ORG/``, a folder or file) and the tag of the weights (``.a1_in1k``) go.
    2. Of the words that remain, leading ones go that tell of the origin (``tf``, ``legacy``) or refine what follows:
       at most three letters, or a size, before a word such as ``…net`` or ``…vit`` (``eca_nfnet``, ``wide_resnet``).
    3. The first word is kept up to its digits, unless these stand inside (``res2net50`` is of ``res2net``), without a
       size at its end (``pnasnet5large``) and without a version: ``convnextv2_tiny`` is of ``convnext``, since the
       families are for the eye, and versions lie side by side in most similarities.

    A name without a letter is its own family.
    """
    words = _words(name)
    while len(words) > 1 and _is_qualifier(words[0], words[1]):
        del words[0]
    return _stem(words[0]) if words else name


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without source and tag; numbers at the beginning are no words."""
    last = re.split(r"[:/\\]", name.rstrip(":/\\ "))[-1]
    words = re.findall(r"[^\W_]+", last.split(".")[0] or last)
    while words and not re.search(r"[^\W\d_]", words[0]):
        del words[0]
    return [word.lower() for word in words]


def _is_qualifier(word: str, following: str) -> bool:
    if word in _ORIGINS:
        return True
    refines = word in _SIZES or re.fullmatch(r"[^\W\d_]{1,3}", word) is not None
    return refines and re.match(rf"[^\W\d_]*{_NET}(?![^\W\d_])", _without_version(following)) is not None


def _stem(word: str) -> str:
    """A word without its depth, size and version; the whole word where fewer than three letters would remain."""
    inside = re.match(rf"[^\W\d_]+\d+[^\W\d_]*{_NET}(?![^\W\d_])", word)
    if inside is not None:
        return inside[0]
    letters = re.match(r"[^\W\d_]*", _without_version(word))
    stem = _without_size(letters[0] if letters else "")
    return stem if len(stem) >= _SHORTEST_STEM else word


def _without_version(word: str) -> str:
    """``convnext`` of ``convnextv2``; four letters must come before, so that ``conv2d`` is none."""
    return re.sub(r"(?<=[^\W\d_]{4})v\d+[^\W\d_]?$", "", word)


def _without_size(stem: str) -> str:
    for size in _SIZES:
        shorter = stem.removesuffix(size)
        if shorter != stem and len(shorter) > len(size):
            return shorter
    return stem
