"""The message bus: one narrow port, the NATS adapter behind it, and an in-memory twin."""

from kybernate.bus.port import (
    Bus,
    BusProblem,
    BusSettings,
    BusUnavailable,
    Change,
    Conflict,
    Delivery,
    Mark,
    NotPermitted,
    Queue,
    QueueMissing,
    Row,
    Table,
    TooLarge,
    TopologyMissing,
)

__all__ = [
    "Bus",
    "BusProblem",
    "BusSettings",
    "BusUnavailable",
    "Change",
    "Conflict",
    "Delivery",
    "Mark",
    "NotPermitted",
    "Queue",
    "QueueMissing",
    "Row",
    "Table",
    "TooLarge",
    "TopologyMissing",
]
