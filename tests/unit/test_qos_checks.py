"""Checks of a host: recorded outputs of tools, comparison, verdicts."""

from pathlib import Path

import pytest

from dualpath.core.errors import ServiceError
from dualpath.qos import check_rdma
from dualpath.qos.bursts import Contrast, RoundTrips, percentile, summarize
from dualpath.qos.check_ethernet import compare, judge_contrast
from dualpath.qos.fabric import Fabric
from dualpath.qos.finding import Verdict, all_ok, judge
from dualpath.qos.infiniband import SL2VL
from dualpath.qos.tc import ClassState, DeviceState, parse_classes, parse_filters, parse_qdiscs

CLASSES = """\
class htb 1:1 root rate 19600Kbit ceil 20Mbit burst 3000b cburst 3000b 
 Sent 5 bytes 1 pkt (dropped 0, overlimits 0 requeues 0) 
 backlog 0b 0p requeues 0
 lended: 0 borrowed: 0 giants: 0
 tokens: 15625 ctokens: 15625

class htb 1:10 parent 1:1 leaf 10: prio 0 rate 784Mbit ceil 800Mbit burst 99862b cburst 100000b 
 Sent 208400 bytes 200 pkt (dropped 0, overlimits 0 requeues 0) 
 backlog 0b 0p requeues 0

class htb 1:30 parent 1:1 leaf 30: prio 2 rate 8Mbit ceil 1Gbit burst 100000b cburst 100000b 
 Sent 7 bytes 1 pkt (dropped 0, overlimits 0 requeues 0) 
"""  # noqa: W291 (as tc prints it)
QDISCS = """[{"kind":"htb","handle":"1:","root":true,"refcnt":3,"options":{"r2q":10,"default":"0x30",
"direct_packets_stat":0,"direct_qlen":1000}},{"kind":"pfifo","handle":"30:","parent":"1:30","options":{"limit":1000}}]"""
FILTERS = """[{"parent":"1:","protocol":"ip","pref":1,"kind":"u32","chain":0},
{"parent":"1:","protocol":"ip","pref":1,"kind":"u32","chain":0,"options":{"fh":"800:","ht_divisor":1}},
{"parent":"1:","protocol":"ip","pref":1,"kind":"u32","chain":0,"options":{"fh":"800::800","order":2048,"key_ht":"800",
"bkt":"0","flowid":"1:10","not_in_hw":true,"match":{"value":"680000","mask":"fc0000","offmask":"","off":0}}},
{"parent":"1:","protocol":"ip","pref":2,"kind":"u32","chain":0,"options":{"fh":"801::800","order":2048,"key_ht":"801",
"bkt":"0","flowid":"1:20","match":{"value":"a000002","mask":"ffffffff","offmask":"","off":16}}},
{"parent":"1:","protocol":"ipv6","pref":11,"kind":"u32","chain":0,"options":{"fh":"802::800","order":2048,
"key_ht":"802","bkt":"0","flowid":"1:10","match":{"value":"6800000","mask":"fc00000","offmask":"","off":0}}}]"""
SL2VL_TABLE = """\
# SL2VL table: Lid 2
#                 SL: | 0| 1| 2| 3| 4| 5| 6| 7| 8| 9|10|11|12|13|14|15|
ports: in  0, out  0: | 0| 1| 2| 3| 0| 0| 0| 0| 0| 0| 0| 0| 0| 0| 0| 0|
"""

GOOD = DeviceState(
    "htb",
    "1:30",
    {
        "1:1": ClassState(800_000_000, 800_000_000, 0, 0),
        "1:10": ClassState(792_000_000, 800_000_000, 0, 0),
        "1:20": ClassState(4_000_000, 800_000_000, 1, 0),
        "1:30": ClassState(4_000_000, 800_000_000, 2, 0),
    },
    {26: "1:10", 12: "1:20", 10: "1:30"},
)


def test_classes_are_read_from_tc() -> None:
    assert parse_classes(CLASSES) == {
        "1:1": ClassState(19_600_000, 20_000_000, 0, 5),
        "1:10": ClassState(784_000_000, 800_000_000, 0, 208_400),
        "1:30": ClassState(8_000_000, 1_000_000_000, 2, 7),
    }


def test_root_and_filters_are_read_from_tc() -> None:
    assert parse_qdiscs(QDISCS) == ("htb", "1:30")
    assert parse_qdiscs('[{"kind":"noqueue","handle":"0:","root":true,"refcnt":2,"options":{}}]') == ("noqueue", "")
    assert parse_qdiscs("") == ("none", "")
    assert parse_filters(FILTERS) == {26: "1:10"}, "filters on addresses and of IPv6 are none of ours"


def test_a_host_as_printed_is_ok() -> None:
    assert all_ok(compare("eth0", GOOD, 800_000_000))
    assert all_ok(compare("eth0", GOOD, None))


