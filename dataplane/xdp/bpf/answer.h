/* What the sender of a dropped packet is told: no IP stack is on the way that would.
 *
 * Too big with DF set, or in IPv6: the size that fits (RFC 1191, RFC 8201). TTL at its end: that
 * (RFC 792, RFC 4443). The answer is made of the packet, never longer than that was, and goes back
 * where it came from: to the port, or through the tunnel to the gateway. Nothing is said about
 * errors and later fragments (RFC 1122, section 3.2.2), and to nobody in particular. */
#ifndef WEFT_ANSWER_H
#define WEFT_ANSWER_H

#define ANSWER_BYTES (sizeof(struct icmp_frame) + QUOTED_BYTES)
#define ANSWER6_BYTES (sizeof(struct icmp6_frame) + QUOTED6_BYTES)

/* Whether the frame is a packet whose sender may be told why it was dropped. */
INLINE int answerable4(struct xdp_md *ctx, struct seen *seen, u32 reason)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    struct iphdr *ip = (void *)(eth + 1);
    struct icmp_header *icmp = (void *)(ip + 1);
    if ((void *)(icmp + 1) > end || ip->ihl != 5 || bpf_ntohs(ip->tot_len) < QUOTED_BYTES ||
        ip->frag_off & bpf_htons(IP_OFFSET_MASK))
        return 0;
    if (ip->protocol == IPPROTO_ICMP && icmp->type != ICMP_ECHO_TYPE &&
        icmp->type != ICMP_ECHO_REPLY_TYPE)
        return 0;
    return reason == DROP_TTL_EXPIRED || (ip->frag_off & bpf_htons(IP_DF) && seen->mtu);
}

INLINE int answerable6(struct xdp_md *ctx, struct seen *seen, u32 reason)
{
    void *end = (void *)(long)ctx->data_end;
    struct icmp6_frame *frame = (void *)(long)ctx->data;
    if ((void *)(frame + 1) > end || seen->bytes < sizeof(struct ethhdr) + QUOTED6_BYTES)
        return 0;
    if (frame->ip.next == PROTOCOL_ICMP6 && frame->icmp.type < ICMP6_INFORMATIONAL)
        return 0;
    return reason == DROP_TTL_EXPIRED || seen->mtu;
}

/* Turn the packet into an ICMP error to its sender. 0, or -1: there is no room for it. */
INLINE int make_error4(struct xdp_md *ctx, struct seen *seen, u32 reason, u32 source, u8 *own_mac)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    struct iphdr *ip = (void *)(eth + 1);
    if ((void *)(ip + 1) > end)
        return -1;
    u32 sender = ip->saddr;
    u8 sender_mac[6], source_mac[6];
    __builtin_memcpy(sender_mac, eth->h_source, 6);
    __builtin_memcpy(source_mac, own_mac, 6);

    int kept = sizeof(struct ethhdr) + QUOTED_BYTES;
    int grown = sizeof(struct iphdr) + sizeof(struct icmp_header);
    if (bpf_xdp_adjust_tail(ctx, kept - (int)bpf_xdp_get_buff_len(ctx)) ||
        bpf_xdp_adjust_head(ctx, -grown))
        return -1;
    end = (void *)(long)ctx->data_end;
    struct icmp_frame *frame = (void *)(long)ctx->data;
    if ((void *)frame + ANSWER_BYTES > end)
        return -1;
    __builtin_memcpy(frame->eth.h_dest, sender_mac, 6);
    __builtin_memcpy(frame->eth.h_source, source_mac, 6);
    frame->eth.h_proto = bpf_htons(ETH_P_IP);
    frame->ip.version = 4;
    frame->ip.ihl = 5;
    frame->ip.tos = 0xc0; /* RFC 1812, section 4.3.2.5: internetwork control */
    frame->ip.tot_len = bpf_htons(ANSWER_BYTES - sizeof(struct ethhdr));
    frame->ip.id = 0;
    frame->ip.frag_off = bpf_htons(IP_DF);
    frame->ip.ttl = OUTER_TTL;
    frame->ip.protocol = IPPROTO_ICMP;
    frame->ip.check = 0;
    frame->ip.saddr = source;
    frame->ip.daddr = sender;
    frame->ip.check = ip_checksum(&frame->ip);
    int expired = reason == DROP_TTL_EXPIRED;
    frame->icmp.type = expired ? ICMP_EXPIRED_TYPE : ICMP_UNREACHABLE_TYPE;
    frame->icmp.code = expired ? 0 : ICMP_FRAGMENTATION_NEEDED_CODE;
    frame->icmp.checksum = 0;
    frame->icmp.unused = 0;
    frame->icmp.mtu = expired ? 0 : bpf_htons(seen->mtu);
    frame->icmp.checksum = checksum_fold((u32)bpf_csum_diff(
        0, 0, (void *)&frame->icmp, sizeof(struct icmp_header) + QUOTED_BYTES, 0));
    return 0;
}

