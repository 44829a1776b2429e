"""The ledger in Redis: what several replicas remember together, each key leased to one of them.

Every question is one script, so Redis decides alone and on its own clock; the replicas' clocks do
not matter. The scripts say the rules of ``ledger.py`` in Lua. Keys end by themselves, save jobs
that are owed a deletion: these get 30 days, in case nobody sweeps.

Redis must keep what it is told (``maxmemory-policy noeviction``, ``appendonly yes``): an answer
that it loses, in a failover or a restart without a file, is an answer that a repeat does not get.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from connector_service.errors import LedgerDownError, StartupError
from connector_service.runtime.ledger import Found, Held, Job, Orphan, Recorded, Reserved
from connector_service.sdk.resource import TaskCategory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["RedisLedger"]

_log = logging.getLogger(__name__)

_TIMEOUT = 1.0  # seconds for connecting, and for an answer
_LIMIT = 2.0  # seconds for one question with all that belongs to it
_CONNECTIONS = 32
_AT_ONCE = 500  # leases that one script renews

# Times are milliseconds. The fields: s state, o owner, u until, g generation, n and v category,
# m meta, d delivery, a attempts, r retention. The states are those of `ledger.State`.
_PRELUDE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2])
local prefix, owed = ARGV[1], ARGV[1] .. 'owed'
local function read(job)
  local f = redis.call('HMGET', job, 's', 'o', 'u', 'g', 'm', 'd', 'r')
  local e = {state = tonumber(f[1]) or 0, owner = f[2], ends = tonumber(f[3]) or 0,
             generation = tonumber(f[4]) or 0, meta = f[5], delivery = tonumber(f[6]) or 0,
             retention = tonumber(f[7]) or 0}
  e.over = e.ends <= now and (e.state == 1 or e.state == 2 or e.state == 5)
  return e
end
local function expire(job, span) redis.call('PEXPIRE', job, math.max(1, span)) end
local function hold(job, e, owner, lease)
  local generation, retention = 0, 0
  if e.state == 1 or (e.state == 5 and not e.over) then
    generation, retention = e.generation, e.retention
  end
  redis.call('DEL', job)
  redis.call('HSET', job, 's', 1, 'o', owner, 'u', now + lease, 'g', generation, 'r', retention)
  expire(job, lease + retention)
  return generation
end
local function hand_out(job, key, e)
  local ends = e.ends
  if e.state == 3 then ends = now + e.retention end
  redis.call('HSET', job, 's', 2, 'u', ends)
  redis.call('ZREM', owed, key)
  expire(job, ends - now)
  return redis.call('HINCRBY', job, 'd', 1)
end
local function bury(job, e, generation)
  redis.call('DEL', job)
  redis.call('HSET', job, 's', 5, 'o', '', 'u', now + e.retention, 'g', generation,
             'r', e.retention)
  expire(job, e.retention)
end
local MONTH = 30 * 86400000
"""

_ONE = "local key = ARGV[3]\nlocal job = KEYS[1]\nlocal e = read(job)\n"

_RESERVE = """
local owner, lease = ARGV[4], tonumber(ARGV[5])
if e.state == 0 or e.over or e.state == 5 or (e.state == 1 and e.owner == owner) then
  return {1, hold(job, e, owner, lease)}
end
if e.state == 2 or e.state == 3 then return {2, hand_out(job, key, e), e.meta} end
return {3, math.max(0, e.ends - now)}
"""

_RENEW = """
local lost = {}
for i = 4, #ARGV, 2 do
  local job = prefix .. 'job:' .. ARGV[i]
  local e = read(job)
  if e.state == 0 or e.over or (e.state == 1 and e.owner == ARGV[i + 1]) then
    hold(job, e, ARGV[i + 1], tonumber(ARGV[3]))
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""

_RECORD = """
local delivered = ARGV[10] == '1'
if e.state == 3 or (e.state == 2 and not e.over) then
  if delivered then return {hand_out(job, key, e), e.meta} end
  return {e.delivery, e.meta}
end
local retention, grace = tonumber(ARGV[8]), tonumber(ARGV[9])
redis.call('DEL', job)
redis.call('HSET', job, 'o', '', 'g', e.generation, 'n', ARGV[5], 'v', ARGV[6], 'm', ARGV[7],
           'r', retention, 'a', 0)
if delivered then
  redis.call('HSET', job, 's', 2, 'u', now + retention, 'd', 1)
  redis.call('ZREM', owed, key)
  expire(job, retention)
  return {1, ARGV[7]}
end
redis.call('HSET', job, 's', 3, 'u', now + grace, 'd', 0)
redis.call('ZADD', owed, now + grace, key)
expire(job, grace + MONTH)
return {0, ARGV[7]}
"""

_WITHDRAW = """
if e.state == 2 and e.delivery == tonumber(ARGV[4]) then
  local grace = tonumber(ARGV[5])
  redis.call('HSET', job, 's', 3, 'u', now + grace)
  redis.call('ZADD', owed, now + grace, key)
  expire(job, grace + MONTH)
end
"""

_RELEASE = """
if e.state == 1 and e.owner == ARGV[4] then
  if e.generation > 0 then bury(job, e, e.generation) else redis.call('DEL', job) end
