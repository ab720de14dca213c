"""An OpenAI-compatible server in a process of its own that is slow, refuses, breaks off and bills as it is told.

    with serve(latency=0.2, faults=0.05) as server: ... server.url, server.stats(), server.configure(faults=0)

Chat completions, models, files and batches, on loopback. The same question with the same seed always gets the same
answer, whose text names question, seed and sample. It counts what it has sent whole ("paid") and bills all it has
worked on, broken off or not.
"""

import argparse
import asyncio
import hashlib
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from functools import cache

from rolellm_utils.files import ROOT

KINDS = ("429", "500", "reset", "truncated", "broken", "hang", "wrong", "empty", "cut_off")
BROKEN = ("reset", "truncated", "broken", "hang")  # billed, and never received
DEFAULTS = {
    "latency": 0.0,  # seconds before an answer
    "faults": 0.0,  # share of answers with a fault, of these kinds, drawn in turn by a seeded generator
    "kinds": list(KINDS),
    "hang": 1.0,  # seconds that a hanging request stays open
    "retry_after": "0.05",
    "status": 0,  # answer everything with this status
    "error": {},  # its error object
    "n": "yes",  # yes, ignored, refused
    "schema": "yes",  # yes, ignored, refused
    "seed": "yes",  # yes, refused
    "max_tokens": "yes",  # yes, refused: wants max_completion_tokens
    "rate": 0,  # requests a second; 429 above
    "odd": "",  # surrogate (half a character), list (pieces instead of a text)
    "usage": "all",  # all, one (of n answers), none
    "words": 12,  # words of an answer
    "tokenizer": "words",  # words, a vocabulary of OpenAI's, or a tokenizer.json
    "input": 0.0,  # US dollars per million tokens
    "output": 0.0,
    "batch_seconds": 0.0,
    "batch_failures": 0.0,  # share of lines that go to the error file, the first time
    "batch_gone": False,  # no batch is known any more
    "batch_cancelled": False,  # batches that end were cancelled, half done
    "batch_fails": "",  # fail batches with this code
    "batch_shuffle": True,  # lines out of order, every tenth twice
}


def mark(question, seed, sample):
    """The name of an answer."""
    return hashlib.sha256(f"{question}|{seed}|{sample}".encode()).hexdigest()[:10]


def answer(body, sample, words=12):
    """The text of one sample: JSON where a schema is sent, in the schema's form."""
    question = body["messages"][-1]["content"]
    name = mark(question, body.get("seed"), sample)
    text = " ".join([f"答{name}", *["word"] * (words - 1)])
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    asked_in_words = "JSON schema" in question
    return json.dumps({"answer": text}, ensure_ascii=False) if schema or asked_in_words else text


@cache
def tokenizer(name):
    """A function that counts tokens: by a vocabulary of OpenAI's, or by a tokenizer.json."""
    if not name.endswith(".json"):
        import bpe_openai

        encoding = bpe_openai.get_encoding(name)
        return lambda text: len(encoding.encode_ordinary(text))
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(name)
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


class Refusal(Exception):
    """An HTTP status with an error object."""


