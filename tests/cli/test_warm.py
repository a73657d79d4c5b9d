"""Commands in forks of a warm process: they do what they do without one, and where they could not, they run without."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

import pyassemble as pa
from pyassemble.cli.warm import client, request, worker
from pyassemble.cli.warm.keeper import keep
from pyassemble.cli.warm.place import is_private, socket_path
from pyassemble.cli.warm.preloaded import Preloaded, preload
from pyassemble.cli.warm.server import serve
from tests.cli.work import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Iterator

# A network's file that says where it runs, computes with the threads of all libraries, and trains.
FACTS = """
import json, os, sys
import numpy as np, torch
from torch import nn

print(os.getsid(0), file=sys.stderr)
os.write(7, b"inherited") if os.environ.get("SEVEN") else None
torch.set_default_device("cpu")  # a network's file is read with the meta device
torch.manual_seed(0)
images = torch.randn(64, 3, 32, 32)
network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(28800, 10))
optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
for _ in range(3):
    loss = nn.functional.cross_entropy(network(images), torch.arange(64) % 10)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
torch.set_default_device(None)
rows = np.random.default_rng(0).normal(size=(400, 400))
umask = os.umask(0)
os.umask(umask)
main = sys.modules["__main__"]
print(json.dumps({
    "cwd": os.getcwd(), "argv": sys.argv, "path": sys.path, "stdin": sys.stdin and sys.stdin.read(), "umask": umask,
    "environment": dict(os.environ), "main": [main.__package__, getattr(main, "__file__", None)],
    "executable": sys.executable, "streams": [str(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "terminal": [os.isatty(n) for n in (1, 2)], "buffered": [sys.stdout.line_buffering, sys.stderr.line_buffering],
    "loss": loss.item(), "torch threads": torch.get_num_threads(), "product": float((rows @ rows.T).sum()),
}))

def Net(): return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
"""

WAITS = """
import os, time
from pathlib import Path
Path("pid").write_text(str(os.getpid()))
Path("pid").rename("started")
time.sleep(60)
"""


class Shell:
    """Commands as a shell starts them, in a folder of networks."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "80", "TERM": "dumb"}
        for name in (client.VARIABLE, "PYTHONUNBUFFERED"):
            self.environment.pop(name, None)
        (folder / "nets.py").write_text(NETWORKS)
        (folder / "facts.py").write_text(FACTS)
        (folder / "waits.py").write_text(WAITS)
        self.runtime = runtime

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pyassemble", *arguments],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, stdin: str = "", **variables: str) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        with self.start(*arguments, **variables) as process:
            output, errors = process.communicate(stdin, timeout=60)
        return process.returncode, output, errors

    def script(self, text: str, **variables: str) -> tuple[int, str, str]:
        """The same of a line for a shell, in which $PYASSEMBLE is the program."""
        program = f"{sys.executable} -m pyassemble"
        environment = {**self.environment, **variables, "PYASSEMBLE": program}
        done = subprocess.run(["bash", "-c", text], cwd=self.folder, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    @contextmanager
    def waiting(self) -> Iterator[tuple[subprocess.Popen[str], int]]:
        """A command that waits in a network's file, and the process that really runs it."""
        started = self.folder / "started"
        started.unlink(missing_ok=True)
        with self.start("similarity", "waits.py:Net", "nets.py:small") as process:
            try:
                while not started.exists():
                    assert process.poll() is None
                    time.sleep(0.01)
                yield process, int(started.read_text())
            finally:
                process.kill()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """With a warm process."""
    folder = tmp_path_factory.mktemp("warm")
    shell = Shell(folder, folder)
    assert shell.run("warm", "start", "--background") == (0, "", "")
    yield shell
    assert shell.run("warm", "stop") == (0, "", "")
    code, output, _ = shell.run("warm", "status")
    assert (code, output) == (1, "no warm process is running for this environment\n")


@pytest.fixture
def cold(tmp_path: Path) -> Shell:
    """Without one."""
    return Shell(tmp_path, tmp_path)


def server(shell: Shell) -> int:
    code, output, _ = shell.run("warm", "status")
    assert code == 0, output
    return int(output.split()[1].rstrip(","))


class TestSameAsWithout:
    def test_command_that_computes_trains_reads_and_writes(self, shell: Shell) -> None:
        command = ("zoo", "nearest", "facts.py:Net", "--k", "10", "--json", "ranking.json")
        results = []
        for wanted in ("1", "0"):
            code, output, errors = shell.run(*command, stdin="some\ntext", PYASSEMBLE_WARM=wanted)
            facts, *table = output.splitlines()
            facts = json.loads(facts)
            assert facts["environment"].pop("PYASSEMBLE_WARM") == wanted
            assert (errors == f"{os.getsid(0)}\n") == (wanted == "0")  # a fork of the warm process has its own session
            results.append((code, facts, table, (shell.folder / "ranking.json").read_bytes()))
        assert results[0] == results[1]
        code, facts, table, _ = results[0]
        assert (code, facts["stdin"], table[-1][:6]) == (0, "some\ntext", "10 of ")

    @pytest.mark.parametrize(
        ("code", "arguments"),
        [
            (0, ["--version"]),
            (0, ["zoo", "--help"]),
            (2, ["zoo", "nearest"]),
            (2, ["zoo", "nearest", "nets.py:small", "--zo"]),
        ],
    )
    def test_exit_codes_and_messages(self, shell: Shell, code: int, arguments: list[str]) -> None:
        warm = shell.run(*arguments)
        assert warm == shell.run(*arguments, PYASSEMBLE_WARM="0")
        assert warm[0] == code

    def test_error(self, shell: Shell) -> None:
        code, output, errors = shell.run("zoo", "nearest", "nets.py:broken")
        assert (code, output, "ValueError: no such width" in errors) == (2, "", True)

    def test_shell(self, shell: Shell) -> None:
        line = "umask 027; exec 7>seven; cd /; $PYASSEMBLE zoo nearest $OLDPWD/facts.py:Net --k 1 <&-"
        code, output, _ = shell.script(line, SEVEN="1", NEW="ü\udcff")
        facts = json.loads(output.splitlines()[0])
        assert (code, facts["cwd"], facts["umask"], facts["stdin"]) == (0, "/", 0o27, None)
        assert facts["environment"]["NEW"] == "ü\udcff"
        assert (shell.folder / "seven").read_text() == "inherited"

    def test_pipe_whose_reader_leaves(self, shell: Shell) -> None:
        code, output, errors = shell.script("set -o pipefail; $PYASSEMBLE zoo nearest nets.py:small --k 1000 | head -1")
        assert len(output.splitlines()) == 1
        assert code != 0
        assert "Traceback" not in errors

    def test_full_disk(self, shell: Shell) -> None:
        line = "$PYASSEMBLE --version >/dev/full"
        code, _, errors = shell.script(line)
        assert (code, errors) == (120, "error: [Errno 28] No space left on device\n")
        assert shell.script(line, PYASSEMBLE_WARM="0")[0] == 120

    def test_terminal(self, shell: Shell) -> None:
        outer, inner = os.openpty()
        command = [sys.executable, "-m", "pyassemble", "zoo", "nearest", "facts.py:Net", "--k", "1"]
        environment = {k: v for k, v in shell.environment.items() if k != "COLUMNS"}
        with subprocess.Popen(command, cwd=shell.folder, env=environment, stdin=-3, stdout=inner, stderr=-3) as process:
            process.wait(60)
        os.close(inner)
        text = b""
        while b'"terminal": [true, false]' not in text:
            text += os.read(outer, 65536).replace(b"\r\n", b"")
        os.close(outer)
        assert b'"buffered": [true, true]' in text

    def test_changed_file_is_read_anew(self, shell: Shell) -> None:
        rankings = []
        for width in (4, 8):
            text = f"from torch import nn\ndef Net(): return nn.Conv2d(3, {width}, 3)\n"
            (shell.folder / "changing.py").write_text(text)
            rankings.append(shell.run("zoo", "nearest", "changing.py:Net", "--k", "2")[1])
        assert rankings[0] != rankings[1]

    def test_unseeded_numbers_differ(self, shell: Shell) -> None:
        text = (
            "import random, numpy, torch\nnumbers = random.random(), numpy.random.rand(), torch.rand(1, device='cpu')\n"
        )
        text += "print(*map(float, numbers))\n"
        (shell.folder / "unseeded.py").write_text(f"{text}def Net(): return torch.nn.Conv2d(3, 4, 3)\n")
        first, second = (shell.run("zoo", "nearest", "unseeded.py:Net", "--k", "1")[1].split()[:3] for _ in range(2))
        assert all(a != b for a, b in zip(first, second, strict=True))


class TestSignals:
    def test_interrupt(self, shell: Shell) -> None:
        with shell.waiting() as (process, _):
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=20)
        assert (process.returncode, output, errors) == (130, "", "interrupted: nothing further was written\n")

    def test_interrupt_before_the_command_begins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def become(*arguments: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(worker, "_become", become)
        assert worker._exit_code({}, 0, [], {}) == 130  # type: ignore[typeddict-item]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_end_by_signal(self, shell: Shell, number: int) -> None:
        with shell.waiting() as (process, runner):
            process.send_signal(number)
            assert process.wait(20) == -number
            assert not Path(f"/proc/{runner}").exists()

    def test_stop_and_go_on(self, shell: Shell) -> None:
        with shell.waiting() as (process, runner):
            assert runner != process.pid
            for number, state in ((signal.SIGTSTP, "T"), (signal.SIGCONT, "S")):
                process.send_signal(number)
                for pid in (process.pid, runner):
                    eventually(lambda pid=pid, state=state: _stat(pid)[0] == state)

    def test_death_of_the_client(self, shell: Shell) -> None:
        with shell.waiting() as (process, runner):
            process.kill()
            eventually(lambda: _stat(runner)[0] in ("", "Z"))

    def test_death_of_the_command(self, shell: Shell) -> None:
        with shell.waiting() as (process, runner):
            os.kill(runner, signal.SIGKILL)
            assert process.wait(20) == -signal.SIGKILL

    def test_death_of_the_keeper(self, shell: Shell) -> None:
        with shell.waiting() as (process, runner):
            os.kill(int(_stat(runner)[1]), signal.SIGKILL)
            assert process.wait(20) == 2
            eventually(lambda: _stat(runner)[0] in ("", "Z"))

    def test_the_warm_process_is_left_as_it_was(self, shell: Shell) -> None:
        process = server(shell)
        assert len(os.listdir(f"/proc/{process}/task")) == 1  # which a fork needs
        with shell.waiting() as (_, runner):
            keeper = int(_stat(runner)[1])
            assert int(_stat(keeper)[1]) == process
        eventually(lambda: not Path(f"/proc/{keeper}").exists() or _stat(keeper)[0] == "Z")
        assert server(shell) == process


class TestDoneWithout:
    @pytest.mark.parametrize(
        "name", ["OMP_NUM_THREADS", "TIMM_FUSED_ATTN"]
    )  # one read by libraries, one by Python code
    def test_variable_that_importing_reads(self, shell: Shell, name: str) -> None:
        code, output, _ = shell.run("warm", "status", **{name: "0"})
        assert (code, output.splitlines()[1]) == (1, f"commands here start without it: not the same: {name}")

    @pytest.mark.parametrize(
        "name", ["CUDA_VISIBLE_DEVICES", "PYASSEMBLE_BACKEND", "LD_PRELOAD", "LC_ALL", "NPY_DISABLE_CPU_FEATURES"]
    )
    def test_other_variables(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        known = nothing()
        monkeypatch.setenv(name, "another")
        assert conversation(known) == (True, f"not the same: {name}")
        assert conversation(nothing()) == (True, None)
        monkeypatch.delenv(name)
        assert conversation(nothing(environment={**os.environ, name: "x"})) == (True, f"not the same: {name}")

    def test_variables_that_do_not_matter(self, shell: Shell) -> None:
        assert shell.run("warm", "status", COLUMNS="99", TERM="xterm", NEW="1", PYASSEMBLE_WARM="0")[0] == 0

    def test_circumstances(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = nothing()
        for what, value in known.circumstances.items():
            other = dict(known.circumstances, **{what: [value, 1]})
            assert conversation(nothing(circumstances=other)) == (True, f"not the same: {what}")
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
        assert conversation(known) == (True, "not the same: processors")

    def test_file_that_a_library_has_open(self) -> None:
        assert conversation(nothing(descriptors=frozenset({1}))) == (True, "file descriptor 1 is in use")

    def test_file_in_the_way_of_a_library(self, shell: Shell) -> None:
        (shell.folder / "timm").mkdir()  # a folder of weights, say
        assert shell.run("warm", "status")[0] == 0
        (shell.folder / "timm" / "__init__.py").touch()
        code, output, _ = shell.run("warm", "status")
        (shell.folder / "timm" / "__init__.py").unlink()
        assert (code, f"{shell.folder}/timm takes the place" in output) == (1, True)

    def test_another_start_is_refused(self, shell: Shell) -> None:
        code, output, errors = shell.run("warm", "start", "--background")
        assert (code, output) == (2, "")
        assert errors == "error: another warm process is running or starting (pyassemble warm status)\n"

    def test_program_that_has_torch_already(self, shell: Shell) -> None:
        arguments = ["pyassemble", "zoo", "nearest", "facts.py:Net", "--k", "1"]
        text = f"import sys, torch\nfrom pyassemble.cli import main\nsys.argv = {arguments}\nmain()\n"
        (shell.folder / "caller.py").write_text(text)
        command = [sys.executable, "caller.py"]
        done = subprocess.run(command, cwd=shell.folder, env=shell.environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, f"{os.getsid(0)}\n")

    def test_stopped(self, shell: Shell) -> None:
        process = server(shell)
        os.kill(process, signal.SIGSTOP)
        try:
            assert shell.run("--version") == (0, f"pyassemble {pa.__version__}\n", "")
        finally:
            os.kill(process, signal.SIGCONT)

    def test_loaded_file_has_changed(self, tmp_path: Path) -> None:
        file = tmp_path / "module.py"
        file.touch()
        assert nothing(files={str(file): (file.stat().st_mtime_ns, 0)}).changed() is None
        assert conversation(nothing(files={str(file): (file.stat().st_mtime_ns, 0)})) == (True, None)
        file.write_text("1")
        assert conversation(nothing(files={str(file): (0, 0)})) == (False, f"{file} has changed")

    def test_usage(self, cold: Shell) -> None:
        assert cold.run("warm", "start", "--idle", "0")[2] == "error: --idle is 0; accepted: minutes above 0\n"
        assert cold.run("warm", "stop") == (2, "", "error: no warm process is running\n")
        assert "a standard stream is closed" in cold.script("$PYASSEMBLE warm start <&-")[2]


class TestForeignSockets:
    VERSION = (0, f"pyassemble {pa.__version__}\n", "")

    @pytest.fixture
    def path(self, cold: Shell, monkeypatch: pytest.MonkeyPatch) -> str:
        """Where a warm process of this environment would listen."""
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(cold.runtime))
        (cold.runtime / "pyassemble").mkdir(mode=0o700)
        return socket_path()

    def test_nobody_listens(self, cold: Shell, path: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
        assert os.path.exists(path)
        assert cold.run("--version") == self.VERSION

    @pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
    def test_nobody_answers(self, cold: Shell, path: str, kind: int) -> None:
        with socket.socket(socket.AF_UNIX, kind) as listener:
            listener.bind(path)
            listener.listen()
            assert cold.run("--version") == self.VERSION

    def test_connection_closed_at_once(self, cold: Shell, path: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen()
            threading.Thread(target=lambda: listener.accept()[0].close()).start()
            assert cold.run("--version") == self.VERSION

    def test_folder_open_to_others(self, cold: Shell, path: str) -> None:
        folder = Path(path).parent
        folder.chmod(0o755)
        assert not is_private(str(folder))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen()
            assert cold.run("--version") == self.VERSION
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()
        assert "closed to others" in cold.run("warm", "start", "--background")[2]

    def test_folder_of_another_user_or_a_link(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "folder"
        folder.mkdir(mode=0o700)
        (tmp_path / "link").symlink_to(folder)
        assert is_private(str(folder))
        assert not is_private(str(tmp_path / "link"))
        monkeypatch.setattr(os, "getuid", lambda: os.stat(folder).st_uid + 1)
        assert not is_private(str(folder))

    def test_another_user_is_not_asked(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen()
            connection = client.connect()
            assert connection is not None
            assert client.peer(connection) == (os.getpid(), os.getuid())
            connection.close()
            for process, user in ((1, os.getuid() + 1), (0, os.getuid())):  # 0: not of this container
                monkeypatch.setattr(client, "peer", lambda connection, found=(process, user): found)
                assert client.connect() is None

    def test_another_user_is_not_answered(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyassemble.cli.warm.server.peer", lambda connection: (1, os.getuid() + 1))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, open(os.devnull) as lock:
            listener.bind(path)
            listener.listen()
            connection = client.connect()
            assert connection is not None
            serve(listener, lock, nothing(), 0.2)  # and ends, as nothing happens
            assert connection.recv(16) == b""
            connection.close()


def test_preloading_does_not_build_all_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(**options: object) -> None:
        pytest.fail("the whole of timm is being built")

    monkeypatch.setattr("pyassemble.cli.zoo.group.shipped", lambda: None)  # it is of another version
    monkeypatch.setattr(pa.Zoo, "timm", build)
    try:
        assert "timm" in preload(besides=0).packages
    finally:
        gc.unfreeze()


def test_file_that_changes_while_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("changing")
    module.__file__ = str(tmp_path / "changing.py")
    Path(module.__file__).touch()
    monkeypatch.setitem(sys.modules, "changing", module)

    def shipped() -> None:  # which is called meanwhile
        os.utime(tmp_path / "changing.py", ns=(time.time_ns(), time.time_ns()))

    monkeypatch.setattr("pyassemble.cli.zoo.group.shipped", shipped)
    with pytest.raises(OSError, match=r"changing\.py was changed while this was starting"):
        preload(besides=0)


@pytest.mark.slow
def test_started_where_the_end_of_processes_is_ignored(cold: Shell) -> None:
    text = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    text += "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD]); "
    text += "os.execv(sys.executable, [sys.executable, '-m', 'pyassemble', 'warm', 'start', '--background'])"
    assert cold.script(f'{sys.executable} -c "{text}"') == (0, "", "")
    try:
        process = server(cold)
        for _ in range(2):
            assert cold.run("--version") == (0, f"pyassemble {pa.__version__}\n", "")
        assert server(cold) == process
    finally:
        assert cold.run("warm", "stop") == (0, "", "")


@pytest.mark.slow
def test_foreground(cold: Shell) -> None:
    with cold.start("warm", "start") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"listening, process {process.pid};")
        assert server(cold) == process.pid
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not list(cold.runtime.glob("pyassemble/*.socket"))
    code, output, errors = cold.run("warm", "start", "--idle", "0.01")  # which then ends by itself
    assert (code, output[:9], errors) == (0, "listening", "")


def nothing(**changes: object) -> Preloaded:
    """Of a process that has loaded nothing, in the circumstances of this one."""
    circumstances = json.loads(json.dumps(request.circumstances()))
    empty = Preloaded(dict(os.environ), frozenset(), {}, circumstances, {}, frozenset(), frozenset())
    return replace(empty, **changes)  # type: ignore[arg-type]


def conversation(preloaded: Preloaded) -> tuple[bool, str | None]:
    """What a keeper finds, and what it tells a client that then leaves."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found: list[bool] = []
    keeper = threading.Thread(target=lambda: found.append(keep(its, preloaded)))
    keeper.start()
    with its, mine:
        answer = client.offer(mine, request.of_this_process())
        mine.shutdown(socket.SHUT_RDWR)
        keeper.join()
    return found[0], answer


def eventually(condition: object) -> None:
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.01)
    pytest.fail("not within ten seconds")


def _stat(process: int) -> list[str]:
    """State, as ps names it, and parent; an empty state for a process that is no more."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return ["", "0"]