end
"""

_ORPHANS = """
local owner, ends, found = ARGV[3], now + tonumber(ARGV[4]), {}
for _, key in ipairs(redis.call('ZRANGEBYSCORE', owed, '-inf', now, 'LIMIT', 0, ARGV[5])) do
  local job = prefix .. 'job:' .. key
  local e = read(job)
  if e.state == 3 or e.state == 4 then
    redis.call('HSET', job, 's', 4, 'o', owner, 'u', ends)
    redis.call('ZADD', owed, ends, key)
    local category = redis.call('HMGET', job, 'n', 'v')
    found[#found + 1] = {key, category[1], category[2], e.meta, redis.call('HINCRBY', job, 'a', 1)}
  else
    redis.call('ZREM', owed, key)
  end
end
return found
"""

_FORGET = """
if e.state == 4 and e.owner == ARGV[4] then
  redis.call('ZREM', owed, key)
  bury(job, e, e.generation + 1)
end
"""


class RedisLedger:
    """Remembers jobs at a ``redis://``, ``rediss://`` or ``unix://`` URL."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "connector-service:{ledger}:",
        ahead: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Take the URL and what keys begin with; the braces keep them on one node of a cluster.

        ``ahead`` is how many seconds the ledger's clock is ahead of Redis', for tests.

        Raises:
            StartupError: The extra is missing, or the URL is none.
        """
        try:
            # An extra: imported where it is used, and nowhere else.
            import redis.asyncio as client  # noqa: PLC0415
            from redis import backoff, exceptions  # noqa: PLC0415
            from redis.asyncio import retry  # noqa: PLC0415
        except ImportError:
            raise StartupError(
                "--ledger-url needs an extra: pip install 'connector-service[redis]'."
            ) from None
        try:
            pool = client.BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=_TIMEOUT,
                socket_timeout=_TIMEOUT,
                socket_connect_timeout=_TIMEOUT,
                socket_keepalive=True,
                # A connection from before Redis' restart is dead; the second try has a new one.
                retry=retry.Retry(
                    backoff.NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,)
                ),
            )
        except ValueError:
            raise StartupError(
                "--ledger-url is no URL of a Redis; redis://host:6379/0 is one."
            ) from None
        self._redis: Any = client.Redis.from_pool(pool)
        self._troubles = (exceptions.RedisError, OSError, TimeoutError)
        self._prefix = prefix
        self._ahead = ahead
        self._scripts: dict[str, Any] = {}

    async def open(self) -> None:
        """Say whether Redis is there; the service starts without it as it goes on without it."""
        try:
            await self.ping()
        except LedgerDownError as error:
            _log.warning("ledger_down", extra={"why": str(error)})

    async def reserve(self, key: str, owner: str, lease: float) -> Found:
        """Take a free key, or hand out the answer that stands."""
        kind, number, *meta = await self._ask_of(key, _RESERVE, owner, _ms(lease))
        if kind == 1:
            return Reserved(number)
        return Recorded(meta[0], number) if kind == 2 else Held(number / 1000)

    async def renew(self, held: Sequence[tuple[str, str]], lease: float) -> set[str]:
        """Prolong leases and return the keys that were lost."""
        lost: set[str] = set()
        for first in range(0, len(held), _AT_ONCE):
            flat = [text for pair in held[first : first + _AT_ONCE] for text in pair]
            lost |= {key.decode() for key in await self._ask(_RENEW, [], _ms(lease), *flat)}
        return lost

    async def record(self, key: str, owner: str, job: Job, *, delivered: bool) -> Recorded:
        """Write what was created and return what stands."""
        delivery, meta = await self._ask_of(
            key,
            _RECORD,
            owner,
            job.category.name,
            job.category.version,
            job.meta,
            _ms(job.retention),
            _ms(job.grace),
            int(delivered),
        )
        return Recorded(meta, delivery)

    async def withdraw(self, key: str, delivery: int, grace: float) -> None:
        """Take a hand-out back unless there was a later one."""
        await self._ask_of(key, _WITHDRAW, delivery, _ms(grace))

    async def release(self, key: str, owner: str) -> None:
        """Free a key whose create failed."""
        await self._ask_of(key, _RELEASE, owner)

    async def orphans(self, owner: str, lease: float, limit: int) -> list[Orphan]:
        """Claim jobs whose grace, or whose earlier claim, is over."""
        found = await self._ask(_ORPHANS, [], owner, _ms(lease), limit)
        return [
            Orphan(key.decode(), TaskCategory(name.decode(), int(version)), meta, attempts)
            for key, name, version, meta, attempts in found
        ]

    async def forget(self, key: str, owner: str) -> None:
        """Note that a claimed job is deleted."""
        await self._ask_of(key, _FORGET, owner)

    async def ping(self) -> None:
        """Return when Redis answers."""
        await self._guarded(self._redis.ping)

    async def close(self) -> None:
        """Close the connections; fine twice."""
        await self._redis.aclose(close_connection_pool=True)

    async def _ask_of(self, key: str, body: str, *arguments: Any) -> Any:
        """Run a script about one key."""
        return await self._ask(_ONE + body, [f"{self._prefix}job:{key}"], key, *arguments)

    async def _ask(self, body: str, keys: list[str], *arguments: Any) -> Any:
        script = self._scripts.get(body)
        if script is None:
            script = self._scripts[body] = self._redis.register_script(_PRELUDE + body)
        given = [self._prefix, _ms(self._ahead()), *arguments]
        # The set of orphans is always among the keys: they tell a cluster which node to ask.
        return await self._guarded(lambda: script(keys or [f"{self._prefix}owed"], given))

    async def _guarded(self, question: Callable[[], Any]) -> Any:
        try:
            async with asyncio.timeout(_LIMIT):
                return await question()
        except self._troubles as error:
            raise LedgerDownError(
                f"The ledger in Redis cannot be used: {type(error).__name__}.", retry_after=1.0
            ) from error


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
