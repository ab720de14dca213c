"""The one door to any language model: OpenAI's chat protocol, with every reply kept in SQLite before it is returned.

A request is looked up in three places, in this order: the recorded replies that ship with the kit (`replay`), the
store of all runs (`outputs/teacher.sqlite`, cache and ledger in one), the live server. Only the last one costs.
"""

import asyncio
import hashlib
import json
import os
import sqlite3
import time
from collections import Counter, deque
from contextlib import ExitStack, nullcontext
from pathlib import Path

import jsonschema
from pydantic import BaseModel
from tqdm import tqdm

from rolellm_utils import embedded
from rolellm_utils.files import outputs_dir, read_jsonl, shown, write_jsonl
from rolellm_utils.records import InputError

RECORDED = Path(__file__).with_name("starter") / "replies.jsonl"

TABLES = """
CREATE TABLE IF NOT EXISTS requests (key TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS replies (
    key TEXT NOT NULL, sample INTEGER NOT NULL, text TEXT NOT NULL, finish_reason TEXT,
    prompt_tokens INTEGER, completion_tokens INTEGER, seconds REAL, finished TEXT,
    run TEXT, stage TEXT, role TEXT, PRIMARY KEY (key, sample));
"""


WAYS_OUT = {
    400: "the prompt may be too long (lower examples or segment_words), or it lacks JSON schema, n or seed",
    401: "set OPENAI_API_KEY in the environment",
    403: "set an OPENAI_API_KEY that may use this model",
    404: "correct teacher_url or teacher_model",
    422: "it may lack JSON schema, n or seed: use another server",
    429: "its rate or quota is used up: lower in_flight or wait, then run again",
}


class Request(BaseModel):
    """One question to the teacher: `n` samples of the answer to `messages`; `role` only labels the ledger."""

    messages: list[dict[str, str]]
    json_schema: dict | None = None
    n: int = 1
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 200
    seed: int = 0
    role: str = ""


class Reply(BaseModel):
    """The samples of one answer, raw: `texts` and why each ended (`stop`, `length`); `key` identifies the request."""

    key: str
    texts: list[str]
    finish_reasons: list[str]

    @property
    def text(self):
        """The first sample."""
        return self.texts[0]


def form_only(schema):
    """The schema without limits of length: what every server accepts, and all that a reply is held to.

    The limits keep a small model from rambling; a good one's longer answer is no mistake.
    """
    if isinstance(schema, dict):
        limits = ("minLength", "maxLength", "minItems", "maxItems")
        return {key: form_only(value) for key, value in schema.items() if key not in limits}
    return [form_only(value) for value in schema] if isinstance(schema, list) else schema


def parse_json(text, schema):
    """The JSON value of a reply, or None when it is no JSON or not of the schema's form (a cut-off reply is not)."""
    try:
        value = json.loads(text)
        jsonschema.validate(value, form_only(schema))
    except (json.JSONDecodeError, jsonschema.ValidationError):
        return None
    return value


