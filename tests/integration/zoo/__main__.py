"""Workloads with state that is hard to bring back, run inside a container by name.

`python3 -m zoo NAME` sets the animal's state up, prints `ready` and lives on. At each SIGUSR1 it
proves its state and prints `proof N NAME: OK`, or `proof N NAME: FAILED …` with what is wrong.
An animal is a generator: its first yield means that it is set up, each further one that a proof
held. Standard library only: the container has nothing else.
"""

import sys

from zoo import connections, processes, storage, waiting
from zoo.animal import prove

KINDS = (connections, processes, storage, waiting)
"""Importing them registered their animals."""

if __name__ == "__main__":
    prove(sys.argv[1])
