"""The doctor's look at endpoints, over a real socket."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from persyn_hf.config import Teacher
from persyn_hf.doctor import check_endpoints


@pytest.fixture
def address():
    class Models(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"object": "list", "data": [{"id": "org/small", "object": "model"}]}).encode()
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_served_model_another_model_and_a_closed_port(address):
    teachers = [
        Teacher(name="right", model="org/small", endpoint=address),
        Teacher(name="wrong", model="org/large", endpoint=address),
        Teacher(name="nobody", model="org/small", endpoint="http://127.0.0.1:9"),
        Teacher(name="half", model="org/small", endpoint=[address, "http://127.0.0.1:9"]),
        Teacher(name="here", model="org/small", backend="local"),
    ]
    findings = check_endpoints(teachers, patience=0.2)
    assert [(finding.topic, finding.state) for finding in findings] == [
        ("endpoint right", "ok"),
        ("endpoint wrong", "fail"),
        ("endpoint nobody", "fail"),
        ("endpoint half", "note"),
    ]
    assert "org/large" in findings[1].message
    assert "127.0.0.1:9" in findings[2].message
