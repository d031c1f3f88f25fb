# A lock of kazoo, told by lines what to do; it answers each with yes or no. Arguments: hosts, path, and which lock: Lock,
# ReadLock or WriteLock. It is told of our words for places in line, as kazoo wants it for those of other clients.
import sys

from kazoo.client import KazooClient

hosts, path, kind = sys.argv[1:]
client = KazooClient(hosts=hosts, timeout=60)
client.start()
ours = {"ReadLock": ["-lock-"], "Lock": ["-lock-", "-__READ__"], "WriteLock": ["-lock-", "-__READ__"]}
lock = getattr(client, kind)(path, "kazoo", extra_lock_patterns=ours[kind])
verbs = {
    "try": lambda: lock.acquire(blocking=False),
    "wait": lock.acquire,
    "release": lock.release,
}
for line in sys.stdin:
    print("yes" if verbs[line.strip()]() else "no", flush=True)
