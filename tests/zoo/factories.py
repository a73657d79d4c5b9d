"""The text of a Python file whose factories do everything that a factory can do wrong."""

FACTORIES = """
import os, signal, subprocess, sys, time
from pathlib import Path
from torch import nn

HERE = Path(__file__).parent

def _note(name):
    with open(HERE / "built", "a") as file:
        file.write(name + "\\n")

def _network(width):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())

def raises():
    raise ValueError("no such width\\nand more lines")

def raises_nothing_said():
    raise KeyError

def interrupts():
    raise KeyboardInterrupt

def leaves():
    sys.exit(3)

def hangs():
    (HERE / "hangs.pid").write_text(str(os.getpid()))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (HERE / "child.pid").write_text(str(child.pid))
    time.sleep(600)

def exits_with_child():
    child = os.fork()
    if child == 0:
        time.sleep(600)
    os._exit(8)

def segfaults():
    print("about to fall", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def needs_missing():
    import no_such_module_anywhere

def not_a_network():
    return 3

def nothing_to_score():
    return nn.ReLU()

def prints():
    print("x" * 100_000)
    os.write(1, b"{\\n")
    input_ended = sys.stdin.read() == ""
    return _network(4 if input_ended else 5)
"""

#: Ten networks, each of which says that it was built, after a while.
SLOW = "".join(
    f"""
def net{i}():
    time.sleep(0.2)
    _note("net{i}")
    return _network({i + 1})
"""
    for i in range(10)
)