class Teacher:
    """A language model to ask.

    model: its name at the server; one name is taken to mean one model, wherever it runs.
    base_url: an OpenAI-compatible address, or "embedded" for the model in the kit, which is started at the first
    request that needs it. store: the SQLite file shared by all runs (WAL mode, so on a local disk).
    replay: True reads the recorded replies of the kit first.
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
    ):
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
        if "@" in base_url:
            raise InputError("teacher_url holds a name or password; leave it out and set OPENAI_API_KEY instead")
        self.model, self.base_url, self.run, self.stage = model, base_url, run, stage
        self.in_flight = in_flight
        # Tests set ROLELLM_REPLAY to "only", recording sets it to "off"; users leave it alone.
        mode = os.environ.get("ROLELLM_REPLAY", "") if replay else "off"
        self.replay_only = mode == "only"
        self.recorded = {} if mode == "off" else _recorded()
        self.used = Counter()
        self._client, self._address, self._streams = None, None, 0
        self._open = ExitStack()
        self._locks = {}
        self._store = _connect(Path(store or outputs_dir() / "teacher.sqlite"))

    def key(self, request):
        """The SHA-256 of everything that shapes the answer: model, messages, schema, sampling and seed."""
        body = {"model": self.model, **request.model_dump(exclude={"n", "role"})}
        return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    async def ask(self, request):
        """The reply with `request.n` samples; samples that were answered before are never asked again."""
        key = self.key(request)
        # The same question asked twice at once waits for the first answer.
        async with self._locks.setdefault(key, asyncio.Lock()):
            rows = {sample: self._known(key, sample) for sample in range(request.n)}
            missing = [sample for sample, row in rows.items() if row is None]
            if missing:
                rows.update(zip(missing, await self._ask_live(key, request, missing), strict=True))
        self._locks.pop(key, None)
        self.used["requests"] += 1
        self.used["samples"] += request.n
        return Reply(
            key=key,
            texts=[rows[sample]["text"] for sample in range(request.n)],
            finish_reasons=[rows[sample]["finish_reason"] or "" for sample in range(request.n)],
        )

    async def ask_all(self, requests, title=""):
        """The replies in the order of the requests, asked up to `in_flight` at once, with a progress bar."""
        waiting = deque()
        self._streams += 1
        total = len(requests) if hasattr(requests, "__len__") else None
        with tqdm(total=total, desc=title, unit="request", leave=False) as bar:
            try:
                for request in requests:
                    waiting.append(asyncio.create_task(self.ask(request)))
                    # Twice the slots: a slow answer at the head must not leave the others idle.
                    if len(waiting) >= 2 * self.in_flight:
                        yield await waiting.popleft()
                        bar.update()
                while waiting:
                    yield await waiting.popleft()
                    bar.update()
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
                self._streams -= 1
                if self._client and not self._streams:
                    # Its sockets belong to this event loop, which may be gone before `close`.
                    client, self._client = self._client, None
                    await client.close()

    def check(self):
        """None when the server answers and has the model; InputError in one sentence when not. Generates nothing."""
        if self.base_url == "embedded":
            embedded.fetch()
            return
        import openai

        try:
            client = openai.OpenAI(base_url=self.base_url, api_key=_key(), timeout=20, max_retries=1)
            served = [model.id for model in client.models.list()]
        except openai.NotFoundError:
            return  # it answers, but keeps no list of models
        except openai.OpenAIError as error:
            raise self._unreachable(error) from None
        if self.model not in served:
            raise InputError(
                f"teacher_model {self.model!r} is not served at teacher_url {self.base_url}, which has "
                f"{', '.join(served[:8]) or 'no model'}; set teacher_model to one of these"
            )

    def close(self):
        """Stop the embedded server, if this teacher started it, and close the store."""
        self._open.close()
        self._client, self._address = None, None
        self._store.close()

    def _known(self, key, sample):
        if (key, sample) in self.recorded:
            self.used["recorded"] += 1
            return self.recorded[key, sample]
        row = self._store.execute("SELECT * FROM replies WHERE key = ? AND sample = ?", (key, sample)).fetchone()
        self.used["stored"] += row is not None
        return row

    async def _ask_live(self, key, request, samples):
        import openai

        if self.replay_only:
            raise InputError(
                f"the recorded replies hold no answer for request {key[:12]} of {self.stage}, role {request.role!r}; "
                "record them again with `make notebooks`"
            )
        options = {}
        if request.json_schema:
            own = self.base_url == "embedded"
            schema = request.json_schema if own else form_only(request.json_schema)
            named = {"name": "reply", "strict": True, "schema": schema}
            options["response_format"] = {"type": "json_schema", "json_schema": named}
        client = self._async_client()
        async with self._slots:
            started = time.perf_counter()
            try:
                answer = await client.chat.completions.create(
                    model=self.model,
                    messages=request.messages,
                    n=len(samples),
                    temperature=request.temperature,
                    top_p=request.top_p,
                    max_tokens=request.max_tokens,
                    # A re-ask of the samples a killed run lacked must not repeat the ones it had.
                    seed=request.seed * 1000 + samples[0],
                    **options,
                )
            except openai.OpenAIError as error:
                raise self._unreachable(error) from None
        return self._keep(key, request, samples, answer, time.perf_counter() - started)

    def _keep(self, key, request, samples, answer, seconds):
        """The rows of a live answer, on disk before anyone sees them."""
        if len(answer.choices) != len(samples):
            raise InputError(
                f"{self.base_url} returned {len(answer.choices)} of {len(samples)} answers to one request (n = "
                f"{len(samples)}); use a server that supports n"
            )
        rows = []
        for position, (sample, choice) in enumerate(zip(samples, answer.choices, strict=True)):
            # The prompt is read once and the usage is reported once, so both are booked with the first sample.
            usage = answer.usage if position == 0 else None
            rows.append(
                {
                    "key": key,
                    "sample": sample,
                    "text": choice.message.content or "",
                    "finish_reason": choice.finish_reason,
                    "prompt_tokens": usage.prompt_tokens if usage else 0,
                    "completion_tokens": usage.completion_tokens if usage else 0,
                    "seconds": seconds if position == 0 else 0.0,
                    "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "run": self.run,
                    "stage": self.stage,
                    "role": request.role,
                }
            )
        body = {"model": self.model, **request.model_dump(exclude={"n", "role"})}
        with self._store:
            self._store.execute(
                "INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, json.dumps(body, ensure_ascii=False))
            )
            self._store.executemany(
                "INSERT OR IGNORE INTO replies VALUES (:key, :sample, :text, :finish_reason, :prompt_tokens, "
                ":completion_tokens, :seconds, :finished, :run, :stage, :role)",
                rows,
            )
        self.used["live"] += len(rows)
        self.used["prompt_tokens"] += rows[0]["prompt_tokens"]
        self.used["completion_tokens"] += rows[0]["completion_tokens"]
        return rows

    def _async_client(self):
        import openai

        if self._address is None:
            local = self.base_url == "embedded"
            serving = embedded.serve(slots=self.in_flight) if local else nullcontext(self.base_url)
            self._address = self._open.enter_context(serving)
        if self._client is None:
            self._client = openai.AsyncOpenAI(base_url=self._address, api_key=_key(), timeout=600, max_retries=5)
            self._slots = asyncio.Semaphore(self.in_flight)
        return self._client

    def _unreachable(self, error):
        # The library's own message may quote part of the key: say the kind of failure and the status, no more.
        status = getattr(error, "status_code", None)
        kind = f"answers with status {status}" if status else f"does not answer ({type(error).__name__})"
        way = WAYS_OUT.get(status, "start it or correct teacher_url")
        return InputError(f"teacher_url {self.base_url} {kind} for model {self.model!r}; {way}: nothing is lost")


def _key():
    # Local servers want no key, but the client insists on one.
    return os.environ.get("OPENAI_API_KEY") or "none"


def _recorded():
    if not RECORDED.exists():
        return {}
    rows = read_jsonl(RECORDED, ("key", "sample", "text", "finish_reason"))
    return {(row["key"], row["sample"]): row for row in rows}


def _connect(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        store = sqlite3.connect(path, timeout=60)
        store.row_factory = sqlite3.Row
        store.execute("PRAGMA journal_mode = WAL")
        store.executescript(TABLES)
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{shown(path)} cannot be read as the store of replies ({error}); move it away to start a new one"
        ) from None
    return store


def record(store, path=RECORDED):
    """Write every reply of a store as the recorded replies, in a fixed order; how many there were."""
    connection = _connect(Path(store))
    rows = connection.execute(
        "SELECT stage, role, key, sample, text, finish_reason, prompt_tokens, completion_tokens FROM replies "
        "ORDER BY stage, role, key, sample"
    ).fetchall()
    connection.close()
    write_jsonl(path, (dict(row) for row in rows))
    return len(rows)


def ledger(store, run):
    """What a run asked live, a row a stage: stage, samples, prompt and completion tokens, seconds of waiting."""
    connection = _connect(Path(store))
    rows = connection.execute(
        "SELECT stage, COUNT(*) AS samples, SUM(prompt_tokens) AS prompt_tokens, "
        "SUM(completion_tokens) AS completion_tokens, SUM(seconds) AS seconds FROM replies WHERE run = ? "
        "GROUP BY stage ORDER BY stage",
        (run,),
    ).fetchall()
    connection.close()
    return [dict(row) for row in rows]
