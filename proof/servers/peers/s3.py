"""moto's S3 on a port of 127.0.0.1, which is the argument.

It carries out one request at a time. moto compares an ETag and then writes; as moto starts it, with a thread for each request,
another one could have its turn in between.
"""

import sys

from moto.server import create_backend_app
from werkzeug.serving import make_server

port = int(sys.argv[1])
server = make_server("127.0.0.1", port, create_backend_app("s3"), threaded=False)
print("ready", flush=True)
server.serve_forever()
