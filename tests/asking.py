"""Asking a teacher from tests: requests, all replies, and a job in a process of its own that can be killed."""

import asyncio
import json
import os
import subprocess
import sys

from rolellm_utils.files import ROOT
from rolellm_utils.teacher import Request, Teacher

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string", "maxLength": 400}}, "required": ["answer"],
          "additionalProperties": False}  # fmt: skip
JOB = """
import asyncio, json, sys
from rolellm_utils import batch, live
from tests.asking import question
from rolellm_utils.teacher import Teacher
options = json.loads(sys.argv[1])
live.POLL = batch.POLL = 0.05
kind = {"json_schema": options["schema"]} if options["schema"] else {}
teacher = Teacher("scripted", options["url"], options["store"], run="job", stage="s", **options["teacher"])
async def main():
    requests = (question(f"问 {i}", n=options["n"], role=f"R{i % 3}", **kind) for i in range(options["count"]))
    return [[reply.position, reply.texts, reply.statuses] async for reply in teacher.ask_all(requests)]
# Printed at the end: nobody reads a full pipe while the test waits for the server.
for line in asyncio.run(main()):
    print(json.dumps(line, ensure_ascii=False))
print(json.dumps(dict(teacher.used)), flush=True)
teacher.close()
"""


def question(text, **options):
    """A request of one user message."""
    return Request(messages=[{"role": "user", "content": text}], **options)


async def gather(teacher, requests, **options):
    return [reply async for reply in teacher.ask_all(requests, **options)]


def ask(teacher, requests, **options):
    """All replies; the teacher is closed."""
    try:
        return asyncio.run(gather(teacher, requests, **options))
    finally:
        teacher.close()


def teacher_of(server, tmp_path, **options):
    """A teacher before a fault server, its store in the test's folder."""
    return Teacher("scripted", server.url, tmp_path / "t.sqlite", **({"run": "job", "stage": "s"} | options))


async def until(server, condition):
    """Wait until the server's stats fulfil a condition; a loaded machine may take its time."""
    while not condition(await asyncio.to_thread(server.stats)):
        await asyncio.sleep(0.02)


def job(server, tmp_path, count, n=1, schema=None, env=(), **teacher):
    """A process that asks `count` requests and prints a line a reply."""
    options = {"url": server.url, "store": str(tmp_path / "t.sqlite"), "count": count, "n": n, "schema": schema,
               "teacher": teacher}  # fmt: skip
    environment = os.environ | {"OPENAI_API_KEY": "sk-secret-of-the-test-0123456789"} | dict(env)
    environment.pop("ROLELLM_REPLAY", None)
    return subprocess.Popen([sys.executable, "-c", JOB, json.dumps(options)], cwd=ROOT, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
