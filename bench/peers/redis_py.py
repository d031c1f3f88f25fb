"""The Lock of redis-py as a contender of the benchmark: src/contender/mod.rs says what is asked of it.

One task runs in the ordinary client; several, each with a lock of its own, in the asyncio one.
"""

import argparse
import asyncio
import json
import os
import struct
import time

import redis
import redis.asyncio

TTL = 30
now = time.monotonic_ns

arguments = argparse.ArgumentParser()
arguments.add_argument("--servers", type=int, required=True)
arguments.add_argument("--tasks", type=int, required=True)
arguments.add_argument("--settle-ms", type=int, default=0)
arguments.add_argument("--millis", type=int, required=True)
arguments.add_argument("--hold-ms", type=int, default=0)
arguments.add_argument("--id", type=int, required=True)
arguments.add_argument("--inside")
arguments.add_argument("--pause-ms", type=int)
asked_for = arguments.parse_args()

SETTLE = asked_for.settle_ms * 1_000_000
LENGTH = asked_for.millis * 1_000_000
ADDRESS = {"host": "127.0.0.1", "port": asked_for.servers}
POLLING = {} if asked_for.pause_ms is None else {"sleep": asked_for.pause_ms / 1000}


def wait_for_the_word():
    print("ready", flush=True)
    input()


def take_own():
    lock = redis.Redis(**ADDRESS).lock(f"bench/{asked_for.id}", timeout=TTL, **POLLING)
    lock.acquire()
    lock.release()
    wait_for_the_word()
    began, pairs = now(), []
    while now() - began < LENGTH:
        pair = now()
        lock.acquire()
        lock.release()
        pairs.append(now() - pair)
    return {"counts": [len(pairs)], "pairs": pairs, "waits": [], "handovers": []}


async def take_own_each():
    client = redis.asyncio.Redis(**ADDRESS, max_connections=asked_for.tasks)
    names = [f"bench/{asked_for.id + task}" for task in range(asked_for.tasks)]
    locks = [client.lock(name, timeout=TTL, **POLLING) for name in names]
    for lock in locks:
        await lock.acquire()
        await lock.release()
    wait_for_the_word()

    async def take(lock):
        began, pairs = now(), []
        while now() - began < LENGTH:
            pair = now()
            await lock.acquire()
            await lock.release()
            pairs.append(now() - pair)
        return pairs

    taken = await asyncio.gather(*map(take, locks))
    pairs = [pair for pairs in taken for pair in pairs]
    return {"counts": [len(pairs) for pairs in taken], "pairs": pairs, "waits": [], "handovers": []}


def take_same():
    client = redis.Redis(**ADDRESS)
    warm = client.lock(f"bench/{asked_for.id}", timeout=TTL)
    warm.acquire()
    warm.release()
    lock = client.lock("bench", timeout=TTL, **POLLING)
    inside = os.open(asked_for.inside, os.O_RDWR | os.O_CREAT, 0o600)
    wait_for_the_word()
    counts_from, count, waits, handovers = now() + SETTLE, 0, [], []
    while now() < counts_from + LENGTH:
        asked = now()
        lock.acquire()
        entered = now()
        counts = counts_from <= entered < counts_from + LENGTH
        last = os.pread(inside, 16, 0)
        if counts and len(last) == 16:
            who, left = struct.unpack("<QQ", last)
            if who != asked_for.id:
                waits.append(entered - asked)
                handovers.append(max(entered - left, 0))
        count += counts
        if asked_for.hold_ms:
            time.sleep(asked_for.hold_ms / 1000)
        os.pwrite(inside, struct.pack("<QQ", asked_for.id, now()), 0)
        lock.release()
    return {"counts": [count], "pairs": [], "waits": waits, "handovers": handovers}


if asked_for.inside:
    outcome = take_same()
elif asked_for.tasks == 1:
    outcome = take_own()
else:
    outcome = asyncio.run(take_own_each())
print(json.dumps(outcome))
