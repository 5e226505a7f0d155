"""Log events, not sentences: an event name and fields, bounded where a peer can cause them.

A line reads `event=link.up peer=3f… inbound=true`. The fields are also on the record (as
`record.fields`), so that a formatter can write JSON without parsing the text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

_LIMITED_EVENTS_MAX = 256
"""Event names one limiter remembers. Names are written in our source, so this is never reached."""


def event(
    logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: object
) -> None:
    """Log one event. Bytes are shown as hex; a field that is None is left out."""
    if not logger.isEnabledFor(level):
        return
    shown = {key: _plain(value) for key, value in fields.items() if value is not None}
    text = " ".join([f"event={name}", *(f"{key}={_quoted(v)}" for key, v in shown.items())])
    logger.log(level, "%s", text, extra={"fields": {"event": name, **shown}})


class LimitedLog:
    """Logs at most `burst` events of one name at once and one more every `interval_s`.

    What was held back is counted and reported as `suppressed=` on the next line of that name, so
    that a flood is visible as a number and not as a full disk.
    """

    def __init__(
        self,
        logger: logging.Logger,
        now_s: Callable[[], float],
        *,
        burst: int = 5,
        interval_s: float = 10.0,
    ) -> None:
        self._logger = logger
        self._now_s = now_s
        self._burst = burst
        self._interval_s = interval_s
        self._names: dict[str, tuple[float, float, int]] = {}  # tokens, as of, suppressed

    def event(self, name: str, *, level: int = logging.WARNING, **fields: object) -> bool:
        """Log the event if its name has not been logged too often; True if it was."""
        now_s = self._now_s()
        tokens, as_of_s, suppressed = self._names.get(name, (float(self._burst), now_s, 0))
        tokens = min(float(self._burst), tokens + (now_s - as_of_s) / self._interval_s)
        if tokens < 1 or (name not in self._names and len(self._names) >= _LIMITED_EVENTS_MAX):
            if name in self._names:
                self._names[name] = (tokens, now_s, suppressed + 1)
            return False
        self._names[name] = (tokens - 1, now_s, 0)
        event(self._logger, name, level=level, **fields, suppressed=suppressed or None)
        return True


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return value


def _quoted(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    # A peer's text must not be able to forge a second line or a second field.
    if text and text.isprintable() and not any(c in text for c in ' "='):
        return text
    return '"' + text.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'
