"""What goes to a server and what comes back: request bodies, what a server lacks, and whether a reply can be used."""

import json
from functools import cache

import jsonschema

from rolellm_utils.cleaning import REFUSAL, broken_rules
from rolellm_utils.pace import retry_after
from rolellm_utils.pricing import count_tokens, prompt_tokens
from rolellm_utils.prompts import render

OK, INVALID, EMPTY, REFUSED, CUT_OFF = STATUSES = ("ok", "invalid", "empty", "refused", "cut_off")
# Error codes of servers that block an answer instead of giving one.
BLOCKED = ("content_filter", "content_policy_violation")


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
    return _parse(text, schema)[0]


def _parse(text, schema):
    """(value, "") or (None, what is wrong)."""
    start, end = text.find("{"), text.rfind("}")
    try:
        # A model that was asked in words may put the object between ``` marks or after a sentence.
        value = json.loads(text if start < 0 or end < start else text[start : end + 1])
    except json.JSONDecodeError as error:
        return None, f"no JSON ({error.msg}, character {error.pos})"
    for error in _validator(json.dumps(schema)).iter_errors(value):
        return None, f"{error.json_path}: {error.message:.120}"
    return value, ""


@cache
def _validator(schema):
    return jsonschema.Draft202012Validator(form_only(json.loads(schema)))


def status_of(text, finish_reason, refusal, schema):
    """(status, reason) of a reply: ok, invalid (no JSON of the schema), empty, refused, or cut_off at max_tokens.

    A refusal is what the server marks as one or, in a plain text, what the cleaning rules of stage 4 read as one.
    """
    if refusal or finish_reason == "content_filter":
        return REFUSED, refusal or "blocked by the server's content filter"
    if not text.strip():
        return EMPTY, "no text"
    wrong = _parse(text, schema)[1] if schema else ""
    if finish_reason == "length" and (wrong or not schema):
        return CUT_OFF, "max_tokens reached"
    if wrong:
        return INVALID, wrong
    if not schema and REFUSAL in broken_rules(text, (REFUSAL,)):
        return REFUSED, "reads as a refusal"
    return OK, ""


class Failed(Exception):
    """A request that a later try may answer; `maybe_billed`: it may have been worked on, and billed, all the same."""

    def __init__(self, what, status=None, wait=None, maybe_billed=False):
        super().__init__(what)
        self.status, self.retry_after, self.maybe_billed = status, wait, maybe_billed


class Refused(Exception):
    """A request that the server will not answer as it is: its status, its words, and the option it names."""

    maybe_billed = False

    def __init__(self, status, message, param, code):
        # The server's own words may quote the key or the prompt: they are looked into, not passed on.
        super().__init__(f"answers with status {status}" + (f" (it names {param!r})" if param else ""))
        self.status, self.message, self.param, self.code = status, message, param, code


def failure(error):
    """The client's exception as Failed or Refused."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return Failed("does not answer in time", maybe_billed=True)
    if isinstance(error, openai.APIConnectionError):
        sent = type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout")
        return Failed("breaks off" if sent else "does not answer (APIConnectionError)", maybe_billed=sent)
    if not isinstance(error, openai.APIStatusError):
        return Failed(f"does not answer ({type(error).__name__})", maybe_billed=True)
    status, body = error.status_code, error.body if isinstance(error.body, dict) else {}
    code = str(body.get("code") or body.get("type") or "")
    if status in (408, 409, 429) and code != "insufficient_quota" or status >= 500 and status != 501:
        # A gateway may have lost an answer that was worked on.
        lost = status in (502, 504) or status >= 520
        return Failed(f"answers with status {status}", status, retry_after(error.response.headers), maybe_billed=lost)
    return Refused(402 if code == "insufficient_quota" else status, str(error.message), body.get("param"), code)


def completion(data):
    """The chat completion in a response body, its choices in order; Failed when it is none (cut off, damaged)."""
    try:
        answer = json.loads(data)
        answer["choices"].sort(key=lambda choice: choice.get("index", 0))
        for choice in answer["choices"]:
            choice["message"] = {name: _text(value) for name, value in choice["message"].items()}
        if answer["choices"]:
            return answer
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise Failed("answers with a body that is no chat completion", maybe_billed=True)


def _text(value):
    """The text of a message's part: some servers give a list of pieces, and half a character must not stop a run."""
    if isinstance(value, list):
        value = "".join(piece.get("text") or "" for piece in value)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _ended(messages, place, words):
    """The messages, the one at `place` ended with more words."""
    longer = {**messages[place], "content": f"{messages[place]['content']}\n\n{words}"}
    return [longer if message is messages[place] else message for message in messages]


