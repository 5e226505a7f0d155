"""The links to other nodes: libp2p (TCP, Noise, Yamux, multistream-select) under trio.

    events.py     what the rest of the node sees: PeerUp, PeerDown, FrameIn, Overflow, PeerInfo
    tcp.py        multiaddrs, listening and dialling sockets, closing them hard
    session.py    the boundary to py-libp2p: one authenticated, multiplexed connection
    framing.py    length-prefixed frames; the bounded send queue
    link.py       one peer: its three streams, heartbeat, back-pressure
    pulse.py      who is still there
    overlay.py    with whom to have links (pure)
    redial.py     when to dial whom again (pure)
    dialler.py    dialling: several addresses at once, bootstrap addresses
    traversal.py  members that cannot be dialled: detours, and ways back from them
    circuit.py    connections inside other members' connections (circuit relay v2)
    relay.py      carrying them for others
    punch.py      making a direct connection out of a relayed one (DCUtR)
    twins.py      two processes of one node, told apart
    join.py       how somebody who is not a member yet asks to become one
    strangers.py  what such people may cost: few places, and not too often
    transport.py  all of them together: accepting, dialling, one link per peer

Of py-libp2p 0.8.1 the parts that speak the wire protocols are used: multistream-select, Noise XX
and Yamux, so any libp2p implementation can talk to a node. Its `BasicHost` and `Swarm` are not:
they are where most of what follows goes wrong, and a node needs none of what they add (peer store,
identify, pruning, auto-connect). Its relay and its hole punching live on that host, so their
protocols are spoken here over our own sessions, with the package's messages. What is known to go
wrong, and what stands against it:

    B1  an exception in a stream handler, or text that is not UTF-8 in a negotiation, ends the
        process: every task that runs on a peer's behalf is guarded in `transport.py`
    B2  deaf after 250 inbound connections, B4 leaked listeners, B10 listen failures that raise
        nothing, B11 256 inbound at most: the listening sockets are ours (`tcp.py`)
    B3  a cancelled write leaves Noise out of step: such a connection is ended (`session.py`)
    B5  250 ms on every dial, peers blocked for 60 s after a failure: dialling is ours
        (`dialler.py`)
    B6  closing waits for a peer that is cut off: the socket is closed under it (`tcp.py`)
    B7  plaintext is accepted by default: `/noise` is the only security offered, with the
        membership gate inside it (`session.py`)
    B8  a silent cut is never noticed: heartbeat (`link.py`, `pulse.py`)
    B9  receive windows are not enforced, a slow reader resets the stream after 5 s: both are
        bounded here (`session.py`, `link.py`)

Importing py-libp2p takes more than a second. This module, `events.py` and the pure ones do
not; the others do, so import them where a node runs and not where a command starts.
"""
