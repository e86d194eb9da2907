import multiprocessing
import shutil
from pathlib import Path

import pytest

from dualpath.core.errors import ConfigError
from dualpath.engine import checkpoints
from dualpath.engine.checkpoints import default_cache_dir, resolve_model

SMALL = "tiny:layers=1,hidden=16,intermediate=16,head_dim=8"


def test_makes_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_model(SMALL, cache_dir=tmp_path / "new" / "cache")
    monkeypatch.setattr(checkpoints, "write_tiny", None)
    assert resolve_model(SMALL, cache_dir=tmp_path / "new" / "cache") == first
    assert (first / "model.safetensors").is_file()


def test_other_settings_have_another_folder(tmp_path: Path) -> None:
    assert resolve_model(SMALL, cache_dir=tmp_path) != resolve_model(SMALL + ",seed=1", cache_dir=tmp_path)


def test_several_processes_get_one_complete_folder(tmp_path: Path) -> None:
    start = multiprocessing.get_context("fork")
    workers = [start.Process(target=resolve_model, args=(SMALL,), kwargs={"cache_dir": tmp_path}) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [
        resolve_model(SMALL, cache_dir=tmp_path).name
    ]


def test_leftovers_of_a_killed_process_are_replaced(tmp_path: Path) -> None:
    folder = resolve_model(SMALL, cache_dir=tmp_path)
    shutil.move(folder, tmp_path / (folder.name + ".partial"))
    (tmp_path / (folder.name + ".partial") / "junk").touch()
    assert not (resolve_model(SMALL, cache_dir=tmp_path) / "junk").exists()


def test_a_lock_that_stays_held_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "LOCK_DEADLINE_S", 0.01)
    folder = resolve_model(SMALL, cache_dir=tmp_path)
    shutil.rmtree(folder)
    with (
        checkpoints._locked(folder.with_name(folder.name + ".lock")),
        pytest.raises(ConfigError, match="another process"),
    ):
        resolve_model(SMALL, cache_dir=tmp_path)


def test_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path), cache_dir=tmp_path / "unused") == tmp_path.resolve()
    with pytest.raises(ConfigError, match="smollm2, tiny or a local"):
        resolve_model("meta/llama", cache_dir=tmp_path)


def test_unwritable_cache_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="DUALPATH_CACHE"):
        resolve_model(SMALL, cache_dir=tmp_path / "file")


def test_smollm2_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualpath.engine.smollm2.PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="pip install"):
        resolve_model("smollm2", cache_dir=tmp_path)


def test_cache_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALPATH_CACHE", "/some/where")
    assert default_cache_dir() == Path("/some/where")
    monkeypatch.setenv("DUALPATH_CACHE", "")
    assert default_cache_dir() == Path.home() / ".cache" / "dualpath"
