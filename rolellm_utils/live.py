"""The live server behind a teacher: requests are claimed, sent, tried again; answers stored before anyone sees them."""

import asyncio
import logging
import os
import time
from collections import Counter
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from typing import NamedTuple

from rolellm_utils import embedded, pricing
from rolellm_utils.pace import JITTER, LONGEST_OBEYED, LONGEST_WAIT
from rolellm_utils.records import InputError
from rolellm_utils.store import now
from rolellm_utils.wire import BLOCKED, Failed, Refused, Server, blocked, completion, failure, status_of, usage_of

LOG = logging.getLogger("rolellm.teacher")
POLL = 0.5  # seconds between two looks at what another process has asked, or at a budget that is reserved
WIND_DOWN = 60.0  # seconds that an error waits for the answers on their way

WAYS_OUT = {
    400: "the prompt may be too long (lower examples or segment_words), or it lacks what the request uses",
    401: "set OPENAI_API_KEY in the environment",
    402: "its quota is used up: top it up, then run again",
    403: "set an OPENAI_API_KEY that may use this model",
    404: "correct teacher_url or teacher_model",
    413: "lower examples or segment_words",
    422: "it lacks what the request uses: use another server",
    429: "its rate or quota is used up: lower in_flight, set requests_per_minute or wait, then run again",
}
FALLBACKS = {
    "json_schema": "takes no JSON schema: the form is asked for in words",
    "n": "gives one answer a request: samples are asked apart",
    "seed": "takes no seed: it is left out",
    "max_tokens": "wants max_completion_tokens: it gets that",
}


class Wait(NamedTuple):
    """Seconds until the next try, and whether a rate limit is the reason."""

    seconds: float
    limited: bool


