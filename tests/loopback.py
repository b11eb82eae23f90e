"Servers on loopback for tests: one that answers by a function and keeps what it was asked."

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Asked(NamedTuple):
    path: str
    key: str  # of the header Authorization
    body: Any


@contextmanager
def listening(handler):
    "Run a server with a handler on a free port; its address, without a slash at the end."
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def model_handler(answer, asked, models=("kwanzaa",)):
    """A model's server: `answer` gets a request's body and its number, and gives status and reply.

    Replies, and `models` in place of names, may be bytes, which are sent as they are."""
    listed = models if isinstance(models, bytes) else {
        "object": "list", "data": [{"id": name} for name in models]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send(200, listed)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(Asked(self.path, self.headers["Authorization"], body))
            self.send(*answer(body, len(asked)))

        def send(self, status, reply):
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Handler
