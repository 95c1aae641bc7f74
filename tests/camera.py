"""A camera of the tests' own: MJPEG over HTTP on the loopback interface, which can be unplugged and plugged in again."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np


class Camera:
    """Serves `rate` pictures a second; the brightness of each tells its number (steps of 8, over and over)."""

    def __init__(self, rate: float = 20.0) -> None:
        self.rate, self.sent = rate, 0
        self.plugged = threading.Event()
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self.plug_in()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/video.mjpg"

    def plug_in(self) -> None:
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.serve(self)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads, block_on_close, allow_reuse_address = True, False, True

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        self.plugged.set()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def unplug(self) -> None:
        self.plugged.clear()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        began, count = time.monotonic(), 0
        while self.plugged.is_set():
            data = picture(self.sent)
            try:
                request.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data))
                request.wfile.write(data + b"\r\n")
                request.wfile.flush()
            except OSError:
                return
            count, self.sent = count + 1, self.sent + 1
            time.sleep(max(0.0, began + count / self.rate - time.monotonic()))


def picture(number: int) -> bytes:
    """A grey JPEG as bright as its number says."""
    ok, data = cv2.imencode(".jpg", np.full((48, 64, 3), number % 32 * 8, np.uint8))
    assert ok
    return bytes(data)
