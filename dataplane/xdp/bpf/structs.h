/* Map keys and values, and headers as they lie in a packet.
 *
 * Map structs are naturally aligned and have no implicit padding. Addresses have 16 bytes, inner
 * and outer, IPv4 as ::ffff:a.b.c.d (RFC 4291, section 2.5.5.2). Addresses are in network order,
 * as in the packet, so they compare without conversion; everything else is in host order, unless
 * a field says otherwise. dataplane/xdp/layout.py packs the same bytes. */
#ifndef WEFT_STRUCTS_H
#define WEFT_STRUCTS_H

struct endpoint_key {
    u32 vni; /* host order; above 24 bits: a VPC that is not carried between sites */
    u32 ip[4];
}; /* 20 bytes */

struct endpoint_value {
    u32 group;   /* next-hop group, 0: none */
    u32 ifindex; /* local interface, 0: not attached here */
    u8 mac[6];
    u16 pad;
    u32 generation; /* of the full sync that wrote it; not read here */
}; /* 20 bytes */

struct subnet_key {
    u32 prefix_bits; /* 32 for the VNI, and the prefix's own: 96 more for IPv4 */
    u32 vni;         /* network order: the tree compares bits from the first byte on */
    u32 network[4];
}; /* 24 bytes */

struct subnet_value {
    u32 group;      /* where unclaimed addresses go, 0: nowhere */
    u32 gateway_ip[4]; /* the pods' default route */
    u32 generation;
}; /* 24 bytes */

struct group_value {
    u32 id;
    u32 slot; /* not read here */
    u32 count; /* gateways in use, at least 1 */
    u32 site_group; /* the number of the site's group */
    u32 generation;
    u32 gateways[GROUP_GATEWAYS_MAX]; /* gateway ids */
}; /* 84 bytes */

struct entitled_key {
    u32 vni;
    u32 site_group; /* ANY_SITE: every site may send for the VNI */
}; /* 8 bytes */

struct entitled_value {
    u32 generation;
}; /* 4 bytes */

struct moved_value { /* keyed as endpoints; the oldest give way */
    u64 at_ns; /* CLOCK_MONOTONIC */
    u32 group; /* where it was before */
    u32 pad;
}; /* 16 bytes */

struct gateway_value {
    u32 id;
    u32 slot; /* of its counters */
    u32 outer_src[4];
    u32 outer_dst[4];
    u8 src_mac[6];
    u8 dst_mac[6];
    u32 ifindex;
    u16 mtu;   /* of the outer IP packet */
    u16 flags; /* GATEWAY_RESOLVED: the MACs and ifindex are known; GATEWAY_SIX: outer IPv6,
                  GATEWAY_VXLAN: and no Geneve */
    u32 generation;
}; /* 64 bytes */

struct port_value {
    u32 id;   /* of its interface */
    u32 slot; /* of its counters */
    u32 vni;
    u32 ip[4]; /* the only source address */
    u8 mac[6];
    u8 gateway_mac[6];
    u16 mtu;   /* of the inner IP packet */
    u16 flags; /* PORT_BLOCKED */
    u32 generation;
}; /* 48 bytes */

struct peer_key {
    u32 outer[4]; /* source address */
}; /* 16 bytes */

struct peer_value {
    u32 gateway;
    u32 group;      /* that leads to this gateway alone */
    u32 site_group; /* the number of its site's group */
    u32 flags;      /* PEER_OWN_SITE: it is of our own site, PEER_VXLAN: it sends that */
    u32 generation;
}; /* 20 bytes */

struct config_value {
    u32 underlay[4]; /* tunnels end here */
    u32 generation;
}; /* 20 bytes */

struct scratch { /* a piece of a packet that is summed */
    u8 bytes[SUMMED_AT_ONCE];
}; /* 512 bytes, one for each processor */

