"""Between the view and the replica: what a node keeps follows from what it reads."""

from __future__ import annotations

from mesh.core.interest import Interests
from mesh.core.replica import Replica
from mesh.core.writer import Writer


def follow(interests: Interests, replica: Replica, writer: Writer) -> bool:
    """Have the replica keep, and housekeeping say, what the view as it is calls for.

    Call it whenever the view was updated. True: something may have been dropped, and the view is to
    be updated again.
    """
    if not interests.update() and not replica.drops_late:
        return False
    vpcs = frozenset(interests.vpcs)
    replica.set_interest(vpcs, interests.entitled)
    writer.set_interest(vpcs)
    return True
