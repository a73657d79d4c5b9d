"""``pyassemble report``: what every other command writes comes together on one page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.cli.pictures import NETWORKS, make_pictures

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.work import Work


@pytest.fixture
def similarity(work: Work) -> Path:
    file = work.folder / "similarity.json"
    work.good("similarity", work.small, work.large, "--json", file)
    return file


def page_of(work: Work, *results: object) -> str:
    page = work.folder / "page.html"
    assert f"saved {page}" in work.good("report", *results, "--out", page).replace("\n", "")
    text = page.read_text()
    assert not re.search(r"(src|href)=\"http|url\(http|@import|<script", text)
    for start in re.finditer("<svg", text):
        ET.fromstring(text[start.start() : text.index("</svg>", start.start()) + 6])
    return text


def test_alignment_and_transfer(work: Work, similarity: Path) -> None:
    work.transfer("--out", work.out, "--json", work.folder / "transfer.json")
    text = page_of(work, similarity, work.folder / "transfer.json")
    assert text.count("<section>") == 2
    assert f"Similarity of {work.small} → {work.large}" in text
    assert f"Transfer of {work.small} → {work.large}" in text
    document = json.loads(similarity.read_text())
    assert f"<td>symmetric</td><td>{document['symmetric']:.4f}</td>" in text
    transferred = json.loads((work.folder / "transfer.json").read_text())
    assert f"{transferred['coverage']:.1%} of the target" in text
    assert all(f"<td>{row['target']}</td>" in text for row in transferred["tensors"])
    assert text.count("<svg") == 2
    (work.folder / "alignment.json").write_text(json.dumps(document["alignment"]))
    assert "source → target" in page_of(work, work.folder / "alignment.json")


def test_nearest(work: Work) -> None:
    file = work.folder / "nearest.json"
    work.good("zoo", "nearest", work.small, "--k", 3, "--json", file)
    text = page_of(work, file)
    assert all(f". {row['name']}</td>" in text for row in json.loads(file.read_text())["nearest"])


def test_scores_and_assembly(work: Work) -> None:
    (work.folder / "blocks.py").write_text(NETWORKS)
    make_pictures(work.folder / "pictures")
    networks = [f"{work.folder}/blocks.py:{name}" for name in ("wide", "deep")]
    scores, searched = work.folder / "scores.json", work.folder / "assemble.json"
    work.good("score", *networks, "--data", work.folder / "pictures", "--size", 8, "--images", 8, "--out", scores)
    recipe = {
        "networks": dict(zip(("wide", "deep"), networks, strict=True)),
        "images": {"height": 8, "width": 8},
        "data": {"train": str(work.folder / "pictures"), "validation": str(work.folder / "pictures")},
        "blocks": 2,
        "epochs": 1,
        "finetune": {"epochs": 1},
        "out": str(work.folder / "result"),
        "settings": {"batch_size": 8, "rounds": 1, "candidates": 2, "score_images": 8, "alpha": 1},
    }
    (work.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    work.good("assemble", work.folder / "recipe.yaml", "--json", searched)
    text = page_of(work, scores, searched, work.folder / "result")
    assert text.count("<section>") == 3
    assert "Training-free scores of 2 networks" in text
    result = next(e for e in json.loads(searched.read_text())["history"] if e["kind"] == "result")
    assert text.count(f"<td>{result['cost']['total']:,}</td>") >= 2
    assert text.count("Every epoch of fine-tuning") == 2
    saved = json.loads((work.folder / "result" / "recipe.json").read_text())["recipe"]
    assert all(f"<td>{block['cut_points'][-1]}</td>" in text for block in saved["blocks"])


class TestErrors:
    def test_what_is_no_result(self, work: Work, similarity: Path) -> None:
        page, other = work.folder / "page.html", work.folder / "other.json"
        assert "cannot be read: No such file" in work.error("report", work.folder / "none.json", "--out", page)
        other.write_text("{")
        assert "not readable as JSON" in work.error("report", other, "--out", page)
        other.write_text("[]")
        assert "format is None; accepted: assembly, pyassemble.align" in work.error("report", other, "--out", page)
        document = json.loads(similarity.read_text())
        other.write_text(json.dumps({**document, "version": 99}))
        assert "of version 99; this pyassemble reads version 1" in work.error("report", other, "--out", page)
        del document["alignment"]["pairs"]
        other.write_text(json.dumps(document))
        assert "no complete pyassemble.similarity document: KeyError" in work.error("report", other, "--out", page)
        assert not page.exists()

    def test_where_the_page_may_go(self, work: Work, similarity: Path) -> None:
        assert "page format '.pdf'" in work.error("report", similarity, "--out", work.folder / "page.pdf")
        page = work.folder / "page.html"
        page.write_text(similarity.read_text())
        assert "each output needs a file of its own" in work.error("report", page, "--out", page)
