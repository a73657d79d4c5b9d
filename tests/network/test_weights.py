"""Weights files: what is read, what is refused and in which words, and that writing is all or nothing."""

from __future__ import annotations

import json
import os
import stat
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pyassemble.errors import TensorError, WeightsFileError
from pyassemble.network.weights import load_weights, read_header, read_weights, write_weights

if TYPE_CHECKING:
    from pathlib import Path


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def raw_safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_file(small_network().state_dict(), path)
    return path


class TestReading:
    def test_safetensors(self, tmp_path: Path) -> None:
        tensors = {"b": torch.arange(3), "a": torch.ones(2, 2, dtype=torch.bfloat16), "scalar": torch.tensor(1.5)}
        save_file(tensors, tmp_path / "w.safetensors")
        read = read_weights(tmp_path / "w.safetensors")
        assert set(read) == set(tensors)
        assert all(torch.equal(read[name], tensors[name]) for name in tensors)

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
    @pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
    def test_torch(self, tmp_path: Path, suffix: str, wrap: str | None) -> None:
        state = small_network().state_dict()
        path = tmp_path / f"w{suffix}"
        torch.save(state if wrap is None else {"epoch": 3, wrap: state}, path)
        read = read_weights(str(path))
        assert list(read) == list(state)
        assert all(torch.equal(read[name], state[name]) for name in state)

    def test_torch_never_runs_code(self, tmp_path: Path) -> None:
        torch.save(small_network(), tmp_path / "pickled.pt")
        with pytest.raises(WeightsFileError, match="weights_only=True") as caught:
            read_weights(tmp_path / "pickled.pt")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 broken zip"])
    def test_foreign_torch_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "w.pt").write_bytes(content)
        with pytest.raises(WeightsFileError, match=r"w\.pt: not a file of tensors"):
            read_weights(tmp_path / "w.pt")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ([torch.ones(1)], "holds a list; a dict of named tensors"),
            ({"epoch": 3}, "entry 'epoch' is a int"),
            ({3: torch.ones(1)}, "entry 3 is a Tensor"),
            ({}, "holds no tensor"),
        ],
    )
    def test_other_content(self, tmp_path: Path, content: object, words: str) -> None:
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(WeightsFileError, match=words):
            read_weights(tmp_path / "w.pt")

    @pytest.mark.parametrize("name", ["none.safetensors", "none.pt"])
    def test_missing(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(WeightsFileError, match=f"{name}: no such file"):
            read_weights(tmp_path / name)

    def test_folder(self, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").mkdir()
        with pytest.raises(WeightsFileError, match="is not a file"):
            read_weights(tmp_path / "x.safetensors")

    def test_unknown_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsFileError, match=r"\.safetensors, \.pt, \.pth, \.bin"):
            read_weights(tmp_path / "w.onnx")


class TestHeader:
    def test_names_dtypes_shapes(self, saved: Path) -> None:
        state = small_network().state_dict()
        header = read_header(saved)
        assert set(header) == set(state)
        assert all(header[name] == (value.dtype, tuple(value.shape)) for name, value in state.items())

    def test_metadata_is_no_tensor(self, tmp_path: Path) -> None:
        write_weights(tmp_path / "w.safetensors", {"a": torch.ones(2)}, {"source": "here"})
        assert list(read_header(tmp_path / "w.safetensors")) == ["a"]

    def test_empty_tensor(self, tmp_path: Path) -> None:
        save_file({"a": torch.ones(0, 3), "b": torch.ones(2)}, tmp_path / "w.safetensors")
        assert read_header(tmp_path / "w.safetensors")["a"].shape == (0, 3)

    @pytest.mark.parametrize("keep", [0, 5, 8, 60, -1])
    def test_truncated(self, saved: Path, keep: int) -> None:
        saved.write_bytes(saved.read_bytes()[:keep])
        with pytest.raises(WeightsFileError, match=r"too few|truncated"):
            read_header(saved)
        with pytest.raises(WeightsFileError):
            read_weights(saved)

    def test_foreign(self, tmp_path: Path) -> None:
        (tmp_path / "w.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n and more bytes")
        with pytest.raises(WeightsFileError, match="not a safetensors file: it claims a header of"):
            read_header(tmp_path / "w.safetensors")

    @pytest.mark.parametrize(
        ("header", "data", "words"),
        [
            (b"{nonsense", b"", "no JSON:"),
            (b"\xff\xfe\xfd", b"", "no JSON:"),
            (b"[" * 100_000, b"", "no JSON:"),
            (b'{"a": 1, "a": 2}', b"", "occurs twice"),
            ([1, 2], b"", "no JSON object"),
            ({"a": 3}, b"", "'a' lacks a proper shape"),
            ({"a": entry(shape=[-2])}, b"\0" * 8, "'a' lacks a proper shape"),
            ({"a": entry(shape=[2.0])}, b"\0" * 8, "'a' lacks a proper shape"),
            ({"a": entry(shape=[True, 2])}, b"\0" * 8, "'a' lacks a proper shape"),
            ({"a": entry(data_offsets=[0])}, b"\0" * 8, "'a' lacks a proper shape or data_offsets"),
            ({"a": entry(dtype="F33")}, b"\0" * 8, "'a' has dtype 'F33'; read are BOOL"),
            ({"a": entry(dtype=["F32"])}, b"\0" * 8, "'a' has dtype"),
            ({"a": entry(shape=[3])}, b"\0" * 8, r"'a' of shape \(3,\) takes 12 bytes"),
            ({"a": entry(shape=[10**12, 10**12])}, b"\0" * 8, "'a' of shape"),
            ({"a": entry()}, b"\0" * 4, "truncated: 'a' ends at byte 8 of 4"),
            ({"a": entry()}, b"\0" * 12, "4 bytes belong to no tensor"),
            ({"a": entry(), "b": entry()}, b"\0" * 8, "'b' starts at byte 0, expected was byte 8"),
            ({"a": entry(data_offsets=[4, 12])}, b"\0" * 12, "'a' starts at byte 4"),
        ],
    )
    def test_damaged(self, tmp_path: Path, header: object, data: bytes, words: str) -> None:
        path = raw_safetensors(tmp_path / "w.safetensors", header, data)
        with pytest.raises(WeightsFileError, match=words):
            read_header(path)


class TestLoading:
    def test_strict(self, saved: Path) -> None:
        network = small_network()
        load_weights(network, saved)
        state = load_file(saved)
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda state: state.pop("0.weight"), r"'0\.weight' \(4, 3, 3, 3\) missing"),
            (lambda state: [state.pop("0.weight"), state.pop("0.bias")], r"\(and 1 more\) missing"),
            (lambda state: state.update(other=torch.ones(5)), r"'other' \(5,\) unexpected"),
            (lambda state: state.update({"3.bias": torch.ones(7)}), r"'3\.bias' has shape \(7,\), not \(2,\)"),
        ],
    )
    def test_misfit_leaves_the_network_alone(self, tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
        network, state = small_network(), dict(small_network().state_dict())
        before = {name: value.clone() for name, value in network.state_dict().items()}
        change(state)
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(WeightsFileError, match=words):
            load_weights(network, tmp_path / "w.safetensors")
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_batch_counters_may_be_missing(self, tmp_path: Path, suffix: str) -> None:
        network = nn.ModuleDict({"a": small_network(), "bare": nn.BatchNorm1d(2, track_running_stats=False)})
        network["shared"] = network["a"][1]  # type: ignore[index]
        state = {name: value + 1 for name, value in network.state_dict().items() if "num_batches" not in name}
        network["a"][1].num_batches_tracked.fill_(7)  # type: ignore[index]
        path = tmp_path / f"w{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        load_weights(network, path)
        loaded = network.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in state.items())
        assert loaded["a.1.num_batches_tracked"] == loaded["shared.num_batches_tracked"] == 7
        bare = nn.BatchNorm2d(4)
        save_file({name: value for name, value in bare.state_dict().items() if value.dim()}, tmp_path / "b.safetensors")
        load_weights(bare, tmp_path / "b.safetensors")

    def test_other_counters_may_not_be_missing(self, tmp_path: Path) -> None:
        class Counting(nn.Linear):
            def __init__(self) -> None:
                super().__init__(2, 2)
                self.register_buffer("num_batches_tracked", torch.tensor(0))

        fractional = nn.BatchNorm1d(2)
        fractional.num_batches_tracked = torch.tensor(0.5)
        for network in (Counting(), fractional):
            state = network.state_dict()
            del state["num_batches_tracked"]
            save_file(state, tmp_path / "w.safetensors")
            with pytest.raises(WeightsFileError, match=r"'num_batches_tracked' \(\) missing"):
                load_weights(network, tmp_path / "w.safetensors")


