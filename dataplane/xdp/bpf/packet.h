/* Work on packets that knows no map: checksums, TTL, flow hash, tunnel headers. */
#ifndef WEFT_PACKET_H
#define WEFT_PACKET_H

#define INLINE static inline __attribute__((always_inline))

INLINE u16 checksum_fold(u64 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

/* The checksum of a header without options whose `check` is 0, as it lies in the packet. */
INLINE u16 ip_checksum(struct iphdr *ip)
{
    u16 *words = (u16 *)ip;
    u64 sum = 0;
#pragma unroll
    for (int i = 0; i < 10; i++)
        sum += words[i];
    return checksum_fold(sum);
}

/* RFC 1141: one off the TTL is 0x0100 on the checksum. */
INLINE void ttl_decrement(struct iphdr *ip)
{
    u32 check = ip->check;
    check += bpf_htons(0x0100);
    ip->check = (u16)(check + (check >= 0xffff));
    ip->ttl--;
}

/* The inner Ethernet frame without padding: the IP header's word, not the frame's end. */
INLINE u32 frame_bytes(struct iphdr *ip)
{
    return bpf_ntohs(ip->tot_len) + sizeof(struct ethhdr);
}

/* An IPv4 packet that may be worked on: the header is whole and its lengths agree. */
INLINE int ip_well_formed(struct xdp_md *ctx, struct iphdr *ip)
{
    u32 header = ip->ihl * 4;
    u32 total = bpf_ntohs(ip->tot_len);
    return ip->version == 4 && header >= sizeof(*ip) && total >= header &&
           total + sizeof(struct ethhdr) <= bpf_xdp_get_buff_len(ctx);
}

/* One number per flow. Fragments have no ports, so none of a fragmented packet's parts uses them.
 * Ports stand at the same place in TCP, UDP and SCTP; those behind IP options are not looked for. */
INLINE u32 flow_hash(struct iphdr *ip, void *end)
{
    u32 hash = ip->saddr * 0x9e3779b1u ^ ip->daddr ^ ip->protocol;
    u32 *ports = (void *)(ip + 1);
    int has_ports = ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP;
    if (has_ports && ip->ihl == 5 && !(ip->frag_off & bpf_htons(IP_FRAGMENT_MASK)) &&
        (void *)(ports + 1) <= end)
        hash ^= *ports;
    hash *= 0x85ebca6bu;
    hash ^= hash >> 13;
    hash *= 0xc2b2ae35u;
    return hash ^ hash >> 16;
}

/* Put Ethernet, IPv4, UDP and Geneve in front of a frame of `inner` bytes. 0, or -1: no room. */
INLINE int encapsulate(struct xdp_md *ctx, struct gateway_value *gateway, u32 vni, u32 hash,
                       u32 inner)
{
    if (bpf_xdp_adjust_head(ctx, -(int)sizeof(struct outer_headers)))
        return -1;
    void *end = (void *)(long)ctx->data_end;
    struct outer_headers *outer = (void *)(long)ctx->data;
    if ((void *)(outer + 1) > end)
        return -1;
    __builtin_memcpy(outer->eth.h_dest, gateway->dst_mac, 6);
    __builtin_memcpy(outer->eth.h_source, gateway->src_mac, 6);
    outer->eth.h_proto = bpf_htons(ETH_P_IP);
    outer->ip.version = 4;
    outer->ip.ihl = 5;
    outer->ip.tos = 0;
    outer->ip.tot_len = bpf_htons(inner + OUTER_BYTES);
    outer->ip.id = 0; /* RFC 6864: means nothing in a packet that may not be fragmented */
    outer->ip.frag_off = bpf_htons(IP_DF);
    outer->ip.ttl = OUTER_TTL;
    outer->ip.protocol = IPPROTO_UDP;
    outer->ip.check = 0;
    outer->ip.saddr = gateway->outer_src;
    outer->ip.daddr = gateway->outer_dst;
    outer->ip.check = ip_checksum(&outer->ip);
    outer->udp.source = bpf_htons(FLOW_PORT_BASE | (hash & 0x3fff));
    outer->udp.dest = bpf_htons(GENEVE_PORT);
    outer->udp.len = bpf_htons(inner + OUTER_BYTES - sizeof(struct iphdr));
    outer->udp.check = 0; /* RFC 8926, section 3.3: may be zero over IPv4 */
    outer->geneve.version_options = 0;
    outer->geneve.flags = 0;
    outer->geneve.protocol = bpf_htons(GENEVE_ETHERNET);
    outer->geneve.vni_reserved = bpf_htonl(vni << 8);
    return 0;
}

#endif