class Server:
    """What one server can do: everything, until it says or shows that it cannot. `own`: the embedded one."""

    def __init__(self, own=False):
        self.own, self.lacks = own, set()
        self.length = "max_tokens"
        self._schema_works = False

    def body(self, model, request, samples, attempt, before, language):
        """The JSON body that asks for `samples` (their numbers), as attempt number `attempt` after the status `before`.

        before: None, or (status, reason) of the reply that could not be used; the request says what was wrong with it.
        """
        messages = request.messages
        if before:
            # In the system text where there is one: small models repeat what the question says.
            place = 0 if messages[0]["role"] == "system" else -1
            messages = _ended(messages, place, render(language, f"reask_{before[0]}", reason=before[1]))
        body = {"model": model, "temperature": request.temperature, "top_p": request.top_p}
        body[self.length] = request.max_tokens
        if request.json_schema and "json_schema" in self.lacks:
            schema = json.dumps(form_only(request.json_schema), ensure_ascii=False)
            messages = _ended(messages, -1, render(language, "schema", schema=schema))
        elif request.json_schema:
            # Limits of length go to the embedded server only: others may not know them.
            schema = request.json_schema if self.own else form_only(request.json_schema)
            named = {"name": "reply", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if len(samples) > 1:
            body["n"] = len(samples)
        if "seed" not in self.lacks:
            # No two calls share a seed: not the seeds of a run, not the attempts, not the samples asked apart.
            body["seed"] = request.seed * 1000 + attempt * 100 + samples[0]
        return body | {"messages": messages}

    def learn(self, message, param, body):
        """The option that a refused request (400, 422, 501) must do without from now on; "" when none is to blame.

        A server that does not say what it dislikes is tried without the options one after another.
        """
        text = message.lower()
        if "max_completion_tokens" in text and "max_tokens" in body:
            self.length = "max_completion_tokens"
            return "max_tokens"
        names = {
            "json_schema": ("response_format" in body, ("response_format", "json_schema", "json schema", "grammar")),
            "n": ("n" in body, ("'n'", '"n"', "`n`", "n > 1", "n=", "multiple completions", "multiple choices")),
            "seed": ("seed" in body, ("seed",)),
        }
        used = [option for option, (there, _) in names.items() if there]
        named = [option for option in used if option == param or any(word in text for word in names[option][1])]
        too_long = any(word in text for word in ("context", "too long", "maximum", "exceed"))
        blamed = named or ([] if param or too_long else used)
        self.lacks.update(blamed[:1])
        return blamed[0] if blamed else ""

    def notice(self, request, choices, asked):
        """The option that the answers show to be ignored by the server, or ""."""
        if len(choices) < asked and "n" not in self.lacks:
            self.lacks.add("n")
            return "n"
        if request.json_schema and "json_schema" not in self.lacks and choices:
            text = (choices[0].get("message") or {}).get("content") or ""
            self._schema_works |= text.lstrip()[:1] in ("{", "[")
            if text.strip() and not self._schema_works:
                self.lacks.add("json_schema")
                return "json_schema"
        return ""


def blocked(code, n):
    """The completion of `n` refusals that stands for a request which the server blocked."""
    choice = {"message": {"refusal": f"blocked by the server: {code}"}, "finish_reason": "content_filter"}
    return {"choices": [choice] * n, "usage": {"prompt_tokens": 0, "completion_tokens": 0}}


def usage_of(answer, texts, messages):
    """(prompt tokens, completion tokens, cached prompt tokens) of an answer with all its texts.

    What the server reports, unless it reports nothing, or with n > 1 the tokens of one answer only, as llama.cpp does:
    then the completion is counted from the texts.
    """
    usage = answer.get("usage") or {}
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    prompt = prompt_tokens(messages) if prompt is None else prompt
    # Six bytes a token is more than any language has: only a server that reports less is looked at closely.
    if completion is None or (len(texts) > 1 and completion < sum(len(text.encode()) for text in texts) / 6):
        counted = sum(count_tokens(text) + 1 for text in texts)
        # All n answers cannot be fewer tokens than half of what their texts count.
        completion = counted if completion is None or completion < counted / 2 else completion
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return prompt, completion, cached
