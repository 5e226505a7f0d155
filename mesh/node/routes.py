"""Every call of the local API: one table that routes, checks and documents requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from mesh.core.bounds import QUOTA_MAX
from mesh.core.validate import CIDRS_MAX, LABELS_MAX, SITES_MAX, VNI_MAX
from mesh.node.schema import Schema, array, boolean, integer, mapping, record, text
from mesh.node.service import Service
from mesh.version import VERSION

Call: TypeAlias = Callable[..., Awaitable[object]]

BODY_BYTES_MAX: Final = 64 * 1024  # a VPC or subnet with every site and CIDR, several times over
IMPORT_BYTES_MAX: Final = 4 * 1024 * 1024
IMPORT_ENDPOINTS_MAX: Final = 1000  # checked in one go between two looks at links and timers
STATEMENTS_AT_ONCE_MAX: Final = 1000  # a demotion that keeps 100,000 statements is 250
TTL_S_MAX: Final = 30 * 86_400

NAME: Final = text("A name, or an id where the name is ambiguous", 63)
IP: Final = text("An IP address in canonical form", 64)
STATEMENT: Final = text("A signed statement in base64", 32_768)
SITES: Final = array(text("A site", 63), SITES_MAX, "Sites")
CIDR: Final = text("A network in canonical form", 64)

_ENDPOINT_OPTIONS: Final = {
    "mac": text("Unicast MAC address; derived from VPC and IP when left out", 17),
    "name": text("A name for people", 63),
    "host": IP,
    "labels": mapping(text("A value", 63), f"At most {LABELS_MAX} labels"),
}
_ATTACH: Final = {"attach": text("Interface here that leads to the endpoint", 15)}


@dataclass(frozen=True, slots=True)
class Route:
    """One call. The arguments of `call(service)` are the path's, the query's and the body's."""

    method: str
    path: str
    summary: str
    call: Callable[[Service], Call]
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None
    body_bytes_max: int = BODY_BYTES_MAX