class Server:
    def __init__(self, options):
        self.options = DEFAULTS | options
        self.random = random.Random(0)
        self.paid, self.counts, self.usd, self.in_flight, self.most_in_flight = Counter(), Counter(), 0.0, 0, 0
        self.windows = Counter()
        self.headers, self.bodies, self.arrivals = set(), [], []
        self.files, self.batches, self.failed_lines = {}, {}, set()

    def count(self, text):
        if self.options["tokenizer"] == "words":
            return len(text.split())
        return tokenizer(self.options["tokenizer"])(text)

    def complete(self, body, fault="", share=1.0):
        """The chat completion for a body; counted and billed."""
        option = self.options
        asked = body.get("n") or 1
        if option["n"] == "refused" and asked > 1:
            raise Refusal(400, {"message": "only n = 1 is supported", "param": "n"})
        if option["schema"] == "refused" and "response_format" in body:
            raise Refusal(400, {"message": "response_format of this type is not available"})
        if option["seed"] == "refused" and "seed" in body:
            raise Refusal(422, {"message": "extra fields not permitted: seed"})
        if option["max_tokens"] == "refused" and "max_tokens" in body:
            words = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            raise Refusal(400, {"message": words, "param": "max_tokens"})
        asked = 1 if option["n"] == "ignored" else asked
        shaped = {k: v for k, v in body.items() if k != "response_format"} if option["schema"] == "ignored" else body
        texts = [answer(shaped, sample, option["words"]) for sample in range(asked)]
        if fault in ("wrong", "empty"):
            texts = [{"wrong": '{"other": 1', "empty": ""}[fault]] * asked
        if option["odd"]:
            texts = [
                {"surrogate": f"{text} \ud83d", "list": [{"type": "text", "text": text}]}[option["odd"]]
                for text in texts
            ]
        reason = "length" if fault == "cut_off" else "stop"
        choices = [
            {"index": i, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
            for i, text in enumerate(texts)
        ]
        # As OpenAI's cookbook counts: three a message and its role, three for the answer to come.
        prompt = 3 + sum(3 + self.count(m["role"]) + self.count(m["content"]) for m in body["messages"])
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or 10**9
        tokens = [min(limit, self.count(str(text))) for text in texts]
        self.usd += share * (prompt * option["input"] + sum(tokens) * option["output"]) / 1e6
        if fault not in BROKEN:
            self.paid[f"{body['messages'][-1]['content']}|{body.get('seed')}"] += 1
        shown = {"all": sum(tokens), "one": tokens[0]}.get(option["usage"])
        usage = {"prompt_tokens": prompt, "completion_tokens": shown, "total_tokens": prompt + (shown or 0)}
        return {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": choices,
                **({"usage": usage} if shown is not None else {})}  # fmt: skip

    def stats(self):
        return {"paid": dict(self.paid), "counts": dict(self.counts), "usd": self.usd, "bodies": self.bodies[-2000:],
                "headers": sorted(self.headers), "arrivals": self.arrivals[-2000:], "most": self.most_in_flight,
                "batches": len(self.batches)}  # fmt: skip

    async def serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if line)}
                data = await reader.readexactly(int(headers.get("content-length", 0)))
                if headers.get("transfer-encoding") == "chunked":
                    while size := int(await reader.readline(), 16):
                        data += await reader.readexactly(size)
                        await reader.readline()
                    await reader.readline()
                if not await self.respond(method, path, headers, data, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def respond(self, method, path, headers, data, writer):
        """True when the connection stays open."""
        if path == "/configure":
            self.options.update(json.loads(data))
            return self.send(writer, 200, {})
        if path == "/stats":
            return self.send(writer, 200, self.stats())
        self.headers.add(headers.get("authorization", ""))
        self.counts[f"{method} {path.split('?')[0].split('/')[2]}"] += 1
        try:
            if self.options["status"]:
                raise Refusal(self.options["status"], self.options["error"])
            if path == "/v1/chat/completions":
                return await self.chat(json.loads(data), writer)
            return self.send(writer, 200, self.other(method, path.split("?")[0], headers, data))
        except Refusal as refusal:
            status, error = refusal.args
            more = {"Retry-After": self.options["retry_after"]} if status == 429 else {}
            return self.send(writer, status, {"error": {"type": "x", **error}}, more)

    async def chat(self, body, writer):
        self.bodies.append(body)
        self.arrivals.append(time.time())
        second = int(time.time() * 2)  # half a second
        self.windows[second] += 1
        if self.options["rate"] and self.windows[second] > self.options["rate"] / 2:
            raise Refusal(429, {"message": "rate limit reached"})
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        fault = self.random.choice(self.options["kinds"]) if self.random.random() < self.options["faults"] else ""
        self.counts[fault or "good"] += 1
        try:
            await asyncio.sleep(self.options["latency"])
            if fault in ("429", "500"):
                raise Refusal(int(fault), {"message": "come back later"})
            if fault in ("reset", "hang"):
                self.complete(body, fault)
                await asyncio.sleep(self.options["hang"] if fault == "hang" else 0)
                writer.transport.abort()
                return False
            reply = json.dumps(self.complete(body, fault), ensure_ascii=bool(self.options["odd"])).encode()
            if fault == "truncated":
                reply = reply[: len(reply) // 2]
            if fault == "broken":
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n" + reply
                )
                await writer.drain()
                return False
            return self.send(writer, 200, reply)
        finally:
            self.in_flight -= 1

    def send(self, writer, status, value, headers=()):
        data = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
        more = "".join(f"{name}: {text}\r\n" for name, text in dict(headers).items())
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{more}\r\n"
        writer.write(head.encode() + data)
        return True

    def other(self, method, path, headers, data):
        """Models, files and batches."""
        parts = path.split("/")[2:]
        if parts == ["models"]:
            return {"object": "list", "data": [{"id": "scripted", "object": "model", "created": 0, "owned_by": "t"}]}
        if parts == ["files"]:
            name = f"file-{len(self.files)}"
            boundary = b"--" + headers["content-type"].split("boundary=")[1].encode()
            part = next(part for part in data.split(boundary) if b'name="file"' in part)
            self.files[name] = part.split(b"\r\n\r\n", 1)[1][:-2]
            return {"id": name, "object": "file", "bytes": len(data), "created_at": int(time.time()),
                    "filename": "x", "purpose": "batch", "status": "processed"}  # fmt: skip
        if parts[0] == "files":
            return self.files[parts[1]]
        if parts == ["batches"] and method == "POST":
            asked = json.loads(data)
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {
                "id": name, "object": "batch", "endpoint": asked["endpoint"], "created_at": time.time(),
                "input_file_id": asked["input_file_id"], "completion_window": "24h", "status": "in_progress",
                "metadata": asked.get("metadata"),
            }  # fmt: skip
            return self.batch(name)
        if parts == ["batches"]:
            found = [self.batch(name) for name in reversed(self.batches)]
            return {"object": "list", "data": found, "has_more": False}
        if self.options["batch_gone"]:
            raise Refusal(404, {"message": "no such batch"})
        return self.batch(parts[1])

    def batch(self, name):
        batch = self.batches[name]
        if batch["status"] == "in_progress" and self.options["batch_fails"]:
            batch["status"] = "failed"
            batch["errors"] = {"object": "list", "data": [{"code": self.options["batch_fails"], "message": "m"}]}
        if batch["status"] == "in_progress" and time.time() >= batch["created_at"] + self.options["batch_seconds"]:
            self.work(batch)
        return batch | {"created_at": int(batch["created_at"])}

    def work(self, batch):
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].decode().splitlines():
            asked = json.loads(line)
            name = f"{asked['body']['messages'][-1]['content']}|{asked['body'].get('seed')}"
            fails = name not in self.failed_lines and self.random.random() < self.options["batch_failures"]
            if fails:
                self.failed_lines.add(name)
                status, body = 500, {"error": {"message": "the server had an error"}}
            else:
                try:
                    status, body = 200, self.complete(asked["body"], share=0.5)
                except Refusal as refusal:
                    fails, (status, error) = True, refusal.args
                    body = {"error": error}
            row = {"id": "r", "custom_id": asked["custom_id"], "error": None,
                   "response": {"status_code": status, "request_id": "r", "body": body}}  # fmt: skip
            (bad if fails else good).append(json.dumps(row, ensure_ascii=False))
        if self.options["batch_shuffle"]:
            self.random.shuffle(good)
            good += good[::10]
        batch["status"] = "cancelled" if self.options["batch_cancelled"] else "completed"
        good = good[: len(good) // 2] if self.options["batch_cancelled"] else good
        for kind, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[kind] = f"file-{len(self.files)}"
                self.files[batch[kind]] = "\n".join(rows).encode() + b"\n"


class Handle:
    """A running server: `url`, `stats()`, `configure(...)`."""

    def __init__(self, port):
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"

    def stats(self):
        """What it has been asked and has sent."""
        return json.load(urllib.request.urlopen(f"{self.root}/stats"))

    def configure(self, **options):
        """Change its behaviour."""
        urllib.request.urlopen(f"{self.root}/configure", json.dumps(options).encode()).read()


@contextmanager
def serve(**options):
    """The Handle of a server process while the block runs."""
    command = [sys.executable, "-m", "tests.fault_server", json.dumps(options)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield Handle(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def main(options):
    server = Server(options)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=2**26, backlog=1024)
    print(listening.sockets[0].getsockname()[1], flush=True)
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("options", type=json.loads)
    asyncio.run(main(parser.parse_args().options))
