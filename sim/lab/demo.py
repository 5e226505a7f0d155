"""The story of Weft on one machine, told line by line, each line with what was measured.

Three sites, two tenants with the same addresses, a partition in which both sides go on, and a heal
after which all agree; a node that is killed while its pods talk. A step that is not as told is
marked, the story goes on where it can, and the exit code is 1. Whatever ends it, nothing of the lab
stays behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from mesh.core.errors import RequestError
from sim.lab import objects, processes, state
from sim.lab.lab import GatewayHandle, Lab, leftovers
from sim.lab.probes import receivers
from sim.lab.processes import identify
from sim.lab.signals import terminable
from sim.lab.topology import LabSpec

LAB_PREFIX: Final = "demo-"
PING_INTERVAL_S: Final = 0.02
PING_TIMEOUT_S: Final = 5.0
CUT_TIMEOUT_S: Final = 0.4  # for answers that must not come
PATIENCE_S: Final = 30.0  # what is promised is less; others may have the machine
HEAL_S: Final = 5.0  # what the design promises, of nodes that have a processor when they need one
POLL_INTERVAL_S: Final = 0.02
RUNNING_PINGS_S: Final = 1.0  # before the kill, and again while the node is away
SHARED_IP: Final = "10.0.200.50"


class UnlikeError(Exception):
    """A step did not go as told."""


class Teller:
    """Prints the story and remembers what was not as told."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.steps = 0
        self._began_s = time.monotonic()
        self._colour = sys.stdout.isatty()

    def chapter(self, title: str) -> None:
        self._print(f"\n{self._paint('1', title)}")

    def told(self, line: str, measured: str) -> None:
        self.steps += 1
        self._print(f"  {self._paint('32', '✓')} {line}: {measured}")

    def failed(self, line: str, reason: str) -> None:
        self.steps += 1
        self.failures.append(f"{line}: {reason}")
        self._print(f"  {self._paint('31', '✗')} {line}: {reason}")

    def summary(self) -> None:
        seconds = time.monotonic() - self._began_s
        self.chapter("Summary")
        good = self.steps - len(self.failures)
        self._print(f"  {good} of {self.steps} steps as told, in {seconds:.1f} s")
        for failure in self.failures:
            self._print(f"  not as told: {failure}")

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def _print(self, line: str) -> None:
        print(line, flush=True)


def expect(condition: bool, reason: str) -> None:
    if not condition:
        raise UnlikeError(reason)


def in_time(took_s: float, waited_s: float) -> str:
    """How long the heal took beside what is promised; `waited_s`: how much of that the nodes, all
    together, could have run and did not, since others had the processors."""
    if took_s <= HEAL_S:
        return f"{took_s:.2f} s after: within the {HEAL_S:g} s that are promised"
    return (
        f"{took_s:.2f} s after: NOT within the {HEAL_S:g} s that are promised"
        f" (the nodes waited {waited_s:.1f} s for a processor meanwhile)"
    )


