"""`--net` and `--publish` as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostler.config import MachineConfig, NetConfig, PublishConfig, parse_nets
from ostler.errors import ConfigError


def test_net_with_options_is_parsed() -> None:
    net = NetConfig.parse("tap=br0,mac=52:54:00:12:34:56,queues=2,mtu=9000,pcap=/tmp/a.pcap")
    assert (net.kind, net.target, net.queues, net.mtu) == ("tap", "br0", 2, 9000)
    assert net.pcap == Path("/tmp/a.pcap")
    assert net.mac_bytes == bytes.fromhex("525400123456")
    assert NetConfig.parse("user") == NetConfig()
    said = [NetConfig.parse(f"tap{text}").vhost for text in ("", ",vhost=on", ",vhost=off")]
    assert said == [None, True, False]


def test_nets_said_are_one_or_several_and_none() -> None:
    assert parse_nets([]) == parse_nets("none") == parse_nets(["none"]) == ()
    assert parse_nets("user") == parse_nets(NetConfig()) == (NetConfig(),)
    assert parse_nets(["user", NetConfig("tap")]) == (NetConfig(), NetConfig("tap"))
    with pytest.raises(ConfigError, match="leave one or the other out"):
        parse_nets(["none", "user"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("token-ring", "there is: user, tap"),
        ("user=eth0", "user has no target"),
        ("switch", "give the name of a switch"),
        ("user,mac=52:54:00", "no address for one card"),
        ("user,mac=53:54:00:12:34:56", "no address for one card"),
        ("user,queues=0", "give 1 to 16"),
        ("user,mtu=20", "give 68 to 65520"),
        ("user,speed=9", "there is no option 'speed'"),
        ("user,kind=tap", "kind comes first"),
        ("user,model=ne2000", "there is: virtio"),
        ("udp=127.0.0.1:5000", "by local="),
        ("socket", "give the path of a unix socket"),
        ("tap=br0,local=x", "leave local= out"),
        ("none,mac=52:54:00:12:34:56", "none is no card"),
        ("user,vhost=on", "vhost=on: the kernel moves frames of tap devices; use --net tap"),
        ("tap,vhost=on,model=e1000", "does not serve model=e1000; use virtio"),
        ("tap,vhost=on,pcap=/tmp/a", "leave pcap= or vhost=on out"),
        ("tap,vhost=on,hash=on", "leave hash=on or vhost=on out"),
        ("tap,vhost=maybe", "vhost=maybe: say on or off"),
    ],
)
def test_net_that_cannot_be_says_why(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        NetConfig.parse(text)


def test_publish_is_parsed() -> None:
    assert PublishConfig.parse("2222:22") == PublishConfig(2222, 22)
    assert PublishConfig.parse("53:53/udp") == PublishConfig(53, 53, protocol="udp")
    assert PublishConfig.parse("0.0.0.0:80:8080") == PublishConfig(80, 8080, "0.0.0.0")
    assert PublishConfig.parse("[::1]:80:8080") == PublishConfig(80, 8080, "::1")


@pytest.mark.parametrize("text", ["22", "0:22", "22:70000", "a:b", "host:80:80", "80:80/sctp", ""])
def test_publish_that_cannot_be_says_why(text: str) -> None:
    with pytest.raises(ConfigError, match="--publish"):
        PublishConfig.parse(text)


def test_publish_without_user_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="add --net user"):
        MachineConfig(kernel=Path("k"), nets=(), publish=(PublishConfig(2222, 22),))
