/* The maps. User space creates and pins them (dataplane/xdp/layout.py: types, sizes, capacities)
 * before these programs are compiled; BCC only opens them by path, so the capacities given here are
 * placeholders that have no effect. */
#ifndef WEFT_MAPS_H
#define WEFT_MAPS_H

BPF_TABLE_PINNED("array", u32, struct config_value, config, 1, PIN_DIR "/map-config");
BPF_TABLE_PINNED("hash", u32, struct gateway_value, gateways, 1, PIN_DIR "/map-gateways");
BPF_TABLE_PINNED("hash", u32, struct peer_value, peers, 1, PIN_DIR "/map-peers");
BPF_TABLE_PINNED("hash", u32, struct group_value, groups, 1, PIN_DIR "/map-groups");
BPF_TABLE_PINNED("hash", struct entitled_key, struct entitled_value, entitled, 1,
                 PIN_DIR "/map-entitled", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lru_hash", struct endpoint_key, struct moved_value, moved, 1,
                 PIN_DIR "/map-moved");
BPF_TABLE_PINNED("hash", u32, struct port_value, ports, 1, PIN_DIR "/map-ports");
BPF_TABLE_PINNED("hash", struct endpoint_key, struct endpoint_value, endpoints, 1,
                 PIN_DIR "/map-endpoints", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct subnet_key, struct subnet_value, subnets, 1,
                 PIN_DIR "/map-subnets", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("percpu_array", u32, struct drop_count, drops, REASONS_MAX, PIN_DIR "/map-drops");
BPF_TABLE_PINNED("percpu_hash", u32, u64, vpc_drops, 1, PIN_DIR "/map-vpc_drops");
BPF_TABLE_PINNED("percpu_hash", u32, struct traffic, port_traffic, 1, PIN_DIR "/map-port_traffic");
BPF_TABLE_PINNED("percpu_hash", u32, struct traffic, gateway_traffic, 1,
                 PIN_DIR "/map-gateway_traffic");

/* BCC has no pinned form of its ring buffer: this is its table with that name. */
struct drop_events_table_t {
    int key;
    u32 leaf;
    int (*ringbuf_output)(void *, u64, u64);
    u32 max_entries;
};
__attribute__((section("maps/ringbuf:" PIN_DIR "/map-drop_events")))
struct drop_events_table_t drop_events = {.max_entries = 4096};

#endif