ROUTES: Final = (
    Route(
        "GET", "/v1/status", "Readiness, peers, digests, problems", lambda s: s.membership.status
    ),
    Route("GET", "/v1/members", "The nodes of the mesh", lambda s: s.membership.members),
    Route(
        "POST",
        "/v1/invitations",
        "Make a one-use join token",
        lambda s: s.membership.invite,
        body=record(
            {"ttl_s": integer("Lifetime in seconds", 1, TTL_S_MAX)},
            {
                "site": NAME,
                "quota_mesh": integer("Records it may hold in the mesh shard", 1, QUOTA_MAX),
                "quota_vpc": integer("Records it may hold in each VPC's shard", 1, QUOTA_MAX),
            },
        ),
    ),
    Route(
        "POST",
        "/v1/members/{node}/retire",
        "Retire a node for good; as compromised, forget it at once",
        lambda s: s.membership.retire,
        body=record({}, {"compromised": boolean("Drop all that it wrote")}),
    ),
    Route(
        "POST",
        "/v1/members/{node}/forget",
        "Drop and refuse everything of a retired node",
        lambda s: s.membership.forget,
    ),
    Route(
        "GET",
        "/v1/roster",
        "Every statement that membership follows from, in base64",
        lambda s: s.roster.statements,
    ),
    Route(
        "POST",
        "/v1/roster",
        "Take in statements that were signed elsewhere",
        lambda s: s.roster.add,
        body=record({"statements": array(STATEMENT, STATEMENTS_AT_ONCE_MAX, "Statements")}),
        body_bytes_max=IMPORT_BYTES_MAX,
    ),
    Route(
        "POST",
        "/v1/reload",
        "Read weft.toml again and take up what can change while running",
        lambda s: s.upkeep.reload,
        body=record({}),
    ),
    Route(
        "GET", "/v1/diagnose", "What is right and wrong, with the fix", lambda s: s.upkeep.diagnose
    ),
    Route(
        "POST",
        "/v1/snapshot",
        "Write this node, key included, into a new file on its machine",
        lambda s: s.upkeep.snapshot,
        body=record({"file": text("Absolute path of the file", 4096)}),
    ),
    Route(
        "POST",
        "/v1/rotate",
        "Give this node a new key",
        lambda s: s.membership.rotate,
        body=record({}, {"force": boolean("Though not all members were heard since its start")}),
    ),
    Route("POST", "/v1/leave", "Retire this node", lambda s: s.membership.leave),
    # ---- VPCs and subnets ----
    Route("GET", "/v1/vpcs", "List VPCs", lambda s: s.objects.list_vpcs),
    Route(
        "GET",
        "/v1/held",
        "The VPCs whose endpoints are kept here, and the others",
        lambda s: s.objects.list_held,
    ),
    Route(
        "POST",
        "/v1/vpcs",
        "Add a VPC",
        lambda s: s.objects.add_vpc,
        body=record(
            {
                "name": NAME,
                "vni": integer("VXLAN network identifier, mesh-wide", 1, VNI_MAX),
                "cidrs": array(CIDR, CIDRS_MAX, "Networks of the VPC"),
            },
            {"tenant": NAME},
        ),
    ),
    Route("GET", "/v1/vpcs/{vpc}", "Show a VPC", lambda s: s.objects.get_vpc),
    Route(
        "PATCH",
        "/v1/vpcs/{vpc}",
        "Change what is given of a VPC",
        lambda s: s.objects.set_vpc,
        body=record(
            {},
            {
                "name": NAME,
                "vni": integer("VXLAN network identifier, mesh-wide", 1, VNI_MAX),
                "cidrs": array(CIDR, CIDRS_MAX, "All networks of the VPC"),
                "tenant": NAME,
            },
        ),
    ),
    Route(
        "DELETE",
        "/v1/vpcs/{vpc}",
        "Remove a VPC for good",
        lambda s: s.objects.remove_vpc,
        query={"force": boolean("Also with endpoints in it")},
    ),
    Route("GET", "/v1/subnets", "List subnets", lambda s: s.objects.list_subnets, {"vpc": NAME}),
    Route(
        "POST",
        "/v1/subnets",
        "Add a subnet",
        lambda s: s.objects.add_subnet,
        body=record(
            {"name": NAME, "vpc": NAME, "cidr": CIDR},
            {"sites": SITES, "restrict": boolean("Only its sites may have endpoints in it")},
        ),
    ),
    Route(
        "GET", "/v1/vpcs/{vpc}/subnets/{subnet}", "Show a subnet", lambda s: s.objects.get_subnet
    ),
    Route(
        "DELETE",
        "/v1/vpcs/{vpc}/subnets/{subnet}",
        "Remove a subnet for good",
        lambda s: s.objects.remove_subnet,
    ),
    # ---- endpoints ----
    Route(
        "GET",
        "/v1/endpoints",
        "List the claims that count",
        lambda s: s.endpoints.list_endpoints,
        {"vpc": NAME, "site": NAME},
    ),
    Route(
        "POST",
        "/v1/endpoints",
        "Claim an endpoint for this gateway",
        lambda s: s.endpoints.add_endpoint,
        body=record({"vpc": NAME, "ip": IP}, {**_ENDPOINT_OPTIONS, **_ATTACH}),
    ),
    Route(
        "POST",
        "/v1/endpoints/import",
        "Claim many endpoints; all or none unless `partial`",
        lambda s: s.endpoints.import_endpoints,
        body=record(
            {
                "endpoints": array(
                    record({"vpc": NAME, "ip": IP}, _ENDPOINT_OPTIONS),
                    IMPORT_ENDPOINTS_MAX,
                    "Endpoints",
                )
            },
            {
                "check": boolean("Write nothing, say what would be refused"),
                "partial": boolean("Take the good ones"),
            },
        ),
        body_bytes_max=IMPORT_BYTES_MAX,
    ),
    Route(
        "GET",
        "/v1/vpcs/{vpc}/endpoints/{ip}",
        "Show the claim that wins",
        lambda s: s.endpoints.get_endpoint,
    ),
    Route(
        "DELETE",
        "/v1/vpcs/{vpc}/endpoints/{ip}",
        "Give up a claim, or evict a foreign one",
        lambda s: s.endpoints.remove_endpoint,
    ),
    Route(
        "POST",
        "/v1/vpcs/{vpc}/endpoints/{ip}/move",
        "Claim here what lives elsewhere",
        lambda s: s.endpoints.move_endpoint,
        body=record({}, {**_ENDPOINT_OPTIONS, **_ATTACH}),
    ),
    # ---- peerings and conflicts ----
    Route("GET", "/v1/peerings", "List peerings", lambda s: s.objects.list_peerings),
    Route(
        "POST",
        "/v1/peerings",
        "Say for VPC `a` that `b` may talk to it",
        lambda s: s.objects.add_peering,
        body=record({"a": NAME, "b": NAME}),
    ),
    Route(
        "DELETE", "/v1/peerings/{a}/{b}", "Take `a`'s half back", lambda s: s.objects.remove_peering
    ),
    Route("GET", "/v1/conflicts", "List conflicts", lambda s: s.objects.list_conflicts),
    Route(
        "POST",
        "/v1/conflicts/resolve",
        "Keep one node's claim, evict the others",
        lambda s: s.objects.resolve_conflict,
        body=record({"key": text("As the listing shows it"), "keep": NAME}),
    ),
    # ---- looking inside ----
    Route(
        "GET",
        "/v1/route",
        "Where traffic for an address goes, and why",
        lambda s: s.dataplane.explain,
        {"vpc": NAME, "ip": IP},
    ),
    Route(
        "GET",
        "/v1/state/digest",
        "Digest of a shard, `mesh` when none is named",
        lambda s: s.state.digest,
        {"shard": NAME},
    ),
    Route(
        "GET",
        "/v1/state/dump",
        "Chains with epoch, head, root and signature state",
        lambda s: s.state.dump,
        {"shard": NAME, "chain": NAME, "records": boolean("Also every record, decoded")},
    ),
    Route(
        "GET",
        "/v1/state/history",
        "What is known of one key: claims, revisions, evictions, deletions",
        lambda s: s.state.history,
        {"key": text("As the dump shows it")},
    ),
    Route(
        "GET",
        "/v1/state/diff/{peer}",
        "Chains that a linked peer holds otherwise",
        lambda s: s.state.diff,
    ),
    Route(
        "POST",
        "/v1/watches",
        "Begin to watch the view, from now on; kept while it is asked for once a minute",
        lambda s: s.watching.open,
        body=record({}, {"shard": NAME}),
    ),
    Route(
        "GET",
        "/v1/watches/{watch}",
        "What has changed since the last call; waits up to 20 s for something",
        lambda s: s.watching.changes,
    ),
    Route("DELETE", "/v1/watches/{watch}", "End a watch", lambda s: s.watching.close),
    Route(
        "GET",
        "/v1/state/verify",
        "Recompute roots and signatures of some chains, compare the store with memory",
        lambda s: s.state.verify,
        {"start": text("`next` of the call before; left out: from the first", 128)},
    ),
    Route("GET", "/v1/dataplane", "Every installed row", lambda s: s.dataplane.show),
    Route("GET", "/v1/dataplane/stats", "Counters", lambda s: s.dataplane.stats),
    Route(
        "GET",
        "/v1/dataplane/drops",
        "Dropped packets by reason, VPC, addresses, peer and interface",
        lambda s: s.dataplane.drops,
    ),
    Route(
        "GET",
        "/v1/dataplane/drops/{number}",
        "Drops from `next` of the last answer on; waits up to 20 s for one",
        lambda s: s.dataplane.drops_after,
    ),
    Route(
        "POST",
        "/v1/dataplane/audit",
        "Compare compiled and installed rows",
        lambda s: s.dataplane.audit,
        body=record({}, {"repair": boolean("Install exactly the compiled rows")}),
    ),
)


def openapi() -> dict[str, Any]:
    """The document at /v1/openapi.json (OpenAPI 3.1)."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    paths["/v1/openapi.json"] = {"get": {"summary": "This document", "responses": _answers()}}
    paths["/metrics"] = {
        "get": {
            "summary": "Prometheus text",
            "responses": {"200": {"description": "OK", "content": {"text/plain": {}}}},
        }
    }
    error = record({"error": text("What is wrong, the value, what to do"), "code": text("Kind")})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Weft local API", "version": VERSION},
        "paths": paths,
        "components": {"schemas": {"Error": error}},
    }


def _operation(route: Route) -> dict[str, Any]:
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": NAME} for name in names
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in route.query.items()
    ]
    operation: dict[str, Any] = {"summary": route.summary, "responses": _answers()}
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content = {"application/json": {"schema": route.body}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _answers() -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "200": {"description": "Done", "content": {"application/json": {}}},
        "400": {"description": "bad-input: the request is malformed", "content": error},
        "404": {"description": "not-found: no such object, or an ambiguous name", "content": error},
        "409": {"description": "refused: the state says no", "content": error},
        "503": {"description": "not-ready: not now, or the node failed", "content": error},
    }
