/* Work on packets that knows no map: checksums, TTL, flow hash. */
#ifndef WEFT_PACKET_H
#define WEFT_PACKET_H

#define barrier_var(var) asm volatile("" : "+r"(var)) /* the compiler knows nothing of its value */

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

/* Whether the frame has so many bytes. The smallest ones, which are the most, cost no call; more would
 * take arithmetic on pointers that is refused where the kernel guards against speculation. */
INLINE int is_in_frame(struct xdp_md *ctx, u32 bytes)
{
    if (bytes <= SMALLEST_BYTES &&
        (void *)(long)ctx->data + SMALLEST_BYTES <= (void *)(long)ctx->data_end)
        return 1;
    return bytes <= bpf_xdp_get_buff_len(ctx);
}

/* An IPv4 packet that may be worked on: the header is whole and its lengths agree. */
INLINE int ip_well_formed(struct xdp_md *ctx, struct iphdr *ip)
{
    u32 header = ip->ihl * 4;
    u32 total = bpf_ntohs(ip->tot_len);
    return ip->version == 4 && header >= sizeof(*ip) && total >= header &&
           is_in_frame(ctx, total + sizeof(struct ethhdr));
}

INLINE void set_address(u32 *to, u32 *from)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        to[i] = from[i];
}

INLINE void set_ipv4(u32 *to, u32 ip)
{
    to[0] = 0;
    to[1] = 0;
    to[2] = bpf_htonl(0xffff);
    to[3] = ip;
}

/* IPv4, as it stands among the addresses of keys: in a packet of IPv6 it is nobody's. */
INLINE int is_ipv4(u32 *ip)
{
    return !(ip[0] | ip[1] | (ip[2] ^ bpf_htonl(0xffff)));
}

INLINE int same_address(u32 *a, u32 *b)
{
    return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]));
}

/* Read the packet in the frame: its addresses, and its length from its own header, not from the
 * frame's end. 0, or why there is none. */
INLINE int read_packet(struct xdp_md *ctx, struct seen *seen, struct ethhdr *eth)
{
    void *end = (void *)(long)ctx->data_end;
    struct iphdr *ip = (void *)(eth + 1);
    struct ipv6_header *six = (void *)(eth + 1);
    if (eth->h_proto == bpf_htons(ETH_P_IP)) {
        if ((void *)(ip + 1) > end || !ip_well_formed(ctx, ip))
            return DROPPED | DROP_MALFORMED;
        set_ipv4(seen->src, ip->saddr);
        set_ipv4(seen->dst, ip->daddr);
        seen->bytes = bpf_ntohs(ip->tot_len) + sizeof(*eth);
        seen->six = 0;
        seen->hops = ip->ttl;
        return 0;
    }
    if (eth->h_proto != bpf_htons(ETH_P_IPV6))
        return DROPPED | DROP_NOT_IP;
    if ((void *)(six + 1) > end || six->version_class >> 4 != 6)
        return DROPPED | DROP_MALFORMED;
    seen->bytes = bpf_ntohs(six->payload_bytes) + sizeof(*six) + sizeof(*eth);
    if (!is_in_frame(ctx, seen->bytes))
        return DROPPED | DROP_MALFORMED;
    set_address(seen->src, six->src);
    set_address(seen->dst, six->dst);
    if (is_ipv4(seen->src) || is_ipv4(seen->dst))
        return DROPPED | DROP_MALFORMED;
    seen->six = 1;
    seen->hops = six->hops;
    return 0;
}

INLINE int is_multicast(struct seen *seen)
{
    if (seen->six)
        return (seen->dst[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
    return (seen->dst[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || !~seen->dst[3];
}

/* One number per flow. Fragments have no ports, so none of a fragmented packet's parts uses them.
 * Ports stand at the same place in TCP and UDP; those behind options are not looked for. */
INLINE u32 flow_hash(struct xdp_md *ctx, struct seen *seen)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    struct iphdr *ip = (void *)(eth + 1);
    struct ipv6_header *six = (void *)(eth + 1);
    u32 hash = seen->src[3] * 0x9e3779b1u ^ seen->dst[3], *ports;
    u8 protocol;
    if (seen->six) {
        if ((void *)(six + 1) > end)
            return 0;
#pragma unroll
        for (int i = 0; i < 3; i++)
            hash = (hash ^ seen->src[i]) * 0x9e3779b1u ^ seen->dst[i];
        protocol = six->next;
        ports = (void *)(six + 1);
    } else {
        if ((void *)(ip + 1) > end)
            return 0;
        protocol = ip->protocol;
        if (ip->ihl != 5 || ip->frag_off & bpf_htons(IP_FRAGMENT_MASK))
            protocol = 0;
        hash ^= ip->protocol;
        ports = (void *)(ip + 1);
    }
    if ((protocol == IPPROTO_TCP || protocol == IPPROTO_UDP) && (void *)(ports + 1) <= end)
        hash ^= *ports ^ protocol << 8;
    hash *= 0x85ebca6bu;
    hash ^= hash >> 13;
    hash *= 0xc2b2ae35u;
    return hash ^ hash >> 16;
}

/* The packet, which was read, goes on with one hop less. */
INLINE void spend_hop(struct xdp_md *ctx, struct seen *seen, struct ethhdr *eth)
{
    void *end = (void *)(long)ctx->data_end;
    struct iphdr *ip = (void *)(eth + 1);
    struct ipv6_header *six = (void *)(eth + 1);
    if (seen->six) {
        if ((void *)(six + 1) <= end)
            six->hops--;
    } else if ((void *)(ip + 1) <= end) {
        ttl_decrement(ip);
    }
}

/* RFC 8200, section 8.1: with the addresses, the length and the protocol. `bytes` is a multiple of 4,
 * the message's checksum is 0. */
INLINE u16 icmp6_checksum(struct ipv6_header *ip, void *message, u32 bytes)
{
    u64 sum = (u32)bpf_csum_diff(0, 0, (void *)ip->src, 32, 0);
    sum += bpf_htonl(bytes);
    sum += bpf_htonl(PROTOCOL_ICMP6);
    sum += (u32)bpf_csum_diff(0, 0, message, bytes, 0);
    sum = (sum & 0xffffffff) + (sum >> 32);
    return checksum_fold((sum & 0xffff) + (sum >> 16));
}

#endif
