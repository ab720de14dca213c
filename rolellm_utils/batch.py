"""The Batch API way to ask (OpenAI): half the price, an answer within a day. Same store, same replies, same re-asks.

Requests are written to a file, the file is uploaded, a batch is made of it, polled, and its lines are collected. Every
step is in the store before the next one, and the requests of a batch stay claimed by it: a run that was killed takes
up its batches where they are, wherever it was killed.
"""

import asyncio
import json
import os
import secrets
import tempfile
from copy import copy
from datetime import UTC, datetime, timedelta

from tqdm import tqdm

from rolellm_utils import pricing
from rolellm_utils.records import InputError
from rolellm_utils.store import BudgetReached, is_dead, now
from rolellm_utils.wire import BLOCKED, Failed, Refused, blocked, completion, failure

MOST_REQUESTS, MOST_BYTES = 50_000, 150_000_000  # of one batch; OpenAI takes 200 MB
POLL = 30.0  # seconds
SENDING = timedelta(hours=1)  # the longest that writing and uploading a batch may take
FOREVER = 10 * 365 * 86_400.0  # the claim of a batch ends when it is collected
LOST_ROUNDS = 3  # rounds that bring nothing, one after another, before we give up
OVER = ("completed", "failed", "expired", "cancelled")


async def ask_all(teacher, requests, title=""):
    """The replies to all requests in their order, once the batches that they take are collected.

    Raises InputError when a batch fails at the server, and when `max_usd` lets nothing more be sent.
    """
    order, lost = [], 0  # order: (key, n, role); the requests themselves are in the store
    client = teacher.live.client(max_retries=teacher.live.tries)
    try:
        with tqdm(desc=title, unit="reply", leave=False) as bar:
            await _settle(teacher, client, bar)
            todo = _noted(teacher, requests, order)
            while True:
                sent = await _submit(teacher, client, todo)
                kept = await _settle(teacher, client, bar)
                left = [entry for entry in order if teacher.missing(entry[0], entry[1])[1]]
                if not left:
                    break
                lost = lost + 1 if sent and not kept else 0
                if lost == LOST_ROUNDS:
                    raise InputError(
                        f"{len(left)} requests of {teacher.stage} came back {LOST_ROUNDS} times without an answer; "
                        "look at the batches at the server, then run again: nothing is lost"
                    )
                if not sent and not kept:
                    _check_elsewhere(teacher, left)
                    await asyncio.sleep(POLL)  # another process has them in hand
                todo = ((key, teacher.restored(key, n, role)) for key, n, role in left)
    finally:
        await client.close()
    for position, (key, n, _) in enumerate(order):
        yield teacher.reply(key, n).model_copy(update={"position": position})


def _check_elsewhere(teacher, left):
    """InputError when a batch at another address holds what is left: it would never be collected here."""
    open_here = {f"batch/{row['token']}" for row in teacher.store.open_batches(teacher.base_url)}
    for key, *_ in left:
        for claim in teacher.store.claims_of(key):
            if claim["owner"].startswith("batch/") and claim["owner"] not in open_here:
                there = teacher.store.address(claim["owner"].removeprefix("batch/"))
                raise InputError(
                    f"a batch at {there or 'an unknown address'} holds requests of {teacher.stage}; set teacher_url to "
                    "that to collect it"
                )


def _noted(teacher, requests, order):
    """The requests with their keys, one by one, each noted in `order`."""
    for request in requests:
        key = teacher.key(request)
        if teacher.missing(key, request.n)[1]:
            teacher.may_ask(key, request.role)
        order.append((key, request.n, request.role))
        yield key, request


async def _submit(teacher, client, todo):
    """Send what is missing of `todo` in as few batches as can be; how many requests were sent."""
    sent, broke, writing = 0, None, None
    try:
        for key, request in todo:
            stored, groups = teacher.missing(key, request.n)
            if not groups:
                continue
            writing = writing or _Writing(teacher)
            lines, most = _lines(teacher, key, request, groups)
            try:
                mine = not broke and writing.claim(key, request, stored, most)
            except BudgetReached as error:
                mine, broke = False, error  # the others wait for a later round, if what was sent leaves room
            if mine:
                writing.add(lines)
                sent += 1
            else:
                teacher.store.note(key, teacher.plain(request))
            if writing.count >= MOST_REQUESTS or writing.size >= MOST_BYTES:
                await writing.send(client)
                writing = None
        if writing:
            await writing.send(client)
    except BaseException:
        if writing:
            writing.leave()
        raise
    if broke and not sent and not teacher.store.open_batches(teacher.base_url, teacher.run):
        raise broke
    return sent


