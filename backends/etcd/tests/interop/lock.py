# A lock of etcd3, told by lines what to do; it answers each with yes or no. Arguments: port and name.
import sys
import warnings

# What it was generated for is older than the Python that runs it.
warnings.simplefilter("ignore")
import etcd3

port, name = sys.argv[1:]
lock = etcd3.client(port=int(port)).lock(name, ttl=60)
verbs = {
    "try": lambda: lock.acquire(timeout=0),
    "wait": lambda: lock.acquire(timeout=None),
    "release": lock.release,
}
for line in sys.stdin:
    print("yes" if verbs[line.strip()]() else "no", flush=True)
