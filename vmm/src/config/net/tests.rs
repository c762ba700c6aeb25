//! Tests of the descriptions of networks.

use std::net::{Ipv4Addr, Ipv6Addr};

use devices::rate_limit::{Rate, Rates};

use super::*;

fn net(text: &str) -> NetConfig {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[track_caller]
fn refused(text: &str, named: &str) {
    let error = match text.parse::<NetConfig>() {
        Err(error) => error.to_string(),
        Ok(net) => net.check().expect_err(text).to_string(),
    };
    assert!(error.contains(named), "'{named}' is not in: {error}");
    assert!(!error.contains('\n'));
}

fn rate(per_second: u64, burst: u64, once: u64) -> Option<Rate> {
    Some(Rate {
        per_second,
        burst,
        once,
    })
}

#[test]
fn a_tap_is_described_with_all_its_words() {
    let net = net(
        "tap=t0,mac=02:00:00:0a:0B:ff,mtu=9000,queues=4,bandwidth=10M/s,bandwidth-burst=1M,\
         bandwidth-once=1G,pps=1000,pps-burst=50,pps-once=5",
    );
    net.check().unwrap();
    assert_eq!(net.tap.as_deref(), Some("t0"));
    assert_eq!(net.mac.unwrap().to_string(), "02:00:00:0a:0b:ff");
    assert_eq!((net.mtu, net.queues()), (Some(9000), 4));
    let limit = Rates {
        bytes: rate(10 << 20, 1 << 20, 1 << 30),
        operations: rate(1000, 50, 5),
    };
    assert_eq!((net.rx_limit(), net.tx_limit()), (limit, limit));
}

#[test]
fn what_is_sent_may_have_limits_of_its_own() {
    let alike = net("tap=t0,pps=1000");
    assert_eq!(alike.tx_limit(), alike.rx_limit());
    let two = net(
        "tap=t0,pps=1000,pps-burst=9,tx-pps=7,tx-pps-burst=2,tx-pps-once=30,\
         tx-bandwidth=1M/s,tx-bandwidth-burst=4K,tx-bandwidth-once=8K",
    );
    two.check().unwrap();
    let received = Rates {
        bytes: None,
        operations: rate(1000, 9, 0),
    };
    let sent = Rates {
        bytes: rate(1 << 20, 4 << 10, 8 << 10),
        operations: rate(7, 2, 30),
    };
    assert_eq!((two.rx_limit(), two.tx_limit()), (received, sent));
    assert_eq!(alike.limited(received, sent), two);
    assert_eq!(two.clone().limited(sent, sent).tx, None);
    let none = two.limited(received, Rates::default());
    assert_eq!((none.rx_limit(), none.tx_limit()), (received, Rates::default()));
}

#[test]
fn a_user_network_forwards_as_many_ports_as_one_likes() {
    let net = net("user,forward=tcp:8080:80,forward=udp:0.0.0.0:53:5353,forward=tcp:[::1]:8080:80");
    net.check().unwrap();
    assert!(net.user);
    let expected = Forward {
        protocol: Protocol::Tcp,
        address: Ipv4Addr::LOCALHOST.into(),
        host_port: 8080,
        guest_port: 80,
    };
    assert_eq!(net.forward[0], expected);
    assert_eq!(net.forward[1].protocol, Protocol::Udp);
    assert_eq!(net.forward[1].address, Ipv4Addr::UNSPECIFIED);
    assert_eq!(net.forward[2].address, Ipv6Addr::LOCALHOST);
}

#[test]
fn what_is_no_network_is_refused_and_named() {
    for (text, named) in [
        ("", "tap=NAME or user"),
        ("bridge=br0", "tap=NAME or user"),
        ("tap", "tap=NAME or user"),
        ("user=me", "tap=NAME or user"),
        ("tap=", "''"),
        ("tap=a/b", "'a/b'"),
        ("tap=tap%d", "'tap%d'"),
        ("tap=sixteen-letters-", "'sixteen-letters-'"),
        ("tap=t,queue=2", "'queue'"),
        ("tap=t,queues=0", "0 queues"),
        ("tap=t,queues=9", "9 queues"),
        ("tap=t,queues=two", "queues"),
        ("tap=t,mtu=67", "67"),
        ("tap=t,mtu=65536", "mtu"),
        ("tap=t,mac", "mac"),
        ("tap=t,mtu=1500,mtu=1500", "'mtu' is there twice"),
        ("tap=t,forward=tcp:1:2", "user networks"),
        ("user,queues=2", "one pair"),
        (
            "user,forward=tcp:80:80,forward=tcp:80:81",
            "TCP port 80 of 127.0.0.1",
        ),
        ("tap=t,pps=0", "pps of 0"),
        ("tap=t,bandwidth=0/s", "bandwidth of 0"),
        ("tap=t,bandwidth=fast", "'fast'"),
        ("tap=t,bandwidth=10M/s,bandwidth-burst=0", "bandwidth-burst of 0"),
        ("tap=t,pps-burst=5", "give pps too"),
        ("tap=t,tx-bandwidth-once=5", "give bandwidth too"),
        ("tap=t,pps=1,tx-pps=0", "pps of 0"),
    ] {
        refused(text, named);
    }
}

#[test]
fn a_table_is_as_good_as_a_flag_and_names_one_kind() {
    let table: NetConfig =
        toml::from_str("user = true\nforward = ['tcp:8080:80']\nmac = '02:00:00:00:00:01'").unwrap();
    assert_eq!(table, net("user,forward=tcp:8080:80,mac=02:00:00:00:00:01"));
    let both: NetConfig = toml::from_str("user = true\ntap = 't'").unwrap();
    assert_eq!(both.check(), Err(NetConfigError::Kind));
    assert_eq!(NetConfig::default().check(), Err(NetConfigError::Kind));
}

#[test]
fn what_is_no_address_of_a_station_is_refused() {
    for text in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:00:00",
        "02-00-00-00-00-01",
        "2:0:0:0:0:1",
        "0g:00:00:00:00:00",
        "+2:00:00:00:00:01",
    ] {
        assert_eq!(
            text.parse::<MacAddress>(),
            Err(MacError::Malformed(text.into())),
            "{text}"
        );
    }
    let group = "01:00:5e:00:00:01";
    assert_eq!(
        group.parse::<MacAddress>(),
        Err(MacError::Multicast(group.into()))
    );
    let broadcast = "ff:ff:ff:ff:ff:ff";
    assert_eq!(
        broadcast.parse::<MacAddress>(),
        Err(MacError::Multicast(broadcast.into()))
    );
    let zero = "00:00:00:00:00:00";
    assert_eq!(zero.parse::<MacAddress>(), Err(MacError::Zero(zero.into())));
}

/// Guests keep their leases and their rules by it: what is written here never changes.
#[test]
fn a_derived_address_is_the_same_for_ever_and_another_for_each_network() {
    assert_eq!(MacAddress::derived("guest", 0).to_string(), "c6:33:80:e1:39:7d");
    let addresses = ["guest", "web"].map(|name| [0, 1].map(|index| MacAddress::derived(name, index)));
    let all: Vec<MacAddress> = addresses.concat();
    for (index, address) in all.iter().enumerate() {
        assert_eq!(address.0[0] & 3, 2, "locally administered, of one station");
        assert!(!all[..index].contains(address));
    }
}

#[test]
fn what_is_no_forwarding_is_refused_and_named() {
    for (text, named) in [
        ("", "''"),
        ("80:80", "'80:80'"),
        ("sctp:80:80", "'sctp:80:80'"),
        ("tcp:80", "'tcp:80'"),
        ("tcp:0:80", "'0'"),
        ("tcp:80:65536", "'65536'"),
        ("tcp:localhost:80:80", "'localhost'"),
        ("tcp:::1:80:80", "'::1'"),
    ] {
        let error = text.parse::<Forward>().expect_err(text).to_string();
        assert!(error.contains(named), "'{named}' is not in: {error}");
    }
}
