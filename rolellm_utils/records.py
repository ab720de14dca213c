"""The few record types that cross stages."""

from pydantic import BaseModel


class InputError(ValueError):
    """Bad input; the message is one sentence naming the file, line or key, the bad value and the way out."""


class Turn(BaseModel):
    """One speech; `file` is a bare file name, `lines` the first and last 1-based line of the text in it."""

    speaker: str
    text: str
    scene: str
    file: str
    lines: tuple[int, int]


class Script(BaseModel):
    """One parsed script: file name, layout and its turns in order."""

    file: str
    format: str
    turns: list[Turn]


class Pair(BaseModel):
    """One exchange of a role: what was said to it (`speaker`: `cue`), its `reply`, and the reply's source lines."""

    speaker: str
    cue: str
    reply: str
    scene: str
    file: str
    cue_lines: tuple[int, int]
    lines: tuple[int, int]


class Profile(BaseModel):
    """A role (paper, section 3.2): dialogue pairs, catchphrases, and the one string that says who it is.

    `description` is that string as published: second person, the catchphrases in its last sentence.
    """

    role: str
    description: str
    catchphrases: list[str] = []
    pairs: list[Pair] = []


class Triplet(BaseModel):
    """A Context-Instruct candidate (section 3.3): question, confidence with its reason, answer, and its source."""

    role: str
    question: str
    answer: str
    completeness: str
    factualness: str
    rationale: str
    type: str
    file: str | None = None
    lines: tuple[int, int] | None = None


class Sample(BaseModel):
    """One row of RoleBench: a role, a question, the reference answers.

    `type`: script_agnostic or script_based a reference, [] in general rows; ours also carry the `id` of stage 2 and
    the source `file` and `lines`.
    """

    role: str
    question: str
    generated: list[str]
    type: list[str] = []
    id: int | None = None
    file: str | None = None
    lines: tuple[int, int] | None = None


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
    """The samples of one answer, raw: `texts`, and whether each can be used: `statuses`.

    ok, invalid, empty, refused or cut_off (at max_tokens). `key` identifies the request, `position` is its number
    in `ask_all`.
    """

    key: str
    texts: list[str]
    statuses: list[str]
    position: int = 0

    @property
    def text(self):
        """The first sample."""
        return self.texts[0]
