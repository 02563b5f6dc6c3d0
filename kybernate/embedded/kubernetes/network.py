"""The cluster's network: a bridge on the host, a veth pair for every node, subnets that are free.

Everything lies in one 10.N.0.0/16 that no route of the host touches:

10.N.0.1 the host and the API server   10.N.0.10+i node i   10.N.i.0/24 pods of node i
10.N.128.0/17 services (nothing serves them: there is no kube-proxy)

The bridge is named after N, which makes taking N atomic; links carry the cluster's folder as alias.
"""

import ipaddress
import json
from pathlib import Path

import msgspec

from kybernate.embedded.kubernetes.commands import CommandFailed, run, succeeds

CANDIDATES = (*range(201, 255), *range(64, 201))


class NoFreeNetwork(Exception):
    """Every candidate is in use."""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    octet: int

    @property
    def bridge(self) -> str:
        return f"kyb{self.octet}"

    @property
    def host(self) -> str:
        return f"10.{self.octet}.0.1"

    @property
    def services(self) -> str:
        return f"10.{self.octet}.128.0/17"

    @property
    def first_service(self) -> str:
        return f"10.{self.octet}.128.1"

    def node(self, number: int) -> str:
        return f"10.{self.octet}.0.{10 + number}"

    def pods(self, number: int) -> str:
        return f"10.{self.octet}.{number}.0/24"

    def veth(self, number: int) -> str:
        return f"kyv{self.octet}-{number}"


async def take(folder: Path) -> Network:
    """A free network, with its bridge up."""
    used = await _used()
    for octet in CANDIDATES:
        wanted = ipaddress.ip_network(f"10.{octet}.0.0/16")
        network = Network(octet=octet)
        if any(wanted.overlaps(other) for other in used):
            continue
        if await succeeds("ip", "link", "add", network.bridge, "type", "bridge"):
            await raise_bridge(network, folder)
            return network
    raise NoFreeNetwork("every 10.N.0.0/16 is routed already; remove some of this host's routes")


async def raise_bridge(network: Network, folder: Path) -> None:
    """Make the bridge what it has to be, also when somebody removed it."""
    await succeeds("ip", "link", "add", network.bridge, "type", "bridge")  # usually there
    await run("ip", "link", "set", network.bridge, "alias", str(folder), "up")
    await run("ip", "address", "replace", f"{network.host}/24", "dev", network.bridge)


async def connect_node(network: Network, number: int, pid: int, folder: Path) -> None:
    """Give the network namespace of a process its link to the bridge and its routes."""
    veth = network.veth(number)
    await succeeds("ip", "link", "delete", veth)  # of a node that was killed a moment ago
    peer = ("type", "veth", "peer", "name", "eth0", "netns", str(pid))
    await run("ip", "link", "add", veth, *peer)
    await run("ip", "link", "set", veth, "alias", str(folder), "master", network.bridge, "up")
    pods, node = network.pods(number), network.node(number)
    await run("ip", "route", "replace", pods, "via", node)
    for command in (
        ("link", "set", "lo", "up"),
        ("address", "replace", f"{node}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("route", "replace", "default", "via", network.host),
    ):
        await run("nsenter", "-t", str(pid), "-n", "ip", *command)


async def connect_pods(network: Network, pid: int, others: tuple[int, ...]) -> None:
    """Show a node the way to the pods of the others, past the host."""
    for other in others:
        route = ("route", "replace", network.pods(other), "via", network.node(other))
        await run("nsenter", "-t", str(pid), "-n", "ip", *route)


async def remove(folder: Path) -> None:
    """Remove every link of the cluster in that folder; its routes go with them."""
    for name in await links(folder):
        try:
            await run("ip", "link", "delete", name)
        except CommandFailed:
            if name in await links(folder):  # a veth goes by itself with its node
                raise


async def links(folder: Path) -> list[str]:
    found = json.loads(await run("ip", "-json", "link", "show") or "[]")
    return [link["ifname"] for link in found if link.get("ifalias") == str(folder)]


async def _used() -> list[ipaddress.IPv4Network]:
    routes = json.loads(await run("ip", "-json", "-4", "route", "show", "table", "all") or "[]")
    wanted = (route["dst"] for route in routes if route["dst"] != "default")
    return [ipaddress.IPv4Network(dst, strict=False) for dst in wanted]