INLINE int make_error6(struct xdp_md *ctx, struct seen *seen, u32 reason, u32 *source, u8 *own_mac)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    if ((void *)(eth + 1) > end)
        return -1;
    u8 sender_mac[6], source_mac[6];
    __builtin_memcpy(sender_mac, eth->h_source, 6);
    __builtin_memcpy(source_mac, own_mac, 6);

    int kept = sizeof(struct ethhdr) + QUOTED6_BYTES;
    int grown = sizeof(struct ipv6_header) + sizeof(struct icmp_header);
    if (bpf_xdp_adjust_tail(ctx, kept - (int)bpf_xdp_get_buff_len(ctx)) ||
        bpf_xdp_adjust_head(ctx, -grown))
        return -1;
    end = (void *)(long)ctx->data_end;
    struct icmp6_frame *frame = (void *)(long)ctx->data;
    if ((void *)frame + ANSWER6_BYTES > end)
        return -1;
    u32 message_bytes = sizeof(struct icmp_header) + QUOTED6_BYTES;
    __builtin_memcpy(frame->eth.h_dest, sender_mac, 6);
    __builtin_memcpy(frame->eth.h_source, source_mac, 6);
    frame->eth.h_proto = bpf_htons(ETH_P_IPV6);
    __builtin_memset(&frame->ip, 0, 4);
    frame->ip.version_class = 0x60;
    frame->ip.payload_bytes = bpf_htons(message_bytes);
    frame->ip.next = PROTOCOL_ICMP6;
    frame->ip.hops = OUTER_TTL;
    set_address(frame->ip.src, source);
    set_address(frame->ip.dst, seen->src);
    int expired = reason == DROP_TTL_EXPIRED;
    frame->icmp.type = expired ? ICMP6_EXPIRED_TYPE : ICMP6_TOO_BIG_TYPE;
    frame->icmp.code = 0;
    frame->icmp.checksum = 0;
    frame->icmp.unused = 0; /* the upper half of the MTU */
    frame->icmp.mtu = expired ? 0 : bpf_htons(seen->mtu);
    frame->icmp.checksum = icmp6_checksum(&frame->ip, &frame->icmp, message_bytes);
    return 0;
}

/* The same from the gateway of the subnet that `near` is in, as the router of these packets; where
 * there is none, from where the packet went. */
INLINE int make_error(struct xdp_md *ctx, struct seen *seen, u32 reason, u32 *near, u8 *own_mac)
{
    u32 source[4];
    struct subnet_value *subnet = subnet_of(seen->vni, near);
    set_address(source, subnet ? subnet->gateway_ip : seen->dst);
    return seen->six ? make_error6(ctx, seen, reason, source, own_mac)
                     : make_error4(ctx, seen, reason, source[3], own_mac);
}

INLINE int answer_port(struct xdp_md *ctx, struct seen *seen, u32 reason)
{
    u32 ifindex = ctx->ingress_ifindex;
    struct port_value *port = port_of(ifindex);
    if (!port || make_error(ctx, seen, reason, seen->src, port->gateway_mac))
        return XDP_DROP;
    return bpf_redirect(ifindex, 0);
}

INLINE int answer_gateway(struct xdp_md *ctx, struct seen *seen, u32 reason, struct ethhdr *eth)
{
    struct gateway_value *gateway = gateway_of(seen->gateway);
    if (!gateway || !(gateway->flags & GATEWAY_RESOLVED))
        return XDP_DROP;
    u32 ifindex = gateway->ifindex, hash = flow_hash(ctx, seen);
    u32 bytes = seen->six ? ANSWER6_BYTES : ANSWER_BYTES;
    if (make_error(ctx, seen, reason, seen->dst, eth->h_dest) ||
        encapsulate(ctx, gateway, seen->vni, hash, bytes))
        return XDP_DROP;
    count_gateway_tx(gateway, bytes);
    return bpf_redirect(ifindex, 0);
}

INLINE int answer(struct xdp_md *ctx, struct seen *seen, u32 reason)
{
    if (reason != DROP_TOO_BIG && reason != DROP_TTL_EXPIRED)
        return XDP_DROP;
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    if ((void *)(eth + 1) > end ||
        !(seen->six ? answerable6(ctx, seen, reason) : answerable4(ctx, seen, reason)))
        return XDP_DROP;
    return seen->gateway ? answer_gateway(ctx, seen, reason, eth) : answer_port(ctx, seen, reason);
}

#endif