class TestWriting:
    def test_round_trip_with_metadata(self, tmp_path: Path) -> None:
        from safetensors import safe_open

        path = tmp_path / "w.safetensors"
        state = small_network().state_dict()
        write_weights(path, state, {"source": "timm:resnet18"})
        read = read_weights(path)
        assert all(torch.equal(read[name], state[name]) for name in state)
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"source": "timm:resnet18"}
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    def test_tied_and_strided(self, tmp_path: Path) -> None:
        tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        tied["b"].weight = tied["a"].weight
        transposed = torch.arange(6.0).reshape(2, 3).T
        write_weights(tmp_path / "w.safetensors", {**tied.state_dict(), "t": transposed, "row": transposed[0]})
        read = read_weights(tmp_path / "w.safetensors")
        assert torch.equal(read["a.weight"], read["b.weight"])
        assert torch.equal(read.pop("t"), transposed)
        assert torch.equal(read.pop("row"), transposed[0])
        tied.load_state_dict(read, strict=True)

    def test_channels_last_keeps_values(self, tmp_path: Path) -> None:
        weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
        write_weights(tmp_path / "w.safetensors", {"w": weight})
        assert torch.equal(read_weights(tmp_path / "w.safetensors")["w"], weight)

    @pytest.mark.parametrize(
        ("tensor", "words"),
        [
            (torch.empty(2, device="meta"), r"'w' \(2,\) is on the meta device"),
            (torch.eye(2).to_sparse(), "'w'.*layout torch.sparse_coo cannot be written"),
            (torch.ones(2, dtype=torch.complex128), "'w'.*complex128.*float32"),
        ],
    )
    def test_unwritable_tensor_leaves_the_old_file(self, tmp_path: Path, tensor: torch.Tensor, words: str) -> None:
        path = tmp_path / "w.safetensors"
        write_weights(path, {"w": torch.ones(1)})
        with pytest.raises(TensorError, match=words):
            write_weights(path, {"w": tensor})
        assert torch.equal(read_weights(path)["w"], torch.ones(1))

    def test_interrupted_write_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def half_written(tensors: object, path: Path, metadata: object) -> None:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

        path = tmp_path / "w.safetensors"
        write_weights(path, {"w": torch.ones(1)})
        monkeypatch.setattr("safetensors.torch.save_file", half_written)
        with pytest.raises(KeyboardInterrupt):
            write_weights(path, {"w": torch.zeros(1)})
        assert torch.equal(read_weights(path)["w"], torch.ones(1))
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    def test_refused_paths(self, tmp_path: Path) -> None:
        for path, words in [
            (tmp_path / "w.pt", "are written to .safetensors"),
            (tmp_path / "none" / "w.safetensors", "none does not exist"),
        ]:
            with pytest.raises(WeightsFileError, match=words):
                write_weights(path, {"w": torch.ones(1)})
        (tmp_path / "folder.safetensors").mkdir()
        with pytest.raises(WeightsFileError, match="is a folder"):
            write_weights(tmp_path / "folder.safetensors", {"w": torch.ones(1)})

    @pytest.mark.skipif(os.name != "posix", reason="modes are a POSIX matter")
    def test_modes(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        before = os.umask(0o027)
        try:
            write_weights(path, {"w": torch.ones(1)})
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
            path.chmod(0o604)
            write_weights(path, {"w": torch.zeros(1)})
            assert stat.S_IMODE(path.stat().st_mode) == 0o604
        finally:
            os.umask(before)

    @pytest.mark.parametrize("exists", [False, True])
    def test_a_link_is_followed(self, tmp_path: Path, exists: bool) -> None:
        (tmp_path / "store").mkdir()
        file, link = tmp_path / "store" / "w.safetensors", tmp_path / "link.safetensors"
        if exists:
            file.write_bytes(b"old")
        link.symlink_to("store/w.safetensors")
        write_weights(link, {"w": torch.ones(1)})
        assert link.is_symlink()
        assert torch.equal(read_weights(file)["w"], torch.ones(1))
        assert [entry.name for entry in file.parent.iterdir()] == [file.name]

    def test_a_link_that_leads_nowhere(self, tmp_path: Path) -> None:
        link, circle = tmp_path / "link.safetensors", tmp_path / "circle.safetensors"
        link.symlink_to("none/w.safetensors")
        circle.symlink_to(circle.name)
        for path, words in [(link, "none does not exist"), (circle, "cannot be written: ")]:
            with pytest.raises(WeightsFileError, match=words):
                write_weights(path, {"w": torch.ones(1)})
            assert path.is_symlink()

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_a_pipe_stays_one(self, tmp_path: Path) -> None:
        pipe, copy = tmp_path / "pipe.safetensors", tmp_path / "copy.safetensors"
        os.mkfifo(pipe)
        with ThreadPoolExecutor() as threads:
            received = threads.submit(pipe.read_bytes)
            write_weights(pipe, {"w": torch.ones(1)})
            copy.write_bytes(received.result(timeout=60))
        assert pipe.is_fifo()
        assert torch.equal(read_weights(copy)["w"], torch.ones(1))
