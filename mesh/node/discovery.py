"""Finding members in the same local network, as libp2p does (libp2p specs, discovery/mdns).

A node announces the service `_p2p._udp.local` under a random name, with a TXT record of
`dnsaddr=<multiaddr>/p2p/<peer id>` for each of its addresses, and takes such addresses of others.

python-zeroconf speaks multicast DNS here, in a thread with a loop of its own, so that it does not
matter to it that we run under trio. (py-libp2p's module around it is of no use: it puts what it
hears into a peer store for 120 s without a bound, and asks no one who is a member.)

Rules of this file
- Whoever is on the network can announce anything, so an announcement is a hint to dial, and the
  handshake decides. It counts only for a key that is a member's, and only for an address in a
  network that this machine is in: nobody can have us dial the rest of the world.
- What strangers can make us keep is bounded: the last NAMES_MAX names, TEXT_ADDRS_MAX addresses of
  each, FOUND_MAX of a member; zeroconf itself keeps 10,000 records at most. They are looked at once
  in LOOK_S.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.id import ID

from mesh.core.errors import BadInput, PeerError
from mesh.core.ops import NodeId
from mesh.node import addresses
from mesh.node.log import LimitedLog, event
from mesh.node.p2p.session import key_of
from mesh.node.p2p.tcp import Address

SERVICE = "_p2p._udp.local."
LOOK_S = 1.0
NETWORKS_S = 30.0
"""How old our knowledge of this machine's networks may be; a look costs some 15 ms of CPU."""
NAMES_MAX = 128
"""Names heard and not looked at yet: more than a second brings of one site's gateways."""
TEXT_ADDRS_MAX = 8
FOUND_MAX = 4
"""Addresses of one member that are dialled beside those it has registered: the last announced."""
OWN_ADDRS_MAX = 8
RETRY_S = 30.0
"""After a failure of the network: an interface went away, or there was none yet."""
REQUEST_MS = 500
"""How long the text of a name that came without one is waited for."""
REQUESTS_MAX = 4
"""Of those in one look: strangers cannot have us ask for more."""

_TEXT = b"dnsaddr="
_logger = logging.getLogger("weft.node")


@dataclass(frozen=True, slots=True)
class Announced:
    """What somebody says: the node with this key can be dialled there."""

    key: bytes
    addr: str


def text_of(key: bytes, addrs: Sequence[str]) -> bytes:
    """The TXT record of a node with that public key, 32 bytes: strings, each with its length."""
    peer = ID.from_pubkey(Ed25519PublicKey.from_bytes(key)).to_base58()
    strings = [_TEXT + f"{addr}/p2p/{peer}".encode() for addr in addrs[:OWN_ADDRS_MAX]]
    return b"".join(bytes([len(string)]) + string for string in strings if len(string) < 256)


def announced(text: bytes) -> list[Announced]:
    """What a TXT record says that can be dialled; everything else in it is passed over."""
    found: list[Announced] = []
    at = 0
    while at < len(text) and len(found) < TEXT_ADDRS_MAX:
        string = text[at + 1 : at + 1 + text[at]]
        at += 1 + text[at]
        addr, _, peer = string.removeprefix(_TEXT).rpartition(b"/p2p/")
        if not string.startswith(_TEXT):
            continue
        try:
            address = Address.parse(addr.decode("ascii"))
            if address.protocol in ("ip4", "ip6") and address.port:
                key = key_of(ID.from_base58(peer.decode("ascii")).to_bytes())
                found.append(Announced(key, str(address)))
        except (BadInput, PeerError, ValueError):
            continue
    return found


def within(addr: str, networks: Sequence[addresses.Cidr]) -> bool:
    """Whether a multiaddr is in one of these networks, and not loopback."""
    host = ipaddress.ip_address(Address.parse(addr).host)
    return not host.is_loopback and any(host in network for network in networks)


