"""The users of a lab that plays a scenario: their requests, each at its node and at its time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mesh.cli.client import Client, segments
from mesh.core.errors import NotReady, RequestError
from sim.lab.nodes import Node, wait_until
from sim.lab.processes import ProcessId
from sim.lab.script import Request

KNOWN_TIMEOUT_S: Final = 60.0

Key = tuple[str, str]
"""(VPC, IP) of an endpoint"""


class Users:
    """All of them: a thread for each gateway asks in turn what is to be asked there."""

    def __init__(self, nodes: Mapping[str, Node], due: Callable[[float], bool]) -> None:
        """`due` waits until that time of the scenario; False: it is over before."""
        self.asked = 0
        self.refused = 0
        self.errors: dict[str, int] = {}
        """what was said -> how often"""
        self.claims: dict[Key, list[tuple[str, str]]] = {}
        """endpoint -> (call, gateway) of all that were taken, in order"""
        self.unknown: set[tuple[Key, str]] = set()
        """(endpoint, gateway) whose last request was not answered: it may have been taken"""
        self._nodes = nodes
        self._due = due
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._failed: BaseException | None = None

    def found(self, requests: Sequence[Request], watch: Sequence[tuple[Node, ProcessId]]) -> None:
        """Make VPCs and subnets, and wait until every node knows them. Raises RequestError."""
        counts: dict[str, int] = {}
        for request in requests:
            ask(self._nodes[request.gateway].api, request)
            counts[request.call] = counts.get(request.call, 0) + 1
        self.asked += len(requests)
        wanted = counts.get("add_vpc", 0), counts.get("add_subnet", 0)

        def known() -> bool:
            for node, _ in watch:
                found = tuple(len(node.api.get(f"/v1/{kind}")) for kind in ("vpcs", "subnets"))
                if found != wanted:
                    raise NotReady(f"{node.name} has {found[0]} VPCs and {found[1]} subnets")
            return True

        wait_until("every node knows the VPCs and subnets", known, KNOWN_TIMEOUT_S, watch)

    def begin(self, requests: Sequence[Request]) -> None:
        by_gateway: dict[str, list[Request]] = {}
        for request in requests:
            by_gateway.setdefault(request.gateway, []).append(request)
        for own in by_gateway.values():
            thread = threading.Thread(target=self._ask_all, args=(own,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self, timeout_s: float) -> None:
        """Wait for the requests that are under way. Raises what has ended a thread before."""
        for thread in self._threads:
            thread.join(timeout_s)
        if self._failed is not None:
            raise self._failed

    def _ask_all(self, requests: Sequence[Request]) -> None:
        try:
            self._ask_each(requests)
        except BaseException as error:
            self._failed = error
            raise

    def _ask_each(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if not self._due(request.at_s):
                return
            claim = _claim(request)
            in_doubt = claim in self.unknown
            if claim:
                self.unknown.add(claim)  # until it is answered, if ever
            error: RequestError | None = None
            try:
                ask(self._nodes[request.gateway].api, request)
            except RequestError as caught:
                error = caught
            if claim and not (isinstance(error, NotReady) or (error and in_doubt)):
                self.unknown.discard(claim)
            self._note(request, claim, error)

    def _note(
        self, request: Request, claim: tuple[Key, str] | None, error: RequestError | None
    ) -> None:
        with self._lock:
            self.asked += 1
            if error is not None:
                self.refused += 1
                said = type(error).__name__
                self.errors[said] = self.errors.get(said, 0) + 1
            elif claim:
                key, gateway = claim
                self.claims.setdefault(key, []).append((request.call, gateway))


def _claim(request: Request) -> tuple[Key, str] | None:
    """What endpoint it is about, and who is asked; None: none."""
    if not request.call.endswith("_endpoint"):
        return None
    key = str(request.arguments["vpc"]), str(request.arguments["ip"])
    return key, request.gateway


def ask(api: Client, request: Request) -> None:
    """Make a request of a node. Raises RequestError."""
    a: dict[str, Any] = dict(request.arguments)
    match request.call:
        case "add_vpc":
            api.post("/v1/vpcs", a)
        case "set_vpc":
            api.patch(segments("vpcs", a.pop("vpc")), a)
        case "remove_vpc":
            api.delete(segments("vpcs", a["vpc"]), {"force": "true"} if a.get("force") else None)
        case "add_subnet":
            api.post("/v1/subnets", a)
        case "remove_subnet":
            api.delete(segments("vpcs", a["vpc"], "subnets", a["name"]))
        case "add_endpoint":
            api.post("/v1/endpoints", a)
        case "remove_endpoint":
            api.delete(segments("vpcs", a["vpc"], "endpoints", a["ip"]))
        case "move_endpoint":
            api.post(segments("vpcs", a["vpc"], "endpoints", a["ip"], "move"), {})
        case "resolve_conflict":
            api.post("/v1/conflicts/resolve", a)
        case "add_peering":
            api.post("/v1/peerings", a)
        case "remove_peering":
            api.delete(segments("peerings", a["a"], a["b"]))
        case call:
            raise AssertionError(call)
