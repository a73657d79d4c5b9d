"""``pyassemble zoo matrix``: the files it writes, what it draws, and how it goes on after an interrupt."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch import nn

import pyassemble as pa

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.work import Work


@pytest.fixture
def index(work: Work) -> Path:
    zoo = pa.Zoo()
    for width in range(1, 8):
        network = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 10 - width))
        zoo.add(f"{'even' if width % 2 == 0 else 'odd'}{width}", network, license="mit", weights=f"here/{width}")
    path = work.folder / "zoo.npz"
    zoo.save(path)
    return path


@pytest.fixture
def expected(index: Path) -> np.ndarray[Any, Any]:
    return pa.Zoo.load(index).similarity_matrix()


class TestFiles:
    def test_npz(self, work: Work, index: Path, expected: np.ndarray[Any, Any]) -> None:
        out = work.folder / "m.npz"
        output = work.good("zoo", "matrix", out, "--zoo", index, "--workers", 1)
        with np.load(out, allow_pickle=False) as file:
            assert file["names"].tolist() == pa.Zoo.load(index).names
            assert file["directed"].tobytes() == expected.tobytes()
        assert output.startswith("7 networks, 49 ordered pairs in ")
        assert f'np.load("{out}")["directed"][i, j] = how well names[j] serves names[i]' in output
        assert {path.name for path in work.folder.iterdir() if path.name.startswith((".m", "m."))} == {"m.npz"}

    def test_npy(self, work: Work, index: Path, expected: np.ndarray[Any, Any]) -> None:
        work.good("zoo", "matrix", work.folder / "m.npy", "--zoo", index)
        assert np.load(work.folder / "m.npy", mmap_mode="r").tobytes() == expected.tobytes()

    def test_parquet(
        self, work: Work, index: Path, expected: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pyassemble.zoo.export._ROWS_TOGETHER", 3)
        work.good("zoo", "matrix", work.folder / "m.parquet", "--zoo", index)
        table = pq.read_table(work.folder / "m.parquet")
        names = pa.Zoo.load(index).names
        assert table.column_names == ["target", "source", "directed", "symmetric"]
        assert table["target"].to_pylist() == [name for name in names for _ in names]
        assert table["source"].to_pylist() == names * len(names)
        assert table["directed"].to_numpy().tobytes() == expected.tobytes()
        assert table["symmetric"].to_numpy().tobytes() == np.sqrt(expected * expected.T).tobytes()
        one = pq.read_table(work.folder / "m.parquet", filters=[("target", "==", "odd3")])
        assert one["directed"].to_pylist() == expected[names.index("odd3")].tolist()

    def test_names(self, work: Work, index: Path, expected: np.ndarray[Any, Any]) -> None:
        out = work.folder / "m.npz"
        work.good("zoo", "matrix", out, "--zoo", index, "--names", "even*", "--names", "*[24]", "--names", "odd1")
        with np.load(out) as file:
            assert file["names"].tolist() == ["odd1", "even2", "even4", "even6"]
            chosen = [0, 1, 3, 5]
            assert file["directed"].tobytes() == expected[np.ix_(chosen, chosen)].tobytes()

    def test_of_timm(self, work: Work) -> None:
        out = work.folder / "m.npz"
        work.good("zoo", "matrix", out, "--names", "vit_tiny*")
        zoo = pa.Zoo.timm("vit_tiny*")
        with np.load(out) as file:
            assert file["names"].tolist() == zoo.names
            assert file["directed"].tobytes() == zoo.similarity_matrix().tobytes()


class TestDrawing:
    def test_what_is_drawn(
        self, work: Work, index: Path, expected: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: list[tuple[Any, ...]] = []
        picture, page = ModuleType("heatmap"), ModuleType("heatmap_html")
        picture.draw_heatmap = lambda m, n, path, *, title: drawn.append((m, n, path, title))  # type: ignore[attr-defined]
        page.write_heatmap_html = lambda m, n, path, *, details: drawn.append((m, n, path, details))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyassemble.report.heatmap", picture)
        monkeypatch.setitem(sys.modules, "pyassemble.report.heatmap_html", page)
        files = [work.folder / name for name in ("a.png", "a.svg", "a.html")]
        output = work.good(
            "zoo", "matrix", work.folder / "m.npz", "--zoo", index,
            "--picture", files[0], "--picture", files[1], "--html", files[2],
        )  # fmt: skip
        assert [path for _, _, path, _ in drawn] == files
        for symmetric, names, _, _ in drawn:
            assert symmetric.tobytes() == np.sqrt(expected * expected.T).tobytes()
            assert names == pa.Zoo.load(index).names
        assert drawn[0][3] == "Symmetric similarity of 7 networks"
        assert drawn[2][3]["even2"] == {"parameters": "84", "license": "mit", "weights": "here/2"}
        assert all(f"drawn: {file}" in output for file in files)


class TestInterrupting:
    @pytest.mark.parametrize("name", ["m.npz", "m.npy", "m.parquet"])
    @pytest.mark.parametrize("named", [False, True])
    def test_goes_on_where_it_was(
        self, work: Work, index: Path, monkeypatch: pytest.MonkeyPatch, name: str, named: bool
    ) -> None:
        monkeypatch.setattr("pyassemble.zoo.matrix.SHARD_ROWS", 2)
        from pyassemble.zoo import matrix

        asked: list[int] = []
        stop_at = 4
        local = matrix._local

        def stopping(engine: Any, shards: Any, *arguments: Any) -> Any:
            for shard, rows in local(engine, shards, *arguments):
                if shard.first == stop_at:
                    raise KeyboardInterrupt
                asked.append(shard.first)
                yield shard, rows

        monkeypatch.setattr(matrix, "_local", stopping)
        out = work.folder / name
        kept = work.folder / "kept" if named else work.folder / f"{name}.shards"
        command = ("zoo", "matrix", out, "--zoo", index, *(("--shards", kept) if named else ()))
        result = work.run(*command)
        assert (result.exit_code, result.stdout) == (130, "")
        assert result.stderr == f"interrupted: finished rows are in {kept}; the same command goes on there\n"
        assert not out.exists()
        assert [path for path in work.folder.iterdir() if path.suffix == ".tmp"] == []
        stop_at = -1
        work.good(*command)
        assert asked == [0, 2, 4, 6]
        assert out.exists()
        assert not kept.exists()

    @pytest.mark.slow
    def test_by_a_signal(self, tmp_path: Path) -> None:
        out = tmp_path / "m.npz"
        code = "from pyassemble.cli import main; main()"
        command = [sys.executable, "-c", code, "zoo", "matrix", str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not list(tmp_path.glob("m.npz.shards/rows-*.npy")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (130, "")
        assert errors == f"interrupted: finished rows are in {out}.shards; the same command goes on there\n"
        subprocess.run(command, check=True, capture_output=True)
        with np.load(out) as file:
            assert file["directed"].tobytes() == pa.Zoo.timm().similarity_matrix().tobytes()


class TestErrors:
    def test_bad_input(self, work: Work, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyassemble.zoo.Zoo.similarity_matrix", None)  # nothing of this gets as far
        out, known = work.folder / "m.npz", ("--zoo", index)
        for arguments, words in [
            ((work.folder / "m.csv", *known), "unknown matrix format '.csv'; known: .parquet, .npz, .npy"),
            ((work.folder / "no" / "m.npz", *known), "no does not exist"),
            ((out, "--zoo", work.folder / "none.npz"), "there is no index file"),
            ((out, "--zoo", work.weights), "small.safetensors is no sound zoo index: "),
            ((out, *known, "--names", "nobody*"), "none of the zoo's 7 networks has a name that matches 'nobody*'"),
            ((out, *known, "--workers", 0), "--workers is 0; accepted: -1 (one per core), 1 and more"),
            ((out, *known, "--picture", work.folder / "a.pdf"), "known: .png, .svg"),
            ((out, *known, "--html", out), "OUT and --html both name"),
        ]:
            assert words in work.error("zoo", "matrix", *arguments)
            assert not out.exists()

    def test_parquet_without_pyarrow(self, work: Work, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        error = work.error("zoo", "matrix", work.folder / "m.parquet", "--zoo", index)
        assert "writing Parquet needs pyarrow" in error
        assert "pip install pyarrow, or name a .npz file" in error

    def test_shards_of_others(self, work: Work, index: Path) -> None:
        shards = work.folder / "m.npz.shards"
        shards.mkdir()
        (shards / "precious").write_text("")
        assert "neither empty nor a folder of shards" in work.error(
            "zoo", "matrix", work.folder / "m.npz", "--zoo", index
        )
        assert (shards / "precious").exists()