@pytest.mark.parametrize(
    ("state", "subject"),
    [
        (GOOD._replace(dscp={26: "1:10", 12: "1:20"}), "filter blocks"),
        (GOOD._replace(dscp={**GOOD.dscp, 10: "1:10"}), "filter blocks"),
        (GOOD._replace(default="1:10"), "unmarked packets"),
        (GOOD._replace(classes={**GOOD.classes, "1:10": ClassState(7, 800_000_000, 0, 0)}), "class model"),
        (GOOD._replace(classes={**GOOD.classes, "1:20": ClassState(4_000_000, 800_000_000, 0, 0)}), "class layers"),
        (GOOD._replace(classes={**GOOD.classes, "1:30": ClassState(4_000_000, 4_000_000, 2, 0)}), "class blocks"),
        (GOOD._replace(qdisc="noqueue", classes={}), "classes"),
    ],
)
def test_what_differs_is_named_with_a_mend(state: DeviceState, subject: str) -> None:
    missing = [finding for finding in compare("eth0", state, 800_000_000) if finding.verdict is not Verdict.OK]
    assert [finding.subject for finding in missing] == [subject]
    assert "dualpath qos" in missing[0].mend


def test_a_line_of_another_rate_is_missing() -> None:
    verdicts = {finding.subject: finding.verdict for finding in compare("eth0", GOOD, 100_000_000)}
    assert verdicts["line"] is Verdict.MISSING


def test_a_fabric_without_device_is_unknown_not_ok(tmp_path: Path) -> None:
    findings = check_rdma.check(Fabric.INFINIBAND, "mlx5_0", "eth0", root=tmp_path)
    assert [finding.verdict for finding in findings] == [Verdict.UNKNOWN]
    assert "cannot be checked here: no device mlx5_0" in findings[0].found
    assert not all_ok(findings)


def test_a_port_of_the_other_fabric_is_missing(tmp_path: Path) -> None:
    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "link_layer").write_text("Ethernet\n")
    (port / "state").write_text("4: ACTIVE\n")
    by_subject = {f.subject: f for f in check_rdma.check(Fabric.INFINIBAND, "mlx5_0", "none0", root=tmp_path)}
    assert by_subject["port 1"].verdict is Verdict.MISSING
    by_subject = {f.subject: f for f in check_rdma.check(Fabric.ROCE, "mlx5_0", "none0", root=tmp_path)}
    assert by_subject["port 1"].verdict is Verdict.OK
    assert by_subject["marks of connections"].verdict is Verdict.OK
    forced = tmp_path / "mlx5_0" / "tc" / "1"
    forced.mkdir(parents=True)
    (forced / "traffic_class").write_text("Global tclass=106\n")
    by_subject = {f.subject: f for f in check_rdma.check(Fabric.ROCE, "mlx5_0", "none0", root=tmp_path)}
    assert by_subject["marks of connections"].verdict is Verdict.MISSING


def test_tables_of_rdma_tools_are_read() -> None:
    assert check_rdma.parse_sl2vl(SL2VL_TABLE) == [int(lane) for lane in SL2VL.split(",")]
    assert check_rdma.parse_sl2vl("ibwarn: no port") == []
    assert check_rdma.parse_pfc('{"prio_pfc":[false,true,false,true,false,false,false,false]}') == [1, 3]
    assert check_rdma.parse_dscp('{"dscp_prio":[[26,3],[12,1],[10,1]]}') == {26: 3, 12: 1, 10: 1}
    assert check_rdma.parse_dscp("{}") == {}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.01, 1), (1.0, 100)])
def test_percentiles_are_nearest_ranks(share: float, expected: int) -> None:
    assert percentile(range(1, 101), share) == expected
    assert percentile([7], share) == 7


def test_round_trips_are_summed_up_in_seconds() -> None:
    trips = summarize([3_000_000, 1_000_000, 2_000_000], realtime=True)
    assert trips == RoundTrips(3, 0.002, 0.003, 0.003, True)
    with pytest.raises(ServiceError, match="longer"):
        summarize([], realtime=True)


def test_bursts_may_take_twice_as_long_under_load() -> None:
    idle = RoundTrips(100, 0.0001, 0.0002, 0.001, True)
    assert judge_contrast(Contrast(idle, RoundTrips(100, 0.0001, 0.0004, 0.001, True))).verdict is Verdict.OK
    late = judge_contrast(Contrast(idle, RoundTrips(100, 0.005, 0.007, 0.01, True)))
    assert late.verdict is Verdict.MISSING and "35.00 times" in late.found


def test_mends_are_kept_where_they_are_needed() -> None:
    assert judge("x", True, "fine", "do y").mend == ""
    assert judge("x", False, "bad", "do y").mend == "do y"
