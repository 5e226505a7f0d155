/* xdp_pod: what comes out of a workload, at the machine's end of its veth.
 *
 * A port sends with one MAC address and one IP address, its own. It asks for any address of its
 * VPC's subnets (neighbour.h) and gets the gateway's MAC, so every packet passes through here. */
#ifndef WEFT_POD_H
#define WEFT_POD_H

/* Turn an echo into its reply. The swap of addresses leaves the checksums as they are; type 8 to 0
 * is 0x0800 on the ICMP one. 0, or -1: it is none. */
INLINE int turn_echo(struct xdp_md *ctx, struct ethhdr *eth)
{
    void *end = (void *)(long)ctx->data_end;
    struct iphdr *ip = (void *)(eth + 1);
    struct icmp_header *icmp = (void *)(ip + 1);
    if ((void *)(icmp + 1) > end || ip->ihl != 5 || ip->protocol != IPPROTO_ICMP ||
        ip->frag_off & bpf_htons(IP_OFFSET_MASK) || icmp->type != ICMP_ECHO_TYPE)
        return -1;
    icmp->type = ICMP_ECHO_REPLY_TYPE;
    u32 check = icmp->checksum;
    check += bpf_htons(ICMP_ECHO_TYPE << 8);
    icmp->checksum = (u16)(check + (check >= 0xffff));
    u32 address = ip->saddr;
    ip->saddr = ip->daddr;
    ip->daddr = address;
    return 0;
}

/* The same for IPv6: type 128 to 129 is one off 0x0100. */
INLINE int turn_echo6(struct xdp_md *ctx, struct ethhdr *eth)
{
    void *end = (void *)(long)ctx->data_end;
    struct ipv6_header *ip = (void *)(eth + 1);
    struct icmp_header *icmp = (void *)(ip + 1);
    if ((void *)(icmp + 1) > end || ip->next != PROTOCOL_ICMP6 || icmp->type != ICMP6_ECHO_TYPE)
        return -1;
    icmp->type = ICMP6_ECHO_REPLY_TYPE;
    u32 check = icmp->checksum;
    check += (u16)~bpf_htons(0x0100);
    icmp->checksum = (u16)((check & 0xffff) + (check >> 16));
    u32 address[4];
    set_address(address, ip->src);
    set_address(ip->src, ip->dst);
    set_address(ip->dst, address);
    return 0;
}

/* An echo to the subnet's gateway is answered in place. */
INLINE int answer_echo(struct xdp_md *ctx, struct seen *seen, struct port_value *port,
                       struct ethhdr *eth)
{
    if (seen->six ? turn_echo6(ctx, eth) : turn_echo(ctx, eth))
        return drop(DROP_UNCLAIMED);
    __builtin_memcpy(eth->h_dest, port->mac, 6);
    __builtin_memcpy(eth->h_source, port->gateway_mac, 6);
    count_port_tx(port, seen->bytes);
    count_port_rx(port, seen->bytes);
    return bpf_redirect(ctx->ingress_ifindex, 0);
}

INLINE int forward_from_port(struct xdp_md *ctx, struct seen *seen, struct port_value *port,
                             struct ethhdr *eth)
{
    u32 vni = port->vni, bytes = seen->bytes;
    struct endpoint_value *endpoint = endpoint_of(vni, seen->dst);
    u32 group;
    if (endpoint) {
        group = endpoint->group;
        if (!endpoint->ifindex && !group)
            return drop(DROP_NOT_ATTACHED);
    } else {
        struct subnet_value *subnet = subnet_of(vni, seen->dst);
        if (!subnet)
            return drop(DROP_NO_SUBNET);
        if (same_address(subnet->gateway_ip, seen->dst))
            return answer_echo(ctx, seen, port, eth);
        group = subnet->group;
        if (!group)
            return drop(DROP_UNCLAIMED);
    }
    if (seen->hops <= 1)
        return drop(DROP_TTL_EXPIRED);
    count_port_tx(port, bytes);
    if (endpoint && endpoint->ifindex)
        return deliver(ctx, seen, endpoint, eth);

    u32 hash = flow_hash(ctx, seen), reason = 0;
    struct gateway_value *gateway = next_hop(group, hash, &reason);
    if (!gateway)
        return drop(reason);
    if (too_big_for(gateway, sent_bytes(ctx, seen))) {
        set_address(seen->outer.outer, gateway->outer_dst);
        return refuse_too_big(seen, gateway);
    }
    __builtin_memcpy(eth->h_dest, endpoint ? endpoint->mac : port->gateway_mac, 6);
    __builtin_memcpy(eth->h_source, port->gateway_mac, 6);
    spend_hop(ctx, seen, eth);
    return tunnel(ctx, gateway, vni, hash, bytes);
}

INLINE int from_port(struct xdp_md *ctx, struct seen *seen)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    if ((void *)(eth + 1) > end)
        return drop(DROP_MALFORMED);
    struct port_value *port = port_of(ctx->ingress_ifindex);
    if (!port)
        return drop(DROP_NO_PORT);
    seen->vni = port->vni;
    if (port->flags & PORT_BLOCKED)
        return drop(DROP_PORT_BLOCKED);
    if (!same_mac(eth->h_source, port->mac))
        return drop(DROP_SPOOFED_MAC);
    if (eth->h_proto == bpf_htons(ETH_P_ARP))
        return answer_arp(ctx, port, eth);
    int refused = read_packet(ctx, seen, eth);
    if (refused)
        return refused;
    if (seen->six && is_solicitation(ctx))
        return answer_solicitation(ctx, seen, port);
    if (is_multicast(seen))
        return drop(DROP_MULTICAST);
    if (!same_address(seen->src, port->ip))
        return drop(DROP_SPOOFED_IP);
    return forward_from_port(ctx, seen, port, eth);
}

#endif
