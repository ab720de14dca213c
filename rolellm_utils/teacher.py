"""The one door to any language model: OpenAI's chat protocol, with every reply on disk before it is returned.

A request is looked up in three places, in this order: the recorded replies that ship with the kit (`replay`), the
store of all runs (`outputs/teacher.sqlite`, cache and ledger in one), the live server. Only the last one costs.
A reply that cannot be used is stored as such and asked again, at most `reasks` times, with what was wrong.
"""

import asyncio
import hashlib
import json
import os
from collections import deque
from pathlib import Path

from tqdm import tqdm

from rolellm_utils import batch as batch_api
from rolellm_utils import embedded, pricing
from rolellm_utils.live import Live, api_key
from rolellm_utils.pace import Pace
from rolellm_utils.records import InputError, Reply, Request
from rolellm_utils.store import Store, read_recorded
from rolellm_utils.wire import OK, STATUSES, failure, parse_json

__all__ = ["Reply", "Request", "Teacher", "parse_json"]

RECORDED = Path(__file__).with_name("starter") / "replies.jsonl"
WINDOW = 256  # requests looked at together: a slow one at the head must not leave the slots idle


class Teacher:
    """A language model to ask: `await teacher.ask(request)`, `async for reply in teacher.ask_all(requests)`.

    model: its name at the server; one name is taken to mean one model, wherever it runs.
    base_url: an OpenAI-compatible address, or "embedded" for the model in the kit, which is started at the first
    request that needs it. store: the SQLite file shared by all runs.
    replay: True reads the recorded replies of the kit first.
    in_flight: requests at once. requests_per_minute, tokens_per_minute: 0 is no limit; each process keeps its own.
    reasks: how often a reply that is invalid, empty, refused or cut off is asked again.
    max_usd: what the run may cost in all, never exceeded; 0 is no limit. batch: True asks through the Batch API.
    timeout: seconds for one try; tries: how many, before a failing server ends the stage.
    The key comes from OPENAI_API_KEY and goes nowhere else. Raises InputError for a combination that cannot work.
    """

    def __init__(
        self,
        model,
        base_url="embedded",
        store=None,
        *,
        replay=False,
        language="en",
        run="",
        stage="",
        in_flight=8,
        requests_per_minute=0,
        tokens_per_minute=0,
        reasks=1,
        max_usd=0.0,
        batch=False,
        timeout=600.0,
        tries=8,
    ):
        _check(model, base_url, language, reasks, max_usd, batch)
        base_url = base_url.rstrip("/")  # batches are looked up by it
        self.model, self.base_url, self.run, self.stage = model, base_url, run, stage
        self.in_flight, self.reasks, self.batch = in_flight, reasks, batch
        # Tests set ROLELLM_REPLAY to "only", recording sets it to "off"; users leave it alone.
        mode = os.environ.get("ROLELLM_REPLAY", "") if replay else "off"
        self.replay_only = mode == "only"
        self.recorded = {} if mode == "off" else read_recorded(RECORDED)
        self.store = Store(store)
        self.live = Live(
            model, base_url, language, run, stage, self.store, Pace(requests_per_minute, tokens_per_minute),
            in_flight=in_flight, max_usd=max_usd, timeout=timeout, tries=tries,
        )  # fmt: skip
        self.used = self.live.used
        self._locks = {}

    @classmethod
    def of(cls, stage, model=None, base_url=None):
        """The Teacher that the parameters of a stage describe, or another served model asked in the same way."""
        names = ("replay", "language", "run", "in_flight", "requests_per_minute", "tokens_per_minute", "reasks")
        given = {name: stage.parameters[name] for name in (*names, "max_usd")}
        if model and not base_url:
            raise InputError(f"answer_model is {model!r}, but answer_url is empty; set it to the server that has it")
        model, base_url = model or stage.parameters["teacher_model"], base_url or stage.parameters["teacher_url"]
        return cls(model, base_url, stage=stage.name, batch=stage.parameters["teacher_batch"], **given)

    def key(self, request):
        """The SHA-256 of everything that shapes the answer: model, messages, schema, sampling and seed."""
        return hashlib.sha256(self.plain(request).encode()).hexdigest()

    def plain(self, request):
        """The request with its model as the store keeps it: JSON, without `n` and labels."""
        body = {"model": self.model, **request.model_dump(exclude={"n", "role"})}
        return json.dumps(body, sort_keys=True, ensure_ascii=False)

    def debug(self, request):
        """The exact HTTP request that `request` would send, as text, the key left out; nothing is sent."""
        body = self.live.server.body(self.model, request, range(request.n), 0, None, self.live.language)
        address = "<embedded>/v1" if self.base_url == "embedded" else self.base_url.rstrip("/")
        head = (
            f"POST {address}/chat/completions\nAuthorization: Bearer <OPENAI_API_KEY>\nContent-Type: application/json"
        )
        return f"{head}\n\n{json.dumps(body, ensure_ascii=False, indent=1)}"

    async def ask(self, request):
        """The reply with `request.n` samples; samples that were answered before are never asked again.

        Raises InputError when the server refuses, or fails `tries` times, and when `max_usd` is reached.
        """
        if not self.live.streams:
            self.live.stopped = None
        key = self.key(request)
        # The same question asked twice at once waits for the first answer.
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                stored, groups = self.missing(key, request.n)
                settled = request.n - sum(len(samples) for *_, samples in groups)
                self.used["recorded" if key in self.recorded else "stored"] += settled
                while groups:
                    self.may_ask(key, request.role)
                    await self.live.ask(key, self.plain(request), request, stored, groups[0])
                    stored, groups = self.missing(key, request.n)
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1
        return self.reply(key, request.n)

    async def ask_all(self, requests, title="", ordered=True):
        """The replies to any number of requests, with a progress bar: in their order, or as they come (`position`).

        The requests may be a generator; a few hundred are looked at ahead of the reply that is due, and sent in their
        order, so keep those of one role together: its prompt then is in the server's prefix cache. When an error ends
        it, what is in flight is awaited for a minute and stored; so it is when the caller leaves early, provided the
        stream is closed (`contextlib.aclosing`). Through the Batch API replies come in order.
        """
        if self.batch:
            async for reply in batch_api.ask_all(self, requests, title):
                yield reply
            return
        if not self.live.streams:
            self.live.stopped = None
        self.live.streams += 1
        total = len(requests) if hasattr(requests, "__len__") else None
        waiting, numbered = deque(), enumerate(requests)
        with tqdm(total=total, desc=title, unit="request", leave=False) as bar:
            try:
                while True:
                    for position, request in numbered:
                        waiting.append(asyncio.ensure_future(self._numbered(position, request)))
                        if len(waiting) >= max(WINDOW, 2 * self.in_flight):
                            break
                    if not waiting:
                        break
                    if not ordered:
                        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    done = [waiting[0]] if ordered else [task for task in waiting if task.done()]
                    for task in done:
                        waiting.remove(task)
                        yield await task
                        bar.set_postfix_str(self.meter(), refresh=False)
                        bar.update()
            finally:
                await self._wind_down(waiting)

    async def _numbered(self, position, request):
        return (await self.ask(request)).model_copy(update={"position": position})

    async def _wind_down(self, waiting):
        """Cancel what is not sent, await what is, and close the client when nobody streams any more."""
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        self.live.streams -= 1
        if not self.live.streams:
            await self.live.wind_down()

    def meter(self):
        """What the progress bar says beside its count: cost so far, answers from disk, re-asks."""
        parts = []
        if self.live.price and self.live.price.output:
            limit = f" of {self.live.max_usd:g}" if self.live.max_usd else ""
            parts.append(f"{self.used['usd']:.4f}{limit} USD")
        parts += [f"{self.used[name]} {name}" for name in ("recorded", "stored", "reasked") if self.used[name]]
        return ", ".join(parts)

    def problems(self):
        """One sentence on the samples that cannot be used as they are after all re-asks."""
        bad = [f"{self.used[name]} {name.replace('_', ' ')}" for name in STATUSES if name != OK and self.used[name]]
        return (
            f"of {self.used['samples']} samples {', '.join(bad) or 'none'} cannot be used as they are; "
            f"{self.used['reasked']} were asked again"
        )

    def check(self):
        """None when the server answers and has the model; InputError in one sentence when not. Generates nothing."""
        if self.base_url == "embedded":
            embedded.fetch()
            return
        import openai

        try:
            with openai.OpenAI(base_url=self.base_url, api_key=api_key(), timeout=20, max_retries=1) as client:
                served = [model.id for model in client.models.list()]
        except openai.NotFoundError:
            return  # it answers, but keeps no list of models
        except openai.OpenAIError as error:
            raise self.live.unreachable(failure(error)) from None
        if self.model not in served:
            raise InputError(
                f"teacher_model {self.model!r} is not served at teacher_url {self.base_url}, which has "
                f"{', '.join(served[:8]) or 'no model'}; set teacher_model to one of these"
            )

    def close(self):
        """Stop the embedded server, if this teacher started it, and close the store."""
        self.live.close()
        self.store.close()

    def missing(self, key, n):
        """(how many rows are stored, what is still to be asked): the latter as [(attempt, before, [sample])].

        before: None or (status, reason) of the attempt that could not be used. Nothing is asked beyond `reasks`.
        """
        stored, rows = self._rows(key)
        groups = {}
        for sample in range(n):
            tried = [row for row in rows if row["sample"] == sample]
            if any(row["status"] == OK for row in tried) or len(tried) > self.reasks:
                continue
            before = (tried[-1]["status"], tried[-1]["reason"] or "") if tried else None
            groups.setdefault((len(tried), before), []).append(sample)
        return stored, [(attempt, before, samples) for (attempt, before), samples in groups.items()]

    def _rows(self, key):
        """(how many rows are stored, all rows): the recorded attempts, then those in the store."""
        stored, recorded = self.store.attempts(key), self.recorded.get(key, [])
        known = {(row["sample"], row["attempt"]) for row in recorded}
        return len(stored), [*recorded, *(row for row in stored if (row["sample"], row["attempt"]) not in known)]

    def reply(self, key, n):
        """The Reply from what is stored: of each sample the usable attempt, or else the last one that has a text."""
        rows = self._rows(key)[1]
        chosen = []
        for sample in range(n):
            tried = [row for row in rows if row["sample"] == sample]
            usable = [row for row in tried if row["status"] == OK]
            chosen.append((usable or [row for row in tried if row["text"].strip()][-1:] or tried)[0])
            self.used["reasked"] += len(tried) > 1
        self.used.update(row["status"] for row in chosen if row["status"] != OK)
        self.used.update({"requests": 1, "samples": n})
        return Reply(
            key=key,
            texts=[row["text"] for row in chosen],
            statuses=[row["status"] for row in chosen],
        )

    def restored(self, key, n, role):
        """A Request as the store has it."""
        body = self.store.body(key)
        return Request(n=n, role=role or "", **{name: value for name, value in body.items() if name != "model"})

    def may_ask(self, key, role):
        """None when requests may be sent; InputError where only recorded replies are allowed."""
        if self.replay_only:
            raise InputError(
                f"the recorded replies hold no answer for request {key[:12]} of {self.stage}, role {role!r}; "
                "record them again with `make notebooks`"
            )


