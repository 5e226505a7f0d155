"""Traffic between pods, made and measured here: echo requests and bulk TCP with a checksum.

A socket belongs to the namespace in which it was opened, so one process can send from a hundred
pods: a thread enters the namespace, opens the socket and is gone. Nothing has to be installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sim.lab.netns import in_namespace

ICMP_ECHO_REPLY: Final = 0  # RFC 792
ICMP_ECHO: Final = 8
ICMP_FILTER: Final = 1  # <linux/icmp.h>
SOL_RAW: Final = 255
ECHO_HEADER: Final = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
ECHO_PAYLOAD_BYTES: Final = 56  # as ping(8) sends
FLOWS_MAX: Final = 30_000  # identifiers have 16 bits
RECEIVE_BUFFER_BYTES: Final = 1 << 20  # a round of all flows of a namespace may come at once
IN_FLIGHT_MAX: Final = 30_000  # of one flow; sequence numbers have 16 bits
READ_BYTES: Final = 2048
TOKEN: Final = struct.Struct("!I12s")  # number of the flow, nonce of the run
TOKEN_PORT: Final = 9  # discard: no answer is expected
TOKEN_GRACE_S: Final = 0.1
CHUNK_BYTES: Final = 1 << 20
CONNECT_TIMEOUT_S: Final = 5.0
STALL_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Flow:
    """Echo requests from inside a namespace to an address."""

    name: str
    netns: str
    target_ip: str


@dataclass(frozen=True, slots=True)
class PingResult:
    """`rtt_ms` is the mean over the replies, None without any."""

    name: str
    sent: int
    received: int
    rtt_ms: float | None
    rtt_max_ms: float | None

    @property
    def lost(self) -> int:
        return self.sent - self.received


@dataclass(slots=True)
class _Probe:
    flow: Flow
    ident: int
    sock: socket.socket  # shared by the flows of a namespace
    sent: int = 0
    received: int = 0
    rtt_sum_ns: int = 0
    rtt_max_ns: int = 0
    in_flight: dict[int, int] = field(default_factory=dict)  # sequence number -> sent at, ns

    def result(self) -> PingResult:
        some = self.received > 0
        return PingResult(
            name=self.flow.name,
            sent=self.sent,
            received=self.received,
            rtt_ms=self.rtt_sum_ns / self.received / 1e6 if some else None,
            rtt_max_ms=self.rtt_max_ns / 1e6 if some else None,
        )


class Pinger:
    """Many flows of echo requests at a fixed interval, sent by one thread.

    `run` sends a number of rounds; `start` goes on until `stop`. Use as a context manager; an
    object pings once.

    Args:
        flows: `FLOWS_MAX` at most.
    """

    def __init__(self, flows: Sequence[Flow]) -> None:
        if len(flows) > FLOWS_MAX:
            raise ValueError(f"{len(flows)} flows; {FLOWS_MAX} at most")
        self._selector = selectors.DefaultSelector()
        self._probes: list[_Probe] = []
        self._sockets: dict[str, socket.socket] = {}
        self._stop_r, self._stop_w = socket.socketpair()
        self._selector.register(self._stop_r, selectors.EVENT_READ)
        self._thread: threading.Thread | None = None
        self._missing = 0
        # Others may ping from the same namespaces with the same identifiers: this is how a reply
        # to our own request is known.
        self._payload = os.urandom(ECHO_PAYLOAD_BYTES)
        try:
            for ident, flow in enumerate(flows):
                if flow.netns not in self._sockets:
                    sock = in_namespace(flow.netns, _echo_socket)
                    self._sockets[flow.netns] = sock
                    self._selector.register(sock, selectors.EVENT_READ)
                self._probes.append(_Probe(flow, ident, self._sockets[flow.netns]))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Pinger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self, *, rounds: int, interval_s: float, timeout_s: float) -> list[PingResult]:
        """Send `rounds` requests on every flow, then wait `timeout_s` at most for the replies."""
        self._loop(rounds, interval_s, timeout_s)
        return self.results()

    def start(self, *, interval_s: float, timeout_s: float) -> None:
        """Ping in the background until `stop`, which gives late replies `timeout_s`."""
        self._thread = threading.Thread(
            target=self._loop, args=(None, interval_s, timeout_s), name="pinger"
        )
        self._thread.start()

    def stop(self) -> list[PingResult]:
        """End what `start` began and return the counts."""
        self._join()
        return self.results()

    def results(self) -> list[PingResult]:
        """The counts so far, in the order of the flows."""
        return [probe.result() for probe in self._probes]

    def close(self) -> None:
        self._join()
        self._selector.close()
        for sock in (*self._sockets.values(), self._stop_r, self._stop_w):
            sock.close()

    def _join(self) -> None:
        if self._thread is not None:
            self._stop_w.send(b"x")
            self._thread.join()
            self._thread = None

    def _loop(self, rounds: int | None, interval_s: float, timeout_s: float) -> None:
        sent_rounds = 0
        next_s = time.monotonic()
        while True:
            for probe in self._probes:
                _send(probe, self._payload)
                self._missing += 1
            sent_rounds += 1
            next_s += interval_s
            if sent_rounds == rounds or self._read_until(next_s):
                break
        self._read_rest(time.monotonic() + timeout_s)

    def _read_until(self, deadline_s: float) -> bool:
        """Take replies in until then. True: told to stop before."""
        while (wait_s := deadline_s - time.monotonic()) > 0:
            for key, _ in self._selector.select(wait_s):
                if key.fileobj is self._stop_r:
                    return True
                self._receive(key.fileobj)
        return False

    def _read_rest(self, deadline_s: float) -> None:
        """Take replies in until none is missing, or until then."""
        self._selector.unregister(self._stop_r)
        late = False
        while self._missing and not late:
            # What came before the deadline counts, however late this gets to look.
            wait_s = max(0.0, deadline_s - time.monotonic())
            ready = self._selector.select(wait_s)
            late = wait_s == 0 and not ready
            for key, _ in ready:
                self._receive(key.fileobj)

    def _receive(self, sock: object) -> None:
        assert isinstance(sock, socket.socket)
        try:
            packet, (source_ip, _) = sock.recvfrom(READ_BYTES)
        except OSError:
            return
        now_ns = time.monotonic_ns()
        header_bytes = (packet[0] & 0x0F) * 4
        if packet[header_bytes + ECHO_HEADER.size :] != self._payload:
            return
        _, _, _, ident, sequence = ECHO_HEADER.unpack_from(packet, header_bytes)
        if ident >= len(self._probes):
            return
        probe = self._probes[ident]
        if probe.sock is not sock or probe.flow.target_ip != source_ip:
            return
        sent_ns = probe.in_flight.pop(sequence, None)
        if sent_ns is not None:
            self._missing -= 1
            probe.received += 1
            probe.rtt_sum_ns += now_ns - sent_ns
            probe.rtt_max_ns = max(probe.rtt_max_ns, now_ns - sent_ns)


def _echo_socket() -> socket.socket:
    """A raw socket that takes nothing in but echo replies."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    passed = 1 << ICMP_ECHO_REPLY
    sock.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", ~passed & 0xFFFFFFFF))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    sock.setblocking(False)
    return sock


