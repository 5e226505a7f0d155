/* Numbers shared with user space (dataplane/reasons.py, dataplane/xdp/layout.py) and protocol
 * constants. The loader compiles assertions that compare the shared ones. */
#ifndef WEFT_CONSTS_H
#define WEFT_CONSTS_H

#define INLINE static inline __attribute__((always_inline))

#define GENEVE_PORT 6081         /* RFC 8926, section 3.3 */
#define GENEVE_VERSION_MASK 0xc0 /* first octet */
#define GENEVE_OPTIONS_MASK 0x3f /* first octet: length of the options in 4-octet units */
#define GENEVE_CONTROL 0x80      /* second octet, O */
#define GENEVE_CRITICAL 0x40     /* second octet, C */
#define GENEVE_ETHERNET 0x6558   /* protocol type: transparent Ethernet bridging */
#define VXLAN_PORT 4789          /* RFC 7348, section 5 */
#define VXLAN_VALID_VNI 0x08     /* first octet, I; all other bits are 0 and ignored */

#define OUTER4_BYTES 36 /* outer IPv4, UDP and Geneve without options */
#define OUTER6_BYTES 56 /* with outer IPv6 */
#define SUMMED_AT_ONCE 512 /* bytes: what bpf_csum_diff takes on every kernel */
#define SUMMED_BYTES_MAX 9728 /* of a packet whose checksum is made or looked at: a jumbo frame */
#define OUTER_TTL 64
#define FLOW_PORT_BASE 0xc000 /* outer source ports are 49152..65535 (RFC 8926, section 3.3) */

#define SMALLEST_BYTES 64 /* of an Ethernet frame, with its check sequence */
#define IP_DF 0x4000
#define IP_FRAGMENT_MASK 0x3fff /* more fragments, and the offset */
#define IP_OFFSET_MASK 0x1fff
#define ICMP_ECHO_REPLY_TYPE 0
#define ICMP_UNREACHABLE_TYPE 3
#define ICMP_FRAGMENTATION_NEEDED_CODE 4
#define ICMP_ECHO_TYPE 8
#define ICMP_EXPIRED_TYPE 11
#define TCP_BYTES 20     /* of its header, without options */
#define TCP_LENGTH_AT 12 /* of the header, in the upper half: in 4 bytes */
#define PROTOCOL_ICMP6 58
#define ICMP6_TOO_BIG_TYPE 2 /* RFC 4443 */
#define ICMP6_EXPIRED_TYPE 3
#define ICMP6_INFORMATIONAL 128 /* below it: errors */
#define ICMP6_ECHO_TYPE 128
#define ICMP6_ECHO_REPLY_TYPE 129
#define ICMP6_SOLICITATION_TYPE 135 /* RFC 4861 */
#define ICMP6_ADVERTISEMENT_TYPE 136
#define NEIGHBOUR_HOPS 255              /* what comes from another link has less */
#define NEIGHBOUR_SHORTEST_BYTES 24     /* without a link address */
#define NEIGHBOUR_TARGET_LINK 2         /* option: target link-layer address */
#define NEIGHBOUR_OVERRIDE 0xa0000000   /* router, override: as all addresses are the gateway's */
#define NEIGHBOUR_SOLICITED 0x40000000
#define ARP_REQUEST_OP 1
#define ARP_REPLY_OP 2
#define ARP_ETHERNET 1

#define GROUP_GATEWAYS_MAX 16
#define INDEX_PROBES 2 /* cells that a key may have */
#define INDEX_FIRST 2  /* what a cell has that leads to the first place */
#define REASONS_MAX 32
#define PORT_BLOCKED 1
#define GATEWAY_RESOLVED 1
#define GATEWAY_SIX 2
#define GATEWAY_VXLAN 4
#define PEER_OWN_SITE 1
#define PEER_VXLAN 2
#define ANY_SITE 0
#define MOVED_GRACE_NS 10000000000ull
#define DROPPED 0x100 /* beside a reason: a verdict inside the programs, above the XDP ones */
#define DROP_EVENTS_WINDOW_NS 100000000 /* of one reason on one processor: this long, */
#define DROP_EVENTS_IN_WINDOW 8         /* so many events at most; all are counted */

enum drop_reason {
    DROP_MALFORMED = 0,
    DROP_NO_PORT = 1,
    DROP_PORT_BLOCKED = 2,
    DROP_SPOOFED_MAC = 3,
    DROP_SPOOFED_IP = 4,
    DROP_SPOOFED_NEIGHBOUR = 5,
    DROP_NEIGHBOUR_IGNORED = 6,
    DROP_NEIGHBOUR_OUTSIDE = 7,
    DROP_NOT_IP = 8,
    DROP_NO_SUBNET = 9,
    DROP_UNCLAIMED = 10,
    DROP_NOT_ATTACHED = 11,
    DROP_NO_GROUP = 12,
    DROP_NO_GATEWAY = 13,
    DROP_UNRESOLVED = 14,
    DROP_TTL_EXPIRED = 15,
    DROP_TOO_BIG = 16,
    DROP_UNKNOWN_PEER = 17,
    DROP_TUNNEL_VERSION = 18,
    DROP_TUNNEL_CONTROL = 19,
    DROP_TUNNEL_CRITICAL = 20,
    DROP_TUNNEL_PROTOCOL = 21,
    DROP_NOT_LOCAL = 22,
    DROP_LOOP = 23,
    DROP_NO_ROOM = 24,
    DROP_NOT_ENTITLED = 25,
    DROP_FOREIGN_SOURCE = 26,
    DROP_MULTICAST = 27,
    DROP_TUNNEL_CHECKSUM = 28,
    DROP_TUNNEL_ENCAPSULATION = 29,
};

#endif
