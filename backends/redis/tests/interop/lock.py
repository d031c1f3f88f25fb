# A lock of redis-py, told by lines what to do; it answers each with yes or no. Arguments: port, key, TTL in ms.
import sys

import redis
from redis.exceptions import LockError

port, key, ttl = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
lock = redis.Redis(port=port).lock(key, timeout=ttl / 1000)
verbs = {
    "acquire": lambda: lock.acquire(blocking=False),
    "extend": lambda: lock.extend(ttl / 1000, replace_ttl=True),
    "release": lambda: lock.release() is None,
}
for line in sys.stdin:
    try:
        done = verbs[line.strip()]()
    except LockError:
        done = False
    print("yes" if done else "no", flush=True)
