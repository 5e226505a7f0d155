/* What BCC brings by itself, for a build by clang alone (dataplane/xdp/ahead.py): types, helpers, and
 * maps, of which an object file only says what shape they have. */
#ifndef WEFT_AHEAD_H
#define WEFT_AHEAD_H

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
#define NULL ((void *)0)
#define SECTION(name) __attribute__((section(name), used))

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define bpf_htons(number) __builtin_bswap16(number)
#define bpf_htonl(number) __builtin_bswap32(number)
#else
#define bpf_htons(number) ((u16)(number))
#define bpf_htonl(number) ((u32)(number))
#endif
#define bpf_ntohs bpf_htons
#define bpf_ntohl bpf_htonl

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static u64 (*bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*bpf_redirect)(u32 ifindex, u64 flags) = (void *)BPF_FUNC_redirect;
static long (*bpf_csum_diff)(void *from, u32 from_bytes, void *to, u32 to_bytes,
                             u32 seed) = (void *)BPF_FUNC_csum_diff;
static long (*bpf_xdp_adjust_head)(struct xdp_md *ctx, int delta) = (void *)BPF_FUNC_xdp_adjust_head;
static long (*bpf_xdp_adjust_tail)(struct xdp_md *ctx, int delta) = (void *)BPF_FUNC_xdp_adjust_tail;
static u64 (*bpf_xdp_get_buff_len)(struct xdp_md *ctx) = (void *)BPF_FUNC_xdp_get_buff_len;
static long (*bpf_xdp_load_bytes)(struct xdp_md *ctx, u32 at, void *to,
                                  u32 bytes) = (void *)BPF_FUNC_xdp_load_bytes;
static long (*bpf_ringbuf_output)(void *ring, void *data, u64 bytes,
                                  u64 flags) = (void *)BPF_FUNC_ringbuf_output;

struct map_shape {
    u32 type;
    u32 key_bytes;
    u32 value_bytes;
}; /* 12 bytes */

#define BPF_TABLE(_type, _key, _value, _name, _rows)                                               \
    typedef _value _name##_row;                                                                    \
    struct map_shape _name SECTION("maps") = {_type, sizeof(_key), sizeof(_value)}
#define BPF_F_TABLE(_type, _key, _value, _name, _rows, _flags)                                     \
    BPF_TABLE(_type, _key, _value, _name, _rows)
#define BPF_RINGBUF_OUTPUT(_name, _pages)                                                          \
    struct map_shape _name SECTION("maps") = {BPF_MAP_TYPE_RINGBUF, 0, 0}

#endif
