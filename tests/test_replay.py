"""Same seed, same recorded replies: the same RoleBench, byte for byte, and nothing asked."""

from rolellm_utils import run
from rolellm_utils.stage import REFERENCE, STAGES, manifest


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_replayed_run_makes_the_reference_files_again(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ROLELLM_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "default.yaml").write_text("# all defaults\nrun: default\n")
    for name in STAGES[:4]:
        assert run.main([str(tmp_path / "default.yaml"), "--only", name[:2]]) == 0, capfd.readouterr().err
        used = manifest(tmp_path / "outputs/default", name)["teacher"]
        assert not used.get("live") and used.get("recorded", 0) == used.get("samples", 0)
    made = contents(tmp_path / "outputs/default/rolebench")
    assert made == contents(REFERENCE / "rolebench") and len(made) > 12
