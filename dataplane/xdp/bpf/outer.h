/* What is around a frame in the underlay: outer IPv4 or IPv6, UDP, Geneve or VXLAN; made and read.
 *
 * Over IPv6 UDP has a checksum, as nothing else protects the addresses (RFC 8200, section 8.1). Zero
 * would be allowed to tunnels (RFC 6935), and is dropped on some ways. Over IPv4 there is none (RFC
 * 8926, section 3.3). What a peer has put into Geneve is looked at, over either; in VXLAN it may be
 * (RFC 7348, section 4.1), and a virtual underlay's may still have to be made.
 *
 * VXLAN is for peers that say so, and only what they send on its port is taken: the machine may have
 * VXLAN of its own. */
#ifndef WEFT_OUTER_H
#define WEFT_OUTER_H

/* The Internet checksum's sum of so many bytes of the frame. 0, or -1: they are not in it. They may
 * lie in several buffers, so they are read piece by piece. */
INLINE int sum_frame(struct xdp_md *ctx, u32 at, u32 bytes, u64 *sum)
{
    u32 first = 0;
    struct scratch *piece = LOOKUP(scratch, &first);
    if (!piece || bytes > SUMMED_BYTES_MAX)
        return -1;
    u32 total = 0;
    /* No loop: of one the verifier does not see the end where it guards against speculation. */
#pragma unroll
    for (int i = 0; i < SUMMED_BYTES_MAX / SUMMED_AT_ONCE; i++) {
        barrier_var(bytes); /* else the end is computed, and there is a loop again */
        if (bytes < SUMMED_AT_ONCE)
            break;
        if (bpf_xdp_load_bytes(ctx, at, piece->bytes, SUMMED_AT_ONCE))
            return -1;
        total = bpf_csum_diff(0, 0, (void *)piece->bytes, SUMMED_AT_ONCE, total);
        at += SUMMED_AT_ONCE;
        bytes -= SUMMED_AT_ONCE;
    }
    u32 rest = bytes & (SUMMED_AT_ONCE - 1);
    if (rest) {
        u32 last = rest & (SUMMED_AT_ONCE - 4);
        *(u32 *)(piece->bytes + last) = 0; /* what the last word lacks, which may be all of it */
        if (bpf_xdp_load_bytes(ctx, at, piece->bytes, rest))
            return -1;
        total = bpf_csum_diff(0, 0, (void *)piece->bytes, last + 4, total);
    }
    *sum += total;
    return 0;
}

/* The sum of a UDP packet with its pseudo header: folded, it is the checksum of one whose own is 0,
 * and 0 where the one in it is right. What is before IPv4 addresses sums up to nothing. */
INLINE int sum_udp(struct xdp_md *ctx, u32 *from, u32 *to, u32 at, u32 bytes, u64 *sum)
{
    u32 ends = bpf_csum_diff(0, 0, (void *)from, 16, 0);
    *sum = (u32)bpf_csum_diff(0, 0, (void *)to, 16, ends);
    *sum += bpf_htonl(bytes);
    *sum += bpf_htonl(IPPROTO_UDP);
    return sum_frame(ctx, at, bytes, sum);
}

INLINE u16 udp_checksum(u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    return checksum_fold((sum & 0xffff) + (sum >> 16));
}

#define AROUND4_BYTES (sizeof(struct ethhdr) + OUTER4_BYTES)
#define AROUND6_BYTES (sizeof(struct ethhdr) + OUTER6_BYTES)

/* ---- made --------------------------------------------------------------------------------- */

INLINE u32 outer_bytes(struct gateway_value *gateway)
{
    return gateway->flags & GATEWAY_SIX ? OUTER6_BYTES : OUTER4_BYTES;
}

INLINE void make_tunnel(struct tunnel_headers *tunnel, struct gateway_value *gateway, u32 vni,
                        u32 hash, u32 inner)
{
    int vxlan = gateway->flags & GATEWAY_VXLAN;
    tunnel->udp.source = bpf_htons(FLOW_PORT_BASE | (hash & 0x3fff));
    tunnel->udp.dest = vxlan ? bpf_htons(VXLAN_PORT) : bpf_htons(GENEVE_PORT);
    tunnel->udp.len = bpf_htons(inner + sizeof(*tunnel));
    tunnel->udp.check = 0;
    tunnel->geneve.version_options = vxlan ? VXLAN_VALID_VNI : 0;
    tunnel->geneve.flags = 0;
    tunnel->geneve.protocol = vxlan ? 0 : bpf_htons(GENEVE_ETHERNET);
    tunnel->geneve.vni_reserved = bpf_htonl(vni << 8);
}

/* Room for so many bytes before the frame, with link addresses at their beginning. 0, or -1. */
INLINE int make_room(struct xdp_md *ctx, struct gateway_value *gateway, u32 bytes,
                     struct ethhdr **made)
{
    if (bpf_xdp_adjust_head(ctx, -(int)bytes))
        return -1;
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    if ((void *)eth + bytes > end)
        return -1;
    __builtin_memcpy(eth->h_dest, gateway->dst_mac, 6);
    __builtin_memcpy(eth->h_source, gateway->src_mac, 6);
    *made = eth;
    return 0;
}

