"""Data files of the simulator: sources, units, and what is refused."""

from pathlib import Path

import pytest

from dualpath.core.errors import ConfigError
from dualpath.sim.facts import data_names, find_data, read_facts
from dualpath.sim.hardware import Hardware, load_hardware
from dualpath.sim.models import load_model

FILES = [(kind, name) for kind in ("hardware", "models") for name in data_names(kind)]


def edited(tmp_path: Path, old: str, new: str) -> Path:
    """The paper's node with one text replaced."""
    text = find_data("hardware", "hopper").read_text(encoding="utf-8")
    assert text.count(old) == 1
    file = tmp_path / "edited.toml"
    file.write_text(text.replace(old, new), encoding="utf-8")
    return file


def test_the_papers_node_and_models_are_carried():
    assert {"hopper", "h20", "a100", "cpu-server"} <= set(data_names("hardware"))
    papers = {"deepseek-v3.2", "deepseek-27b", "qwen2.5-32b", "deepseek-v3", "gpt-oss-120b", "qwen3-235b-a22b"}
    assert papers <= set(data_names("models"))


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_every_value_names_its_source(kind, name):
    for key, fact in read_facts(find_data(kind, name)).items():
        assert len(fact.source) > 5, key


@pytest.mark.parametrize("name", data_names("hardware"))
def test_efficiencies_are_marked_as_assumptions(name):
    hardware = load_hardware(name)
    efficiencies = {field for field in Hardware.__struct_fields__ if field.endswith(("_efficiency", "_overlap"))}
    assert efficiencies <= set(hardware.assumptions)


def test_the_papers_node_in_units():
    node = load_hardware("hopper")
    assert (node.gpus, node.cnic_bytes_per_s, node.snic_bytes_per_s, node.dram_bytes_per_s) == (8, 50e9, 50e9, 500e9)
    assert node.buffer_bytes("deepseek-v3.2") == 80e9
    assert node.buffer_bytes("qwen2.5-32b") == 320e9
    assert node.flops_per_s("fp8") > 1.9 * node.flops_per_s("float16") > 1e15
    assert not {"gpus", "cnic_bytes_per_s", "snic_bytes_per_s", "dram_bytes_per_s"} & set(node.assumptions)


def test_the_downscale_is_marked_as_assumed():
    assert all(fact.assumption for fact in load_model("deepseek-27b").facts.values())
    assert not any(fact.assumption for fact in load_model("deepseek-v3.2").facts.values())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('gpus = { value = 8, source = "paper section 1" }', "gpus = 8", "gpus"),
        ('gpus = { value = 8, source = "paper section 1" }', 'gpus = { value = 8, source = " " }', "names no source"),
        ('gpus = { value = 8, source = "paper section 1" }', "", "gpus"),
        ('gpus = { value = 8, source = "paper section 1" }', 'gpu = { value = 8, source = "x" }', "gpu"),
        ("hbm_efficiency = { value = 0.8", "hbm_efficiency = { value = 8", "hbm_efficiency"),
        ("dram_bytes_per_s = { value = 500e9", "dram_bytes_per_s = { value = 0.0", "dram_bytes_per_s"),
        ("kernel_ns = { value = 5_000", "kernel_ns = { value = -5", "kernel_ns"),
        ("bfloat16 = { value", "float = { value", "flops.bfloat16"),
        ('default = { value = 80e9, source = "paper', 'other = { value = 80e9, source = "paper', "buffer.default"),
        ("gpus = {", "gpus = [", "no data file"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_the_name_of_what_is_wrong(tmp_path, old, new, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        load_hardware(str(edited(tmp_path, old, new)))


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="hopper"):
        load_hardware("hoper")
    with pytest.raises(ConfigError, match="qwen3-235b-a22b"):
        load_model(str(tmp_path / "none.json"))


def test_an_own_file_is_taken_and_named_after_it(tmp_path):
    file = edited(tmp_path, "snic_bytes_per_s = { value = 50e9", "snic_bytes_per_s = { value = 25e9")
    assert (load_hardware(str(file)).name, load_hardware(str(file)).snic_bytes_per_s) == ("edited", 25e9)
