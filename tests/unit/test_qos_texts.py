"""What `dualpath qos` prints: the paper's values, argument lists, scripts that a shell can read."""

import json
import subprocess

import pytest

from dualpath.core.errors import ConfigError
from dualpath.core.traffic import MARKS, Traffic
from dualpath.qos import roce
from dualpath.qos.describe import describe
from dualpath.qos.environment import marks
from dualpath.qos.ethernet import CLASS_IDS, htb_commands, lane_classes, segment_bytes, segment_commands
from dualpath.qos.fabric import Fabric
from dualpath.qos.section import as_shell, as_text

RATE = 800_000_000


def text_of(fabric: Fabric, kv_share: float = 0.01) -> str:
    return as_text(describe(fabric, "mlx5_0", "eth0", RATE, kv_share))


def test_infiniband_text_has_the_papers_values() -> None:
    lines = [line.strip() for line in text_of(Fabric.INFINIBAND).splitlines()]
    for line in (
        "qos TRUE",
        "qos_max_vls 4",
        "qos_high_limit 240",
        "qos_vlarb_high 0:192,1:192,2:0,3:192",
        "qos_vlarb_low 0:192,1:192,2:64,3:192",
        "qos_sl2vl 0,1,2,3,0,0,0,0,0,0,0,0,0,0,0,0",
        "export NCCL_IB_SL=1",
        "export NVSHMEM_IB_SL=1",
    ):
        assert line in lines


def test_service_levels_select_the_lanes_that_the_arbitration_tables_mean() -> None:
    from dualpath.qos.infiniband import SL2VL, VLARB_HIGH, VLARB_LOW

    lane_of = [int(lane) for lane in SL2VL.split(",")]
    high, low = (dict(pair.split(":") for pair in table.split(",")) for table in (VLARB_HIGH, VLARB_LOW))
    assert len(lane_of) == 16
    for traffic in (Traffic.LAYERS, Traffic.BLOCKS):
        lane = str(lane_of[MARKS[traffic].service_level])
        assert high[lane] == "0" and int(low[lane]) > 0
    assert int(high[str(lane_of[MARKS[Traffic.MODEL].service_level])]) > 0


def test_roce_maps_every_mark_to_a_lossless_priority() -> None:
    text = text_of(Fabric.ROCE)
    assert "dcb app replace dev eth0 dscp-prio 26:3 12:1 10:1 48:6" in text
    assert "prio-pfc 0:off 1:on 2:off 3:on 4:off" in text
    assert "mlnx_qos -i eth0 --pfc 0,1,0,1,0,0,0,0" in text
    assert "cma_roce_tos -d mlx5_0 -t 40" in text
    assert "export NCCL_IB_TC=104" in text and "NCCL_IB_SL" not in text


@pytest.mark.parametrize("kv_share", [0.0001, 0.01, 0.25, 0.999])
def test_shares_are_whole_percents_that_sum_to_a_hundred(kv_share: float) -> None:
    shares = roce.shares(kv_share)
    assert sum(shares) == 100
    assert shares[roce.KV_PRIORITY] >= 1 and shares[roce.MODEL_PRIORITY] >= 1
    assert shares[roce.CNP_PRIORITY] == 0, "mlnx_qos and dcb want no share for a strict class"


def test_switch_tables_are_json_that_agrees_with_the_host() -> None:
    tables = json.loads(roce.sonic_json(0.01))
    dscp = tables["DSCP_TO_TC_MAP"]["DUALPATH"]
    assert len(dscp) == 64
    assert {dscp[str(MARKS[traffic].dscp)] for traffic in (Traffic.LAYERS, Traffic.BLOCKS)} == {"1"}
    assert dscp[str(MARKS[Traffic.MODEL].dscp)] == "3" and dscp["0"] == "0"
    assert tables["PORT_QOS_MAP"]["Ethernet0"]["pfc_enable"] == "1,3"
    weights = {name: entry.get("weight") for name, entry in tables["SCHEDULER"].items()}
    assert weights == {"dualpath.0": "1", "dualpath.1": "1", "dualpath.3": "98", "dualpath.6": None}


@pytest.mark.parametrize("fabric", list(Fabric))
def test_scripts_can_be_read_by_a_shell(fabric: Fabric) -> None:
    script = as_shell(describe(fabric, "mlx5_0", "eth0", RATE, 0.01))
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, timeout=10)
    assert done.returncode == 0, done.stderr


def test_shell_and_text_hold_the_same_commands() -> None:
    sections = describe(Fabric.ETHERNET, "", "eth0", RATE, 0.01)
    text, script = as_text(sections), as_shell(sections)
    for command in htb_commands("eth0", RATE):
        assert " ".join(command) in text and " ".join(command) in script.splitlines()


def test_classes_share_the_line_and_may_borrow_all_of_it() -> None:
    classes = lane_classes(RATE)
    assert [lane.traffic for lane in classes] == list(Traffic)
    assert [lane.prio for lane in classes] == [0, 1, 2]
    assert sum(lane.rate_bits_per_s for lane in classes) == RATE
    assert classes[0].rate_bits_per_s == 0.99 * RATE
    assert {lane.ceil_bits_per_s for lane in classes} == {RATE}


def test_commands_are_argument_lists_for_tc() -> None:
    commands = htb_commands("veth7", RATE)
    assert all(command[0] == "tc" and command[command.index("dev") + 1] == "veth7" for command in commands)
    filters = [command for command in commands if command[1] == "filter"]
    ipv4 = {command[command.index("dsfield") + 1]: command[-1] for command in filters if "dsfield" in command}
    assert ipv4 == {"0x68": "1:10", "0x30": "1:20", "0x28": "1:30"}
    assert sum("ip6" in command for command in filters) == 3
    used = {word for command in commands for word in command}
    assert not used & {"prio_qdisc", "fw", "flower", "fq", "fq_codel", "basic", "matchall", "netem"}


def test_without_lanes_one_class_takes_all() -> None:
    commands = htb_commands("eth0", RATE, lanes=False)
    ids = [command[command.index("classid") + 1] for command in commands if "classid" in command]
    assert ids == ["1:1", CLASS_IDS[Traffic.BLOCKS]]
    assert not [command for command in commands if command[1] == "filter"]


@pytest.mark.parametrize(
    ("rate", "expected"), [(20_000_000, 6000), (RATE, 10_000), (2_000_000_000, 25_000), (400_000_000_000, 65_536)]
)
def test_a_segment_takes_a_hundred_microseconds_or_four_packets(rate: int, expected: int) -> None:
    assert segment_bytes(rate) == expected
    assert segment_commands("eth0", rate) == [["ip", "link", "set", "dev", "eth0", "gso_max_size", str(expected)]]


@pytest.mark.parametrize("kv_share", [0, 1, -0.1, 2])
def test_shares_out_of_range_are_refused(kv_share: float) -> None:
    for fabric in Fabric:
        with pytest.raises(ConfigError, match="share"):
            describe(fabric, "mlx5_0", "eth0", RATE, kv_share)


def test_a_line_too_slow_is_refused() -> None:
    with pytest.raises(ConfigError, match="below"):
        htb_commands("eth0", 1000)


def test_marks_in_libraries_words() -> None:
    assert marks(Fabric.INFINIBAND, Traffic.LAYERS) == {"SL": 2}
    assert marks(Fabric.ROCE, Traffic.BLOCKS) == {"TRAFFIC_CLASS": 40}
