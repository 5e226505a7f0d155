"""Why a packet was dropped: numbers shared by both backends and the C source."""

from __future__ import annotations

from enum import IntEnum

REASONS_MAX = 32
"""Size of the kernel's array of drop counters."""


class DropReason(IntEnum):
    """Index into the drop counters. Numbers are part of the map ABI: append, never renumber."""

    MALFORMED = 0  # too short for its own headers, or lengths that contradict each other
    NO_PORT = 1  # from an interface that is attached but has no row
    PORT_BLOCKED = 2  # the port's claim to its address lost
    SPOOFED_MAC = 3
    SPOOFED_IP = 4
    SPOOFED_NEIGHBOUR = 5  # ARP, or IPv6 neighbour discovery, in another's name
    NEIGHBOUR_IGNORED = 6  # not a request, or for the asker's own address
    NEIGHBOUR_OUTSIDE = 7  # asks for an address that is in no subnet of the VPC
    NOT_IP = 8
    NO_SUBNET = 9  # the destination is in no subnet of the VPC
    UNCLAIMED = 10  # in a subnet, claimed by nobody, and the subnet leads nowhere from here
    NOT_ATTACHED = 11  # claimed for this machine, but nothing is attached
    NO_GROUP = 12  # the site or gateway that has it is not known (yet)
    NO_GATEWAY = 13  # the group names a gateway that has no row
    UNRESOLVED = 14  # the gateway's MAC address is not known (yet)
    TTL_EXPIRED = 15
    TOO_BIG = 16  # does not fit the path; the sender was told where the rules allow
    UNKNOWN_PEER = 17  # tunnel packet from an address that is no gateway's
    TUNNEL_VERSION = 18
    TUNNEL_CONTROL = 19  # Geneve control packet (O bit)
    TUNNEL_CRITICAL = 20  # Geneve critical option: we know none
    TUNNEL_PROTOCOL = 21  # the payload is not Ethernet, or VXLAN has no VNI
    NOT_LOCAL = 22  # arrived by tunnel for an address that is not reached through here
    LOOP = 23  # would go back to the gateway that sent it
    NO_ROOM = 24  # the driver refused to move the packet's head or tail
    NOT_ENTITLED = 25  # the sending site may not send for this VNI
    FOREIGN_SOURCE = 26  # the inner source is not claimed at the sending site
    MULTICAST = 27  # from a pod to many: not carried
    TUNNEL_CHECKSUM = 28  # the outer UDP's is wrong, or missing over IPv6
    TUNNEL_ENCAPSULATION = 29  # Geneve from a gateway that is to send VXLAN

    @property
    def text(self) -> str:
        """How counters and people name it."""
        return self.name.lower().replace("_", "-")
