"""The facade behind the local API: one method a call, plain JSON values in and out.

    objects.py      VPCs, subnets, peerings, conflicts
    endpoints.py    endpoints, their import, and the interfaces they are attached to
    membership.py   status, members, invitations
    roster.py       the roster's statements
    state.py        digests, dumps, differences of the replicated state
    upkeep.py       configuration taken up anew, diagnosis
    watching.py     changes of the view as they happen
    dataplane.py    installed rows, counters, audit, route explain

Arguments have passed the schemas of `mesh.node.routes`; what they mean is checked here and below.
Errors are `RequestError`; nothing was changed then, unless a method says otherwise.
"""

from __future__ import annotations

from mesh.node.context import NodeContext
from mesh.node.service.dataplane import DataplaneService
from mesh.node.service.endpoints import EndpointService
from mesh.node.service.membership import MembershipService
from mesh.node.service.objects import ObjectService
from mesh.node.service.roster import RosterService
from mesh.node.service.state import StateService
from mesh.node.service.upkeep import UpkeepService
from mesh.node.service.watching import WatchService


class Service:
    """All services of one node."""

    def __init__(self, node: NodeContext) -> None:
        self.node = node
        self.objects = ObjectService(node)
        self.endpoints = EndpointService(node)
        self.membership = MembershipService(node)
        self.roster = RosterService(node)
        self.state = StateService(node)
        self.upkeep = UpkeepService(node)
        self.watching = WatchService(node, self.objects, self.endpoints)
        self.dataplane = DataplaneService(node, self.endpoints)
