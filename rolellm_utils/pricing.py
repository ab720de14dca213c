"""What asking costs: prices as data with a date, tokens counted, the form of an estimate."""

import json
import os
import re
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel

from rolellm_utils.files import resolve, shown
from rolellm_utils.records import InputError

A_MESSAGE, A_REQUEST = 4, 3  # tokens of the chat format around a message, and around a request
VOCABULARY = "o200k_base"  # of gpt-4o and later
CALIBRATED = 20  # replies of a model from which on its own usage corrects the count


class Price(BaseModel):
    """US dollars per million tokens of prompt, of prompt in the server's cache, of answer; and which vocabulary."""

    input: float
    output: float
    cached: float | None = None
    tokenizer: str = VOCABULARY

    def usd(self, prompt_tokens, completion_tokens, cached_tokens=0):
        """The cost of a call in USD."""
        cached = self.input if self.cached is None else self.cached
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + completion_tokens * self.output) / 1e6


class Estimate(BaseModel):
    """What requests will cost: calls and tokens still to be asked, ranges as (least, most), `usd` None without a price.

    `likely` is the completion at the mean length of this model's replies so far; None when there are too few.
    """

    requests: int = 0
    known: int = 0
    calls: int = 0
    samples: int = 0
    prompt_tokens: int = 0
    completion_tokens: tuple[int, int] = (0, 0)
    likely: int | None = None
    usd: tuple[float, float] | None = None
    model: str = ""
    date: str = ""

    def __str__(self):
        apart = f", {self.samples} on a server without n" if self.samples > self.calls else ""
        head = (
            f"{self.calls} calls to {self.model}{apart} ({self.known} of {self.requests} requests are answered already)"
        )
        if not self.calls:
            return head + ": nothing to pay"
        least, most = self.completion_tokens
        likely = f", about {self.likely:,} at the mean length so far" if self.likely is not None else ""
        tokens = f"about {self.prompt_tokens:,} prompt tokens, {least:,} to {most:,} completion tokens{likely}"
        if self.usd is None:
            money = "no price known for this model (rolellm_utils/prices.yaml)"
        else:
            money = f"{self.usd[0]:.4f} to {self.usd[1]:.4f} USD (prices of {self.date}), re-asks apart"
        return f"{head}: {tokens}; {money}"


def price_list():
    """The price file: `date`, `batch`, `models`; ROLELLM_PRICES names another one. InputError for a wrong form."""
    path = resolve(os.environ.get("ROLELLM_PRICES") or Path(__file__).with_name("prices.yaml"))
    return _read(path, path.stat().st_mtime_ns if path.exists() else 0)


@cache
def _read(path, changed):
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
        models = {str(name): Price(**entry) for name, entry in listed["models"].items()}
        return {"date": str(listed["date"]), "batch": float(listed.get("batch", 1.0)), "models": models}
    except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError, AttributeError) as error:
        what = str(error).splitlines()[0]
        raise InputError(
            f"price file {shown(path)} cannot be used ({type(error).__name__}: {what}); give it the form of "
            "rolellm_utils/prices.yaml"
        ) from None


def price_of(model):
    """The Price of a model or of the model that it is a snapshot of (`-2024-08-06`); None when it is not listed."""
    models = price_list()["models"]
    return models.get(model) or models.get(re.sub(r"-\d{4}-\d\d-\d\d$", "", model))


@cache
def _vocabulary(name):
    import bpe_openai  # half a second, so only where tokens are counted

    return bpe_openai.get_encoding(name)


def count_tokens(text, vocabulary=VOCABULARY):
    """How many tokens a text is: exact for models of OpenAI, for others about (a tenth off, Chinese more)."""
    return len(_vocabulary(vocabulary).encode_ordinary(text))


def prompt_tokens(messages, vocabulary=VOCABULARY):
    """How many tokens the messages of a chat request are, as OpenAI counts them."""
    return A_REQUEST + sum(A_MESSAGE + count_tokens(message["content"], vocabulary) for message in messages)


def most_prompt_tokens(body):
    """More than the tokens of a request body can be: one a UTF-8 byte, and the chat format."""
    return len(json.dumps(body, ensure_ascii=False).encode()) + 16 * len(body["messages"])


def calibration(rows, vocabulary):
    """What counted prompt tokens are to be multiplied with, from a model's own usage: 1.0 for few replies."""
    rows = [row for row in rows if row["prompt_tokens"]]
    if len(rows) < CALIBRATED:
        return 1.0
    counted = sum(prompt_tokens(json.loads(row["body"])["messages"], vocabulary) for row in rows)
    return sum(row["prompt_tokens"] for row in rows) / counted
