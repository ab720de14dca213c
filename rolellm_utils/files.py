"""Files that appear whole or not at all, and are read with the line number of whatever is wrong in them."""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from rolellm_utils.records import InputError

ROOT = Path(__file__).resolve().parent.parent


def resolve(path):
    """The path as the kit reads it: a relative one is relative to the project root, `~` is the home folder."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else ROOT / path


def shown(path):
    """The path as outputs and messages print it: relative to the project root, never absolute."""
    path = Path(path).resolve()
    outputs = outputs_dir().resolve()
    if path.is_relative_to(outputs):
        return (Path("outputs") / path.relative_to(outputs)).as_posix()
    return Path(os.path.relpath(path, ROOT)).as_posix()


def unshown(text):
    """The path that `shown` printed as `text`."""
    return outputs_dir() / text.removeprefix("outputs/") if text.startswith("outputs/") else ROOT / text


def outputs_dir():
    """The folder that holds the runs: `outputs/`, or where the environment variable ROLELLM_OUTPUTS points."""
    return Path(os.environ.get("ROLELLM_OUTPUTS") or ROOT / "outputs")


def sha256(path):
    """The file's SHA-256, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path):
    """A temporary sibling path that takes the place of `path` when the block ends well, and vanishes when not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write UTF-8 text with LF line ends, whole or not at all; the path written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_bytes(path, data):
    """Write bytes, whole or not at all; the path written."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_json(path, value):
    """Write one JSON value, indented, Unicode kept; the path written."""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_jsonl(path, rows):
    """Write one JSON object a line (dicts or pydantic records); the path written."""
    plain = (row if isinstance(row, dict) else row.model_dump(mode="json") for row in rows)
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in plain))


def read_json(path):
    """The JSON value in a file; InputError names the file and line of what is wrong."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{shown(path)} does not exist; check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"{shown(path)} is not UTF-8 text; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{shown(path)}, line {error.lineno}: not valid JSON ({error.msg}); mend that line") from None


def read_jsonl(path, needs=()):
    """The objects of a JSON-lines file, in order; InputError names file and line of a bad line or missing key."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{shown(path)} does not exist; check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"{shown(path)} is not UTF-8 text; save it as UTF-8") from None
    rows = []
    # Only "\n" ends a row: JSON strings may hold U+2028 and its like unescaped, which str.splitlines would cut at.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{shown(path)}, line {number}: not valid JSON ({error.msg}); mend that line") from None
        missing = [key for key in needs if not isinstance(row, dict) or key not in row]
        if missing:
            raise InputError(f"{shown(path)}, line {number}: no {missing[0]!r} in it; every line needs {list(needs)}")
        rows.append(row)
    return rows
