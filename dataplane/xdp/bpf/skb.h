/* The same programs at another place: tc, which has packets as the kernel's own (skb), with the
 * offloads of whoever sent them: many segments of TCP in one, checksums yet to be made. What the
 * programs call of XDP is done here with what there is for skbs.
 *
 * Room before a frame is made, and taken away, behind its Ethernet header, so that is moved: what is
 * read and written then stands where it would under XDP. */
#ifndef WEFT_SKB_H
#define WEFT_SKB_H

/* Of linux/bpf.h, where that is new enough, and of linux/pkt_cls.h. */
#define ROOM_BEHIND_ETHERNET 1 /* BPF_ADJ_ROOM_MAC */
#define ROOM_KEEPS_SEGMENTS 1  /* BPF_F_ADJ_ROOM_FIXED_GSO */
#define ROOM_FOR_TUNNEL 0x52   /* …_ENCAP_L3_IPV4, …_ENCAP_L4_UDP, …_ENCAP_L2_ETH */
#define ROOM_FOR_ETHERNET ((u64)sizeof(struct ethhdr) << 56) /* …_ENCAP_L2 */
#define ROOM_FROM_IPV4 0x80                                  /* …_DECAP_L3_IPV4 */
#define ROOM_FROM_IPV6 0x100                                 /* …_DECAP_L3_IPV6 */
#define TUNNEL_ROOM_BYTES 50 /* over IPv4; what errors are made of needs less */
#define READ_BYTES 256       /* of a packet: all headers that are looked at, but Geneve's options */

/* In an error, of the packet: skbs of TCP are not to be cut off before the end of a checksum that is
 * yet to be made. */
#define QUOTED_BYTES 40
#define QUOTED6_BYTES 60

#define xdp_md __sk_buff
#define xdp_pod tc_pod
#define xdp_wan tc_wan
#define XDP_PASS 0 /* TC_ACT_OK */
#define XDP_DROP 2 /* TC_ACT_SHOT */
#define bpf_xdp_get_buff_len(ctx) ((ctx)->len)
#define bpf_xdp_load_bytes bpf_skb_load_bytes
#define bpf_xdp_adjust_tail(ctx, bytes) bpf_skb_change_tail(ctx, (ctx)->len + (bytes), 0)
#define bpf_xdp_adjust_head skb_adjust_head

/* Have the headers where they can be read. */
INLINE void at_hand(struct __sk_buff *ctx)
{
    u32 bytes = ctx->len < READ_BYTES ? ctx->len : READ_BYTES;
    if ((void *)(long)ctx->data + READ_BYTES > (void *)(long)ctx->data_end)
        bpf_skb_pull_data(ctx, bytes);
}

/* So many bytes less at the beginning of a frame that comes out of a tunnel; or more. */
INLINE int skb_adjust_head(struct __sk_buff *ctx, int bytes)
{
    struct ethhdr eth;
    if (bpf_skb_load_bytes(ctx, bytes > 0 ? bytes : 0, &eth, sizeof(eth)))
        return -1;
    u64 how = ROOM_KEEPS_SEGMENTS;
    if (bytes == -TUNNEL_ROOM_BYTES)
        how |= ROOM_FOR_TUNNEL | ROOM_FOR_ETHERNET;
    if (bytes > 0)
        how |= eth.h_proto == bpf_htons(ETH_P_IPV6) ? ROOM_FROM_IPV6 : ROOM_FROM_IPV4;
    if (bpf_skb_adjust_room(ctx, -bytes, ROOM_BEHIND_ETHERNET, how) ||
        bpf_skb_store_bytes(ctx, bytes > 0 ? 0 : -bytes, &eth, sizeof(eth), 0))
        return -1;
    at_hand(ctx);
    return 0;
}

/* Bytes of the longest frame that a packet, which was read, is sent as: of one of many segments of
 * TCP those of one with its headers. */
INLINE u32 sent_bytes(struct __sk_buff *ctx, struct seen *seen)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    struct iphdr *ip = (void *)(eth + 1);
    struct ipv6_header *six = (void *)(eth + 1);
    u8 *tcp = seen->six ? (void *)(six + 1) : (void *)(ip + 1);
    if (!ctx->gso_size || (void *)(tcp + TCP_BYTES) > end)
        return seen->bytes;
    if (seen->six ? six->next != IPPROTO_TCP : ip->protocol != IPPROTO_TCP || ip->ihl != 5)
        return seen->bytes;
    u32 before = sizeof(*eth) + (seen->six ? sizeof(*six) : sizeof(*ip));
    return before + (tcp[TCP_LENGTH_AT] >> 4) * 4 + ctx->gso_size;
}

#endif
