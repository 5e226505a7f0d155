/* xdp_wan: what comes in from the underlay.
 *
 * Geneve for this machine ends here, whatever becomes of it, and VXLAN from gateways that have said
 * that they send it; everything else is the stack's. What a gateway did not send is not looked
 * into. */
#ifndef WEFT_WAN_H
#define WEFT_WAN_H

INLINE int is_ours(struct outer *outer)
{
    u32 first = 0;
    struct config_value *own = LOOKUP(config, &first);
    return own && same_address(own->underlay, outer->to.outer);
}

/* Send on what arrived here for an endpoint that has moved, or is another gateway's. */
INLINE int relay(struct xdp_md *ctx, struct seen *seen, struct endpoint_value *endpoint,
                 struct ethhdr *eth)
{
    u32 hash = flow_hash(ctx, seen), reason = 0, bytes = seen->bytes;
    struct gateway_value *gateway = next_hop(endpoint->group, hash, &reason);
    if (!gateway)
        return drop(reason);
    if (gateway->id == seen->gateway)
        return drop(DROP_LOOP);
    if (too_big_for(gateway, sent_bytes(ctx, seen)))
        return refuse_too_big(seen, gateway);
    __builtin_memcpy(eth->h_dest, endpoint->mac, 6);
    spend_hop(ctx, seen, eth);
    return tunnel(ctx, gateway, seen->vni, hash, bytes);
}

/* `carried`: bytes that the outer packet has for the inner frame. */
INLINE int from_tunnel(struct xdp_md *ctx, struct seen *seen, struct peer_value *peer, u32 carried)
{
    void *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = (void *)(long)ctx->data;
    if ((void *)(eth + 1) > end)
        return drop(DROP_MALFORMED);
    int refused = read_packet(ctx, seen, eth);
    if (refused)
        return refused;
    if (seen->bytes > carried)
        return drop(DROP_MALFORMED);
    struct gateway_value *sender = gateway_of(seen->gateway);
    if (sender)
        count_gateway_rx(sender, seen->bytes);
    refused = check_source(ctx, seen, peer);
    if (refused)
        return refused;
    struct endpoint_value *endpoint = endpoint_of(seen->vni, seen->dst);
    if (!endpoint)
        return drop(DROP_NOT_LOCAL);
    if (seen->hops <= 1)
        return drop(DROP_TTL_EXPIRED);
    if (endpoint->ifindex)
        return deliver(ctx, seen, endpoint, eth);
    if (!endpoint->group)
        return drop(DROP_NOT_ATTACHED);
    return relay(ctx, seen, endpoint, eth);
}

/* 0, or the drop that it comes to. `*options`: bytes that follow the header. */
INLINE int check_geneve(struct geneve_header *geneve, u32 *options)
{
    if (geneve->version_options & GENEVE_VERSION_MASK)
        return drop(DROP_TUNNEL_VERSION);
    if (geneve->flags & GENEVE_CONTROL)
        return drop(DROP_TUNNEL_CONTROL);
    if (geneve->flags & GENEVE_CRITICAL) /* RFC 8926, section 3.5: drop what is not understood */
        return drop(DROP_TUNNEL_CRITICAL);
    if (geneve->protocol != bpf_htons(GENEVE_ETHERNET))
        return drop(DROP_TUNNEL_PROTOCOL);
    *options = (geneve->version_options & GENEVE_OPTIONS_MASK) * 4;
    return 0;
}

INLINE int from_underlay(struct xdp_md *ctx, struct seen *seen)
{
    struct outer outer = {};
    struct tunnel_headers *tunnel;
    if (!read_outer(ctx, seen, &outer, &tunnel))
        return XDP_PASS;
    int vxlan = tunnel->udp.dest == bpf_htons(VXLAN_PORT);
    if ((!vxlan && tunnel->udp.dest != bpf_htons(GENEVE_PORT)) || !is_ours(&outer))
        return XDP_PASS;
    struct peer_value *peer = LOOKUP(peers, &seen->outer);
    if (vxlan && (!peer || !(peer->flags & PEER_VXLAN)))
        return XDP_PASS;
    if (!peer)
        return drop(DROP_UNKNOWN_PEER);
    seen->gateway = peer->gateway;
    if (!vxlan && peer->flags & PEER_VXLAN)
        return drop(DROP_TUNNEL_ENCAPSULATION);
    int refused = check_udp(ctx, seen, &outer, tunnel);
    if (refused)
        return refused;
    u32 options = 0;
    if (!vxlan)
        refused = check_geneve(&tunnel->geneve, &options);
    else if (!(tunnel->geneve.version_options & VXLAN_VALID_VNI))
        refused = drop(DROP_TUNNEL_PROTOCOL);
    if (refused)
        return refused;
    seen->vni = bpf_ntohl(tunnel->geneve.vni_reserved) >> 8;
    u32 headers = outer.at + sizeof(*tunnel) + options;
    if (headers > outer.frame) /* the options end beyond the outer packet */
        return drop(DROP_MALFORMED);
    if (bpf_xdp_adjust_head(ctx, (int)headers))
        return drop(DROP_MALFORMED);
    seen->inside = 1;
    return from_tunnel(ctx, seen, peer, outer.frame - headers);
}

#endif