struct traffic {
    u64 tx_packets; /* from the port, or to the gateway */
    u64 tx_bytes;   /* inner frames, without padding */
    u64 rx_packets;
    u64 rx_bytes;
    u64 drops; /* of what came from the port, or from the gateway */
}; /* 40 bytes */

struct drop_count {
    u64 packets;
    u64 told;         /* of them up to and with the last event */
    u64 window_at_ns; /* CLOCK_MONOTONIC: begin of the window in which events are counted */
    u32 window_events;
    u32 flow; /* a hash of the last event's addresses */
}; /* 32 bytes, keyed by reason */

struct drop_event { /* one dropped packet, for many */
    u64 at_ns;     /* CLOCK_MONOTONIC */
    u64 packets;   /* dropped for this reason on this processor since its last event, with this */
    u32 reason;
    u32 vni;       /* host order, 0: not known */
    u32 outer[4];  /* the peer's underlay address, 0: none */
    u32 ifindex;   /* that it came in by */
    u16 ethertype; /* of the inner frame, network order; 0: it was not looked into */
    u16 pad;
    u8 src[16]; /* inner addresses as in the packet, by ethertype; ARP: sender and target */
    u8 dst[16];
}; /* 80 bytes */

/* What a program has found out of a packet. */
struct seen {
    u32 src[4]; /* inner, as in keys; these four only of a packet that is well-formed */
    u32 dst[4];
    u32 bytes; /* of the inner frame, without padding */
    u8 six;    /* IPv6 */
    u8 hops;   /* TTL, or hop limit */
    u16 pad;
    u32 vni;
    u32 gateway; /* id of the gateway that it came from, 0: none */
    struct peer_key outer; /* the peer that it came from or would go to, 0: none */
    u32 inside;  /* whether the frame is the inner one */
    u32 mtu;     /* of a packet that is too big: of the inner IP packets that fit */
};

struct ipv6_header { /* RFC 8200, section 3 */
    u8 version_class;
    u8 class_flow[3];
    u16 payload_bytes;
    u8 next;
    u8 hops;
    u32 src[4];
    u32 dst[4];
}; /* 40 bytes */

struct arp_ipv4 { /* RFC 826, for Ethernet and IPv4 */
    u16 hardware_type;
    u16 protocol_type;
    u8 hardware_bytes;
    u8 protocol_bytes;
    u16 operation;
    u8 sender_mac[6];
    u32 sender_ip;
    u8 target_mac[6];
    u32 target_ip;
} __attribute__((packed)); /* 28 bytes */

struct icmp_header {
    u8 type;
    u8 code;
    u16 checksum;
    u16 unused; /* identifier of an echo */
    u16 mtu;    /* RFC 1191: next-hop MTU; sequence of an echo */
} __attribute__((packed)); /* 8 bytes */

struct neighbour_message { /* RFC 4861, sections 4.3 and 4.4, with one link address */
    u8 type;
    u8 code;
    u16 checksum;
    u32 flags;
    u32 target[4];
    u8 option; /* kind of the link address */
    u8 option_units;
    u8 mac[6];
} __attribute__((packed)); /* 32 bytes */

struct geneve_header { /* RFC 8926, section 3.4; VXLAN has the same places for flags and VNI */
    u8 version_options;
    u8 flags;
    u16 protocol;
    u32 vni_reserved; /* network order: VNI in the upper 24 bits */
}; /* 8 bytes */

struct tunnel_headers {
    struct udphdr udp;
    struct geneve_header geneve;
}; /* 16 bytes */

struct icmp_frame {
    struct ethhdr eth;
    struct iphdr ip;
    struct icmp_header icmp;
} __attribute__((packed)); /* 42 bytes */

struct icmp6_frame {
    struct ethhdr eth;
    struct ipv6_header ip;
    struct icmp_header icmp;
} __attribute__((packed)); /* 62 bytes */

struct neighbour_frame {
    struct ethhdr eth;
    struct ipv6_header ip;
    struct neighbour_message message;
} __attribute__((packed)); /* 86 bytes */

#endif