class Live:
    """One server and one model, asked for one stage of a run; the parameters are the teacher's."""

    def __init__(self, model, base_url, language, run, stage, store, pace, *, in_flight, max_usd, timeout, tries):
        self.model, self.base_url, self.language, self.run, self.stage = model, base_url, language, run, stage
        self.store, self.pace, self.in_flight, self.max_usd = store, pace, in_flight, max_usd
        self.timeout, self.tries = timeout, tries
        self.server = Server(own=base_url == "embedded")
        self.price = pricing.price_of(model)
        self.used = Counter()
        self._client, self._loop, self._address = None, None, None
        self._open, self._flying, self._posted = ExitStack(), {}, set()
        self.streams = 0  # of the teacher, open now
        self.waited, self._said = False, set()
        self.stopped = None  # the error that ends a stage: nothing is sent after it

    async def ask(self, key, plain, request, stored, group):
        """Ask for a group of samples of a request, (attempt, what was wrong before, samples), and store the answer.

        plain: the request as the store keeps it; stored: how many rows it has there. What is sent is awaited and
        stored even if the caller is cancelled; who asks for it meanwhile waits for that. Returns without an answer,
        after a while, when another process has the request in hand: look again.
        """
        self._start()
        flight = self._flying.get(key)
        if not flight or flight.done():
            flight = self._flying[key] = asyncio.ensure_future(self._fly(key, plain, request, stored, *group))
            flight.add_done_callback(partial(self._landed, key))
        try:
            await asyncio.shield(flight)
        except asyncio.CancelledError:
            if flight.cancelled() and not asyncio.current_task().cancelling():
                return  # who asked first has left before it was sent
            if key not in self._posted:
                flight.cancel()
            raise

    def _landed(self, key, flight):
        if self._flying.get(key) is flight:
            del self._flying[key]
        if not flight.cancelled():
            flight.exception()  # seen here as well: the caller may be gone

    async def _fly(self, *flight):
        try:
            await self._tries(*flight)
        except InputError as error:
            self.stopped = self.stopped or error
            raise

    async def _tries(self, key, plain, request, stored, attempt, before, samples):
        tried, until = 0, time.monotonic() + LONGEST_OBEYED
        while True:
            async with self._slots:
                if self.stopped:
                    raise type(self.stopped)(str(self.stopped))
                some = samples[:1] if "n" in self.server.lacks else samples
                body = self.server.body(self.model, request, some, attempt, before, self.language)
                most = self.most_usd(body, len(some) * request.max_tokens)
                state = self.store.held(key)
                if not state:
                    # Before the claim, which runs out: a turn may be an hour away.
                    await self.pace.turn(body["messages"], len(some) * request.max_tokens)
                    lasts = self.timeout + LONGEST_WAIT
                    state = self.store.claim(key, stored, lasts, most, self.labels(request), self.max_usd)
                if state == "mine":
                    wait = await self._try(key, plain, request, attempt, some, body, tried)
            if state == "batch":
                owner = self.store.claims_of(key)[0]["owner"] if self.store.claims_of(key) else ""
                there = self.store.address(owner.removeprefix("batch/")) or self.base_url
                raise InputError(
                    f"a batch of the Batch API at {there} holds requests of {self.stage}; set teacher_batch to true "
                    "and teacher_url to that to collect it"
                )
            if state == "busy" and not self.waited:
                self.waited = True
                LOG.warning("another process has some of these requests in hand: waiting for its answers")
            if state in ("busy", "full"):
                await asyncio.sleep(POLL * JITTER.uniform(0.5, 1))
            if state != "mine" or wait is None:
                return
            await asyncio.sleep(wait.seconds)
            # A rate limit is no failure: it has an hour.
            tried += 0 if wait.limited and time.monotonic() < until else 1

    async def _try(self, key, plain, request, attempt, samples, body, tried):
        """None when the answer is stored, else the Wait for the next try; the claim ends. InputError: given up."""
        lost = "stopped on its way"
        self._posted.add(key)
        try:
            started = time.perf_counter()
            answer = await self._post(body)
            took = time.perf_counter() - started
            rows = self.rows(key, request, attempt, samples, answer, self.labels(request), took)
            self.store.keep(key, plain, rows)
            self.noticed(request, answer, rows, len(samples))
            lost = None  # the claim ended with the commit
            return None
        except (Refused, Failed) as error:
            # What may have been worked on counts as paid for: max_usd must hold.
            lost = str(error) if error.maybe_billed else ""
            if isinstance(error, Refused) and self.learnt(error, body):
                return Wait(0.0, False)
            if isinstance(error, Refused) or tried + 1 >= self.tries:
                raise self.unreachable(error, tried + 1) from None
            return Wait(self.pace.after(error, tried), error.status == 429)
        finally:
            self._posted.discard(key)
            if lost is not None:
                with suppress(InputError):  # a store that cannot be written has said so
                    self.store.release(key, lost)

    async def _post(self, body):
        """The chat completion that answers a body; raises Failed or Refused."""
        import openai
        from httpx2 import Response  # what the client speaks through; its own types are slow to build

        try:
            # The client's own limit is for the silence between two packets: a trickle would outlast the claim.
            async with asyncio.timeout(self.timeout):
                response = await self._client.post("/chat/completions", cast_to=Response, body=body)
        except TimeoutError:
            raise Failed("does not answer in time", maybe_billed=True) from None
        except openai.OpenAIError as error:
            problem = failure(error)
            if getattr(problem, "code", None) in BLOCKED:
                return blocked(problem.code, body.get("n", 1))
            raise problem from None
        return completion(response.content)

    def _start(self):
        """The client and its slots, of the event loop that runs; the embedded server at the first request."""
        if self._address is None:
            local = self.base_url == "embedded"
            serving = embedded.serve(slots=self.in_flight) if local else nullcontext(self.base_url)
            self._address = self._open.enter_context(serving)
        if self._loop is not asyncio.get_running_loop() or self._client is None:
            # A client's sockets belong to one event loop.
            self._loop, self._flying, self._posted = asyncio.get_running_loop(), {}, set()
            self._client = self.client()
            self._slots = asyncio.Semaphore(self.in_flight)

    async def wind_down(self):
        """Wait for what is on its way; close the client when nobody needs it: its loop may be gone before `close`."""
        if self._flying:
            await asyncio.wait(self._flying.values(), timeout=WIND_DOWN)
        if self._client and not self._flying and not self.streams:
            client, self._client = self._client, None
            await client.close()

    def close(self):
        """Stop the embedded server, if it was started."""
        self._open.close()
        self._client, self._address = None, None

    def client(self, max_retries=0):
        """A client of the `openai` package; tries again by itself only where it is told to."""
        import openai

        address = self._address or self.base_url
        return openai.AsyncOpenAI(base_url=address, api_key=api_key(), timeout=self.timeout, max_retries=max_retries)

    def unreachable(self, problem, tries=1):
        """The InputError for a Failed or Refused request: the kind of failure and the way out, no more."""
        way = WAYS_OUT.get(problem.status, "start it, wait, or correct teacher_url")
        times = f" after {tries} tries" if tries > 1 else ""
        return InputError(
            f"teacher_url {self.base_url} {problem} for model {self.model!r}{times}; {way}: nothing is lost"
        )

    def rows(self, key, request, attempt, samples, answer, labels, seconds=0.0, share=1.0):
        """The ledger's rows for an answer: tokens, time and cost (`share` of the price) stand with its first sample."""
        messages = [choice["message"] for choice in answer["choices"][: len(samples)]]
        texts = [message.get("content") or "" for message in messages]
        prompt, completed, cached = usage_of(answer, texts, request.messages)
        usd = share * self.price.usd(prompt, completed, cached) if self.price else None
        rows = []
        for sample, text, message, choice in zip(samples, texts, messages, answer["choices"], strict=False):
            ended = choice.get("finish_reason")
            status, reason = status_of(text, ended, message.get("refusal"), request.json_schema)
            first = not rows
            row = {"key": key, "sample": sample, "attempt": attempt, "text": text, "status": status, "reason": reason}
            row |= {"finish_reason": ended, "prompt_tokens": prompt if first else 0, "finished": now()}
            row |= {"completion_tokens": completed if first else 0, "usd": usd if first else 0.0}
            rows.append(row | {"seconds": seconds if first else 0.0, **labels})
        return rows

    def noticed(self, request, answer, rows, asked):
        """Count what was stored, and say it once when the answers show that the server ignores an option."""
        self.used["live"] += len(rows)
        self.used["prompt_tokens"] += rows[0]["prompt_tokens"]
        self.used["completion_tokens"] += rows[0]["completion_tokens"]
        self.used["usd"] += rows[0]["usd"] or 0.0
        self._say(self.server.notice(request, answer["choices"], asked))

    def learnt(self, refused, body):
        """True when a refused request may be asked again without an option that the server lacks; said once."""
        if refused.status not in (400, 422, 501):
            return False
        option = self.server.learn(refused.message, refused.param, body)
        self._say(option)
        return bool(option)

    def _say(self, option):
        if option and option not in self._said:
            self._said.add(option)
            LOG.warning("%s %s", self.base_url, FALLBACKS[option])

    def labels(self, request):
        """What the ledger knows a request by."""
        return {"model": self.model, "run": self.run, "stage": self.stage, "role": request.role}

    def most_usd(self, body, completion_tokens):
        """More than a request can cost in USD: what is reserved before it is sent."""
        if not self.price or not (self.price.input or self.price.output):
            return 0.0
        return self.price.usd(pricing.most_prompt_tokens(body), completion_tokens)


def api_key():
    """The key in OPENAI_API_KEY; local servers want none, but the client insists on one."""
    return os.environ.get("OPENAI_API_KEY", "").strip() or "none"