def _send(probe: _Probe, payload: bytes) -> None:
    sequence = probe.sent & 0xFFFF
    header = ECHO_HEADER.pack(ICMP_ECHO, 0, 0, probe.ident, sequence)
    checksum = _internet_checksum(header + payload)
    packet = ECHO_HEADER.pack(ICMP_ECHO, 0, checksum, probe.ident, sequence) + payload
    if len(probe.in_flight) >= IN_FLIGHT_MAX:
        del probe.in_flight[next(iter(probe.in_flight))]
    probe.in_flight[sequence] = time.monotonic_ns()
    probe.sent += 1
    # Unreachable or a full queue: one more that does not come back.
    with contextlib.suppress(OSError):
        probe.sock.sendto(packet, (probe.flow.target_ip, 0))


def _internet_checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    words: tuple[int, ...] = struct.unpack(f"!{len(data) // 2}H", data)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True, slots=True)
class TransferResult:
    """Bulk TCP: what was sent, what arrived, and how long it took from connect to last byte."""

    sent_bytes: int
    received_bytes: int
    sent_sha256: str
    received_sha256: str
    seconds: float

    @property
    def intact(self) -> bool:
        return self.sent_sha256 == self.received_sha256

    @property
    def gbit_per_s(self) -> float:
        return self.received_bytes * 8 / 1e9 / self.seconds


