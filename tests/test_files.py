import pytest

from rolellm_utils.files import read_json, read_jsonl, replacing, write_jsonl
from rolellm_utils.records import InputError


def test_rows_come_back_as_written(tmp_path):
    rows = [{"role": "孙悟空", "text": "line\u2028separator\nand feed"}, {"role": "b", "text": ""}]
    assert read_jsonl(write_jsonl(tmp_path / "deep" / "a.jsonl", rows), ("role",)) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        ('{"a": 1}\n\n{"b": 2}\n', "line 3: no 'a' in it"),
        ('{"a": 1}\n[1]\n', "line 2: holds '\\[1\\]', no JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(InputError, match=f"x.jsonl, {message}"):
        read_jsonl(tmp_path / "x.jsonl", ("a",))


def test_bom_and_crlf_are_fine_and_other_encodings_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert [row["a"] for row in read_jsonl(tmp_path / "x.jsonl")] == [1, 2]
    (tmp_path / "y.json").write_bytes("{'角色'}".encode("gbk"))
    with pytest.raises(InputError, match="y.json is not UTF-8"):
        read_json(tmp_path / "y.json")
    with pytest.raises(InputError, match="z.json does not exist"):
        read_json(tmp_path / "z.json")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"
