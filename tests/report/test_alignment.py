"""The JSON form of an alignment is complete and survives writing and reading."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pyassemble.report import alignment_from_json, alignment_json
from pyassemble.transfer.matching import layer_score

if TYPE_CHECKING:
    from pyassemble.transfer import Alignment


@pytest.mark.parametrize("name", ["efficientnets", "transformers"])
def test_round_trip(name: str, request: pytest.FixtureRequest) -> None:
    alignment: Alignment = request.getfixturevalue(name)
    document = json.loads(json.dumps(alignment_json(alignment), allow_nan=False))
    assert document == alignment_json(alignment)
    assert alignment_from_json(document) == alignment
    assert (document["format"], document["version"]) == ("pyassemble.alignment", 1)
    assert document["score"] == alignment.score
    assert document["directed_similarity"] == alignment.directed
    assert document["standardization"] == alignment.standardization
    assert [(pair["source"], pair["target"]) for pair in document["pairs"]] == list(alignment.pairs)
    for side, network in (("source", alignment.source), ("target", alignment.target)):
        layers = [(layer["name"], layer["kind"], tuple(layer["shape"])) for layer in document[side]["layers"]]
        assert layers == [tuple(layer) for layer in network.layers]
        blocks = [(block["start"], block["stop"]) for block in document[side]["blocks"]]
        assert blocks == [(start, stop) for start, stop, is_block in network.elements if is_block]


def test_pairs_refer_to_layers(efficientnets: Alignment) -> None:
    document = alignment_json(efficientnets)
    for pair, (source, target) in zip(document["pairs"], efficientnets.indices, strict=True):
        assert document["source"]["layers"][pair["source_index"]]["name"] == pair["source"]
        assert document["target"]["layers"][pair["target_index"]]["name"] == pair["target"]
        expected = layer_score(efficientnets.source.layers[source], efficientnets.target.layers[target])
        assert pair["score"] == expected
