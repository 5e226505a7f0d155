/* Rows of arrays, which the kernel looks up without a call: those that every packet needs.
 *
 * An array's rows are found through an index of u32: its first element is how many cells it has
 * less one, a power of two less one; a key has two cells, and is in one of them at least (Pagh and
 * Rodler 2001: cuckoo hashing). A cell is 0, or the place of a row and INDEX_FIRST. Rows say which key they are of. What a cell leads to is never written
 * to: a row that changes is written to another place first (dataplane/xdp/indexed.py), and the
 * cell after it, so a program reads a row as it was or as it is.
 *
 * LOOKUP(map, key) stands for a map look-up; the loader puts BCC's form in its place before it
 * compiles, because BCC refuses one inside a macro. */
#ifndef WEFT_TABLES_H
#define WEFT_TABLES_H

/* Interfaces have consecutive numbers, so most need no second look. */
INLINE u32 cell_hash(u32 key, int probe)
{
    return probe ? key * 0x9e3779b1u >> 15 : key;
}

INLINE struct port_value *port_of(u32 ifindex)
{
    u32 at = 0, *mask = LOOKUP(port_index, &at);
    if (!mask)
        return NULL;
#pragma unroll
    for (int i = 0; i < INDEX_PROBES; i++) {
        at = 1 + (cell_hash(ifindex, i) & *mask);
        u32 *cell = LOOKUP(port_index, &at);
        if (!cell || !*cell)
            continue;
        u32 place = *cell - INDEX_FIRST;
        struct port_value *port = LOOKUP(ports, &place);
        if (port && port->id == ifindex)
            return port;
    }
    return NULL;
}

INLINE struct group_value *group_of(u32 id)
{
    u32 at = 0, *mask = LOOKUP(group_index, &at);
    if (!mask)
        return NULL;
#pragma unroll
    for (int i = 0; i < INDEX_PROBES; i++) {
        at = 1 + (cell_hash(id, i) & *mask);
        u32 *cell = LOOKUP(group_index, &at);
        if (!cell || !*cell)
            continue;
        u32 place = *cell - INDEX_FIRST;
        struct group_value *group = LOOKUP(groups, &place);
        if (group && group->id == id)
            return group;
    }
    return NULL;
}

INLINE struct gateway_value *gateway_of(u32 id)
{
    u32 at = 0, *mask = LOOKUP(gateway_index, &at);
    if (!mask)
        return NULL;
#pragma unroll
    for (int i = 0; i < INDEX_PROBES; i++) {
        at = 1 + (cell_hash(id, i) & *mask);
        u32 *cell = LOOKUP(gateway_index, &at);
        if (!cell || !*cell)
            continue;
        u32 place = *cell - INDEX_FIRST;
        struct gateway_value *gateway = LOOKUP(gateways, &place);
        if (gateway && gateway->id == id)
            return gateway;
    }
    return NULL;
}

INLINE struct subnet_value *subnet_of(u32 vni, u32 *ip)
{
    struct subnet_key key = {.prefix_bits = 160, .vni = bpf_htonl(vni)};
    set_address(key.network, ip);
    return LOOKUP(subnets, &key);
}

INLINE struct endpoint_value *endpoint_of(u32 vni, u32 *ip)
{
    struct endpoint_key key = {.vni = vni};
    set_address(key.ip, ip);
    return LOOKUP(endpoints, &key);
}

#endif
