"""The cache: whole files, and one process at a time."""

from __future__ import annotations

import threading
import time

import pytest

from flowmatch.caching import alone, write_whole


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a/b/file"
    write_whole(path, lambda partial: partial.write_text("all of it"))
    assert path.read_text() == "all of it"

    def fail(partial):
        partial.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_whole(path, fail)
    assert path.read_text() == "all of it"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_one_at_a_time(tmp_path):
    inside, most = [], []

    def enter():
        with alone(tmp_path / "file"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_where_nothing_can_be_locked_nothing_is(tmp_path):
    (tmp_path / "file").write_text("")
    with alone(tmp_path / "file/inside"):
        pass
    with pytest.raises(KeyError), alone(tmp_path / "file/inside"):
        raise KeyError("from inside")
