"""Real NATs: network namespaces, nftables masquerade, and transports whose sockets are in them.

    a - nat_a -+
               +- inet (routes; the public node is here)
    b - nat_b -+

Both private networks are 192.168.1.0/24, as they tend to be. A NAT forwards what comes from inside
and what belongs to it, and drops everything else, as a household's router does.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import trio

from dataplane.xdp.links import in_netns
from mesh.node.p2p.tcp import Address, Conduit, Listener, TcpConduit, TcpListener, TcpNet, bound

Nat: TypeAlias = Literal["", "random", "fully-random"]
"""How a masquerade chooses ports: keeps them where it can, or not."""

PUBLIC = "203.0.113.1"
PUBLIC6 = "2001:db8:a::1"
SIX_A = "2001:db8:a::10"
INSIDE = {"a": "192.168.1.2", "b": "192.168.1.3"}
OUTSIDE = {"a": "203.0.113.10", "b": "198.51.100.10"}
_ROUTER = {"a": PUBLIC, "b": "198.51.100.1"}


def missing() -> str:
    """What this machine lacks for it; empty when nothing."""
    if os.geteuid() != 0:
        return "root"
    tools = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    return " and ".join(tools)


class NatWorld:
    """The namespaces of one test; their names hold this process's id."""

    def __init__(self, number: int) -> None:
        self._prefix = f"wn{os.getpid()}-{number}-"
        self.names = [self.name(part) for part in ("inet", "nat_a", "nat_b", "a", "b")]

    def name(self, part: str) -> str:
        return self._prefix + part

    def build(self) -> None:
        for name in self.names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        inet = self.name("inet")
        self._forward(inet)
        for side in ("a", "b"):
            nat, inner = self.name(f"nat_{side}"), self.name(side)
            self._veth(inet, f"to_{side}", _ROUTER[side], nat, "wan", OUTSIDE[side])
            self._veth(nat, "lan", "192.168.1.1", inner, "eth", INSIDE[side])
            _run("ip", "-n", nat, "route", "add", "default", "via", _ROUTER[side])
            _run("ip", "-n", inner, "route", "add", "default", "via", "192.168.1.1")
            self._forward(nat)
            self.set_nat(side, "")
        for name, interface, host in ((inet, "to_a", PUBLIC6), (self.name("nat_a"), "wan", SIX_A)):
            _run("ip", "-n", name, "addr", "add", f"{host}/64", "dev", interface, "nodad")

    def set_nat(self, side: str, kind: Nat) -> None:
        """Translate from now on as `kind` says; what is under way stays as it is."""
        _nft(
            self.name(f"nat_{side}"),
            f"""
            flush ruleset
            table ip nat {{
              chain after {{
                type nat hook postrouting priority 100
                oifname "wan" masquerade {kind}
              }}
            }}
            table inet filter {{
              chain through {{
                type filter hook forward priority 0; policy drop
                iifname "lan" accept
                ct state established,related accept
              }}
              chain towards {{
                type filter hook input priority 0; policy accept
                iifname "wan" meta l4proto tcp ct state new,invalid drop
              }}
            }}
            """,
        )

    def cut(self, side: str) -> None:
        """Nothing gets through the NAT of that side any more, and nobody is told."""
        hook = "type filter hook forward priority -5; policy drop;"
        _nft(self.name(f"nat_{side}"), f"table inet cut {{ chain everything {{ {hook} }}; }}")

    def heal(self, side: str) -> None:
        _nft(self.name(f"nat_{side}"), "delete table inet cut")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    @staticmethod
    def _forward(name: str) -> None:
        _run("ip", "netns", "exec", name, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    @staticmethod
    def _veth(one: str, one_if: str, one_ip: str, other: str, other_if: str, other_ip: str) -> None:
        pair = ("type", "veth", "peer", "name", other_if, "netns", other)
        _run("ip", "-n", one, "link", "add", "name", one_if, *pair)
        for name, interface, host in ((one, one_if, one_ip), (other, other_if, other_ip)):
            _run("ip", "-n", name, "addr", "add", f"{host}/24", "dev", interface)
            _run("ip", "-n", name, "link", "set", interface, "up")


class NamespaceNet(TcpNet):
    """The network as a node in a namespace has it."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def connect(self, address: Address) -> Conduit:
        sock = trio.socket.from_stdlib_socket(self.bound(address.protocol, 0))
        try:
            await sock.connect((address.host, address.port))
        except BaseException:
            sock.close()
            raise
        return TcpConduit(trio.SocketStream(sock))

    async def listen(self, address: Address) -> Listener:
        sock = trio.socket.from_stdlib_socket(
            in_netns(self._name, lambda: _listening(address.protocol, address.host, address.port))
        )
        return TcpListener(sock)

    def bound(self, protocol: str, port: int) -> socket.socket:
        return in_netns(self._name, lambda: bound(protocol, port))


def _listening(protocol: str, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if protocol == "ip6" else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((host, port))
    sock.listen()
    return sock


@contextmanager
def world(number: int) -> Iterator[NatWorld]:
    made = NatWorld(number)
    try:
        made.build()
        yield made
    finally:
        made.remove()


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"


def _nft(name: str, rules: str) -> None:
    argv = ["ip", "netns", "exec", name, "nft", "-f", "-"]
    done = subprocess.run(argv, input=rules, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"nft in {name}: {done.stderr}"
