"""moto's S3 on a port of 127.0.0.1, which is the argument. A second argument, `unconditional`, makes it a server that ignores the
conditions of a put, as older ones do.

It carries out one request at a time. moto compares an ETag and then writes; as moto starts it, with a thread for each request,
another one could have its turn in between.
"""

import sys

from moto.server import create_backend_app
from werkzeug.serving import make_server

port, app = int(sys.argv[1]), create_backend_app("s3")


def unconditional(environ, start_response):
    for header in "HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH":
        environ.pop(header, None)
    return app(environ, start_response)


serve = unconditional if "unconditional" in sys.argv else app
server = make_server("127.0.0.1", port, serve, threaded=False)
print("ready", flush=True)
server.serve_forever()