class Discovery:
    """One per node. `run` it, once; `use` says whether anything is announced and listened for."""

    def __init__(
        self,
        key: Callable[[], bytes],
        addrs: Callable[[], Sequence[str]],
        identify: Callable[[bytes], NodeId | None],
        news: Callable[[], None],
    ) -> None:
        """
        Args:
            key: this node's public key in use.
            addrs: multiaddrs at which it can be dialled.
            identify: the member with a public key; None: nobody.
            news: called when `found` has changed.
        """
        self._key = key
        self._addrs = addrs
        self._identify = identify
        self._news = news
        self._willing = False
        self._changed = trio.Event()
        self._names: dict[str, None] = {}
        """heard of since they were last looked at, the last ones; zeroconf's thread writes it"""
        self._lock = threading.Lock()
        self._log = LimitedLog(_logger, trio.current_time)
        self.found: Mapping[NodeId, tuple[str, ...]] = {}
        """where members say that they can be dialled, what was announced last first"""

    def use(self, willing: bool) -> None:
        """Announce and listen from now on, or no more; what was found is forgotten then."""
        self._willing = willing
        self._changed.set()

    async def run(self) -> None:
        while True:
            self._changed = trio.Event()
            if self._willing:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_looking)
                    await self._changed.wait()
                    nursery.cancel_scope.cancel()
            else:
                await self._changed.wait()
            if not self._willing and self.found:
                self.found = {}
                self._news()

    async def _keep_looking(self) -> None:
        while True:
            try:
                await self._look()
            except OSError as error:
                self._log.event("mdns.failed", level=logging.WARNING, error=error)
                await trio.sleep(RETRY_S)

    async def _look(self) -> None:
        """Announce and listen until this machine's networks change. Raises OSError."""
        networks = await addresses.networks()
        speaker = await trio.to_thread.run_sync(_Speaker, networks, self._hear)
        told: bytes | None = None
        seen_s = trio.current_time()
        try:
            while True:
                text = text_of(self._key(), [a for a in self._addrs() if "/p2p-circuit" not in a])
                if text != told:
                    await trio.to_thread.run_sync(speaker.announce, text)
                    told = text
                with self._lock:
                    names, self._names = list(self._names), {}
                if names:
                    self._take(await trio.to_thread.run_sync(speaker.read, names))
                await trio.sleep(LOOK_S)
                if trio.current_time() - seen_s >= NETWORKS_S:
                    seen_s = trio.current_time()
                    if await addresses.networks() != networks:
                        return
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(speaker.close)

    def _hear(self, name: str) -> None:
        """In zeroconf's thread: somebody is there, or says something new."""
        with self._lock:
            self._names.pop(name, None)
            self._names[name] = None
            if len(self._names) > NAMES_MAX:
                del self._names[next(iter(self._names))]

    def _take(self, heard: Sequence[Announced]) -> None:
        found = dict(self.found)
        for said in heard:
            node = self._identify(said.key)
            if node is not None and said.key != self._key():
                known = found.get(node, ())
                found[node] = tuple(dict.fromkeys((said.addr, *known)))[:FOUND_MAX]
        before, self.found = self.found, found
        if any(set(addrs) != set(before.get(node, ())) for node, addrs in found.items()):
            self._log.event("mdns.found", level=logging.INFO, members=len(found))
            self._news()


class _Speaker:
    """zeroconf, from a thread that may wait. Raises OSError."""

    def __init__(self, networks: Sequence[addresses.Network], hear: Callable[[str], None]) -> None:
        # Late: most nodes are not asked to do this.
        from zeroconf import ServiceBrowser, Zeroconf

        own = [n.own for n in networks if n.multicast]
        if not own:
            raise OSError("no interface to announce on")
        self._networks = [n.cidr for n in networks]
        self._zeroconf = Zeroconf(interfaces=own, use_asyncio=False)
        self._info: Any = None
        self._requests = 0
        self._name = f"{secrets.token_hex(16)}.{SERVICE}"

        def heard(*, name: str, **_: object) -> None:
            if name != self._name:
                hear(name)

        self._browser = ServiceBrowser(self._zeroconf, SERVICE, handlers=[heard])

    def announce(self, text: bytes) -> None:
        """Say this text from now on."""
        from zeroconf import Error, ServiceInfo

        server = f"{self._name.partition('.')[0]}.local."
        # The port stands in the multiaddrs; the record that zeroconf wants needs one, too.
        info = ServiceInfo(SERVICE, self._name, port=1, properties=text, server=server)
        try:
            if self._info is None:
                self._zeroconf.register_service(info)
            else:
                self._zeroconf.update_service(info)
        except Error as error:
            raise OSError(f"cannot be announced: {error}") from error
        self._info = info

    def read(self, names: Sequence[str]) -> list[Announced]:
        """What those who were heard last say, of this machine's networks."""
        found: list[Announced] = []
        self._requests = 0
        for name in names:
            try:
                found += announced(self._text(name))
            except Exception as error:  # a name that no service may have, say: strangers choose it
                event(_logger, "mdns.passed_over", level=logging.DEBUG, error=repr(error))
        return [said for said in dict.fromkeys(found) if within(said.addr, self._networks)]

    def _text(self, name: str) -> bytes:
        """The text that goes with a name; raises whatever zeroconf does for what is none."""
        from zeroconf import ServiceInfo

        info = ServiceInfo(SERVICE, name)
        info.load_from_cache(self._zeroconf)
        if not info.text and self._requests < REQUESTS_MAX:
            self._requests += 1
            info.request(self._zeroconf, REQUEST_MS)
        return info.text or b""

    def close(self) -> None:
        self._zeroconf.close()
