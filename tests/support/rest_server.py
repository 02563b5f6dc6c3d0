"""A REST server for tests of clients: it answers what a test told it to."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from schemas.actions import Action
from schemas.requests import Problem


class RestServer:
    """Answers by method and path; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def do_DELETE(self) -> None:
                self._answer()

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked = f"{self.command} {self.path}"
                outer.asked.append((asked, dict(self.headers), body))
                missing = (404, msgspec.json.encode(Problem(message=f"no {asked} here")))
                status, answer = outer.answers.get(asked, missing)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                """Silence."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, asked: str, *records: Any, status: int = 200) -> None:
        self.answers[asked] = status, b"\n".join(map(msgspec.json.encode, records)) + b"\n"

    def accept(self, accepted: Action, *changes: Action) -> None:
        """Take any order, and let its action change like this while it is watched."""
        self.answer("POST /api/v1/actions", accepted, status=202)
        self.answer(f"GET /api/v1/actions/{accepted.id}/watch", *changes)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
