"""Configuration taken up anew, and what is wrong with the node and its machine, as JSON."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from dataplane.fib.rows import address_text
from mesh.core.errors import BadInput, NotReady
from mesh.node import backup, diagnosis
from mesh.node.context import NodeContext
from mesh.node.diagnosis import Check, Peer

Json: TypeAlias = dict[str, Any]

_RESULTS: Final = {"live": "applied", "restart": "needs a restart", "never": "cannot change"}


class UpkeepService:
    """See the package."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node

    async def reload(self) -> Json:
        """`applied`: whether all that differs was taken up."""
        reloaded = await self._node.reloading.reload()
        return {
            "applied": not reloaded.refused,
            "fields": [
                {"field": field.title, "result": _RESULTS[field.change], "why": field.why}
                for field in (*reloaded.applied, *reloaded.refused)
            ],
        }

    async def snapshot(self, file: str) -> Json:
        """The file is written by this process, on its machine."""
        path = Path(file)
        if not path.is_absolute():
            raise BadInput(f"file: {file!r} is no absolute path")
        await self._node.durable()
        size_bytes = await trio.to_thread.run_sync(
            backup.save, self._node.store, self._node.config, path
        )
        return {"file": file, "bytes": size_bytes}

    # ---- diagnosis ----

    async def diagnose(self) -> Json:
        """Every check of `mesh.node.diagnosis.NAMES`, in that order."""
        node = self._node
        peers = self._peers()
        members = node.replica.roster.members().values()
        known = [m.name for m in members if m.state == "active" and m.node != node.id]
        checks = [
            *await trio.to_thread.run_sync(self._machine),
            await self._mtu(),
            diagnosis.judge_clock(peers),
            diagnosis.judge_ports(
                node.transport.listen_addrs(), [peer.name for peer in peers if peer.inbound]
            ),
            diagnosis.judge_peers([peer.name for peer in peers], known),
            diagnosis.judge_digests(peers),
            await self._maps(),
        ]
        checks.sort(key=lambda check: diagnosis.NAMES.index(check.name))
        return diagnosis.document(checks, running=True)

    def _peers(self) -> list[Peer]:
        node = self._node
        now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        found = []
        for link in node.transport.peers():
            synced_ns = node.replica.in_sync_ns(link.node)
            ahead_ns = link.clock_offset_ns
            found.append(
                Peer(
                    node.view.names.node_text(link.node),
                    None if ahead_ns is None else ahead_ns / 1e9,
                    None if synced_ns is None else (now_ns - synced_ns) / 1e9,
                    (wall_ns - link.connected_since_ns) / 1e9,
                    link.inbound,
                )
            )
        return found

    def _machine(self) -> list[Check]:
        """What any process of this machine could say. Touches files and the kernel: for a thread,
        and only what stays as it is while it runs."""
        config, backend = self._node.config, self._node.forwarder.backend
        found, _ = diagnosis.check_config(config.path)
        checks = [found, *diagnosis.machine_checks(config)]
        if backend.mode == "xdp":
            from dataplane.xdp import links, machine

            wan_if = config.wan_if or links.interface_with_address(config.underlay or "")
            told = diagnosis.judge_forwarding(bool(wan_if) and machine.native(str(wan_if)), None)
        else:
            wanted = config.dataplane_mode == "auto" and config.underlay is not None
            reason = self._node.forwarder.reason if wanted else None
            told = diagnosis.judge_forwarding(None, reason)
        return [told if c.name == "kernel" and c.ok else c for c in checks]

    async def _mtu(self) -> Check:
        node = self._node
        if node.forwarder.backend.mode == "memory":
            return Check("mtu", True, "nothing is encapsulated: data plane in memory")
        from dataplane.xdp import machine

        names = {
            address_text(row.underlay): node.view.names.node_text(row.node)
            for row in node.forwarding.tables().gateways.values()
        }
        found = await trio.to_thread.run_sync(
            machine.rooms, node.config.underlay or "", list(names)
        )
        return diagnosis.judge_mtu({names[address]: left for address, left in found.items()})

    async def _maps(self) -> Check:
        forwarder = self._node.forwarder
        try:
            usages = await forwarder.read(lambda backend: backend.usages())
        except NotReady as error:
            return diagnosis.judge_maps({}, str(error))
        return diagnosis.judge_maps(usages, forwarder.problem)
