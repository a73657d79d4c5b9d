"""``python -m pyassemble`` is the ``pyassemble`` command."""

from pyassemble.cli import main

main()
