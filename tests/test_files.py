import os

import pytest

from scbig.files import atomic, digest


def left_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_whole_and_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "down" / "a.txt"
    with atomic(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        # The same file system, or the last step would not be one step; the same suffix, or writers choose another format.
        assert temporary.parent.parent == target.parent and temporary.suffix == ".txt"
    assert target.read_text() == "half" and left_in(target.parent) == ["a.txt"]


def test_what_stood_there_stays_when_the_block_raises(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old" and left_in(tmp_path) == ["a.txt"]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_directory_replaces_another_one_altogether(tmp_path):
    target = tmp_path / "d"
    target.mkdir()
    (target / "stale").write_text("old")
    with atomic(target) as temporary:
        temporary.mkdir()
        (temporary / "fresh").write_text("new")
    assert left_in(target) == ["fresh"] and left_in(tmp_path) == ["d"]


@pytest.mark.parametrize("makes", [False, True])
def test_a_directory_stays_when_the_block_raises(tmp_path, makes):
    target = tmp_path / "d"
    target.mkdir()
    (target / "kept").write_text("old")
    with pytest.raises(ValueError, match="on purpose"), atomic(target) as temporary:
        if makes:
            temporary.mkdir()
        raise ValueError("on purpose")
    assert (target / "kept").read_text() == "old" and left_in(tmp_path) == ["d"]


def test_a_directory_stays_when_nothing_was_written_in_its_place(tmp_path):
    target = tmp_path / "d"
    target.mkdir()
    (target / "kept").write_text("old")
    with pytest.raises(FileNotFoundError), atomic(target):
        pass
    assert (target / "kept").read_text() == "old" and left_in(tmp_path) == ["d"]


def test_a_file_stays_when_nothing_was_written_in_its_place(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "old" and left_in(tmp_path) == ["a"]


def test_digest_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_digest_reads_beyond_one_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("scbig.files._CHUNK", 4)
    (tmp_path / "a").write_bytes(b"0123456789")
    assert digest(tmp_path / "a") == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"


def make_tree(folder, names=("x/1", "x/2", "y")):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"contents of {name}")
    return folder


def test_digest_of_a_folder_depends_on_contents_and_names_alone(tmp_path):
    first = make_tree(tmp_path / "one")
    again = make_tree(tmp_path / "two", ("y", "x/2", "x/1"))
    for file in again.rglob("*"):
        os.utime(file, (1, 1))
    assert digest(first) == digest(again)


@pytest.mark.parametrize("change", ["contents", "name", "place", "extra", "less"])
def test_digest_of_a_folder_notices(tmp_path, change):
    folder = make_tree(tmp_path / "one")
    before = digest(folder)
    if change == "contents":
        (folder / "x/1").write_text("contents of x/0")
    elif change == "name":
        (folder / "y").rename(folder / "z")
    elif change == "place":
        (folder / "x/1").rename(folder / "1")
    elif change == "extra":
        (folder / "x/.hidden").write_text("")
    else:
        (folder / "x/2").unlink()
    assert digest(folder) != before


def test_digest_of_nothing_is_refused(tmp_path):
    # An empty folder's digest for what is absent would let a stage pass that wrote nothing.
    with pytest.raises(FileNotFoundError, match="gone"):
        digest(tmp_path / "gone")
