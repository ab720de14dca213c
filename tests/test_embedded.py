"""The embedded model live: what was recorded is asked again, a seeded few."""

import asyncio
import difflib
import json
import random

from rolellm_utils import embedded, profiles
from rolellm_utils.files import ROOT, read_jsonl
from rolellm_utils.teacher import RECORDED, Request, Teacher, parse_json


def test_it_speaks_and_keeps_to_a_schema(tmp_path):
    teacher = Teacher(embedded.NAME, store=tmp_path / "t.sqlite", in_flight=2)
    plain = Request(messages=[{"role": "user", "content": "Name two colours."}], max_tokens=24, n=2, seed=1)
    lines = "- Slow boat, dry socks.\n- The sea keeps her own books."
    shaped = Request(
        messages=[{"role": "user", "content": f"Who says this?\n{lines}"}], json_schema=profiles.SCHEMA, max_tokens=220
    )

    async def both():
        return [reply async for reply in teacher.ask_all([plain, shaped])]

    first, second = asyncio.run(both())
    teacher.close()
    assert len(first.texts) == 2 and all(first.texts)
    assert second.finish_reasons == ["length"] or parse_json(second.text, profiles.SCHEMA)


def test_recorded_replies_are_what_the_model_says(tmp_path, capsys):
    """Sampling drifts with the processor and with what is batched, so the agreement is printed; the form holds."""
    recorded = {(row["key"], row["sample"]): row for row in read_jsonl(RECORDED)}
    script = profiles.read_scripts([str(ROOT / "rolellm_utils/starter/lantern_rock.txt")], ["Oswin", "Neha"])[0]
    asked = [
        profiles.request(script, role, "en", temperature=0.7, top_p=0.95, max_tokens=220) for role in ("Oswin", "Neha")
    ]
    random.Random(0).shuffle(asked)
    teacher = Teacher(embedded.NAME, store=tmp_path / "t.sqlite", in_flight=1)

    async def again():
        return [reply async for reply in teacher.ask_all(asked)]

    replies = asyncio.run(again())
    teacher.close()
    for reply in replies:
        row = recorded[reply.key, 0]
        alike = difflib.SequenceMatcher(None, reply.text, row["text"]).ratio()
        with capsys.disabled():
            print(f"\nrecorded against live, {row['role']}: {alike:.0%} of the characters agree")
        assert row["text"].strip() and row["finish_reason"] in ("stop", "length")
        if row["finish_reason"] == reply.finish_reasons[0] == "stop":
            assert json.loads(row["text"]).keys() == json.loads(reply.text).keys()
