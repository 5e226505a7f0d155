/* Who has an address: ARP and IPv6 neighbour discovery, answered here for all addresses of the VPC's
 * subnets, without asking anybody. The answer is always the gateway's MAC, so nothing is to be told
 * when an endpoint moves. */
#ifndef WEFT_NEIGHBOUR_H
#define WEFT_NEIGHBOUR_H

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
    u32 sender[4], target_ip[4], target = arp->target_ip;
    set_ipv4(sender, arp->sender_ip);
    set_ipv4(target_ip, target);
    if (!same_mac(arp->sender_mac, port->mac) ||
        (arp->sender_ip && !same_address(sender, port->ip)))
        return drop(DROP_SPOOFED_NEIGHBOUR);
    if (arp->operation != bpf_htons(ARP_REQUEST_OP) || same_address(target_ip, port->ip))
        return drop(DROP_NEIGHBOUR_IGNORED);
    if (!subnet_of(port->vni, target_ip))
        return drop(DROP_NEIGHBOUR_OUTSIDE);
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

/* An IPv6 neighbour solicitation, of a packet that was read. */
INLINE int is_solicitation(struct xdp_md *ctx)
{
    void *end = (void *)(long)ctx->data_end;
    struct icmp6_frame *frame = (void *)(long)ctx->data;
    return (void *)(frame + 1) <= end && frame->ip.next == PROTOCOL_ICMP6 &&
           frame->icmp.type == ICMP6_SOLICITATION_TYPE;
}

INLINE int is_link_local(u32 *ip)
{
    return (ip[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* Make a frame of its length the advertisement that the target is here. The addresses and the
 * target are in it. */
INLINE void advertise(struct neighbour_frame *frame, struct port_value *port, u32 *target, u32 *to)
{
    int solicited = to[0] | to[1] | to[2] | to[3];
    __builtin_memcpy(frame->eth.h_dest, port->mac, 6);
    __builtin_memcpy(frame->eth.h_source, port->gateway_mac, 6);
    frame->ip.payload_bytes = bpf_htons(sizeof(struct neighbour_message));
    frame->ip.hops = NEIGHBOUR_HOPS;
    set_address(frame->ip.src, target);
    set_address(frame->ip.dst, to);
    if (!solicited) { /* a probe for a duplicate: RFC 4861, section 7.2.4: to all nodes */
        frame->ip.dst[0] = bpf_htonl(0xff020000);
        frame->ip.dst[3] = bpf_htonl(1);
    }
    frame->message.type = ICMP6_ADVERTISEMENT_TYPE;
    frame->message.code = 0;
    frame->message.checksum = 0;
    frame->message.flags = bpf_htonl(NEIGHBOUR_OVERRIDE | (solicited ? NEIGHBOUR_SOLICITED : 0));
    set_address(frame->message.target, target);
    frame->message.option = NEIGHBOUR_TARGET_LINK;
    frame->message.option_units = 1;
    __builtin_memcpy(frame->message.mac, port->gateway_mac, 6);
    frame->message.checksum =
        icmp6_checksum(&frame->ip, &frame->message, sizeof(struct neighbour_message));
}

INLINE int answer_solicitation(struct xdp_md *ctx, struct seen *seen, struct port_value *port)
{
    void *end = (void *)(long)ctx->data_end;
    struct icmp6_frame *frame = (void *)(long)ctx->data;
    u32 *asked = (void *)(frame + 1), target[4];
    u32 shortest = sizeof(struct ethhdr) + sizeof(struct ipv6_header) + NEIGHBOUR_SHORTEST_BYTES;
    if ((void *)(asked + 4) > end || seen->bytes < shortest || seen->hops != NEIGHBOUR_HOPS ||
        frame->icmp.code)
        return drop(DROP_MALFORMED);
    set_address(target, asked);
    /* A probe for a duplicate has no source yet; those for what is known come from the link. */
    int probe = !(seen->src[0] | seen->src[1] | seen->src[2] | seen->src[3]);
    if (!probe && !is_link_local(seen->src) && !same_address(seen->src, port->ip))
        return drop(DROP_SPOOFED_NEIGHBOUR);
    if (same_address(target, port->ip))
        return drop(DROP_NEIGHBOUR_IGNORED);
    if (is_ipv4(target) || !subnet_of(port->vni, target))
        return drop(DROP_NEIGHBOUR_OUTSIDE);
    int change = (int)sizeof(struct neighbour_frame) - (int)bpf_xdp_get_buff_len(ctx);
    if (bpf_xdp_adjust_tail(ctx, change))
        return drop(DROP_NO_ROOM);
    end = (void *)(long)ctx->data_end;
    struct neighbour_frame *reply = (void *)(long)ctx->data;
    if ((void *)(reply + 1) > end)
        return drop(DROP_NO_ROOM);
    advertise(reply, port, target, seen->src);
    return bpf_redirect(ctx->ingress_ifindex, 0);
}

#endif