def _check(model, base_url, language, reasks, max_usd, batch):
    """None for a teacher that can work; InputError otherwise."""
    if base_url == "embedded" and language != "en":
        raise InputError(
            f"language is {language!r}, but the embedded model knows English only; set teacher_url and "
            "teacher_model to an OpenAI-compatible server"
        )
    if base_url == "embedded" and model != embedded.NAME:
        # Its answers would be stored under the other model's name.
        raise InputError(
            f"teacher_model is {model!r}, but teacher_url is 'embedded', which serves {embedded.NAME} only; "
            "set teacher_url to the server that has it"
        )
    if base_url != "embedded" and not base_url.startswith(("http://", "https://")):
        raise InputError(f"teacher_url is {base_url!r}; write it with http:// or https://, as http://localhost:8000/v1")
    if not api_key().isascii():
        raise InputError("OPENAI_API_KEY holds a character that no key has; set it anew")
    if "@" in base_url:
        raise InputError("teacher_url holds a name or password; leave it out and set OPENAI_API_KEY instead")
    if reasks > 9:
        raise InputError(f"reasks is {reasks}; more than 9 are not kept apart: lower it")
    if max_usd and not pricing.price_of(model):
        raise InputError(
            f"max_usd is {max_usd:g}, but no price is known for teacher_model {model!r}; add it to "
            "rolellm_utils/prices.yaml, or name a price file in ROLELLM_PRICES"
        )
    if batch and base_url == "embedded":
        raise InputError("teacher_batch is true, but the embedded model has no Batch API; set it to false")