class Story:
    """The steps, in order. Each returns what was measured or raises UnlikeError."""

    def __init__(self, lab: Lab, teller: Teller) -> None:
        self._lab = lab
        self._teller = teller

    def tell(self) -> None:
        self._teller.chapter("Two tenants with the same addresses on three sites")
        self._step("two VPCs, one CIDR, different tenants, known at every site", self._vpcs)
        self._step("every pod pings every pod of its VPC", self._ping_all)
        self._step("none reaches a pod of the other VPC, equal addresses or not", self._isolated)
        self._step("100 MB by TCP from site a to site b", self._transfer)

        self._teller.chapter("Cut off: {a} | {b, c}")
        self._step("pings across the cut stop, inside a side they go on", self._cut)
        self._step("each side takes a new endpoint and reaches it at once", self._new_endpoints)
        self._step(f"both sides claim {SHARED_IP}", self._claim_both)

        self._teller.chapter("Healed")
        self._step("all digests are equal again", self._heal)
        self._step("the conflict is listed, same winner at all three sites", self._conflict)
        self._step(f"{SHARED_IP} is the winner's pod for everybody", self._winner_receives)
        self._step("the new endpoints ping across", self._new_endpoints_across)

        self._teller.chapter("kill -9 of a node while pods talk through its gateway")
        self._step("no ping is lost while the node of b1 dies and comes back", self._kill)
        self._step("the data plane's audit is clean", self._audit)

        self._teller.chapter("An endpoint goes")
        self._step("endpoint rm stops its traffic everywhere", self._remove)

    def _step(self, line: str, run: Callable[[], str]) -> None:
        try:
            self._teller.told(line, run())
        except (UnlikeError, RequestError, OSError) as error:
            self._teller.failed(line, str(error))

    def _vpcs(self) -> str:
        said = []
        for gateway in self._lab.gateways():
            vpcs = gateway.api.get("/v1/vpcs")
            facts = sorted((v["name"], v["tenant"], v["vni"], tuple(v["cidrs"])) for v in vpcs)
            said.append(facts)
        expect(all(facts == said[0] for facts in said), f"sites differ: {said}")
        expect(len({facts[3] for facts in said[0]}) == 1, "the CIDRs differ")
        expect(len({facts[1] for facts in said[0]}) == len(said[0]), "the tenants are the same")
        return ", ".join(f"{v} of {t} (VNI {n}, {c[0]})" for v, t, n, c in said[0])

    def _ping_all(self) -> str:
        pods = self._lab.topology.pods
        pairs = [(p.name, q.name) for p in pods for q in pods if p.vpc == q.vpc and p != q]
        with self._lab.pinger(pairs) as pinger:
            results = pinger.run(rounds=3, interval_s=PING_INTERVAL_S, timeout_s=PING_TIMEOUT_S)
        lost = [result.name for result in results if result.lost]
        expect(not lost, f"lost: {', '.join(lost)}")
        mean_ms = sum(result.rtt_ms or 0.0 for result in results) / len(results)
        sent = sum(result.sent for result in results)
        return f"{len(pairs)} pairs, {sent} of {sent} answered, {mean_ms:.2f} ms on average"

    def _isolated(self) -> str:
        """Addresses are equal in both VPCs, so an answer proves nothing: see where it arrives."""
        pods = self._lab.topology.pods
        flows = [(p, ip) for p in pods for ip in sorted({q.ip for q in pods} - {p.ip})]
        namespaces = {p.name: p.netns for p in pods}
        vpcs = {p.name: p.vpc for p in pods}
        got = receivers(namespaces, [(p.name, ip) for p, ip in flows], PING_TIMEOUT_S)
        for (sender, ip), names in zip(flows, got, strict=True):
            right = [q.name for q in pods if q.vpc == sender.vpc and q.ip == ip]
            expect(list(names) == right, f"{sender.name} to {ip} arrives at {names}, not {right}")
        crossed = sum(
            vpcs[name] != p.vpc for (p, _), names in zip(flows, got, strict=True) for name in names
        )
        return f"{len(flows)} datagrams, {crossed} in the wrong VPC"

    def _transfer(self) -> str:
        result = self._lab.transfer("a-v1-1", "b-v1-1")
        expect(result.intact, f"{result.received_bytes} of {result.sent_bytes} bytes, or altered")
        return (
            f"{result.seconds:.2f} s, {result.gbit_per_s:.1f} Gbit/s, "
            f"SHA-256 {result.received_sha256[:16]}… at both ends"
        )

    def _cut(self) -> str:
        self._lab.partition("a", "b,c")
        self._expect_pings([("b-v1-1", "c-v1-1"), ("c-v2-1", "b-v2-1")], answered=True)
        across = [("a-v1-1", "b-v1-1"), ("b-v1-1", "a-v1-1"), ("c-v2-1", "a-v2-1")]
        self._expect_pings(across, answered=False)
        return "b and c answer each other, nothing between them and a"

    def _new_endpoints(self) -> str:
        self._lab.add_pod("a-v1-8", "a1", "v1", "10.0.1.80")
        self._lab.add_pod("b-v1-8", "b1", "v1", "10.0.2.80")
        began_s = time.monotonic()
        self._await_pings([("a-v1-1", "a-v1-8"), ("c-v1-1", "b-v1-8")])
        took_ms = (time.monotonic() - began_s) * 1000
        self._expect_pings([("c-v1-1", "a-v1-8"), ("a-v1-1", "b-v1-8")], answered=False)
        return f"10.0.1.80 at a, 10.0.2.80 at b and from c, after {took_ms:.0f} ms"

    def _claim_both(self) -> str:
        self._lab.add_pod("a-v1-9", "a1", "v1", SHARED_IP)
        self._lab.add_pod("b-v1-9", "b1", "v1", SHARED_IP)
        self._await_pings([("a-v1-1", SHARED_IP), ("c-v1-1", SHARED_IP)])
        got = self._receivers_of_shared(["a-v1-1", "c-v1-1"])
        expect(got == [("a-v1-9",), ("b-v1-9",)], f"it arrives at {got}")
        return "a has its own, b and c have b's"

    def _heal(self) -> str:
        self._lab.heal()
        began_s, waited_s = time.monotonic(), self._waited_s()
        digests: list[dict[str, str]] = []
        while (took_s := time.monotonic() - began_s) < PATIENCE_S:
            digests = [objects.digests(gateway.node) for gateway in self._lab.gateways()]
            if all(digest == digests[0] for digest in digests):
                shards = f"{len(digests[0])} shards at {len(digests)} nodes"
                return f"{shards}, {in_time(took_s, self._waited_s() - waited_s)}"
            time.sleep(POLL_INTERVAL_S)
        raise UnlikeError(f"not after {took_s:.0f} s: {digests}")

    def _waited_s(self) -> float:
        """How long the nodes, together, have waited for a processor that others had."""
        return sum(map(processes.waited_s, self._lab.state.processes.values()))

    def _conflict(self) -> str:
        winner, rule = self._await(self._agreed_conflict, "no agreement on one conflict")
        return f"{SHARED_IP} belongs to {winner} ({rule})"

    def _agreed_conflict(self) -> tuple[str, str] | None:
        listed = []
        for gateway in self._lab.gateways():
            conflicts = gateway.api.get("/v1/conflicts")
            listed.append([(c["key"], c["winner"], c["rule"]) for c in conflicts])
        same = all(entries == listed[0] for entries in listed)
        if same and len(listed[0]) == 1 and listed[0][0][0].endswith(f"/{SHARED_IP}"):
            return listed[0][0][1], listed[0][0][2]
        return None

    def _winner_receives(self) -> str:
        found = self._agreed_conflict()
        expect(found is not None, "there is no winner")
        winner = self._lab.gateway(found[0] if found else "").site
        senders = ["a-v1-1", "b-v1-1", "c-v1-1"]
        right = [(f"{winner}-v1-9",)] * len(senders)

        def all_there() -> bool | None:
            return self._receivers_of_shared(senders) == right or None

        self._await(all_there, f"not everything arrives at {winner}-v1-9")
        return f"datagrams from a, b and c all arrive at {winner}-v1-9"

    def _receivers_of_shared(self, senders: list[str]) -> list[tuple[str, ...]]:
        pods = {pod.name: pod.netns for pod in self._lab.topology.pods}
        return receivers(pods, [(name, SHARED_IP) for name in senders], CUT_TIMEOUT_S)

    def _new_endpoints_across(self) -> str:
        pairs = [("b-v1-1", "a-v1-8"), ("c-v1-1", "a-v1-8"), ("a-v1-1", "b-v1-8")]
        self._await_pings(pairs)
        self._expect_pings([("b-v2-1", "10.0.1.80")], answered=False)
        return "from all sites of v1, and not from v2"

    def _kill(self) -> str:
        pods = [pod for pod in self._lab.topology.pods if pod.name.endswith("-1")]
        pairs = [(p.name, q.name) for p in pods for q in pods if p.vpc == q.vpc and p != q]
        with self._lab.pinger(pairs) as pinger:
            pinger.start(interval_s=PING_INTERVAL_S, timeout_s=PING_TIMEOUT_S)
            time.sleep(RUNNING_PINGS_S)
            before = sum(result.sent for result in pinger.results())
            pid = self._lab.kill("b1")
            time.sleep(RUNNING_PINGS_S)
            away = sum(result.sent for result in pinger.results()) - before
            self._lab.start("b1")
            self._await(lambda: self._ready("b1"), "b1 is not ready again")
            results = pinger.stop()
        sent, lost = sum(r.sent for r in results), sum(r.lost for r in results)
        expect(lost == 0, f"{lost} of {sent} lost")
        return f"pid {pid} killed; 0 of {sent} lost, {away} of them sent while it was away"

    def _ready(self, gateway: str) -> bool | None:
        try:
            answer = self._lab.gateway(gateway).api.get("/v1/status")
        except RequestError:
            return None
        return (answer["ready"] and answer["dataplane"]["synced"]) or None

    def _audit(self) -> str:
        for gateway in self._lab.gateways():
            done = gateway.weft("dataplane", "audit")
            output = (done.stdout + done.stderr).strip()
            expect(done.returncode == 0, f"{gateway.name}: {output}")
        return f"{len(self._lab.gateways())} gateways, every row of their maps as compiled"

    def _remove(self) -> str:
        pairs = [("a-v1-1", "a-v1-8"), ("b-v1-1", "a-v1-8"), ("c-v1-1", "a-v1-8")]
        self._await_pings(pairs)
        gateway = self._lab.gateway("a1")
        self._remove_endpoint(gateway, "v1", "10.0.1.80")
        began_s = time.monotonic()

        def answered(timeout_s: float) -> bool:
            with self._lab.pinger(pairs) as pinger:
                results = pinger.run(rounds=2, interval_s=0.0, timeout_s=timeout_s)
            return any(result.received for result in results)

        def silent_s() -> float | None:
            if answered(PING_INTERVAL_S):
                return None
            now_s = time.monotonic()
            # Answers may just have been slow.
            return None if answered(CUT_TIMEOUT_S) else now_s

        took_ms = (self._await(silent_s, "it is still answered") - began_s) * 1000
        return f"silent from a, b and c {took_ms:.0f} ms after"

    def _remove_endpoint(self, gateway: GatewayHandle, vpc: str, ip: str) -> None:
        done = gateway.weft("endpoint", "rm", "--vpc", vpc, ip)
        expect(done.returncode == 0, (done.stdout + done.stderr).strip())

    # Waiting

    def _expect_pings(self, pairs: list[tuple[str, str]], *, answered: bool) -> None:
        timeout_s = PING_TIMEOUT_S if answered else CUT_TIMEOUT_S
        with self._lab.pinger(pairs) as pinger:
            results = pinger.run(rounds=2, interval_s=PING_INTERVAL_S, timeout_s=timeout_s)
        for result in results:
            said = f"{result.name}: {result.received} of {result.sent} answered"
            expect(result.received == (result.sent if answered else 0), said)

    def _await_pings(self, pairs: list[tuple[str, str]]) -> None:
        def all_answer() -> bool | None:
            with self._lab.pinger(pairs) as pinger:
                results = pinger.run(rounds=1, interval_s=0.0, timeout_s=CUT_TIMEOUT_S)
            return all(result.received for result in results) or None

        self._await(all_answer, f"no answer: {pairs}")

    def _await(self, check: Callable[[], Any], otherwise: str) -> Any:
        deadline_s = time.monotonic() + PATIENCE_S
        while (found := check()) is None:
            expect(time.monotonic() < deadline_s, otherwise)
            time.sleep(POLL_INTERVAL_S)
        return found


