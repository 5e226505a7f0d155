/* Whether a gateway may have sent what came by its tunnel: it speaks for the addresses that are
 * claimed at its site, and for no other.
 *
 * A site whose endpoint has moved goes on for a while: what was on its way from there, and what
 * others still send there and it sends on. Gateways of our own site may send on anything, and have
 * checked it. Errors come from the address of a subnet's gateway, which nobody claims. */
#ifndef WEFT_SOURCE_H
#define WEFT_SOURCE_H

/* Whether a group leads to the peer's site. */
INLINE int leads_to_site(struct peer_value *peer, u32 group)
{
    if (group == peer->group || group == peer->site_group)
        return 1;
    struct group_value *other = group_of(group);
    return other && other->site_group == peer->site_group;
}

INLINE int entitled_to(u32 vni, u32 site_group)
{
    struct entitled_key key = {.vni = vni, .site_group = ANY_SITE};
    if (LOOKUP(entitled, &key))
        return 1;
    key.site_group = site_group;
    return LOOKUP(entitled, &key) != NULL;
}

/* Whether an address was at the peer's site before it moved, `within_ns` ago at most. */
INLINE int was_at(struct peer_value *peer, u32 vni, u32 *ip, u64 within_ns)
{
    struct endpoint_key key = {.vni = vni};
    set_address(key.ip, ip);
    struct moved_value *from = LOOKUP(moved, &key);
    return from && bpf_ktime_get_ns() - from->at_ns <= within_ns &&
           leads_to_site(peer, from->group);
}

/* An error of the kinds that gateways send (answer.h). */
INLINE int is_error(struct xdp_md *ctx, struct seen *seen)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    struct icmp6_frame *six = (void *)eth;
    struct icmp_frame *four = (void *)eth;
    if (seen->six)
        return (void *)(six + 1) <= end && six->ip.next == PROTOCOL_ICMP6 &&
               (six->icmp.type == ICMP6_TOO_BIG_TYPE || six->icmp.type == ICMP6_EXPIRED_TYPE);
    return (void *)(four + 1) <= end && four->ip.ihl == 5 && four->ip.protocol == IPPROTO_ICMP &&
           (four->icmp.type == ICMP_UNREACHABLE_TYPE || four->icmp.type == ICMP_EXPIRED_TYPE);
}

INLINE int gateway_error(struct xdp_md *ctx, struct seen *seen)
{
    if (!is_error(ctx, seen))
        return 0;
    struct subnet_value *subnet = subnet_of(seen->vni, seen->src);
    return subnet && same_address(subnet->gateway_ip, seen->src);
}

/* 0, or the drop that it comes to. */
INLINE int check_source(struct xdp_md *ctx, struct seen *seen, struct peer_value *peer)
{
    u32 vni = seen->vni;
    struct endpoint_value *source = endpoint_of(vni, seen->src);
    if (source && leads_to_site(peer, source->group))
        return 0; /* a claim of a site that is not entitled has no row */
    if (!entitled_to(vni, peer->site_group))
        return drop(DROP_NOT_ENTITLED);
    if (peer->flags & PEER_OWN_SITE || was_at(peer, vni, seen->src, MOVED_GRACE_NS) ||
        was_at(peer, vni, seen->dst, ~0ull) || gateway_error(ctx, seen))
        return 0;
    return drop(DROP_FOREIGN_SOURCE);
}

#endif
