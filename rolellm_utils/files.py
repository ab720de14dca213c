"""Files that appear whole or not at all, and are read with the line number of whatever is wrong in them."""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from rolellm_utils.records import InputError

ROOT = Path(__file__).resolve().parent.parent
# Bytes; the longest rows of RoleBench have some thousands.
LONGEST_LINE = 2_000_000


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
    """Write one JSON object a line (dicts or pydantic records), as they come; the path written."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            plain = row if isinstance(row, dict) else row.model_dump(mode="json")
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")
    return Path(path)


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
    return [row for _, row in read_lines(path, needs)]


def read_lines(path, needs=(), notes=None):
    """(line number, object) of a JSON-lines file, one at a time; InputError names file and line of what is wrong.

    A byte-order mark and CR LF line ends are read over; `notes`, a list, is told. Only a line feed ends a row: JSON
    strings may hold U+2028 and its like unescaped, at which text files are cut elsewhere.
    """
    if not Path(path).is_file():
        raise InputError(f"{shown(path)} does not exist; check the path")
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            row = _object(line, path, number)
            if notes is not None:
                _note_oddities(line, path, number, notes)
            if row is None:
                continue
            missing = [key for key in needs if key not in row]
            if missing:
                raise InputError(
                    f"{shown(path)}, line {number}: no {missing[0]!r} in it; every line needs {list(needs)}"
                )
            yield number, row


def _note_oddities(line, path, number, notes):
    # Each is said once a file, where it is first seen.
    for name, there in (("byte-order mark", line.startswith(b"\xef\xbb\xbf")), ("CR LF", line.endswith(b"\r\n"))):
        if there and not any(note.startswith(f"{shown(path)}, ") and name in note for note in notes):
            notes.append(f"{shown(path)}, line {number}: {name}, read over")


def _object(line, path, number):
    """The object on a line, None on a blank one."""

    def bad(reason):
        return InputError(f"{shown(path)}, line {number}: {reason}")

    if len(line) > LONGEST_LINE:
        raise bad(f"longer than {LONGEST_LINE:,} bytes, which no row is; look whether line ends were lost there")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        row = json.loads(text) if text else {}
    except UnicodeDecodeError:
        raise bad("not UTF-8 text; save the file as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        cut = "" if line.endswith(b"\n") else "the file breaks off here: get it again, or "
        what = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise bad(f"not valid JSON ({what}); {cut}mend that line") from None
    if not isinstance(row, dict):
        raise bad(f"holds {text!r:.40}, no JSON object; mend that line")
    return row if text else None
