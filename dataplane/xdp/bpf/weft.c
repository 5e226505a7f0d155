/* The programs. Compiled by BCC without kernel headers (dataplane/xdp/loader.py): UAPI only. The
 * loader puts the project's headers in place of their #include lines. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include "consts.h"
#include "structs.h"
#ifdef FOR_TC
#include "skb.h"
#else
#include "frame.h"
#endif
#include "maps.h"
#include "packet.h"
#include "outer.h"
#include "tables.h"
#include "forward.h"
#include "answer.h"
#include "drop.h"
#include "neighbour.h"
#include "pod.h"
#include "source.h"
#include "wan.h"

/* For the machine's end of each workload's veth. */
int xdp_pod(struct xdp_md *ctx)
{
    at_hand(ctx);
    struct seen seen = {.inside = 1};
    return finish(ctx, &seen, from_port(ctx, &seen));
}

/* For the underlay interface. */
int xdp_wan(struct xdp_md *ctx)
{
    at_hand(ctx);
    struct seen seen = {};
    return finish(ctx, &seen, from_underlay(ctx, &seen));
}

#ifndef FOR_TC
/* For the far end of a veth: frames redirected to a veth are lost unless its peer polls (NAPI),
 * and a program there makes it do so. */
int xdp_pass(struct xdp_md *ctx)
{
    return XDP_PASS;
}
#endif
