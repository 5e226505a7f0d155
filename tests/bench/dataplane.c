/* The programs around a packet that is the same at every run: what a run changes is undone, so that
 * the kernel can repeat it (BPF_PROG_TEST_RUN). Put behind the source of the programs, with these
 * defined before: FIRST, DRAWN (addresses: the first, and which bits of it are drawn by lot), MAC4
 * and MAC6 (of the pods that send). */

/* A destination out of many, or always the same one. */
INLINE u32 drawn(u32 mask)
{
    return bpf_htonl(FIRST + (bpf_get_prandom_u32() & mask));
}

/* As a pod sends it: its own MAC, and all its hops. */
INLINE void set_sent(struct ethhdr *eth, struct iphdr *ip, struct ipv6_header *six)
{
    u8 mac4[6] = MAC4, mac6[6] = MAC6;
    __builtin_memcpy(eth->h_source, six ? mac6 : mac4, 6);
    if (ip)
        ip->ttl = 64;
    if (six)
        six->hops = 64;
}

INLINE int prepare(struct xdp_md *ctx, int six, u32 mask)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    struct ipv6_header *header6 = (void *)(eth + 1);
    struct iphdr *header = (void *)(eth + 1);
    if ((void *)(header6 + 1) > end)
        return -1;
    set_sent(eth, six ? NULL : header, six ? header6 : NULL);
    if (six)
        header6->dst[3] = drawn(mask);
    else
        header->daddr = drawn(mask);
    return 0;
}

INLINE int run_pod(struct xdp_md *ctx, int six, u32 mask)
{
    if (prepare(ctx, six, mask))
        return XDP_ABORTED;
    struct seen seen = {.inside = 1};
    int verdict = finish(ctx, &seen, from_port(ctx, &seen));
    if (verdict != XDP_REDIRECT || bpf_xdp_adjust_head(ctx, AROUND4_BYTES))
        return XDP_ABORTED;
    return XDP_REDIRECT;
}

/* Sources are drawn, not destinations: a machine has few endpoints of its own. */
INLINE int run_wan(struct xdp_md *ctx, int six, u32 mask)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data + AROUND4_BYTES;
    struct ipv6_header *header6 = (void *)(eth + 1);
    struct iphdr *header = (void *)(eth + 1);
    if ((void *)(header6 + 1) > end)
        return XDP_ABORTED;
    set_sent(eth, six ? NULL : header, six ? header6 : NULL);
    if (six)
        header6->src[3] = drawn(mask);
    else
        header->saddr = drawn(mask);
    struct seen seen = {};
    int verdict = finish(ctx, &seen, from_underlay(ctx, &seen));
    if (verdict != XDP_REDIRECT || bpf_xdp_adjust_head(ctx, -(int)AROUND4_BYTES))
        return XDP_ABORTED;
    return XDP_REDIRECT;
}

int pod4_hot(struct xdp_md *ctx) { return run_pod(ctx, 0, 0); }
int pod4_random(struct xdp_md *ctx) { return run_pod(ctx, 0, DRAWN); }
int pod6_hot(struct xdp_md *ctx) { return run_pod(ctx, 1, 0); }
int wan4_hot(struct xdp_md *ctx) { return run_wan(ctx, 0, 0); }
int wan4_random(struct xdp_md *ctx) { return run_wan(ctx, 0, DRAWN); }
int wan6_hot(struct xdp_md *ctx) { return run_wan(ctx, 1, 0); }

/* What the above do beside running a program: once everything but making room, then that too, and
 * back. */
int bare(struct xdp_md *ctx) { return prepare(ctx, 0, 0) ? XDP_ABORTED : XDP_REDIRECT; }
int undone(struct xdp_md *ctx)
{
    int head = AROUND4_BYTES;
    if (prepare(ctx, 0, 0) || bpf_xdp_adjust_head(ctx, -head) || bpf_xdp_adjust_head(ctx, head))
        return XDP_ABORTED;
    return XDP_REDIRECT;
}

/* A source of packets: as the pod sends them, out of the interface that they are said to come from. */
int stream(struct xdp_md *ctx)
{
    if (prepare(ctx, 0, 0))
        return XDP_ABORTED;
    return bpf_redirect(ctx->ingress_ifindex, 0);
}