def _lines(teacher, key, request, groups):
    """The lines of a batch file for what is missing of a request, and the most that they can cost in USD."""
    lines, most = [], 0.0
    apart = "n" in teacher.live.server.lacks
    for attempt, before, samples in groups:
        for some in [[sample] for sample in samples] if apart else [samples]:
            body = teacher.live.server.body(teacher.model, request, some, attempt, before, teacher.live.language)
            most += teacher.live.most_usd(body, len(some) * request.max_tokens)
            name = f"{key[:40]}-{attempt}-{some[0]}-{len(some)}"
            lines.append({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})
    return lines, most


class _Writing:
    """A batch in the making: its row in the store, its claims' owner, its file."""

    def __init__(self, teacher):
        self.teacher, self.count, self.size = teacher, 0, 0
        self.row = {
            "token": secrets.token_hex(8), "base_url": teacher.base_url, "model": teacher.model, "state": "writing",
            "created": now(), "owner": teacher.store.owner, "run": teacher.run, "stage": teacher.stage,
        }  # fmt: skip
        self.owner = f"batch/{self.row['token']}"
        teacher.store.write_batch(self.row)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is sent

    def claim(self, key, request, stored, most):
        """True when the batch may ask a request that costs `most` USD at most at the full price."""
        usd, labels = pricing.price_list()["batch"] * most, self.teacher.live.labels(request)
        plain, limit = self.teacher.plain(request), self.teacher.live.max_usd
        return self.teacher.store.claim(key, stored, FOREVER, usd, labels, limit, self.owner, plain) == "mine"

    def add(self, lines):
        for line in lines:
            self.size += self.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self.count += 1

    def leave(self):
        """Leave the batch to whoever looks at it next: it is sent, or it never came to be."""
        if self.teacher.store.claims(self.owner):
            self.teacher.store.write_batch(self.row | {"owner": ""})

    async def send(self, client):
        """Upload and start the batch. On failure its claims are free again, unless it may have come to be."""
        store, row = self.teacher.store, self.row
        try:
            with self.file as file:
                if not self.count:
                    return store.end_batch(row)
                file.seek(0)
                uploaded = await client.files.create(file=("requests.jsonl", file), purpose="batch")
            row["file_id"] = uploaded.id
            row["batch_id"] = await _create(self.teacher, client, row["token"], uploaded.id)
        except Exception as error:
            problem = _problem(error)
            if isinstance(problem, Refused) and problem.status in (404, 405):
                store.end_batch(row)
                raise InputError(
                    f"teacher_url {self.teacher.base_url} has no Batch API; set teacher_batch to false"
                ) from None
            if "file_id" not in row or not isinstance(problem, Failed):
                store.end_batch(row)
            raise self.teacher.live.unreachable(problem) if problem else error from None
        store.write_batch(row | {"state": "sent"})


async def _create(teacher, client, token, file_id):
    """The id of the batch made of an uploaded file; made once, even if the answer to the first try is lost."""
    for tried in range(teacher.live.tries):
        if tried and (batch := await _find(client, token)):
            return batch.id
        try:
            batch = await client.with_options(max_retries=0).batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"rolellm": token},
            )
            return batch.id
        except Exception as error:
            problem = _problem(error)
            if not isinstance(problem, Failed) or tried + 1 == teacher.live.tries:
                raise
            await asyncio.sleep(teacher.live.pace.after(problem, tried))


async def _find(client, token):
    """The batch at the server that carries our token, or None: among the latest thousand, which it lists first."""
    number = 0
    async for batch in client.batches.list(limit=100):
        if (batch.metadata or {}).get("rolellm") == token:
            return batch
        number += 1
        if number == 1000:
            break
    return None


def _problem(error):
    """The client's exception as Failed or Refused; None for an exception of another kind."""
    import httpx2
    import openai

    if isinstance(error, httpx2.HTTPError):  # a download that breaks off
        return Failed("breaks off")
    return failure(error) if isinstance(error, openai.OpenAIError) else None


async def _settle(teacher, client, bar):
    """Wait for the run's batches at this server and collect them; how many replies are new.

    Batches of other runs are collected as well if they happen to be over: they may hold the same questions.
    """
    kept, refused = 0, []
    while batches := teacher.store.open_batches(teacher.base_url):
        waiting = 0
        for row in map(dict, batches):
            state = await _look(teacher, client, row, bar)
            if state is None:
                waiting += row["run"] == teacher.run
            else:
                kept += state[0]
                refused += state[1]
        if not waiting:
            break
        await asyncio.sleep(POLL)
    if refused:
        raise teacher.live.unreachable(refused[0])
    return kept


