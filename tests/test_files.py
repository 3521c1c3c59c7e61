"""Files are whole or absent."""

import pytest

from torch_trn_emu.files import replacing, write_text


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    with replacing(target) as draft:
        draft.write_text("half")
        assert not target.exists()
        draft.write_text("whole")
    assert target.read_text() == "whole"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def stopped_halfway(target, error):
    with replacing(target) as draft:
        draft.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_there_stays_when_writing_fails(tmp_path, error):
    target = tmp_path / "file.txt"
    write_text(target, "before")
    with pytest.raises(error):
        stopped_halfway(target, error)
    assert target.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_permissions_are_the_ordinary_ones(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