def run() -> int:
    """Make the lab, tell the story, take the lab down; returns the exit code.

    Raises:
        NotReady: no lab can be made on this machine; says what is missing.
        KeyboardInterrupt: SIGINT or SIGTERM; the lab is down.
    """
    teller = Teller()
    name = f"{LAB_PREFIX}{os.getpid()}"
    with terminable():
        _remove_abandoned()
        teller.chapter("Three sites on this machine: real nodes, real libp2p, real XDP")
        try:
            began_s = time.monotonic()
            lab = Lab.up(LabSpec(name=name), lambda line: print(f"    {line}", flush=True))
            teller.told("every node is ready", f"{time.monotonic() - began_s:.1f} s")
            Story(lab, teller).tell()
        finally:
            Lab.take_down(name)
        teller.chapter("The end")
        left = leftovers(name)
        if left:
            teller.failed("nothing stays behind", ", ".join(left))
        else:
            teller.told("nothing stays behind", "no namespace, process, pin or file")
    teller.summary()
    return teller.exit_code


def _remove_abandoned() -> None:
    """Labs of demos that were killed outright, so that they could not tidy up themselves."""
    for name in state.names():
        owner = name.removeprefix(LAB_PREFIX)
        if name != owner and owner.isdigit() and identify(int(owner)) is None:
            Lab.take_down(name)


def main() -> None:
    """`python -m sim.lab.demo`."""
    try:
        code = run()
    except RequestError as error:
        print(f"demo: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted; everything is taken down", file=sys.stderr)
        code = 128 + signal.SIGINT
    sys.exit(code)


if __name__ == "__main__":
    main()
