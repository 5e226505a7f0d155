/* The maps. User space creates and pins them (dataplane/xdp/layout.py: types, sizes, capacities).
 * Those that are made here hold their places until the loader puts the pinned ones there, so the
 * capacities given have no effect. */
#ifndef WEFT_MAPS_H
#define WEFT_MAPS_H

BPF_TABLE("array", u32, struct config_value, config, 1);
BPF_TABLE("array", u32, struct gateway_value, gateways, 1);
BPF_TABLE("array", u32, u32, gateway_index, 1);
BPF_TABLE("hash", struct peer_key, struct peer_value, peers, 1);
BPF_TABLE("array", u32, struct group_value, groups, 1);
BPF_TABLE("array", u32, u32, group_index, 1);
BPF_TABLE("hash", struct entitled_key, struct entitled_value, entitled, 1);
BPF_TABLE("lru_hash", struct endpoint_key, struct moved_value, moved, 1);
BPF_TABLE("array", u32, struct port_value, ports, 1);
BPF_TABLE("array", u32, u32, port_index, 1);
BPF_TABLE("hash", struct endpoint_key, struct endpoint_value, endpoints, 1);
BPF_F_TABLE("lpm_trie", struct subnet_key, struct subnet_value, subnets, 1, BPF_F_NO_PREALLOC);
BPF_TABLE("percpu_array", u32, struct drop_count, drops, REASONS_MAX);
BPF_TABLE("percpu_hash", u32, u64, vpc_drops, 1);
BPF_TABLE("percpu_array", u32, struct traffic, port_traffic, 1);
BPF_TABLE("percpu_array", u32, struct traffic, gateway_traffic, 1);
BPF_TABLE("percpu_array", u32, struct scratch, scratch, 1);
BPF_RINGBUF_OUTPUT(drop_events, 1);

#endif
