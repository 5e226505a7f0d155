/* What a dropped packet leaves behind: counts for all, an event for some.
 *
 * Both programs come here at their end, with the frame as it is by then. Events of one reason on
 * one processor are bounded, those of one flow more tightly, and nobody is woken for them: user
 * space looks when it likes. Where the ring has no room, packets are told with the next event. */
#ifndef WEFT_DROP_H
#define WEFT_DROP_H

INLINE void read_addresses(struct xdp_md *ctx, struct drop_event *event)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    if ((void *)(eth + 1) > end)
        return;
    event->ethertype = eth->h_proto;
    if (eth->h_proto == bpf_htons(ETH_P_IP)) {
        struct iphdr *ip = (void *)(eth + 1);
        if ((void *)(ip + 1) <= end) {
            __builtin_memcpy(event->src, &ip->saddr, 4);
            __builtin_memcpy(event->dst, &ip->daddr, 4);
        }
    } else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
        u8 *addresses = (u8 *)(eth + 1) + 8;
        if ((void *)(addresses + 32) <= end) {
            __builtin_memcpy(event->src, addresses, 16);
            __builtin_memcpy(event->dst, addresses + 16, 16);
        }
    } else if (eth->h_proto == bpf_htons(ETH_P_ARP)) {
        struct arp_ipv4 *arp = (void *)(eth + 1);
        if ((void *)(arp + 1) <= end) {
            __builtin_memcpy(event->src, &arp->sender_ip, 4);
            __builtin_memcpy(event->dst, &arp->target_ip, 4);
        }
    }
}

INLINE u32 flow_of(struct drop_event *event)
{
    u32 hash = event->ifindex, *words = (u32 *)event->src;
#pragma unroll
    for (int i = 0; i < 4; i++)
        hash = hash * 0x9e3779b1u ^ event->outer[i];
#pragma unroll
    for (int i = 0; i < 8; i++) /* src and dst */
        hash = hash * 0x9e3779b1u ^ words[i];
    return hash;
}

INLINE void tell_drop(struct xdp_md *ctx, struct seen *seen, u32 reason, struct drop_count *count)
{
    u64 now = bpf_ktime_get_ns();
    if (now - count->window_at_ns >= DROP_EVENTS_WINDOW_NS) {
        count->window_at_ns = now;
        count->window_events = 0;
    }
    if (count->window_events >= DROP_EVENTS_IN_WINDOW)
        return;
    struct drop_event event = {
        .at_ns = now,
        .packets = count->packets - count->told,
        .reason = reason,
        .vni = seen->vni,
        .ifindex = ctx->ingress_ifindex,
    };
    set_address(event.outer, seen->outer.outer);
    if (seen->inside)
        read_addresses(ctx, &event);
    u32 flow = flow_of(&event);
    if (count->window_events && flow == count->flow)
        return; /* one that floods hides nobody else */
    count->flow = flow;
    count->window_events++;
    if (!drop_events.ringbuf_output(&event, sizeof(event), BPF_RB_NO_WAKEUP))
        count->told = count->packets;
}

INLINE void account(struct xdp_md *ctx, struct seen *seen, u32 reason)
{
    u32 vni = seen->vni;
    struct port_value *port = port_of(ctx->ingress_ifindex);
    if (port)
        count_port_drop(port);
    struct gateway_value *peer = gateway_of(seen->gateway);
    if (peer)
        count_gateway_drop(peer);
    u64 *vpc = LOOKUP(vpc_drops, &vni);
    if (vpc)
        (*vpc)++;
    struct drop_count *count = LOOKUP(drops, &reason);
    if (!count)
        return;
    count->packets++;
    tell_drop(ctx, seen, reason, count);
}

/* What the kernel is told: a drop inside the programs is accounted for, others are as
 * they are. */
INLINE int finish(struct xdp_md *ctx, struct seen *seen, int verdict)
{
    if (!(verdict & DROPPED))
        return verdict;
    u32 reason = verdict & ~DROPPED;
    account(ctx, seen, reason);
    return answer(ctx, seen, reason);
}

#endif
