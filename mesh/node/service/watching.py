"""Changes of the view as JSON, as they happen: `{"key", "value"}`, the value null when it is gone.

Keys are as everywhere (`vpc/NAME`, `endpoint/VPC/IP`, …), those of conflicts `conflict/KEY`.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import trio

from mesh.core.clock import ns_of_hlc
from mesh.core.errors import NotFound
from mesh.core.ops import MESH_SHARD
from mesh.node.context import NodeContext
from mesh.node.service.endpoints import EndpointService
from mesh.node.service.objects import ObjectService, time_text
from mesh.node.watching import Watch, What, node_of

Json: TypeAlias = dict[str, Any]

_ROWS_MAX: Final = 1000  # in one answer: some 300 kB
_SLICE: Final = 100  # rows made between two looks at what else is to be done


class WatchService:
    """See the package."""

    def __init__(
        self, node: NodeContext, objects: ObjectService, endpoints: EndpointService
    ) -> None:
        self._node = node
        self._objects = objects
        self._endpoints = endpoints

    async def open(self, shard: str | None = None) -> Json:
        """A watch that begins now; who does not ask for a minute has to begin anew."""
        view = self._node.view
        if shard not in (None, MESH_SHARD):
            shard = view.vpc(shard).id
        id, watch = self._node.watches.open(shard)
        # What a later answer has to name though it is gone by then.
        for vpc in view.vpcs.values():
            watch.shown[f"vpc {vpc.id}"] = {"key": view.names.vpc_key(vpc.id)}
        for subnet in view.subnets():
            key = view.names.subnet_key(subnet.vpc, subnet.id)
            watch.shown[f"subnet {subnet.id}"] = {"key": key}
        await self._listed(watch, "peerings")
        await self._listed(watch, "conflicts")
        return {"watch": id, "shard": shard}

    async def changes(self, watch: str) -> list[Json]:
        """What has changed since the last call, at once if anything has; none after 20 s."""
        watched = self._node.watches.get(watch)
        await self._node.watches.wait(watched)
        rows: list[Json] = []
        for count, what in enumerate(watched.take(_ROWS_MAX)):
            rows += await self._rows(watched, what)
            if count % _SLICE == 0:
                await trio.lowlevel.checkpoint()
        return rows

    async def close(self, watch: str) -> Json:
        self._node.watches.close(watch)
        return {"watch": watch}

    async def _rows(self, watch: Watch, what: What) -> list[Json]:
        kind, one, other = what
        view = self._node.view
        match kind:
            case "vpc":
                key = view.names.vpc_key(one) if one in view.vpcs else None
                return [await self._named(watch, f"vpc {one}", key, self._objects.get_vpc, one)]
            case "subnet":
                subnet = view.subnet_by_id(one)
                key = view.names.subnet_key(subnet.vpc, one) if subnet else None
                get, vpc = self._objects.get_subnet, subnet.vpc if subnet else ""
                return [await self._named(watch, f"subnet {one}", key, get, vpc, one)]
            case "gateway":
                return [self._gateway(what)]
            case "endpoint":
                key = f"endpoint/{view.names.vpc_text(one)}/{other}"
                return [
                    {"key": key, "value": await _or_none(self._endpoints.get_endpoint, one, other)}
                ]
            case _:
                return await self._listed(watch, kind)

    async def _named(self, watch: Watch, id: str, key: str | None, get: Any, *args: str) -> Json:
        """A row about what has a name, under the last name it had."""
        value = await _or_none(get, *args) if key else None
        last = watch.shown.pop(id, {"key": id.replace(" ", "/")})
        if key is not None and value is not None:
            watch.shown[id] = {"key": key}
        return {"key": key or last["key"], "value": value}

    def _gateway(self, what: What) -> Json:
        node = node_of(what)
        names, gateway = self._node.view.names, self._node.view.gateways.get(node)
        value = gateway and {
            "node": names.node_text(node),
            "site": gateway.site,
            "underlay": gateway.underlay or None,
            "encapsulation": gateway.encapsulation,
            "addrs": list(gateway.addrs),
            "version": gateway.version,
            "at": time_text(ns_of_hlc(gateway.hlc)),
        }
        return {"key": f"gateway/{names.node_text(node)}", "value": value}

    async def _listed(self, watch: Watch, kind: str) -> list[Json]:
        """The rows of a list that are not as this watch has last shown them."""
        if kind == "peerings":
            listed = await self._objects.list_peerings()
            now = {f"peering/{row['a']}/{row['b']}": row for row in listed}
        else:
            listed = await self._objects.list_conflicts()
            now = {f"conflict/{row['key']}": row for row in listed}
        prefix = "peering/" if kind == "peerings" else "conflict/"
        before = {key: row for key, row in watch.shown.items() if key.startswith(prefix)}
        for key in before:
            del watch.shown[key]
        watch.shown.update(now)
        differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return [{"key": key, "value": now.get(key)} for key in differing]


async def _or_none(get: Any, *args: str) -> Json | None:
    try:
        found: Json = await get(*args)
    except NotFound:
        return None
    return found
