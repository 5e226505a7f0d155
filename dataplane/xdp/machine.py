"""What this machine lacks to forward with XDP, each as (what, fix), or None: changes nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import TypeAlias

from dataplane.xdp import kernel, layout, links, pins, privilege
from dataplane.xdp.backend import lacking

Lack: TypeAlias = tuple[str, str]

_ETHERNET_BYTES = 14


def lacking_privileges() -> Lack | None:
    names = privilege.missing()
    if not names:
        return None
    return (
        f"this process lacks {' and '.join(names)}",
        'run it as root or by the systemd unit, or set [dataplane] mode = "memory"',
    )


def lacking_in_kernel() -> Lack | None:
    """The tools that make programs, and the kernel that takes them."""
    found = lacking()
    if found is not None:
        return found, "install that, or use a machine that has it"
    try:
        os.close(kernel.prog_load(kernel.PASS, "probe", flags=0))
    except OSError as error:
        what = f"the kernel refuses BPF: {error.strerror}"
        return what, "use a kernel with CONFIG_BPF_SYSCALL, and let this process use bpf(2)"
    return None


def lacking_bpffs() -> Lack | None:
    if pins.is_bpffs(pins.BPFFS):
        return None
    return f"no bpffs at {pins.BPFFS}", f"mount -t bpf bpf {pins.BPFFS}"


def native(ifname: str) -> bool:
    """Whether the program on an interface runs in its driver."""
    interface = links.interface(ifname)
    return interface is not None and links.native(interface.ifindex)


def rooms(underlay: str, destinations: Iterable[str]) -> dict[str, int | None]:
    """The largest packet that fits into a tunnel from our address to each gateway; None where no
    way is known."""
    wanted = list(destinations)
    of = links.family(underlay)
    with links.Underlay() as found:
        ways = found.resolve([address for address in wanted if links.family(address) == of])
    around = layout.outer_bytes(of == socket.AF_INET6) + _ETHERNET_BYTES
    return {address: ways[address].mtu - around if address in ways else None for address in wanted}