async def _look(teacher, client, row, bar):
    """None for a batch that is not over; else (new replies, refusals) after its lines are stored."""
    import openai

    try:
        if not row["batch_id"]:
            if _is_sending(row, teacher.store.owner):
                return None
            if not (found := await _find(client, row["token"])):
                teacher.store.end_batch(row)  # it never came to be: its requests are free again
                return 0, []
            row |= {"batch_id": found.id, "state": "sent"}
            teacher.store.write_batch(row)
        try:
            batch = await client.batches.retrieve(row["batch_id"])
        except openai.NotFoundError:
            # Deleted, or of another project: what it may have cost is counted.
            teacher.store.end_batch(row, "its batch is gone from the server")
            return 0, []
        counts = batch.request_counts
        bar.set_postfix_str(f"batch {batch.status}" + (f" {counts.completed}/{counts.total}" if counts else ""))
        if batch.status not in OVER:
            return None
        if batch.status == "failed":
            teacher.store.end_batch(row)
            if row["run"] != teacher.run:
                return 0, []
            code = next((error.code for error in (batch.errors.data if batch.errors else []) or []), "no reason given")
            raise InputError(
                f"the server has failed batch {batch.id} of {row['stage']} ({code}); mend that and run again: nothing "
                "is lost"
            )
        found = await _collect(teacher, client, row, batch, bar)
        if row["run"] != teacher.run:
            return found[0], []
        if batch.status == "cancelled":
            raise InputError(
                f"batch {batch.id} of {row['stage']} was cancelled at the server; what it had answered is stored: run "
                "again to ask for the rest"
            )
        return found
    except Exception as error:
        problem = _problem(error)
        raise teacher.live.unreachable(problem) if problem else error from None


def _is_sending(row, owner):
    """True when the process that writes a batch is about to send it; after an hour nobody is."""
    began = datetime.strptime(row["created"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return row["owner"] not in ("", owner) and not is_dead(row["owner"]) and datetime.now(UTC) - began < SENDING


async def _collect(teacher, client, row, batch, bar):
    """(new replies, refusals) of a batch that is over: every line stored, then its claims ended."""
    held = {claim["key"][:40]: claim for claim in teacher.store.claims(f"batch/{row['token']}")}
    asked = copy(teacher.live.server)  # what it did without when the lines were written
    asked.lacks = set(asked.lacks)
    kept, refused = 0, []
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        with tempfile.NamedTemporaryFile(delete=False) as file:
            path = file.name
        try:
            async with client.files.with_streaming_response.content(file_id) as content:
                await content.stream_to_file(path)
            with open(path, "rb") as lines:
                for line in lines:
                    new, problem = _keep(teacher, asked, held, line)
                    kept += new
                    bar.update(new)
                    refused += [problem] if problem else []
        finally:
            os.unlink(path)
    teacher.store.end_batch(row)
    return kept, refused


def _keep(teacher, asked, held, line):
    """(new replies, refusal or None) of a line of a batch's output, which may come in any order, and twice."""
    try:
        found = json.loads(line)
        prefix, attempt, first, count = found["custom_id"].split("-")
        claim, response = held[prefix], found["response"] or {}
        samples = range(int(first), int(first) + int(count))
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0, None  # no line of ours; what it answered stays open and is asked again
    request = teacher.restored(claim["key"], len(samples), claim["role"])
    try:
        body = asked.body(teacher.model, request, samples, 0, None, teacher.live.language)
        answer = _answer(teacher, response, body, len(samples))
    except Failed:
        return 0, None
    except Refused as problem:
        return 0, problem
    if answer is None:
        return 0, None
    share = pricing.price_list()["batch"]
    labels = {name: claim[name] for name in ("model", "run", "stage", "role")}
    rows = teacher.live.rows(claim["key"], request, int(attempt), list(samples), answer, labels, share=share)
    new = teacher.store.add(rows)
    if new:
        teacher.live.noticed(request, answer, rows, len(samples))
    return new, None


def _answer(teacher, response, body, n):
    """The completion in a line's response to a request body; None to ask again, Refused when that is no use."""
    status, found = response.get("status_code"), response.get("body") or {}
    if status == 200:
        return completion(json.dumps(found))
    error = found.get("error") or {}
    code = str(error.get("code") or "")
    if code in BLOCKED:
        return blocked(code, n)
    if status is None or status == 429 or status >= 500:
        return None
    refused = Refused(status, str(error.get("message")), error.get("param"), code)
    if teacher.live.learnt(refused, body):
        return None
    raise refused
