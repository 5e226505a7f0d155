"""Key texts: `endpoint/VPC/IP`, `vpc/NAME`, … in both directions, and records in words.

VPCs, subnets and nodes stand with their name, or with their id where the name is ambiguous or the
object is not live. What this version does not know is shown as `unknown/HEX`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mesh.core import keys, model, validate
from mesh.core.errors import NotFound
from mesh.core.ops import MESH_SHARD, NodeId
from mesh.core.view import View

_FORMS = (
    "endpoint/VPC/IP, vpc/NAME, subnet/VPC/NAME, peering/A/B, evict/VPC/IP/NODE, gateway/NODE, "
    "binding/NODE/VPC, interest/NODE/VPC or unknown/HEX"
)


def key_text(view: View, shard: str, key: bytes) -> str:
    """The text of a record's key. Never raises."""
    try:
        parsed = keys.unpack(shard, key)
    except (keys.UnknownKey, keys.InvalidKey):
        return f"unknown/{key.hex()}"
    names = view.names
    match parsed:
        case keys.EndpointKey(addr):
            return names.endpoint_key(shard, addr)
        case keys.VpcKey(vpc):
            return names.vpc_key(vpc)
        case keys.SubnetKey(vpc, subnet):
            return names.subnet_key(vpc, subnet)
        case keys.PeeringKey(a, b, half):
            pair = f"peering/{names.vpc_text(a)}/{names.vpc_text(b)}"
            only = set(view.catalog.half_records(a, b)) <= {half}
            return pair if only else f"{pair}/{half}"
        case keys.EvictionKey(vpc, node, addr):
            ip = keys.ip_of(addr)
            return f"evict/{names.vpc_text(vpc)}/{ip}/{names.node_text(node)}"
        case keys.GatewayKey(node):
            return f"gateway/{names.node_text(node)}"
        case keys.InterestKey(node, vpc):
            return f"interest/{names.node_text(node)}/{names.vpc_text(vpc)}"
        case _:  # a binding
            return f"binding/{names.node_text(parsed.node)}/{names.vpc_text(parsed.vpc)}"


def parse_key(view: View, text: str, shard: str = MESH_SHARD) -> tuple[str, bytes]:
    """(shard, key) of a key text. `shard` is for `unknown/…` texts only.

    Raises:
        BadInput: not the text of a key.
        NotFound: it names something that is not there, or several things.
    """
    kind, *parts = text.split("/")
    match kind, parts:
        case "unknown", [digits]:
            return shard, _hex(text, digits)
        case "endpoint", [vpc, ip]:
            return _vpc(view, vpc), keys.pack(keys.EndpointKey(_addr(ip)))
        case "vpc", [vpc]:
            key: keys.Key = keys.VpcKey(_vpc(view, vpc))
        case "subnet", [vpc, subnet]:
            key = _subnet(view, _vpc(view, vpc), subnet)
        case "peering", [a, b]:
            key = _only_half(view, _vpc(view, a), _vpc(view, b))
        case "peering", [a, b, half] if validate.ID.fullmatch(half):
            key = keys.PeeringKey(_vpc(view, a), _vpc(view, b), half)
        case "evict", [vpc, ip, node]:
            key = keys.EvictionKey(_vpc(view, vpc), _node(view, node), _addr(ip))
        case "gateway", [node]:
            key = keys.GatewayKey(_node(view, node))
        case "binding", [node, vpc]:
            key = keys.BindingKey(_node(view, node), _vpc(view, vpc))
        case "interest", [node, vpc]:
            key = keys.InterestKey(_node(view, node), _vpc(view, vpc))
        case _:
            raise validate.bad("key", text, f"write it as {_FORMS}")
    return MESH_SHARD, keys.pack(key)


def _hex(text: str, digits: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise validate.bad("key", text, "hex digits follow unknown/") from None


def _vpc(view: View, text: str) -> str:
    """An id counts though the VPC is not live: what is removed still has a history."""
    return text if validate.ID.fullmatch(text) else view.vpc(text).id


def _subnet(view: View, vpc: str, text: str) -> keys.SubnetKey:
    if validate.ID.fullmatch(text):
        return keys.SubnetKey(vpc, text)
    return keys.SubnetKey(vpc, view.names.subnet(vpc, text).id)


def _node(view: View, text: str) -> NodeId:
    return bytes.fromhex(text) if validate.ID.fullmatch(text) else view.member(text).node


def _addr(text: str) -> bytes:
    return keys.addr_of(validate.ip("key", text))


def _only_half(view: View, a: str, b: str) -> keys.PeeringKey:
    halves = sorted(view.catalog.half_records(a, b))
    pair = f"{view.names.vpc_text(a)}/{view.names.vpc_text(b)}"
    if not halves:
        raise NotFound(f"no half of a peering {pair}; see weft peering ls")
    if len(halves) > 1:
        texts = ", ".join(f"peering/{pair}/{half}" for half in halves)
        raise NotFound(f"peering/{pair} was made several times; use one of {texts}")
    return keys.PeeringKey(a, b, halves[0])


# --- records in words ------------------------------------------------------------------------

_KINDS = {
    model.Claim: "endpoint",
    model.VpcRecord: "vpc",
    model.SubnetRecord: "subnet",
    model.PeeringRecord: "peering",
    model.Eviction: "evict",
    model.Registration: "gateway",
    model.Binding: "binding",
    model.Interest: "interest",
}


def describe_record(shard: str, key: bytes, record: bytes) -> dict[str, Any]:
    """A record's decoded value as JSON can hold it; what cannot be read is shown as bytes.

    `kind` is as in key texts, or `unknown` (a newer version's), or `invalid` with a `reason`; both
    with the record's size and bytes.
    """
    try:
        decoded = model.decode(keys.unpack(shard, key), record)
    except (keys.UnknownKey, model.UnknownRecord):
        return {"kind": "unknown", **_opaque(record)}
    except (keys.InvalidKey, model.InvalidRecord) as error:
        return {"kind": "invalid", "reason": str(error), **_opaque(record)}
    names = [each.name for each in fields(decoded)]
    return {
        "kind": _KINDS[type(decoded)],
        **{name: _plain(name, getattr(decoded, name)) for name in names},
    }


def _opaque(record: bytes) -> dict[str, Any]:
    return {"size_bytes": len(record), "record": record.hex()}


def _plain(name: str, value: Any) -> Any:
    if name == "labels":
        return dict(value)
    if name == "extra":
        return {str(number): packed.hex() for number, packed in value}
    if isinstance(value, bytes):
        return value.hex()
    return list(value) if isinstance(value, tuple) else value
