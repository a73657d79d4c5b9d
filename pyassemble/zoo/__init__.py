"""Many networks: where they come from, how similar they are, and which is the best source for a new one."""

from pyassemble.zoo.building import Built, build
from pyassemble.zoo.entry import Entry
from pyassemble.zoo.index import Record
from pyassemble.zoo.zoo import Zoo

__all__ = ["Built", "Entry", "Record", "Zoo", "build"]
