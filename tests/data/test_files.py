from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_meta.data.files import RETRIES, OfficialFile, WrongContentError, read_official
from lightning_meta.errors import UserError

Server = Any  # conftest's: tests are no package, so nothing can be imported from it


def read(path: Path) -> str:
    text = path.read_text()
    if not text.startswith("good"):
        raise WrongContentError("it has 0 images, expected 4")
    return text


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def file(server: Server, monkeypatch: pytest.MonkeyPatch) -> OfficialFile:
    monkeypatch.delenv("LIGHTNING_META_DATA", raising=False)
    return OfficialFile("toy/images.zip", server.url + "images.zip")


def test_downloads_once(file: OfficialFile, server: Server, cache: Path) -> None:
    server.add(b"good" * 1000)
    assert read_official(file, read) == read_official(file, read) == "good" * 1000
    assert server.requests == ["/images.zip"]
    assert left_in(cache) == ["downloads/toy/images.zip"]


@pytest.mark.parametrize("failure", [{"status": 503}, {"cut": 7}])
def test_retries(file: OfficialFile, server: Server, cache: Path, failure: dict[str, int]) -> None:
    for _ in range(2):
        server.add(b"good" * 1000, **failure)
    server.add(b"good file")
    assert read_official(file, read) == "good file"
    assert len(server.requests) == 3
    assert left_in(cache) == ["downloads/toy/images.zip"]


@pytest.mark.parametrize("failure", [{"status": 404}, {"cut": 7}])
def test_gives_up(file: OfficialFile, server: Server, cache: Path, failure: dict[str, int]) -> None:
    server.add(b"good" * 1000, **failure)
    with pytest.raises(UserError, match=r"download failed 4 times .*\$LIGHTNING_META_DATA/toy/images.zip") as error:
        read_official(file, read)
    assert "\n" not in str(error.value)
    assert len(server.requests) == 1 + RETRIES
    assert left_in(cache) == []


def test_nobody_answers(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_META_DATA", raising=False)
    with pytest.raises(UserError, match="download failed"):
        read_official(OfficialFile("toy.zip", "http://127.0.0.1:1/toy.zip"), read)
    assert left_in(cache) == []


def test_wrong_content_is_not_kept(file: OfficialFile, server: Server, cache: Path) -> None:
    server.add(b"<html>log in first</html>")
    with pytest.raises(UserError, match="it has 0 images, expected 4; nothing was kept"):
        read_official(file, read)
    assert left_in(cache) == []


def test_a_download_that_was_damaged_later_is_removed(file: OfficialFile, server: Server, cache: Path) -> None:
    server.add(b"good file")
    read_official(file, read)
    (cache / "downloads/toy/images.zip").write_text("bad")
    with pytest.raises(UserError, match="it was removed: run again to download it"):
        read_official(file, read)
    assert read_official(file, read) == "good file"


def test_the_data_folder_comes_first_and_is_never_written(own_data: Path, server: Server) -> None:
    file = OfficialFile("toy/images.zip", server.url)
    (own_data / "toy").mkdir()
    (own_data / "toy/images.zip").write_text("good local file")
    assert read_official(file, read) == "good local file"
    (own_data / "toy/images.zip").write_text("bad local file")
    with pytest.raises(UserError, match="delete it, or put the official file"):
        read_official(file, read)
    assert left_in(own_data) == ["toy/images.zip"]
    assert server.requests == []


def test_a_data_folder_without_the_file_means_download(own_data: Path, server: Server, cache: Path) -> None:
    server.add(b"good file")
    assert read_official(OfficialFile("toy/images.zip", server.url), read) == "good file"
    assert (left_in(own_data), left_in(cache)) == ([], ["downloads/toy/images.zip"])


def test_a_data_folder_that_does_not_exist(file: OfficialFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_META_DATA", "/nowhere/at/all")
    with pytest.raises(UserError, match="LIGHTNING_META_DATA=/nowhere/at/all: there is no such folder"):
        read_official(file, read)
