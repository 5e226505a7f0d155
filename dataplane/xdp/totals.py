"""Traffic by VPC and by peer site: sums over ports and gateways, so that no packet pays for them.

What a port or a gateway had counted when it went stays in the sums, which never go back while this
process lives.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from dataplane.backend import Json
from dataplane.xdp import layout, pack
from dataplane.xdp.maps import Maps
from dataplane.xdp.state import Resolved


class Totals:
    """See the module."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._vpcs: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._sites: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def stop_port(self, vni: int, ifindex: int) -> None:
        """A port goes, or to another VPC: take its counters away."""
        key = pack.u32(ifindex)
        self._vpcs[vni].update(self._maps.traffic("port_traffic", key))
        self._maps.count_anew("port_traffic", key)

    def stop_gateway(self, site: str, id: int) -> None:
        """A gateway goes: take its counters away."""
        key = pack.u32(id)
        self._sites[site].update(self._maps.traffic("gateway_traffic", key))
        self._maps.count_anew("gateway_traffic", key)

    def vpcs(self, state: Resolved) -> Json:
        """VNI → traffic of its ports here, and all of its packets that were dropped here."""
        sums = {vni: Counter(past) for vni, past in self._vpcs.items()}
        for ifname, row in state.ports.items():
            interface = state.interfaces.get(ifname)
            if interface is not None:
                traffic = self._maps.traffic("port_traffic", pack.u32(interface.ifindex))
                sums.setdefault(row.vni, Counter()).update(traffic)
        drops = self._maps.vpc_drops()
        return {
            str(vni): {**_all(sums.get(vni, Counter())), "drops": drops.get(vni, 0)}
            for vni in sorted(sums.keys() | drops.keys())
        }

    def sites(self, state: Resolved) -> Json:
        """Site → traffic with its gateways."""
        sums = {site: Counter(past) for site, past in self._sites.items()}
        for id, row in state.gateways.items():
            traffic = self._maps.traffic("gateway_traffic", pack.u32(id))
            sums.setdefault(row.site, Counter()).update(traffic)
        return {site: _all(counter) for site, counter in sorted(sums.items())}


def _all(counter: Counter[str]) -> dict[str, int]:
    return {name: counter[name] for name in layout.TRAFFIC.offsets}
