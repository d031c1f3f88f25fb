"""The Lock of kazoo as a contender of the benchmark: src/contender/mod.rs says what is asked of it.

Several tasks, each with a lock of its own, are threads that share a client.
"""

import argparse
import json
import os
import struct
import threading
import time

from kazoo.client import KazooClient

TTL = 30
now = time.monotonic_ns

arguments = argparse.ArgumentParser()
arguments.add_argument("--servers", required=True)
arguments.add_argument("--tasks", type=int, required=True)
arguments.add_argument("--settle-ms", type=int, default=0)
arguments.add_argument("--millis", type=int, required=True)
arguments.add_argument("--hold-ms", type=int, default=0)
arguments.add_argument("--id", type=int, required=True)
arguments.add_argument("--inside")
asked_for = arguments.parse_args()

SETTLE = asked_for.settle_ms * 1_000_000
LENGTH = asked_for.millis * 1_000_000
HOST = f"127.0.0.1:{asked_for.servers.split(',')[0]}"

client = KazooClient(hosts=HOST, timeout=TTL)
client.start()


def wait_for_the_word():
    print("ready", flush=True)
    input()


def warm_lock(number):
    lock = client.Lock(f"/kazoo/bench/{number}", "somebody")
    lock.acquire()
    lock.release()
    return lock


def take_own():
    locks = [warm_lock(asked_for.id + task) for task in range(asked_for.tasks)]
    taken = [[] for _ in locks]

    def take(lock, pairs):
        began = now()
        while now() - began < LENGTH:
            pair = now()
            lock.acquire()
            lock.release()
            pairs.append(now() - pair)

    threads = [threading.Thread(target=take, args=each) for each in zip(locks, taken)]
    wait_for_the_word()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pairs = [pair for pairs in taken for pair in pairs]
    return {"counts": [len(pairs) for pairs in taken], "pairs": pairs, "waits": [], "handovers": []}


def take_same():
    warm_lock(asked_for.id)
    lock = client.Lock("/kazoo/same", "somebody")
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


outcome = take_same() if asked_for.inside else take_own()
client.stop()
print(json.dumps(outcome))