def transfer(
    source_netns: str, target_netns: str, target_ip: str, total_bytes: int
) -> TransferResult:
    """Send random bytes over one TCP connection between two namespaces.

    Raises:
        OSError: no connection, or nothing moved for `STALL_TIMEOUT_S`.
    """
    listener = in_namespace(target_netns, lambda: socket.create_server((target_ip, 0), backlog=1))
    received: list[tuple[int, str]] = []
    with listener:
        listener.settimeout(CONNECT_TIMEOUT_S)
        receiver = threading.Thread(
            target=lambda: received.append(_receive_all(listener)), name="receiver"
        )
        receiver.start()
        began_s = time.monotonic()
        try:
            sent_sha256 = _send_all(source_netns, listener.getsockname(), total_bytes)
        finally:
            receiver.join()
        seconds = time.monotonic() - began_s
    received_bytes, received_sha256 = received[0]
    return TransferResult(total_bytes, received_bytes, sent_sha256, received_sha256, seconds)


def _send_all(netns: str, address: tuple[str, int], total_bytes: int) -> str:
    block = os.urandom(CHUNK_BYTES)
    digest = hashlib.sha256()
    sock = in_namespace(netns, lambda: socket.create_connection(address, CONNECT_TIMEOUT_S))
    with sock:
        sock.settimeout(STALL_TIMEOUT_S)
        for offset in range(0, total_bytes, CHUNK_BYTES):
            # No two chunks are alike, so one lost, doubled or out of place changes the checksum.
            chunk = struct.pack("!Q", offset) + block[8:]
            chunk = chunk[: total_bytes - offset]
            digest.update(chunk)
            sock.sendall(chunk)
    return digest.hexdigest()


def _receive_all(listener: socket.socket) -> tuple[int, str]:
    """Bytes and SHA-256 of what one connection brings until it ends or stalls."""
    digest = hashlib.sha256()
    count = 0
    try:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(STALL_TIMEOUT_S)
            while chunk := sock.recv(CHUNK_BYTES):
                digest.update(chunk)
                count += len(chunk)
    except OSError:
        pass  # what has not arrived shows in the count and the checksum
    return count, digest.hexdigest()


def receivers(
    pods: Mapping[str, str], flows: Sequence[tuple[str, str]], timeout_s: float
) -> list[tuple[str, ...]]:
    """Which pods a datagram really arrives at: an answer to a ping does not say whose it is.

    Args:
        pods: name -> namespace of all that may receive.
        flows: (name of the sender, address it sends to), `FLOWS_MAX` at most.
        timeout_s: how long to wait for flows that arrive nowhere.

    Returns:
        For each flow the names of those who got its datagram, sorted.
    """
    arrived: list[set[str]] = [set() for _ in flows]
    nonce = os.urandom(TOKEN.size - 4)
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        sockets: dict[str, socket.socket] = {}
        for name, netns in pods.items():
            sockets[name] = stack.enter_context(in_namespace(netns, _token_socket))
            selector.register(sockets[name], selectors.EVENT_READ, name)
        for number, (sender, address) in enumerate(flows):
            with contextlib.suppress(OSError):
                sockets[sender].sendto(TOKEN.pack(number, nonce), (address, TOKEN_PORT))
        deadline_s = time.monotonic() + timeout_s
        late = False
        while not late:
            # What came before the deadline counts, however late this gets to look.
            wait_s = max(0.0, deadline_s - time.monotonic())
            ready = selector.select(wait_s)
            late = wait_s == 0 and not ready
            for key, _ in ready:
                token = _take_token(key.fileobj, nonce)
                if token is not None and token < len(flows):
                    arrived[token].add(key.data)
            if all(arrived):
                # One that arrives at two places is about to show; then there is nothing to wait for
                deadline_s = min(deadline_s, time.monotonic() + TOKEN_GRACE_S)
    return [tuple(sorted(names)) for names in arrived]


def _token_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    sock.setblocking(False)
    sock.bind(("0.0.0.0", TOKEN_PORT))  # noqa: S104 — the pod's namespace has one address
    return sock


def _take_token(sock: object, nonce: bytes) -> int | None:
    assert isinstance(sock, socket.socket)
    try:
        data = sock.recv(READ_BYTES)
    except OSError:
        return None
    if len(data) != TOKEN.size or data[4:] != nonce:
        return None
    number: int = TOKEN.unpack(data)[0]
    return number
