/* Decisions both programs share: counting, and the way to a port or to a gateway. */
#ifndef WEFT_FORWARD_H
#define WEFT_FORWARD_H

/* A drop on its way to the program's end, where it is accounted for once (drop.h). */
INLINE int drop(u32 reason)
{
    return DROPPED | reason;
}

INLINE void count_port_tx(struct port_value *port, u32 bytes)
{
    u32 slot = port->slot;
    struct traffic *t = LOOKUP(port_traffic, &slot);
    if (t) {
        t->tx_packets++;
        t->tx_bytes += bytes;
    }
}

INLINE void count_port_drop(struct port_value *port)
{
    u32 slot = port->slot;
    struct traffic *t = LOOKUP(port_traffic, &slot);
    if (t)
        t->drops++;
}

INLINE void count_port_rx(struct port_value *port, u32 bytes)
{
    u32 slot = port->slot;
    struct traffic *t = LOOKUP(port_traffic, &slot);
    if (t) {
        t->rx_packets++;
        t->rx_bytes += bytes;
    }
}

INLINE void count_gateway_tx(struct gateway_value *gateway, u32 bytes)
{
    u32 slot = gateway->slot;
    struct traffic *t = LOOKUP(gateway_traffic, &slot);
    if (t) {
        t->tx_packets++;
        t->tx_bytes += bytes;
    }
}

INLINE void count_gateway_drop(struct gateway_value *gateway)
{
    u32 slot = gateway->slot;
    struct traffic *t = LOOKUP(gateway_traffic, &slot);
    if (t)
        t->drops++;
}

INLINE void count_gateway_rx(struct gateway_value *gateway, u32 bytes)
{
    u32 slot = gateway->slot;
    struct traffic *t = LOOKUP(gateway_traffic, &slot);
    if (t) {
        t->rx_packets++;
        t->rx_bytes += bytes;
    }
}

/* Hand the frame to a workload of this machine. */
INLINE int deliver(struct xdp_md *ctx, struct seen *seen, struct endpoint_value *endpoint,
                   struct ethhdr *eth)
{
    u32 ifindex = endpoint->ifindex;
    struct port_value *port = port_of(ifindex);
    if (!port)
        return drop(DROP_NO_PORT);
    if (sent_bytes(ctx, seen) > port->mtu + sizeof(*eth)) {
        seen->mtu = port->mtu;
        return drop(DROP_TOO_BIG);
    }
    __builtin_memcpy(eth->h_dest, endpoint->mac, 6);
    __builtin_memcpy(eth->h_source, port->gateway_mac, 6);
    spend_hop(ctx, seen, eth);
    count_port_rx(port, seen->bytes);
    return bpf_redirect(ifindex, 0);
}

/* Pick the flow's gateway of a group. NULL: `*reason` says why there is none. */
INLINE struct gateway_value *next_hop(u32 group, u32 hash, u32 *reason)
{
    struct group_value *members = group_of(group);
    *reason = DROP_NO_GROUP;
    if (!members || !members->count)
        return NULL;
    u32 slot = (hash >> 16) % members->count;
    if (slot >= GROUP_GATEWAYS_MAX)
        return NULL;
    u32 chosen = members->gateways[slot];
    struct gateway_value *gateway = gateway_of(chosen);
    *reason = DROP_NO_GATEWAY;
    if (!gateway)
        return NULL;
    *reason = DROP_UNRESOLVED;
    return gateway->flags & GATEWAY_RESOLVED ? gateway : NULL;
}

/* A frame of `bytes` that the way to a gateway does not carry. */
INLINE int too_big_for(struct gateway_value *gateway, u32 bytes)
{
    return bytes + outer_bytes(gateway) > gateway->mtu;
}

INLINE int refuse_too_big(struct seen *seen, struct gateway_value *gateway)
{
    u32 around = outer_bytes(gateway) + sizeof(struct ethhdr);
    seen->mtu = gateway->mtu > around ? gateway->mtu - around : 0;
    return drop(DROP_TOO_BIG);
}

/* Send the frame, whose inner headers are final, through the tunnel to a gateway. */
INLINE int tunnel(struct xdp_md *ctx, struct gateway_value *gateway, u32 vni, u32 hash, u32 bytes)
{
    u32 ifindex = gateway->ifindex;
    if (encapsulate(ctx, gateway, vni, hash, bytes))
        return drop(DROP_NO_ROOM);
    count_gateway_tx(gateway, bytes);
    return bpf_redirect(ifindex, 0);
}

#endif