INLINE int encapsulate4(struct xdp_md *ctx, struct gateway_value *gateway, u32 vni, u32 hash,
                        u32 inner)
{
    struct ethhdr *eth;
    if (make_room(ctx, gateway, AROUND4_BYTES, &eth))
        return -1;
    struct iphdr *ip = (void *)(eth + 1);
    eth->h_proto = bpf_htons(ETH_P_IP);
    ip->version = 4;
    ip->ihl = 5;
    ip->tos = 0;
    ip->tot_len = bpf_htons(inner + OUTER4_BYTES);
    ip->id = 0; /* RFC 6864: means nothing in a packet that may not be fragmented */
    ip->frag_off = bpf_htons(IP_DF);
    ip->ttl = OUTER_TTL;
    ip->protocol = IPPROTO_UDP;
    ip->check = 0;
    ip->saddr = gateway->outer_src[3];
    ip->daddr = gateway->outer_dst[3];
    ip->check = ip_checksum(ip);
    make_tunnel((void *)(ip + 1), gateway, vni, hash, inner);
    return 0;
}

INLINE int encapsulate6(struct xdp_md *ctx, struct gateway_value *gateway, u32 vni, u32 hash,
                        u32 inner)
{
    struct ethhdr *eth;
    if (make_room(ctx, gateway, AROUND6_BYTES, &eth))
        return -1;
    struct ipv6_header *ip = (void *)(eth + 1);
    struct tunnel_headers *tunnel = (void *)(ip + 1);
    eth->h_proto = bpf_htons(ETH_P_IPV6);
    ip->version_class = 0x60;
    ip->class_flow[0] = (hash >> 16) & 0x0f; /* RFC 6438: ways are chosen by the flow label */
    ip->class_flow[1] = hash >> 8;
    ip->class_flow[2] = hash;
    ip->payload_bytes = bpf_htons(inner + sizeof(*tunnel));
    ip->next = IPPROTO_UDP;
    ip->hops = OUTER_TTL;
    set_address(ip->src, gateway->outer_src);
    set_address(ip->dst, gateway->outer_dst);
    make_tunnel(tunnel, gateway, vni, hash, inner);
    u64 sum;
    /* Read back: what is known here in one place and not in another the verifier refuses where it
     * guards against speculation. */
    barrier_var(tunnel);
    u32 at = sizeof(*eth) + sizeof(*ip), bytes = bpf_ntohs(tunnel->udp.len);
    if (sum_udp(ctx, gateway->outer_src, gateway->outer_dst, at, bytes, &sum))
        return -1;
    u16 check = udp_checksum(sum);
    tunnel->udp.check = check ? check : 0xffff; /* RFC 768: 0 would say that there is none */
    return 0;
}

/* Put Ethernet, IP, UDP and the tunnel's header in front of a frame of `inner` bytes. 0, or -1: no room. */
INLINE int encapsulate(struct xdp_md *ctx, struct gateway_value *gateway, u32 vni, u32 hash,
                       u32 inner)
{
    return gateway->flags & GATEWAY_SIX ? encapsulate6(ctx, gateway, vni, hash, inner)
                                        : encapsulate4(ctx, gateway, vni, hash, inner);
}

/* ---- read --------------------------------------------------------------------------------- */

/* A packet's outer headers, whose addresses are in `seen` and here. */
struct outer {
    struct peer_key to;
    u32 at;    /* of UDP in the frame */
    u32 frame; /* bytes, as the outer packet says */
    int six;
};

/* UDP that can be read: not fragmented, no IP options or extensions. Whether it is. */
INLINE int read_outer(struct xdp_md *ctx, struct seen *seen, struct outer *outer,
                      struct tunnel_headers **tunnel)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    struct iphdr *four = (void *)(eth + 1);
    struct ipv6_header *six = (void *)(eth + 1);
    if ((void *)eth + AROUND4_BYTES > end)
        return 0;
    if (eth->h_proto == bpf_htons(ETH_P_IP)) {
        if (four->version != 4 || four->ihl != 5 || four->protocol != IPPROTO_UDP ||
            four->frag_off & bpf_htons(IP_FRAGMENT_MASK))
            return 0;
        set_ipv4(seen->outer.outer, four->saddr);
        set_ipv4(outer->to.outer, four->daddr);
        outer->at = sizeof(*eth) + sizeof(*four);
        outer->frame = bpf_ntohs(four->tot_len) + sizeof(*eth);
        outer->six = 0;
        *tunnel = (void *)(four + 1);
        barrier_var(*tunnel); /* else it becomes the sum of a pointer and what is not known */
        return 1;
    }
    if (eth->h_proto != bpf_htons(ETH_P_IPV6) || (void *)eth + AROUND6_BYTES > end ||
        six->version_class >> 4 != 6 || six->next != IPPROTO_UDP)
        return 0;
    set_address(seen->outer.outer, six->src);
    set_address(outer->to.outer, six->dst);
    outer->at = sizeof(*eth) + sizeof(*six);
    outer->frame = bpf_ntohs(six->payload_bytes) + outer->at;
    outer->six = 1;
    *tunnel = (void *)(six + 1);
    barrier_var(*tunnel);
    return 1;
}

/* 0, or the drop that it comes to. RFC 8926, section 3.3: a checksum is to be looked at. RFC 8200,
 * section 8.1: over IPv6 there has to be one. */
INLINE int check_udp(struct xdp_md *ctx, struct seen *seen, struct outer *outer,
                     struct tunnel_headers *tunnel)
{
    u32 bytes = bpf_ntohs(tunnel->udp.len);
    if (!tunnel->udp.check)
        return outer->six ? DROPPED | DROP_TUNNEL_CHECKSUM : 0;
    if (tunnel->udp.dest == bpf_htons(VXLAN_PORT))
        return 0;
    if (bytes + outer->at != outer->frame)
        return DROPPED | DROP_TUNNEL_CHECKSUM;
    u64 sum;
    if (sum_udp(ctx, seen->outer.outer, outer->to.outer, outer->at, bytes, &sum))
        return DROPPED | DROP_MALFORMED;
    return udp_checksum(sum) ? DROPPED | DROP_TUNNEL_CHECKSUM : 0;
}

#endif
