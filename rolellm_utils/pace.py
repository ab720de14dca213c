"""How fast a server is asked, and when a failed request is tried again."""

import asyncio
import random
import time
from email.utils import parsedate_to_datetime

from rolellm_utils.pricing import prompt_tokens

LONGEST_WAIT = 60.0  # seconds between two tries, where the server names no other time
LONGEST_OBEYED = 3600.0  # of what a server may name
# Not seeded on purpose: processes that fail together must not come back together. No file depends on it.
JITTER = random.Random()


class Pace:
    """Requests and tokens a minute (0: no limit), spread evenly; a pause that the server asks for holds for all."""

    def __init__(self, requests_per_minute=0, tokens_per_minute=0):
        self._gap = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._free, self._pause = 0.0, 0.0

    async def turn(self, messages, completion_tokens):
        """Wait until a request with these messages and so many tokens of answer may be sent."""
        start = max(self._free, time.monotonic())
        tokens = prompt_tokens(messages) + completion_tokens if self._token else 0
        self._free = start + max(self._gap, tokens * self._token)
        while (wait := max(start, self._pause) - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def after(self, failure, tried):
        """Seconds until try number `tried` + 2: exponential with jitter, at least what `Retry-After` names.

        A rate limit (429) stops every other request for that time as well.
        """
        wait = min(LONGEST_WAIT, 0.5 * 2**tried) * JITTER.uniform(0.5, 1)
        if failure.retry_after is not None:
            wait = max(wait, min(failure.retry_after, LONGEST_OBEYED) * JITTER.uniform(1, 1.1))
        if failure.status == 429:
            self._pause = max(self._pause, time.monotonic() + wait)
        return wait


def retry_after(headers):
    """The seconds in a `retry-after-ms` or `Retry-After` header (a number or a date); None when there is none."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if not text:
            continue
        try:
            return max(0.0, float(text) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (TypeError, ValueError):
            pass
    return None
