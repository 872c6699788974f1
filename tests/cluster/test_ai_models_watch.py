"""An aiModels.json that is changed, broken, replaced and taken away under a running worker."""

import asyncio
import json
import logging
import os
from pathlib import Path

import pytest

from cluster.ai_models_watch import AIModelsWatch
from cluster.commands.bridge import follow
from cluster.errors import AIModelsError


def text(*names: str) -> str:
    return json.dumps(
        [{"pipeline": "text-to-image", "model_id": f"org/{name}", "warm": True} for name in names]
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "aiModels.json"
    file.write_text(text("a"))
    return file


def served(watch: AIModelsWatch) -> list[str]:
    return [model.model_id for model in watch.current.models]


def test_a_change_is_seen_once(file: Path) -> None:
    watch = AIModelsWatch(str(file))
    assert not watch.look()
    file.write_text(text("a", "b"))
    assert watch.look()
    assert served(watch) == ["org/a", "org/b"]
    assert not watch.look()


def test_what_only_the_orchestrator_reads_is_no_change(file: Path) -> None:
    watch = AIModelsWatch(str(file))
    entries = json.loads(file.read_text())
    entries[0]["price_per_unit"] = 7
    file.write_text(json.dumps(entries, indent=2))
    assert not watch.look()


def test_an_atomic_replacement_with_the_same_size_and_time(file: Path) -> None:
    watch = AIModelsWatch(str(file))
    before = file.stat()
    new = file.with_suffix(".new")
    new.write_text(text("b"))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(file)
    assert file.stat().st_size == before.st_size
    assert watch.look()
    assert served(watch) == ["org/b"]


def test_an_invalid_file_changes_nothing_and_is_told_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = AIModelsWatch(str(file))
    file.write_text('[{"pipeline": "nope", "model_id": "org/a"}, {"pipeline": "text-to-image"}]')
    for _ in range(4):
        assert not watch.look()
    assert served(watch) == ["org/a"]
    assert caplog.text.count("entry 1 (nope org/a): pipeline: must be one of") == 1
    assert caplog.text.count("entry 2") == 1

    # Told again to whoever asks, and when it is wrong in another way.
    assert not watch.look(again=True)
    assert caplog.text.count("entry 1 (nope org/a)") == 2
    file.write_text("[]")
    for _ in range(3):
        assert not watch.look()
    assert caplog.text.count("the list is empty") == 1

    # Back to what it was: nothing has changed, and the next problem is news again.
    file.write_text(text("a"))
    assert not watch.look()
    file.write_text("[]")
    watch.look()
    watch.look()
    assert caplog.text.count("the list is empty") == 2


def test_a_file_that_is_written_in_parts_is_no_problem(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = AIModelsWatch(str(file))
    whole = text("a", "b")
    for length in range(0, len(whole), 10):
        file.write_text(whole[:length])
        assert not watch.look()
    file.write_text(whole)
    assert watch.look()
    assert not caplog.records


def test_a_file_that_vanishes(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = AIModelsWatch(str(file))
    file.unlink()
    assert not watch.look()
    file.write_text(text("a"))
    assert not watch.look()
    assert not caplog.records, "away for a moment, as when it is replaced"

    file.unlink()
    for _ in range(3):
        assert not watch.look()
    assert served(watch) == ["org/a"]
    assert caplog.text.count("no such file") == 1
    file.write_text(text("b"))
    assert watch.look()


def test_the_short_form_never_changes() -> None:
    watch = AIModelsWatch("text-to-image:org/a:true")
    assert not watch.look(again=True)


def test_a_new_process_begins_with_the_last_valid_file(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last_good = tmp_path / "last-good.json"
    watch = AIModelsWatch(str(file), last_good=last_good)
    file.write_text(text("b"))
    assert watch.look()
    file.write_text("[]")

    again = AIModelsWatch(str(file), last_good=last_good)
    assert served(again) == ["org/b"]
    assert "the list is empty" in caplog.text
    assert (last_good.stat().st_mode & 0o777) == 0o600
    file.write_text(text("c"))
    assert again.look()
    assert served(again) == ["org/c"]

    file.write_text("[]")
    last_good.unlink()
    with pytest.raises(AIModelsError, match="the list is empty"):
        AIModelsWatch(str(file), last_good=last_good)


def test_where_another_process_complains_this_one_does_not(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = AIModelsWatch(str(file), quiet=True)
    file.write_text("[]")
    watch.look(again=True)
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


async def test_a_change_that_cannot_be_taken_does_not_end_the_following(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch, write = AIModelsWatch(str(file)), file.write_text
    again, taken = asyncio.Event(), asyncio.Event()

    def take() -> None:
        if served(watch) == ["org/bad"]:
            raise RuntimeError("a bug")
        taken.set()

    following = asyncio.create_task(follow(watch, take, again))
    write(text("bad"))
    again.set()
    async with asyncio.timeout(20):
        while "a bug" not in caplog.text:
            await asyncio.sleep(0.01)
        write(text("good"))
        again.set()
        await taken.wait()
    assert served(watch) == ["org/good"]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
