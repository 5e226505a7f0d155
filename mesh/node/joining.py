"""Invitations given out by this node, and what happens when somebody comes with one."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable

import trio

from mesh.core import ed25519, token
from mesh.core.bounds import Quotas
from mesh.core.errors import PeerError, Refused, RequestError
from mesh.core.replica import Replica
from mesh.core.token import SECRET_BYTES, Token
from mesh.core.validate import name as check_name
from mesh.node.log import event
from mesh.node.rotating import OwnKey
from mesh.node.store import Store

INVITATIONS_MAX = 1000
"""Open at once: more than a roll-out of a whole mesh needs."""
TTL_S_MAX = 30 * 86_400
TELL_EXPIRED_S = 3600
"""For so long after a token's expiry strangers are let in to be told so, and no longer."""
KEEP_EXPIRED_S = 7 * 86_400
"""For so long a late joiner is told that its token has expired, afterwards that it is unknown."""

_logger = logging.getLogger("weft.join")


class Joining:
    """One per node. Tokens survive a restart; each admits one node."""

    def __init__(
        self,
        key: OwnKey,
        replica: Replica,
        store: Store,
        addrs: Callable[[], list[str]],
        durable: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Args:
            addrs: multiaddrs at which this node can be reached, for tokens and answers.
            durable: returns when what the replica was given is on disk.
        """
        self._key = key
        self._replica = replica
        self._store = store
        self._addrs = addrs
        self._durable = durable
        self._one_at_a_time = trio.Lock()

    async def invite(self, site: str, ttl_s: int, quotas: Quotas | None = None) -> str:
        """The text of a new token, for a node with these quotas (None: the usual).

        Raises Refused: no admin here, or bounds.
        """
        roster = self._replica.roster
        member = roster.active(self._replica.node)
        if member is None or not member.admin:
            admins = sorted(m.name for m in roster.members().values() if m.admin)
            raise Refused(f"this node is no admin of the mesh: invite at {', '.join(admins)}")
        now_s = int(time.time())
        if not 0 < ttl_s <= TTL_S_MAX:
            raise Refused(f"ttl of {ttl_s} s: give 1 s to {TTL_S_MAX // 86_400} days")
        addrs = self._addrs()[: token.ADDRS_MAX]
        if not addrs:
            raise Refused("this node listens on no address that others can dial")
        made = Token(
            roster.mesh_id,
            roster.mesh_name,
            self._key.public,
            tuple(addrs),
            secrets.token_bytes(SECRET_BYTES),
            now_s + ttl_s,
            site,
        )
        await trio.to_thread.run_sync(self._add, made, quotas, now_s)
        event(_logger, "invite.made", token=made.hash[:8], site=site or None, ttl_s=ttl_s)
        return made.encode()

    def _add(self, made: Token, quotas: Quotas | None, now_s: int) -> None:
        self._store.drop_invitations(now_s - KEEP_EXPIRED_S)
        if self._store.open_invitations(now_s) >= INVITATIONS_MAX:
            raise Refused(f"{INVITATIONS_MAX} invitations are open: let some be used or expire")
        self._store.add_invitation(made.hash, made.secret, made.expires_s, made.site, quotas)

    async def is_open(self) -> bool:
        """Whether anybody who comes with a token of this node is to be heard: to be admitted, or
        told that the token was used or has expired a little while ago."""
        since_s = int(time.time()) - TELL_EXPIRED_S
        count = await trio.to_thread.run_sync(self._store.invitations_after, since_s)
        return count > 0

    async def handle(self, joiner_key: bytes, raw: bytes) -> bytes:
        """Answer a join request over a channel that authenticated `joiner_key`.

        Raises Refused with the reason for the joiner.
        """
        async with self._one_at_a_time:
            try:
                answer = await self._admit(joiner_key, raw)
            except PeerError as error:
                raise Refused(str(error)) from None
            except RequestError as error:
                event(_logger, "join.refused", node=ed25519.node_id(joiner_key), reason=str(error))
                raise
        return answer

    async def _admit(self, joiner_key: bytes, raw: bytes) -> bytes:
        request = token.parse_join_request(raw)
        name, site = check_name("node name", request.name), check_name("site", request.site)
        joiner = ed25519.node_id(joiner_key)
        roster = self._replica.roster
        invitation = await trio.to_thread.run_sync(self._store.invitation, request.token_hash)
        if invitation is None:
            raise Refused("token is not one of this node's: ask for a new one")
        made = Token(
            roster.mesh_id,
            roster.mesh_name,
            self._key.public,
            (),
            invitation.secret,
            invitation.expires_s,
            invitation.site,
        )
        used = invitation.used_by not in (None, joiner)
        token.check_join(request, made, joiner_key, used, int(time.time()))
        known = roster.active(joiner)
        if known is None or (known.name, known.site) != (name, site):
            statement = roster.admit(
                self._key.seed, joiner_key, name, site, request.token_hash, invitation.quotas
            )
            if not await trio.to_thread.run_sync(
                self._store.use_invitation, request.token_hash, joiner
            ):
                raise Refused("token was used before: ask for a new one")
            self._replica.add_statements([statement], time.monotonic_ns())
            await self._durable()
            event(_logger, "join.admitted", node=joiner, node_name=name, site=site)
        return token.join_answer(roster.statements(), self._addrs())
