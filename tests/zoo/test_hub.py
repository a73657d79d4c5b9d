"""Hub repositories read from a server on this machine: how many bytes, what is exact, and every kind of bad answer."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from safetensors.torch import save

from pyassemble.errors import EmptyNetworkError, HubError, NetworkSpecError, PyAssembleError, WeightsFileError
from pyassemble.network.standardize import standardize
from pyassemble.zoo.building import build
from pyassemble.zoo.hub import FIRST_READ_BYTES, hub_jobs, read_repository
from tests.zoo.hub_server import COMMIT, Behaviour, HubServer, safetensors, with_header

if TYPE_CHECKING:
    from pathlib import Path

SHAPES = {f"layers.{i}.{role}": shape for i in range(12) for role, shape in (("weight", (8, 4)), ("bias", (8,)))}
NAME = "someone/net"


def entry_of(**changes: object) -> dict[str, object]:
    return {"a.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]} | changes}


@pytest.fixture
def plain(hub: HubServer) -> HubServer:
    """A Hub with one repository that has no config."""
    hub.add(NAME, {"README.md": b"", "model.safetensors": safetensors(SHAPES)}, {"license": "mit"})
    return hub


def files_read(hub: HubServer) -> list[str]:
    return [request.path.rpartition("/")[2] for request in hub.requests]


class TestConfig:
    CONFIG = {  # noqa: RUF012
        "architecture": "resnet10t",
        "num_classes": 7,
        "model_args": {"in_chans": 1},
        "pretrained_cfg": {"license": "apache-2.0"},
    }

    def test_architecture_is_built_as_configured(self, hub: HubServer) -> None:
        hub.add(NAME, {"config.json": json.dumps(self.CONFIG).encode(), "model.safetensors": b"never read"})
        entry = read_repository(NAME, endpoint=hub.url)
        with torch.device("meta"):
            network = timm.create_model("resnet10t", num_classes=7, in_chans=1)
        assert entry.layers == standardize(network)
        assert not entry.approximate
        assert entry.parameters == sum(p.numel() for p in network.parameters())
        assert (entry.name, entry.weights, entry.license) == (f"hf-hub:{NAME}", f"hf-hub:{NAME}", "apache-2.0")
        assert files_read(hub) == ["net", "config.json"]

    def test_card_names_the_license(self, hub: HubServer) -> None:
        hub.add(NAME, {"config.json": json.dumps(self.CONFIG).encode()}, {"license": "mit"})
        assert read_repository(NAME, endpoint=hub.url).license == "mit"

    @pytest.mark.parametrize(
        "config",
        [
            b"{}",
            b"no json",
            b"[" * 100_000,
            b'{"architectures": ["BertModel"]}',
            b'{"architecture": "of_another_timm"}',
            b'{"architecture": "resnet10t", "model_args": {"wings": 2}}',
            b'{"architecture": 3}',
        ],
    )
    def test_other_configs_leave_the_header(self, plain: HubServer, config: bytes) -> None:
        plain.repositories[NAME]["config.json"] = config
        entry = read_repository(NAME, endpoint=plain.url)
        assert entry.approximate
        assert entry.parameters == 12 * (32 + 8)


class TestHeader:
    def test_equals_the_local_file(self, hub: HubServer, tmp_path: Path) -> None:
        state = timm.create_model("resnet18").state_dict()
        content = save(state)
        (tmp_path / "x.safetensors").write_bytes(content)
        hub.add(NAME, {"model.safetensors": content}, {"license": "other", "license_name": "own"})
        entry = read_repository(NAME, name="mine", endpoint=hub.url)
        assert entry.layers == standardize(tmp_path / "x.safetensors")
        assert entry.approximate
        assert entry.parameters == sum(p.numel() for p in timm.create_model("resnet18").parameters())
        assert (entry.name, entry.license) == ("mine", "own")
        assert sum(request.sent for request in hub.requests[1:]) <= FIRST_READ_BYTES

    @pytest.mark.parametrize("ranges", [True, False])
    @pytest.mark.parametrize("hide_size", [True, False])
    def test_long_header_takes_a_second_read(self, hub: HubServer, ranges: bool, hide_size: bool) -> None:
        hub.add(NAME, {"model.safetensors": safetensors(SHAPES, pad=200_000)})
        hub.behaviour = Behaviour(ranges=ranges, hide_size=hide_size)
        assert read_repository(NAME, endpoint=hub.url).layers.scored == 12
        asked = [request.range for request in hub.requests[1:]]
        assert asked[0] == "bytes=0-65535"
        assert len(asked) == 2
        assert asked[1] is not None
        assert asked[1].startswith("bytes=65536-20")

    def test_server_without_ranges_is_cut_off(self, hub: HubServer) -> None:
        hub.add(NAME, {"model.safetensors": safetensors({"a.weight": (10_000, 5_000)})})  # 200 MB
        hub.behaviour = Behaviour(ranges=False)
        assert read_repository(NAME, endpoint=hub.url).parameters == 50_000_000
        deadline = time.monotonic() + 5
        while hub.requests[-1].sent == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert hub.requests[-1].sent < 50_000_000  # what the buffers of the sockets hold, far from all

    def test_no_token_for_another_host(self, plain: HubServer) -> None:
        cdn = HubServer()
        try:
            cdn.add(NAME, plain.repositories[NAME])
            plain.behaviour = Behaviour(redirect=cdn.url)
            entry = read_repository(NAME, endpoint=plain.url, token="hf_secret")
            assert entry.layers.scored == 12
            assert [request.authorization for request in plain.requests] == ["Bearer hf_secret"] * 2
            assert [(request.authorization, request.range) for request in cdn.requests] == [(None, "bytes=0-65535")]
        finally:
            cdn.close()

    def test_revision(self, plain: HubServer) -> None:
        entry = read_repository(NAME, revision="refs/pr/1", endpoint=plain.url)
        assert plain.requests[0].path == f"/api/models/{NAME}/revision/refs%2Fpr%2F1"
        assert entry.weights == f"hf-hub:{NAME}@refs/pr/1"
        assert f"/resolve/{COMMIT}/" in plain.requests[1].path

    def test_endpoint_of_the_environment(self, plain: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", plain.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            plain.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        assert read_repository(NAME).layers.scored == 12

    def test_one_file_of_another_name(self, hub: HubServer) -> None:
        hub.add(NAME, {"deep/open_clip.safetensors": safetensors(SHAPES)})
        assert read_repository(NAME, endpoint=hub.url).layers.scored == 12


class TestShards:
    @pytest.fixture
    def files(self) -> dict[str, bytes]:
        names = sorted(SHAPES)
        halves = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
        files = {file: safetensors({name: SHAPES[name] for name in half}) for file, half in halves.items()}
        weight_map = {name: file for file, half in halves.items() for name in half}
        return files | {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}

    def test_are_one_network(self, hub: HubServer, files: dict[str, bytes], plain: HubServer) -> None:
        hub.add("someone/sharded", files)
        whole = read_repository(NAME, endpoint=hub.url)
        sharded = read_repository("someone/sharded", endpoint=hub.url)
        assert (sharded.layers, sharded.parameters) == (whole.layers, whole.parameters)

    @pytest.mark.parametrize(
        ("index", "words"),
        [
            (b"[]", 'has no entry "weight_map"'),
            (b'{"weight_map": {}}', 'has no entry "weight_map"'),
            (b"{", "is no JSON"),
            (b'{"weight_map": {"a": "../../other/model.safetensors"}}', "not in a file beside it"),
            (b'{"weight_map": {"a": 3}}', "not in a file beside it"),
            (b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "which does not hold it"),
            (b'{"weight_map": {"layers.0.bias": "model-00001-of-00002.safetensors"}}', "does not know tensor"),
            (json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(3000)}}).encode(), "3000 files"),
        ],
    )
    def test_lies(self, hub: HubServer, files: dict[str, bytes], index: bytes, words: str) -> None:
        hub.add(NAME, files | {"model.safetensors.index.json": index})
        with pytest.raises(WeightsFileError, match=words):
            read_repository(NAME, endpoint=hub.url)

    def test_tensor_in_two_files(self, hub: HubServer, files: dict[str, bytes]) -> None:
        files["model-00002-of-00002.safetensors"] = files["model-00001-of-00002.safetensors"]
        hub.add(NAME, files)
        with pytest.raises(WeightsFileError, match=r"lies in model-00001-of-00002.safetensors and in model-00002"):
            read_repository(NAME, endpoint=hub.url)

    def test_missing_file(self, hub: HubServer, files: dict[str, bytes]) -> None:
        del files["model-00002-of-00002.safetensors"]
        hub.add(NAME, files)
        with pytest.raises(HubError, match="answers 404 Status: Entry not found"):
            read_repository(NAME, endpoint=hub.url)


class TestBrokenServers:
    def test_passing_failures_are_waited_out(self, plain: HubServer) -> None:
        plain.behaviour = Behaviour(fail={503: 2, 429: 1}, retry_after="0")
        assert read_repository(NAME, endpoint=plain.url).layers.scored == 12
        assert len(plain.requests) == 5

    def test_lasting_failure(self, plain: HubServer) -> None:
        plain.behaviour = Behaviour(fail={503: 99})
        with pytest.raises(HubError, match=r"/api/models/someone/net: the server answers 503 .*\(attempt 4 of 4\)"):
            read_repository(NAME, endpoint=plain.url)

    def test_long_pause_is_not_waited_for(self, plain: HubServer) -> None:
        plain.behaviour = Behaviour(fail={429: 99}, retry_after="300")
        with pytest.raises(HubError, match=r"429 .*; it asks to come back in 300 s \(attempt 1"):
            read_repository(NAME, endpoint=plain.url)

    def test_no_such_repository(self, hub: HubServer) -> None:
        with pytest.raises(HubError, match="answers 401 Status: Repository not found"):
            read_repository(NAME, endpoint=hub.url)
        assert len(hub.requests) == 1

    def test_nobody_there(self, hub: HubServer) -> None:
        with pytest.raises(HubError, match=r"127.0.0.1:9/api/models/someone/net: ConnectError"):
            read_repository(NAME, endpoint="http://127.0.0.1:9")

    @pytest.mark.parametrize("endpoint", ["nonsense", "ftp://127.0.0.1", "http://[::1"])
    def test_no_address(self, endpoint: str, hub: HubServer) -> None:
        with pytest.raises(HubError, match="cannot be read"):
            read_repository(NAME, endpoint=endpoint)

    def test_offline(self, plain: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="offline mode is on"):
            read_repository(NAME, endpoint=plain.url)
        assert not plain.requests

    @pytest.mark.parametrize("where", ["drip", "drip_headers"])
    def test_dripping_server_is_given_up(self, plain: HubServer, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        monkeypatch.setattr("pyassemble.zoo.ranged.ATTEMPTS", 2)
        plain.behaviour = Behaviour(**{where: 0.05})
        started = time.monotonic()
        with pytest.raises(HubError, match=r"no complete answer within 0\.3 s \(attempt 2 of 2\)"):
            read_repository(NAME, endpoint=plain.url, timeout=0.3)
        assert time.monotonic() - started < 5

    @pytest.mark.parametrize("ranges", [True, False])
    @pytest.mark.parametrize("cut", [0, 5, 100])
    def test_broken_off(self, plain: HubServer, ranges: bool, cut: int) -> None:
        plain.behaviour = Behaviour(ranges=ranges, cut=cut)
        with pytest.raises(HubError, match=r"\(attempt 4 of 4\)"):
            read_repository(NAME, endpoint=plain.url)

    def test_another_part_than_asked_for(self, plain: HubServer) -> None:
        plain.behaviour = Behaviour(shift=3)
        with pytest.raises(HubError, match="asked for the bytes from 0, the server sent 'bytes 3-"):
            read_repository(NAME, endpoint=plain.url)

    def test_compressed(self, plain: HubServer) -> None:
        plain.behaviour = Behaviour(gzip=True)
        with pytest.raises(HubError, match="sent compressed"):
            read_repository(NAME, endpoint=plain.url)

    def test_redirect_loop(self, plain: HubServer) -> None:
        plain.behaviour = Behaviour(redirect=plain.url)
        with pytest.raises(HubError, match="TooManyRedirects"):
            read_repository(NAME, endpoint=plain.url)

    def test_redirect_to_a_file(self, plain: HubServer) -> None:
        plain.behaviour = Behaviour(redirect="file://")
        with pytest.raises(HubError, match="cannot be read"):
            read_repository(NAME, endpoint=plain.url)

    def test_file_that_grows_in_the_telling(self, plain: HubServer) -> None:
        plain.behaviour = Behaviour(claim=10**6)
        with pytest.raises(PyAssembleError, match="it ended after"):
            read_repository(NAME, endpoint=plain.url)

    def test_no_weights_that_can_be_read(self, hub: HubServer) -> None:
        hub.add(NAME, {"pytorch_model.bin": b""})
        with pytest.raises(HubError, match="holds no safetensors file"):
            read_repository(NAME, endpoint=hub.url)

    def test_several_weights(self, hub: HubServer) -> None:
        hub.add(NAME, {"a.safetensors": b"", "b.safetensors": b""})
        with pytest.raises(HubError, match=r"2 sets of weights and no model\.safetensors: a\.safetensors, b"):
            read_repository(NAME, endpoint=hub.url)

    @pytest.mark.parametrize("name", ["", "a/b/c", "a b", "..", "../../etc", "a/b?x"])
    def test_no_repository_name(self, name: str) -> None:
        with pytest.raises(NetworkSpecError, match="is not the name of a Hub repository"):
            read_repository(name)
        with pytest.raises(NetworkSpecError, match="is not the name of a Hub repository"):
            hub_jobs([name])


class TestLyingHeaders:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "0 bytes are too few"),
            (b"\x01\x02", "2 bytes are too few"),
            ((10**12).to_bytes(8, "little") + b"{}", "claims a header of 1000000000000 bytes"),
            (b"\xff" * 8 + b"{}", "claims a header of 18446744073709551615 bytes"),
            ((5000).to_bytes(8, "little") + b"{}", "a header of 5000 bytes in a file of 10 bytes"),
            (with_header(b"not json"), "header is no JSON"),
            (with_header(b"[" * 60_000), "header is no JSON"),
            (with_header([]), "no JSON object"),
            (with_header(b'{"a": {}, "a": {}}'), "a name occurs twice"),
            (with_header(entry_of(shape=[-2, 4])), "lacks a proper shape"),
            (with_header(entry_of(shape=[2**70, 0], data_offsets=[0, 0])), "lacks a proper shape"),
            (with_header(entry_of(shape=[2.0, 4])), "lacks a proper shape"),
            (with_header(entry_of(shape="24")), "lacks a proper shape"),
            (with_header(entry_of(dtype="Q4"), bytes(32)), "has dtype 'Q4'"),
            (with_header(entry_of(dtype=["F32"]), bytes(32)), "has dtype"),
            (with_header(entry_of(shape=[2, 5]), bytes(32)), "takes 40 bytes, its header entry says 32"),
            (with_header(entry_of(data_offsets=[32, 0]), bytes(32)), "says -32"),
            (with_header(entry_of(data_offsets=[8, 40]), bytes(40)), "starts at byte 8"),
            (with_header(entry_of(), bytes(31)), "ends at byte 32 of 31"),
            (with_header(entry_of(), bytes(40)), "8 bytes belong to no tensor"),
            (with_header(entry_of() | {"b": entry_of()["a.weight"]}, bytes(32)), "starts at byte 0, expected was"),
        ],
    )
    def test_refused(self, hub: HubServer, content: bytes, words: str) -> None:
        hub.add(NAME, {"model.safetensors": content})
        with pytest.raises(WeightsFileError, match=words) as caught:
            read_repository(NAME, endpoint=hub.url)
        assert "model.safetensors" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_nothing_to_score(self, hub: HubServer) -> None:
        hub.add(NAME, {"model.safetensors": safetensors({"scale": (3,), "empty.weight": (0, 4)})})
        with pytest.raises(EmptyNetworkError, match="'hf-hub:someone/net' has no layer"):
            read_repository(NAME, endpoint=hub.url)

    @pytest.mark.parametrize(
        "info",
        [b"", b"<html>", b"[]", b"{}", b'{"sha": 3, "siblings": []}', b'{"sha": "x", "siblings": {}}', b"[" * 99_999],
    )
    def test_not_a_hub(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch, info: bytes) -> None:
        monkeypatch.setattr("tests.zoo.hub_server.json.dumps", lambda _: info.decode())
        hub.add(NAME, {})
        with pytest.raises(HubError, match="is this the address of a Hub"):
            read_repository(NAME, endpoint=hub.url)

    def test_odd_lists(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        info = '{"sha": "x", "siblings": [3, null, {}, {"rfilename": 3}], "cardData": [1]}'
        monkeypatch.setattr("tests.zoo.hub_server.json.dumps", lambda _: info)
        hub.add(NAME, {})
        with pytest.raises(HubError, match="holds no safetensors file"):
            read_repository(NAME, endpoint=hub.url)

    def test_endless_config(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyassemble.zoo.hub._MAX_CONFIG_BYTES", 1000)
        hub.add(NAME, {"config.json": b" " * 100_000})
        with pytest.raises(HubError, match="larger than the 1000 bytes"):
            read_repository(NAME, endpoint=hub.url)


class TestLicense:
    @pytest.mark.parametrize(
        ("card", "license"),
        [
            (None, None),
            ({"license": "unknown"}, None),
            ({"license": ["mit", "apache-2.0"]}, "mit, apache-2.0"),
            ({"license": {"a": 1}}, None),
            ({"license": "other"}, "other"),
        ],
    )
    def test_of_the_card(self, plain: HubServer, card: object, license: str | None) -> None:
        plain.cards[NAME] = card
        assert read_repository(NAME, endpoint=plain.url).license == license


def test_many_at_once(plain: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the worker processes: what cannot be read is named, the rest is there, the token stays out of sight."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    jobs = hub_jobs([NAME, "someone/missing", f"{NAME}@{COMMIT}"], endpoint=plain.url, token="hf_secret")
    assert "hf_secret" not in repr(jobs)
    assert [job.key is None for job in jobs] == [True, True, False]
    built = build(jobs, workers=1, progress=False)
    assert [entry.name for entry in built.entries] == [f"hf-hub:{NAME}", f"hf-hub:{NAME}@{COMMIT}"]
    assert list(built.skipped) == ["hf-hub:someone/missing"]
    assert "Repository not found" in built.skipped["hf-hub:someone/missing"]
    assert {request.authorization for request in plain.requests} == {"Bearer hf_secret"}
