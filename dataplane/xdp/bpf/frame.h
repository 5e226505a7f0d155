/* What under XDP is nothing to do, and under tc is (skb.h). */
#ifndef WEFT_FRAME_H
#define WEFT_FRAME_H

#define QUOTED_BYTES 28  /* in an error: of the packet its header and 8 bytes */
#define QUOTED6_BYTES 56 /* a header, one extension, and 8 bytes: a fragment's ports, too */

/* Headers are where they can be read. */
INLINE void at_hand(struct xdp_md *ctx)
{
}

/* A frame is sent as it is. */
INLINE u32 sent_bytes(struct xdp_md *ctx, struct seen *seen)
{
    return seen->bytes;
}

#endif
