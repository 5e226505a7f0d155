/* xdp_pod: what comes out of a workload, at the machine's end of its veth.
 *
 * A port sends with one MAC address and one IP address, its own. It asks for any address of its
 * VPC's subnets by ARP and gets the gateway's MAC, so every packet passes through here. */
#ifndef WEFT_POD_H
#define WEFT_POD_H

INLINE int same_mac(u8 *a, u8 *b)
{
    u8 difference = 0;
#pragma unroll
    for (int i = 0; i < 6; i++)
        difference |= a[i] ^ b[i];
    return !difference;
}

INLINE int answer_arp(struct xdp_md *ctx, struct port_value *port, struct ethhdr *eth)
{
    void *end = (void *)(long)ctx->data_end;
    struct arp_ipv4 *arp = (void *)(eth + 1);
    if ((void *)(arp + 1) > end)
        return drop(DROP_MALFORMED);
    if (arp->hardware_type != bpf_htons(ARP_ETHERNET) ||
        arp->protocol_type != bpf_htons(ETH_P_IP) || arp->hardware_bytes != 6 ||
        arp->protocol_bytes != 4)
        return drop(DROP_MALFORMED);
    /* A probe for a duplicate (RFC 5227) has no sender address yet. */
    if (!same_mac(arp->sender_mac, port->mac) || (arp->sender_ip && arp->sender_ip != port->ip))
        return drop(DROP_SPOOFED_ARP);
    u32 target = arp->target_ip;
    if (arp->operation != bpf_htons(ARP_REQUEST_OP) || target == port->ip)
        return drop(DROP_ARP_IGNORED);
    if (!subnet_of(port->vni, target))
        return drop(DROP_ARP_OUTSIDE);
    __builtin_memcpy(eth->h_dest, port->mac, 6);
    __builtin_memcpy(eth->h_source, port->gateway_mac, 6);
    arp->operation = bpf_htons(ARP_REPLY_OP);
    __builtin_memcpy(arp->target_mac, port->mac, 6);
    arp->target_ip = arp->sender_ip;
    __builtin_memcpy(arp->sender_mac, port->gateway_mac, 6);
    arp->sender_ip = target;
    /* Not XDP_TX: on a veth that needs a queue of its own, and it is lost where there is none. */
    return bpf_redirect(ctx->ingress_ifindex, 0);
}

/* An echo to the subnet's gateway is answered in place. The swap of addresses leaves the IP
 * checksum as it is; type 8 to 0 is 0x0800 on the ICMP one. */
INLINE int answer_echo(struct xdp_md *ctx, struct port_value *port, struct ethhdr *eth,
                       struct iphdr *ip)
{
    void *end = (void *)(long)ctx->data_end;
    struct icmp_header *icmp = (void *)(ip + 1);
    if (ip->ihl != 5 || ip->protocol != IPPROTO_ICMP ||
        ip->frag_off & bpf_htons(IP_OFFSET_MASK) || (void *)(icmp + 1) > end ||
        icmp->type != ICMP_ECHO_TYPE)
        return drop(DROP_UNCLAIMED);
    icmp->type = ICMP_ECHO_REPLY_TYPE;
    u32 check = icmp->checksum;
    check += bpf_htons(ICMP_ECHO_TYPE << 8);
    icmp->checksum = (u16)(check + (check >= 0xffff));
    u32 address = ip->saddr;
    ip->saddr = ip->daddr;
    ip->daddr = address;
    __builtin_memcpy(eth->h_dest, port->mac, 6);
    __builtin_memcpy(eth->h_source, port->gateway_mac, 6);
    u32 bytes = frame_bytes(ip);
    count_port_tx(ctx->ingress_ifindex, bytes);
    count_port_rx(ctx->ingress_ifindex, bytes);
    return bpf_redirect(ctx->ingress_ifindex, 0);
}

INLINE int forward_from_port(struct xdp_md *ctx, struct seen *seen, struct port_value *port,
                             struct ethhdr *eth, struct iphdr *ip)
{
    void *end = (void *)(long)ctx->data_end;
    u32 vni = port->vni;
    struct endpoint_key key = {.vni = vni, .ip = ip->daddr};
    struct endpoint_value *endpoint = LOOKUP(endpoints, &key);
    u32 bytes = frame_bytes(ip);
    u32 group;
    if (endpoint) {
        group = endpoint->group;
        if (!endpoint->ifindex && !group)
            return drop(DROP_NOT_ATTACHED);
    } else {
        struct subnet_value *subnet = subnet_of(vni, ip->daddr);
        if (!subnet)
            return drop(DROP_NO_SUBNET);
        if (subnet->gateway_ip == ip->daddr)
            return answer_echo(ctx, port, eth, ip);
        group = subnet->group;
        if (!group)
            return drop(DROP_UNCLAIMED);
    }
    if (ip->ttl <= 1)
        return drop(DROP_TTL_EXPIRED);
    count_port_tx(ctx->ingress_ifindex, bytes);
    if (endpoint && endpoint->ifindex)
        return deliver(seen, endpoint, eth, ip);

    u32 hash = flow_hash(ip, end), gateway_id = 0, reason = 0;
    struct gateway_value *gateway = next_hop(group, hash, &gateway_id, &reason);
    if (!gateway)
        return drop(reason);
    if (too_big_for(gateway, bytes)) {
        seen->outer = gateway->outer_dst;
        return refuse_too_big(seen, gateway);
    }
    __builtin_memcpy(eth->h_dest, endpoint ? endpoint->mac : port->gateway_mac, 6);
    __builtin_memcpy(eth->h_source, port->gateway_mac, 6);
    ttl_decrement(ip);
    return tunnel(ctx, gateway, gateway_id, vni, hash, bytes);
}

INLINE int from_port(struct xdp_md *ctx, struct seen *seen)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    u32 ifindex = ctx->ingress_ifindex;
    if ((void *)(eth + 1) > end)
        return drop(DROP_MALFORMED);
    struct port_value *port = LOOKUP(ports, &ifindex);
    if (!port)
        return drop(DROP_NO_PORT);
    seen->vni = port->vni;
    if (port->flags & PORT_BLOCKED)
        return drop(DROP_PORT_BLOCKED);
    if (!same_mac(eth->h_source, port->mac))
        return drop(DROP_SPOOFED_MAC);
    if (eth->h_proto == bpf_htons(ETH_P_ARP))
        return answer_arp(ctx, port, eth);
    if (eth->h_proto != bpf_htons(ETH_P_IP))
        return drop(DROP_NOT_IPV4);
    struct iphdr *ip = (void *)(eth + 1);
    if ((void *)(ip + 1) > end || !ip_well_formed(ctx, ip))
        return drop(DROP_MALFORMED);
    if (ip->saddr != port->ip)
        return drop(DROP_SPOOFED_IP);
    return forward_from_port(ctx, seen, port, eth, ip);
}

#endif
