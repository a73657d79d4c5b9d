"""The similarities of a zoo as one self-contained HTML page to explore."""

from __future__ import annotations

import json
from base64 import b64encode
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from pyassemble.atomic import replacing
from pyassemble.errors import UnknownOptionError
from pyassemble.report.clustering import order
from pyassemble.report.families import family
from pyassemble.report.family_runs import OTHER_COLOUR, family_colours
from pyassemble.report.heatmap import COLOUR_MAP, TITLE
from pyassemble.report.matrices import checked_similarity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

#: Page formats by file suffix.
PAGE_SUFFIXES = (".html",)

#: A similarity is stored as a 16-bit number of this many steps, so that it is off by less than 0.00001.
STEPS = 65535

# What could end the script element or open a comment in it, written so that JSON still means the same.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def write_heatmap_html(
    similarity: NDArray[np.float64],
    names: Sequence[str],
    path: str | Path,
    *,
    details: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Writes an HTML page in which the similarities of networks can be explored.

    It zooms and pans, says under the pointer which two networks are compared and how similar they are, marks families,
    finds networks by name and lists the nearest ten of each. Plotly's JavaScript is part of the page, which asks
    nothing of a network and is not allowed to. The numbers are 16-bit: about 7.5 MB for 1 371 networks, of which
    plotly takes 4.8; they grow by 4/3 n² bytes. Browsers draw up to some 10 000 networks, Safari some 4 000.

    Args:
        similarity: Symmetric similarities from 0 to 1, (n, n) with n at least 1.
        names: What to call the n networks; their families are read from these.
        path: ``.html``; replaced if it exists, once the page is complete.
        details: By name of the network, what else to say of it, such as ``{"parameters": "25.6 M"}``. Networks may be
            missing; what is said of others is not used.

    Raises:
        MatrixError: Another matrix, or another number of names.
        UnknownOptionError: Another suffix.
    """
    path = Path(path)
    check_page_path(path)
    matrix = checked_similarity(similarity, names)
    page = _page(_content(matrix, names, details or {}))
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def check_page_path(path: Path) -> None:
    """Refuses a file name that :func:`write_heatmap_html` could not write, before any work is done for it."""
    if path.suffix not in PAGE_SUFFIXES:
        raise UnknownOptionError("page format", path.suffix or path.name, PAGE_SUFFIXES)


def _content(
    matrix: NDArray[np.float64], names: Sequence[str], details: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """What the page shows; networks in the order of the clustering."""
    places = order(matrix)
    ordered = [names[place] for place in places]
    return {
        "title": TITLE,
        "names": ordered,
        "families": [family(name) for name in ordered],
        "familyColours": family_colours(ordered),
        "otherColour": OTHER_COLOUR,
        "details": [dict(details.get(name, {})) for name in ordered],
        "steps": STEPS,
        "similarity": _upper_half(matrix[np.ix_(places, places)]),
        "colours": _colours(),
    }


def _upper_half(matrix: NDArray[np.float64]) -> str:
    """Rows of the upper half, each from the diagonal on, as little-endian 16-bit numbers in base64."""
    steps = np.rint(matrix[np.triu_indices(len(matrix))] * STEPS).astype("<u2")
    return b64encode(steps.tobytes()).decode("ascii")


def _colours() -> list[str]:
    """The colours from 0 to 1, the same as in the picture."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colour_map = colormaps[COLOUR_MAP]
    return [to_hex(colour_map(index)) for index in range(colour_map.N)]


def _page(content: dict[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    folder = resources.files(__package__)
    skeleton = Template(folder.joinpath("heatmap_page.html").read_text(encoding="utf-8"))
    return skeleton.substitute(
        title=TITLE,
        plotly=get_plotlyjs(),
        content=json.dumps(content, allow_nan=False, separators=(",", ":")).translate(_ESCAPES),
        script=folder.joinpath("heatmap_page.js").read_text(encoding="utf-8"),
    )
