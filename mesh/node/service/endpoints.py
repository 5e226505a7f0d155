"""Endpoints as JSON: claims, their import, and the interfaces that carry them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, TypeAlias

import trio

from crdt.header import ChainId
from mesh.core import keys
from mesh.core.clock import ns_of_hlc
from mesh.core.errors import BadInput, NotFound, Refused
from mesh.core.importing import EndpointSpec
from mesh.core.ops import NodeId, Op
from mesh.core.view import Endpoint, Vpc
from mesh.node.config_fields import ifname as check_ifname
from mesh.node.context import NodeContext
from mesh.node.store import Attachment

Json: TypeAlias = dict[str, Any]

_SLICE: Final = 1000  # endpoints turned into JSON between two looks at what else is to be done


class EndpointService:
    """See the package."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node

    # ---- reading ----

    async def list_endpoints(self, vpc: str | None = None, site: str | None = None) -> list[Json]:
        view = self._node.view
        if site is not None and site not in view.sites():
            raise NotFound(f"no site {site!r} in the mesh: there are {', '.join(view.sites())}")
        vpc_id = None if vpc is None else view.vpc(vpc).id
        found = list(view.endpoints(vpc_id, site))
        connected = self._connected()
        listed: list[Json] = []
        for start in range(0, len(found), _SLICE):
            listed += [self._endpoint(e, connected) for e in found[start : start + _SLICE]]
            await trio.lowlevel.checkpoint()
        return listed

    async def get_endpoint(self, vpc: str, ip: str) -> Json:
        return self._shown(self._node.view.vpc(vpc), ip)

    def claims(self, vpc_id: str, ip: str) -> list[Json]:
        """Every claim for an address, best first, with the rule that ranked it."""
        connected = self._connected()
        return [
            {**self._endpoint(claim, connected), "rule": claim.rule}
            for claim in self._node.view.claims(vpc_id, ip)
        ]

    def _shown(self, vpc: Vpc, ip: str) -> Json:
        winner = self._node.view.winner(vpc.id, ip)
        if winner is None:
            if not self._node.replica.keeps(vpc.id):
                raise NotFound(f"VPC {vpc.name} is not held here: ask a node of a site that has it")
            raise NotFound(f"no endpoint {ip} in VPC {vpc.name}: see weft endpoint ls")
        return self._endpoint(winner, self._connected())

    def _endpoint(self, endpoint: Endpoint, connected: frozenset[NodeId]) -> Json:
        names = self._node.view.names
        age_s = (time.time_ns() - ns_of_hlc(endpoint.hlc)) / 1e9
        state: str = endpoint.state
        if state == "active" and not self._reachable(endpoint, connected):
            state = "unreachable"
        return {
            "vpc": names.vpc_text(endpoint.vpc),
            "ip": endpoint.ip,
            "mac": endpoint.mac,
            "name": endpoint.name or None,
            "site": endpoint.site,
            "node": names.node_text(endpoint.node),
            "host": endpoint.host,
            "mobility": endpoint.mobility,
            "dot": self._dot(endpoint),
            "age_s": round(max(0.0, age_s), 1),
            "state": state,
        }

    def _dot(self, endpoint: Endpoint) -> str:
        """`node/epoch/seq` of the record that makes the claim."""
        key = keys.pack(keys.EndpointKey(keys.addr_of(endpoint.ip)))
        held = self._node.replica.lattice.get(ChainId(endpoint.node, endpoint.vpc), key)
        name = self._node.view.names.node_text(endpoint.node)
        if held is None:
            return f"{name}/-/-"
        epoch, seq, _ = held
        return f"{name}/{epoch.counter}/{seq}"

    def _connected(self) -> frozenset[NodeId]:
        return frozenset([self._node.id, *(peer.node for peer in self._node.transport.peers())])

    def _reachable(self, endpoint: Endpoint, connected: frozenset[NodeId]) -> bool:
        """Whether a gateway that can carry its traffic is linked to this one."""
        if endpoint.host is None:
            return endpoint.node in connected
        members = self._node.view.members
        return any(members[node].site == endpoint.site for node in connected if node in members)

    # ---- writing ----

    async def add_endpoint(self, attach: str | None = None, **said: Any) -> Json:
        """`said`: the fields of `EndpointSpec`. The claim is written first; an interface that
        cannot be attached is refused before."""
        return await self._claim(EndpointSpec(**said), attach, self._node.writer.add_endpoint)

    async def move_endpoint(self, attach: str | None = None, **said: Any) -> Json:
        """As `add_endpoint`."""
        return await self._claim(EndpointSpec(**said), attach, self._node.writer.move_endpoint)

    async def _claim(
        self, said: EndpointSpec, attach: str | None, write: Callable[..., list[Op]]
    ) -> Json:
        vpc = self._node.view.vpc(said.vpc)
        spec = said._replace(vpc=vpc.id)
        if attach is not None:
            await self._check_attachment(attach, vpc, spec)
        async with self._node.holding(vpc.id):
            await self._node.submit(lambda: write(spec, now_ns=time.time_ns()))
        claim = self._node.view.claim(self._node.id, vpc.id, spec.ip)
        if attach is not None and claim is not None:
            attachment = Attachment(attach, vpc.id, spec.ip, claim.mac)
            await self._replace_attachments(attachment)
        return self._shown(vpc, spec.ip)

    async def remove_endpoint(self, vpc: str, ip: str) -> Json:
        """Give up the claim here, or evict a foreign one; what is attached for it is let go."""
        found = self._node.view.vpc(vpc)
        async with self._node.holding(found.id):
            return await self._remove(found, ip)

    async def _remove(self, found: Vpc, ip: str) -> Json:
        attached = [a for a in await self._attachments() if (a.vpc, a.ip) == (found.id, ip)]
        winner = self._node.view.winner(found.id, ip)
        shown = self._endpoint(winner, self._connected()) if winner else {}
        try:
            await self._node.submit(
                lambda: self._node.writer.remove_endpoint(found.id, ip, now_ns=time.time_ns())
            )
        except NotFound:
            if not attached:
                raise
        for attachment in attached:
            self._node.detach(attachment.ifname)
            await trio.to_thread.run_sync(self._node.store.remove_attachment, attachment.ifname)
        names = self._node.view.names
        return {"vpc": names.vpc_text(found.id), "ip": ip, **shown, "state": "removed"}

    async def import_endpoints(
        self, endpoints: list[Json], check: bool = False, partial: bool = False
    ) -> Json:
        """Claim many; `index` in errors counts from 0. Nothing is written if one is bad, unless
        `partial`; with `check` nothing is written at all."""
        specs = [EndpointSpec(**entry) for entry in endpoints]
        errors: list[Json] = []

        def make_ops() -> Sequence[Op]:
            ops, failed = self._node.writer.add_endpoints(specs, now_ns=time.time_ns())
            errors[:] = [{"index": index, "error": str(error)} for index, error in failed]
            return [] if check or (failed and not partial) else ops

        before = len(specs)
        async with AsyncExitStack() as stack:
            for vpc_id in sorted(self._vpcs_of(specs)):
                await stack.enter_async_context(self._node.holding(vpc_id))
            await self._node.submit(make_ops)
        taken = 0 if check or (errors and not partial) else before - len(errors)
        return {"good": before - len(errors), "taken": taken, "errors": errors}

    def _vpcs_of(self, specs: Sequence[EndpointSpec]) -> set[str]:
        """The VPCs that are there of those named."""
        found: set[str] = set()
        for name in {spec.vpc for spec in specs}:
            with suppress(NotFound):
                found.add(self._node.view.vpc(name).id)
        return found

    # ---- interfaces ----

    async def _attachments(self) -> tuple[Attachment, ...]:
        return await trio.to_thread.run_sync(self._node.store.attachments)

    async def _check_attachment(self, ifname: str, vpc: Vpc, spec: EndpointSpec) -> None:
        check_ifname("attach", ifname)
        if spec.host is not None:
            raise BadInput("attach: an endpoint behind a host is not attached here: give one")
        for attachment in await self._attachments():
            if attachment.ifname == ifname and (attachment.vpc, attachment.ip) != (vpc.id, spec.ip):
                other = self._node.view.names.vpc_text(attachment.vpc)
                raise Refused(
                    f"attach: {ifname} carries {attachment.ip} of VPC {other}: remove that"
                    " endpoint first"
                )
        if self._node.forwarder.backend.mode == "xdp":
            try:
                socket.if_nametoindex(ifname)
            except OSError:
                raise Refused(
                    f"attach: no interface {ifname} here: make it first (ip link shows all)"
                ) from None

    async def _replace_attachments(self, attachment: Attachment) -> None:
        """One interface for one endpoint: another one that had it is let go."""
        for old in await self._attachments():
            same = (old.vpc, old.ip) == (attachment.vpc, attachment.ip)
            if same and old.ifname != attachment.ifname:
                self._node.detach(old.ifname)
                await trio.to_thread.run_sync(self._node.store.remove_attachment, old.ifname)
        await trio.to_thread.run_sync(self._node.store.set_attachment, attachment)
        self._node.attach(attachment.ifname, attachment.vpc, attachment.ip, attachment.mac)
