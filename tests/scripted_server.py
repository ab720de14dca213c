"""An OpenAI-compatible server on loopback that answers by rule, counts what it is asked and can be slow.

A teacher for tests: the same question always gets the same answer, in the language of the question, shaped by the
JSON schema when one is sent.
"""

import hashlib
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Log:
    """What a server was asked: `asked` request bodies, `keys` the Authorization headers; `delay` in seconds."""

    def __init__(self, delay=0.0, status=200):
        self.asked, self.keys, self.delay, self.status = [], [], delay, status


def answer(body, sample):
    """The text for one sample of a request body."""
    question = body["messages"][-1]["content"]
    mark = hashlib.sha256(f"{question}{body.get('seed')}{sample}".encode()).hexdigest()[:6]
    chinese = any("\u4e00" <= char <= "\u9fff" for char in question)
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema and "description" in schema["properties"]:
        text = (
            "你是一个撑了多年船的人，说话慢，心里亮。"
            if chinese
            else "You are a keeper of lamps who counts every hour."
        )
        return json.dumps({"description": text, "catchphrases": ["未曾说过的话"]}, ensure_ascii=False)
    if schema:
        words = f"{mark}号船上发生了什么事？" if chinese else f"What happened to boat {mark} that night?"
        reply = f"{mark}号船平安靠了岸，我亲眼看见的。" if chinese else f"Boat {mark} came home, I saw it."
        level = {"completeness": "High", "factualness": "High", "rationale": "clear"}
        return json.dumps({"triplets": [{"question": words, **level, "answer": reply}]}, ensure_ascii=False)
    return f"我说第{mark}句，水又跑不了。" if chinese else f"I say {mark}, and that is that."


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.log.keys.append(self.headers.get("Authorization"))
        self.reply({"object": "list", "data": [{"id": "scripted", "object": "model", "created": 0, "owned_by": "t"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.log.delay)
        self.server.log.asked.append(body)
        choices = [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": answer(body, i)}}
            for i in range(body.get("n") or 1)
        ]
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        self.reply({"id": "x", "object": "chat.completion", "created": 0, "model": "scripted", "choices": choices,
                    "usage": usage})  # fmt: skip

    def reply(self, value):
        if self.server.log.status != 200:
            value = {"error": {"message": f"Incorrect API key: {self.headers.get('Authorization')}", "type": "x"}}
        data = json.dumps(value).encode()
        self.send_response(self.server.log.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve(delay=0.0, status=200):
    """(base URL, Log) of a scripted server while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.log = Log(delay, status)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", server.log
    finally:
        server.shutdown()
        server.server_close()
