"""Speed and memory of the teacher beside the bare `openai` client, against a server on loopback in its own process.

    python tests/benchmarks/teacher_load.py [speed] [memory] [replay]

speed: 5,000 requests, 64 in flight, 200 ms until an answer, three times in turn: the bare client (AsyncOpenAI, a
semaphore, nothing kept) and the teacher (every reply validated and on disk before it is returned). Requests a second,
and the ratio of each turn; 320 would be the arithmetic limit. memory: resident memory while 100,000 requests stream
through a generator, beyond what 2,000 had taken. replay: 10,000 stored replies, read again. Takes about ten minutes,
most of it for memory. On a busy machine trust the ratios.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from rolellm_utils.teacher import Request, Teacher  # noqa: E402
from tests import fault_server  # noqa: E402

PROMPT = "A line of a script that somebody says to somebody else, one of many. " * 20


def request(number, mark):
    return Request(messages=[{"role": "user", "content": f"{mark} {number}: {PROMPT}"}], role=f"R{number // 500}")


async def bare(url, count, mark):
    import openai

    client, slots = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0), asyncio.Semaphore(64)

    async def one(number):
        asked = request(number, mark)
        async with slots:
            answer = await client.chat.completions.create(
                model="scripted", messages=asked.messages, temperature=0.7, top_p=0.95, max_tokens=200, seed=0
            )
        return answer.choices[0].message.content

    texts = await asyncio.gather(*(one(number) for number in range(count)))
    await client.close()
    return len(set(texts))


async def taught(url, store, count, mark, watch=None):
    teacher = Teacher("scripted", url, store, run="benchmark", stage="s", in_flight=64)
    seen = 0
    async for _ in teacher.ask_all((request(number, mark) for number in range(count)), "teacher"):
        seen += 1
        if watch and seen % 1000 == 0:
            watch(seen)
    assert seen == count and teacher.store._rows("SELECT COUNT(*) AS n FROM replies")[0]["n"] >= count
    teacher.close()


def speed(folder, count=5000):
    ratios = []
    with fault_server.serve(latency=0.2) as server:
        asyncio.run(bare(server.url, 64, "warm"))  # the client's imports
        for turn in range(3):
            started = time.perf_counter()
            assert asyncio.run(bare(server.url, count, f"a{turn}")) == count
            peer = time.perf_counter() - started
            started = time.perf_counter()
            asyncio.run(taught(server.url, folder / f"{turn}.sqlite", count, f"b{turn}"))
            ours = time.perf_counter() - started
            ratios.append(peer / ours)
            print(f"bare client {count / peer:.0f} requests/s, teacher {count / ours:.0f}, ratio {peer / ours:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")


def memory(folder, count=100_000):
    process, marks = psutil.Process(), {}
    with fault_server.serve() as server:
        asyncio.run(
            taught(server.url, folder / "m.sqlite", count, "m", lambda n: marks.update({n: process.memory_info().rss}))
        )
    start, most = marks[2000], max(marks.values())
    grown = (most - start) / 1e6
    print(f"{count:,} requests: {start / 1e6:.0f} MB after 2,000, at most {most / 1e6:.0f} MB: +{grown:.0f} MB")


def replay(folder, count=10_000):
    with fault_server.serve() as server:
        asyncio.run(taught(server.url, folder / "r.sqlite", count, "r"))
        started = time.perf_counter()
        asyncio.run(taught(server.url, folder / "r.sqlite", count, "r"))
        print(f"{count:,} stored replies in {time.perf_counter() - started:.1f} s")
        assert sum(server.stats()["paid"].values()) == count


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for name in sys.argv[1:] or ("speed", "replay", "memory"):
            {"speed": speed, "memory": memory, "replay": replay}[name](Path(temporary))
